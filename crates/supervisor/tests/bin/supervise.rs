//! The two hidden commands of `homeostat`, alone: what the integration tests start.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let run_dir = PathBuf::from(arguments.next().unwrap_or_default());
    let result: Result<(), Box<dyn std::error::Error>> = match verb.to_str() {
        Some("supervise") => homeostat_supervisor::supervise(&run_dir).map_err(Into::into),
        Some("endpoint") => homeostat_supervisor::endpoint::forward(&run_dir).map_err(Into::into),
        _ => Err("usage: supervise RUN_DIR | endpoint RUN_DIR".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                text.push_str(&format!(": {error}"));
                source = error.source();
            }
            let _ = writeln!(std::io::stderr(), "error: {text}");
            ExitCode::FAILURE
        }
    }
}
