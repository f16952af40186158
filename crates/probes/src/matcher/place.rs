//! A place in a JSON text, of which the empty one is all of it: `items.0.name`, `items.#`, `items.#.name`; `\.` is a dot in a key. The simple part of the
//! syntax of gjson, which goss uses.

use std::fmt;

use serde_json::Value;

use super::{Matcher, describe};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    written: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A key, or the number of an element.
    Key(String),
    /// How many elements; or, with more steps after it, these steps in each.
    Every,
}

impl Place {
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        let unknown = |c: char| {
            format!(
                "'{c}' in the path '{written}' is not understood; write '\\{c}' if it is part of a key"
            )
        };
        let mut steps = Vec::new();
        let mut key = String::new();
        let mut chars = written.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => key.extend(chars.next()),
                '.' => steps.push(step(std::mem::take(&mut key))),
                '|' | '*' | '?' | '(' | '[' | '{' | '@' | '!' => return Err(unknown(c)),
                c => key.push(c),
            }
        }
        if !written.is_empty() {
            steps.push(step(key));
        }
        Ok(Self {
            written: written.to_owned(),
            steps,
        })
    }
}

fn step(key: String) -> Step {
    if key == "#" {
        Step::Every
    } else {
        Step::Key(key)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn follow(value: &Value, steps: &[Step]) -> Option<Value> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(value.clone());
    };
    match (step, value) {
        (Step::Key(key), Value::Object(entries)) => follow(entries.get(key)?, rest),
        (Step::Key(key), Value::Array(elements)) => {
            follow(elements.get(key.parse::<usize>().ok()?)?, rest)
        }
        (Step::Every, Value::Array(elements)) if rest.is_empty() => Some(elements.len().into()),
        (Step::Every, Value::Array(elements)) => Some(Value::Array(
            elements
                .iter()
                .filter_map(|element| follow(element, rest))
                .collect(),
        )),
        (Step::Key(_) | Step::Every, _) => None,
    }
}

/// What is JSON already, or a text that is.
fn document(seen: &Value) -> Option<Value> {
    match seen {
        Value::String(text) => serde_json::from_str(text).ok(),
        other => Some(other.clone()),
    }
}

pub(super) fn hold(wanted: &[(Place, Matcher)], seen: &Value) -> bool {
    document(seen).is_some_and(|document| {
        wanted.iter().all(|(place, rule)| {
            follow(&document, &place.steps).is_some_and(|found| rule.holds(&found))
        })
    })
}

/// What does not hold, for people.
pub(super) fn missed(wanted: &[(Place, Matcher)], seen: &Value) -> String {
    let Some(document) = document(seen) else {
        return format!("no JSON: {}", describe(seen));
    };
    let missed = wanted
        .iter()
        .filter_map(|(place, rule)| match follow(&document, &place.steps) {
            None => Some(format!("nothing at '{place}'")),
            Some(found) => Some(format!("'{place}' {}", rule.test(&found).err()?)),
        });
    missed.collect::<Vec<_>>().join(", ")
}
