//! Durations and sizes as people write them.

use std::time::Duration;

use homeostat_model::Bytes;

const DURATION_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
/// No duration in a cell file is longer than a day.
const LONGEST_MS: u64 = 24 * 3_600_000;

/// `5s`, `200ms`, `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is not a duration; write '5s', '200ms', '1m' or '1m30s'");
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
        return Err(format!("'{text}' is longer than a day"));
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

/// `512MiB`, `8GiB`, `1.5GiB`.
pub(crate) fn bytes(text: &str) -> Result<Bytes, String> {
    let bad = || format!("'{text}' is not a size; write '512MiB' or '8GiB'");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
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
            assert!(duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(bytes("8GiB"), Ok(Bytes(8 << 30)));
        assert_eq!(bytes("1.5 KiB"), Ok(Bytes(1536)));
        for bad in ["", "8", "8GB", "GiB", "1..5GiB", "-1GiB", "99999999TiB"] {
            assert!(bytes(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
