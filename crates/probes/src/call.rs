//! Binds a call to the table of kinds, and reads its arguments.
//!
//! Everything that can be wrong in a declaration is found here, before anything runs, and names the argument.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use homeostat_model::library::{self, Arg, ArgType, Call, Kind, Presence, Serves};
use homeostat_model::{Bytes, parse_duration};
use serde_json::Value;

use crate::matcher::Matcher;

/// What is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {}{problem}", .arg.as_ref().map(|arg| format!("{arg}: ")).unwrap_or_default())]
pub struct CallError {
    pub kind: String,
    /// `None`: it is about the whole.
    pub arg: Option<String>,
    pub problem: String,
    pub hint: Option<String>,
}

/// Which of its roles a call is to play.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Probe,
    Fix,
}

/// The arguments of a call whose names and types are right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Args<'a> {
    pub(crate) kind: &'static Kind,
    values: &'a BTreeMap<String, Value>,
}

impl<'a> Args<'a> {
    pub(crate) fn bind(call: &'a Call, role: As) -> Result<Self, CallError> {
        let Some(kind) = library::kind(&call.kind) else {
            return Err(unknown_kind(&call.kind, role));
        };
        let args = Self {
            kind,
            values: &call.args,
        };
        let (fits, as_what, instead) = match role {
            As::Probe => (kind.role.may_be_probe(), "a probe", "a fix"),
            As::Fix => (kind.role.may_be_fix(), "a fix", "a probe"),
        };
        if !fits {
            return args.whole(
                format!("it is no {}", &as_what[2..]),
                format!("use it as {instead}"),
            );
        }
        for (name, value) in &call.args {
            let Some(arg) = kind.args.iter().find(|arg| arg.name == name) else {
                let known: Vec<_> = kind.args.iter().map(|arg| arg.name).collect();
                return args
                    .refuse(name, "there is no such argument")
                    .map_err(|error| error.with_hint(format!("there are {}", known.join(", "))));
            };
            args.check_role(arg, role)?;
            args.check_type(arg, value)?;
        }
        let missing = kind
            .args
            .iter()
            .find(|arg| arg.presence == Presence::Required && !call.args.contains_key(arg.name));
        match missing {
            Some(arg) => args
                .refuse(arg.name, "it is missing")
                .map_err(|error| error.with_hint(arg.doc)),
            None => Ok(args),
        }
    }

    fn check_role(&self, arg: &Arg, role: As) -> Result<(), CallError> {
        match (arg.serves, role) {
            (Serves::Looking, As::Fix) => self.refuse(
                arg.name,
                "it can only be looked at; a fix would not know what to write",
            ),
            // What says only how to repair is no harm where one only looks: a fix hands its own arguments to its check.
            (Serves::Looking | Serves::Repairing | Serves::Both, _) => Ok(()),
        }
    }

    fn check_type(&self, arg: &Arg, value: &Value) -> Result<(), CallError> {
        let texts = |value: &Value| {
            value
                .as_array()
                .is_some_and(|all| all.iter().all(Value::is_string))
        };
        let fits = match arg.ty {
            ArgType::Text | ArgType::Duration => value.is_string(),
            ArgType::Int => value.is_i64() || value.is_u64(),
            ArgType::Float => value.is_number(),
            ArgType::Bool => value.is_boolean(),
            ArgType::Size => value.is_string() || value.is_u64(),
            ArgType::Texts => texts(value),
            ArgType::Map => value.is_object(),
            ArgType::Command => value.is_string() || texts(value),
            ArgType::Matcher | ArgType::Any => true,
        };
        if fits {
            return Ok(());
        }
        let problem = format!(
            "{} is wanted, not {}",
            arg.ty.words(),
            crate::matcher::describe(value)
        );
        self.refuse(arg.name, problem)
    }

    pub(crate) fn refuse<T>(&self, arg: &str, problem: impl Into<String>) -> Result<T, CallError> {
        Err(self.error(Some(arg), problem))
    }

    pub(crate) fn whole<T>(
        &self,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Result<T, CallError> {
        Err(self.error(None, problem).with_hint(hint))
    }

    fn error(&self, arg: Option<&str>, problem: impl Into<String>) -> CallError {
        CallError {
            kind: self.kind.name.to_owned(),
            arg: arg.map(str::to_owned),
            problem: problem.into(),
            hint: None,
        }
    }

    pub(crate) fn value(&self, arg: &str) -> Option<&'a Value> {
        debug_assert!(
            self.kind.args.iter().any(|known| known.name == arg),
            "{arg}"
        );
        self.values.get(arg)
    }

    pub(crate) fn has(&self, arg: &str) -> bool {
        self.value(arg).is_some()
    }

    pub(crate) fn text(&self, arg: &str) -> Option<&'a str> {
        self.value(arg)?.as_str()
    }

    /// A required text. Its presence was checked.
    pub(crate) fn need(&self, arg: &str) -> Result<String, CallError> {
        match self.text(arg) {
            Some("") => self.refuse(arg, "it is empty"),
            Some(text) if text.contains('\0') => self.refuse(arg, "it contains a zero byte"),
            Some(text) => Ok(text.to_owned()),
            None => self.refuse(arg, "it is missing"),
        }
    }

    pub(crate) fn bool(&self, arg: &str) -> Option<bool> {
        self.value(arg)?.as_bool()
    }

    pub(crate) fn whole_number<N: TryFrom<i64>>(&self, arg: &str) -> Result<Option<N>, CallError> {
        let Some(value) = self.value(arg) else {
            return Ok(None);
        };
        match value.as_i64().and_then(|number| N::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => self.refuse(arg, format!("{value} is out of range")),
        }
    }

    pub(crate) fn texts(&self, arg: &str) -> Option<Vec<String>> {
        let list = self.value(arg)?.as_array()?;
        Some(
            list.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        )
    }

    pub(crate) fn matcher(&self, arg: &str) -> Result<Option<Matcher>, CallError> {
        self.value(arg)
            .map(|value| Matcher::parse(value).or_else(|error| self.refuse(arg, error.to_string())))
            .transpose()
    }

    /// A matcher that is a plain value, as text: what a fix can write.
    pub(crate) fn plain(&self, arg: &str) -> Result<Option<String>, CallError> {
        match self.value(arg) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => self.refuse(arg, "a fix needs a plain value, no matcher"),
        }
    }

    /// A plain whole number.
    pub(crate) fn plain_number(&self, arg: &str) -> Result<Option<u32>, CallError> {
        match self.plain(arg)?.map(|text| text.parse()) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => self.refuse(arg, "it is no whole number of 32 bits"),
        }
    }

    /// Of a list whose order means nothing.
    pub(crate) fn set_matcher(&self, arg: &str) -> Result<Option<Matcher>, CallError> {
        self.value(arg)
            .map(|value| {
                Matcher::parse_set(value).or_else(|error| self.refuse(arg, error.to_string()))
            })
            .transpose()
    }

    pub(crate) fn duration(&self, arg: &str) -> Result<Option<Duration>, CallError> {
        self.text(arg)
            .map(|text| parse_duration(text).or_else(|error| self.refuse(arg, error.to_string())))
            .transpose()
    }

    pub(crate) fn size(&self, arg: &str) -> Result<Option<Bytes>, CallError> {
        match self.value(arg) {
            None => Ok(None),
            Some(Value::String(text)) => match text.parse() {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) => self.refuse(arg, error.to_string()),
            },
            Some(number) => Ok(number.as_u64().map(Bytes)),
        }
    }

    /// A required absolute path without `..`.
    pub(crate) fn path(&self, arg: &str) -> Result<PathBuf, CallError> {
        let text = self.need(arg)?;
        let path = PathBuf::from(&text);
        if !path.is_absolute() {
            return self
                .refuse(arg, format!("'{text}' is not absolute"))
                .map_err(|error| error.with_hint("begin it with '/'"));
        }
        if path.components().any(|part| part.as_os_str() == "..") {
            return self.refuse(arg, "'..' is not allowed");
        }
        Ok(path)
    }

    /// A program with its arguments; a text is for the shell.
    pub(crate) fn command(&self, arg: &str) -> Result<Vec<String>, CallError> {
        let argv = match self.value(arg) {
            Some(Value::String(script)) if !script.trim().is_empty() => {
                vec!["/bin/sh".to_owned(), "-c".to_owned(), script.clone()]
            }
            _ => self.texts(arg).unwrap_or_default(),
        };
        if argv.first().is_none_or(String::is_empty) {
            return self.refuse(arg, "it is empty");
        }
        if argv.iter().any(|part| part.contains('\0')) {
            return self.refuse(arg, "it contains a zero byte");
        }
        Ok(argv)
    }

    /// Texts by name: headers, variables. Numbers are taken as texts.
    pub(crate) fn strings(&self, arg: &str) -> Result<BTreeMap<String, String>, CallError> {
        let mut all = BTreeMap::new();
        for (name, value) in self
            .value(arg)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                    return self.refuse(arg, format!("'{name}' must be a text"));
                }
            };
            if name.is_empty() || name.contains(['\0', '=']) || text.contains('\0') {
                return self.refuse(arg, format!("'{name}' is not possible"));
            }
            all.insert(name.clone(), text);
        }
        Ok(all)
    }

    /// One out of a few words.
    pub(crate) fn word<T: Copy>(
        &self,
        arg: &str,
        words: &[(&str, T)],
    ) -> Result<Option<T>, CallError> {
        let Some(text) = self.text(arg) else {
            return Ok(None);
        };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                self.refuse(arg, format!("'{text}' is not known"))
                    .map_err(|error| error.with_hint(format!("write one of {}", known.join(", "))))
            }
        }
    }
}

impl CallError {
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

fn unknown_kind(name: &str, role: As) -> CallError {
    let known = library::kinds().iter().filter(|kind| match role {
        As::Probe => kind.role.may_be_probe(),
        As::Fix => kind.role.may_be_fix(),
    });
    let known: Vec<_> = known.map(|kind| kind.name).collect();
    CallError {
        kind: name.to_owned(),
        arg: None,
        problem: "there is no such kind".to_owned(),
        hint: Some(format!("there are {}", known.join(", "))),
    }
}
