//! `homeostat up`: reads the cell file, starts the cell in the background, and then only watches it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use homeostat_api::v1::ApplyRequest;
use homeostat_cell::home::{self, HomeError};
use homeostat_cell::warden;
use homeostat_cellfile::ProblemKind;
use homeostat_model::{CellLayout, CellSpec};

use crate::args::UpOptions;
use crate::client::{Client, me};
use crate::failure::{Failure, Kind};
use crate::style::{Output, clip, output, say, word};
use crate::tables;
use crate::tail::last_words;
use crate::view::Status;

const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn up(state: Option<PathBuf>, options: UpOptions) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let file = if options.cell.is_dir() {
        options.cell.join("cell.star")
    } else {
        options.cell.clone()
    };
    let spec = read(&file)?;
    let state = state.unwrap_or_else(|| home::default_state(&spec.name));
    let start = || start(&state, &spec, &options.external);
    let layout = start()?;
    let client = Client::new(&layout);
    apply(&client, &layout, &spec, began + options.deadline, start).await?;
    if options.detach {
        return wait(&client, &layout, began, options.deadline).await;
    }
    watch(&client, &layout, began, options.deadline).await
}

/// Evaluated in a process of its own: a cell file that eats memory or time ends that process and nothing else.
fn read(file: &Path) -> Result<CellSpec, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::bug(anyhow::anyhow!(error)))?;
    let mut child = Command::new(program);
    child.arg("read-cell").arg(file);
    homeostat_cellfile::load_apart(child, file).map_err(|error| {
        let bug = error
            .problems
            .iter()
            .any(|problem| matches!(problem.kind, ProblemKind::Bug));
        let kind = if bug { Kind::Bug } else { Kind::Input };
        Failure {
            kind,
            error: anyhow::anyhow!("{error}"),
            hint: None,
        }
    })
}

/// Makes the cell's home and starts its warden, unless one is there. Two `up`s at once take turns.
fn start(state: &Path, spec: &CellSpec, external: &[String]) -> Result<CellLayout, Failure> {
    let turn = home::take_turn(state).map_err(Failure::input)?;
    if let Some(layout) = running(state, spec)? {
        return Ok(layout);
    }
    let (_, layout) = home::make(state, &spec.name, &spec.machines).map_err(Failure::input)?;
    if warden::lock(&layout).map_err(Failure::cell)?.is_some() {
        // The lock was free and is released here: the warden takes it for itself.
        home::mark_up(&layout).map_err(Failure::cell)?;
        spawn_warden(&layout, external).map_err(|error| {
            Failure::cell(anyhow::anyhow!(error).context("cannot start the cell's own process"))
        })?;
        await_warden(&layout)?;
    }
    drop(turn);
    Ok(layout)
}

/// The layout of the cell that runs in `state`, if one does. Its own processes know its machines from their start on, so
/// these cannot change beneath them.
fn running(state: &Path, spec: &CellSpec) -> Result<Option<CellLayout>, Failure> {
    let (identity, layout) = match home::find(state) {
        Ok(found) => found,
        Err(HomeError::NoCell(_)) => return Ok(None),
        Err(error) => return Err(Failure::input(error)),
    };
    // Another cell's state is refused when the home is made.
    if identity.name != spec.name || warden::lock(&layout).map_err(Failure::cell)?.is_some() {
        return Ok(None);
    }
    let mut before: Vec<_> = identity
        .machines
        .iter()
        .map(|machine| &machine.spec)
        .collect();
    let mut now: Vec<_> = spec.machines.iter().collect();
    before.sort_by_key(|machine| &machine.name);
    now.sort_by_key(|machine| &machine.name);
    if before == now {
        return Ok(Some(layout));
    }
    Err(Failure::input(anyhow::anyhow!(
        "the machines in the cell file are not those that {} runs with",
        spec.name
    ))
    .hint("machines change while the cell is down: homeostat down (its data stays), then up again"))
}

fn spawn_warden(layout: &CellLayout, external: &[String]) -> std::io::Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(layout.log("cell"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("warden")
        .arg(&layout.state)
        .args(external)
        .current_dir("/");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: setsid is async-signal-safe; the cell must not end with this terminal.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()
                .map(|_| ())
                .map_err(std::io::Error::from)
        });
    }
    command.spawn().map(drop)
}

fn await_warden(layout: &CellLayout) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if warden::lock(layout).map_err(Failure::cell)?.is_none() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(
        Failure::cell(anyhow::anyhow!("the cell's own process did not start"))
            .hint(tail(&layout.log("cell"))),
    )
}

/// The end of a log, for a hint.
fn tail(path: &Path) -> String {
    let text = last_words(path, 3);
    format!(
        "the end of {}:\n  {}",
        path.display(),
        text.lines().collect::<Vec<_>>().join("\n  ")
    )
}

/// Hands the specification to the controller, as soon as there is one. `start` again: the cell may have been on its way
/// down when it was looked at first.
async fn apply(
    client: &Client,
    layout: &CellLayout,
    spec: &CellSpec,
    until: Instant,
    start: impl Fn() -> Result<CellLayout, Failure>,
) -> Result<(), Failure> {
    let since = SystemTime::now();
    let spec_json =
        serde_json::to_string(spec).map_err(|error| Failure::bug(anyhow::anyhow!(error)))?;
    loop {
        let request = ApplyRequest {
            spec_json: spec_json.clone(),
            by: me(),
        };
        match client.0.clone().apply(request).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == tonic::Code::Unavailable && Instant::now() < until => {
                if let Some(failure) = controller_trouble(layout, since) {
                    return Err(failure);
                }
                start()?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(status) if status.code() == tonic::Code::Unavailable => {
                return Err(Failure::from(status).hint(tail(&layout.log("controller"))));
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// A controller that cannot start says why in its log and is started again and again; people should not have to wait
/// for the deadline to learn that. What it said before `since` may have been mended.
fn controller_trouble(layout: &CellLayout, since: SystemTime) -> Option<Failure> {
    let path = layout.log("controller");
    let said = path.metadata().ok()?.modified().ok()?;
    let text = last_words(&path, 20);
    let last = text
        .lines()
        .rev()
        .find(|line| line.starts_with("homeostat controller: "))?;
    let fresh = said >= since && text.ends_with(&format!("{last}\n"));
    let why = last.strip_prefix("homeostat controller: ")?;
    fresh.then(|| Failure::cell(anyhow::anyhow!("the controller cannot start: {why}")))
}

/// `--detach`: quiet until it is well, or the deadline.
async fn wait(
    client: &Client,
    layout: &CellLayout,
    began: Instant,
    deadline: Duration,
) -> Result<ExitCode, Failure> {
    loop {
        let status = client.status().await.ok();
        if status.is_none() {
            still_kept(layout)?;
        }
        if let Some(status) = status.as_ref().filter(|status| status.is_well()) {
            say(tables::services(status, output()));
            eprintln!("up after {:.1} s", began.elapsed().as_secs_f64());
            return Ok(ExitCode::SUCCESS);
        }
        if began.elapsed() >= deadline {
            return Err(late(status.as_ref(), deadline));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Fails when somebody took the cell down meanwhile. Asked in turn with other `up`s, which must not take this look for
/// a warden.
fn still_kept(layout: &CellLayout) -> Result<(), Failure> {
    // Looked at first: a cell that was removed is not to get a new folder.
    let kept = CellLayout::identity(&layout.state).exists() && {
        let _turn = home::take_turn(&layout.state).map_err(Failure::cell)?;
        matches!(warden::lock(layout), Ok(None))
    };
    if kept {
        Ok(())
    } else {
        Err(Failure::cell(anyhow::anyhow!(
            "the cell was taken down before it was up"
        )))
    }
}

fn late(status: Option<&Status>, deadline: Duration) -> Failure {
    let missing = status.map_or_else(
        || vec!["the controller does not answer".to_owned()],
        Status::missing,
    );
    let error = anyhow::anyhow!(
        "not up after {} s:\n  {}",
        deadline.as_secs(),
        missing.join("\n  ")
    );
    Failure::cell(error)
        .hint("it goes on trying; look with: homeostat status, or explain with: homeostat why NAME")
}

/// Watches until everything is well. Ctrl-C ends the watching, not the cell.
async fn watch(
    client: &Client,
    layout: &CellLayout,
    began: Instant,
    deadline: Duration,
) -> Result<ExitCode, Failure> {
    let mut screen = Screen {
        output: output(),
        drawn: 0,
        last: Vec::new(),
    };
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut told_late = false;
    loop {
        let status = client.status().await.ok();
        if status.is_none() {
            still_kept(layout)?;
        }
        if let Some(status) = &status {
            screen.show(progress(status, screen.output));
            if status.is_well() {
                say(format!("\n{}", tables::services(status, screen.output)));
                say(format!(
                    "\nup after {:.1} s; {}\n",
                    began.elapsed().as_secs_f64(),
                    status.tally()
                ));
                say(try_next(status, layout));
                return Ok(ExitCode::SUCCESS);
            }
        }
        if began.elapsed() >= deadline && !told_late {
            told_late = true;
            eprintln!("{}", late(status.as_ref(), deadline).error);
        }
        tokio::select! {
            _ = &mut interrupted => {
                eprintln!("\nthe cell goes on coming up; see it with: homeostat status, stop it with: homeostat down");
                return Ok(ExitCode::SUCCESS);
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// One line per service, with what it waits for, and one for the checks.
fn progress(status: &Status, output: Output) -> Vec<String> {
    let mut lines: Vec<String> = status
        .services
        .iter()
        .map(|service| {
            let waits = if service.waits_for.is_empty() || service.state == "up" {
                String::new()
            } else {
                format!("  waits for {}", service.waits_for)
            };
            let pad = " ".repeat(9usize.saturating_sub(service.state.len()));
            format!(
                "{:<16} {}{pad}{waits}",
                service.name,
                word(&service.state, output)
            )
        })
        .collect();
    lines.push(format!("{:<16} {}", "checks", status.tally()));
    lines
}

/// Redraws in place on a terminal; elsewhere prints what changed.
struct Screen {
    output: Output,
    drawn: usize,
    last: Vec<String>,
}

impl Screen {
    fn show(&mut self, lines: Vec<String>) {
        if lines == self.last {
            return;
        }
        let mut out = std::io::stdout().lock();
        let mut text = String::new();
        match self.output {
            Output::Terminal => {
                if self.drawn > 0 {
                    text.push_str(&format!("\x1b[{}A", self.drawn));
                }
                let width = columns();
                for line in &lines {
                    // A wrapped line would break the count.
                    text.push_str(&format!("\x1b[2K{}\n", clip(line, width.saturating_sub(1))));
                }
                for _ in lines.len()..self.drawn {
                    text.push_str("\x1b[2K\n");
                }
                self.drawn = self.drawn.max(lines.len());
            }
            Output::Plain => {
                for line in lines.iter().filter(|line| !self.last.contains(line)) {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
        // A viewer whose terminal went away has nobody to tell.
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .unwrap_or_default();
        self.last = lines;
    }
}

/// The terminal's width. Some terminals say that they have no columns at all.
fn columns() -> usize {
    let columns =
        rustix::termios::tcgetwinsize(rustix::stdio::stdout()).map_or(0, |size| size.ws_col);
    if columns == 0 {
        100
    } else {
        usize::from(columns)
    }
}

/// Three commands worth trying, with the names of this cell.
fn try_next(status: &Status, layout: &CellLayout) -> String {
    let at = if crate::place::all().len() == 1 {
        String::new()
    } else {
        format!(" --state {}", layout.state.display())
    };
    let mut lines = vec!["try next:".to_owned()];
    match status.sql.first() {
        Some(cluster) => {
            let primary = cluster.primary.as_deref();
            let pid = cluster
                .members
                .iter()
                .find(|member| Some(member.task.as_str()) == primary)
                .and_then(|m| m.pid);
            if let Some(pid) = pid {
                lines.push(format!(
                    "    kill -9 {pid:<24} # the server of {}'s primary; orders go on",
                    cluster.name
                ));
            }
            lines.push(format!(
                "    homeostat{at} why {:<16} # what happened, and why it was safe",
                cluster.name
            ));
            lines.push(format!(
                "    homeostat{at} switchover {:<9} # change the primary on purpose",
                cluster.name
            ));
        }
        None => {
            lines.push(format!("    homeostat{at} status"));
            lines.push(format!("    homeostat{at} events --follow"));
        }
    }
    lines.push(format!("\nstop it with: homeostat{at} down"));
    lines.join("\n")
}
