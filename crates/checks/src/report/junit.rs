//! JUnit's XML, as CI systems read it. What was not run is *skipped* if something blocks it, and an *error* if nobody
//! knows; it is never a plain test case, which would count as passed.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::event::{Event, Reporter};
use crate::row::{Mark, Report, Row};

pub struct Junit<W>(W);

impl<W: Write> Junit<W> {
    pub fn new(out: W) -> Self {
        Self(out)
    }
}

impl<W: Write> Reporter for Junit<W> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Ended(report) => {
                self.0.write_all(document(report).as_bytes())?;
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

fn document(report: &Report) -> String {
    let count =
        |marks: &[Mark]| -> usize { marks.iter().map(|mark| report.summary.count(*mark)).sum() };
    let totals = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\"",
        report.checks.len(),
        count(&[Mark::Fail, Mark::Fixing, Mark::GaveUp]),
        count(&[Mark::Unknown]),
        count(&[Mark::Blocked, Mark::Skipped]),
        report.took_ms / 1000.0
    );
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"homeostat\" {totals}>\n  <testsuite name=\"homeostat\" {totals}>\n"
    );
    for row in &report.checks {
        text.push_str(&case(row));
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn case(row: &Row) -> String {
    let name = row.name.as_str();
    let class = name
        .rsplit_once('/')
        .map_or("homeostat", |(class, _)| class);
    let mut text = format!(
        "    <testcase name=\"{}\" classname=\"{}\" time=\"{:.3}\"",
        escaped(name),
        escaped(class),
        row.took_ms / 1000.0
    );
    let element = match row.verdict {
        Mark::Pass | Mark::Flaky => None,
        Mark::Blocked => Some((
            "skipped",
            format!("blocked by {}", super::names(&row.blocked_by)),
        )),
        Mark::Skipped => Some(("skipped", row.seen.clone())),
        Mark::Unknown => Some(("error", row.seen.clone())),
        Mark::Fail | Mark::Fixing | Mark::GaveUp => Some((
            "failure",
            format!(
                "{}: expected {}, seen {}",
                row.verdict, row.expected, row.seen
            ),
        )),
    };
    // Writing to a String cannot fail.
    let _ = match element {
        None => writeln!(text, "/>"),
        Some((element, message)) => writeln!(
            text,
            ">\n      <{element} message=\"{}\"/>\n    </testcase>",
            escaped(&message)
        ),
    };
    text
}

/// For attributes. XML has no way to write most control characters, so they are replaced.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' | '\r' => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
