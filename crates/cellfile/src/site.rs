//! `site.star` -> [`SiteSpec`]: checks with the probes and fixes of the library, for `homeostat check`.
//!
//! The language is that of cell files with other functions: `check`, `parameter`, and one for each kind of the library's
//! table, so that a new kind needs nothing here. What the table knows (names, types, what is required) is checked here;
//! what only the kind itself can judge (is this a URL?) is asked of a [`Judge`], so that its answer, too, points at the
//! argument. A fix that no check uses is a check of its own: how it must be, and how to make it so.

mod arguments;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use homeostat_model::CheckName;
use homeostat_model::library::{Call, Kind};
use serde::{Deserialize, Serialize};

use crate::error::{CellFileError, Problem, ProblemKind};
use crate::evaluate::{self, Language};
use crate::item::{Builder, Datum, Item};
use crate::limits::Limits;
use crate::nearest::nearest;
use crate::reader::{Problems, Reader};
use crate::resolve::graph;

/// Checks as declared: names are unique, every `after` names one, nothing is cyclic, and there is at least one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteSpec {
    pub checks: Vec<SiteCheck>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteCheck {
    pub name: CheckName,
    /// None: the fix's own check. One of the two is there.
    pub probe: Option<Call>,
    pub fix: Option<Call>,
    pub after: Vec<CheckName>,
    pub owner: Option<String>,
    pub tags: Vec<String>,
    /// How many failures in a row make a verdict.
    pub confirm: u32,
    /// How long after its fix the check may still fail.
    pub settle: Duration,
    /// How often the fix is applied until the check passes.
    pub attempts: u32,
    pub every: Duration,
    /// The longest one probe may take.
    pub timeout: Duration,
}

/// What a call is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallUse {
    Probe,
    Fix,
    /// A fix without a probe beside it: it must bring its own.
    FixAndProbe,
}

/// What is wrong with a call, as whoever carries it out sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCall {
    /// The argument that is wrong; none: the call as a whole.
    pub argument: Option<String>,
    pub problem: String,
    pub hint: Option<String>,
}

/// Judges calls by what the table does not know.
pub type Judge = fn(&Call, CallUse) -> Result<(), BadCall>;

pub(crate) const CHECK_ARGUMENTS: [&str; 11] = [
    "name", "probe", "after", "fix", "owner", "tags", "confirm", "settle", "attempts", "every",
    "timeout",
];

const SHORTEST_EVERY: Duration = Duration::from_millis(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
const DEFAULT_EVERY: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_SETTLE: Duration = Duration::from_secs(10);
/// One failure may be chance; two in a row are looked into.
const DEFAULT_CONFIRM: u32 = 2;
const DEFAULT_ATTEMPTS: u32 = 3;

pub(crate) fn read(
    path: &Path,
    parameters: BTreeMap<String, String>,
    judge: Judge,
) -> Result<SiteSpec, CellFileError> {
    let file = path.display().to_string();
    let language = Language::Site { parameters };
    let evaluated =
        evaluate::evaluate(path, language, &Limits::SITE).map_err(|problem| CellFileError {
            problems: vec![*problem],
        })?;
    let mut problems = Problems {
        sources: &evaluated.sources,
        found: Vec::new(),
    };
    let checks = declare(&evaluated.items, judge, &mut problems);
    let mut found = problems.found;
    if checks.is_empty() && found.is_empty() {
        let message = "it declares no check, so it could only ever pass".to_owned();
        found.push(Problem::without_place(
            &file,
            ProblemKind::Declared,
            message,
        ));
    }
    if found.is_empty() {
        return Ok(SiteSpec { checks });
    }
    found.sort_by(|a, b| a.place.cmp(&b.place));
    found.dedup();
    Err(CellFileError { problems: found })
}

/// A check with the call that declared it.
struct Draft<'a> {
    check: SiteCheck,
    item: &'a Item,
}

fn declare(items: &[Item], judge: Judge, problems: &mut Problems<'_>) -> Vec<SiteCheck> {
    let mut used = BTreeSet::new();
    let mut drafts = Vec::new();
    for item in items
        .iter()
        .filter(|item| item.builder == Builder::SiteCheck)
    {
        used.extend(item.arguments.iter().filter_map(|argument| {
            let Datum::Probe(index) = argument.value else {
                return None;
            };
            Some(index)
        }));
        if let Some(check) = check(item, items, judge, problems) {
            drafts.push(Draft { check, item });
        }
    }
    for (index, item) in items.iter().enumerate() {
        if let Builder::Library(kind) = item.builder
            && !used.contains(&index)
            && let Some(check) = alone(item, kind, judge, problems)
        {
            drafts.push(Draft { check, item });
        }
    }
    duplicates(&drafts, problems);
    dependencies(&drafts, items, problems);
    drafts.into_iter().map(|draft| draft.check).collect()
}

fn check(
    item: &Item,
    items: &[Item],
    judge: Judge,
    problems: &mut Problems<'_>,
) -> Option<SiteCheck> {
    let mut reader = Reader::new(item, problems);
    let name = reader.required_name("name");
    let after = reader.names("after").unwrap_or_default();
    let owner = reader.text("owner").map(str::to_owned);
    let tags = reader.texts("tags").unwrap_or_default();
    let confirm = reader.whole("confirm", 1..=100);
    let settle = reader.duration("settle", Duration::ZERO);
    let attempts = reader.whole("attempts", 1..=100);
    let every = reader.duration("every", SHORTEST_EVERY);
    let timeout = reader.duration("timeout", SHORTEST_TIMEOUT);
    let looks = reader.given("probe").is_some();
    let repairs = reader.given("fix").is_some();
    if !looks && !repairs {
        let message = "check() needs 'probe' or 'fix'".to_owned();
        let hint = "a fix brings a check of its own: check(\"…\", fix = user(\"kim\"))".to_owned();
        reader.bad_with_hint("name", None, message, hint);
        return None;
    }
    let probe = call_of(&mut reader, "probe", CallUse::Probe, items, judge);
    let fix_use = if looks {
        CallUse::Fix
    } else {
        CallUse::FixAndProbe
    };
    let fix = call_of(&mut reader, "fix", fix_use, items, judge);
    if probe.is_some() != looks || fix.is_some() != repairs {
        return None;
    }
    Some(SiteCheck {
        name: name?,
        probe,
        fix,
        after,
        owner,
        tags: tags.into_iter().map(str::to_owned).collect(),
        confirm: confirm.unwrap_or(DEFAULT_CONFIRM),
        settle: settle.unwrap_or(DEFAULT_SETTLE),
        attempts: attempts.unwrap_or(DEFAULT_ATTEMPTS),
        every: every.unwrap_or(DEFAULT_EVERY),
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
    })
}

/// The probe or fix that an argument of a check names; none when it was not given or is wrong.
fn call_of(
    reader: &mut Reader<'_, '_, '_>,
    argument: &'static str,
    call_use: CallUse,
    items: &[Item],
    judge: Judge,
) -> Option<Call> {
    let index = match reader.given(argument)? {
        Datum::Probe(index) => *index,
        other => {
            let message = format!("'{argument}' must be a {argument}, not {}", other.kind());
            let hint = format!("such as {argument} = file(\"/etc/hosts\")");
            reader.bad_with_hint(argument, None, message, hint);
            return None;
        }
    };
    let item = items.get(index)?;
    let Builder::Library(kind) = item.builder else {
        return None;
    };
    let (fits, message) = match call_use {
        CallUse::Probe => (
            kind.role.may_be_probe(),
            format!(
                "{}() repairs and does not look; give it as 'fix'",
                kind.name
            ),
        ),
        CallUse::Fix | CallUse::FixAndProbe => (
            kind.role.may_be_fix(),
            format!(
                "{}() looks and does not repair; give it as 'probe'",
                kind.name
            ),
        ),
    };
    if !fits {
        reader.bad(argument, None, message);
        return None;
    }
    judged(item, kind, call_use, judge, reader.problems)
}

/// A call that a check uses, or that stands alone.
fn judged(
    item: &Item,
    kind: &'static Kind,
    call_use: CallUse,
    judge: Judge,
    problems: &mut Problems<'_>,
) -> Option<Call> {
    let call = arguments::call(&mut Reader::new(item, problems), kind)?;
    match judge(&call, call_use) {
        Ok(()) => Some(call),
        Err(bad) => {
            let BadCall {
                argument,
                problem,
                hint,
            } = bad;
            match argument {
                Some(name) => {
                    let text = call.args.get(&name).and_then(|value| value.as_str());
                    problems.argument(item, &name, text, problem, hint);
                }
                None => {
                    let span = problems.sources.head(item);
                    problems.at(item, &span, problem, hint);
                }
            }
            None
        }
    }
}

/// A fix that stands alone is a check under a name made from what it is about.
fn alone(
    item: &Item,
    kind: &'static Kind,
    judge: Judge,
    problems: &mut Problems<'_>,
) -> Option<SiteCheck> {
    if !kind.role.may_be_fix() {
        let message = format!("this {}() is a probe that no check uses", kind.name);
        let hint = format!("give it to a check: check(\"…\", probe = {}(…))", kind.name);
        let span = problems.sources.head(item);
        problems.at(item, &span, message, Some(hint));
        return None;
    }
    let fix = judged(item, kind, CallUse::FixAndProbe, judge, problems)?;
    let subject = kind.args.first().and_then(|arg| fix.args.get(arg.name));
    let subject = match subject {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let Some(name) = name_for(kind.name, &subject) else {
        let message = format!("no name can be made for this {}()", kind.name);
        let hint = format!("name it: check(\"…\", fix = {}(…))", kind.name);
        let span = problems.sources.head(item);
        problems.at(item, &span, message, Some(hint));
        return None;
    };
    Some(SiteCheck {
        name,
        probe: None,
        fix: Some(fix),
        after: Vec::new(),
        owner: None,
        tags: Vec::new(),
        confirm: DEFAULT_CONFIRM,
        settle: DEFAULT_SETTLE,
        attempts: DEFAULT_ATTEMPTS,
        every: DEFAULT_EVERY,
        timeout: DEFAULT_TIMEOUT,
    })
}

/// `file`, `/etc/motd` -> `file/etc-motd`: the rule of check names leaves no more.
fn name_for(kind: &str, subject: &str) -> Option<CheckName> {
    let plain = |text: &str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let words = text.to_lowercase();
        let words = words.split(|c| !letter(c)).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    };
    let subject = plain(subject);
    let name = match subject.is_empty() {
        true => plain(kind),
        false => format!("{}/{subject}", plain(kind)),
    };
    CheckName::new(name).ok()
}

fn duplicates(drafts: &[Draft<'_>], problems: &mut Problems<'_>) {
    let mut first: BTreeMap<&CheckName, &Item> = BTreeMap::new();
    for draft in drafts {
        match first.get(&draft.check.name) {
            None => {
                first.insert(&draft.check.name, draft.item);
            }
            Some(before) => {
                let place = problems.sources.place(&problems.sources.head(before));
                let name = &draft.check.name;
                let message = format!(
                    "the name '{name}' is taken: {}() at {place}",
                    before.builder.name()
                );
                let hint = match draft.item.builder {
                    Builder::Library(kind) => Some(format!(
                        "give it another one: check(\"…\", fix = {}(…))",
                        kind.name
                    )),
                    _ => None,
                };
                let argument = draft
                    .item
                    .arguments
                    .first()
                    .map(|first| first.name.as_str());
                problems.argument(draft.item, argument.unwrap_or("name"), None, message, hint);
            }
        }
    }
}

/// Unknown names in `after`, and cycles.
fn dependencies(drafts: &[Draft<'_>], items: &[Item], problems: &mut Problems<'_>) {
    // Checks that are wrong otherwise are named, too: one mistake is not shown twice.
    let declared = items
        .iter()
        .filter(|item| item.builder == Builder::SiteCheck);
    let declared = declared.filter_map(|item| {
        let name = item
            .arguments
            .iter()
            .find(|argument| argument.name == "name")?;
        let Datum::Text(text) = &name.value else {
            return None;
        };
        Some(text.as_str())
    });
    let known: BTreeSet<&str> = drafts
        .iter()
        .map(|draft| draft.check.name.as_str())
        .chain(declared)
        .collect();
    for draft in drafts {
        for after in &draft.check.after {
            if !known.contains(after.as_str()) {
                let hint = match nearest(after.as_str(), known.iter().copied()) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("the file declares {} checks", known.len()),
                };
                let message = format!(
                    "unknown check '{after}' in 'after' of '{}'",
                    draft.check.name
                );
                let text = Some(after.as_str());
                problems.argument(draft.item, "after", text, message, Some(hint));
            }
        }
    }
    let edges: Vec<(&str, Vec<&str>)> = drafts
        .iter()
        .map(|draft| {
            let after = draft.check.after.iter().map(CheckName::as_str);
            (draft.check.name.as_str(), after.collect())
        })
        .collect();
    let Some(cycle) = graph::cycle(&edges) else {
        return;
    };
    let begins = |draft: &&Draft<'_>| draft.check.name.as_str() == cycle[0];
    if let Some(draft) = drafts.iter().find(begins) {
        let message = format!("checks come after each other: {}", shortened(&cycle));
        problems.argument(draft.item, "after", Some(cycle[1]), message, None);
    }
}

/// A long circle is recognised by its ends.
fn shortened(cycle: &[&str]) -> String {
    const MOST: usize = 12;
    if cycle.len() <= MOST {
        return cycle.join(" -> ");
    }
    let (begin, end) = (&cycle[..MOST / 2], &cycle[cycle.len() - MOST / 2..]);
    format!("{} -> … -> {}", begin.join(" -> "), end.join(" -> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_from_what_a_fix_is_about() {
        let name = |kind, subject| name_for(kind, subject).map(String::from);
        assert_eq!(name("file", "/etc/motd"), Some("file/etc-motd".to_owned()));
        assert_eq!(name("user", "Kim_2"), Some("user/kim-2".to_owned()));
        assert_eq!(
            name("kernel_parameter", "vm.swappiness"),
            Some("kernel-parameter/vm-swappiness".to_owned())
        );
        assert_eq!(name("user", "ä"), Some("user".to_owned()));
        assert_eq!(name("file", &"/x".repeat(100)), None);
    }
}
