//! From a set of services to the steps that bring them up or take them down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use homeostat_journal::{Approval, Asker, Draft, OnFailure, Retry, StepPlan, Touched, Undo};
use homeostat_model::{ProcedureName, ServiceName, ServiceSpec, StepName};
use serde::{Deserialize, Serialize};

/// Steps planned for another version are not run by this one.
pub const PROCEDURE_VERSION: u32 = 1;

/// How long one attempt to bring a layer up may take. Long, because a layer waits for machines, disks and people; what it
/// waits for is shown all the time, and whoever asked has a deadline of his own.
const UP_WITHIN: Duration = Duration::from_secs(3600);
const DOWN_WITHIN: Duration = Duration::from_secs(300);

pub fn turnup_procedure() -> ProcedureName {
    name("turnup")
}

pub fn turndown_procedure() -> ProcedureName {
    name("turndown")
}

/// Parameters of steps.
const WHOLE: &str = "whole";
pub(crate) const KEEP: &str = "keep";

fn name(text: &str) -> ProcedureName {
    ProcedureName::new(text).expect("invariant: the two names in this module are valid")
}

/// The services in layers: every service comes in a later layer than all it needs, and as early as that allows. Needs
/// that are not among `services` are not waited for. What is on a cycle is left out (a cell file has none).
pub fn layers(services: &[ServiceSpec]) -> Vec<Vec<ServiceName>> {
    let mut needs: BTreeMap<&ServiceName, BTreeSet<&ServiceName>> = services
        .iter()
        .map(|service| {
            let known = service
                .needs
                .iter()
                .filter(|need| services.iter().any(|other| other.name == **need));
            (&service.name, known.collect())
        })
        .collect();
    let mut layers = Vec::new();
    loop {
        let ready: Vec<&ServiceName> = needs
            .iter()
            .filter(|(_, waits)| waits.is_empty())
            .map(|(name, _)| *name)
            .collect();
        if ready.is_empty() {
            return layers;
        }
        for name in &ready {
            needs.remove(name);
        }
        for waits in needs.values_mut() {
            waits.retain(|need| !ready.contains(need));
        }
        layers.push(ready.into_iter().cloned().collect());
    }
}

/// Prepare, then layer after layer.
pub fn turnup(services: &[ServiceSpec], asked_by: Asker, why: String) -> Draft {
    let prepare = StepPlan {
        name: step("prepare"),
        about: "wait for the machines' agents and install packages".into(),
        parameters: serde_json::json!({ "services": [] }),
        manual: None,
        retry: Retry {
            max_attempts: 100,
            first: Duration::from_millis(200),
            longest: Duration::from_secs(5),
        },
        timeout: UP_WITHIN,
        undo: Undo::Nothing,
    };
    let steps = std::iter::once(prepare)
        .chain(numbered(layers(services), "start", UP_WITHIN))
        .collect();
    draft(turnup_procedure(), services, asked_by, why, steps)
}

/// What becomes of what services kept, once they are down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    pub by: String,
    /// For how long it is kept, in milliseconds.
    pub keep_ms: u64,
}

/// The whole cell is to be down: the layers in reverse.
pub fn turndown(services: &[ServiceSpec], asked_by: Asker, why: String) -> Draft {
    let mut steps = stops(services);
    for step in &mut steps {
        step.parameters[WHOLE] = true.into();
    }
    draft(turndown_procedure(), services, asked_by, why, steps)
}

/// Some services of a cell that stays: the layers in reverse, and once all of them are seen to be down, the clock is set by
/// which what they kept is purged.
pub fn turndown_some(services: &[ServiceSpec], keep: &Keep, asked_by: Asker, why: String) -> Draft {
    let mut steps = stops(services);
    let names: Vec<&ServiceName> = services.iter().map(|service| &service.name).collect();
    steps.push(StepPlan {
        name: step("keep"),
        about: "keep their data for as long as was asked for".into(),
        parameters: serde_json::json!({ "services": names, KEEP: keep }),
        manual: None,
        retry: Retry {
            max_attempts: 100,
            first: Duration::from_millis(200),
            longest: Duration::from_secs(10),
        },
        timeout: DOWN_WITHIN,
        undo: Undo::Nothing,
    });
    draft(turndown_procedure(), services, asked_by, why, steps)
}

/// Whether a turndown takes the cell down, and not some of its services.
pub fn is_whole(draft: &Draft) -> bool {
    let said = |step: &StepPlan| step.parameters.get(WHOLE) == Some(&true.into());
    draft.procedure == turndown_procedure() && draft.steps.iter().any(said)
}

fn stops(services: &[ServiceSpec]) -> Vec<StepPlan> {
    let mut reversed = layers(services);
    reversed.reverse();
    numbered(reversed, "stop", DOWN_WITHIN).collect()
}

fn draft(
    procedure: ProcedureName,
    services: &[ServiceSpec],
    asked_by: Asker,
    why: String,
    steps: Vec<StepPlan>,
) -> Draft {
    Draft {
        procedure,
        version: PROCEDURE_VERSION,
        scope: services
            .iter()
            .map(|service| Touched::Service(service.name.clone()))
            .collect(),
        asked_by,
        why,
        approval: Approval::NotNeeded,
        // A half-turned-up cell is worth more than none: what runs, runs on, and a person sees what is missing.
        on_failure: OnFailure::Stop,
        steps,
    }
}

fn numbered(
    layers: Vec<Vec<ServiceName>>,
    verb: &'static str,
    timeout: Duration,
) -> impl Iterator<Item = StepPlan> {
    layers
        .into_iter()
        .enumerate()
        .map(move |(number, services)| {
            let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
            StepPlan {
                name: step(&format!("{verb}-{}", number + 1)),
                about: format!("{verb} {}", names.join(", ")),
                parameters: serde_json::json!({ "services": services }),
                manual: None,
                retry: Retry {
                    max_attempts: 100,
                    first: Duration::from_millis(200),
                    longest: Duration::from_secs(10),
                },
                timeout,
                undo: Undo::Nothing,
            }
        })
}

fn step(text: &str) -> StepName {
    StepName::new(text).expect("invariant: a verb and a number make a valid step name")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use homeostat_journal::{Person, lint};

    fn service(name: &str, needs: &[&str]) -> ServiceSpec {
        let json = serde_json::json!({
            "name": name, "owner": "t", "needs": needs,
            "kind": {"kind": "sql", "members": 3, "flavor": "maria-db", "database": "d",
                     "resources": {"cpu": 1, "memory": 1}, "profile": "steady", "reads": "bounded",
                     "durability": "power", "cold_wait": {"secs": 60, "nanos": 0}, "settings": {}},
        });
        serde_json::from_value(json).unwrap()
    }

    fn names(layers: &[Vec<ServiceName>]) -> Vec<Vec<&str>> {
        layers
            .iter()
            .map(|layer| layer.iter().map(ServiceName::as_str).collect())
            .collect()
    }

    #[test]
    fn layers_follow_needs() {
        let services = [
            service("load", &["web"]),
            service("web", &["db", "cache"]),
            service("db", &[]),
            service("cache", &[]),
        ];
        assert_eq!(
            names(&layers(&services)),
            [vec!["cache", "db"], vec!["web"], vec!["load"]]
        );
    }

    #[test]
    fn needs_outside_the_selection_are_not_waited_for() {
        assert_eq!(names(&layers(&[service("web", &["db"])])), [vec!["web"]]);
    }

    #[test]
    fn plans_are_sound_and_turndown_is_the_reverse() {
        let services = [service("web", &["db"]), service("db", &[])];
        let asker = Asker::Person(Person("kim".into()));
        let up = turnup(&services, asker.clone(), "because".into());
        let down = turndown(&services, asker.clone(), "because".into());
        let keep = Keep {
            by: "kim".into(),
            keep_ms: 5,
        };
        let some = turndown_some(&services, &keep, asker, "because".into());
        assert_eq!(lint(&some), []);
        assert_eq!([&up, &down, &some].map(is_whole), [false, true, false]);
        assert_eq!(lint(&up), []);
        assert_eq!(lint(&down), []);
        let about = |draft: &Draft| {
            draft
                .steps
                .iter()
                .map(|step| step.about.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(about(&up)[1..], ["start db", "start web"]);
        assert_eq!(about(&down), ["stop web", "stop db"]);
        assert_eq!(about(&some)[..2], about(&down));
        assert_eq!(some.steps.len(), 3, "the clock is set after all are down");
    }
}
