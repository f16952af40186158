//! JSON: one document for one round, one line for each change where it goes on (docs/src/checks.md).

use std::io::{self, Write};

use homeostat_prodtest::Rounds;
use serde::Serialize;

use crate::event::{Event, Reporter};
use crate::plan::Plan;
use crate::row::{Report, Row, Summary};

/// Raised when a field changes its meaning; fields are only added.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    checks: &'a [Row],
    summary: &'a Summary,
    took_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a Plan>,
}

pub struct Json<W> {
    out: W,
    rounds: Rounds,
}

impl<W: Write> Json<W> {
    pub fn new(out: W, rounds: Rounds) -> Self {
        Self { out, rounds }
    }

    /// Writes the document.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn document(&mut self, report: &Report, plan: Option<&Plan>) -> io::Result<()> {
        let document = Document {
            version: VERSION,
            checks: &report.checks,
            summary: &report.summary,
            took_ms: report.took_ms,
            plan,
        };
        serde_json::to_writer_pretty(&mut self.out, &document)?;
        writeln!(self.out)?;
        self.out.flush()
    }
}

impl<W: Write> Reporter for Json<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match (event, self.rounds) {
            (Event::Ended(report), Rounds::One) => self.document(report, None),
            (Event::Changed { was: _, row, at: _ }, Rounds::Endless) => {
                serde_json::to_writer(&mut self.out, row)?;
                writeln!(self.out)?;
                self.out.flush()
            }
            (
                Event::Began { .. }
                | Event::Changed { .. }
                | Event::FixBegan(_)
                | Event::FixEnded { .. }
                | Event::Remark(_)
                | Event::Ended(_),
                Rounds::One | Rounds::Endless,
            ) => Ok(()),
        }
    }
}
