//! Lines of JSON, as both protocols of this crate (and the keepers') have them.
//!
//! [`LineBuffer`] cuts a byte stream into lines, whatever pieces it arrives in, and never holds more than the
//! longest accepted line: a peer that sends without end is an error, not a growing buffer.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::LONGEST_LINE;

#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("a line is longer than {LONGEST_LINE} bytes")]
    TooLong,
    #[error("a line is not a message of this protocol: {line}")]
    Malformed {
        /// Its beginning, for people.
        line: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("a message cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

/// A message as one line, its newline included.
///
/// # Errors
/// When it is longer than [`LONGEST_LINE`], which the other side would refuse.
pub fn encode_line<T: Serialize>(message: &T) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message).map_err(LineError::Unwritable)?;
    if line.len() >= LONGEST_LINE {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// A line (with or without its newline) as a message.
///
/// # Errors
/// [`LineError::Malformed`] when it is not one.
pub fn decode_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    serde_json::from_slice(line).map_err(|source| LineError::Malformed {
        line: String::from_utf8_lossy(&line[..line.len().min(120)])
            .trim_end()
            .to_owned(),
        source,
    })
}

/// Bytes that arrived and are not yet a whole line.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// How much of `bytes` is known to contain no newline.
    searched: usize,
}

impl LineBuffer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its newline; `None` when more must arrive first.
    ///
    /// # Errors
    /// [`LineError::TooLong`]: the connection is of no use any more.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        let newline = self.bytes[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        let Some(at) = newline.map(|at| at + self.searched) else {
            self.searched = self.bytes.len();
            return if self.bytes.len() > LONGEST_LINE {
                Err(LineError::TooLong)
            } else {
                Ok(None)
            };
        };
        let rest = self.bytes.split_off(at + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.searched = 0;
        if line.len() > LONGEST_LINE {
            return Err(LineError::TooLong);
        }
        Ok(Some(line))
    }

    /// How much more may be pushed before lines must be taken out.
    pub fn room(&self) -> usize {
        (LONGEST_LINE + 1).saturating_sub(self.bytes.len())
    }

    /// What arrived and was not consumed.
    pub fn into_rest(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::{Request, Verb};

    #[test]
    fn lines_survive_any_cutting() {
        let requests = [
            Request {
                id: 1,
                verb: Verb::Kill,
            },
            Request {
                id: 2,
                verb: Verb::Stop { grace_ms: 5 },
            },
        ];
        let bytes: Vec<u8> = requests
            .iter()
            .flat_map(|request| encode_line(request).unwrap())
            .collect();
        for piece in 1..bytes.len() {
            let mut buffer = LineBuffer::default();
            let mut seen: Vec<Request> = Vec::new();
            for chunk in bytes.chunks(piece) {
                buffer.push(chunk);
                while let Some(line) = buffer.next_line().unwrap() {
                    seen.push(decode_line(&line).unwrap());
                }
            }
            assert_eq!(seen, requests);
            assert!(buffer.into_rest().is_empty());
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![b'x'; LONGEST_LINE + 1]);
        assert!(matches!(buffer.next_line(), Err(LineError::TooLong)));
    }

    #[test]
    fn the_wire_of_version_1_does_not_change() {
        let line = encode_line(&Request {
            id: 7,
            verb: Verb::Stop { grace_ms: 9 },
        })
        .unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"id\":7,\"verb\":{\"do\":\"stop\",\"grace_ms\":9}}\n"
        );
    }
}
