//! The contract's side of the service: each call is a command to the loop, or a look at what it published.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use homeostat_api::v1::{
    ActReply, ActRequest, Action, ChecksReply, ChecksRequest, DescribeReply, DescribeRequest,
    InspectReply, InspectRequest, PrepareEvictionReply, PrepareEvictionRequest, RolloutReply,
    RolloutRequest, ServiceState, TurndownReply, TurndownRequest, TurnupReply, TurnupRequest,
};
use homeostat_api::{AdminServer, CellHandle, Refusal};
use homeostat_decider::{MemberId, SwitchoverRefused};
use homeostat_model::{ServiceName, ServiceSpec};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::own::Own;
use super::run::{Command, Loop, Published, QUEUE};
use super::story::Change;
use super::view::{Copying, Situation, Wished, look};

/// The argument that asks for a plan instead of the deed (contract.proto, `ActRequest`).
const PLAN: &str = "plan";
/// Commands that may wait for the loop.
const COMMANDS: usize = 64;
/// A switchover has its own bound in the decider; this covers the way back to the old primary after it.
const SWITCHOVER: Duration = Duration::from_secs(60);

/// The admin server of one SQL cluster. Its loop ends when it is dropped; the cluster goes on.
pub struct SqlServer {
    service: ServiceName,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<Published>,
}

impl SqlServer {
    /// Starts the loop, which takes up what was wished last, if anything was. Must be called within a tokio runtime.
    pub fn new(service: ServiceName, cell: Arc<dyn CellHandle>) -> Self {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let (heard, results) = mpsc::channel(QUEUE);
        let nothing = look(&Situation {
            service: &service,
            wished: Wished::Nothing,
            preparing: None,
            members: &[],
            tasks: &Default::default(),
            decider: None,
        });
        let first = Published {
            attached: false,
            wish: 0,
            wished: Wished::Nothing,
            looks: nothing,
        };
        let (publish, view) = watch::channel(first);
        let own = Own {
            service: service.clone(),
            cell,
        };
        tokio::spawn(Loop::new(own, heard, publish).run(queue, results));
        Self {
            service,
            commands,
            view,
        }
    }

    fn ended(&self) -> Refusal {
        Refusal::internal(format!("the loop of {} has ended", self.service))
    }

    async fn send(&self, command: Command) -> Result<(), Refusal> {
        self.commands.send(command).await.map_err(|_| self.ended())
    }

    async fn until(&self, reached: impl FnMut(&Published) -> bool) -> Result<Published, Refusal> {
        let mut view = self.view.clone();
        view.wait_for(reached)
            .await
            .map(|view| view.clone())
            .map_err(|_| self.ended())
    }

    /// Waits until a wish is carried out, or called back by a later one.
    async fn carried_out(
        &self,
        wish: u64,
        wished: Wished,
        state: ServiceState,
    ) -> Result<(), Refusal> {
        let seen = self
            .until(|view| view.wish >= wish && (view.wished != wished || view.looks.state == state))
            .await?;
        if seen.wished != wished {
            return Err(Refusal::not_now(format!(
                "the opposite was asked of {} meanwhile",
                self.service
            )));
        }
        Ok(())
    }

    async fn up(&self, spec_json: &str, term: u64) -> Result<(), Refusal> {
        let spec: ServiceSpec = serde_json::from_str(spec_json).map_err(|error| {
            Refusal::bad_request(format!("the specification of {}: {error}", self.service))
        })?;
        // What was wished earlier is known by then, and what runs.
        self.until(|view| view.attached).await?;
        let (answer, wish) = oneshot::channel();
        self.send(Command::Up {
            spec: Box::new(spec),
            term,
            answer,
        })
        .await?;
        let wish = wish.await.map_err(|_| self.ended())??;
        self.carried_out(wish, Wished::Up, ServiceState::Up).await
    }

    async fn down(&self, term: u64) -> Result<(), Refusal> {
        self.until(|view| view.attached).await?;
        let (answer, wish) = oneshot::channel();
        self.send(Command::Down { term, answer }).await?;
        let wish = wish.await.map_err(|_| self.ended())??;
        self.carried_out(wish, Wished::Down, ServiceState::Down)
            .await
    }

    /// The member open for writes, as published last.
    fn primary(&self) -> Option<String> {
        self.view.borrow().looks.cluster.primary.clone()
    }

    /// Makes a switchover definite and changes nothing: from whom, to whom. Carried out with these arguments it may be
    /// repeated.
    fn plan_switchover(&self, to: Option<MemberId>) -> Result<ActReply, Refusal> {
        let cluster = self.view.borrow().looks.cluster.clone();
        let service = &self.service;
        let from = cluster
            .primary
            .ok_or_else(|| Refusal::not_now(format!("{service} has no primary now; see: why")))?;
        let to = match to {
            Some(to) => to.to_string(),
            None => cluster
                .members
                .iter()
                .find(|member| {
                    member.task != from && member.acker == Copying::Acker && member.state == "well"
                })
                .map(|member| member.task.clone())
                .ok_or_else(|| {
                    Refusal::not_now(format!(
                        "no member of {service} can take over now; see: why"
                    ))
                })?,
        };
        if to == from {
            return Err(Refusal::not_now(format!("{to} is the primary already")));
        }
        if !cluster.members.iter().any(|member| member.task == to) {
            return Err(Refusal::bad_request(format!(
                "{to} is not a member of {service}"
            )));
        }
        Ok(ActReply {
            text: format!("make {to} the primary of {service} instead of {from}"),
            detail_json: serde_json::json!({ "from": from, "to": to }).to_string(),
        })
    }

    async fn switch_over(&self, to: Option<MemberId>) -> Result<ActReply, Refusal> {
        #[derive(Serialize)]
        struct Detail {
            from: Option<MemberId>,
            to: MemberId,
            took_us: u64,
        }
        let service = &self.service;
        let (answer, done) = oneshot::channel();
        self.send(Command::SwitchOver { to, answer }).await?;
        let switched = match timeout(SWITCHOVER, done).await {
            Err(_) => {
                let why = format!(
                    "the switchover of {service} is not over after {} s; see: why",
                    SWITCHOVER.as_secs()
                );
                return Err(Refusal::unknown(why));
            }
            Ok(Err(_)) => {
                return Err(Refusal::not_now(format!(
                    "nobody decides for {service} now: it is not up, or a new leader begins"
                )));
            }
            Ok(Ok(switched)) => switched,
        };
        let to = switched.result.map_err(refused)?;
        let from = switched.from.as_ref().map_or("nobody", MemberId::as_str);
        let took_us = u64::try_from(switched.took.as_micros()).unwrap_or(u64::MAX);
        let text = format!(
            "the primary role of {service} went from {from} to {to} in {} ms",
            took_us.div_ceil(1000)
        );
        let detail = Detail {
            from: switched.from,
            to,
            took_us,
        };
        Ok(ActReply {
            text,
            detail_json: json(&detail)?,
        })
    }

    async fn explain(&self) -> Result<ActReply, Refusal> {
        #[derive(Serialize)]
        struct Detail {
            #[serde(flatten)]
            last: Change,
            /// Oldest first.
            earlier: Vec<Change>,
        }
        let (answer, story) = oneshot::channel();
        self.send(Command::Explain { answer }).await?;
        let mut changes = story.await.map_err(|_| self.ended())?;
        let Some(last) = changes.pop() else {
            let text = format!(
                "{} has had no change of epoch that is remembered",
                self.service
            );
            return Ok(ActReply {
                text,
                detail_json: "null".to_owned(),
            });
        };
        let text = last.text(self.service.as_str());
        Ok(ActReply {
            text,
            detail_json: json(&Detail {
                last,
                earlier: changes,
            })?,
        })
    }
}

fn json(value: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(value).map_err(|error| Refusal::internal(error.to_string()))
}

fn refused(why: SwitchoverRefused) -> Refusal {
    let text = why.to_string();
    match why {
        SwitchoverRefused::NotAMember { .. } => Refusal::bad_request(text),
        SwitchoverRefused::NotServing { .. }
        | SwitchoverRefused::UnderWay
        | SwitchoverRefused::AlreadyHolder { .. }
        | SwitchoverRefused::NotReady { .. }
        | SwitchoverRefused::NobodyReady
        | SwitchoverRefused::OutOfTime { .. }
        | SwitchoverRefused::LeaderChanged => Refusal::not_now(text),
    }
}

#[async_trait]
impl AdminServer for SqlServer {
    async fn describe(&self, _: DescribeRequest) -> Result<DescribeReply, Refusal> {
        let action = |verb: &str, about: &str| Action {
            verb: verb.into(),
            about: about.into(),
        };
        Ok(DescribeReply {
            kind: "sql".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            actions: vec![
                action(
                    "switchover",
                    "moves the primary role to another member (to=TASK, or to whoever is ready)",
                ),
                action(
                    "explain",
                    "tells what the last change of epoch was, and why",
                ),
            ],
        })
    }

    async fn turnup(&self, request: TurnupRequest) -> Result<TurnupReply, Refusal> {
        self.up(&request.spec_json, request.term).await?;
        Ok(TurnupReply {})
    }

    async fn turndown(&self, request: TurndownRequest) -> Result<TurndownReply, Refusal> {
        self.down(request.term).await?;
        Ok(TurndownReply {})
    }

    async fn checks(&self, _: ChecksRequest) -> Result<ChecksReply, Refusal> {
        // Those of the cell file are all there are.
        Ok(ChecksReply {
            check_json: Vec::new(),
        })
    }

    async fn prepare_eviction(
        &self,
        request: PrepareEvictionRequest,
    ) -> Result<PrepareEvictionReply, Refusal> {
        let looks = self.view.borrow().looks.clone();
        if looks.state == ServiceState::Starting {
            // Whose role it will be is not decided.
            return Err(Refusal::not_now(format!(
                "{} waits for {}",
                self.service, looks.waits_for
            )));
        }
        if looks.cluster.primary.as_ref() == Some(&request.task) {
            self.switch_over(None).await?;
        }
        Ok(PrepareEvictionReply {})
    }

    async fn rollout(&self, _: RolloutRequest) -> Result<RolloutReply, Refusal> {
        Err(Refusal::not_now(format!(
            "{} cannot be rolled out member by member yet: turn it down and up again",
            self.service
        )))
    }

    async fn inspect(&self, _: InspectRequest) -> Result<InspectReply, Refusal> {
        let looks = self.view.borrow().looks.clone();
        Ok(InspectReply {
            state: looks.state as i32,
            waits_for: looks.waits_for,
            detail_json: json(&looks.cluster)?,
        })
    }

    async fn act(&self, request: ActRequest) -> Result<ActReply, Refusal> {
        match request.verb.as_str() {
            "switchover" => {
                let to = request.arguments.get("to").filter(|to| !to.is_empty());
                let to = to
                    .map(MemberId::new)
                    .transpose()
                    .map_err(|error| Refusal::bad_request(error.to_string()))?;
                if request.arguments.contains_key(PLAN) {
                    return self.plan_switchover(to);
                }
                let already = to.as_ref().map(MemberId::as_str) == self.primary().as_deref();
                match request.arguments.get("from") {
                    // Planned, and done already: a journal repeats what it did not see the end of.
                    Some(from) if already && to.is_some() => Ok(ActReply {
                        text: format!(
                            "the primary role of {} went from {from} to {}",
                            self.service,
                            self.primary().unwrap_or_default()
                        ),
                        detail_json: String::new(),
                    }),
                    Some(_) | None => self.switch_over(to).await,
                }
            }
            "explain" => self.explain().await,
            other => {
                let why = format!(
                    "a SQL cluster has no action '{other}': there are switchover and explain"
                );
                Err(Refusal::bad_request(why))
            }
        }
    }
}
