//! Where the time of a change of primary goes: the same steps, seen many times, each with its median.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::stats::{Distribution, rounded};

/// Steps by what they do.
#[derive(Debug, Default)]
pub struct Steps(BTreeMap<String, Vec<Step>>);

#[derive(Debug, Clone, Copy)]
struct Step {
    /// When it was over, since the beginning.
    at_ms: f64,
    /// How long it took, where that is known.
    took_ms: Option<f64>,
}

impl Steps {
    pub fn add(&mut self, what: &str, at_ms: f64, took_ms: Option<f64>) {
        self.0
            .entry(what.to_owned())
            .or_default()
            .push(Step { at_ms, took_ms });
    }

    /// The steps of a change as `homeostat why CLUSTER --json` tells them in `last_change`. Of a step that was repeated
    /// the first counts.
    pub fn add_change(&mut self, change: &Value) {
        let roles = roles(change);
        let mut seen = BTreeSet::new();
        for step in change["steps"].as_array().into_iter().flatten() {
            let what = plain(step["what"].as_str().unwrap_or_default(), &roles);
            let ms = |field: &str| step[field].as_f64().map(|us| us / 1e3);
            if let Some(at_ms) = ms("at_us").filter(|_| seen.insert(what.clone())) {
                self.add(&what, at_ms, ms("took_us"));
            }
        }
    }

    /// In the order in which they usually end, for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "    {:>9}  {:>9}  {:>9}  {:>4}\n",
            "over at", "took", "worst", "n"
        );
        for (what, at, took) in self.rows() {
            let (median, worst) = took
                .map(|took| {
                    (
                        format!("{:.1}", took.median()),
                        format!("{:.1}", took.worst()),
                    )
                })
                .unwrap_or_default();
            text.push_str(&format!(
                "    {:>9.1}  {median:>9}  {worst:>9}  {:>4}  {what}\n",
                at.median(),
                at.count()
            ));
        }
        text
    }

    pub fn json(&self) -> Value {
        let row = |(what, at, took): (&str, Distribution, Option<Distribution>)| {
            json!({
                "what": what, "n": at.count(), "over_at_ms_median": rounded(at.median()),
                "took_ms_median": took.as_ref().map(|took| rounded(took.median())),
                "took_ms_worst": took.as_ref().map(|took| rounded(took.worst())),
            })
        };
        self.rows().into_iter().map(row).collect()
    }

    fn rows(&self) -> Vec<(&str, Distribution, Option<Distribution>)> {
        let mut rows: Vec<_> = self
            .0
            .iter()
            .filter_map(|(what, steps)| {
                let at = Distribution::of(steps.iter().map(|step| step.at_ms))?;
                let took = Distribution::of(steps.iter().filter_map(|step| step.took_ms));
                Some((what.as_str(), at, took))
            })
            .collect();
        rows.sort_by(|a, b| a.1.median().total_cmp(&b.1.median()));
        rows
    }
}

/// Members by the part they have in this change, so that changes between different members compare.
fn roles(change: &Value) -> Vec<(String, &'static str)> {
    let name = |field: &str| change[field].as_str().map(str::to_owned);
    let mut roles: Vec<(String, &'static str)> = Vec::new();
    roles.extend(name("primary").map(|name| (name, "NEW")));
    roles.extend(name("primary_before").map(|name| (name, "OLD")));
    for member in change["others"]
        .as_object()
        .into_iter()
        .flat_map(|others| others.keys())
    {
        if !roles.iter().any(|(known, _)| known == member) {
            roles.push((member.clone(), "OTHER"));
        }
    }
    roles
}

/// A step without what differs each time: names, numbers, outcomes.
fn plain(what: &str, roles: &[(String, &'static str)]) -> String {
    let mut text = what.to_owned();
    for (member, role) in roles {
        text = text.replace(member.as_str(), role);
    }
    let mut parts = text.splitn(3, ": ");
    let kept = match (parts.next(), parts.next()) {
        (Some(first), Some(_)) if first.starts_with("fence") => first.to_owned(),
        (Some(first), Some(second)) => format!("{first}: {second}"),
        (Some(only), None) => only.to_owned(),
        (None, _) => String::new(),
    };
    let is_number = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_digit());
    let words: Vec<&str> = kept
        .split(' ')
        .map(|word| if is_number(word) { "N" } else { word })
        .collect();
    words.join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn changes_between_different_members_are_the_same_steps() {
        let change = |old: &str, new: &str, other: &str, epoch: u32| {
            json!({
                "primary": new, "primary_before": old, "others": {other: "later", old: "down"},
                "steps": [
                    {"at_us": 1000, "took_us": null, "what": format!("record: epoch {epoch} begins, nobody holds it yet")},
                    {"at_us": 2000, "took_us": null, "what": format!("fence proved: epoch {epoch}: Exited: {old}'s keeper")},
                    {"at_us": 3000, "took_us": 1500, "what": format!("{other}: repoint to {new} (Counts): done")},
                    {"at_us": 9000, "took_us": 7000, "what": format!("{other}: repoint to {new} (Counts): done")},
                ],
            })
        };
        let mut steps = Steps::default();
        steps.add_change(&change("db-0", "db-1", "db-2", 2));
        steps.add_change(&change("db-1", "db-2", "db-0", 3));
        let rows: Vec<(String, usize)> = steps
            .rows()
            .iter()
            .map(|row| (row.0.to_owned(), row.1.count()))
            .collect();
        let expect = [
            ("record: epoch N begins, nobody holds it yet", 2),
            ("fence proved", 2),
            ("OTHER: repoint to NEW (Counts)", 2),
        ];
        assert_eq!(rows, expect.map(|(what, n)| (what.to_owned(), n)));
    }
}
