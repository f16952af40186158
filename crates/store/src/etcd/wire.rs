//! Our words to etcd's messages and back.

use std::time::Duration;

use homeostat_model::Revision;
use tonic::transport::Channel;

use crate::{Compare, Event, Expect, Item, Keys, LeaseId, Op, Outcome, Txn};

/// etcd's `etcdserverpb`, the part we use.
pub(super) mod pb {
    #![allow(clippy::all)]
    tonic::include_proto!("etcdserverpb");
}

/// etcd's `mvccpb`; the generated code looks for it beside `etcdserverpb`.
pub(super) mod mvccpb {
    #![allow(clippy::all)]
    tonic::include_proto!("mvccpb");
}

use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::request_op::Request;

/// Largest answer taken. A range has no pages: a cell's store is a few MiB, and this says when that has stopped to hold.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

pub(super) fn kv_client(channel: Channel) -> pb::kv_client::KvClient<Channel> {
    pb::kv_client::KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES)
}

pub(super) fn lease_client(channel: Channel) -> pb::lease_client::LeaseClient<Channel> {
    pb::lease_client::LeaseClient::new(channel)
}

pub(super) fn watch_client(channel: Channel) -> pb::watch_client::WatchClient<Channel> {
    pb::watch_client::WatchClient::new(channel).max_decoding_message_size(ANSWER_BYTES)
}

pub(super) fn range_request(keys: &Keys, at: Option<Revision>) -> pb::RangeRequest {
    let (key, range_end) = bounds(keys);
    // etcd takes revision 0 for "now"; ours is the empty beginning, which was compacted or is in no future.
    pb::RangeRequest {
        key,
        range_end,
        revision: at.map_or(0, |at| signed(at).max(1)),
        ..Default::default()
    }
}

pub(super) fn txn_request(txn: &Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.then.iter().map(request_op).collect(),
        failure: txn.otherwise.iter().map(request_op).collect(),
    }
}

pub(super) fn grant_request(seconds: u64) -> pb::LeaseGrantRequest {
    // Far below i64::MAX: the longest lease is a limit.
    pb::LeaseGrantRequest {
        ttl: seconds.cast_signed(),
        id: 0,
    }
}

pub(super) fn compaction_request(revision: Revision) -> pb::CompactionRequest {
    pb::CompactionRequest {
        revision: signed(revision),
        physical: false,
    }
}

/// Asks from one revision before `next`; see the documentation of this folder.
pub(super) fn watch_request(keys: &Keys, next: Revision) -> pb::WatchRequest {
    let (key, range_end) = bounds(keys);
    let create = pb::WatchCreateRequest {
        key,
        range_end,
        start_revision: (signed(next) - 1).max(1),
        progress_notify: true,
    };
    pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    }
}

pub(super) fn outcome(succeeded: bool) -> Outcome {
    if succeeded {
        Outcome::Committed
    } else {
        Outcome::Refused
    }
}

pub(super) fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

/// etcd's lease ids are positive numbers of 63 bits; the bits are kept whatever they are.
pub(super) fn lease_id(lease: LeaseId) -> i64 {
    lease.0.cast_signed()
}

/// The leases that a transaction names.
pub(super) fn leases(txn: &Txn) -> Vec<LeaseId> {
    txn.then
        .iter()
        .chain(&txn.otherwise)
        .filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { keys: _ } => None,
        })
        .collect()
}

/// A key and value as etcd tells it; `None` when it is nothing a store of ours can contain.
pub(super) fn item(kv: mvccpb::KeyValue) -> Option<Item> {
    Some(Item {
        key: String::from_utf8(kv.key).ok()?,
        value: kv.value,
        create_revision: revision(kv.create_revision)?,
        mod_revision: revision(kv.mod_revision)?,
        lease: (kv.lease != 0).then_some(LeaseId(kv.lease.cast_unsigned())),
    })
}

/// An event with its revision.
pub(super) fn event(event: mvccpb::Event) -> Option<(Revision, Event)> {
    let kind = event.r#type();
    let item = item(event.kv?)?;
    let revision = item.mod_revision;
    match kind {
        mvccpb::event::EventType::Put => Some((revision, Event::Put(item))),
        mvccpb::event::EventType::Delete => Some((revision, Event::Delete { key: item.key })),
    }
}

pub(super) fn revision(revision: i64) -> Option<Revision> {
    u64::try_from(revision).ok().map(Revision)
}

/// Revisions were checked to fit when they came in.
fn signed(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// Key and end of range: no end for one key, the next text of the same length for a prefix, everything for none.
fn bounds(keys: &Keys) -> (Vec<u8>, Vec<u8>) {
    match keys {
        Keys::One(key) => (key.clone().into_bytes(), Vec::new()),
        Keys::Prefix(prefix) => {
            let mut end = prefix.clone().into_bytes();
            match end.last_mut() {
                // No byte of UTF-8 is 0xff.
                Some(last) => *last += 1,
                None => return (vec![0], vec![0]),
            }
            (prefix.clone().into_bytes(), end)
        }
    }
}

fn compare(compare: &Compare) -> pb::Compare {
    let (result, revision) = match compare.expect {
        Expect::Absent => (CompareResult::Equal, 0),
        Expect::Present => (CompareResult::Greater, 0),
        Expect::ModRevision(revision) => (CompareResult::Equal, signed(revision)),
    };
    pb::Compare {
        result: result.into(),
        target: CompareTarget::Mod.into(),
        key: compare.key.clone().into_bytes(),
        target_union: Some(TargetUnion::ModRevision(revision)),
    }
}

fn request_op(op: &Op) -> pb::RequestOp {
    let request = match op {
        Op::Put { key, value, lease } => Request::RequestPut(pb::PutRequest {
            key: key.clone().into_bytes(),
            value: value.clone(),
            lease: lease.map_or(0, lease_id),
        }),
        Op::Delete { keys } => {
            let (key, range_end) = bounds(keys);
            Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end })
        }
    };
    pb::RequestOp {
        request: Some(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range() {
        assert_eq!(
            bounds(&Keys::prefix("a/")),
            (b"a/".to_vec(), b"a0".to_vec())
        );
        assert_eq!(bounds(&Keys::prefix("")), (vec![0], vec![0]));
        assert_eq!(bounds(&Keys::one("k")), (b"k".to_vec(), vec![]));
    }
}
