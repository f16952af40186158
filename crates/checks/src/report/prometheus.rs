//! Prometheus' text format, for its node exporter's textfile collector or a page that is scraped.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::event::{Event, Reporter};
use crate::row::{Mark, Report};

pub struct Prometheus<W>(W);

impl<W: Write> Prometheus<W> {
    pub fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write> Reporter for Prometheus<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Ended(report) => {
                self.0.write_all(page(report).as_bytes())?;
                self.0.flush()
            }
            Event::Began { .. }
            | Event::Changed { .. }
            | Event::FixBegan(_)
            | Event::FixEnded { .. }
            | Event::Remark(_) => Ok(()),
        }
    }
}

fn page(report: &Report) -> String {
    let mut page = String::new();
    let mut family = |name: &str, help: &str, lines: &mut dyn Iterator<Item = String>| {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge");
        for line in lines {
            let _ = writeln!(page, "{name}{line}");
        }
    };
    let checks = || report.checks.iter();
    family(
        "homeostat_checks",
        "How many checks have a verdict.",
        &mut Mark::ALL.into_iter().map(|verdict| {
            format!(
                "{{verdict=\"{verdict}\"}} {}",
                report.summary.count(verdict)
            )
        }),
    );
    family(
        "homeostat_check_verdict",
        "1, with the verdict of the check.",
        &mut checks().map(|row| {
            let owner = row.owner.as_deref().unwrap_or_default();
            format!(
                "{{check=\"{}\",owner=\"{}\",verdict=\"{}\"}} 1",
                row.name,
                escaped(owner),
                row.verdict
            )
        }),
    );
    family(
        "homeostat_check_duration_seconds",
        "How long the latest probe took.",
        &mut checks()
            .filter(|row| row.at.is_some())
            .map(|row| format!("{{check=\"{}\"}} {}", row.name, row.took_ms / 1000.0)),
    );
    family(
        "homeostat_check_fixes",
        "How often the fix of the check was applied in this run.",
        &mut checks()
            .filter(|row| row.fixes > 0)
            .map(|row| format!("{{check=\"{}\"}} {}", row.name, row.fixes)),
    );
    page
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
