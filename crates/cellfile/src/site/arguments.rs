//! The arguments of a call to the library, by its table.

use std::collections::BTreeMap;

use homeostat_model::library::{Arg, ArgType, Call, Kind, Presence};
use homeostat_model::{Bytes, parse_duration};
use serde_json::Value;

use crate::item::Datum;
use crate::reader::Reader;

/// Reads a call; none when anything about it is wrong.
pub(super) fn call(reader: &mut Reader<'_, '_, '_>, kind: &Kind) -> Option<Call> {
    let strange = |name: &str| !kind.args.iter().any(|arg| arg.name == name);
    let mut sound = !reader
        .item
        .arguments
        .iter()
        .any(|given| strange(&given.name));
    let mut args = BTreeMap::new();
    for arg in kind.args {
        match (reader.given(arg.name), arg.presence) {
            (None, Presence::Optional) => {}
            (None, Presence::Required) => {
                reader.missing(arg.name);
                sound = false;
            }
            (Some(datum), _) => match value(arg, datum) {
                Ok(value) => {
                    args.insert(arg.name.to_owned(), value);
                }
                Err(wrong) => {
                    sound = false;
                    match wrong.hint {
                        Some(hint) => reader.bad_with_hint(arg.name, None, wrong.message, hint),
                        None => reader.bad(arg.name, None, wrong.message),
                    }
                }
            },
        }
    }
    sound.then(|| Call {
        kind: kind.name.to_owned(),
        args,
    })
}

struct Wrong {
    message: String,
    hint: Option<String>,
}

impl Wrong {
    fn new(message: String) -> Self {
        Self {
            message,
            hint: None,
        }
    }
}

fn value(arg: &Arg, datum: &Datum) -> Result<Value, Wrong> {
    let wrong_type = |hint: Option<String>| {
        Err(Wrong {
            message: format!(
                "'{}' must be {}, not {}",
                arg.name,
                arg.ty.words(),
                datum.kind()
            ),
            hint,
        })
    };
    match (arg.ty, datum) {
        (ArgType::Text | ArgType::Command, Datum::Text(text)) => Ok(text.as_str().into()),
        (ArgType::Int, Datum::Int(number)) => Ok((*number).into()),
        (ArgType::Float, Datum::Int(_) | Datum::Float(_)) => json(arg, datum),
        (ArgType::Bool, Datum::Bool(value)) => Ok((*value).into()),
        (ArgType::Duration, Datum::Text(text)) => match parse_duration(text) {
            Ok(_) => Ok(text.as_str().into()),
            Err(bad) => Err(Wrong::new(bad.to_string())),
        },
        (ArgType::Duration, Datum::Int(number)) => {
            wrong_type(Some(format!("write '{number}s' for seconds")))
        }
        (ArgType::Size, Datum::Int(number)) if *number >= 0 => Ok((*number).into()),
        (ArgType::Size, Datum::Text(text)) => match text.parse::<Bytes>() {
            Ok(_) => Ok(text.as_str().into()),
            Err(bad) => Err(Wrong::new(bad.to_string())),
        },
        (ArgType::Texts | ArgType::Command, Datum::List(list)) => {
            match list
                .iter()
                .find(|element| !matches!(element, Datum::Text(_)))
            {
                None => json(arg, datum),
                Some(other) => Err(Wrong::new(format!(
                    "'{}' must be a list of texts, but has {} in it",
                    arg.name,
                    other.kind()
                ))),
            }
        }
        (ArgType::Texts, Datum::Text(text)) => wrong_type(Some(format!("write [\"{text}\"]"))),
        (ArgType::Map, Datum::Dict(_)) => json(arg, datum),
        (ArgType::Matcher | ArgType::Any, _) => json(arg, datum),
        (
            ArgType::Text
            | ArgType::Int
            | ArgType::Float
            | ArgType::Bool
            | ArgType::Duration
            | ArgType::Size
            | ArgType::Texts
            | ArgType::Map
            | ArgType::Command,
            _,
        ) => wrong_type(None),
    }
}

fn json(arg: &Arg, datum: &Datum) -> Result<Value, Wrong> {
    match datum {
        Datum::None => Ok(Value::Null),
        Datum::Bool(value) => Ok((*value).into()),
        Datum::Int(number) => Ok((*number).into()),
        Datum::Float(number) => match serde_json::Number::from_f64(*number) {
            Some(number) => Ok(Value::Number(number)),
            None => Err(Wrong::new(format!("'{}' has {number} in it", arg.name))),
        },
        Datum::Text(text) => Ok(text.as_str().into()),
        Datum::List(list) => {
            let values: Result<Vec<Value>, Wrong> =
                list.iter().map(|each| json(arg, each)).collect();
            Ok(Value::Array(values?))
        }
        Datum::Dict(dict) => {
            let mut map = serde_json::Map::new();
            for (key, value) in dict {
                let Datum::Text(key) = key else {
                    return Err(Wrong::new(format!(
                        "the keys of '{}' must be texts, not {}",
                        arg.name,
                        key.kind()
                    )));
                };
                map.insert(key.clone(), json(arg, value)?);
            }
            Ok(Value::Object(map))
        }
        Datum::Probe(_) | Datum::Other(_) => Err(Wrong::new(format!(
            "'{}' cannot have {} in it",
            arg.name,
            datum.kind()
        ))),
    }
}
