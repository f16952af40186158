//! The target's side: fetch, unpack, prepare, take its place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use homeostat_decider::{CopyOffer, Gtid};
use homeostat_model::{Bytes, Epoch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::folder::Former;
use super::program::{self, Program};
use super::send::{check_loopback, rate, stalled};
use super::wire::{self, Frame, PIECE, Role, Words};
use super::{
    CopyError, CopyPrograms, Limits, Place, Progress, Stage, blocking, folder, io_error, position,
    system,
};

/// What a target needs to become a copy of a peer. Its server does not run.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub programs: CopyPrograms,
    pub offer: CopyOffer,
    /// The member's folder: `sql` is in it.
    pub data: PathBuf,
    pub place: Place,
    /// For preparing the copy.
    pub memory: Bytes,
    /// The copy must contain this epoch's barrier.
    pub at_least: Epoch,
    /// What becomes of the data folder that is there.
    pub former: Former,
    pub limits: Limits,
}

/// A copy that has taken its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where its log ends.
    pub at: Gtid,
    pub bytes: Bytes,
    pub copied: Duration,
    pub prepared: Duration,
    /// Until all of it was on disk and in its place.
    pub installed: Duration,
    /// Where the former data folder is.
    pub aside: Option<PathBuf>,
}

/// Fetches a copy and puts it in the place of the data folder. Dropping the future ends everything it started; what it
/// left on disk goes with the next try, or the next start of the keeper ([`folder::recover`]).
///
/// # Errors
/// Whatever goes wrong on either side. The data folder is as it was before, or, where it failed when the former one was
/// put away already, the finished copy.
pub async fn receive(
    fetch: &Fetch,
    progress: &watch::Sender<Progress>,
) -> Result<Received, CopyError> {
    check_loopback(&fetch.offer.host)?;
    let data = fetch.data.clone();
    blocking("clean up", move || folder::recover(&data)).await?;
    let result = attempt(fetch, progress).await;
    if result.is_err() {
        let data = fetch.data.clone();
        // The reason of the failure is worth more than that of this one; the next try cleans up too. Not only cleaned: a
        // finished copy whose renaming failed may be all that there is.
        let _ = blocking("clean up", move || folder::recover(&data)).await;
    }
    result
}

async fn attempt(fetch: &Fetch, progress: &watch::Sender<Progress>) -> Result<Received, CopyError> {
    let begun = Instant::now();
    let (mut stream, about) = fetch_from(fetch).await?;
    let incoming = folder::incoming(&fetch.data, fetch.place.user)?;
    folder::private(&fetch.place.temporary, fetch.place.user)?;
    let unpacked = unpack(fetch, &incoming, &mut stream, about, progress).await;
    if let Err(error) = &unpacked {
        let why = crate::keeper::chain(error);
        // It may be gone, which may be the very reason.
        let failed = Words::Failed { why };
        let _ = timeout(fetch.limits.greeting, wire::say(&mut stream, &failed)).await;
    }
    let bytes = unpacked?;
    drop(stream);
    let copied = begun.elapsed();
    progress.send_modify(|progress| progress.stage = Stage::Preparing);
    prepare(fetch, &incoming).await?;
    let at = position::recorded(&incoming, fetch.at_least)?;
    position::instil(&incoming, at, fetch.place.user)?;
    tidy(&incoming)?;
    let prepared = begun.elapsed() - copied;
    let (data, former) = (fetch.data.clone(), fetch.former);
    let aside = blocking("install the copy", move || folder::install(&data, former)).await?;
    Ok(Received {
        at,
        bytes: Bytes(bytes),
        copied,
        prepared,
        installed: begun.elapsed() - copied - prepared,
        aside,
    })
}

/// Connects to the source, proves the token, has it proved, and makes sure that there is room.
async fn fetch_from(fetch: &Fetch) -> Result<(TcpStream, Bytes), CopyError> {
    let limit = fetch.limits.greeting;
    let (host, port) = (fetch.offer.host.as_str(), fetch.offer.port);
    let connected = timeout(limit, TcpStream::connect((host, port))).await;
    let connected = connected.unwrap_or(Err(std::io::ErrorKind::TimedOut.into()));
    let mut stream = connected.map_err(system("connect to the source of the copy"))?;
    let source = match wire::answer(&mut stream, Role::Target, limit).await? {
        Words::Hello { version, nonce } => {
            wire::check_version(Role::Target, version)?;
            nonce
        }
        other => return Err(wire::unexpected(&Frame::Words(other))),
    };
    let target = wire::nonce()?;
    let token = &fetch.offer.token;
    let prove = Words::Prove {
        version: wire::VERSION,
        nonce: target.clone(),
        proof: wire::proof(Role::Target, token, &source, &target),
    };
    let send = || system("answer the source");
    wire::say(&mut stream, &prove).await.map_err(send())?;
    let about = match wire::answer(&mut stream, Role::Target, limit).await? {
        Words::Welcome { proof, about } => {
            let expected = wire::proof(Role::Source, token, &source, &target);
            if !wire::same(&proof, &expected) {
                let why = "who listens there does not know the token".into();
                return Err(CopyError::Protocol(why));
            }
            about
        }
        other => return Err(wire::unexpected(&Frame::Words(other))),
    };
    let ready = match folder::check_room(&fetch.data, about) {
        Ok(()) => Words::Begin,
        Err(ref error) => Words::Failed {
            why: error.to_string(),
        },
    };
    wire::say(&mut stream, &ready).await.map_err(send())?;
    folder::check_room(&fetch.data, about)?;
    Ok((stream, about))
}

async fn unpack(
    fetch: &Fetch,
    incoming: &Path,
    stream: &mut TcpStream,
    about: Bytes,
    progress: &watch::Sender<Progress>,
) -> Result<u64, CopyError> {
    let argv = [
        fetch.programs.unpack.display().to_string(),
        "-x".to_owned(),
        format!("--directory={}", incoming.display()),
    ];
    let (stdin, input) = program::pipe()?;
    let program = Program::start(&argv, incoming, &fetch.place, stdin.into(), Stdio::null())?;
    let input = pipe::Sender::from_owned_fd(input).map_err(system("write to a pipe"))?;
    let mut pump = Pump {
        stream,
        input,
        stall: fetch.limits.stall,
        bytes: 0,
        about,
        begun: Instant::now(),
        progress,
    };
    let ending = fetch.limits.ending;
    match pump.run().await {
        Ok(bytes) => {
            // It ends when its input does.
            drop(pump);
            let what = "the unpacking program does not end";
            program.succeed(what, ending).await.map(|()| bytes)
        }
        Err(Broken::Source(error)) => Err(error),
        Err(Broken::Program(error)) => Err(program.or_its_own(error, ending).await),
    }
}

/// From the connection into the program's pipe.
struct Pump<'a> {
    stream: &'a mut TcpStream,
    input: pipe::Sender,
    stall: Duration,
    bytes: u64,
    about: Bytes,
    begun: Instant,
    progress: &'a watch::Sender<Progress>,
}

/// Which end of the pump failed.
enum Broken {
    Source(CopyError),
    Program(CopyError),
}

impl Pump<'_> {
    /// Until the source says that this was all.
    async fn run(&mut self) -> Result<u64, Broken> {
        let mut piece = vec![0; PIECE];
        loop {
            self.tell();
            let heard = timeout(self.stall, wire::hear(self.stream, Role::Target)).await;
            let silent = || Err(stalled("the source sent nothing", self.stall));
            match heard.unwrap_or_else(|_| silent()).map_err(Broken::Source)? {
                Frame::Data(length) => self.data(length, &mut piece).await?,
                Frame::Words(Words::End { bytes }) if bytes == self.bytes => return Ok(bytes),
                Frame::Words(Words::End { bytes }) => {
                    let why = format!("{} of {bytes} bytes came", self.bytes);
                    return Err(Broken::Source(CopyError::Protocol(why)));
                }
                Frame::Words(Words::Failed { why }) => {
                    return Err(Broken::Source(Role::Target.ended(why)));
                }
                frame @ Frame::Words(_) => return Err(Broken::Source(wire::unexpected(&frame))),
            }
        }
    }

    async fn data(&mut self, length: usize, piece: &mut [u8]) -> Result<(), Broken> {
        let mut left = length;
        while left > 0 {
            let most = left.min(piece.len());
            let read = timeout(self.stall, self.stream.read(&mut piece[..most])).await;
            let read = match read {
                Ok(Ok(0)) => Err(Role::Target.ended("its connection ended".into())),
                Ok(Ok(read)) => Ok(read),
                Ok(Err(error)) => Err(Role::Target.ended(format!("its connection broke: {error}"))),
                Err(_) => Err(stalled("the source sent nothing", self.stall)),
            };
            let read = read.map_err(Broken::Source)?;
            let written = timeout(self.stall, self.input.write_all(&piece[..read])).await;
            let written = match written {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(system("write to the unpacking program")(error)),
                Err(_) => Err(stalled("the unpacking program took nothing", self.stall)),
            };
            written.map_err(Broken::Program)?;
            left -= read;
            self.bytes += read as u64;
        }
        Ok(())
    }

    fn tell(&self) {
        self.progress.send_replace(Progress {
            stage: Stage::Copying,
            bytes: Bytes(self.bytes),
            of: Some(self.about),
            bytes_per_second: rate(self.bytes, self.begun.elapsed()),
        });
    }
}

/// Makes a consistent data folder of what the program copied while its server worked.
async fn prepare(fetch: &Fetch, incoming: &Path) -> Result<(), CopyError> {
    let argv = [
        fetch.programs.backup.display().to_string(),
        "--no-defaults".to_owned(),
        "--prepare".to_owned(),
        format!("--target-dir={}", incoming.display()),
        format!("--tmpdir={}", fetch.place.temporary.display()),
        format!("--use-memory={}", fetch.memory.0),
    ];
    let none = Stdio::null;
    let program = Program::start(&argv, incoming, &fetch.place, none(), none())?;
    let what = "the copy is not prepared";
    program.succeed(what, fetch.limits.prepare).await
}

/// Removes what the backup program left for itself: a data folder with it would look like a backup.
fn tidy(incoming: &Path) -> Result<(), CopyError> {
    for entry in fs::read_dir(incoming).map_err(io_error("list", incoming))? {
        let path = entry.map_err(io_error("list", incoming))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let own = ["xtrabackup_", "mariadb_backup_", "backup-my.cnf"];
        if path.is_file() && own.iter().any(|own| name.starts_with(own)) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}
