//! Happenings, records and inputs for the trace and its hash.

use homeostat_model::TaskName;

use super::Happening;
use crate::{Input, Record};

pub(super) fn kind(happening: &Happening) -> u64 {
    match happening {
        Happening::ReadArrives { .. } => 1,
        Happening::ReadDone { .. } => 2,
        Happening::CasArrives { .. } => 3,
        Happening::CasDone { .. } => 4,
        Happening::OrderArrives { .. } => 5,
        Happening::OrderTimesOut { .. } => 6,
        Happening::ReplyArrives { .. } => 7,
        Happening::ReportArrives { .. } => 8,
        Happening::LinkBreaks { .. } => 9,
        Happening::LinkHeals { .. } => 10,
        Happening::WakeUp { .. } => 11,
        Happening::Execute { .. } => 12,
        Happening::Connect { .. } => 13,
        Happening::Data { .. } => 14,
        Happening::ConnectionLost { .. } => 15,
        Happening::Ack { .. } => 16,
        Happening::Apply { .. } => 17,
        Happening::EngineCommits { .. } => 18,
        Happening::Write => 19,
        Happening::Report => 20,
        Happening::Fault => 21,
        Happening::KeeperBack { .. } => 22,
        Happening::ControllerStarts => 23,
        Happening::ControllerDies { .. } => 24,
        Happening::Heartbeat { .. } => 25,
        Happening::FaultsEnd => 26,
        Happening::LastLook => 27,
        Happening::LeaseArrives { .. } => 28,
        Happening::GrantArrives { .. } => 29,
        Happening::Pulse { .. } => 30,
        Happening::Deadline { .. } => 31,
        Happening::Wakes { .. } => 32,
        Happening::CutHeals { .. } => 33,
        Happening::Read => 34,
        Happening::CutBegins { .. } => 35,
        Happening::CopyEnds { .. } => 36,
    }
}

pub(super) fn brief(record: &Record) -> String {
    let ackers: Vec<&str> = record.ackers.iter().map(TaskName::as_str).collect();
    let unclosed: Vec<u64> = record.unclosed.iter().map(|of| of.epoch.0).collect();
    format!(
        "({}, {}) term {} {:?} {} A={} leaving={:?} unclosed={unclosed:?}",
        record.epoch,
        record.version,
        record.term,
        record.phase,
        record.holder,
        ackers.join("+"),
        record.leaving.as_ref().map(TaskName::as_str)
    )
}

pub(super) fn short(input: &Input) -> String {
    match input {
        Input::Report(report) => format!(
            "report of {}: {} held {:?} {:?}",
            report.member,
            report.record.as_ref().map_or("no record".to_owned(), brief),
            report.held,
            report.server
        ),
        Input::RecordRead(Some(record)) => format!("read {}", brief(record)),
        Input::Reply(reply) => format!("reply of {}: {:?}", reply.member, reply.outcome),
        Input::RecordRead(None)
        | Input::CasDone { .. }
        | Input::Alive { .. }
        | Input::KeeperGone { .. }
        | Input::LeaseAsked(_)
        | Input::OrderLost { .. }
        | Input::Switchover { .. }
        | Input::Tick => format!("{input:?}"),
    }
}
