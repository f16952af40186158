//! The source's side: an offer, and the backup program's output for whoever takes it.

use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use homeostat_decider::{CopyOffer, CopyToken};
use homeostat_model::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::WriteHalf;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::pace::Pace;
use super::program::{self, Program};
use super::wire::{self, Frame, HEAD, PIECE, Role, Words};
use super::{
    CopyError, CopyPrograms, Limits, Place, Progress, Stage, account, blocking, folder, io_error,
    system,
};
use crate::keeper::Secret;
use crate::mariadb::{Driver, Login};

/// Callers without the token that are sent away before the offer is withdrawn.
const STRANGERS: usize = 8;
/// For a last word to the other side.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a source needs to make a copy of itself.
#[derive(Debug, Clone)]
pub struct Lend {
    pub programs: CopyPrograms,
    pub login: Login,
    /// The server's data folder.
    pub sql: PathBuf,
    /// A folder of the server's user where the program's options are for the time of the copy.
    pub folder: PathBuf,
    pub place: Place,
    /// `None`: as fast as it goes.
    pub per_second: Option<NonZeroU64>,
    pub limits: Limits,
}

/// An offer that waits for its taker.
#[derive(Debug)]
pub struct Offered {
    listener: TcpListener,
    offer: CopyOffer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub bytes: Bytes,
    pub took: Duration,
}

/// Listens at `host` and draws a token.
///
/// # Errors
/// When `host` is not a loopback address, or the system refuses.
pub async fn offer(host: &str) -> Result<Offered, CopyError> {
    check_loopback(host)?;
    let listener = TcpListener::bind((host, 0))
        .await
        .map_err(system("listen for the target of a copy"))?;
    let address = listener
        .local_addr()
        .map_err(system("see where it listens"))?;
    let token =
        Secret::random().map_err(|error| system("draw a token")(std::io::Error::other(error)))?;
    let offer = CopyOffer {
        host: host.to_owned(),
        port: address.port(),
        token: CopyToken::new(token.reveal().to_owned()),
    };
    Ok(Offered { listener, offer })
}

pub(super) fn check_loopback(host: &str) -> Result<(), CopyError> {
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let host = host.to_owned();
    if loopback {
        Ok(())
    } else {
        Err(CopyError::NotLoopback { host })
    }
}

impl Offered {
    pub fn offer(&self) -> &CopyOffer {
        &self.offer
    }

    /// Sends one copy to the first that proves it knows the token. Dropping the future ends everything it started; the
    /// account of the copy is then removed by the next copy or start of the server.
    ///
    /// # Errors
    /// When nobody comes, the backup program fails, or the target ends it: the target is told why.
    pub async fn send(
        self,
        lend: &Lend,
        progress: &watch::Sender<Progress>,
    ) -> Result<Sent, CopyError> {
        let sql = lend.sql.clone();
        let about = blocking("look at the data folder", move || folder::size(&sql)).await?;
        let limit = lend.limits.taken;
        let taken = timeout(limit, self.taker(lend.limits.greeting, about)).await;
        let limit_s = limit.as_secs();
        let mut stream = taken.unwrap_or(Err(CopyError::NotTaken { limit_s }))?;
        let begun = Instant::now();
        let result = with_account(lend, &mut stream, about, progress).await;
        match result {
            Ok(bytes) => {
                let took = begun.elapsed();
                Ok(Sent { bytes, took })
            }
            Err(error) => {
                let why = crate::keeper::chain(&error);
                // It may be gone, which may be the very reason.
                let _ = timeout(LAST_WORD, wire::say(&mut stream, &Words::Failed { why })).await;
                Err(error)
            }
        }
    }

    /// The first caller that knows the token, if it has room for the copy.
    async fn taker(&self, limit: Duration, about: Bytes) -> Result<TcpStream, CopyError> {
        for _ in 0..STRANGERS {
            let accepted = self.listener.accept().await;
            let (mut stream, _) = accepted.map_err(system("take the target's connection"))?;
            if let Err(error) = self.greet(&mut stream, limit, about).await {
                let why = error.to_string();
                let _ = timeout(LAST_WORD, wire::say(&mut stream, &Words::Failed { why })).await;
                continue;
            }
            return match wire::answer(&mut stream, Role::Source, limit).await? {
                Words::Begin => Ok(stream),
                other => Err(wire::unexpected(&Frame::Words(other))),
            };
        }
        let why = format!("{STRANGERS} callers did not know the token");
        Err(CopyError::Protocol(why))
    }

    async fn greet(
        &self,
        stream: &mut TcpStream,
        limit: Duration,
        about: Bytes,
    ) -> Result<(), CopyError> {
        let send = system("greet the target");
        let source = wire::nonce()?;
        let hello = Words::Hello {
            version: wire::VERSION,
            nonce: source.clone(),
        };
        wire::say(stream, &hello).await.map_err(send)?;
        let target = match wire::answer(stream, Role::Source, limit).await? {
            Words::Prove {
                version,
                nonce,
                proof,
            } => {
                wire::check_version(Role::Source, version)?;
                let expected = wire::proof(Role::Target, &self.offer.token, &source, &nonce);
                if !wire::same(&proof, &expected) {
                    return Err(CopyError::Protocol("the token is wrong".into()));
                }
                nonce
            }
            other => return Err(wire::unexpected(&Frame::Words(other))),
        };
        let proof = wire::proof(Role::Source, &self.offer.token, &source, &target);
        let welcome = Words::Welcome { proof, about };
        wire::say(stream, &welcome)
            .await
            .map_err(system("greet the target"))
    }
}

/// Makes the account and the options, runs the backup, and removes both again.
async fn with_account(
    lend: &Lend,
    stream: &mut TcpStream,
    about: Bytes,
    progress: &watch::Sender<Progress>,
) -> Result<Bytes, CopyError> {
    let mut driver = Driver::new(lend.login.clone());
    let password = account::make(&mut driver).await?;
    folder::private(&lend.place.temporary, lend.place.user)?;
    let options = lend.folder.join("copy.cnf");
    write_options(lend, &options, &password)?;
    let result = backup(lend, &options, stream, about, progress).await;
    let removed = std::fs::remove_file(&options).map_err(io_error("remove", &options));
    let dropped = account::remove(&mut driver).await;
    let bytes = result?;
    removed?;
    dropped?;
    Ok(bytes)
}

/// The backup program's login and places, for the server's user alone.
fn write_options(lend: &Lend, path: &Path, password: &Secret) -> Result<(), CopyError> {
    use std::io::Write;
    let temporary = lend.place.temporary.display();
    let text = format!(
        "[mariadb-backup]\nuser={}\npassword={}\nsocket={}\ndatadir={}\ntmpdir={temporary}\ntarget-dir={temporary}\n",
        account::USER,
        password.reveal(),
        lend.login.socket.display(),
        lend.sql.display(),
    );
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io_error("remove", path)(error));
        }
        Ok(()) | Err(_) => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("write", path))?;
    file.write_all(text.as_bytes())
        .map_err(io_error("write", path))?;
    folder::give(path, lend.place.user)
}

async fn backup(
    lend: &Lend,
    options: &Path,
    stream: &mut TcpStream,
    about: Bytes,
    progress: &watch::Sender<Progress>,
) -> Result<Bytes, CopyError> {
    let argv = [
        lend.programs.backup.display().to_string(),
        format!("--defaults-file={}", options.display()),
        "--backup".to_owned(),
        "--stream=xbstream".to_owned(),
    ];
    let (output, input) = program::pipe()?;
    let program = Program::start(
        &argv,
        &lend.place.temporary,
        &lend.place,
        Stdio::null(),
        input.into(),
    )?;
    let output = pipe::Receiver::from_owned_fd(output).map_err(system("read a pipe"))?;
    let (mut from, to) = stream.split();
    let bytes = {
        let objection = wire::hear(&mut from, Role::Source);
        let mut pump = Pump {
            lend,
            output,
            to,
            about,
            progress,
            bytes: 0,
        };
        pump.run(std::pin::pin!(objection)).await?
    };
    program
        .succeed("the backup program does not end", lend.limits.ending)
        .await?;
    wire::say(stream, &Words::End { bytes })
        .await
        .map_err(|error| Role::Source.ended(error.to_string()))?;
    Ok(Bytes(bytes))
}

/// From the program's pipe into the connection.
struct Pump<'a> {
    lend: &'a Lend,
    output: pipe::Receiver,
    to: WriteHalf<'a>,
    about: Bytes,
    progress: &'a watch::Sender<Progress>,
    bytes: u64,
}

impl Pump<'_> {
    /// Until the program closes its output. `objection` is whatever the target says: it should say nothing.
    async fn run(
        &mut self,
        mut objection: Pin<&mut impl Future<Output = Result<Frame, CopyError>>>,
    ) -> Result<u64, CopyError> {
        let stall = self.lend.limits.stall;
        let begun = Instant::now();
        let mut pace = Pace::new(self.lend.per_second, begun);
        let mut piece = vec![0; HEAD + PIECE];
        loop {
            self.tell(begun);
            let reading = timeout(stall, self.output.read(&mut piece[HEAD..]));
            let length = match unless(objection.as_mut(), reading).await? {
                Ok(Ok(0)) => return Ok(self.bytes),
                Ok(Ok(length)) => length,
                Ok(Err(error)) => return Err(system("read what the backup program writes")(error)),
                Err(_) => return Err(stalled("the backup program wrote nothing", stall)),
            };
            let frame = &mut piece[..HEAD + length];
            wire::head(frame);
            let writing = timeout(stall, self.to.write_all(frame));
            match unless(objection.as_mut(), writing).await? {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Role::Source.ended(error.to_string())),
                Err(_) => return Err(stalled("the target took nothing", stall)),
            }
            self.bytes += length as u64;
            let pause = pace.sent(length as u64, Instant::now());
            if !pause.is_zero() {
                unless(objection.as_mut(), sleep(pause)).await?;
            }
        }
    }

    fn tell(&self, begun: Instant) {
        self.progress.send_replace(Progress {
            stage: Stage::Copying,
            bytes: Bytes(self.bytes),
            of: Some(self.about),
            bytes_per_second: rate(self.bytes, begun.elapsed()),
        });
    }
}

/// Bytes a second.
pub(super) fn rate(bytes: u64, elapsed: Duration) -> u64 {
    (bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64
}

pub(super) fn stalled(what: &'static str, limit: Duration) -> CopyError {
    let limit_s = limit.as_secs();
    CopyError::Stalled { what, limit_s }
}

/// Does `work` unless the target objects first.
async fn unless<T>(
    objection: Pin<&mut impl Future<Output = Result<Frame, CopyError>>>,
    work: impl Future<Output = T>,
) -> Result<T, CopyError> {
    tokio::select! {
        biased;
        said = objection => Err(match said {
            Ok(Frame::Words(Words::Failed { why })) => Role::Source.ended(why),
            Ok(frame) => wire::unexpected(&frame),
            Err(error) => error,
        }),
        done = work => Ok(done),
    }
}
