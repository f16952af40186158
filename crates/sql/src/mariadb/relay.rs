//! Reads binlog and relay log files far enough to say where they end: headers, GTIDs, and whether the last
//! transaction is whole. No event is decoded.
//!
//! A transaction counts only when its last event is in the file: an acknowledgement is given for whole transactions, and
//! a torn one was never acknowledged. The format is MariaDB's binlog version 4.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use homeostat_decider::Gtid;

const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];
const HEADER: usize = 19;

const QUERY: u8 = 2;
const XID: u8 = 16;
const XA_PREPARE: u8 = 38;
const CHECKPOINT: u8 = 161;
const GTID: u8 = 162;
const QUERY_COMPRESSED: u8 = 165;
/// In a GTID event's flags: the transaction is the one statement that follows, without a COMMIT of its own.
const STANDALONE: u8 = 1;

/// What a log's files hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogScan {
    /// The last whole transaction.
    pub last: Option<Gtid>,
    /// The oldest binlog that may hold transactions the engine has not committed, as the newest file names it.
    pub checkpoint: Option<String>,
}

/// The files that a log's index lists, oldest first; empty when there is no index.
///
/// # Errors
/// When the index cannot be read.
pub fn files(index: &Path) -> io::Result<Vec<PathBuf>> {
    let text = match std::fs::read_to_string(index) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let folder = index.parent().unwrap_or(Path::new("."));
    Ok(text
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| folder.join(line))
        .collect())
}

/// Reads the files in their order.
///
/// # Errors
/// When one cannot be read or is no binlog. A file that ends within an event is no error: the crash cut it.
pub fn scan(files: &[PathBuf]) -> io::Result<LogScan> {
    let mut scan = Scanning {
        found: LogScan::default(),
        open: None,
    };
    for path in files {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::with_capacity(64 * 1024, file);
        scan.file(&mut file, length).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{} is not a whole binlog: {error}", path.display()),
            )
        })?;
    }
    Ok(scan.found)
}

struct Scanning {
    found: LogScan,
    /// A transaction that began and has not ended, and whether it is a single statement. It may go on in the next file.
    open: Option<(Gtid, bool)>,
}

impl Scanning {
    fn file(&mut self, file: &mut BufReader<File>, length: u64) -> io::Result<()> {
        let mut at = MAGIC.len() as u64;
        if length < at {
            return Ok(());
        }
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not begin as one",
            ));
        }
        while at + HEADER as u64 <= length {
            let mut header = [0; HEADER];
            file.read_exact(&mut header)?;
            let kind = header[4];
            let server = le32(&header[5..9]);
            let size = u64::from(le32(&header[9..13]));
            if size < HEADER as u64 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("event at {at} has size {size}"),
                ));
            }
            if at + size > length {
                return Ok(());
            }
            let rest = (size - HEADER as u64) as usize;
            let used = self.event(file, kind, server, rest)?;
            file.seek_relative((rest - used) as i64)?;
            at += size;
        }
        Ok(())
    }

    /// Looks at one whole event and says how many bytes of its body it read.
    fn event(
        &mut self,
        file: &mut impl Read,
        kind: u8,
        server: u32,
        rest: usize,
    ) -> io::Result<usize> {
        match kind {
            GTID if rest >= 13 => {
                let mut body = [0; 13];
                file.read_exact(&mut body)?;
                let sequence = u64::from(le32(&body[0..4])) | u64::from(le32(&body[4..8])) << 32;
                let gtid = Gtid {
                    domain: le32(&body[8..12]),
                    server,
                    sequence,
                };
                self.open = Some((gtid, body[12] & STANDALONE != 0));
                Ok(13)
            }
            XID | XA_PREPARE => {
                self.close();
                Ok(0)
            }
            QUERY | QUERY_COMPRESSED => self.query(file, rest),
            CHECKPOINT if rest >= 4 => {
                let mut body = vec![0; rest.min(4 + 512)];
                file.read_exact(&mut body)?;
                let length = (le32(&body[0..4]) as usize).min(body.len() - 4);
                self.found.checkpoint =
                    Some(String::from_utf8_lossy(&body[4..4 + length]).into_owned());
                Ok(body.len())
            }
            _other_events => Ok(0),
        }
    }

    /// A statement ends a standalone transaction; in another one only COMMIT or ROLLBACK does.
    fn query(&mut self, file: &mut impl Read, rest: usize) -> io::Result<usize> {
        match self.open {
            None => Ok(0),
            Some((_, true)) => {
                self.close();
                Ok(0)
            }
            Some((_, false)) => {
                // COMMIT stands at the end of a short event, before a checksum of 4 bytes at most.
                let mut body = vec![0; rest.min(1024)];
                file.read_exact(&mut body)?;
                let tail = &body[body.len().saturating_sub(16)..];
                let ends = |word: &[u8]| tail.windows(word.len()).any(|window| window == word);
                if body.len() == rest && (ends(b"COMMIT") || ends(b"ROLLBACK")) {
                    self.close();
                }
                Ok(body.len())
            }
        }
    }

    fn close(&mut self) {
        if let Some((gtid, _)) = self.open.take() {
            self.found.last = Some(gtid);
        }
    }
}

fn le32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn event(kind: u8, body: &[u8]) -> Vec<u8> {
        let size = (HEADER + body.len()) as u32;
        let mut event = vec![0; 4];
        event.push(kind);
        event.extend_from_slice(&7_u32.to_le_bytes());
        event.extend_from_slice(&size.to_le_bytes());
        event.extend_from_slice(&[0; 6]);
        event.extend_from_slice(body);
        event
    }

    fn gtid(sequence: u64, flags: u8) -> Vec<u8> {
        let mut body = sequence.to_le_bytes().to_vec();
        body.extend_from_slice(&0_u32.to_le_bytes());
        body.push(flags);
        body.extend_from_slice(&[0; 6]);
        event(GTID, &body)
    }

    /// Scans files that hold these events, the last one cut off by `torn` bytes.
    fn last(files: &[Vec<Vec<u8>>], torn: usize) -> Option<u64> {
        let folder = tempfile::tempdir().unwrap();
        let mut names = String::new();
        for (number, events) in files.iter().enumerate() {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(events.concat());
            if number + 1 == files.len() {
                bytes.truncate(bytes.len() - torn);
            }
            std::fs::write(folder.path().join(number.to_string()), bytes).unwrap();
            names.push_str(&format!("./{number}\n"));
        }
        let index = folder.path().join("index");
        std::fs::write(&index, names).unwrap();
        let found = scan(&super::files(&index).unwrap()).unwrap().last;
        found
            .map(|gtid| (gtid.server, gtid.sequence))
            .map(|(server, sequence)| {
                assert_eq!(server, 7);
                sequence
            })
    }

    #[test]
    fn only_whole_transactions_count() {
        let rows = || event(23, &[9; 3000]);
        let xid = || event(XID, &[0; 12]);
        let commit = || event(QUERY, b"...............\0COMMIT\x01\x02\x03\x04");
        let create = || {
            event(
                QUERY,
                b"...............\0create table COMMITTED (a int) \x01\x02\x03\x04",
            )
        };
        let big = (5_u64 << 32) + 3;
        let whole = vec![gtid(1, 0), rows(), xid(), gtid(big, STANDALONE), create()];
        assert_eq!(last(std::slice::from_ref(&whole), 0), Some(big));
        assert_eq!(last(std::slice::from_ref(&whole), 1), Some(1));
        assert_eq!(
            last(&[whole.clone(), vec![gtid(big + 1, 0), rows()]], 0),
            Some(big)
        );
        assert_eq!(last(&[vec![gtid(1, 0), rows(), commit()]], 0), Some(1));
        assert_eq!(last(&[vec![gtid(1, 0), rows(), create()]], 0), None);
        // A transaction may go on in the next file.
        assert_eq!(
            last(&[vec![gtid(1, 0), rows()], vec![rows(), xid()]], 0),
            Some(1)
        );
        assert_eq!(
            last(&[vec![gtid(1, 0), rows()], vec![rows(), xid()]], 12),
            None
        );
        assert_eq!(last(&[vec![]], 0), None);
        assert_eq!(
            files(Path::new("/nonexistent/index")).unwrap(),
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"not a binlog at all").unwrap();
        assert!(scan(&[path]).is_err());
    }
}
