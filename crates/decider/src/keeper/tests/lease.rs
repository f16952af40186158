//! How long a server stays open.

use super::*;
use crate::{BootTime, LeaseGrant};

fn at(ms: u64) -> BootTime {
    BootTime(Duration::from_millis(ms))
}

/// The keeper of "a" as holder of epoch 4 with leases of 5 s, opened at 1.0 s after a barrier begun at `barrier`.
fn opened(barrier: u64) -> (KeeperCore, Option<Refusal>) {
    let serving = record(4, 5, Phase::Serving, "a");
    let mut keeper = keeper(serving.clone()).with_lease(Duration::from_secs(5));
    assert_eq!(keeper.deadline(), None, "closed");
    keeper.barrier_acknowledged(Epoch(4), at(barrier));
    keeper.at(at(6_000));
    let server = up(ServerFacts {
        barrier: Some(Epoch(4)),
        ..facts(Receiver::None)
    });
    let refused = refusal(&mut keeper, &order(1, &serving, Verb::Open), &server);
    if refused.is_none() {
        keeper.completed(OrderOutcome::Done);
    }
    (keeper, refused)
}

#[test]
fn a_server_stays_open_for_l_after_the_later_of_the_two_renewals_was_begun() {
    let (mut keeper, refused) = opened(2_000);
    assert_eq!(refused, None);
    assert_eq!(keeper.deadline(), Some(at(7_000)));
    let request = keeper.renewal(at(6_100)).unwrap();
    let grant = LeaseGrant {
        incarnation: OWN,
        epoch: Epoch(4),
        nonce: request.nonce,
    };
    keeper.granted(&grant, at(6_900));
    assert_eq!(
        keeper.deadline(),
        Some(at(11_100)),
        "from when it was sent, not from when it was granted"
    );
    keeper.barrier_acknowledged(Epoch(4), at(6_050));
    assert_eq!(keeper.deadline(), Some(at(11_100)), "the later one");
    let other = LeaseGrant {
        incarnation: KeeperIncarnation(3),
        ..grant
    };
    keeper.granted(&other, at(7_000));
    keeper.barrier_acknowledged(Epoch(3), at(7_000));
    assert_eq!(
        keeper.deadline(),
        Some(at(11_100)),
        "of another process or epoch"
    );
    keeper.server_ended();
    assert_eq!(keeper.deadline(), None);
}

#[test]
fn a_server_is_not_opened_into_a_lease_that_has_ended() {
    let (keeper, refused) = opened(900);
    assert!(matches!(refused, Some(Refusal::WrongServerState { .. })));
    assert_eq!(keeper.deadline(), None);
}

#[test]
fn a_keeper_renews_only_as_holder() {
    let barrier = up(ServerFacts {
        barrier: Some(Epoch(4)),
        ..facts(Receiver::None)
    });
    let renews = |record: Record| {
        let mut keeper = keeper(record).with_lease(Duration::from_secs(5));
        (
            keeper.renewal(at(1)).is_some(),
            keeper.commits_barriers(&barrier),
        )
    };
    assert_eq!(renews(record(4, 5, Phase::Serving, "a")), (true, true));
    assert_eq!(renews(record(4, 5, Phase::Promoting, "a")), (true, true));
    assert_eq!(renews(record(5, 6, Phase::Revoking, "a")), (false, false));
    assert_eq!(renews(record(4, 5, Phase::Serving, "b")), (false, false));
}
