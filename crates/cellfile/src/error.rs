//! What is wrong with a cell file, for people.
//!
//! Plain data with a `Display` that needs no colour; the command line may draw the same fields with more effort. A file is
//! read to its end where that makes sense, so that independent mistakes are shown together.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a cell file was refused: at least one problem, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct CellFileError {
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// The cell file, as the caller named it.
    pub file: String,
    /// Where in it, or in a file it loads; none when nothing can be pointed at (`there is no cell()`).
    pub place: Option<Place>,
    /// What is wrong, in one sentence, lower case, without a final period.
    pub message: String,
    /// For an item made by a function of the file: where that was called, innermost first.
    pub called_from: Vec<Place>,
    pub hint: Option<String>,
}

/// Whose fault it is; the command line takes its exit status from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProblemKind {
    /// The file says something wrong.
    Declared,
    /// The file could not be read, or the machine lacks what reading it takes.
    Environment,
    /// This program is wrong.
    Bug,
}

/// A stretch of one line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, or the part of a very long one that surrounds the place.
    pub excerpt: String,
    /// Where in `excerpt` the place begins, in characters from 0.
    pub caret: usize,
    /// How many characters to mark; at least 1.
    pub width: usize,
}

/// More problems than this are counted, not shown.
const SHOWN: usize = 20;

impl fmt::Display for CellFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{problem}")?;
        }
        match self.problems.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n\nand {more} more"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            None => write!(f, "{}: {}", self.file, self.message)?,
            Some(place) => {
                write!(f, "{place}: {}", self.message)?;
                write_excerpt(place, f)?;
            }
        }
        for place in &self.called_from {
            write!(f, "\n  called from {place}")?;
        }
        match &self.hint {
            None => Ok(()),
            Some(hint) => write!(f, "\n\nhint: {hint}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

fn write_excerpt(place: &Place, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let number = place.line.to_string();
    let gutter = " ".repeat(number.len());
    // A tab stays a tab before the caret, so that both lines are indented alike whatever the terminal makes of tabs.
    let indent: String = place
        .excerpt
        .chars()
        .take(place.caret)
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    write!(f, "\n {gutter} |\n {number} | {}", place.excerpt)?;
    write!(f, "\n {gutter} | {indent}{}", "^".repeat(place.width))
}

impl Problem {
    /// A problem of the file as a whole.
    pub(crate) fn without_place(file: &str, kind: ProblemKind, message: String) -> Self {
        Self {
            kind,
            file: file.to_owned(),
            place: None,
            message,
            called_from: Vec::new(),
            hint: None,
        }
    }
}
