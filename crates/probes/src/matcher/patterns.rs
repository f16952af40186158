//! Patterns over the lines of a text, as goss users write them: `text`, `/regex/`, `!text`, `!/regex/`.

use std::fmt;

use regex::Regex;

/// Largest compiled expression, in bytes: an expression from a file must not take the memory of a machine.
const LARGEST: usize = 1 << 20;

/// A regular expression; equal when written the same.
#[derive(Debug, Clone)]
pub(crate) struct Expression(Regex);

impl Expression {
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        regex::RegexBuilder::new(text)
            .size_limit(LARGEST)
            .build()
            .map(Self)
            .map_err(|error| format!("'{text}' {}", why_no_expression(&error)))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// The crate draws a picture over several lines; its last one says what is wrong.
pub(crate) fn why_no_expression(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next_back().unwrap_or_default().trim();
    format!(
        "is no regular expression: {}",
        line.trim_start_matches("error: ")
    )
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern {
    written: String,
    wanted: Wanted,
    search: Search,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    InSomeLine,
    InNone,
}

#[derive(Debug, Clone, PartialEq)]
enum Search {
    Text(String),
    Expression(Expression),
}

impl Pattern {
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        let (wanted, rest) = match written.strip_prefix('!') {
            Some(rest) => (Wanted::InNone, rest),
            None => (Wanted::InSomeLine, written),
        };
        let between_slashes = rest
            .strip_prefix('/')
            .and_then(|rest| rest.strip_suffix('/'));
        let search = match between_slashes {
            Some(expression) => Search::Expression(Expression::new(expression)?),
            // `\/path/` and `\!text` mean the text itself; goss cuts all such characters away, however many there are.
            None => Search::Text(written.trim_start_matches(['\\', '/', '!']).to_owned()),
        };
        Ok(Self {
            written: written.to_owned(),
            wanted,
            search,
        })
    }

    fn is_in(&self, line: &str) -> bool {
        match &self.search {
            Search::Text(text) => line.contains(text.as_str()),
            Search::Expression(expression) => expression.is_match(line),
        }
    }

    fn holds(&self, text: &str) -> bool {
        let found = self.written.is_empty() || text.lines().any(|line| self.is_in(line));
        match self.wanted {
            Wanted::InSomeLine => found,
            Wanted::InNone => !found,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.written)
    }
}

pub(super) fn hold(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().all(|pattern| pattern.holds(text))
}

/// What does not hold, for people.
pub(super) fn missed(patterns: &[Pattern], text: &str) -> String {
    let missed = patterns.iter().filter(|pattern| !pattern.holds(text));
    let missed: Vec<_> = missed
        .map(|pattern| match pattern.wanted {
            Wanted::InSomeLine => format!("no line with {pattern}"),
            Wanted::InNone => {
                let line = text.lines().find(|line| pattern.is_in(line));
                format!("a line {:?} against {pattern}", line.unwrap_or_default())
            }
        })
        .collect();
    crate::shown::head(missed.join(", ").as_bytes())
}
