//! What is wanted of several facts about one thing, by name.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::call::{Args, CallError};
use crate::matcher::{self, Matcher};
use crate::shown;

/// Facts by name. One that was asked for and could not be had is absent.
pub(crate) type Facts = BTreeMap<&'static str, Value>;

/// The longest value shown of a fact that is as wanted, in bytes.
const LONGEST: usize = 60;

/// Fact to matcher, in the order of the table of kinds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wants(Vec<(&'static str, Matcher)>);

/// What is not as wanted, for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unmet(pub(crate) String);

impl Wants {
    /// The matchers among the arguments of these names.
    pub(crate) fn read(args: &Args<'_>, names: &[&'static str]) -> Result<Self, CallError> {
        let mut wants = Self::default();
        for name in names {
            if let Some(matcher) = args.matcher(name)? {
                wants.push(name, matcher);
            }
        }
        Ok(wants)
    }

    pub fn push(&mut self, fact: &'static str, matcher: Matcher) {
        self.0.push((fact, matcher));
    }

    /// The same with one wish more.
    #[must_use]
    pub fn and(mut self, fact: &'static str, matcher: Matcher) -> Self {
        self.push(fact, matcher);
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn asks(&self, fact: &str) -> bool {
        self.0.iter().any(|(name, _)| *name == fact)
    }

    /// What is right and worth saying, or everything that is not.
    pub(crate) fn judge(&self, facts: &Facts) -> Result<String, Unmet> {
        let mut right = Vec::new();
        let mut wrong = Vec::new();
        for (name, matcher) in &self.0 {
            let seen = facts.get(name).unwrap_or(&Value::Null);
            match matcher.test(seen) {
                Ok(()) => {
                    let seen = matcher::describe(seen);
                    right.push(if seen.len() <= LONGEST {
                        format!("{name} {seen}")
                    } else {
                        format!("{name} as wanted")
                    });
                }
                Err(seen) => wrong.push(format!("{name} {seen}")),
            }
        }
        if wrong.is_empty() {
            Ok(right.join(", "))
        } else {
            Err(Unmet(wrong.join(", ")))
        }
    }
}

impl fmt::Display for Wants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self
            .0
            .iter()
            .map(|(name, matcher)| format!("{name} {matcher}"))
            .collect();
        f.write_str(&shown::head(all.join(", ").as_bytes()))
    }
}
