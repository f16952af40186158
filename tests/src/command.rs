//! Runs commands, always with a limit on their time.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// What a command did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
    pub took: Duration,
    what: String,
}

impl Ran {
    /// Fails the test unless it ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(self.code == Some(code), "expected exit code {code}: {self}");
        self
    }

    /// Fails the test unless its errors contain this.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(
            self.err.contains(text),
            "expected '{text}' in its errors: {self}"
        );
        self
    }

    /// Fails the test unless its output contains this.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(
            self.out.contains(text),
            "expected '{text}' in its output: {self}"
        );
        self
    }

    /// Fails the test unless it failed with one error, said in words: no panic, no backtrace, no second error.
    #[track_caller]
    pub fn one_error(self, code: i32) -> Self {
        self.one_error_of(&[code])
    }

    /// As [`Self::one_error`], where more than one code is right.
    #[track_caller]
    pub fn one_error_of(self, codes: &[i32]) -> Self {
        let ran = self;
        assert!(
            ran.code.is_some_and(|code| codes.contains(&code)),
            "expected an exit code of {codes:?}: {ran}"
        );
        let errors = ran
            .err
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert!(errors == 1, "expected one error, got {errors}: {ran}");
        assert!(!ran.err.contains("panicked at"), "it panicked: {ran}");
        ran
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self
            .code
            .map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
        write!(
            f,
            "`{}` ended with {code} after {:.1} s",
            self.what,
            self.took.as_secs_f64()
        )?;
        write!(
            f,
            "\n--- its output:\n{}--- its errors:\n{}---",
            self.out, self.err
        )
    }
}

/// A command that runs. Killed when dropped.
pub struct Running {
    child: Child,
    began: Instant,
    what: String,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let what = format!("{command:?}").replace('"', "");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run `{what}`: {error}"));
        let out = collect(child.stdout.take());
        let err = collect(child.stderr.take());
        Self {
            child,
            began: Instant::now(),
            what,
            out,
            err,
        }
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a child has a pid"), signal).expect("a child can be signalled");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self, within: Duration) -> Ran {
        let what = self.what.clone();
        let status = wait_for(&format!("the end of `{what}`"), within, || {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => Ok(status),
                None => Err("it still runs".to_owned()),
            }
        });
        let took = self.began.elapsed();
        // Whoever inherited its pipes would keep them open: a background process must not.
        let text = |from: &Receiver<String>| {
            from.recv_timeout(Duration::from_secs(5))
                .unwrap_or_else(|_| {
                    panic!("`{what}` ended, but something it started still holds its output open")
                })
        };
        Ran {
            code: status.code(),
            out: text(&self.out),
            err: text(&self.err),
            took,
            what: what.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            // Ended meanwhile: as wanted.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What could be read until then is what there is.
            let _ = from.read_to_end(&mut bytes);
        }
        // Nobody waits for it when the command was dropped.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}
