//! One test at a time. A cell is a dozen processes and its databases sync to the disk: two at once on a small machine
//! would fail each other's deadlines.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

static TURN: Mutex<()> = Mutex::new(());

/// Held by the test that runs.
pub struct Turn {
    began: Instant,
    name: String,
    _guard: MutexGuard<'static, ()>,
}

/// Waits until it is this test's turn. The first line of every test.
pub fn begin() -> Turn {
    // A test that failed has poisoned it, and has cleaned up.
    let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    Turn {
        began: Instant::now(),
        name,
        _guard: guard,
    }
}

impl Turn {
    /// Says why a test cannot run here. Written where the test runner does not hide it.
    pub fn skip(&self, why: &str) {
        print(&format!("{}: SKIPPED: {why}", self.name));
    }

    /// Says something that people should see even when the test passes.
    pub fn note(&self, what: &str) {
        print(&format!("{}: {what}", self.name));
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        print(&format!(
            "{}: took {:.1} s",
            self.name,
            self.began.elapsed().as_secs_f64()
        ));
    }
}

/// The runner captures what the macros print, not what is written to the stream itself.
fn print(line: &str) {
    // Nobody to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
