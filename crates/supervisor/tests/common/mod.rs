//! A real supervisor around a real task, in a folder of its own, gone without a trace afterwards.

#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use homeostat_model::{ExitCause, Generation};
use homeostat_supervisor::find::{Connection, Found, await_supervisor, identify};
use homeostat_supervisor::launch::{FORMAT, LaunchFile, UserIds};
use homeostat_supervisor::leftovers::{kill_leftovers, verify_empty};
use homeostat_supervisor::process;
use homeostat_supervisor::protocol::{Event, Hello, Message, Phase, Process};
use homeostat_supervisor::run::RunRecord;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

pub const BINARY: &str = env!("CARGO_BIN_EXE_homeostat-supervise-test");
/// The bound of everything that is waited for; never reached unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A user that exists nowhere and owns nothing else.
pub const NOBODY: UserIds = UserIds {
    uid: 77_001,
    gid: 77_001,
};

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A task before its supervisor was started.
pub struct Prepared {
    pub dir: tempfile::TempDir,
    pub launch: LaunchFile,
    supervisor_user: Option<UserIds>,
    program: PathBuf,
}

impl Prepared {
    /// A shell script as a task.
    pub fn script(text: &str) -> Self {
        Self::command(&["/bin/sh", "-c", text])
    }

    pub fn command(argv: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users must get at the data folder, not at the rest.
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for folder in ["run", "data"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        let launch = LaunchFile {
            format: FORMAT,
            task: "shop-web-0".parse().unwrap(),
            service: "shop-web".parse().unwrap(),
            machine: "m1".parse().unwrap(),
            generation: Generation(3),
            argv: argv.iter().map(|text| (*text).to_owned()).collect(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            data: root.join("data"),
            run: root.join("run"),
            logs: root.join("logs"),
            shared: root.join("shared"),
            user: None,
            grace_ms: 5_000,
            memory_limit: None,
            address: "127.77.1.1".to_owned(),
            ports: BTreeMap::new(),
            keeper: None,
        };
        Self {
            dir,
            launch,
            supervisor_user: None,
            program: PathBuf::from(BINARY),
        }
    }

    /// The task runs as another user than the supervisor (root).
    pub fn task_as(mut self, user: UserIds) -> Self {
        std::os::unix::fs::chown(&self.launch.data, Some(user.uid), Some(user.gid)).unwrap();
        self.launch.user = Some(user);
        self
    }

    /// The whole supervisor runs as another user: where that user has no cgroup, this is the way without any.
    pub fn supervisor_as(mut self, user: UserIds) -> Self {
        let own = |path: &Path| {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
        };
        self.program = self.dir.path().join("supervise");
        fs::copy(BINARY, &self.program).unwrap();
        own(self.dir.path());
        own(&self.launch.run);
        own(&self.launch.data);
        self.supervisor_user = Some(user);
        self
    }

    /// What the task writes into `$PWD/NAME` can be waited for.
    pub fn fifo(&self, name: &str) -> Fifo {
        let path = self.launch.data.join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o666.into(),
            0,
        )
        .unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        // Opened for both, so that it neither blocks nor ends when a writer goes.
        let file = File::options().read(true).write(true).open(path).unwrap();
        Fifo {
            file,
            text: String::new(),
        }
    }

    pub fn command_line(&self) -> Command {
        self.launch.store().unwrap();
        if let Some(user) = self.supervisor_user {
            let path = self.launch.run.join("launch.json");
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid)).unwrap();
        }
        let mut command = Command::new(&self.program);
        command
            .arg("supervise")
            .arg(&self.launch.run)
            .stdin(Stdio::null());
        if let Some(user) = self.supervisor_user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    pub fn start(self) -> Task {
        let child = self.command_line().spawn().unwrap();
        let start_ticks = process::start_ticks(child.id()).unwrap().unwrap();
        let process = Process {
            pid: child.id(),
            start_ticks,
        };
        Task {
            prepared: self,
            supervisor: child,
            process,
        }
    }
}

pub struct Task {
    pub prepared: Prepared,
    pub supervisor: Child,
    pub process: Process,
}

impl Task {
    pub fn run_dir(&self) -> &Path {
        &self.prepared.launch.run
    }

    pub fn connect(&self) -> (Hello, Connection) {
        match await_supervisor(self.run_dir(), self.process, PATIENCE).unwrap() {
            Found::Alive { hello, connection } => (hello, connection),
            other => panic!("no supervisor: {other:?}"),
        }
    }

    pub fn child(&self) -> Process {
        match self.connect().0.phase {
            Phase::Running { child } => child,
            other => panic!("not running: {other:?}"),
        }
    }

    pub fn logs(&self) -> String {
        fs::read_to_string(self.prepared.launch.logs.join("out.log")).unwrap_or_default()
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let record = RunRecord::load(self.run_dir()).unwrap().unwrap();
        record.cgroups.into_iter().map(|group| group.path).collect()
    }

    /// Waits for the supervisor to exit and checks that it left nothing but its files.
    pub fn finish(mut self) -> ExitStatus {
        let cgroups = self.cgroups();
        let status = wait_exit(&mut self.supervisor);
        assert_eq!(verify_empty(self.run_dir()).unwrap(), []);
        assert!(!self.run_dir().join("s").exists(), "the socket stayed");
        for path in cgroups {
            assert!(!path.exists(), "{} stayed", path.display());
        }
        status
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        let left = kill_leftovers(self.run_dir());
        if !std::thread::panicking() {
            left.unwrap();
        }
    }
}

/// The next end of the task that a connection tells, or told already.
pub fn await_end(hello: &Hello, connection: &mut Connection) -> ExitCause {
    if let Phase::Ended { cause } = &hello.phase {
        return cause.clone();
    }
    loop {
        match connection.receive(PATIENCE).unwrap() {
            Message::Event(Event::Phase {
                phase: Phase::Ended { cause },
            }) => return cause,
            Message::Event(_) | Message::Reply { .. } => {}
            Message::Hello(again) => panic!("a second hello: {again:?}"),
        }
    }
}

pub fn end_of(task: &Task) -> ExitCause {
    let (hello, mut connection) = task.connect();
    await_end(&hello, &mut connection)
}

pub fn ended(run_dir: &Path) -> ExitCause {
    match identify(run_dir, PATIENCE).unwrap() {
        Found::Ended(exit) => exit.cause,
        other => panic!("no exit file: {other:?}"),
    }
}

pub fn kill9(pid: u32) {
    send(pid, Signal::KILL);
}

pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits until a process is gone or a zombie. It may be nobody's child of ours.
pub fn await_death(process: Process) {
    let pid = Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if process::alive(process) {
        wait_readable(&fd);
    }
    assert!(!process::alive(process), "{process:?} lives");
}

pub fn process_of(pid: u32) -> Process {
    let start_ticks = process::start_ticks(pid).unwrap().unwrap();
    Process { pid, start_ticks }
}

pub fn wait_exit(child: &mut Child) -> ExitStatus {
    if let Some(status) = child.try_wait().unwrap() {
        return status;
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    wait_readable(pidfd_open(pid, PidfdFlags::empty()).unwrap());
    child.wait().unwrap()
}

pub fn wait_readable(fd: impl AsFd) {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited in vain");
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap(),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        if matches!(poll(&mut fds, Some(&timeout)), Ok(1..)) {
            return;
        }
    }
}

pub struct Fifo {
    file: File,
    text: String,
}

impl Fifo {
    /// The next line; fails when none comes.
    pub fn line(&mut self) -> String {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let line = line.to_owned();
                self.text = rest.to_owned();
                return line;
            }
            wait_readable(&self.file);
            let mut piece = [0u8; 512];
            let n = self.file.read(&mut piece).unwrap();
            self.text
                .push_str(std::str::from_utf8(&piece[..n]).unwrap());
        }
    }

    /// For a task that waits to be told.
    pub fn write_line(&mut self) {
        self.file.write_all(b"go\n").unwrap();
    }

    /// The next line as a process that runs now.
    pub fn process(&mut self) -> Process {
        process_of(self.line().trim().parse().unwrap())
    }
}
