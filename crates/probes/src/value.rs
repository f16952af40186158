//! A value that a function of the file has worked out is as it should be.

use serde_json::Value;

use crate::call::{Args, CallError};
use crate::matcher::{self, Matcher};
use crate::wants::Unmet;

#[derive(Debug, Clone, PartialEq)]
pub struct ValueProbe {
    value: Value,
    want: Matcher,
}

impl ValueProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        match (args.value("value"), args.matcher("want")?) {
            (Some(value), Some(want)) => Ok(Self {
                value: value.clone(),
                want,
            }),
            (None, _) | (_, None) => args.whole("it is not complete", "say value and want"),
        }
    }

    pub(crate) fn expected(&self) -> String {
        self.want.to_string()
    }
}

pub(crate) fn look(probe: &ValueProbe) -> Result<String, Unmet> {
    match probe.want.test(&probe.value) {
        Ok(()) => Ok(matcher::describe(&probe.value)),
        Err(seen) => Err(Unmet(seen)),
    }
}
