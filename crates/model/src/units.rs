//! Numbers that must not be mistaken for one another.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub u64);

        impl $type {
            /// The one after this one. Saturates: a counter that ran out stays put rather than starting over at zero.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter!(/// The fencing number of a role; lower ones are refused at the target.
    Epoch);
counter!(/// The fencing number of a controller's leadership.
    Term);
counter!(/// Orders records within one epoch.
    RecordVersion);
counter!(/// How often a task was placed anew; a supervisor refuses a lower one.
    Generation);
counter!(/// Numbers the orders to one member.
    Sequence);
counter!(/// The store's revision: one for each transaction that changed something.
    Revision);

/// Thousandths of a processor.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MilliCpu(pub u32);

/// A size in bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut unit = 0;
        let mut value = self.0 as f64;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if value.fract() < 0.05 {
            write!(f, "{value:.0} {}", UNITS[unit])
        } else {
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} cpu", f64::from(self.0) / 1000.0)
    }
}

/// What a task needs, or a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    pub cpu: MilliCpu,
    pub memory: Bytes,
}

/// A moment for people and logs, in milliseconds since 1970 UTC. Never used to decide: elapsed times do that.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

/// Why a text is no duration or size; a whole sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUnit(String);

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
/// Nothing that people declare takes longer than a day.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// `5s`, `200ms`, `1m30s`; at most a day.
///
/// # Errors
/// [`BadUnit`] for anything else.
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let bad = || {
        BadUnit(format!(
            "'{text}' is not a duration; write '5s', '200ms', '1m' or '1m30s'"
        ))
    };
    let mut rest = text;
    let mut total_ms = 0_u64;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == &rest[..letters]);
        let (_, ms) = unit.ok_or_else(bad)?;
        total_ms = total_ms.saturating_add(number.saturating_mul(*ms));
        rest = &rest[letters..];
    }
    if total_ms > LONGEST_MS {
        return Err(BadUnit(format!("'{text}' is longer than a day")));
    }
    Ok(Duration::from_millis(total_ms))
}

const SIZE_UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Bytes {
    type Err = BadUnit;

    /// `512MiB`, `8GiB`, `1.5GiB`.
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit(format!("'{text}' is not a size; write '512MiB' or '8GiB'"));
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = text[..split].parse().map_err(|_| bad())?;
        let unit = text[split..].trim_start();
        let (_, factor) = SIZE_UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(bad)?;
        let value = number * *factor as f64;
        // Beyond 2^53 a float no longer counts bytes; no machine has that much.
        if !(0.0..9e15).contains(&value) {
            return Err(bad());
        }
        Ok(Bytes(value as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "5sec",
            "99999999999999999999s",
            "25h",
            "1.5s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sizes() {
        let bytes = |text: &str| text.parse::<Bytes>();
        assert_eq!(bytes("8GiB"), Ok(Bytes(8 << 30)));
        assert_eq!(bytes("1.5 KiB"), Ok(Bytes(1536)));
        for bad in ["", "8", "8GB", "GiB", "1..5GiB", "-1GiB", "99999999TiB"] {
            assert!(bytes(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Bytes::mib(64).to_string(), "64 MiB");
        assert_eq!(Bytes(1_610_612_736).to_string(), "1.5 GiB");
    }

    #[test]
    fn counters_never_start_over() {
        assert_eq!(Epoch(u64::MAX).next(), Epoch(u64::MAX));
        assert_eq!(Epoch(1).next(), Epoch(2));
    }
}
