//! Bounded waits for conditions.

use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks until there is something, and answers with it and with how long that took.
///
/// # Errors
/// What the last look said was missing.
pub fn try_for<T>(
    within: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<(T, Duration), String> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok((found, began.elapsed())),
            Err(missing) if began.elapsed() >= within => return Err(missing),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// As [`try_for`], and fails the test.
pub fn wait_for<T>(what: &str, within: Duration, look: impl FnMut() -> Result<T, String>) -> T {
    match try_for(within, look) {
        Ok((found, _)) => found,
        Err(missing) => panic!("{what}: not within {} s: {missing}", within.as_secs_f64()),
    }
}

/// Waits for a plain truth.
pub fn wait_until(what: &str, within: Duration, mut is: impl FnMut() -> bool) {
    wait_for(what, within, || {
        if is() {
            Ok(())
        } else {
            Err("it is not so".to_owned())
        }
    });
}
