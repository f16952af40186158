//! One attempt, isolated: a task of its own, a limit on its time, and its panic as its failure.

use std::any::Any;
use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use crate::limits;
use crate::procedure::Wanted;

/// How an attempt ended.
#[derive(Debug, PartialEq)]
pub(crate) enum Ended<T> {
    With(T),
    /// In a panic, with its message.
    Panicked(String),
    /// Stopped, and gone.
    Stopped(Why),
    /// Stopped, and not gone: it does not come to an await.
    Wedged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    OutOfTime,
    Cancelled,
}

/// Runs `work` until it ends, its time is up, or `cancelled` returns. Then it is told through `stop`, given a grace in
/// which its result still counts, and dropped. Returns only when it is gone, or cannot be made to go.
pub(crate) async fn attempt<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
    time: Duration,
    stop: &watch::Sender<Wanted>,
    cancelled: impl Future<Output = ()>,
) -> Ended<T> {
    let mut task = tokio::spawn(work);
    let why = tokio::select! {
        ended = &mut task => return ended_with(ended),
        () = tokio::time::sleep(time) => Why::OutOfTime,
        () = cancelled => Why::Cancelled,
    };
    stop.send_replace(Wanted::No);
    if let Ok(ended) = timeout(limits::STOP_GRACE, &mut task).await {
        return ended_with(ended);
    }
    drop_task(task, why).await
}

async fn drop_task<T>(task: JoinHandle<T>, why: Why) -> Ended<T> {
    task.abort();
    match timeout(limits::ABORT_GRACE, task).await {
        Ok(Err(error)) if error.is_cancelled() => Ended::Stopped(why),
        Ok(ended) => ended_with(ended),
        Err(_) => Ended::Wedged,
    }
}

fn ended_with<T>(ended: Result<T, JoinError>) -> Ended<T> {
    match ended {
        Ok(value) => Ended::With(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => Ended::Panicked(message(panic.as_ref())),
            // Nobody but `drop_task` aborts it: the runtime is shutting down, and this task with it.
            Err(_) => Ended::Stopped(Why::Cancelled),
        },
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::pending;

    use super::*;
    use crate::procedure::Cancellation;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_result_is_a_result() {
        let (stop, _) = Cancellation::channel();
        assert_eq!(
            attempt(async { 7 }, LONG, &stop, pending()).await,
            Ended::With(7)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_an_end_and_no_more() {
        let (stop, _) = Cancellation::channel();
        let panics = async {
            if LONG > Duration::ZERO {
                panic!("no {}", "way")
            }
        };
        assert_eq!(
            attempt(panics, LONG, &stop, pending()).await,
            Ended::Panicked("panicked: no way".into())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn out_of_time_is_told_and_then_dropped() {
        let (stop, cancellation) = Cancellation::channel();
        let told = cancellation.clone();
        let deaf = async move {
            told.cancelled().await;
            pending::<()>().await;
        };
        let ended = attempt(deaf, Duration::from_secs(1), &stop, pending()).await;
        assert_eq!(ended, Ended::Stopped(Why::OutOfTime));
        assert!(cancellation.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_within_the_grace_still_counts() {
        let (stop, cancellation) = Cancellation::channel();
        let polite = async move {
            cancellation.cancelled().await;
            "tidied up"
        };
        assert_eq!(
            attempt(polite, LONG, &stop, async {}).await,
            Ended::With("tidied up")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_drops_what_does_not_listen() {
        let (stop, _) = Cancellation::channel();
        assert_eq!(
            attempt(pending::<()>(), LONG, &stop, async {}).await,
            Ended::Stopped(Why::Cancelled)
        );
    }
}
