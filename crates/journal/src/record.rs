//! Records: what happened to an operation, in the order in which it happened.
//!
//! A record is written once and never changed. Its event is one of a closed list, and everything an event means is
//! inside it (which step, which attempt), so that there is no pair of fields which can contradict one another. An
//! old program that meets a newer record says so and stops: skipping what it does not understand could run
//! a step twice or undo one that has to stay.

use std::fmt;

use homeostat_model::{OperationId, Term, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits;
use crate::plan::{Asker, Person, PlanHash, encode, format_of};

/// The version of the stored form of a record.
pub const RECORD_FORMAT: u32 = 1;

/// A step by its place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepIndex(pub u32);

impl StepIndex {
    pub fn position(self) -> usize {
        self.0 as usize
    }
}

/// Numbers the attempts at one step, and apart from them those at its undo, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Numbers the records of one operation, from 1, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogSeq(pub u32);

impl LogSeq {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    pub operation: OperationId,
    pub seq: LogSeq,
    /// The leadership under which it was written.
    pub term: Term,
    /// For people, and for back-off.
    pub at: UnixMillis,
    pub event: Event,
}

/// What can happen to an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
pub enum Event {
    /// Always the first record.
    Begun {
        plan: PlanHash,
    },
    /// A controller with this record's term answers for the operation from here on. An attempt that was under way is
    /// interrupted: nobody knows how far it came.
    TakenOver,
    Approved {
        by: Person,
        plan: PlanHash,
    },

    StepStarted {
        step: StepIndex,
        attempt: Attempt,
    },
    StepDone {
        step: StepIndex,
        attempt: Attempt,
        output: Value,
    },
    StepFailed {
        step: StepIndex,
        attempt: Attempt,
        kind: FailureKind,
        evidence: Evidence,
    },
    /// A manual step's turn has come. The person may have begun, so from here on it is undone as any other.
    HandAsked {
        step: StepIndex,
    },
    /// A person did a manual step, or did one at which the machinery got stuck.
    DoneByHand {
        step: StepIndex,
        attempt: Attempt,
        by: Person,
        note: String,
    },
    VerifyPassed {
        step: StepIndex,
        attempt: Attempt,
    },
    VerifyFailed {
        step: StepIndex,
        attempt: Attempt,
        evidence: Evidence,
    },

    /// The operation turns round, because `failed` is out of attempts.
    UndoBegun {
        failed: StepIndex,
    },
    UndoStarted {
        step: StepIndex,
        attempt: Attempt,
    },
    UndoDone {
        step: StepIndex,
        attempt: Attempt,
    },
    UndoFailed {
        step: StepIndex,
        attempt: Attempt,
        kind: FailureKind,
        evidence: Evidence,
    },
    UndoneByHand {
        step: StepIndex,
        by: Person,
        note: String,
    },

    /// No further step begins; one that runs may end.
    Paused {
        by: Asker,
        why: String,
    },
    /// The machinery is at its wits' end. A person resumes, cancels, does it by hand, or abandons.
    Stuck {
        why: StuckWhy,
    },
    /// Ends a pause. Ends being stuck too, with a new allowance of attempts, which is why only a person can.
    Resumed {
        by: Person,
    },
    /// The operation turns round, because somebody wants it to.
    CancelAsked {
        by: Asker,
        why: String,
    },

    /// Every step ran and was verified.
    Completed,
    /// Everything that was touched has been undone.
    Undone,
    /// A person takes things as they are. The operation is over and nothing was put right.
    Abandoned {
        by: Person,
        why: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Trying again may help.
    Retryable,
    /// Trying again will not: bad parameters, a refusal.
    Final,
}

/// Why something failed, for people; cut to [`limits::EVIDENCE_BYTES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Evidence(String);

impl Evidence {
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.len() > limits::EVIDENCE_BYTES {
            const MARK: &str = " […]";
            let mut end = limits::EVIDENCE_BYTES - MARK.len();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(MARK);
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Evidence {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<&str> for Evidence {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<Evidence> for String {
    fn from(evidence: Evidence) -> String {
        evidence.0
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum StuckWhy {
    /// Out of attempts, and the plan says to stop there.
    StepFailed {
        step: StepIndex,
    },
    /// Out of attempts, and `blocker`, which was touched, cannot be undone.
    PastReturn {
        step: StepIndex,
        blocker: StepIndex,
    },
    UndoFailed {
        step: StepIndex,
    },
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every step ran and was verified.
    Done,
    /// Everything it touched was undone.
    Undone,
    /// A person ended it as it was.
    Abandoned,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Done => "done",
            Outcome::Undone => "undone",
            Outcome::Abandoned => "abandoned",
        })
    }
}

/// Why a stored record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(
        "the stored record has format {found}, this program knows {RECORD_FORMAT} at most: use the newer program"
    )]
    Newer { found: u32 },
    #[error("the stored record cannot be read")]
    Garbled(#[source] serde_json::Error),
}

impl Record {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`RecordError`] for a newer format and for anything that is not a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let found = format_of(bytes).map_err(RecordError::Garbled)?;
        if found > RECORD_FORMAT {
            return Err(RecordError::Newer { found });
        }
        serde_json::from_slice(bytes).map_err(RecordError::Garbled)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(event: Event) -> Record {
        Record {
            format: RECORD_FORMAT,
            operation: OperationId::new("turnup-1").unwrap(),
            seq: LogSeq(3),
            term: Term(2),
            at: UnixMillis(1_700_000_000_000),
            event,
        }
    }

    /// The stored form is a promise to later versions: this snapshot may grow and must not change.
    #[test]
    fn the_stored_form() {
        let record = record(Event::StepFailed {
            step: StepIndex(1),
            attempt: Attempt(2),
            kind: FailureKind::Retryable,
            evidence: Evidence::new("connection refused"),
        });
        insta::assert_snapshot!(String::from_utf8(record.encode()).unwrap(), @r#"{"format":1,"operation":"turnup-1","seq":3,"term":2,"at":1700000000000,"event":{"what":"step-failed","step":1,"attempt":2,"kind":"retryable","evidence":"connection refused"}}"#);
        assert_eq!(Record::decode(&record.encode()).unwrap(), record);
    }

    #[test]
    fn a_newer_record_is_refused_whatever_else_it_says() {
        assert!(matches!(
            Record::decode(br#"{"format": 2, "event": "teleported"}"#),
            Err(RecordError::Newer { found: 2 })
        ));
    }

    #[test]
    fn an_unknown_event_of_a_known_format_is_garbled() {
        let text = String::from_utf8(record(Event::TakenOver).encode()).unwrap();
        let unknown = text.replace("taken-over", "teleported");
        assert!(matches!(
            Record::decode(unknown.as_bytes()),
            Err(RecordError::Garbled(_))
        ));
    }

    #[test]
    fn evidence_is_cut_between_characters() {
        let evidence = Evidence::new("ä".repeat(5000));
        assert!(evidence.as_str().len() <= limits::EVIDENCE_BYTES);
        assert!(evidence.as_str().ends_with("ä […]"));
        assert_eq!(Evidence::from(String::from(evidence.clone())), evidence);
    }
}
