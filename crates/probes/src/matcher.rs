//! What is right: a value, or an operator over what is seen.
//!
//! Written as plain JSON, so that a cell file, a goss file and a stored check say the same. All operators are in the
//! table of `homeostat_model::library`; a test holds the two together.
//!
//! Much of what is looked at (`/proc/sys`, SQL, the output of programs) is text only by accident. So where a number is
//! wanted a text is read as one, where a text is wanted a number is written as one, and where a list is wanted a text is
//! the list of its lines. Nothing else is converted.

mod patterns;
mod place;
mod version;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::shown;
pub(crate) use patterns::why_no_expression;
use patterns::{Expression, Pattern};
use place::Place;
use version::Range;

/// Nesting beyond this is no matcher that a person wrote.
const DEEPEST: usize = 32;

#[derive(Debug, Clone, PartialEq)]
pub struct Matcher(Rule);

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Equals(Value),
    Contains(Value),
    Prefix(String),
    Suffix(String),
    Regex(Expression),
    Compare(Order, f64),
    Version(Range),
    Length(Box<Matcher>),
    Has(Vec<Matcher>),
    Only(Vec<Matcher>),
    Each(Box<Matcher>),
    Key(Box<Matcher>),
    Entries(BTreeMap<String, Matcher>),
    Lines(Vec<Pattern>),
    Json(Vec<(Place, Matcher)>),
    All(Vec<Matcher>),
    Any(Vec<Matcher>),
    Not(Box<Matcher>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Order {
    fn holds(self, seen: f64, bound: f64) -> bool {
        match self {
            Order::Less => seen < bound,
            Order::AtMost => seen <= bound,
            Order::Greater => seen > bound,
            Order::AtLeast => seen >= bound,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Order::Less => "less than",
            Order::AtMost => "at most",
            Order::Greater => "greater than",
            Order::AtLeast => "at least",
        }
    }
}

/// Why something is no matcher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadMatcher(String);

fn bad<T>(why: impl Into<String>) -> Result<T, BadMatcher> {
    Err(BadMatcher(why.into()))
}

impl Matcher {
    /// Exactly this, whatever it looks like.
    pub fn equals(value: impl Into<Value>) -> Self {
        Self(Rule::Equals(value.into()))
    }

    pub fn at_least(bound: u64) -> Self {
        // Counts and sizes; beyond 2^53 a few of them do not matter.
        Self(Rule::Compare(Order::AtLeast, bound as f64))
    }

    /// Between the two, both included.
    pub(crate) fn between(low: u64, high: u64) -> Self {
        let high = Self(Rule::Compare(Order::AtMost, high as f64));
        Self(Rule::All(vec![Self::at_least(low), high]))
    }

    pub(crate) fn contains(text: impl Into<Value>) -> Self {
        Self(Rule::Contains(text.into()))
    }

    /// # Errors
    /// When an operator is not known, or what stands beside it does not fit.
    pub fn parse(value: &Value) -> Result<Self, BadMatcher> {
        parse(value, DEEPEST).map(Self)
    }

    /// Like [`parse`](Self::parse), but a plain list means its elements in any order, for what has no order.
    pub(crate) fn parse_set(value: &Value) -> Result<Self, BadMatcher> {
        match value {
            Value::Array(_) => Ok(Self(Rule::Only(list(value, DEEPEST)?))),
            _ => Self::parse(value),
        }
    }

    /// `Err` says what was seen, for people.
    pub fn test(&self, seen: &Value) -> Result<(), String> {
        if self.holds(seen) {
            return Ok(());
        }
        Err(match &self.0 {
            Rule::Lines(wanted) => match text(seen) {
                Some(seen) => patterns::missed(wanted, &seen),
                None => describe(seen),
            },
            Rule::Json(wanted) => place::missed(wanted, seen),
            Rule::All(rules) => {
                // The first that does not hold says it best.
                let missed = rules.iter().find_map(|rule| rule.test(seen).err());
                missed.unwrap_or_else(|| describe(seen))
            }
            Rule::Length(_) => match length(seen) {
                Some(length) => format!("{} (length {length})", describe(seen)),
                None => describe(seen),
            },
            Rule::Equals(_)
            | Rule::Contains(_)
            | Rule::Prefix(_)
            | Rule::Suffix(_)
            | Rule::Regex(_)
            | Rule::Compare(..)
            | Rule::Version(_)
            | Rule::Has(_)
            | Rule::Only(_)
            | Rule::Each(_)
            | Rule::Key(_)
            | Rule::Entries(_)
            | Rule::Any(_)
            | Rule::Not(_) => describe(seen),
        })
    }

    fn holds(&self, seen: &Value) -> bool {
        let as_text = |test: &dyn Fn(&str) -> bool| text(seen).is_some_and(|seen| test(&seen));
        match &self.0 {
            Rule::Equals(want) => same(want, seen),
            Rule::Contains(want) => match seen {
                Value::Array(elements) => elements.iter().any(|element| same(want, element)),
                _ => text(want).is_some_and(|want| as_text(&|seen| seen.contains(&want))),
            },
            Rule::Prefix(want) => as_text(&|seen| seen.starts_with(want)),
            Rule::Suffix(want) => as_text(&|seen| seen.ends_with(want)),
            Rule::Regex(expression) => as_text(&|seen| expression.is_match(seen)),
            Rule::Compare(order, bound) => {
                number(seen).is_some_and(|seen| order.holds(seen, *bound))
            }
            Rule::Version(range) => match seen {
                // Several versions of one thing may be installed.
                Value::Array(all) => {
                    !all.is_empty()
                        && all
                            .iter()
                            .all(|one| text(one).is_some_and(|one| range.includes(&one)))
                }
                _ => as_text(&|seen| range.includes(seen)),
            },
            Rule::Length(rule) => length(seen).is_some_and(|length| rule.holds(&length.into())),
            Rule::Has(rules) => elements(seen).is_some_and(|all| pair_up(rules, &all)),
            Rule::Only(rules) => {
                elements(seen).is_some_and(|all| rules.len() == all.len() && pair_up(rules, &all))
            }
            Rule::Each(rule) => {
                elements(seen).is_some_and(|all| all.iter().all(|one| rule.holds(one)))
            }
            Rule::Key(rule) => seen.as_object().is_some_and(|all| {
                all.keys()
                    .any(|key| rule.holds(&Value::String(key.clone())))
            }),
            Rule::Entries(rules) => seen.as_object().is_some_and(|all| {
                rules
                    .iter()
                    .all(|(key, rule)| all.get(key).is_some_and(|one| rule.holds(one)))
            }),
            Rule::Lines(wanted) => as_text(&|seen| patterns::hold(wanted, seen)),
            Rule::Json(wanted) => place::hold(wanted, seen),
            Rule::All(rules) => rules.iter().all(|rule| rule.holds(seen)),
            Rule::Any(rules) => rules.iter().any(|rule| rule.holds(seen)),
            Rule::Not(rule) => !rule.holds(seen),
        }
    }
}

fn parse(value: &Value, depth: usize) -> Result<Rule, BadMatcher> {
    let Some(depth) = depth.checked_sub(1) else {
        return bad(format!("it is nested more than {DEEPEST} deep"));
    };
    let Value::Object(object) = value else {
        return Ok(Rule::Equals(value.clone()));
    };
    let mut entries = object.iter();
    let (Some((name, operand)), None) = (entries.next(), entries.next()) else {
        return bad(
            "a matcher is a dictionary with a single key, such as {\"contains\": \"ok\"}; \
             to compare with a dictionary write {\"equals\": {…}}",
        );
    };
    let inner = |operand| parse(operand, depth).map(Matcher).map(Box::new);
    let words = || match operand {
        Value::String(text) => Ok(text.clone()),
        _ => bad(format!("'{name}' is followed by a text")),
    };
    let compare = |order| match number(operand) {
        Some(bound) => Ok(Rule::Compare(order, bound)),
        None => bad(format!("'{name}' is followed by a number")),
    };
    Ok(match name.as_str() {
        "equals" => Rule::Equals(operand.clone()),
        "contains" => Rule::Contains(operand.clone()),
        "prefix" => Rule::Prefix(words()?),
        "suffix" => Rule::Suffix(words()?),
        "regex" => Rule::Regex(Expression::new(&words()?).map_err(BadMatcher)?),
        "less" => compare(Order::Less)?,
        "at_most" => compare(Order::AtMost)?,
        "greater" => compare(Order::Greater)?,
        "at_least" => compare(Order::AtLeast)?,
        "version" => Rule::Version(Range::parse(&words()?).map_err(BadMatcher)?),
        "length" => Rule::Length(inner(operand)?),
        "has" => Rule::Has(list(operand, depth)?),
        "only" => Rule::Only(list(operand, depth)?),
        "each" => Rule::Each(inner(operand)?),
        "key" => Rule::Key(inner(operand)?),
        "entries" => Rule::Entries(map(operand, depth)?.into_iter().collect()),
        "lines" => Rule::Lines(lines(operand)?),
        "json" => {
            let place = |(path, matcher): (String, Matcher)| {
                Ok((Place::parse(&path).map_err(BadMatcher)?, matcher))
            };
            let places = map(operand, depth)?.into_iter().map(place);
            Rule::Json(places.collect::<Result<_, _>>()?)
        }
        "all" => Rule::All(list(operand, depth)?),
        "any" => Rule::Any(list(operand, depth)?),
        "not" => Rule::Not(inner(operand)?),
        _ => {
            let known: Vec<_> = homeostat_model::library::operators()
                .iter()
                .map(|operator| operator.name)
                .collect();
            return bad(format!(
                "'{name}' is no matcher; there are {}; to compare with a dictionary write {{\"equals\": {{…}}}}",
                known.join(", ")
            ));
        }
    })
}

fn list(value: &Value, depth: usize) -> Result<Vec<Matcher>, BadMatcher> {
    match value {
        Value::Array(values) => values
            .iter()
            .map(|value| parse(value, depth).map(Matcher))
            .collect(),
        _ => bad("a list of matchers is wanted here"),
    }
}

fn map(value: &Value, depth: usize) -> Result<Vec<(String, Matcher)>, BadMatcher> {
    let Value::Object(entries) = value else {
        return bad("a dictionary of matchers is wanted here");
    };
    let entry = |(key, value): (&String, &Value)| Ok((key.clone(), Matcher(parse(value, depth)?)));
    entries.iter().map(entry).collect()
}

fn lines(value: &Value) -> Result<Vec<Pattern>, BadMatcher> {
    let wanted = || BadMatcher("a list of patterns is wanted after 'lines'".to_owned());
    let patterns = value.as_array().ok_or_else(wanted)?.iter();
    patterns
        .map(|pattern| {
            let text = pattern.as_str().ok_or_else(wanted)?;
            Pattern::parse(text).map_err(BadMatcher)
        })
        .collect()
}

/// Scalars as text; lists and dictionaries are none.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok().filter(|n: &f64| n.is_finite()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn length(value: &Value) -> Option<usize> {
    match value {
        Value::String(text) => Some(text.len()),
        Value::Array(elements) => Some(elements.len()),
        Value::Object(entries) => Some(entries.len()),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn elements(value: &Value) -> Option<Cow<'_, [Value]>> {
    match value {
        Value::Array(elements) => Some(Cow::Borrowed(elements)),
        Value::String(text) => Some(text.lines().map(Value::from).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn same(want: &Value, seen: &Value) -> bool {
    match (want, seen) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Number(a), Value::String(_)) => a.as_f64().is_some() && a.as_f64() == number(seen),
        (Value::String(a), Value::Number(_)) => text(seen).as_ref() == Some(a),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => want == seen,
    }
}

/// Whether each rule gets an element of its own: a matching in a bipartite graph (Kuhn).
fn pair_up(rules: &[Matcher], seen: &[Value]) -> bool {
    let mut taken_by: Vec<Option<usize>> = vec![None; seen.len()];
    (0..rules.len()).all(|rule| {
        place_rule(
            rule,
            rules,
            seen,
            &mut taken_by,
            &mut vec![false; seen.len()],
        )
    })
}

fn place_rule(
    rule: usize,
    rules: &[Matcher],
    seen: &[Value],
    taken_by: &mut [Option<usize>],
    tried: &mut [bool],
) -> bool {
    for element in 0..seen.len() {
        if tried[element] || !rules[rule].holds(&seen[element]) {
            continue;
        }
        tried[element] = true;
        let free = match taken_by[element] {
            None => true,
            Some(other) => place_rule(other, rules, seen, taken_by, tried),
        };
        if free {
            taken_by[element] = Some(rule);
            return true;
        }
    }
    false
}

/// A value for people.
pub(crate) fn describe(value: &Value) -> String {
    shown::head(value.to_string().as_bytes())
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = |rules: &[Matcher], between: &str| {
            let shown: Vec<_> = rules.iter().map(Matcher::to_string).collect();
            shown.join(between)
        };
        match &self.0 {
            Rule::Equals(value) => f.write_str(&describe(value)),
            Rule::Contains(value) => write!(f, "contains {}", describe(value)),
            Rule::Prefix(text) => write!(f, "begins with {text:?}"),
            Rule::Suffix(text) => write!(f, "ends with {text:?}"),
            Rule::Regex(expression) => write!(f, "matches /{expression}/"),
            Rule::Compare(order, bound) => write!(f, "{} {bound}", order.words()),
            Rule::Version(range) => write!(f, "version {range}"),
            Rule::Length(rule) => write!(f, "length {rule}"),
            Rule::Has(rules) => write!(f, "has {}", several(rules, ", ")),
            Rule::Only(rules) => write!(f, "only {}", several(rules, ", ")),
            Rule::Each(rule) => write!(f, "each {rule}"),
            Rule::Key(rule) => write!(f, "a key {rule}"),
            Rule::Entries(rules) => {
                let shown: Vec<_> = rules
                    .iter()
                    .map(|(key, rule)| format!("{key}: {rule}"))
                    .collect();
                f.write_str(&shown.join(", "))
            }
            Rule::Lines(patterns) => {
                let shown: Vec<_> = patterns.iter().map(Pattern::to_string).collect();
                write!(f, "lines {}", shown.join(", "))
            }
            Rule::Json(wanted) => {
                let shown: Vec<_> = wanted
                    .iter()
                    .map(|(place, rule)| format!("{place}: {rule}"))
                    .collect();
                f.write_str(&shown.join(", "))
            }
            Rule::All(rules) => f.write_str(&several(rules, " and ")),
            Rule::Any(rules) => f.write_str(&several(rules, " or ")),
            Rule::Not(rule) => write!(f, "not {rule}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
