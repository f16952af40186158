//! The server's process: started so that it cannot outlive the keeper, watched through a pidfd, reaped here and nowhere
//! else. "It exited" is therefore exact.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use homeostat_decider::{BootId, ServerIncarnation};
use homeostat_model::ExitCause;
use homeostat_supervisor::cgroup::TaskGroup;
use homeostat_supervisor::launch::{LaunchFile, UserIds};
use homeostat_supervisor::logs::Log;
use homeostat_supervisor::spawn::{self, Plan};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// The longest path of a unix socket, without its final zero.
const LONGEST_SOCKET: usize = 107;

/// Where a server's files are, apart from its data.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// `<data>/sql`.
    pub data: PathBuf,
    /// `<data>/tmp`: this server's alone.
    pub temporary: PathBuf,
    /// A folder of the server's user in the run folder.
    pub folder: PathBuf,
    pub socket: PathBuf,
    pub pid_file: PathBuf,
    pub options: PathBuf,
    pub init: PathBuf,
}

impl Paths {
    pub(crate) fn of(launch: &LaunchFile, run_dir: &Path) -> Self {
        let folder = run_dir.join("m");
        Self {
            data: launch.data.join("sql"),
            temporary: launch.data.join("tmp"),
            socket: folder.join("s"),
            pid_file: folder.join("pid"),
            options: folder.join("my.cnf"),
            init: folder.join("init.sql"),
            folder,
        }
    }

    /// Makes the folder and writes what the server reads at its start, for its user's eyes only.
    pub(crate) fn write(&self, user: Option<UserIds>, options: &str, init: &str) -> io::Result<()> {
        let length = self.socket.as_os_str().len();
        if length > LONGEST_SOCKET {
            let why = format!(
                "the socket {} has {length} bytes, more than {LONGEST_SOCKET}",
                self.socket.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        for folder in [&self.folder, &self.temporary] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            give(folder, user)?;
        }
        for stale in [&self.socket, &self.pid_file] {
            remove(stale)?;
        }
        private(&self.options, options, user)?;
        private(&self.init, init, user)
    }

    /// The init file holds passwords and is needed for no longer than the start takes.
    pub(crate) fn forget_init(&self) -> io::Result<()> {
        remove(&self.init)
    }
}

fn private(path: &Path, text: &str, user: Option<UserIds>) -> io::Result<()> {
    use std::io::Write;
    remove(path)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    give(path, user)
}

fn give(path: &Path, user: Option<UserIds>) -> io::Result<()> {
    match user {
        Some(user) if rustix::process::geteuid().is_root() => {
            std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
        }
        Some(_) | None => Ok(()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A server that was started. It stays in the value after its end.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub incarnation: ServerIncarnation,
    pidfd: Rc<OwnedFd>,
    group: Rc<TaskGroup>,
    exit: watch::Receiver<Option<ExitCause>>,
}

impl Server {
    /// Starts it. `argv` names the program; its output goes to `log`.
    pub(crate) fn start(
        argv: &[String],
        launch: &LaunchFile,
        run_dir: &Path,
        group: &Rc<TaskGroup>,
        boot: &BootId,
        log: &Rc<RefCell<Log>>,
    ) -> io::Result<Self> {
        let doors = group.doors()?;
        let plan = Plan {
            argv,
            env: &BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]),
            folder: &launch.data.join("sql"),
            user: launch.user,
            run_dir,
            doors: &doors,
        };
        let started = spawn::start(&plan).map_err(|error| io::Error::other(error.to_string()))?;
        let pid = i32::try_from(started.process.pid)
            .ok()
            .and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the server's pid is no pid"))?;
        let pidfd = Rc::new(pidfd_open(pid, PidfdFlags::empty())?);
        let (told, exit) = watch::channel(None);
        // SAFETY: an `OwnedFd` is one descriptor, the same for as long as it lives, and open until it is dropped.
        let end =
            unsafe { AsyncFd::register_with_interest(pidfd.try_clone()?, Interest::READABLE) }?;
        tokio::task::spawn_local(async move {
            // A pidfd is readable when its process has ended. If it cannot be waited for, waiting blocks, and is exact.
            let _ = end.readable().await.map(|mut ready| ready.clear_ready());
            let _ = told.send(Some(reap(pid)));
        });
        tokio::task::spawn_local(pump(
            pipe::Receiver::from_owned_fd(started.output)?,
            log.clone(),
        ));
        let incarnation = ServerIncarnation {
            boot: boot.clone(),
            pid: started.process.pid,
            start_ticks: started.process.start_ticks,
        };
        Ok(Self {
            incarnation,
            pidfd,
            group: group.clone(),
            exit,
        })
    }

    /// How it ended, when it has.
    pub(crate) fn ended(&self) -> Option<ExitCause> {
        self.exit.borrow().clone()
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self) -> ExitCause {
        match self.exit.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or(ExitCause::Code { code: 0 }),
            // The task that reaps holds the sender until it has told.
            Err(_) => ExitCause::NotStarted {
                why: "nobody waits for it".into(),
            },
        }
    }

    /// For whoever has to kill it without waiting for anybody.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    pub(crate) fn kill(&self) {
        self.group.kill();
        // Where there is no cgroup; that it has ended already is as good.
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL);
    }

    pub(crate) fn terminate(&self) {
        let _ = pidfd_send_signal(self.pidfd.as_fd(), Signal::TERM);
    }
}

/// Takes the exit of a process that has ended, or waits for it.
fn reap(pid: Pid) -> ExitCause {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                if let Some(code) = status.exit_status() {
                    return ExitCause::Code { code };
                }
                if let Some(signal) = status.terminating_signal() {
                    return ExitCause::Signal { signal };
                }
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return ExitCause::NotStarted {
                    why: format!("it cannot be waited for: {error}"),
                };
            }
        }
    }
}

/// Copies the server's output into the log until all that had it open are gone.
async fn pump(mut output: pipe::Receiver, log: Rc<RefCell<Log>>) {
    let mut piece = vec![0; 4096];
    loop {
        match output.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(length) => log.borrow_mut().write(&piece[..length]),
        }
    }
}
