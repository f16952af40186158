//! The text of the files that were read, so that an error found long after evaluation can still quote its line.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::Place;
use crate::item::{Argument, Item};
use crate::scan::{self, Stretch, Which};

/// Longest line shown whole; of a longer one the surroundings of the place.
const LONGEST_LINE: usize = 120;
const BEFORE: usize = 40;

/// A stretch of one of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    pub file: Arc<str>,
    pub at: Stretch,
}

/// All files read so far, by the name under which errors show them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    texts: BTreeMap<Arc<str>, Arc<str>>,
}

impl Sources {
    pub(crate) fn add(&mut self, file: &str, text: &str) {
        self.texts.insert(file.into(), text.into());
    }

    /// Line and column of a span. A span of several lines is marked on its first line.
    pub(crate) fn place(&self, span: &Span) -> Place {
        let text = self.texts.get(&span.file).map_or("", |text| &**text);
        let begin = span.at.start.min(text.len());
        let line_begin = text[..begin].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[begin..].find('\n').map_or(text.len(), |at| begin + at);
        let line = text[line_begin..line_end].trim_end_matches('\r');
        let column = text[line_begin..begin].chars().count();
        let end = span
            .at
            .end
            .clamp(begin, (line_begin + line.len()).max(begin));
        let width = text[begin..end].chars().count().max(1);
        let (excerpt, caret) = excerpt(line, column);
        let room = excerpt.chars().count().saturating_sub(caret).max(1);
        Place {
            file: span.file.to_string(),
            line: text[..begin].matches('\n').count() + 1,
            column: column + 1,
            excerpt,
            caret,
            width: width.min(room),
        }
    }

    /// Where an argument of an item stands; the whole call when it cannot be found (`**kwargs`).
    pub(crate) fn argument(&self, item: &Item, argument: &Argument) -> Span {
        let which = match argument.position {
            Some(position) => Which::Position(position),
            None => Which::Named(&argument.name),
        };
        let found = self
            .texts
            .get(&item.at.file)
            .and_then(|text| scan::argument(text, &item.at.at, which));
        match found {
            Some(at) => Span {
                file: item.at.file.clone(),
                at,
            },
            None => self.head(item),
        }
    }

    /// The name of the called function: what to mark when a call as a whole is meant.
    pub(crate) fn head(&self, item: &Item) -> Span {
        let start = item.at.at.start;
        let end = (start + item.builder.name().len()).min(item.at.at.end);
        Span {
            file: item.at.file.clone(),
            at: start..end,
        }
    }

    /// A piece of text within a span, or the span when it is not there literally.
    pub(crate) fn within(&self, span: Span, text: &str) -> Span {
        let found = self
            .texts
            .get(&span.file)
            .and_then(|source| scan::text_within(source, &span.at, text));
        match found {
            Some(at) => Span { at, ..span },
            None => span,
        }
    }
}

fn excerpt(line: &str, column: usize) -> (String, usize) {
    if line.chars().count() <= LONGEST_LINE {
        return (line.to_owned(), column);
    }
    let skip = column.saturating_sub(BEFORE);
    let shown: String = line.chars().skip(skip).take(LONGEST_LINE).collect();
    (shown, column - skip)
}
