//! A shop, to have something that must not lose an order.
//!
//! One binary, three roles. `web` takes orders over HTTP and answers only after the database has
//! acknowledged the commit. `load` is the customers: it places orders at a chosen rate and writes
//! down, durably, every order that was acknowledged to it. `orders-kept` compares the two: each
//! order in that log must be in the database, whatever was killed in between.
//!
//! Nothing here knows of the cluster below it. The shop sees one address; connections to it break
//! now and then, and the answer to a commit may be lost. What makes that harmless is the key of
//! an order, (client, seq), chosen by the client: placing the same order twice is placing it once.

mod console;
mod database;
mod http;
mod load;
mod order;
mod order_log;
mod orders_kept;
mod retry;
mod target;
mod web;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    version,
    about = "A small shop: its web service, its customers, and its auditor"
)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serve the shop over HTTP
    Web(web::Args),
    /// Place orders at a given rate and log those that were acknowledged
    Load(load::Args),
    /// Check that every acknowledged order is in the database (exit status 0: yes, 1: no, 2: could not check)
    OrdersKept(orders_kept::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: the shop waits for the database nearly all the time, and each thread more would
    // cost memory in every task of the cell.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(run(cli.role)));
    outcome.unwrap_or_else(|error| {
        console::note(format_args!("error: {error:#}"));
        ExitCode::from(2)
    })
}

async fn run(role: Role) -> anyhow::Result<ExitCode> {
    match role {
        Role::Web(args) => web::run(args).await.map(|()| ExitCode::SUCCESS),
        Role::Load(args) => load::run(args).await.map(|()| ExitCode::SUCCESS),
        Role::OrdersKept(args) => match orders_kept::run(args).await? {
            orders_kept::Verdict::Kept => Ok(ExitCode::SUCCESS),
            orders_kept::Verdict::Lost => Ok(ExitCode::from(1)),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
