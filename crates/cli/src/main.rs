//! `homeostat`: every verb. Data goes to stdout, everything else to stderr; errors name the next command.
//!
//! The same program is every process of a cell: the hidden verbs ([`hidden`]) are looked at first, so that a
//! supervisor never pays for what people need.

mod args;
mod chaos;
mod check;
mod check_cells;
mod check_file;
mod check_prove;
mod client;
mod doctor;
mod down;
mod failure;
mod hidden;
mod look;
mod operate;
mod place;
mod sql;
mod style;
mod tables;
mod tail;
mod up;
mod view;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Verb};
use crate::failure::Failure;

fn main() -> ExitCode {
    // What others must not read says so when it is made; what the tasks' user must enter may not depend on who typed `up`.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let words: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if let Some(code) = hidden::run(&words) {
        return code;
    }
    let arguments = Arguments::parse();
    let Some(verb) = arguments.verb else {
        look::what_next(arguments.state.as_deref());
        return ExitCode::SUCCESS;
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return Failure::bug(anyhow::anyhow!(error).context("cannot start")).report(),
    };
    match runtime.block_on(carry_out(verb, arguments.state)) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

async fn carry_out(verb: Verb, state: Option<std::path::PathBuf>) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Check(options) => check::check(options).await,
        Verb::Convert(options) => check_file::convert(&options),
        Verb::Prove(options) => check_prove::prove(&options),
        Verb::Up(options) => up::up(state, options).await,
        Verb::Down(options) => down::down(state, options).await,
        Verb::Status(options) => look::status(state, options).await,
        Verb::Why(options) => look::why(state, options).await,
        Verb::Events(options) => look::events(state, options).await,
        Verb::Logs(options) => look::logs(state, options).await,
        Verb::Endpoint(options) => look::endpoint(state, options).await,
        Verb::Sql(options) => sql::sql(state, options).await,
        Verb::Switchover(options) => look::switchover(state, options).await,
        Verb::Drain(options) => operate::drain(state, options).await,
        Verb::Undrain(options) => operate::undrain(state, options).await,
        Verb::Turnup(options) => operate::turnup(state, options).await,
        Verb::Turndown(options) => operate::turndown(state, options).await,
        Verb::Chaos(verb) => chaos::chaos(state, verb).await,
        Verb::Doctor(options) => doctor::doctor(state, options),
    }
}
