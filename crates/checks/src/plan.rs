//! What would be repaired: exactly what a run that repairs would do next, and what could follow.

use std::collections::BTreeMap;
use std::time::Duration;

use homeostat_model::CheckName;
use serde::Serialize;

use crate::hands::with_causes;
use crate::row::Report;
use crate::select::Chosen;
use crate::suite::Item;

/// The longest that planning one fix may take.
const WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub fixes: Vec<PlannedFix>,
    /// Blocked checks with a fix: whether they fail is known only once what blocks them passes.
    pub afterwards: Vec<Afterwards>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFix {
    pub check: CheckName,
    /// Such as `user kim`.
    pub fix: String,
    /// What it would do, a line each.
    pub steps: Vec<String>,
    /// Why it could not do it.
    pub problem: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Afterwards {
    pub check: CheckName,
    pub fix: String,
    pub blocked_by: Vec<CheckName>,
}

/// Plans the repair of what a run without repairs found.
pub async fn plan(chosen: &Chosen, report: &Report) -> Plan {
    let mut plan = Plan {
        fixes: Vec::new(),
        afterwards: Vec::new(),
    };
    let items: BTreeMap<&CheckName, &Item> = chosen
        .suite
        .items
        .iter()
        .map(|item| (&item.name, item))
        .collect();
    for row in report.checks.iter().filter(|row| row.asked) {
        let Some(fix) = items.get(&row.name).and_then(|item| item.fix.as_ref()) else {
            continue;
        };
        if row.is_root() {
            let (steps, problem) = match fix.plan(WITHIN).await {
                Ok(steps) => (steps, None),
                Err(error) => (Vec::new(), Some(with_causes(&error))),
            };
            plan.fixes.push(PlannedFix {
                check: row.name.clone(),
                fix: fix.summary(),
                steps,
                problem,
            });
        } else if !row.blocked_by.is_empty() {
            plan.afterwards.push(Afterwards {
                check: row.name.clone(),
                fix: fix.summary(),
                blocked_by: row.blocked_by.clone(),
            });
        }
    }
    plan
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.fixes.is_empty() && self.afterwards.is_empty() {
            return f.write_str("nothing to repair\n");
        }
        for planned in &self.fixes {
            writeln!(f, "{}: would apply {}", planned.check, planned.fix)?;
            for step in &planned.steps {
                writeln!(f, "    {step}")?;
            }
            match &planned.problem {
                Some(problem) => writeln!(f, "    cannot: {problem}")?,
                None if planned.steps.is_empty() => writeln!(f, "    finds nothing to do")?,
                None => {}
            }
        }
        for afterwards in &self.afterwards {
            let names: Vec<&str> = afterwards
                .blocked_by
                .iter()
                .map(CheckName::as_str)
                .collect();
            writeln!(
                f,
                "{}: is blocked by {}; once it can be run, and if it fails: {}",
                afterwards.check,
                names.join(", "),
                afterwards.fix
            )?;
        }
        Ok(())
    }
}
