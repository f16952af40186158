//! Turning single services up and down. Down has two phases: stopped and kept for a declared time, then purged
//! ([`crate::purge`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use homeostat_api::Refusal;
use homeostat_api::v1::{TurnDirection, TurnRequest};
use homeostat_journal::{Asker, Person};
use homeostat_model::{OperationId, ServiceName, ServiceSpec};
use homeostat_store::{Compare, Op, Txn};
use homeostat_turnup::{Direction, Keep, turndown_some, turnup};

use crate::ControllerError;
use crate::core::encode;
use crate::keys;
use crate::leader::{Leader, Which, operation_error};
use crate::purge::TurnedDown;

impl Leader {
    /// Turns some of the declared services, as an operation that is written down when this returns.
    pub(crate) async fn turn(
        self: &Arc<Self>,
        request: TurnRequest,
    ) -> Result<OperationId, Refusal> {
        let _one_at_a_time = self.turning.lock().await;
        let services = self.chosen(&request.services)?;
        let direction = match TurnDirection::try_from(request.direction) {
            Ok(TurnDirection::Up) => Direction::Up,
            Ok(TurnDirection::Down) => Direction::Down,
            Ok(TurnDirection::Unspecified) | Err(_) => {
                return Err(Refusal::bad_request("neither up nor down was said"));
            }
        };
        let names: Vec<&str> = services.iter().map(|s| s.name.as_str()).collect();
        let names = names.join(", ");
        let asker = Asker::Person(Person(request.by.clone()));
        let draft = match direction {
            Direction::Up => {
                self.needs_are_up(&services).await?;
                turnup(&services, asker, format!("{names} to be up"))
            }
            Direction::Down => {
                self.nobody_needs(&services).await?;
                let keep = Keep {
                    by: request.by,
                    keep_ms: request.keep_ms,
                };
                turndown_some(&services, &keep, asker, format!("{names} to be down"))
            }
        };
        self.stop_unfinished(Which::About(&services), "its services are turned anew")
            .await?;
        if direction == Direction::Up {
            self.keep_for_good(&services).await?;
        }
        let operation = self.executor.submit(draft).await.map_err(operation_error)?;
        let id = operation.id().clone();
        let why = operation.plan().draft().why.clone();
        self.core.events.add("operation", id.as_str(), why);
        self.drive_services(id.clone(), direction);
        Ok(id)
    }

    /// Services that are to be up are not purged, from before the moment in which that is written down.
    pub(crate) async fn keep_for_good(
        &self,
        services: &[ServiceSpec],
    ) -> Result<(), ControllerError> {
        for service in services {
            let gone = Txn::new().then(Op::delete(keys::turned_down(&service.name)));
            self.core.store.txn(gone).await?;
        }
        Ok(())
    }

    /// Sets the clock of services that are down. Repeated it begins anew.
    pub(crate) async fn set_keep(
        &self,
        services: &[ServiceName],
        keep: &Keep,
    ) -> Result<(), Refusal> {
        let record = TurnedDown {
            by: keep.by.clone(),
            keep_ms: keep.keep_ms,
            kept_ms: 0,
        };
        for service in services {
            let txn = Txn::new()
                .when(Compare::absent(keys::wanted(service)))
                .then(Op::put(keys::turned_down(service), encode(&record)));
            let reply = self.core.store.txn(txn).await;
            let reply = reply.map_err(|error| Refusal::unknown(error.to_string()))?;
            if reply.committed().is_none() {
                return Err(Refusal::not_now(format!("{service} is wanted again")));
            }
        }
        Ok(())
    }

    fn chosen(&self, names: &[String]) -> Result<Vec<ServiceSpec>, Refusal> {
        if names.is_empty() {
            return Err(Refusal::bad_request("no service was named"));
        }
        let names: BTreeSet<&String> = names.iter().collect();
        names
            .into_iter()
            .map(|name| {
                let service = ServiceName::new(name.clone())
                    .map_err(|error| Refusal::bad_request(error.to_string()))?;
                self.core.service(&service).ok_or_else(|| {
                    Refusal::not_found(format!("{service} is not a service of this cell"))
                })
            })
            .collect()
    }

    /// Nothing that is up, besides the chosen, may need one of them.
    async fn nobody_needs(&self, chosen: &[ServiceSpec]) -> Result<(), Refusal> {
        let applied = self.core.applied();
        for other in applied.iter().flat_map(|applied| &applied.spec.services) {
            let needed = chosen
                .iter()
                .find(|service| other.needs.contains(&service.name));
            let also_chosen = chosen.iter().any(|service| service.name == other.name);
            if let (Some(needed), false) = (needed, also_chosen)
                && self.services.is_wanted(&other.name).await?
            {
                return Err(Refusal::not_now(format!(
                    "{} needs {} and is up: turn it down too, or first",
                    other.name, needed.name
                )));
            }
        }
        Ok(())
    }

    /// What the chosen need must be up, or chosen too.
    async fn needs_are_up(&self, chosen: &[ServiceSpec]) -> Result<(), Refusal> {
        for service in chosen {
            for need in &service.needs {
                let also_chosen = chosen.iter().any(|other| other.name == *need);
                if !also_chosen && !self.services.is_wanted(need).await? {
                    return Err(Refusal::not_now(format!(
                        "{} needs {need}, which is down: turn it up too, or first",
                        service.name
                    )));
                }
            }
        }
        Ok(())
    }
}
