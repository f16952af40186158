//! Which checks of a suite are asked for. What they depend on is run, too: without it they would say nothing.

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::CheckName;

use crate::suite::{Item, Suite};

/// What a person asks for. Within one list any may match; each list that is not empty must.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Names; one that ends in `*` stands for all that begin so.
    pub names: Vec<String>,
    pub tags: Vec<String>,
    pub owners: Vec<String>,
}

/// A part of a suite that can be run by itself.
#[derive(Debug, Clone)]
pub struct Chosen {
    pub suite: Suite,
    /// What was asked for.
    pub asked: BTreeSet<CheckName>,
    /// What is run because something asked for depends on it, in the order of the suite.
    pub drawn_in: Vec<CheckName>,
}

/// Nobody wants a pass of nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} matches no check of the suite")]
pub struct NothingChosen {
    pub what: String,
    pub hint: String,
}

impl Selection {
    /// # Errors
    /// [`NothingChosen`] when a name, a tag or an owner matches nothing, or all of them together do not.
    pub fn choose(&self, suite: Suite) -> Result<Chosen, NothingChosen> {
        self.all_are_known(&suite)?;
        let asked: BTreeSet<CheckName> = suite
            .items
            .iter()
            .filter(|item| self.matches(item))
            .map(|item| item.name.clone())
            .collect();
        if asked.is_empty() {
            return Err(NothingChosen {
                what: "the selection as a whole".to_owned(),
                hint: "each of --only, --tag and --owner narrows it".to_owned(),
            });
        }
        let needed = with_dependencies(&suite, &asked);
        let whole = self.is_empty();
        let skipped = suite.skipped;
        let items: Vec<Item> = suite
            .items
            .into_iter()
            .filter(|item| needed.contains(&item.name))
            .collect();
        let drawn_in = items
            .iter()
            .map(|item| &item.name)
            .filter(|name| !asked.contains(*name));
        Ok(Chosen {
            drawn_in: drawn_in.cloned().collect(),
            suite: Suite {
                items,
                skipped: if whole { skipped } else { Vec::new() },
            },
            asked,
        })
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.tags.is_empty() && self.owners.is_empty()
    }

    fn matches(&self, item: &Item) -> bool {
        let any = |list: &[String], is: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|wanted| is(wanted))
        };
        any(&self.names, &|wanted| is_named(item, wanted))
            && any(&self.tags, &|wanted| {
                item.tags.iter().any(|tag| tag == wanted)
            })
            && any(&self.owners, &|wanted| {
                item.owner.as_deref() == Some(wanted)
            })
    }

    /// A selection of three names of which one is mistyped would otherwise pass with two.
    fn all_are_known(&self, suite: &Suite) -> Result<(), NothingChosen> {
        let known = |is: &dyn Fn(&Item) -> bool| suite.items.iter().any(is);
        let names: BTreeSet<&str> = suite.items.iter().map(|item| item.name.as_str()).collect();
        let tags: BTreeSet<&str> = suite
            .items
            .iter()
            .flat_map(|item| &item.tags)
            .map(String::as_str)
            .collect();
        let owners: BTreeSet<&str> = suite
            .items
            .iter()
            .filter_map(|item| item.owner.as_deref())
            .collect();
        for wanted in &self.names {
            if !known(&|item| is_named(item, wanted)) {
                return Err(unknown("--only", wanted, &names));
            }
        }
        for wanted in &self.tags {
            if !known(&|item| item.tags.contains(wanted)) {
                return Err(unknown("--tag", wanted, &tags));
            }
        }
        for wanted in &self.owners {
            if !known(&|item| item.owner.as_ref() == Some(wanted)) {
                return Err(unknown("--owner", wanted, &owners));
            }
        }
        Ok(())
    }
}

fn is_named(item: &Item, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(begin) => item.name.as_str().starts_with(begin),
        None => item.name.as_str() == wanted,
    }
}

fn unknown(option: &str, wanted: &str, known: &BTreeSet<&str>) -> NothingChosen {
    const MOST: usize = 12;
    let hint = match homeostat_cellfile::nearest(wanted, known.iter().copied()) {
        Some(near) => format!("did you mean '{near}'?"),
        None if known.is_empty() => "the suite has none".to_owned(),
        None if known.len() <= MOST => {
            let known: Vec<&str> = known.iter().copied().collect();
            format!("there are {}", known.join(", "))
        }
        None => format!("there are {}", known.len()),
    };
    NothingChosen {
        what: format!("{option} {wanted}"),
        hint,
    }
}

fn with_dependencies(suite: &Suite, asked: &BTreeSet<CheckName>) -> BTreeSet<CheckName> {
    let by_name: BTreeMap<&CheckName, &Item> =
        suite.items.iter().map(|item| (&item.name, item)).collect();
    let mut needed = asked.clone();
    let mut open: Vec<&CheckName> = asked.iter().collect();
    while let Some(name) = open.pop() {
        for after in by_name.get(name).into_iter().flat_map(|item| &item.after) {
            if needed.insert(after.clone()) {
                open.push(after);
            }
        }
    }
    needed
}
