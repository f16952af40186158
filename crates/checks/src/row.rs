//! What is known of each check in the end, and of the run as a whole.

use std::collections::BTreeMap;

use homeostat_model::CheckName;
use homeostat_prodtest::{Engine, FlakeRate, Verdict};
use serde::Serialize;

use crate::suite::Item;

/// One check as people and programs see it. The fields are those of the published schema (docs/src/checks.md).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub name: CheckName,
    pub verdict: Mark,
    pub expected: String,
    /// What was found; for an unknown one why it is; for a repair how it stands.
    pub seen: String,
    pub blocked_by: Vec<CheckName>,
    /// Of the latest probe, in milliseconds.
    pub took_ms: f64,
    /// When it reported, as RFC 3339 in UTC; absent: none did.
    pub at: Option<String>,
    pub after: Vec<CheckName>,
    pub owner: Option<String>,
    pub tags: Vec<String>,
    /// Whether it was asked for, and not only run because something else depends on it.
    pub asked: bool,
    /// What could repair it, such as `user kim`.
    pub fix: Option<String>,
    /// How often its fix was applied in this run.
    pub fixes: u32,
    /// What the latest fix reported.
    pub fix_said: Option<String>,
    pub flakes: FlakeView,
}

/// How often a check failed lately for no reason.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FlakeView {
    pub count: u32,
    pub of: u32,
    /// The 95 % interval of the true rate.
    pub low: f64,
    pub high: f64,
}

impl From<FlakeRate> for FlakeView {
    fn from(rate: FlakeRate) -> Self {
        let (low, high) = rate.interval();
        Self {
            count: rate.flakes,
            of: rate.of,
            low,
            high,
        }
    }
}

/// A verdict without its evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    GaveUp,
    Fail,
    Fixing,
    Blocked,
    Unknown,
    Flaky,
    /// Declared, and left out on purpose.
    Skipped,
    Pass,
}

impl Mark {
    /// Worst first: the order in which people want to read.
    pub(crate) const ALL: [Mark; 8] = [
        Mark::GaveUp,
        Mark::Fail,
        Mark::Fixing,
        Mark::Blocked,
        Mark::Unknown,
        Mark::Flaky,
        Mark::Skipped,
        Mark::Pass,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Mark::GaveUp => "gave-up",
            Mark::Fail => "fail",
            Mark::Fixing => "fixing",
            Mark::Blocked => "blocked",
            Mark::Unknown => "unknown",
            Mark::Flaky => "flaky",
            Mark::Skipped => "skipped",
            Mark::Pass => "pass",
        }
    }

    /// Fails by itself.
    pub(crate) fn is_root(self) -> bool {
        match self {
            Mark::GaveUp | Mark::Fail | Mark::Fixing => true,
            Mark::Blocked | Mark::Unknown | Mark::Flaky | Mark::Skipped | Mark::Pass => false,
        }
    }
}

impl From<&Verdict> for Mark {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Unknown(_) => Mark::Unknown,
            Verdict::Pass(_) => Mark::Pass,
            Verdict::Flaky { .. } => Mark::Flaky,
            Verdict::Fail(_) => Mark::Fail,
            Verdict::Fixing(_) => Mark::Fixing,
            Verdict::GaveUp(_) => Mark::GaveUp,
            Verdict::Blocked(_) => Mark::Blocked,
        }
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.word())
    }
}

impl Serialize for Mark {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl Row {
    /// Of a check that was left out.
    pub(crate) fn skipped(name: CheckName) -> Self {
        Self {
            name,
            verdict: Mark::Skipped,
            expected: String::new(),
            seen: "left out by the suite".to_owned(),
            blocked_by: Vec::new(),
            took_ms: 0.0,
            at: None,
            after: Vec::new(),
            owner: None,
            tags: Vec::new(),
            asked: true,
            fix: None,
            fixes: 0,
            fix_said: None,
            flakes: FlakeRate { flakes: 0, of: 0 }.into(),
        }
    }

    pub(crate) fn passes(&self) -> bool {
        matches!(self.verdict, Mark::Pass | Mark::Flaky)
    }

    /// Fails by itself.
    pub fn is_root(&self) -> bool {
        self.verdict.is_root()
    }
}

/// What a run knows beside the engine.
pub(crate) struct Beside<'a> {
    pub(crate) item: &'a Item,
    pub(crate) asked: bool,
    pub(crate) fixes: u32,
    pub(crate) fix_said: Option<String>,
    /// Turns the engine's time into that of people.
    pub(crate) wall: &'a dyn Fn(homeostat_prodtest::Moment) -> String,
}

pub(crate) fn row(engine: &Engine, id: homeostat_prodtest::CheckId, beside: Beside<'_>) -> Row {
    let verdict = engine.verdict(id);
    let evidence = verdict.evidence();
    let (seen, blocked_by) = match verdict {
        Verdict::Unknown(why) => (why.to_string(), engine.waits_for(id)),
        Verdict::Blocked(roots) => {
            let more = if roots.and_more() { "and more" } else { "" };
            (more.to_owned(), roots.named().to_vec())
        }
        Verdict::Pass(evidence) | Verdict::Fail(evidence) | Verdict::Flaky { evidence, .. } => {
            (evidence.seen.clone(), Vec::new())
        }
        Verdict::Fixing(repair) | Verdict::GaveUp(repair) => {
            (repair.evidence.seen.clone(), Vec::new())
        }
    };
    let names = |ids: &[homeostat_prodtest::CheckId]| -> Vec<CheckName> {
        ids.iter()
            .map(|id| engine.suite().name(*id).clone())
            .collect()
    };
    Row {
        name: beside.item.name.clone(),
        verdict: verdict.into(),
        expected: evidence
            .map(|evidence| evidence.expected.clone())
            .unwrap_or_default(),
        seen,
        blocked_by: names(&blocked_by),
        took_ms: evidence.map_or(0.0, |evidence| evidence.took.as_secs_f64() * 1000.0),
        at: evidence.map(|evidence| (beside.wall)(evidence.at)),
        after: beside.item.after.clone(),
        owner: beside.item.owner.clone(),
        tags: beside.item.tags.clone(),
        asked: beside.asked,
        fix: beside.item.fix.as_ref().map(|fix| fix.summary()),
        fixes: beside.fixes,
        fix_said: beside.fix_said,
        flakes: engine.flake_rate(id).into(),
    }
}

/// All that a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// In an order in which nothing comes before what it depends on.
    pub checks: Vec<Row>,
    pub summary: Summary,
    /// How long the run took, in milliseconds.
    pub took_ms: f64,
}

/// How many checks have which verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary(pub BTreeMap<&'static str, usize>);

impl Summary {
    pub(crate) fn of(rows: &[Row]) -> Self {
        let mut counts = BTreeMap::new();
        for row in rows {
            *counts.entry(row.verdict.word()).or_default() += 1;
        }
        Self(counts)
    }

    /// Of verdicts by their words; one that this program does not know is unknown.
    pub fn of_words<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut counts = BTreeMap::new();
        for word in words {
            let known = Mark::ALL.into_iter().find(|mark| mark.word() == word);
            let known = known.unwrap_or(Mark::Unknown);
            *counts.entry(known.word()).or_default() += 1;
        }
        Self(counts)
    }

    /// The one of several verdicts that a person has to know first.
    pub fn worst<'a>(mut words: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let known = Mark::ALL
            .iter()
            .find_map(|mark| words.clone().find(|word| *word == mark.word()));
        known.or_else(|| words.next())
    }

    pub fn count(&self, mark: Mark) -> usize {
        self.0.get(mark.word()).copied().unwrap_or(0)
    }

    pub fn all(&self) -> usize {
        self.0.values().sum()
    }

    /// The whole in one word; the worst counts.
    pub fn standing(&self) -> Standing {
        if self.count(Mark::GaveUp) > 0 {
            Standing::GaveUp
        } else if self.count(Mark::Blocked) > 0 {
            Standing::Blocked
        } else if self.count(Mark::Fail) + self.count(Mark::Fixing) > 0 {
            Standing::Failed
        } else if self.count(Mark::Unknown) > 0 {
            Standing::Unknown
        } else {
            Standing::Passed
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.all();
        write!(f, "{all} {}", if all == 1 { "check" } else { "checks" })?;
        let present = Mark::ALL
            .into_iter()
            .rev()
            .filter(|mark| self.count(*mark) > 0);
        for (index, verdict) in present.enumerate() {
            let sign = if index == 0 { ": " } else { ", " };
            write!(f, "{sign}{} {verdict}", self.count(verdict))?;
        }
        Ok(())
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Passed,
    /// Something failed; everything was run.
    Failed,
    /// Something failed, and because of it not everything was run.
    Blocked,
    /// A fix was tried as often as it may be.
    GaveUp,
    /// Nothing failed, and something could not be run.
    Unknown,
}
