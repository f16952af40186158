//! Reads the arguments of one call as the types they should have, and notes what is wrong with each.
//!
//! A reader never stops: a bad argument is noted, answered with nothing, and the next one is read, so that one look at a
//! cell file shows all of its independent mistakes.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::{BadName, Bytes, MilliCpu, parse_duration};

use crate::error::{Problem, ProblemKind};
use crate::item::{Argument, Datum, Item};
use crate::nearest::nearest;
use crate::source::{Sources, Span};

/// Collects problems with the sources at hand.
pub(crate) struct Problems<'a> {
    pub sources: &'a Sources,
    pub found: Vec<Problem>,
}

impl Problems<'_> {
    /// Notes a problem at a span; `item` tells from where it was called.
    pub(crate) fn at(&mut self, item: &Item, span: &Span, message: String, hint: Option<String>) {
        let called_from = item.called_from.iter().map(|at| self.sources.place(at));
        self.found.push(Problem {
            kind: ProblemKind::Declared,
            file: span.file.to_string(),
            place: Some(self.sources.place(span)),
            message,
            called_from: called_from.collect(),
            hint,
        });
    }

    /// Notes a problem with an argument of an item; `text` narrows it to the literal that is wrong.
    pub(crate) fn argument(
        &mut self,
        item: &Item,
        name: &str,
        text: Option<&str>,
        message: String,
        hint: Option<String>,
    ) {
        let argument = item.arguments.iter().find(|argument| argument.name == name);
        let mut span = match argument {
            Some(argument) => self.sources.argument(item, argument),
            None => self.sources.head(item),
        };
        if let Some(text) = text {
            span = self.sources.within(span, text);
        }
        self.at(item, &span, message, hint);
    }
}

/// The arguments of one item.
pub(crate) struct Reader<'a, 'p, 's> {
    pub item: &'a Item,
    pub problems: &'p mut Problems<'s>,
}

/// What a named value may be, with the word for each.
pub(crate) type Words<T> = [(&'static str, T)];

impl<'a, 'p, 's> Reader<'a, 'p, 's> {
    /// Refuses arguments that the builder does not know.
    pub(crate) fn new(item: &'a Item, problems: &'p mut Problems<'s>) -> Self {
        let known = item.builder.parameters();
        let builder = item.builder.name();
        for argument in &item.arguments {
            let name = argument.name.as_str();
            if !known.contains(&name) {
                let hint = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("{builder}() takes {}", known.join(", ")),
                };
                let message = format!("{builder}() has no argument '{name}'");
                problems.argument(item, name, None, message, Some(hint));
            }
        }
        Self { item, problems }
    }

    /// An argument that was given. `None` stands for not given.
    pub(crate) fn given(&self, name: &str) -> Option<&'a Datum> {
        let is_it = |argument: &&Argument| argument.name == name;
        let value = &self.item.arguments.iter().find(is_it)?.value;
        (*value != Datum::None).then_some(value)
    }

    pub(crate) fn bad(&mut self, name: &str, text: Option<&str>, message: String) {
        self.problems.argument(self.item, name, text, message, None);
    }

    pub(crate) fn bad_with_hint(
        &mut self,
        name: &str,
        text: Option<&str>,
        message: String,
        hint: String,
    ) {
        self.problems
            .argument(self.item, name, text, message, Some(hint));
    }

    pub(crate) fn missing(&mut self, name: &str) {
        let message = format!("{}() needs the argument '{name}'", self.item.builder.name());
        self.bad(name, None, message);
    }

    fn wrong_type(&mut self, name: &str, wanted: &str, got: &Datum) {
        let message = format!("'{name}' must be {wanted}, not {}", got.kind());
        self.bad(name, None, message);
    }

    pub(crate) fn text(&mut self, name: &str) -> Option<&'a str> {
        match self.given(name)? {
            Datum::Text(text) => Some(text),
            other => {
                self.wrong_type(name, "a string", other);
                None
            }
        }
    }

    pub(crate) fn required_text(&mut self, name: &str) -> Option<&'a str> {
        if self.given(name).is_none() {
            self.missing(name);
        }
        self.text(name)
    }

    /// A text that is a name of kind `N`.
    pub(crate) fn name<N: std::str::FromStr<Err = BadName>>(&mut self, name: &str) -> Option<N> {
        let text = self.text(name)?;
        self.parse_name(name, text)
    }

    pub(crate) fn required_name<N: std::str::FromStr<Err = BadName>>(
        &mut self,
        name: &str,
    ) -> Option<N> {
        let text = self.required_text(name)?;
        self.parse_name(name, text)
    }

    pub(crate) fn parse_name<N: std::str::FromStr<Err = BadName>>(
        &mut self,
        name: &str,
        text: &str,
    ) -> Option<N> {
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(why) => {
                self.bad(name, Some(text), why.to_string());
                None
            }
        }
    }

    /// A list of strings; a single string is refused, because `needs = "shop-db"` would otherwise work by accident.
    pub(crate) fn texts(&mut self, name: &str) -> Option<Vec<&'a str>> {
        let value = self.given(name)?;
        let Datum::List(list) = value else {
            self.wrong_type(name, "a list of strings", value);
            return None;
        };
        let mut texts = Vec::new();
        for element in list {
            let Datum::Text(text) = element else {
                let message = format!(
                    "'{name}' must be a list of strings, but has {} in it",
                    element.kind()
                );
                self.bad(name, None, message);
                return None;
            };
            texts.push(text.as_str());
        }
        Some(texts)
    }

    pub(crate) fn names<N: std::str::FromStr<Err = BadName>>(
        &mut self,
        name: &str,
    ) -> Option<Vec<N>> {
        let texts = self.texts(name)?;
        let mut names = Vec::new();
        for text in texts {
            names.push(self.parse_name(name, text)?);
        }
        Some(names)
    }

    /// A dict with strings as keys.
    pub(crate) fn dict(&mut self, name: &str) -> Option<BTreeMap<&'a str, &'a Datum>> {
        let value = self.given(name)?;
        let Datum::Dict(dict) = value else {
            self.wrong_type(name, "a dict", value);
            return None;
        };
        let mut map = BTreeMap::new();
        for (key, value) in dict {
            let Datum::Text(key) = key else {
                let message = format!("the keys of '{name}' must be strings, not {}", key.kind());
                self.bad(name, None, message);
                return None;
            };
            map.insert(key.as_str(), value);
        }
        Some(map)
    }

    /// A dict of strings.
    pub(crate) fn text_dict(&mut self, name: &str) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (key, value) in self.dict(name).unwrap_or_default() {
            match value {
                Datum::Text(text) => {
                    texts.insert(key.to_owned(), text.clone());
                }
                other => {
                    let message =
                        format!("'{key}' in '{name}' must be a string, not {}", other.kind());
                    self.bad(name, Some(key), message);
                }
            }
        }
        texts
    }

    pub(crate) fn whole(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<u32> {
        let value = self.given(name)?;
        let Datum::Int(number) = value else {
            self.wrong_type(name, "a whole number", value);
            return None;
        };
        if !range.contains(number) {
            let message = format!(
                "'{name}' must be from {} to {}, not {number}",
                range.start(),
                range.end()
            );
            self.bad(name, None, message);
            return None;
        }
        u32::try_from(*number).ok()
    }

    /// Processors, as `4` or `0.5`.
    pub(crate) fn cpu(&mut self, name: &str) -> Option<MilliCpu> {
        /// The largest number of processors that is believed.
        const MOST: f64 = 4096.0;
        let value = self.given(name)?;
        let number = match value {
            Datum::Int(number) => *number as f64,
            Datum::Float(number) => *number,
            other => {
                self.wrong_type(name, "a number of processors, such as 0.5", other);
                return None;
            }
        };
        let milli = (number * 1000.0).round();
        if !(1.0..=MOST * 1000.0).contains(&milli) {
            self.bad(
                name,
                None,
                format!("'{name}' must be from 0.001 to {MOST}, not {number}"),
            );
            return None;
        }
        Some(MilliCpu(milli as u32))
    }

    pub(crate) fn bytes(&mut self, name: &str) -> Option<Bytes> {
        if let Some(Datum::Int(number)) = self.given(name) {
            let message = format!("'{name}' must be a size with a unit, not {number}");
            self.bad_with_hint(name, None, message, "write '512MiB' or '8GiB'".to_owned());
            return None;
        }
        let text = self.text(name)?;
        match text.parse::<Bytes>() {
            Ok(bytes) if bytes > Bytes(0) => Some(bytes),
            Ok(_) => {
                self.bad(name, None, format!("'{name}' must be more than nothing"));
                None
            }
            Err(why) => {
                self.bad(name, None, why.to_string());
                None
            }
        }
    }

    pub(crate) fn duration(&mut self, name: &str, least: Duration) -> Option<Duration> {
        if let Some(Datum::Int(number)) = self.given(name) {
            let message = format!("'{name}' must be a duration with a unit, not {number}");
            self.bad_with_hint(
                name,
                None,
                message,
                format!("write '{number}s' for seconds"),
            );
            return None;
        }
        let text = self.text(name)?;
        match parse_duration(text) {
            Ok(duration) if duration >= least => Some(duration),
            Ok(_) => {
                self.bad(
                    name,
                    None,
                    format!("'{name}' must be at least {least:?}, not {text}"),
                );
                None
            }
            Err(why) => {
                self.bad(name, None, why.to_string());
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, words: &Words<T>) -> Option<T> {
        let text = self.text(name)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let all: Vec<String> = words.iter().map(|(word, _)| format!("'{word}'")).collect();
        let hint = nearest(text, words.iter().map(|(word, _)| *word))
            .map(|near| format!("did you mean '{near}'?"));
        let message = format!("'{name}' must be {}, not '{text}'", all.join(" or "));
        self.problems
            .argument(self.item, name, Some(text), message, hint);
        None
    }
}
