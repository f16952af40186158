//! Orders and their outcomes as people read them in notes and waits.

use crate::{LogEnd, OrderOutcome, Verb};

/// How an order is called in notes and waits.
pub(super) fn name_of(verb: &Verb) -> String {
    match verb {
        Verb::Learn => "learn".to_owned(),
        Verb::Start { recovery } => format!("start ({recovery:?})"),
        Verb::Kill => "kill".to_owned(),
        Verb::StopReceiving => "stop-receiving".to_owned(),
        Verb::Drain => "drain".to_owned(),
        Verb::Repoint { source, acker } => format!("repoint to {} ({acker:?})", source.member),
        Verb::Receive => "receive".to_owned(),
        Verb::TakeOver => "take-over".to_owned(),
        Verb::Admit { member } => format!("admit {member}"),
        Verb::Expel { member } => format!("expel {member}"),
        Verb::Barrier => "barrier".to_owned(),
        Verb::Open => "open".to_owned(),
        Verb::Demote { .. } => "demote".to_owned(),
        Verb::Reinstate => "reinstate".to_owned(),
        Verb::Lend { to, .. } => format!("lend a copy to {to}"),
        Verb::Rebuild { source, .. } => format!("rebuild from {source}"),
    }
}

pub(super) fn summary(outcome: &OrderOutcome) -> String {
    let end = |end: &LogEnd| match end.last {
        Some(gtid) => format!("{gtid} (epoch {})", end.barrier),
        None => "empty".to_owned(),
    };
    match outcome {
        OrderOutcome::Done => "done".to_owned(),
        OrderOutcome::Started { server } => format!("started as pid {}", server.pid),
        OrderOutcome::Exited { .. } => "exited".to_owned(),
        OrderOutcome::Stopped {
            received: Some(received),
            drained: None,
        } => format!("stopped at {}", end(received)),
        OrderOutcome::Stopped {
            received: Some(received),
            drained: Some(_),
        } => format!("stopped at {}, all of it applied", end(received)),
        OrderOutcome::Stopped { received: None, .. } => {
            "stopped; what it received is not known before salvage".to_owned()
        }
        OrderOutcome::Drained { applied } => format!("applied to {}", end(applied)),
        OrderOutcome::BarrierDone { at, .. } => format!("acknowledged at {at}"),
        OrderOutcome::Demoted { position } => format!("read-only at {}", end(position)),
        OrderOutcome::Lent { offer } => format!("offered at {}:{}", offer.host, offer.port),
        OrderOutcome::Refused(refusal) => format!("refused: {refusal:?}"),
        OrderOutcome::Failed { why } => format!("failed: {why}"),
    }
}
