//! Carries a decider's effects out, each at once and none waited for.
//!
//! An instance of leading is numbered; what its calls bring back carries that number, so that nothing of an earlier
//! decider is ever fed into a later one. When it is dropped its calls are given up, which undoes nothing: what they asked
//! for may still happen, and the next decider begins by looking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use homeostat_api::Refusal;
use homeostat_api::v1::{EndpointTarget, LocalCallRequest, OnChange, SetEndpointRequest};
use homeostat_decider::{
    Config, Decider, Effect, Input, LeaseGrant, MemberId, Note, Now, Order, OrderReply,
    SwitchoverRefused, View,
};
use homeostat_model::{Epoch, RecordVersion, ServiceName, Term};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::own::Own;
use super::record::RecordCell;
use super::run::Heard;
use crate::keeper::KeeperCall;

/// How long clients are held while there is no primary.
const HOLD: Duration = Duration::from_secs(10);
/// A grant that takes longer is of little use.
const GRANT: Duration = Duration::from_secs(2);
/// Before an endpoint that could not be told is told again.
const AGAIN: Duration = Duration::from_millis(100);

/// How a switchover ended, and who held the role before.
#[derive(Debug)]
pub(super) struct Switched {
    pub from: Option<MemberId>,
    pub took: Duration,
    pub result: Result<MemberId, SwitchoverRefused>,
}

struct Asked {
    from: Option<MemberId>,
    since: Instant,
    answer: oneshot::Sender<Switched>,
}

pub(super) struct Lead {
    pub instance: u64,
    decider: Decider,
    began: Instant,
    own: Own,
    record: Arc<RecordCell>,
    heard: mpsc::Sender<Heard>,
    calls: JoinSet<()>,
    /// The newest target, for calls that retry: an older one is not worth telling any more.
    newest: watch::Sender<(Epoch, RecordVersion)>,
    switchovers: BTreeMap<u64, Asked>,
}

impl Lead {
    pub(super) fn begin(
        instance: u64,
        config: Config,
        term: Term,
        own: Own,
        began: Instant,
        heard: mpsc::Sender<Heard>,
    ) -> Self {
        Self {
            instance,
            decider: Decider::new(config, term),
            began,
            record: Arc::new(RecordCell::new(own.clone())),
            own,
            heard,
            calls: JoinSet::new(),
            newest: watch::Sender::default(),
            switchovers: BTreeMap::new(),
        }
    }

    pub(super) fn view(&self) -> View {
        self.decider.view()
    }

    /// When the decider wants to look again though nothing happened.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.decider.wake_at().map(|at| self.began + at.0)
    }

    pub(super) fn switch_over(
        &mut self,
        to: Option<MemberId>,
        answer: oneshot::Sender<Switched>,
    ) -> Vec<Note> {
        let request = self
            .switchovers
            .keys()
            .next_back()
            .map_or(1, |last| last + 1);
        let from = self.decider.view().open;
        self.switchovers.insert(
            request,
            Asked {
                from,
                since: Instant::now(),
                answer,
            },
        );
        self.feed(Input::Switchover { request, to })
    }

    /// Gives the decider an input and sets everything it wants going. What it tells people is returned.
    pub(super) fn feed(&mut self, input: Input) -> Vec<Note> {
        while self.calls.try_join_next().is_some() {}
        let mut notes = Vec::new();
        for effect in self.decider.handle(Now(self.began.elapsed()), input) {
            match effect {
                Effect::ReadRecord => self.read_record(),
                Effect::Cas {
                    attempt,
                    expected,
                    new,
                } => {
                    let record = Arc::clone(&self.record);
                    self.spawn(async move {
                        let outcome = record.replace(expected.as_ref(), new).await;
                        Input::CasDone { attempt, outcome }
                    });
                }
                Effect::Order {
                    member,
                    order,
                    timeout,
                } => {
                    let own = self.own.clone();
                    self.spawn(async move { send(&own, member, order, timeout).await });
                }
                Effect::Endpoint {
                    epoch,
                    version,
                    target,
                } => self.tell_endpoint(epoch, version, target.as_ref()),
                Effect::GrantLease { member, grant } => self.grant(&member, grant),
                Effect::Note(note) => notes.push(note),
                Effect::SwitchoverDone { request, result } => {
                    if let Some(Asked {
                        from,
                        since,
                        answer,
                    }) = self.switchovers.remove(&request)
                    {
                        // Whoever asked may have stopped waiting.
                        drop(answer.send(Switched {
                            from,
                            took: since.elapsed(),
                            result,
                        }));
                    }
                }
            }
        }
        notes
    }

    fn spawn(&mut self, call: impl Future<Output = Input> + Send + 'static) {
        let (heard, instance) = (self.heard.clone(), self.instance);
        self.calls.spawn(async move {
            let input = call.await;
            // Closed only when the whole server is gone.
            drop(
                heard
                    .send(Heard::Input {
                        instance,
                        input: Box::new(input),
                    })
                    .await,
            );
        });
    }

    /// Said once: one that is lost is asked for again.
    fn grant(&mut self, member: &MemberId, grant: LeaseGrant) {
        let call = KeeperCall::Grant { grant };
        let Ok(request) = request(&self.own, member, &call, GRANT) else {
            return;
        };
        let own = self.own.clone();
        self.calls.spawn(async move {
            drop(timeout(GRANT, own.cell.local_call(request)).await);
        });
    }

    fn read_record(&mut self) {
        let (record, heard) = (Arc::clone(&self.record), self.heard.clone());
        self.spawn(async move {
            let trouble = |refusal: Refusal| drop(heard.try_send(Heard::Trouble(refusal.message)));
            Input::RecordRead(record.read(trouble).await)
        });
    }

    fn tell_endpoint(&mut self, epoch: Epoch, version: RecordVersion, target: Option<&MemberId>) {
        let view = self.decider.view();
        let report = target
            .and_then(|member| view.members.get(member))
            .and_then(|member| member.report.as_ref());
        let targets = report
            .map(|report| format!("{}:{}", report.host, report.port))
            .into_iter()
            .collect();
        let request = endpoint(&self.own.service, epoch, Told::ByRecord(version), targets);
        self.newest.send_replace((epoch, version));
        let (own, newest) = (self.own.clone(), self.newest.subscribe());
        // Beside everything else: the servers do not wait for the endpoints, nor these for one another.
        self.calls.spawn(async move {
            while *newest.borrow() == (epoch, version) {
                match own.cell.set_endpoint(request.clone()).await {
                    Ok(_) => return,
                    Err(_) => sleep(AGAIN).await,
                }
            }
        });
    }
}

/// Why an endpoint is told something.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told {
    ByRecord(RecordVersion),
    /// The service is turned down while this record stands. Above all that was told by it, and below whatever a later
    /// decider tells: its first act raises the record's version.
    TurnedDown(RecordVersion),
}

pub(super) fn endpoint(
    service: &ServiceName,
    epoch: Epoch,
    told: Told,
    targets: Vec<String>,
) -> SetEndpointRequest {
    let version = match told {
        Told::ByRecord(version) => version.0.saturating_mul(2),
        Told::TurnedDown(version) => version.0.saturating_mul(2).saturating_add(1),
    };
    SetEndpointRequest {
        service: service.to_string(),
        target: Some(EndpointTarget {
            service: service.to_string(),
            epoch: epoch.0,
            version,
            targets,
            hold_ms: u64::try_from(HOLD.as_millis()).unwrap_or(u64::MAX),
            on_change: OnChange::Close as i32,
            // The cell knows.
            port: 0,
        }),
    }
}

async fn send(own: &Own, member: MemberId, order: Order, patience: Duration) -> Input {
    let sequence = order.header.sequence;
    match ask(own, &member, order, patience).await {
        Some(reply) if reply.sequence == sequence => Input::Reply(reply),
        // Refused on its way, unreadable, or silence: it may be carried out all the same.
        Some(_) | None => Input::OrderLost { member, sequence },
    }
}

async fn ask(own: &Own, member: &MemberId, order: Order, patience: Duration) -> Option<OrderReply> {
    let request = request(own, member, &KeeperCall::Order { order }, patience).ok()?;
    let reply = timeout(patience, own.cell.local_call(request))
        .await
        .ok()?
        .ok()?;
    serde_json::from_slice(&reply.body).ok()
}

fn request(
    own: &Own,
    member: &MemberId,
    call: &KeeperCall,
    patience: Duration,
) -> Result<LocalCallRequest, serde_json::Error> {
    Ok(LocalCallRequest {
        service: own.service.to_string(),
        task: member.to_string(),
        body: serde_json::to_vec(call)?,
        deadline_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_turndown_stands_between_two_deciders() {
        let service = ServiceName::new("db").unwrap();
        let version = |told| {
            endpoint(&service, Epoch(3), told, Vec::new())
                .target
                .unwrap()
                .version
        };
        let down = version(Told::TurnedDown(RecordVersion(7)));
        assert!(version(Told::ByRecord(RecordVersion(7))) < down);
        assert!(down < version(Told::ByRecord(RecordVersion(8))));
    }
}
