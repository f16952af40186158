//! The customers: they place orders at a chosen rate and remember what was promised to them.
//!
//! Each customer has one connection, an id of its own and places one order at a time, again and
//! again with the same key until it is acknowledged. The acknowledged keys go to the log's writer,
//! a thread that syncs them in groups; nobody waits for it, but an order counts as acknowledged
//! only once its line is durable.

mod control;
mod meter;
mod pace;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};

use crate::console;
use crate::database::Database;
use crate::http;
use crate::order::{Key, Order};
use crate::order_log::{self, Writer};
use crate::retry::Backoff;
use crate::target::{self, Target};
use crate::web;

use meter::{Line, Meter, Report};
use pace::{Pacer, Rate, Slot};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: target::Args,
    /// Customers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Orders per second, of all customers together; 0 to pause, `max` for as many as they can
    #[arg(long, default_value = "100")]
    rate: Rate,
    /// File to append each acknowledged order to, as a line `client seq`
    #[arg(long, value_name = "FILE")]
    log: PathBuf,
    /// Serve GET /report and POST /rate?per_second=N here
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Stop after so many seconds (otherwise at SIGTERM)
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

/// After an error a customer tries again at once, then after 1, 2, 4, 5, 5… ms: short, because
/// what is measured is the shop's pause and not that of its customers.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(5);
/// For one attempt at the database. (The web service has a limit of its own.)
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// When the load ends, orders under way may still be acknowledged for so long.
const FINISH_WITHIN: Duration = Duration::from_secs(2);

const ITEMS: [&str; 4] = ["a teapot", "two cups", "a pound of tea", "sugar tongs"];

pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut stop = Box::pin(console::stop_requested()?);
    let target = args.target.target()?;
    let writer = Writer::open(&args.log)?;
    let listener = match args.listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    if let Target::Sql { url } = &target {
        let database = Database::open(url, 1)?;
        tokio::select! {
            () = database.create_table() => (),
            () = &mut stop => return Ok(()),
        }
    }

    let load = Arc::new(Load::new(args.rate));
    if let Some(listener) = listener {
        let service = control::routes(Arc::clone(&load));
        tokio::spawn(axum::serve(listener, service).into_future());
    }
    let (acknowledged, keys) = mpsc::channel(order_log::WAITING_MAX);
    let writer = {
        let load = Arc::clone(&load);
        tokio::task::spawn_blocking(move || writer.write_all(keys, &load.durable))
    };
    let mut customers = JoinSet::new();
    for client in client_ids(args.connections)? {
        let shop = Shop::open(&target)?;
        customers.spawn(Arc::clone(&load).customer(client, shop, acknowledged.clone()));
    }
    drop(acknowledged);

    let until = async {
        match args.seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    let stop = async {
        tokio::select! {
            () = &mut stop => (),
            () = until => (),
        }
    };
    load.run_until(stop, customers, writer).await
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    let address = listener.local_addr().context("read the own address")?;
    console::note(format_args!("listening on {address}"));
    Ok(listener)
}

/// Ids that no earlier run has used: 37 random bits, then the connection's number. Together they
/// stay below 2^53, so that every JSON reader shows them as they are.
fn client_ids(connections: u16) -> anyhow::Result<impl Iterator<Item = u64>> {
    let random = getrandom::u64().context("draw the customers' ids")?;
    let run = random >> (64 - 37);
    Ok((0..u64::from(connections)).map(move |connection| run << 16 | connection))
}

/// What the customers share.
struct Load {
    pacer: Mutex<Pacer>,
    meter: Mutex<Meter>,
    /// Orders whose line in the log has been synced: those that count as acknowledged.
    durable: AtomicU64,
    /// Sent anew when the rate changes, to wake those who wait for their time.
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Placing,
    Stopping,
}

impl Load {
    fn new(rate: Rate) -> Self {
        let now = Instant::now();
        let load = Self {
            pacer: Mutex::new(Pacer::new(rate, now)),
            meter: Mutex::new(Meter::new(now)),
            durable: AtomicU64::new(0),
            phase: watch::Sender::new(Phase::Placing),
        };
        load.set_rate(rate);
        load
    }

    fn set_rate(&self, rate: Rate) {
        match rate {
            Rate::Idle => lock(&self.meter).idle(),
            Rate::PerSecond(_) | Rate::Max => lock(&self.meter).busy(),
        }
        *lock(&self.pacer) = Pacer::new(rate, Instant::now());
        self.phase.send_modify(|_| ());
    }

    fn report(&self) -> Report {
        lock(&self.meter).report(Instant::now(), self.durable.load(Ordering::Relaxed))
    }

    fn line(&self) -> Line {
        lock(&self.meter).line(Instant::now(), self.durable.load(Ordering::Relaxed))
    }

    /// Prints a line each second until `stop`, then the report. Fails if the log cannot be written:
    /// orders that are not remembered are not worth placing.
    async fn run_until(
        &self,
        stop: impl Future<Output = ()>,
        mut customers: JoinSet<()>,
        mut writer: JoinHandle<anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let second = Duration::from_secs(1);
        let mut seconds = interval_at(Instant::now() + second, second);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = seconds.tick() => console::data(serde_json::to_string(&self.line())?),
                written = &mut writer => {
                    written.context("the log's writer panicked")??;
                    bail!("all customers have gone");
                }
            }
        }
        self.phase.send_replace(Phase::Stopping);
        let all_done = async { while customers.join_next().await.is_some() {} };
        // Whoever still waits then has not been acknowledged; that is all there is to say about it.
        let _ = timeout(FINISH_WITHIN, all_done).await;
        customers.shutdown().await;
        writer.await.context("the log's writer panicked")??;
        console::data(serde_json::to_string(&self.report())?);
        Ok(())
    }

    async fn customer(
        self: Arc<Self>,
        client: u64,
        mut shop: Shop,
        acknowledged: mpsc::Sender<Key>,
    ) {
        let mut phase = self.phase.subscribe();
        for seq in 1.. {
            self.wait_for_slot(&mut phase).await;
            let order = Order {
                key: Key { client, seq },
                item: ITEMS[seq as usize % ITEMS.len()].to_owned(),
            };
            let mut backoff = Backoff::up_to(RETRY_PAUSE_MAX);
            loop {
                if *phase.borrow() == Phase::Stopping {
                    return;
                }
                match shop.place(&order).await {
                    Ok(()) => break,
                    Err(error) => lock(&self.meter).error(&error),
                }
                backoff.pause().await;
            }
            lock(&self.meter).acknowledged(Instant::now(), SystemTime::now());
            if acknowledged.send(order.key).await.is_err() {
                return; // the log's writer failed and says why
            }
        }
    }

    /// Returns at the next order's time, or at once when the load is stopping.
    async fn wait_for_slot(&self, phase: &mut watch::Receiver<Phase>) {
        loop {
            if *phase.borrow_and_update() == Phase::Stopping {
                return;
            }
            let slot = lock(&self.pacer).reserve(Instant::now());
            let due = async {
                match slot {
                    Slot::Now => (),
                    Slot::At(time) => sleep_until(time).await,
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

/// One customer's connection.
enum Shop {
    Web(http::Client),
    Sql(Database),
}

impl Shop {
    fn open(target: &Target) -> anyhow::Result<Self> {
        Ok(match target {
            Target::Web { address } => Self::Web(http::Client::new(address.clone())),
            Target::Sql { url } => Self::Sql(Database::open(url, 1)?),
        })
    }

    async fn place(&mut self, order: &Order) -> anyhow::Result<()> {
        match self {
            Self::Web(client) => {
                let answer: web::Placed = client.post("/orders", order).await?;
                if answer.placed != order.key {
                    bail!("asked for `{}`, was told of `{}`", order.key, answer.placed);
                }
                Ok(())
            }
            Self::Sql(database) => timeout(ANSWER_WITHIN, database.place_once(order))
                .await
                .context("no answer from the database")?
                .map_err(Into::into),
        }
    }
}
