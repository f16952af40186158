//! The library of probes and fixes, as a table: what a person may write as the probe or the fix of a check.
//!
//! The table is the single source. The functions of `site.star` are made from it, `docs/src/library.md` is checked
//! against it, and `homeostat-probes` binds a [`Call`] to it before it looks at any value. No code that looks or repairs
//! is here: this is what the file that declares, and the machine that runs, must agree on.

mod fixes;
mod looks;
mod states;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Something that a check can look at, or that can be made so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// As it is called in `site.star`.
    pub name: &'static str,
    pub role: Role,
    /// The first one may be given by position, all others by name only.
    pub args: &'static [Arg],
    /// One sentence.
    pub summary: &'static str,
}

/// Where a kind may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Only as a probe: it looks.
    Probe,
    /// Only as a fix: it acts. It brings a probe of its own, see [`Kind::summary`].
    Fix,
    /// As either: it says how things must be. As a probe it looks whether they are; as a fix it makes them so, and its
    /// check is itself as a probe.
    State,
}

impl Role {
    pub fn may_be_probe(self) -> bool {
        match self {
            Role::Probe | Role::State => true,
            Role::Fix => false,
        }
    }

    pub fn may_be_fix(self) -> bool {
        match self {
            Role::Fix | Role::State => true,
            Role::Probe => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    pub name: &'static str,
    pub ty: ArgType,
    pub presence: Presence,
    pub serves: Serves,
    /// One sentence, with the default if there is one.
    pub doc: &'static str,
}

/// What may be written for an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgType {
    Text,
    Int,
    Float,
    Bool,
    /// Text such as `200ms`, `5s` or `1m30s`.
    Duration,
    /// Text such as `512MiB`, or a number of bytes.
    Size,
    /// A list of texts.
    Texts,
    /// A dictionary whose keys are texts.
    Map,
    /// What is right: a plain value, which must be equal, or one of [`operators`] as a dictionary with a single key:
    /// `{"less": 500}`.
    Matcher,
    /// A list of texts, which is run as it is, or a text, which is given to `/bin/sh -c`.
    Command,
    Any,
}

impl ArgType {
    /// For people: "a text", "a whole number".
    pub fn words(self) -> &'static str {
        match self {
            ArgType::Text => "a text",
            ArgType::Int => "a whole number",
            ArgType::Float => "a number",
            ArgType::Bool => "True or False",
            ArgType::Duration => "a duration such as '5s'",
            ArgType::Size => "a size such as '512MiB'",
            ArgType::Texts => "a list of texts",
            ArgType::Map => "a dictionary",
            ArgType::Matcher => "a value or a matcher",
            ArgType::Command => "a list of texts, or a text for the shell",
            ArgType::Any => "any value",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Required,
    Optional,
}

/// Which role of a [`Role::State`] an argument is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serves {
    Both,
    /// Can only be looked at, as a pattern or a checksum; a fix would not know what to write.
    Looking,
    /// Says only how to repair.
    Repairing,
}

impl Arg {
    const fn required(name: &'static str, ty: ArgType, doc: &'static str) -> Self {
        Self {
            name,
            ty,
            presence: Presence::Required,
            serves: Serves::Both,
            doc,
        }
    }

    const fn optional(name: &'static str, ty: ArgType, doc: &'static str) -> Self {
        Self {
            name,
            ty,
            presence: Presence::Optional,
            serves: Serves::Both,
            doc,
        }
    }

    const fn looking(name: &'static str, ty: ArgType, doc: &'static str) -> Self {
        Self {
            serves: Serves::Looking,
            ..Self::optional(name, ty, doc)
        }
    }

    const fn repairing(name: &'static str, ty: ArgType, doc: &'static str) -> Self {
        Self {
            serves: Serves::Repairing,
            ..Self::optional(name, ty, doc)
        }
    }
}

/// A kind with its arguments, as a person wrote it. Durations, sizes and matchers are still as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub kind: String,
    /// By name, the positional one too. What was not given is not there.
    pub args: BTreeMap<String, Value>,
}

/// An operator of a matcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operator {
    pub name: &'static str,
    /// What stands beside it.
    pub operand: &'static str,
    pub doc: &'static str,
}

/// All kinds, ordered by name.
pub fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
        let mut kinds = [looks::KINDS, states::KINDS, fixes::KINDS].concat();
        kinds.sort_by_key(|kind| kind.name);
        kinds
    });
    &KINDS
}

pub fn kind(name: &str) -> Option<&'static Kind> {
    kinds()
        .binary_search_by_key(&name, |kind| kind.name)
        .ok()
        .map(|index| &kinds()[index])
}

/// All operators of matchers.
pub fn operators() -> &'static [Operator] {
    OPERATORS
}

const fn operator(name: &'static str, operand: &'static str, doc: &'static str) -> Operator {
    Operator { name, operand, doc }
}

const OPERATORS: &[Operator] = &[
    operator(
        "equals",
        "a value",
        "is this value; for lists and dictionaries, which could be mistaken for matchers",
    ),
    operator(
        "contains",
        "a text",
        "the text has it somewhere; a list has it as an element",
    ),
    operator("prefix", "a text", "begins with it"),
    operator("suffix", "a text", "ends with it"),
    operator(
        "regex",
        "a regular expression",
        "it matches somewhere in the text; syntax of the Rust crate regex",
    ),
    operator("less", "a number", "is less"),
    operator("at_most", "a number", "is less or equal"),
    operator("greater", "a number", "is greater"),
    operator("at_least", "a number", "is greater or equal"),
    operator(
        "version",
        "a constraint",
        "is a version within it, such as '>=1.2.0, <2.0.0'",
    ),
    operator(
        "length",
        "a number or a matcher",
        "of a text in bytes, of a list or a dictionary in elements",
    ),
    operator(
        "has",
        "a list of matchers",
        "for each of them the list has an element of its own; more may be there. A text is the list of its lines, here and below",
    ),
    operator(
        "only",
        "a list of matchers",
        "the list consists of exactly these, in any order",
    ),
    operator("each", "a matcher", "all elements of the list are so"),
    operator("key", "a matcher", "the dictionary has such a key"),
    operator(
        "entries",
        "a dictionary of matchers",
        "the dictionary has these keys with such values; more may be there",
    ),
    operator(
        "lines",
        "a list of patterns",
        "each is found in a line of the text: a plain text, '/regex/', or either with '!' before it for \"in no line\"",
    ),
    operator(
        "json",
        "a dictionary of path to matcher",
        "the text is JSON, and what the path leads to is so: 'items.0.name', 'items.#' (how many), 'items.#.name' (of each)",
    ),
    operator("all", "a list of matchers", "all of them hold"),
    operator("any", "a list of matchers", "one of them holds"),
    operator("not", "a matcher", "it does not hold"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_can_be_written_as_arguments() {
        let names: BTreeSet<_> = kinds().iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), kinds().len());
        let is_name = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase())
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
        };
        for kind in kinds() {
            assert!(is_name(kind.name), "{}", kind.name);
            let args: BTreeSet<_> = kind.args.iter().map(|arg| arg.name).collect();
            assert_eq!(args.len(), kind.args.len(), "{}", kind.name);
            assert!(args.iter().all(|name| is_name(name)), "{}", kind.name);
        }
    }

    #[test]
    fn only_states_have_arguments_for_one_role() {
        for kind in kinds() {
            let split = kind.args.iter().any(|arg| arg.serves != Serves::Both);
            assert!(!split || kind.role == Role::State, "{}", kind.name);
        }
    }

    #[test]
    fn what_is_required_comes_first() {
        for kind in kinds() {
            let required = |arg: &Arg| arg.presence == Presence::Required;
            assert!(kind.args.first().is_some_and(required), "{}", kind.name);
            assert!(
                kind.args.is_sorted_by_key(|arg| !required(arg)),
                "{}",
                kind.name
            );
        }
    }

    #[test]
    fn kinds_are_found_by_name() {
        for wanted in kinds() {
            assert_eq!(kind(wanted.name), Some(wanted));
        }
        assert_eq!(kind("nothing_of_ours"), None);
    }
}
