//! An order and the key that makes placing it safe to repeat.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Chosen by the client before it first asks. Whoever does not know whether an order was placed
/// asks again with the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    pub client: u64,
    pub seq: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    #[serde(flatten)]
    pub key: Key,
    pub item: String,
}

/// As in the log of acknowledged orders: `client seq`.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.client, self.seq)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not an order key (expected `client seq`): {0:?}")]
pub struct NotAKey(String);

impl FromStr for Key {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let parsed = text
            .split_once(' ')
            .and_then(|(client, seq)| Some((client.parse().ok()?, seq.parse().ok()?)));
        match parsed {
            Some((client, seq)) => Ok(Self { client, seq }),
            None => Err(NotAKey(text.chars().take(80).collect())),
        }
    }
}
