//! Why a call across the contract was not carried out: one closed list, the same in process and over gRPC.

use tonic::{Code, Status};

/// What kind of "no" it is: decides whether to try again, give up, or ask a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request itself is wrong; the same call will fail again.
    BadRequest,
    /// No such thing.
    NotFound,
    /// Made under a lower term, epoch or generation than one seen before.
    Stale,
    /// Not now: the state does not allow it.
    NotNow,
    /// The other side cannot be reached, or did not answer in time: what it did is unknown.
    Unknown,
    /// A fault of our own.
    Internal,
}

/// A call that was refused or whose outcome is not known.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::BadRequest, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::NotFound, message)
    }

    pub fn not_now(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::NotNow, message)
    }

    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Unknown, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Internal, message)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let code = match refusal.kind {
            RefusalKind::BadRequest => Code::InvalidArgument,
            RefusalKind::NotFound => Code::NotFound,
            RefusalKind::Stale => Code::Aborted,
            RefusalKind::NotNow => Code::FailedPrecondition,
            RefusalKind::Unknown => Code::Unavailable,
            RefusalKind::Internal => Code::Internal,
        };
        Status::new(code, refusal.message)
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Refusal {
        let kind = match status.code() {
            Code::InvalidArgument => RefusalKind::BadRequest,
            Code::NotFound => RefusalKind::NotFound,
            Code::Aborted => RefusalKind::Stale,
            Code::FailedPrecondition => RefusalKind::NotNow,
            Code::Internal => RefusalKind::Internal,
            // Everything else (deadline, transport, cancelled): nobody said whether it was done.
            _ => RefusalKind::Unknown,
        };
        Refusal::new(kind, status.message())
    }
}
