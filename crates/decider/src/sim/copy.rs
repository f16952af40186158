//! Copies between members: a data folder is what the source had applied at some moment while both worked.

use super::keeper::Keeper;
use super::server::{Disk, Event};
use super::{Happening, Sim};
use crate::{CopyOffer, CopyToken, MemberId, OrderOutcome, RebuildState, Verb};

/// What a keeper has to do with copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Offered or being sent: to whom, and which.
    pub(super) lends: Option<(usize, u64)>,
    pub(super) rebuild: Option<RebuildState>,
    /// The one it takes.
    taking: Option<u64>,
}

impl Sim {
    pub(super) fn lends_to(&self, keeper: &Keeper) -> Option<MemberId> {
        let (to, _) = keeper.copies.lends?;
        self.names.get(to).cloned()
    }

    pub(super) fn is_copied(&self, member: usize) -> bool {
        let keeper = self.members[member].keeper.as_ref();
        keeper.is_some_and(|keeper| keeper.copies.taking.is_some())
    }

    /// A member that changes its role lends no more; one that is killed or started is no copy in the making any more.
    pub(super) fn copies_give_way(&mut self, member: usize, verb: &Verb) {
        let Some(keeper) = &mut self.members[member].keeper else {
            return;
        };
        let copies = &mut keeper.copies;
        match verb {
            Verb::StopReceiving | Verb::Repoint { .. } | Verb::TakeOver | Verb::Demote { .. } => {
                copies.lends = None
            }
            Verb::Kill => {
                copies.lends = None;
                if copies.taking.take().is_some()
                    && let Some(state) = &copies.rebuild
                {
                    let source = state.source().clone();
                    let why = "it was ended by an order".to_owned();
                    copies.rebuild = Some(RebuildState::Failed { source, why });
                }
            }
            Verb::Start { .. } if copies.taking.is_none() => copies.rebuild = None,
            Verb::Start { .. }
            | Verb::Learn
            | Verb::Drain
            | Verb::Receive
            | Verb::Admit { .. }
            | Verb::Expel { .. }
            | Verb::Barrier
            | Verb::Open
            | Verb::Reinstate
            | Verb::Lend { .. }
            | Verb::Rebuild { .. } => {}
        }
    }

    pub(super) fn lend(&mut self, member: usize, to: &MemberId) -> OrderOutcome {
        let copy = self.id();
        let to = self.names.iter().position(|name| name == to);
        if let (Some(to), Some(keeper)) = (to, &mut self.members[member].keeper) {
            keeper.copies.lends = Some((to, copy));
        }
        OrderOutcome::Lent {
            offer: CopyOffer {
                host: "127.0.0.1".to_owned(),
                port: 1,
                token: CopyToken::new(copy.to_string()),
            },
        }
    }

    pub(super) fn rebuild(
        &mut self,
        member: usize,
        source: &MemberId,
        offer: &CopyOffer,
    ) -> OrderOutcome {
        let copy = offer.token.reveal().parse().unwrap_or(0);
        let took = self.world.between(2_000, 120_000);
        let Some(keeper) = &mut self.members[member].keeper else {
            return OrderOutcome::Done;
        };
        keeper.copies.taking = Some(copy);
        keeper.copies.rebuild = Some(RebuildState::Copying {
            source: source.clone(),
            bytes: 0,
            of: None,
            bytes_per_second: 0,
        });
        let keeper = keeper.number;
        self.after(
            took,
            Happening::CopyEnds {
                member,
                keeper,
                copy,
            },
        );
        OrderOutcome::Done
    }

    pub(super) fn copy_ends(&mut self, member: usize, number: u64, copy: u64) {
        let fails = !self.faults_over && self.world.chance(100);
        let Some(keeper) = &mut self.members[member].keeper else {
            return;
        };
        let ours = keeper.number == number && keeper.copies.taking == Some(copy);
        let Some(state) = keeper.copies.rebuild.clone().filter(|_| ours) else {
            return;
        };
        keeper.copies.taking = None;
        let source = state.source().clone();
        let copied = (!fails).then(|| self.copy_of(member, copy)).flatten();
        let state = match copied {
            None => RebuildState::Failed {
                source,
                why: "the copy broke off".to_owned(),
            },
            Some(disk) => {
                self.say(|| format!("  {member} is a copy of {source} now"));
                self.tally.count("rebuilt");
                let old = std::mem::replace(&mut self.members[member].disk, disk);
                let new = &self.members[member].disk;
                let gone: Vec<Event> = old
                    .binlog
                    .into_iter()
                    .chain(old.relay)
                    .filter(|event| !new.has(event.id))
                    .collect();
                self.removed(&gone);
                RebuildState::Done { source }
            }
        };
        if let Some(keeper) = &mut self.members[member].keeper {
            keeper.copies.rebuild = Some(state);
        }
        self.report(member);
    }

    /// What the source that lends this copy has applied, if it still lends it.
    fn copy_of(&mut self, member: usize, copy: u64) -> Option<Disk> {
        let lends = |keeper: &Keeper| keeper.copies.lends == Some((member, copy));
        let source = self
            .members
            .iter_mut()
            .find(|other| other.keeper.as_ref().is_some_and(lends))?;
        if let Some(keeper) = &mut source.keeper {
            keeper.copies.lends = None;
        }
        source.process.as_ref()?;
        let binlog =
            source.disk.binlog[..source.disk.engine.min(source.disk.binlog.len())].to_vec();
        Some(Disk {
            initialised: true,
            engine: binlog.len(),
            binlog,
            ..Disk::default()
        })
    }
}
