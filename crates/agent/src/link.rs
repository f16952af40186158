//! The stream to the controller: connects, and connects again for as long as the agent lives.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use homeostat_api::uds;
use homeostat_api::v1::FromAgent;
use homeostat_api::v1::agents_client::AgentsClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::wake::Wake;

/// Messages to the controller that may wait. The link is dropped when it is full: the next one starts with a fresh
/// inventory, so nothing is lost but time.
const QUEUE: usize = 4096;
/// First and longest pause between two attempts. Short: an agent without a controller is a cell that cannot act.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// A link that lived for this long was not a refusal.
const GOOD: Duration = Duration::from_secs(1);

/// Runs for ever (until `wakes` is closed).
pub(crate) async fn keep(socket: PathBuf, wakes: mpsc::Sender<Wake>) {
    let channel = uds::channel(&socket);
    let mut pause = PAUSE.0;
    while !wakes.is_closed() {
        let (sender, outgoing) = mpsc::channel::<FromAgent>(QUEUE);
        let mut client = AgentsClient::new(channel.clone());
        if let Ok(reply) = client.link(ReceiverStream::new(outgoing)).await {
            let began = Instant::now();
            if wakes.send(Wake::Linked(sender)).await.is_err() {
                return;
            }
            let mut orders = reply.into_inner();
            while let Ok(Some(order)) = orders.message().await {
                if wakes.send(Wake::Order(Box::new(order))).await.is_err() {
                    return;
                }
            }
            if wakes.send(Wake::Unlinked).await.is_err() {
                return;
            }
            if began.elapsed() > GOOD {
                pause = PAUSE.0;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}
