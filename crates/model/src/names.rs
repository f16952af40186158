//! Names. A name is what people type, what folders are called and what keys in the store contain, so each kind is
//! its own type and one rule holds for all: short, lower case, no separators that mean something elsewhere.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest accepted name in bytes. Names end up in unix socket paths (108 bytes in all) and store keys.
pub const LONGEST: usize = 40;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {kind} name: {why}")]
pub struct BadName {
    pub kind: &'static str,
    pub text: String,
    pub why: &'static str,
}

fn check(kind: &'static str, text: &str, slash: Slash) -> Result<(), BadName> {
    let bad = |why| {
        Err(BadName {
            kind,
            text: text.to_owned(),
            why,
        })
    };
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len()
        > LONGEST
            * if matches!(slash, Slash::Allowed) {
                2
            } else {
                1
            }
    {
        return bad("it is too long (40 characters at most)");
    }
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    for part in text.split('/') {
        if !part.starts_with(letter) || !part.ends_with(letter) {
            return bad("it must begin and end with a lower-case letter or a digit");
        }
        if !part.chars().all(|c| letter(c) || c == '-') {
            return bad("only lower-case letters, digits and '-' are allowed");
        }
    }
    if matches!(slash, Slash::Refused) && text.contains('/') {
        return bad("only lower-case letters, digits and '-' are allowed");
    }
    Ok(())
}

/// Whether a kind of name may have parts, as `shop-web/healthz` has.
enum Slash {
    Allowed,
    Refused,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $slash:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Accepts a text as a name.
            ///
            /// # Errors
            /// [`BadName`] when the text breaks the rule of this module.
            pub fn new(text: impl Into<String>) -> Result<Self, BadName> {
                let text = text.into();
                check($kind, &text, Slash::$slash)?;
                Ok(Self(text))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
    };
}

name!(/// A cell: a pool of machines and the services on it.
    CellName, "cell", Refused);
name!(/// A host in the pool.
    MachineName, "machine", Refused);
name!(/// A failure domain: what may fail together.
    RackName, "rack", Refused);
name!(/// What a team owns and a person turns up.
    ServiceName, "service", Refused);
name!(/// One running instance of a service: `shop-web-0`.
    TaskName, "task", Refused);
name!(/// A port that a task listens on, by what it is for: `http`.
    PortName, "port", Refused);
name!(/// Where clients reach a service; named as the service is.
    EndpointName, "endpoint", Refused);
name!(/// What a task runs.
    PackageName, "package", Refused);
name!(/// A production test: `shop-web/healthz`.
    CheckName, "check", Allowed);
name!(/// One run of a procedure: `turnup-7`.
    OperationId, "operation", Refused);
name!(/// A named, versioned change: `turnup`. Its operations are called `turnup-1`, `turnup-2`, …
    ProcedureName, "procedure", Refused);
name!(/// One part of an operation, unique within it: `start-members`.
    StepName, "step", Refused);

impl TaskName {
    /// The name of a service's task number `index`.
    pub fn of(service: &ServiceName, index: u32) -> Result<Self, BadName> {
        Self::new(format!("{service}-{index}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(ServiceName::new("shop-db").is_ok());
        assert!(CheckName::new("shop-web/healthz").is_ok());
        for bad in ["", "Shop", "-a", "a-", "a_b", "a/b", "a b", "ä"] {
            assert!(ServiceName::new(bad).is_err(), "{bad:?} was accepted");
        }
        for bad in ["/a", "a/", "a//b"] {
            assert!(CheckName::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(serde_json::from_str::<MachineName>("\"M 1\"").is_err());
    }
}
