//! TAP 14. What was not run is `not ok`, since TAP counts what is skipped as passed; only what the suite itself leaves out
//! is skipped.

use std::io::{self, Write};

use crate::event::{Event, Reporter};
use crate::row::{Mark, Report, Row};

pub struct Tap<W>(W);

impl<W: Write> Tap<W> {
    pub fn new(out: W) -> Self {
        Self(out)
    }

    fn document(&mut self, report: &Report) -> io::Result<()> {
        writeln!(self.0, "TAP version 14\n1..{}", report.checks.len())?;
        for (index, row) in report.checks.iter().enumerate() {
            self.line(index + 1, row)?;
        }
        self.0.flush()
    }

    fn line(&mut self, number: usize, row: &Row) -> io::Result<()> {
        let name = &row.name;
        match row.verdict {
            Mark::Pass => writeln!(self.0, "ok {number} - {name}"),
            Mark::Flaky => writeln!(self.0, "ok {number} - {name} # flaky"),
            Mark::Skipped => writeln!(self.0, "ok {number} - {name} # SKIP {}", row.seen),
            verdict
            @ (Mark::GaveUp | Mark::Fail | Mark::Fixing | Mark::Blocked | Mark::Unknown) => {
                writeln!(
                    self.0,
                    "not ok {number} - {name}\n  ---\n  verdict: {verdict}"
                )?;
                // JSON strings are YAML strings.
                let quoted = |text: &str| serde_json::Value::from(text).to_string();
                if !row.expected.is_empty() {
                    writeln!(self.0, "  expected: {}", quoted(&row.expected))?;
                }
                if !row.seen.is_empty() {
                    writeln!(self.0, "  seen: {}", quoted(&row.seen))?;
                }
                if !row.blocked_by.is_empty() {
                    writeln!(
                        self.0,
                        "  blocked_by: {}",
                        quoted(&super::names(&row.blocked_by))
                    )?;
                }
                writeln!(self.0, "  ...")
            }
        }
    }
}

impl<W: Write> Reporter for Tap<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Ended(report) => self.document(report),
            Event::Began { .. }
            | Event::Changed { .. }
            | Event::FixBegan(_)
            | Event::FixEnded { .. }
            | Event::Remark(_) => Ok(()),
        }
    }
}
