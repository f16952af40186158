//! For people: what passes in short, what does not with its evidence, root causes with what they block.

use std::collections::BTreeMap;
use std::io::{self, Write};

use homeostat_model::CheckName;
use homeostat_prodtest::Rounds;

use crate::event::{Event, Reporter};
use crate::row::{Mark, Report, Row};

/// Whether colours are understood. The words say everything without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Ansi,
}

/// Checks that pass are listed up to so many; more of them are counted.
const MOST_PASSES: usize = 40;
/// How many blocked checks are named below what blocks them.
const MOST_BLOCKED: usize = 8;

pub struct Terminal<W, E> {
    /// What was found.
    out: W,
    /// What happens meanwhile.
    progress: E,
    colour: Colour,
    rounds: Rounds,
}

impl<W: Write, E: Write> Terminal<W, E> {
    pub fn new(out: W, progress: E, colour: Colour, rounds: Rounds) -> Self {
        Self {
            out,
            progress,
            colour,
            rounds,
        }
    }

    fn began(&mut self, drawn_in: &[CheckName]) -> io::Result<()> {
        if drawn_in.is_empty() {
            return Ok(());
        }
        writeln!(
            self.progress,
            "also run, because the selection depends on it: {}",
            super::names(drawn_in)
        )
    }

    /// A line for each change; of how a repair proceeds others tell.
    fn changed(&mut self, was: &str, row: &Row, at: &str) -> io::Result<()> {
        if self.rounds == Rounds::One || was == row.verdict.word() {
            return Ok(());
        }
        write!(self.out, "{at} ")?;
        if row.passes() {
            writeln!(self.out, "{} {}", self.head(row), row.name)?;
        } else if row.verdict == Mark::Blocked {
            let roots = super::names(&row.blocked_by);
            writeln!(self.out, "{} {} by {roots}", self.head(row), row.name)?;
        } else {
            self.in_full(row)?;
        }
        self.out.flush()
    }

    fn ended(&mut self, report: &Report) -> io::Result<()> {
        let passes = report.checks.iter().filter(|row| row.passes());
        if passes.clone().count() <= MOST_PASSES {
            for row in passes {
                let took = format!("{:.0} ms", row.took_ms);
                writeln!(self.out, "{} {:<40} {took:>9}", self.head(row), row.name)?;
            }
        }
        for row in report
            .checks
            .iter()
            .filter(|row| row.verdict == Mark::Skipped)
        {
            writeln!(self.out, "{} {}", self.head(row), row.name)?;
        }
        for row in report
            .checks
            .iter()
            .filter(|row| row.verdict == Mark::Unknown)
        {
            self.in_full(row)?;
        }
        let blocked = blocked_by(report);
        for row in report.checks.iter().filter(|row| row.is_root()) {
            self.in_full(row)?;
            if let Some(names) = blocked.get(&row.name) {
                self.blocks(names)?;
            }
        }
        writeln!(
            self.out,
            "{} ({:.1} s)",
            report.summary,
            report.took_ms / 1000.0
        )?;
        self.out.flush()
    }

    fn blocks(&mut self, names: &[&CheckName]) -> io::Result<()> {
        let shown: Vec<&str> = names
            .iter()
            .take(MOST_BLOCKED)
            .map(|name| name.as_str())
            .collect();
        let more = match names.len().checked_sub(MOST_BLOCKED) {
            None | Some(0) => String::new(),
            Some(more) => format!(" and {more} more"),
        };
        writeln!(self.out, "      blocks    {}{more}", shown.join(", "))
    }

    fn in_full(&mut self, row: &Row) -> io::Result<()> {
        let owner = match &row.owner {
            Some(owner) => format!("  ({owner})"),
            None => String::new(),
        };
        writeln!(self.out, "{} {}{owner}", self.head(row), row.name)?;
        let mut say = |what: &str, text: &str| {
            if text.is_empty() {
                return Ok(());
            }
            writeln!(self.out, "      {what:<9} {text}")
        };
        say("expected", &row.expected)?;
        say("seen", &row.seen)?;
        say("blocked", &super::names(&row.blocked_by))?;
        if let (Some(fix), true, 0) = (&row.fix, row.is_root(), row.fixes) {
            let why = if row.asked {
                ""
            } else {
                " (not applied: it was not selected)"
            };
            say("fix", &format!("{fix}{why}"))?;
        }
        if let Some(said) = &row.fix_said {
            let times = if row.fixes == 1 { "once" } else { "times" };
            let count = if row.fixes == 1 {
                String::new()
            } else {
                format!("{} ", row.fixes)
            };
            say("fixed", &format!("{count}{times}; last: {said}"))?;
        }
        Ok(())
    }

    /// Symbol and word, in the colour of what they say.
    fn head(&self, row: &Row) -> String {
        let (symbol, colour) = match row.verdict {
            Mark::Pass => ('✓', 32),
            Mark::Flaky => ('≈', 33),
            Mark::Fail => ('✗', 31),
            Mark::GaveUp => ('✖', 31),
            Mark::Fixing => ('↻', 33),
            Mark::Blocked => ('⊘', 33),
            Mark::Skipped => ('-', 0),
            Mark::Unknown => ('?', 33),
        };
        let text = format!("{symbol} {:<8}", row.verdict);
        match self.colour {
            Colour::Ansi if colour != 0 => format!("\x1b[{colour}m{text}\x1b[0m"),
            Colour::Ansi | Colour::Plain => text,
        }
    }
}

/// Root cause to what it blocks.
fn blocked_by(report: &Report) -> BTreeMap<&CheckName, Vec<&CheckName>> {
    let mut blocked: BTreeMap<&CheckName, Vec<&CheckName>> = BTreeMap::new();
    for row in report
        .checks
        .iter()
        .filter(|row| row.verdict == Mark::Blocked)
    {
        for root in &row.blocked_by {
            blocked.entry(root).or_default().push(&row.name);
        }
    }
    blocked
}

impl<W: Write, E: Write> Reporter for Terminal<W, E> {
    fn event(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Began {
                checks: _,
                drawn_in,
            } => self.began(drawn_in),
            Event::Changed { was, row, at } => self.changed(was, row, at),
            Event::FixBegan(fix) => {
                let attempt = match fix.attempt {
                    1 => String::new(),
                    attempt => format!(", attempt {attempt}"),
                };
                writeln!(
                    self.progress,
                    "{}: applying {}{attempt}",
                    fix.check, fix.summary
                )
            }
            Event::FixEnded {
                fix,
                outcome,
                said,
                took,
            } => {
                let took = took.as_secs_f64();
                writeln!(
                    self.progress,
                    "{}: {outcome} in {took:.1} s: {said}",
                    fix.check
                )
            }
            Event::Remark(text) => writeln!(self.progress, "{text}"),
            Event::Ended(report) => self.ended(report),
        }
    }
}
