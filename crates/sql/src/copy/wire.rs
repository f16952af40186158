//! What the two keepers say to each other: frames of at most a megabyte, some of them words, most of them data.
//!
//! ```text
//! source                                  target
//! Hello { version, nonce }        ──▶
//!                                 ◀──     Prove { version, nonce, proof }
//! Welcome { proof, about }        ──▶
//!                                 ◀──     Begin          (it has room)
//! data, data, data, …             ──▶
//! End { bytes }                   ──▶
//! ```
//!
//! Either may say `Failed { why }` instead, and ends then. A stream without `End` is no copy, whatever is in it.
//!
//! The proof is a hash of the role, the token and both nonces. So the token itself is never sent, what is overheard
//! cannot be used again, and a stranger who listens on the port of a source that died cannot hand out a database either.

use std::io;
use std::time::Duration;

use getrandom::fill;
use homeostat_decider::CopyToken;
use homeostat_model::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::CopyError;

/// The newest version; another one is refused by name.
pub(super) const VERSION: u32 = 1;
/// The most data in one frame.
pub(super) const PIECE: usize = 256 << 10;
/// What stands before each frame: its kind and its length.
pub(super) const HEAD: usize = 5;
const WORDS: u8 = b'w';
const DATA: u8 = b'd';
const LONGEST_WORDS: usize = 16 << 10;
const LARGEST_DATA: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
pub(super) enum Words {
    Hello {
        version: u32,
        nonce: String,
    },
    Prove {
        version: u32,
        nonce: String,
        proof: String,
    },
    Welcome {
        proof: String,
        /// About how large the copy will be.
        about: Bytes,
    },
    Begin,
    End {
        bytes: u64,
    },
    Failed {
        why: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Source,
    Target,
}

impl Role {
    fn other(self) -> &'static str {
        match self {
            Role::Source => "the target",
            Role::Target => "the source",
        }
    }

    /// How it is said that the other side ended the copy.
    pub(super) fn ended(self, why: String) -> CopyError {
        match self {
            Role::Source => CopyError::TargetEnded { why },
            Role::Target => CopyError::SourceEnded { why },
        }
    }
}

/// A number used once.
pub(super) fn nonce() -> Result<String, CopyError> {
    let mut bytes = [0; 16];
    fill(&mut bytes).map_err(|error| super::system("draw a number")(io::Error::other(error)))?;
    Ok(hex(&bytes))
}

/// That `role` knows the token.
pub(super) fn proof(role: Role, token: &CopyToken, source: &str, target: &str) -> String {
    let role = match role {
        Role::Source => "source",
        Role::Target => "target",
    };
    // JSON keeps the parts apart.
    let parts = serde_json::json!(["homeostat copy", role, token.reveal(), source, target]);
    hex(&Sha256::digest(parts.to_string().as_bytes()))
}

/// Compares without telling by its duration where the difference is.
pub(super) fn same(left: &str, right: &str) -> bool {
    let differ = left
        .bytes()
        .zip(right.bytes())
        .fold(0, |sum, (a, b)| sum | (a ^ b));
    left.len() == right.len() && differ == 0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A frame that arrived: words, or how many bytes of data follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Words(Words),
    Data(usize),
}

/// Writes the head of a data frame into the first [`HEAD`] bytes of `piece`, the rest of which is its data.
pub(super) fn head(piece: &mut [u8]) {
    let length = u32::try_from(piece.len() - HEAD).unwrap_or(u32::MAX);
    piece[0] = DATA;
    piece[1..HEAD].copy_from_slice(&length.to_le_bytes());
}

pub(super) async fn say(to: &mut (impl AsyncWrite + Unpin), words: &Words) -> io::Result<()> {
    let text = serde_json::to_vec(words)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut frame = vec![WORDS];
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&text);
    to.write_all(&frame).await
}

/// The next frame.
pub(super) async fn hear(
    from: &mut (impl AsyncRead + Unpin),
    me: Role,
) -> Result<Frame, CopyError> {
    let lost = |error: io::Error| {
        me.ended(match error.kind() {
            io::ErrorKind::UnexpectedEof => "its connection ended".to_owned(),
            _ => format!("its connection broke: {error}"),
        })
    };
    let mut head = [0; HEAD];
    from.read_exact(&mut head).await.map_err(lost)?;
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    match head[0] {
        DATA if length <= LARGEST_DATA => Ok(Frame::Data(length)),
        WORDS if length <= LONGEST_WORDS => {
            let mut text = vec![0; length];
            from.read_exact(&mut text).await.map_err(lost)?;
            let words = serde_json::from_slice(&text);
            let words = words.map_err(|error| CopyError::Protocol(error.to_string()))?;
            Ok(Frame::Words(words))
        }
        kind => Err(CopyError::Protocol(format!(
            "a frame of kind {kind} and {length} bytes"
        ))),
    }
}

/// The next words, within `limit`; a `Failed` is an error.
pub(super) async fn answer(
    from: &mut (impl AsyncRead + Unpin),
    me: Role,
    limit: Duration,
) -> Result<Words, CopyError> {
    match timeout(limit, hear(from, me)).await {
        Ok(Ok(Frame::Words(Words::Failed { why }))) => Err(me.ended(why)),
        Ok(Ok(Frame::Words(words))) => Ok(words),
        Ok(Ok(frame)) => Err(unexpected(&frame)),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(me.ended(format!("it said nothing for {} s", limit.as_secs()))),
    }
}

pub(super) fn unexpected(frame: &Frame) -> CopyError {
    CopyError::Protocol(match frame {
        Frame::Words(words) => format!("{words:?}"),
        Frame::Data(length) => format!("{length} bytes of data"),
    })
}

/// Refuses another version by name.
pub(super) fn check_version(me: Role, version: u32) -> Result<(), CopyError> {
    if version == VERSION {
        return Ok(());
    }
    let peer = me.other();
    Err(CopyError::Version { peer, version })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_proves_one_role_in_one_conversation() {
        let token = CopyToken::new("secret".to_owned());
        let own = proof(Role::Target, &token, "a", "b");
        assert!(same(&own, &proof(Role::Target, &token, "a", "b")));
        for other in [
            proof(Role::Source, &token, "a", "b"),
            proof(Role::Target, &CopyToken::new("secreu".to_owned()), "a", "b"),
            proof(Role::Target, &token, "c", "b"),
            proof(Role::Target, &token, "a", "c"),
            own[1..].to_owned(),
            String::new(),
        ] {
            assert!(!same(&own, &other));
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_and_nonsense_is_refused() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let words = Words::End { bytes: 7 };
            let mut stream = Vec::new();
            say(&mut stream, &words).await.unwrap();
            let mut piece = vec![0; HEAD + 3];
            head(&mut piece);
            stream.extend_from_slice(&piece);
            let mut from = stream.as_slice();
            assert_eq!(
                hear(&mut from, Role::Target).await.unwrap(),
                Frame::Words(words)
            );
            assert_eq!(hear(&mut from, Role::Target).await.unwrap(), Frame::Data(3));
            assert_eq!(from.len(), 3);
            let ended = hear(&mut from, Role::Target).await.unwrap_err();
            assert!(matches!(ended, CopyError::SourceEnded { .. }), "{ended}");

            for nonsense in [
                b"x\x01\0\0\0.".as_slice(),
                b"d\xff\xff\xff\xff",
                b"w\x01\0\0\0{",
            ] {
                let error = hear(&mut &nonsense[..], Role::Source).await.unwrap_err();
                assert!(matches!(error, CopyError::Protocol(_)), "{error}");
            }
        });
    }
}
