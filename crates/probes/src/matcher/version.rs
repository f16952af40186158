//! Constraints on versions: `>=1.2.0, <2.0.0`, with `||` between alternatives. Versions are ordered as semver.org says;
//! missing parts count as zero, a leading `v` is let go.

use std::cmp::Ordering;
use std::fmt;

use semver::Version;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    written: String,
    /// One of them must hold, all parts of it.
    alternatives: Vec<Vec<(Bound, Version)>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    Is,
    IsNot,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// The longer ones first.
const BOUNDS: [(&str, Bound); 8] = [
    ("!=", Bound::IsNot),
    ("<=", Bound::AtMost),
    (">=", Bound::AtLeast),
    ("==", Bound::Is),
    ("!", Bound::IsNot),
    ("<", Bound::Less),
    (">", Bound::Greater),
    ("=", Bound::Is),
];

impl Bound {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Bound::Is => ordering.is_eq(),
            Bound::IsNot => ordering.is_ne(),
            Bound::Less => ordering.is_lt(),
            Bound::AtMost => ordering.is_le(),
            Bound::Greater => ordering.is_gt(),
            Bound::AtLeast => ordering.is_ge(),
        }
    }
}

impl Range {
    pub(crate) fn parse(written: &str) -> Result<Self, String> {
        let alternatives = written.split("||").map(|part| bounds(part, written));
        Ok(Self {
            written: written.to_owned(),
            alternatives: alternatives.collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn includes(&self, version: &str) -> bool {
        let Some(version) = read(version.trim()) else {
            return false;
        };
        let holds = |(bound, other): &(Bound, Version)| bound.holds(version.cmp_precedence(other));
        self.alternatives.iter().any(|all| all.iter().all(holds))
    }
}

fn bounds(part: &str, written: &str) -> Result<Vec<(Bound, Version)>, String> {
    let bad = || format!("'{written}' is no constraint on versions; write '>=1.2.0, <2.0.0'");
    let mut bounds = Vec::new();
    let mut rest = part.trim_matches([' ', ',']);
    while !rest.is_empty() {
        let sign = BOUNDS.iter().find(|(sign, _)| rest.starts_with(sign));
        let (sign, bound) = sign.copied().unwrap_or(("", Bound::Is));
        rest = rest[sign.len()..].trim_start();
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        bounds.push((bound, read(&rest[..end]).ok_or_else(bad)?));
        rest = rest[end..].trim_start_matches([' ', ',']);
    }
    if bounds.is_empty() {
        return Err(bad());
    }
    Ok(bounds)
}

fn read(text: &str) -> Option<Version> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let missing = 2_usize.checked_sub(numbers.matches('.').count())?;
    Version::parse(&format!("{numbers}{}{rest}", ".0".repeat(missing))).ok()
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}
