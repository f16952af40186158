//! How long to wait before trying again: at first not at all.
//!
//! The usual failure is a connection that was closed because the primary changed, and the next
//! connection is good. Only a second failure says that it is worth waiting a little. There is no
//! count of attempts here: whoever retries owns the deadline.

use std::time::Duration;

pub struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    pub fn up_to(most: Duration) -> Self {
        Self {
            next: Duration::ZERO,
            most,
        }
    }

    pub async fn pause(&mut self) {
        let pause = self.advance();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn advance(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).clamp(Duration::from_millis(1), self.most);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_at_once_then_waits_up_to_the_limit() {
        let mut backoff = Backoff::up_to(Duration::from_millis(5));
        let pauses: Vec<u128> = (0..6).map(|_| backoff.advance().as_millis()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 5, 5]);
    }
}
