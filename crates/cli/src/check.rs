//! `homeostat check`: reads a suite, runs it, says what came of it, in words, in pictures and in the exit status.

use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use homeostat_checks::{
    Chosen, Colour, Doing, Ended, Event, Graph, Json, Junit, Picture, Plan, Prometheus, Report,
    Reporter, RunError, RunOptions, Selection, Standing, Tap, Terminal,
};
use homeostat_prodtest::Rounds;
use tokio::signal::unix::{SignalKind, signal};

use crate::check_cells;
use crate::check_file;
use crate::failure::Failure;
use crate::style::{self, Output};

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// A file of checks (site.star), a folder with one in it, or a goss file (.yaml)
    #[arg(required_unless_present = "cell")]
    pub path: Option<PathBuf>,
    /// Repair what fails, and was asked for
    #[arg(long)]
    pub fix: bool,
    /// Say what --fix would do, and do nothing
    #[arg(long, conflicts_with = "fix")]
    pub plan: bool,
    /// Go on, until Ctrl-C; checks of files look as soon as the file changes
    #[arg(long, conflicts_with = "plan")]
    pub watch: bool,
    /// Only this check, and what it depends on; NAME* for all that begin so
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// Only checks with this tag
    #[arg(long)]
    pub tag: Vec<String>,
    /// Only checks of this owner
    #[arg(long)]
    pub owner: Vec<String>,
    /// A parameter of the file: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    #[arg(long, value_enum, default_value_t = Format::Terminal)]
    pub format: Format,
    /// Draw the checks and what depends on what into a file: .svg, .html or .dot
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    pub graph: Option<PathBuf>,
    /// Show the checks that this cell (its state folder) runs by itself; several make a matrix of service by cell
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["path", "fix", "plan", "watch", "only", "tag", "owner", "set", "graph", "history", "at_once"]
    )]
    pub cell: Vec<PathBuf>,
    /// Remember in this file, from run to run, how often each check fails for no reason
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// How many probes run at the same moment
    #[arg(long, value_name = "N")]
    pub at_once: Option<NonZeroUsize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Terminal,
    Json,
    Junit,
    Prometheus,
    Tap,
}

/// Exit status of a run that somebody stopped: 128 and the number of SIGINT, as shells have it.
const STOPPED: u8 = 130;

pub(crate) async fn check(options: CheckOptions) -> Result<ExitCode, Failure> {
    let Some(path) = &options.path else {
        return check_cells::matrix(&options.cell, options.format).await;
    };
    let picture = options.graph.as_deref().map(picture).transpose()?;
    let rounds = rounds(&options)?;
    let suite = check_file::read(path, &options.set)?;
    let selection = Selection {
        names: options.only.clone(),
        tags: options.tag.clone(),
        owners: options.owner.clone(),
    };
    let chosen = selection.choose(suite).map_err(|nothing| {
        let hint = nothing.hint.clone();
        Failure::input(nothing).hint(hint)
    })?;
    let ended = run(&chosen, &options, rounds).await?;
    let plan = match options.plan {
        true => Some(homeostat_checks::plan(&chosen, &ended.report).await),
        false => None,
    };
    if let Some(plan) = &plan {
        show_plan(plan, &ended.report, options.format).map_err(Failure::bug)?;
    }
    if let (Some(path), Some(picture)) = (&options.graph, picture) {
        draw(&ended.report, path, picture)?;
    }
    Ok(exit_code(&ended))
}

fn rounds(options: &CheckOptions) -> Result<Rounds, Failure> {
    if !options.watch {
        return Ok(Rounds::One);
    }
    match options.format {
        Format::Terminal | Format::Json => Ok(Rounds::Endless),
        Format::Junit | Format::Prometheus | Format::Tap => Err(Failure::input(anyhow::anyhow!(
            "this format says how a round ended, and --watch has no end"
        ))
        .hint("use --format terminal or json")),
    }
}

async fn run(chosen: &Chosen, options: &CheckOptions, rounds: Rounds) -> Result<Ended, Failure> {
    let doing = if options.fix {
        Doing::Repair
    } else {
        Doing::Look
    };
    let chance = std::hash::RandomState::new().build_hasher().finish();
    let mut run_options = RunOptions::usual(doing, rounds, chance);
    run_options.history.clone_from(&options.history);
    if let Some(at_once) = options.at_once {
        run_options.most_at_once = at_once;
    }
    let mut reporter = reporter(options, rounds);
    let bug =
        |error: io::Error| Failure::bug(anyhow::anyhow!(error).context("cannot await signals"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(bug)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(bug)?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    homeostat_checks::run(chosen, &run_options, reporter.as_mut(), stop)
        .await
        .map_err(|error| match error {
            RunError::Suite(_) | RunError::History(_) => Failure::input(error),
            RunError::Output(_) | RunError::Crashed(_) => Failure::bug(error),
        })
}

fn reporter(options: &CheckOptions, rounds: Rounds) -> Box<dyn Reporter> {
    let out = Stdout(io::BufWriter::new(io::stdout()));
    let colour = match style::output() {
        Output::Terminal => Colour::Ansi,
        Output::Plain => Colour::Plain,
    };
    match options.format {
        Format::Terminal => Box::new(Terminal::new(out, io::stderr(), colour, rounds)),
        // The plan belongs into the same document, and is not known yet.
        Format::Json if options.plan => Box::new(Silent),
        Format::Json => Box::new(Json::new(out, rounds)),
        Format::Junit => Box::new(Junit::new(out)),
        Format::Prometheus => Box::new(Prometheus::new(out)),
        Format::Tap => Box::new(Tap::new(out)),
    }
}

struct Silent;

impl Reporter for Silent {
    fn event(&mut self, _: &Event<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// Standard output whose reader may go away (`| head`): the exit status still tells the truth.
struct Stdout(io::BufWriter<io::Stdout>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}

fn show_plan(plan: &Plan, report: &Report, format: Format) -> io::Result<()> {
    let mut out = Stdout(io::BufWriter::new(io::stdout()));
    match format {
        Format::Terminal => write!(out, "\n{plan}")?,
        Format::Json => Json::new(&mut out, Rounds::One).document(report, Some(plan))?,
        // These have no place for it; what people read on the side does no harm.
        Format::Junit | Format::Prometheus | Format::Tap => eprint!("{plan}"),
    }
    out.flush()
}

fn picture(path: &Path) -> Result<Picture, Failure> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => Ok(Picture::Svg),
        Some("dot") => Ok(Picture::Dot),
        Some("html") => Ok(Picture::Html),
        Some(_) | None => Err(Failure::input(anyhow::anyhow!(
            "{} is neither .svg nor .html nor .dot",
            path.display()
        ))),
    }
}

/// Whole or not at all: somebody may be looking at the one before.
fn draw(report: &Report, path: &Path, picture: Picture) -> Result<(), Failure> {
    let text = Graph::of(report).draw(picture);
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let written = std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|error| {
        // Nothing to do about one that cannot be removed either.
        let _ = std::fs::remove_file(&beside);
        Failure::input(anyhow::anyhow!(error).context(format!("cannot write {}", path.display())))
    })
}

fn exit_code(ended: &Ended) -> ExitCode {
    if ended.stopped {
        return ExitCode::from(STOPPED);
    }
    ExitCode::from(code(ended.report.summary.standing()))
}

/// Documented in docs/src/checks.md.
pub(crate) fn code(standing: Standing) -> u8 {
    match standing {
        Standing::Passed => 0,
        Standing::Failed => 1,
        Standing::Blocked => 4,
        Standing::GaveUp => 5,
        Standing::Unknown => 6,
    }
}
