//! The clock is right: by what the kernel says of its synchronisation, or compared with an NTP server.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UdpSocket;

use crate::call::{Args, CallError};
use crate::deadline::{Deadline, OutOfTime};

/// Seconds from 1900, where NTP begins, to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClockProbe {
    most: Duration,
    /// host:port; `None`: ask the kernel.
    server: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClockError {
    #[error("cannot {doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    #[error("nothing synchronises the clock")]
    Adrift,
    #[error("the clock is {0}")]
    Off(Offset),
    #[error("the server's answer makes no sense: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    OutOfTime(#[from] OutOfTime),
}

/// How far we are ahead, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offset(i64);

impl std::fmt::Display for Offset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.unsigned_abs() as f64 / 1000.0;
        write!(
            f,
            "{ms:.3} ms {}",
            if self.0 < 0 { "behind" } else { "ahead" }
        )
    }
}

impl ClockProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        let server = match args.text("server") {
            None => None,
            Some("") => return args.refuse("server", "it is empty"),
            Some(text) if text.parse::<std::net::Ipv6Addr>().is_ok() => {
                Some(format!("[{text}]:123"))
            }
            Some(text) if text.contains(':') => Some(text.to_owned()),
            Some(text) => Some(format!("{text}:123")),
        };
        match args.duration("within")? {
            Some(most) => Ok(Self { most, server }),
            None => args.refuse("within", "it is missing"),
        }
    }

    pub(crate) fn expected(&self) -> String {
        match &self.server {
            None => format!("the kernel's clock is synchronised within {:?}", self.most),
            Some(server) => format!("the clock is within {:?} of {server}", self.most),
        }
    }
}

pub(crate) async fn look(probe: &ClockProbe, within: Deadline) -> Result<String, ClockError> {
    let offset = match &probe.server {
        None => kernel()?,
        Some(server) => within.keep("waiting for the time", ask(server)).await??,
    };
    if u128::from(offset.0.unsigned_abs()) <= probe.most.as_micros() {
        Ok(offset.to_string())
    } else {
        Err(ClockError::Off(offset))
    }
}

fn kernel() -> Result<Offset, ClockError> {
    // SAFETY: plain numbers, for which zero is a value; zero modes mean that nothing is set.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to memory of ours.
    let code = unsafe { libc::adjtimex(&mut state) };
    if code < 0 {
        return Err(ClockError::Io {
            doing: "ask the kernel for its clock".to_owned(),
            source: io::Error::last_os_error(),
        });
    }
    if code == libc::TIME_ERROR || state.status & libc::STA_UNSYNC != 0 {
        return Err(ClockError::Adrift);
    }
    let nanoseconds = state.status & libc::STA_NANO != 0;
    Ok(Offset(if nanoseconds {
        state.offset / 1000
    } else {
        state.offset
    }))
}

/// One exchange of SNTP (RFC 4330), with the time on the way counted half.
async fn ask(server: &str) -> Result<Offset, ClockError> {
    let trouble = |source| ClockError::Io {
        doing: format!("ask {server} for the time"),
        source,
    };
    let to = tokio::net::lookup_host(server)
        .await
        .map_err(trouble)?
        .next();
    let to = to.ok_or_else(|| trouble(io::ErrorKind::NotFound.into()))?;
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.map_err(trouble)?;
    socket.connect(to).await.map_err(trouble)?;
    let mut question = [0; 48];
    // Version 4, client.
    question[0] = 0x23;
    let sent = stamp(SystemTime::now());
    question[40..].copy_from_slice(&sent.to_be_bytes());
    socket.send(&question).await.map_err(trouble)?;
    let mut answer = [0; 128];
    loop {
        let count = socket.recv(&mut answer).await.map_err(trouble)?;
        let received = stamp(SystemTime::now());
        // What answers an older question is not for us.
        if count >= 48 && answer[24..32] == sent.to_be_bytes() {
            return offset(&answer, sent, received);
        }
        if count < 48 {
            return Err(ClockError::Malformed("it is too short"));
        }
    }
}

fn offset(answer: &[u8], sent: u64, received: u64) -> Result<Offset, ClockError> {
    if answer[0] & 7 != 4 {
        return Err(ClockError::Malformed("it is no server's"));
    }
    if answer[1] == 0 || answer[0] >> 6 == 3 {
        return Err(ClockError::Malformed(
            "the server itself is not synchronised",
        ));
    }
    let at = |from: usize| {
        answer[from..from + 8]
            .iter()
            .fold(0_u64, |all, byte| all << 8 | u64::from(*byte))
    };
    let (there, back) = (at(32), at(40));
    // Differences of 64 bits wrap as the era does (RFC 4330, section 5).
    let theirs =
        there.wrapping_sub(sent).cast_signed() / 2 + back.wrapping_sub(received).cast_signed() / 2;
    let micros = (i128::from(-theirs) * 1_000_000) >> 32;
    Ok(Offset(i64::try_from(micros).unwrap_or(i64::MAX)))
}

/// Seconds since 1900 in the upper half, fractions in the lower one.
fn stamp(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().wrapping_add(NTP_TO_UNIX) << 32;
    seconds | ((u64::from(since.subsec_nanos()) << 32) / 1_000_000_000)
}
