//! The graph of checks, verified once when it is built, so that the engine never has to doubt it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use homeostat_model::{CheckName, CheckSpec};

/// A check as the engine sees it: when to look and what to believe, not what the looking consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: CheckName,
    /// What must pass before this one says anything.
    pub after: Vec<CheckName>,
    pub every: Duration,
    /// The longest one probe may take.
    pub timeout: Duration,
    /// How many failures in a row make a verdict.
    pub confirm: u32,
    /// What its probe weighs on, in a word of the caller's: of one target only so many are looked at at once.
    pub target: Option<String>,
    /// How what it finds may be repaired; none: it only reports.
    pub fix: Option<FixPolicy>,
}

/// When to apply the fix of a check, not what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixPolicy {
    /// What it changes, in a word of the caller's: one fix at a time may touch it.
    pub resource: String,
    pub repeatable: Repeatable,
    /// How often it is applied before it is given up, counted from the last time the check passed. At least 1.
    pub attempts: u32,
    /// The longest that applying it may take.
    pub timeout: Duration,
    /// How long after it was applied the check may still fail.
    pub settle: Duration,
}

impl FixPolicy {
    /// How often it may be applied until the check passes.
    pub fn allowed(&self) -> u32 {
        match self.repeatable {
            Repeatable::Proved => self.attempts,
            Repeatable::NotProved => 1,
        }
    }
}

/// Whether applying a fix twice is known to do what applying it once does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeatable {
    Proved,
    NotProved,
}

impl From<&CheckSpec> for Check {
    fn from(spec: &CheckSpec) -> Self {
        Self {
            name: spec.name.clone(),
            after: spec.after.clone(),
            every: spec.every,
            timeout: spec.timeout,
            confirm: spec.confirm,
            target: None,
            fix: None,
        }
    }
}

/// A check's place in its suite, which is a topological order: **what a check depends on has a smaller id**.
///
/// The engine leans on this: news that spread to dependents in the order of ids visit each check once. Ids mean
/// nothing outside their suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(u32);

impl CheckId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Checks that may be run: at least one, each name once, every dependency known, no cycle.
#[derive(Debug, Clone)]
pub struct Suite {
    nodes: Vec<Node>,
    ids: BTreeMap<CheckName, CheckId>,
    /// How many different ones there are.
    targets: u32,
    resources: u32,
}

/// A target of this suite, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TargetId(u32);

impl TargetId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A resource of this suite's fixes, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ResourceId(u32);

impl ResourceId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Gives equal words the same number.
#[derive(Default)]
struct Numbers(BTreeMap<String, u32>);

impl Numbers {
    fn of(&mut self, word: &str) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(word.to_owned()).or_insert(next)
    }

    fn count(&self) -> u32 {
        self.0.len() as u32
    }
}

#[derive(Debug, Clone)]
struct Node {
    check: Check,
    /// Each once, ascending.
    needs: Vec<CheckId>,
    /// Each once, ascending.
    dependents: Vec<CheckId>,
    target: Option<TargetId>,
    resource: Option<ResourceId>,
}

/// Why a set of checks is not a suite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuiteError {
    /// A suite that asserts nothing passes always, which is worse than no suite.
    #[error("the suite contains no check")]
    Empty,
    #[error("the suite contains {count} checks, more than {} can be run", u32::MAX)]
    TooMany { count: usize },
    #[error("check {name} is declared twice; give one of the two another name")]
    Duplicate { name: CheckName },
    #[error("check {name} comes after {after}, which is not in the suite")]
    UnknownDependency { name: CheckName, after: CheckName },
    #[error("checks wait for each other in a circle: {}", path(.cycle))]
    Cycle {
        /// Each comes after the next one, and the last one after the first.
        cycle: Vec<CheckName>,
    },
    #[error("check {name} has confirm = 0, so that nothing could make it fail; use 1 or more")]
    NeverConfirmed { name: CheckName },
    #[error("check {name} has an interval below one millisecond")]
    NoInterval { name: CheckName },
    #[error("check {name} has a fix with attempts = 0, which would never be applied; leave it out")]
    NoAttempts { name: CheckName },
}

fn path(cycle: &[CheckName]) -> String {
    let names: Vec<&str> = cycle
        .iter()
        .chain(cycle.first())
        .map(CheckName::as_str)
        .collect();
    names.join(" after ")
}

impl Suite {
    /// Verifies and orders a set of checks.
    ///
    /// # Errors
    /// [`SuiteError`], when they cannot be run.
    pub fn new(checks: Vec<Check>) -> Result<Self, SuiteError> {
        if checks.is_empty() {
            return Err(SuiteError::Empty);
        }
        if u32::try_from(checks.len()).is_err() {
            return Err(SuiteError::TooMany {
                count: checks.len(),
            });
        }
        let declared = positions(&checks)?;
        let needs = dependencies(&checks, &declared)?;
        let order = topological(&checks, &needs)?;
        Ok(Self::assemble(checks, needs, &order))
    }

    pub fn ids(&self) -> impl Iterator<Item = CheckId> + use<> {
        (0..self.nodes.len() as u32).map(CheckId)
    }

    /// Never zero: an empty suite is refused.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    pub fn id(&self, name: &CheckName) -> Option<CheckId> {
        self.ids.get(name).copied()
    }

    pub fn check(&self, id: CheckId) -> &Check {
        &self.nodes[id.index()].check
    }

    pub fn name(&self, id: CheckId) -> &CheckName {
        &self.check(id).name
    }

    /// What `id` directly depends on.
    pub fn needs(&self, id: CheckId) -> &[CheckId] {
        &self.nodes[id.index()].needs
    }

    /// What directly depends on `id`.
    pub fn dependents(&self, id: CheckId) -> &[CheckId] {
        &self.nodes[id.index()].dependents
    }

    pub(crate) fn target(&self, id: CheckId) -> Option<TargetId> {
        self.nodes[id.index()].target
    }

    pub(crate) fn targets(&self) -> usize {
        self.targets as usize
    }

    pub(crate) fn resource(&self, id: CheckId) -> Option<ResourceId> {
        self.nodes[id.index()].resource
    }

    pub(crate) fn resources(&self) -> usize {
        self.resources as usize
    }

    fn assemble(checks: Vec<Check>, needs: Vec<Vec<usize>>, order: &[usize]) -> Self {
        let mut id_of = vec![CheckId(0); checks.len()];
        for (id, &position) in order.iter().enumerate() {
            id_of[position] = CheckId(id as u32);
        }
        let mut slots: Vec<Option<Node>> = checks.iter().map(|_| None).collect();
        let mut ids = BTreeMap::new();
        let (mut targets, mut resources) = (Numbers::default(), Numbers::default());
        for (position, (check, needs)) in checks.into_iter().zip(needs).enumerate() {
            let id = id_of[position];
            ids.insert(check.name.clone(), id);
            let mut needs: Vec<CheckId> = needs.into_iter().map(|need| id_of[need]).collect();
            needs.sort_unstable();
            let target = check.target.as_deref();
            let resource = check.fix.as_ref().map(|fix| fix.resource.as_str());
            slots[id.index()] = Some(Node {
                target: target.map(|word| TargetId(targets.of(word))),
                resource: resource.map(|word| ResourceId(resources.of(word))),
                check,
                needs,
                dependents: Vec::new(),
            });
        }
        let mut nodes: Vec<Node> = slots.into_iter().flatten().collect();
        for index in 0..nodes.len() {
            for need in nodes[index].needs.clone() {
                nodes[need.index()].dependents.push(CheckId(index as u32));
            }
        }
        Self {
            nodes,
            ids,
            targets: targets.count(),
            resources: resources.count(),
        }
    }
}

/// Name to place in the declaration.
fn positions(checks: &[Check]) -> Result<BTreeMap<&CheckName, usize>, SuiteError> {
    let mut declared = BTreeMap::new();
    for (position, check) in checks.iter().enumerate() {
        if check.confirm == 0 {
            return Err(SuiteError::NeverConfirmed {
                name: check.name.clone(),
            });
        }
        if check.every < Duration::from_millis(1) {
            return Err(SuiteError::NoInterval {
                name: check.name.clone(),
            });
        }
        if check.fix.as_ref().is_some_and(|fix| fix.attempts == 0) {
            return Err(SuiteError::NoAttempts {
                name: check.name.clone(),
            });
        }
        if declared.insert(&check.name, position).is_some() {
            return Err(SuiteError::Duplicate {
                name: check.name.clone(),
            });
        }
    }
    Ok(declared)
}

/// The dependencies of each check by place, each once.
fn dependencies(
    checks: &[Check],
    declared: &BTreeMap<&CheckName, usize>,
) -> Result<Vec<Vec<usize>>, SuiteError> {
    let of_one = |check: &Check| {
        let known = |after: &CheckName| {
            declared
                .get(after)
                .copied()
                .ok_or_else(|| SuiteError::UnknownDependency {
                    name: check.name.clone(),
                    after: after.clone(),
                })
        };
        let mut needs = check
            .after
            .iter()
            .map(known)
            .collect::<Result<Vec<usize>, _>>()?;
        needs.sort_unstable();
        needs.dedup();
        Ok(needs)
    };
    checks.iter().map(of_one).collect()
}

/// Kahn's algorithm; among the checks that are ready the one declared first comes first, so that the order, and all
/// that follows from it, is the same for the same file.
fn topological(checks: &[Check], needs: &[Vec<usize>]) -> Result<Vec<usize>, SuiteError> {
    let mut open: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut dependents = vec![Vec::new(); needs.len()];
    for (position, needs) in needs.iter().enumerate() {
        for &need in needs {
            dependents[need].push(position);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..needs.len())
        .filter(|&p| open[p] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(needs.len());
    while let Some(Reverse(position)) = ready.pop() {
        order.push(position);
        for &dependent in &dependents[position] {
            open[dependent] -= 1;
            if open[dependent] == 0 {
                ready.push(Reverse(dependent));
            }
        }
    }
    if order.len() == needs.len() {
        Ok(order)
    } else {
        Err(find_cycle(checks, needs, &open))
    }
}

/// What Kahn's algorithm leaves over waits for something else left over; following that must come round again.
fn find_cycle(checks: &[Check], needs: &[Vec<usize>], open: &[usize]) -> SuiteError {
    let left_over = |position: &usize| open[*position] > 0;
    let mut seen_at = BTreeMap::new();
    let mut walk = Vec::new();
    let mut next = (0..needs.len()).find(left_over);
    while let Some(position) = next {
        if let Some(&start) = seen_at.get(&position) {
            walk.drain(..start);
            break;
        }
        seen_at.insert(position, walk.len());
        walk.push(position);
        next = needs[position].iter().copied().find(left_over);
    }
    SuiteError::Cycle {
        cycle: walk
            .into_iter()
            .map(|position| checks[position].name.clone())
            .collect(),
    }
}

#[cfg(test)]
mod tests;
