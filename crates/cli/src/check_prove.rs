//! `homeostat prove`: tries every fix of a suite in a place where it can do no harm, and writes down what was shown.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use homeostat_checks::{Found, ProofBook, Proved, Selection, Worker, scratch_folder};

use crate::check_file;
use crate::failure::Failure;
use crate::style;

#[derive(Debug, Args)]
pub(crate) struct ProveOptions {
    /// A file of checks (site.star), or a folder with one in it
    pub path: PathBuf,
    /// Only the fix of this check; NAME* for all that begin so
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// A parameter of the file: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// One JSON object for each fix
    #[arg(long)]
    pub json: bool,
}

pub(crate) fn prove(options: &ProveOptions) -> Result<ExitCode, Failure> {
    let suite = check_file::read(&options.path, &options.set)?;
    let selection = Selection {
        names: options.only.clone(),
        ..Selection::default()
    };
    let chosen = selection.choose(suite).map_err(|nothing| {
        let hint = nothing.hint.clone();
        Failure::input(nothing).hint(hint)
    })?;
    let asked = chosen
        .suite
        .items
        .iter()
        .filter(|item| chosen.asked.contains(&item.name));
    let calls: Vec<_> = asked.filter_map(|item| item.fix_call.clone()).collect();
    if calls.is_empty() {
        return Err(Failure::input(anyhow::anyhow!(
            "none of these checks has a fix"
        )));
    }
    let folder = ProofBook::usual_folder();
    let scratch = scratch_folder(&folder).map_err(|error| {
        Failure::cell(anyhow::anyhow!(error).context("there is no place to try fixes in"))
    })?;
    let book = ProofBook::open(folder);
    let worker = Worker {
        program: std::env::current_exe().map_err(Failure::bug)?,
        args: vec!["prove-inside".into()],
    };
    let mut all = Vec::new();
    let mut done = BTreeSet::new();
    for call in calls {
        // On a thread of its own: some of it must not know of the runtime that this verb runs in.
        let proving =
            std::thread::scope(|scope| scope.spawn(|| book.prove(&call, &worker, &scratch)).join());
        let proved = proving
            .map_err(|_| Failure::bug(anyhow::anyhow!("proving {} panicked", call.kind)))?
            .map_err(Failure::input)?;
        if done.insert(proved.hash.clone()) {
            show(&proved, options)?;
            all.push(proved.found);
        }
    }
    let count = |found| all.iter().filter(|other| **other == found).count();
    let (proved, refuted) = (count(Found::Proved), count(Found::Refuted));
    let unproved = count(Found::Unproved);
    if !options.json {
        let fixes = if all.len() == 1 { "fix" } else { "fixes" };
        let all = all.len();
        style::say(format!(
            "{all} {fixes}: {proved} proved, {refuted} refuted, {unproved} not provable here"
        ));
    }
    Ok(ExitCode::from(match (refuted, unproved) {
        (0, 0) => 0,
        (0, _) => 6,
        (_, _) => 1,
    }))
}

fn show(proved: &Proved, options: &ProveOptions) -> Result<(), Failure> {
    if options.json {
        style::say(serde_json::to_string(proved).map_err(Failure::bug)?);
        return Ok(());
    }
    let word = match proved.found {
        Found::Proved => "✓ proved  ",
        Found::Refuted => "✗ refuted ",
        Found::Unproved => "? unproved",
    };
    style::say(format!("{word} {}: {}", proved.fix, proved.said));
    Ok(())
}
