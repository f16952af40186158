//! What there is to know of one task on this machine beyond its state: how it ended last, and its last words.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use homeostat_model::{MachineLayout, TaskName};
use homeostat_supervisor::run::ExitFile;
use serde_json::{Value, json};

/// Where the exit file of the run before the present one is, in the run folder.
const BEFORE: &str = "last-exit";
/// As much of a log as is read from its end.
const TAIL: u64 = 16 * 1024;
/// Lines shown at most, whatever is asked for.
const MOST_LINES: u32 = 100;
/// Where a task's own words are, and what others said about it when it has none.
const LOGS: [&str; 3] = ["out.log", "server.log", "supervisor.log"];

/// Puts the exit file of the last run where a new run does not overwrite it. A run folder is cleared with its task.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn keep_exit(run: &Path) -> Result<(), homeostat_supervisor::run::RunError> {
    // One that cannot be read tells nothing, and must not keep a task from starting.
    if let Ok(Some(exit)) = ExitFile::load(run) {
        let before = run.join(BEFORE);
        std::fs::create_dir_all(&before).unwrap_or_default();
        exit.store(&before)?;
    }
    Ok(())
}

/// A JSON object: `exit` (null: none is known), `log`.
pub(crate) fn look_at(layout: &MachineLayout, task: &TaskName, lines: u32) -> Vec<u8> {
    let run = layout.task_run(task);
    let load = |folder: &Path| ExitFile::load(folder).ok().flatten();
    let exit = load(&run).or_else(|| load(&run.join(BEFORE)));
    let exit = exit.map_or(Value::Null, |exit| {
        json!({
            "cause": exit.cause.to_string(),
            "at_unix_ms": exit.at.0,
            "generation": exit.generation.0,
        })
    });
    let logs = layout.task_logs(task);
    let log = LOGS
        .iter()
        .map(|name| last_lines(&logs.join(name), lines.min(MOST_LINES)))
        .find(|lines| !lines.is_empty())
        .unwrap_or_default();
    json!({ "exit": exit, "log": log }).to_string().into_bytes()
}

fn last_lines(path: &Path, lines: u32) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A log that is not there has no lines.
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let first = all.len().saturating_sub(lines as usize);
    all[first..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use homeostat_model::{ExitCause, Generation, UnixMillis};
    use homeostat_supervisor::process;

    fn machine() -> (tempfile::TempDir, MachineLayout, TaskName) {
        let folder = tempfile::tempdir().unwrap();
        let layout = MachineLayout {
            state: folder.path().join("s"),
            run: folder.path().join("r"),
        };
        let task = TaskName::new("web-0").unwrap();
        std::fs::create_dir_all(layout.task_run(&task)).unwrap();
        std::fs::create_dir_all(layout.task_logs(&task)).unwrap();
        (folder, layout, task)
    }

    fn seen(layout: &MachineLayout, task: &TaskName, lines: u32) -> Value {
        serde_json::from_slice(&look_at(layout, task, lines)).unwrap()
    }

    #[test]
    fn the_last_exit_is_known_through_the_next_run() {
        let (_folder, layout, task) = machine();
        let run = layout.task_run(&task);
        assert_eq!(seen(&layout, &task, 3)["exit"], Value::Null);
        let exit = ExitFile {
            format: ExitFile::FORMAT,
            task: task.clone(),
            generation: Generation(2),
            boot_id: process::boot_id().unwrap(),
            supervisor: process::current().unwrap(),
            cause: ExitCause::OutOfMemory,
            at: UnixMillis(7),
        };
        exit.store(&run).unwrap();
        keep_exit(&run).unwrap();
        ExitFile::remove(&run).unwrap();
        let seen = seen(&layout, &task, 3);
        assert!(
            seen["exit"]["cause"]
                .as_str()
                .unwrap()
                .starts_with("out of memory")
        );
        assert_eq!(seen["exit"]["generation"], 2);
    }

    #[test]
    fn the_last_lines_are_those_of_the_first_log_that_has_any() {
        let (_folder, layout, task) = machine();
        let logs = layout.task_logs(&task);
        std::fs::write(logs.join("supervisor.log"), "prepared\n").unwrap();
        assert_eq!(seen(&layout, &task, 2)["log"], json!(["prepared"]));
        let long = format!("{}\none\ntwo\n", "x".repeat(TAIL as usize));
        std::fs::write(logs.join("out.log"), long).unwrap();
        assert_eq!(seen(&layout, &task, 2)["log"], json!(["one", "two"]));
    }
}
