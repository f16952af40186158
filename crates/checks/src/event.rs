//! What happens in a run, for whoever shows it. One enum; every format is a consumer of it.

use std::io;
use std::time::Duration;

use homeostat_model::CheckName;

use crate::row::{Report, Row};

#[derive(Debug, Clone)]
pub enum Event<'a> {
    Began {
        checks: usize,
        /// Run only because something asked for depends on it.
        drawn_in: &'a [CheckName],
    },
    /// A check is believed to be something else than before.
    Changed {
        was: &'static str,
        row: &'a Row,
        /// As RFC 3339 in UTC.
        at: &'a str,
    },
    FixBegan(FixView<'a>),
    FixEnded {
        fix: FixView<'a>,
        /// `changed`, `unchanged` or `failed`.
        outcome: &'static str,
        said: &'a str,
        took: Duration,
    },
    /// Something that a person should know, and no check says.
    Remark(&'a str),
    Ended(&'a Report),
}

#[derive(Debug, Clone, Copy)]
pub struct FixView<'a> {
    pub check: &'a CheckName,
    /// Such as `user kim`.
    pub summary: &'a str,
    /// Which attempt it is since the check passed last, from 1.
    pub attempt: u32,
}

/// Shows what happens.
pub trait Reporter {
    /// # Errors
    /// When nobody reads any more.
    fn event(&mut self, event: &Event<'_>) -> io::Result<()>;
}
