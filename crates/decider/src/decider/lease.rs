//! Leases for the holder: granted by a look at the store that was begun after the request came in and shows the holder
//! serving. A leader that was replaced meanwhile finds another record there, so nobody has to tell it. Nothing is granted
//! while an epoch is being ended or begun.

use super::Decider;
use crate::rules::Mutation;
use crate::{Effect, LeaseGrant, LeaseRequest, Phase, Record};

impl Decider {
    pub(super) fn lease_asked(&mut self, request: LeaseRequest) {
        let look = self.looks_begun + 1;
        if let Some(known) = self.members.get_mut(&request.member) {
            known.lease = Some((request, look));
        }
    }

    pub(super) fn grant_leases(&mut self, record: &Record) {
        let mut wanted = false;
        for (member, known) in &mut self.members {
            let Some((request, look)) = &known.lease else {
                continue;
            };
            let serves = record.phase == Phase::Serving
                && record.holder == *member
                && record.epoch == request.epoch;
            let looked = self.look_done >= *look || self.rules.broken(Mutation::LeaseWithoutRead);
            if serves && looked {
                self.out.push(Effect::GrantLease {
                    member: member.clone(),
                    grant: LeaseGrant {
                        incarnation: request.incarnation,
                        epoch: request.epoch,
                        nonce: request.nonce,
                    },
                });
            }
            if looked || !serves {
                known.lease = None;
            } else {
                wanted = true;
            }
        }
        if wanted {
            self.look();
        }
    }
}
