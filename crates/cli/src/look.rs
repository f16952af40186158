//! The verbs that look, and the one that asks a database to change hands.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use homeostat_api::v1::{ActRequest, CellEvent, EventsRequest, WhyRequest};
use homeostat_model::CellLayout;

use crate::args::{
    EndpointOptions, EventsOptions, LogsOptions, StatusOptions, SwitchoverOptions, WhyOptions,
};
use crate::client::{Client, me};
use crate::failure::Failure;
use crate::place;
use crate::style::{output, say, write_line};
use crate::tables;
use crate::tail::last_lines;

/// How often `logs --follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// `homeostat` alone: the next thing to type.
pub(crate) fn what_next(state: Option<&Path>) {
    let given = |state: &Path| vec![state.to_owned()];
    let mut cells = state.map_or_else(place::all, given);
    cells.retain(|cell| CellLayout::identity(cell).is_file());
    if cells.is_empty() {
        say("There is no cell here yet. Turn one up:\n\n    homeostat up examples/shop\n");
    } else {
        for cell in &cells {
            say(format!("cell in {}", cell.display()));
        }
        say(
            "\nTry next:\n\n    homeostat status            what runs where\n    homeostat why NAME          why it is so\n    homeostat events --follow   what happens\n",
        );
    }
    say("All verbs: homeostat --help");
}

pub(crate) async fn status(
    state: Option<PathBuf>,
    options: StatusOptions,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let client = Client::new(&layout);
    if options.json {
        say(client.status_json().await?);
    } else {
        say(tables::everything(&client.status().await?, output()));
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn why(state: Option<PathBuf>, options: WhyOptions) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let reply = Client::new(&layout)
        .0
        .why(WhyRequest { name: options.name })
        .await?
        .into_inner();
    say(if options.json { reply.json } else { reply.text });
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn events(
    state: Option<PathBuf>,
    options: EventsOptions,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let request = EventsRequest {
        after: 0,
        follow: options.follow,
        last: options.last,
    };
    let mut stream = Client::new(&layout).events(request).await?;
    while let Some(event) = stream.message().await? {
        let line = if options.json {
            event_json(&event)
        } else {
            event_line(&event)
        };
        if write_line(line).is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn event_line(event: &CellEvent) -> String {
    format!(
        "{}  {:<16} {}",
        time(event.at_unix_ms),
        event.about,
        event.text
    )
}

fn event_json(event: &CellEvent) -> String {
    let detail: serde_json::Value = serde_json::from_str(&event.detail_json).unwrap_or_default();
    serde_json::json!({
        "number": event.number, "at_unix_ms": event.at_unix_ms, "about": event.about,
        "kind": event.kind, "text": event.text, "detail": detail,
    })
    .to_string()
}

fn time(at_unix_ms: u64) -> String {
    let at = i64::try_from(at_unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(
        || "?".to_owned(),
        |at| at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
    )
}

pub(crate) async fn logs(
    state: Option<PathBuf>,
    options: LogsOptions,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let status = Client::new(&layout).status().await?;
    let task = status
        .tasks
        .iter()
        .find(|task| task.name == options.task)
        .ok_or_else(|| {
            let names: Vec<&str> = status.tasks.iter().map(|task| task.name.as_str()).collect();
            Failure::input(anyhow::anyhow!(
                "there is no task called '{}'",
                options.task
            ))
            .hint(format!("the tasks are: {}", names.join(", ")))
        })?;
    let folder = PathBuf::from(&task.logs);
    let path = ["out.log", "server.log", "supervisor.log"]
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 0))
        .ok_or_else(|| {
            Failure::cell(anyhow::anyhow!(
                "{} has written nothing yet (in {})",
                task.name,
                task.logs
            ))
        })?;
    let open = |error: std::io::Error| {
        Failure::cell(anyhow::anyhow!(error).context(format!("cannot read {}", path.display())))
    };
    let mut file = std::fs::File::open(&path).map_err(open)?;
    let mut out = std::io::stdout();
    let text = last_lines(&mut file, options.lines).map_err(open)?;
    // A reader that went away has what it wanted.
    let mut read = out.write_all(&text).and_then(|()| out.flush()).is_ok();
    while options.follow && read {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut text).map_err(open)?;
        read = out.write_all(&text).and_then(|()| out.flush()).is_ok();
        tokio::time::sleep(FOLLOW_EVERY).await;
        // Rotated: what was written since is in a new file.
        let same = std::fs::metadata(&path).and_then(|now| Ok(is_same(&now, &file.metadata()?)));
        if matches!(same, Ok(false)) {
            file = std::fs::File::open(&path).map_err(open)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn is_same(a: &std::fs::Metadata, b: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

pub(crate) async fn endpoint(
    state: Option<PathBuf>,
    options: EndpointOptions,
) -> Result<ExitCode, Failure> {
    let (identity, layout) = place::find(state)?;
    let status = Client::new(&layout).status().await?;
    let service = status
        .services
        .iter()
        .find(|service| service.name == options.service)
        .ok_or_else(|| {
            let names: Vec<&str> = status
                .services
                .iter()
                .map(|service| service.name.as_str())
                .collect();
            Failure::input(anyhow::anyhow!(
                "there is no service called '{}'",
                options.service
            ))
            .hint(format!("the services are: {}", names.join(", ")))
        })?;
    let endpoint = service
        .endpoint
        .as_deref()
        .ok_or_else(|| Failure::cell(anyhow::anyhow!("{} has no endpoint (yet)", service.name)))?;
    let Some(machine) = options.machine else {
        say(endpoint);
        return Ok(ExitCode::SUCCESS);
    };
    let found = identity
        .machines
        .iter()
        .find(|known| known.spec.name.as_str() == machine);
    let found = found
        .ok_or_else(|| Failure::input(anyhow::anyhow!("there is no machine called '{machine}'")))?;
    let port = endpoint.rsplit(':').next().unwrap_or_default();
    say(format!("{}:{port}", found.address));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn switchover(
    state: Option<PathBuf>,
    options: SwitchoverOptions,
) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let arguments = options
        .to
        .into_iter()
        .map(|to| ("to".to_owned(), to))
        .collect();
    let request = ActRequest {
        service: options.cluster,
        verb: "switchover".into(),
        arguments,
        by: me(),
    };
    let reply = Client::new(&layout).0.act(request).await?.into_inner();
    say(reply.text);
    Ok(ExitCode::SUCCESS)
}
