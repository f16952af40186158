//! The load: sixteen customers that place orders straight at a database and want to know when they could not.
//!
//! The same code runs against a cell's endpoint and against the floor's servers; what differs is only the door, which
//! says where the primary is. It runs on a thread of its own, so that nothing the measurement does delays it, and each
//! order is one statement, sent as text: one round trip, also on the first after a reconnect.
//!
//! **An outage is a gap**: the time between two successive acknowledged commits, whoever of the customers got them. An
//! order is placed again under the same key until it is acknowledged, and customers place their orders one after the
//! other, so "acknowledged" is one number per customer and what is lost can be counted exactly.

mod book;
mod pace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Opts, OptsBuilder};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use book::Book;
pub use book::Gap;
pub use pace::Rate;
use pace::{Pacer, Slot};

pub const CONNECTIONS: u64 = 16;
const TABLE: &str = "CREATE TABLE IF NOT EXISTS bench_orders (client BIGINT UNSIGNED NOT NULL, \
    seq BIGINT UNSIGNED NOT NULL, item VARCHAR(200) NOT NULL, \
    placed_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), PRIMARY KEY (client, seq)) ENGINE=InnoDB";

/// One attempt; a customer that waits longer tries again.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// After an error a customer tries again at once, then after 1, 2, 4, 5, 5… ms.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(5);
/// So many acknowledgements after a fault say that it is over.
const OVER_AFTER: u64 = 64;
const OVER_WITHIN: Duration = Duration::from_secs(60);

/// Where the primary is; `None` while there is none that anybody knows of.
pub type Door = watch::Receiver<Option<Opts>>;

/// Options for an application's connection.
pub fn application(url: &str) -> anyhow::Result<Opts> {
    let opts = Opts::from_url(url).context("parse the connection string")?;
    Ok(OptsBuilder::from_opts(opts)
        // The driver would ask for the server's unix socket and move there, past any forwarder.
        .prefer_socket(false)
        // Stated, they need not be asked for: no round trip besides the greeting.
        .max_allowed_packet(Some(16 << 20))
        .wait_timeout(Some(28_800))
        .into())
}

/// The running load. It ends when this is dropped.
pub struct Load {
    shared: Arc<Shared>,
    door: Door,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    pacer: Mutex<Pacer>,
    book: Mutex<Book>,
    /// Sent anew when the rate changes, to wake those who wait for their time.
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Placing,
    Stopping,
}

/// Customers are never numbered twice in a run, so several loads can place orders in one table.
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(1);

impl Load {
    /// Makes the table and starts the customers, idle.
    pub async fn start(door: Door) -> anyhow::Result<Self> {
        let opts = door
            .borrow()
            .clone()
            .context("there is no primary to start with")?;
        let mut conn = Conn::new(opts).await.context("connect to the primary")?;
        conn.query_drop(TABLE)
            .await
            .context("make the table of orders")?;
        conn.disconnect().await.context("leave the primary")?;
        let shared = Arc::new(Shared {
            pacer: Mutex::new(Pacer::new(Rate::Idle, Instant::now())),
            book: Mutex::new(Book::default()),
            phase: watch::Sender::new(Phase::Placing),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the load")?;
        let thread = {
            let (shared, door) = (shared.clone(), door.clone());
            std::thread::Builder::new()
                .name("load".into())
                .spawn(move || runtime.block_on(customers(shared, door)))
        };
        Ok(Self {
            shared,
            door,
            thread: Some(thread.context("start the load's thread")?),
        })
    }

    /// Gaps are counted anew from here: changing the rate is no outage.
    pub fn set_rate(&self, rate: Rate) {
        lock(&self.shared.book).forget_last();
        *lock(&self.shared.pacer) = Pacer::new(rate, Instant::now());
        self.shared.phase.send_modify(|_| ());
    }

    /// Acknowledged orders per second over `window`, after `warm_up`, as fast as the customers can.
    pub async fn throughput(&self, warm_up: Duration, window: Duration) -> f64 {
        self.set_rate(Rate::Max);
        sleep(warm_up).await;
        let (began, before) = (Instant::now(), lock(&self.shared.book).acknowledged());
        sleep(window).await;
        let count = lock(&self.shared.book).acknowledged() - before;
        let rate = count as f64 / began.elapsed().as_secs_f64();
        self.set_rate(Rate::Idle);
        rate
    }

    /// From now on the longest gap counts; the one that is under way does too.
    pub fn watch_gaps(&self) {
        lock(&self.shared.book).open();
    }

    /// Waits until the fault that was caused after `watch_gaps` is over: acknowledgements come again.
    ///
    /// A few always come right after the fault, because they were under way. So it waits for that many after the
    /// longest gap, too.
    pub async fn until_over(&self) -> anyhow::Result<()> {
        let until = Instant::now() + OVER_WITHIN;
        while lock(&self.shared.book).since_longest() < OVER_AFTER {
            if Instant::now() >= until {
                bail!(
                    "no orders were acknowledged for {} s after the fault",
                    OVER_WITHIN.as_secs()
                );
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// What was seen since `watch_gaps`.
    pub fn gap(&self) -> Gap {
        lock(&self.shared.book).close(Instant::now())
    }

    pub fn acknowledged(&self) -> u64 {
        lock(&self.shared.book).acknowledged()
    }

    /// Counts the acknowledged orders that the primary does not have. The load must be idle.
    pub async fn lost(&self) -> anyhow::Result<u64> {
        let opts = self
            .door
            .borrow()
            .clone()
            .context("there is no primary to ask")?;
        let mut conn = Conn::new(opts).await.context("connect to the primary")?;
        let mut lost = 0;
        let by_client = lock(&self.shared.book).by_client();
        for (client, acknowledged) in by_client {
            let query = format!(
                "SELECT COUNT(*) FROM bench_orders WHERE client = {client} AND seq <= {acknowledged}"
            );
            let kept: u64 = conn
                .query_first(query)
                .await
                .context("count the orders")?
                .unwrap_or(0);
            lost += acknowledged.saturating_sub(kept);
        }
        conn.disconnect().await.context("leave the primary")?;
        Ok(lost)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Stopping);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

/// Until told to stop. Customers that wait for an answer then are dropped with it.
async fn customers(shared: Arc<Shared>, door: Door) {
    let mut stop = shared.phase.subscribe();
    let mut customers = JoinSet::new();
    let first = NEXT_CLIENT.fetch_add(CONNECTIONS, Ordering::Relaxed);
    for client in first..first + CONNECTIONS {
        customers.spawn(customer(shared.clone(), door.clone(), client));
    }
    // An error would mean that the sender is gone, which `shared` holds.
    let _ = stop.wait_for(|phase| *phase == Phase::Stopping).await;
    customers.shutdown().await;
}

async fn customer(shared: Arc<Shared>, mut door: Door, client: u64) {
    let mut phase = shared.phase.subscribe();
    let mut conn = None;
    for seq in 1u64.. {
        shared.wait_for_slot(&mut phase).await;
        let sql = format!(
            "INSERT INTO bench_orders (client, seq, item) VALUES ({client}, {seq}, 'a pound of tea') \
             ON DUPLICATE KEY UPDATE seq = seq"
        );
        let mut pause = Duration::ZERO;
        while let Err(Failed) = place(&mut conn, &mut door, &sql).await {
            conn = None;
            lock(&shared.book).error();
            if !pause.is_zero() {
                sleep(pause).await;
            }
            pause = (pause * 2).clamp(Duration::from_millis(1), RETRY_PAUSE_MAX);
        }
        lock(&shared.book).acknowledge(client, seq, Instant::now());
    }
}

/// Every error is answered alike: by another attempt under the same key.
struct Failed;

async fn place(conn: &mut Option<Conn>, door: &mut Door, sql: &str) -> Result<(), Failed> {
    let attempt = async {
        let open = match conn {
            Some(open) => open,
            None => {
                // The sender lives as long as the measurement.
                let opts = door
                    .wait_for(Option::is_some)
                    .await
                    .map_err(|_| Failed)?
                    .clone()
                    .ok_or(Failed)?;
                conn.insert(Conn::new(opts).await.map_err(|_| Failed)?)
            }
        };
        open.query_drop(sql).await.map_err(|_| Failed)
    };
    timeout(ANSWER_WITHIN, attempt).await.unwrap_or(Err(Failed))
}

impl Shared {
    async fn wait_for_slot(&self, phase: &mut watch::Receiver<Phase>) {
        loop {
            phase.mark_unchanged();
            let slot = lock(&self.pacer).reserve(Instant::now());
            let due = async {
                match slot {
                    Slot::Now => (),
                    Slot::At(time) => sleep_until(time.into()).await,
                    Slot::Never => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = due => return,
                _ = phase.changed() => (), // the slot belongs to a schedule that is gone
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
