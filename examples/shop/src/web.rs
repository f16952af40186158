//! The shop's web service.
//!
//! The promise is in one status code: 201 means that the order's commit was acknowledged by the
//! database. 503 promises nothing, not even that the order was *not* placed; the client asks again
//! with the same key.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::console;
use crate::database::{Database, ITEM_CHARS_MAX, Unavailable};
use crate::order::{Key, Order};
use crate::target;

#[derive(clap::Args)]
pub struct Args {
    /// Address to serve on
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// File with the database's URL: mysql://user:password@host:port/database
    #[arg(long, value_name = "FILE")]
    db_file: PathBuf,
}

/// How long a request may wait for the database; a failover is much shorter.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const HEALTHY_WITHIN: Duration = Duration::from_secs(1);
/// Requests that began before SIGTERM are over by then.
const FINISH_WITHIN: Duration = Duration::from_secs(12);

const CONNECTIONS_MAX: usize = 16;
/// Requests that wait during an outage; more are turned away at once.
const WAITING_MAX: usize = 256;
const BODY_BYTES_MAX: usize = 256 << 10;
/// Keys in one `/orders/verify`.
pub const VERIFY_MAX: usize = 1_000;

pub async fn run(args: Args) -> anyhow::Result<()> {
    let stop = console::stop_requested()?;
    let shop = Arc::new(Shop {
        database: target::open_database(&args.db_file, CONNECTIONS_MAX)?,
        waiting: Semaphore::new(WAITING_MAX),
    });
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}", args.listen))?;
    let address = listener.local_addr().context("read the own address")?;
    console::note(format_args!("listening on {address}"));

    // Not awaited: until the table is there, /healthz says that it is missing.
    let creator = Arc::clone(&shop);
    tokio::spawn(async move { creator.database.create_table().await });

    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let listener = listener.tap_io(|stream| {
        // Without it a small answer may wait for the client's delayed acknowledgement.
        let _ = stream.set_nodelay(true);
    });
    let server = axum::serve(listener, routes(shop)).with_graceful_shutdown(async {
        stop.await;
        let _ = stopping.send(());
    });
    tokio::select! {
        served = server.into_future() => served.context("serve"),
        () = async {
            let _ = stopped.await;
            tokio::time::sleep(FINISH_WITHIN).await;
        } => {
            console::note("a client holds its connection open: stopping all the same");
            Ok(())
        }
    }
}

struct Shop {
    database: Database,
    waiting: Semaphore,
}

impl Shop {
    fn admit(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        self.waiting.try_acquire().map_err(|_| Refusal::Crowded)
    }
}

fn routes(shop: Arc<Shop>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/orders", post(place))
        .route("/orders/count", get(count))
        .route("/orders/verify", post(verify))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(shop)
}

async fn healthz(State(shop): State<Arc<Shop>>) -> Result<&'static str, Refusal> {
    shop.database.ping(HEALTHY_WITHIN).await?;
    Ok("ok\n")
}

#[derive(Serialize, Deserialize)]
pub struct Placed {
    pub placed: Key,
}

async fn place(
    State(shop): State<Arc<Shop>>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Placed>), Refusal> {
    if order.item.chars().count() > ITEM_CHARS_MAX {
        return Err(Refusal::LongItem);
    }
    let _place_in_line = shop.admit()?;
    shop.database.place(&order, ANSWER_WITHIN).await?;
    Ok((StatusCode::CREATED, Json(Placed { placed: order.key })))
}

#[derive(Serialize, Deserialize)]
pub struct Count {
    pub orders: u64,
}

async fn count(State(shop): State<Arc<Shop>>) -> Result<Json<Count>, Refusal> {
    let _place_in_line = shop.admit()?;
    let orders = shop.database.count(ANSWER_WITHIN).await?;
    Ok(Json(Count { orders }))
}

#[derive(Serialize, Deserialize)]
pub struct Verify {
    pub orders: Vec<Key>,
}

#[derive(Serialize, Deserialize)]
pub struct Missing {
    pub missing: Vec<Key>,
}

async fn verify(
    State(shop): State<Arc<Shop>>,
    Json(Verify { orders }): Json<Verify>,
) -> Result<Json<Missing>, Refusal> {
    if orders.len() > VERIFY_MAX {
        return Err(Refusal::ManyKeys);
    }
    let _place_in_line = shop.admit()?;
    let missing = shop.database.missing(&orders, ANSWER_WITHIN).await?;
    Ok(Json(Missing { missing }))
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Database(#[from] Unavailable),
    #[error("{WAITING_MAX} requests are waiting for the database already")]
    Crowded,
    #[error("the item is longer than {ITEM_CHARS_MAX} characters")]
    LongItem,
    #[error("more than {VERIFY_MAX} keys: ask in several requests")]
    ManyKeys,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Database(_) | Self::Crowded => StatusCode::SERVICE_UNAVAILABLE,
            Self::LongItem | Self::ManyKeys => StatusCode::BAD_REQUEST,
        };
        (status, format!("{:#}\n", anyhow::Error::from(self))).into_response()
    }
}
