//! What sleeps: a server (SIGSTOP), a keeper (the same), or a whole machine, whose clock stands still as well. What comes
//! for a sleeper waits, and is worked off when it wakes.

use super::{Happening, Sim};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sleep {
    Server,
    Keeper,
    Machine,
}

impl Sim {
    pub(super) fn keeper_awake(&self, member: usize) -> bool {
        match self.members[member].sleeping {
            None | Some(Sleep::Server) => true,
            Some(Sleep::Keeper | Sleep::Machine) => false,
        }
    }

    /// Does its server do anything?
    pub(super) fn answers(&self, member: usize) -> bool {
        match self.members[member].sleeping {
            None | Some(Sleep::Keeper) => self.members[member].process.is_some(),
            Some(Sleep::Server | Sleep::Machine) => false,
        }
    }

    /// Who must wake before this can happen.
    pub(super) fn sleeper(&self, happening: &Happening) -> Option<usize> {
        let keeper = |member: &usize| (!self.keeper_awake(*member)).then_some(*member);
        let server = |member: usize| match self.members[member].sleeping {
            Some(Sleep::Server | Sleep::Machine) => Some(member),
            Some(Sleep::Keeper) | None => None,
        };
        let ends = |connection: &u64| self.connections.get(connection);
        match happening {
            Happening::OrderArrives { member, .. }
            | Happening::Execute { member, .. }
            | Happening::GrantArrives { member, .. }
            | Happening::Pulse { member }
            | Happening::CopyEnds { member, .. }
            | Happening::Deadline { member, .. } => keeper(member),
            // Only a machine that sleeps holds it back.
            Happening::KeeperBack { member } => {
                (self.members[*member].sleeping == Some(Sleep::Machine)).then_some(*member)
            }
            Happening::Connect { member, .. }
            | Happening::Apply { member, .. }
            | Happening::EngineCommits { member, .. } => server(*member),
            Happening::Data { connection, .. } | Happening::ConnectionLost { connection } => {
                server(ends(connection)?.replica)
            }
            Happening::Ack { connection, .. } => server(ends(connection)?.source),
            Happening::ReadArrives { .. }
            | Happening::ReadDone { .. }
            | Happening::CasArrives { .. }
            | Happening::CasDone { .. }
            | Happening::OrderTimesOut { .. }
            | Happening::ReplyArrives { .. }
            | Happening::ReportArrives { .. }
            | Happening::LeaseArrives { .. }
            | Happening::LinkBreaks { .. }
            | Happening::LinkHeals { .. }
            | Happening::WakeUp { .. }
            | Happening::Write
            | Happening::Read
            | Happening::Report
            | Happening::Fault
            | Happening::Heartbeat { .. }
            | Happening::Wakes { .. }
            | Happening::CutBegins { .. }
            | Happening::CutHeals { .. }
            | Happening::ControllerStarts
            | Happening::ControllerDies { .. }
            | Happening::FaultsEnd
            | Happening::LastLook => None,
        }
    }

    pub(super) fn falls_asleep(&mut self, member: usize, who: Sleep, micros: u64) {
        let own = &mut self.members[member];
        if own.sleeping.is_some() {
            return;
        }
        match who {
            Sleep::Server if own.process.is_none() => return,
            Sleep::Machine => own.clock.stop(self.now),
            Sleep::Server | Sleep::Keeper => {}
        }
        own.sleeping = Some(who);
        self.checker.falls_asleep(member, who, self.now);
        self.say(|| format!("FAULT: {who:?} of {member} stops for {micros} us"));
        self.after(micros, Happening::Wakes { member, who });
    }

    pub(super) fn wakes(&mut self, member: usize, who: Sleep) {
        let own = &mut self.members[member];
        if own.sleeping != Some(who) {
            return;
        }
        own.sleeping = None;
        own.clock.go_on(self.now);
        if let Some(process) = &mut own.process {
            process.unanswered = None;
        }
        let waiting = std::mem::take(&mut own.asleep);
        self.checker.wakes(member, self.now);
        self.say(|| format!("{who:?} of {member} goes on"));
        for happening in waiting {
            self.at(self.now, happening);
        }
    }

    /// A new server, keeper or boot: nobody sleeps there any more.
    pub(super) fn wakes_anew(&mut self, member: usize) {
        if let Some(who) = self.members[member].sleeping {
            self.wakes(member, who);
        }
    }
}
