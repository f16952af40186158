//! What the forwarder remembers: the highest record of each service. Pure; the file is in `disk`.

use homeostat_model::{Epoch, RecordVersion, ServiceName};
use serde::{Deserialize, Serialize};

use super::protocol::{MOST_SERVICES, OnChange, ServiceTarget, Verdict};

/// The newest format of `targets.json`.
pub(super) const FORMAT: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    format: u32,
    services: Vec<ServiceTarget>,
}

/// What a newer record asks of the connections that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    None,
    All,
    /// Those to targets that are not in the new record.
    Departed,
}

/// What became of a record that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub verdict: Verdict,
    pub cut: Cut,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            format: FORMAT,
            services: Vec::new(),
        }
    }

    pub(super) fn services(&self) -> &[ServiceTarget] {
        &self.services
    }

    /// Takes a record if it is higher than the one there is.
    pub(super) fn offer(&mut self, new: &ServiceTarget) -> Outcome {
        let refused = |verdict| Outcome {
            verdict,
            cut: Cut::None,
        };
        let position = self
            .services
            .iter()
            .position(|have| have.service == new.service);
        let Some(position) = position else {
            if self.services.len() >= MOST_SERVICES {
                let why = format!("{MOST_SERVICES} services are the most");
                return refused(Verdict::Conflict { why });
            }
            self.services.push(new.clone());
            return refused(Verdict::Newer);
        };
        let have = &mut self.services[position];
        let (old, order) = (rank(have), (new.epoch, new.version));
        if order < old {
            let (epoch, version) = old;
            return refused(Verdict::Older { epoch, version });
        }
        if order == old {
            return refused(if have == new {
                Verdict::Same
            } else {
                let why = "another record of this epoch and version holds".to_owned();
                Verdict::Conflict { why }
            });
        }
        let cut = match new.on_change {
            OnChange::Keep => Cut::None,
            OnChange::Close if new.epoch > have.epoch => Cut::All,
            OnChange::Close => Cut::Departed,
        };
        *have = new.clone();
        Outcome {
            verdict: Verdict::Newer,
            cut,
        }
    }

    /// Forgets a service, unless a higher record of it is known: then that one is returned.
    pub(super) fn remove(
        &mut self,
        service: &ServiceName,
        order: (Epoch, RecordVersion),
    ) -> Result<(), (Epoch, RecordVersion)> {
        let newer = self
            .services
            .iter()
            .find(|have| have.service == *service && rank(have) > order);
        if let Some(have) = newer {
            return Err(rank(have));
        }
        self.services.retain(|have| have.service != *service);
        Ok(())
    }
}

fn rank(record: &ServiceTarget) -> (Epoch, RecordVersion) {
    (record.epoch, record.version)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(epoch: u64, version: u64, ports: &[u16]) -> ServiceTarget {
        ServiceTarget {
            service: "shop-db".parse().unwrap(),
            listen: "127.0.0.1:1".parse().unwrap(),
            epoch: Epoch(epoch),
            version: RecordVersion(version),
            targets: ports.iter().map(|p| ([127, 0, 0, 1], *p).into()).collect(),
            on_change: OnChange::Close,
            hold_ms: 1000,
        }
    }

    #[test]
    fn the_highest_record_holds() {
        let mut table = Table::new();
        let mut offer = |epoch, version, port| {
            let outcome = table.offer(&record(epoch, version, &[port]));
            (outcome.verdict, outcome.cut)
        };
        assert_eq!(offer(2, 5, 1), (Verdict::Newer, Cut::None));
        assert_eq!(offer(2, 5, 1), (Verdict::Same, Cut::None));
        assert!(matches!(
            offer(2, 5, 9),
            (Verdict::Conflict { .. }, Cut::None)
        ));
        let older = Verdict::Older {
            epoch: Epoch(2),
            version: RecordVersion(5),
        };
        assert_eq!(offer(2, 4, 9), (older.clone(), Cut::None));
        assert_eq!(offer(1, 9, 9), (older, Cut::None));
        assert_eq!(offer(2, 6, 1), (Verdict::Newer, Cut::Departed));
        assert_eq!(offer(3, 0, 1), (Verdict::Newer, Cut::All));
        assert_eq!(table.services(), [record(3, 0, &[1])]);
    }

    #[test]
    fn only_a_record_as_high_removes() {
        let mut table = Table::new();
        table.offer(&record(2, 5, &[1]));
        let name = &record(0, 0, &[]).service;
        let known = (Epoch(2), RecordVersion(5));
        assert_eq!(table.remove(name, (Epoch(2), RecordVersion(4))), Err(known));
        assert_eq!(table.remove(name, known), Ok(()));
        assert_eq!(table.services(), []);
        assert_eq!(table.remove(name, known), Ok(()));
    }
}
