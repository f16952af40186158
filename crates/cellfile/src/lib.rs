//! `cell.star` -> [`CellSpec`]: the language in which a person declares a cell; and `site.star` -> [`SiteSpec`], its
//! sister for checks alone (`site`).
//!
//! The language is Starlark with a handful of builders (`cell`, `machine`, `package`, `job`, `sql_cluster`, `check` and
//! the probes). A cell file *builds* the model and nothing else: it cannot read the machine, the clock or the network, so
//! the same file is the same cell everywhere. Rust runs it afterwards.
//!
//! The way of a file through this room:
//! 1. `scan` refuses source that is too large or nested too deeply to be parsed safely;
//! 2. `evaluate` runs it; each call of a builder becomes an `item`: plain data with its place in the source;
//! 3. `declare` reads the items one by one into the model's types;
//! 4. `resolve` checks what takes more than one of them: names, cycles, resources, templates.
//!
//! Invariants: a [`CellSpec`] that leaves this room is complete and consistent (names are unique, references exist, nothing
//! is cyclic, every template variable will have a value, and every task fits on some machine). Whether packages exist is
//! *not* checked: that is known only where and when the cell is turned up. A [`CellFileError`] has at least one problem,
//! and problems point at line and column wherever there is something to point at. Types of the starlark crate do not
//! leave `evaluate`.

mod apart;
mod declare;
mod error;
mod evaluate;
mod item;
mod limits;
mod nearest;
mod reader;
mod resolve;
mod scan;
mod site;
mod source;

use std::collections::BTreeMap;
use std::path::Path;

use homeostat_model::CellSpec;

pub use apart::{answer, answer_site, load_apart, load_site_apart};
pub use error::{CellFileError, Place, Problem, ProblemKind};
pub use nearest::nearest;
pub use site::{BadCall, CallUse, Judge, SiteCheck, SiteSpec};

use crate::evaluate::Language;
use crate::limits::{Limits, STACK_BYTES};
use crate::reader::Problems;

/// Reads a cell file, on a thread of its own with a large stack.
///
/// One long primitive of Starlark (`"x" * 10000000000`) can neither be interrupted nor kept from using memory inside a
/// process. A program that must survive any cell file calls [`load_apart`].
///
/// # Errors
/// [`CellFileError`] with every problem found.
pub fn load(path: &Path) -> Result<CellSpec, CellFileError> {
    load_within(path, Limits::USUAL, STACK_BYTES)
}

/// Reads a file of checks, like [`load`]. `parameters` are what the file can ask for with `parameter()`.
///
/// # Errors
/// [`CellFileError`] with every problem found; a file without a check is one.
pub fn load_site(
    path: &Path,
    parameters: BTreeMap<String, String>,
    judge: Judge,
) -> Result<SiteSpec, CellFileError> {
    let path_inside = path.to_owned();
    on_large_stack(path, STACK_BYTES, move || {
        site::read(&path_inside, parameters, judge)
    })
}

fn load_within(path: &Path, limits: Limits, stack_bytes: usize) -> Result<CellSpec, CellFileError> {
    let path_inside = path.to_owned();
    on_large_stack(path, stack_bytes, move || read(&path_inside, &limits))
}

fn on_large_stack<T: Send + 'static>(
    path: &Path,
    stack_bytes: usize,
    read: impl FnOnce() -> Result<T, CellFileError> + Send + 'static,
) -> Result<T, CellFileError> {
    let file = path.display().to_string();
    let thread = std::thread::Builder::new()
        .name("cellfile".to_owned())
        .stack_size(stack_bytes)
        .spawn(read);
    let lost = |kind, message: String| CellFileError {
        problems: vec![Problem::without_place(&file, kind, message)],
    };
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(lost(ProblemKind::Bug, "reading it panicked".to_owned())),
        Err(e) => Err(lost(
            ProblemKind::Environment,
            format!("cannot start a thread to read it: {e}"),
        )),
    }
}

fn read(path: &Path, limits: &Limits) -> Result<CellSpec, CellFileError> {
    let file = path.display().to_string();
    let alone = |problem| CellFileError {
        problems: vec![problem],
    };
    let evaluated =
        evaluate::evaluate(path, Language::Cell, limits).map_err(|problem| alone(*problem))?;
    let folder = path
        .canonicalize()
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned))
        .ok_or_else(|| {
            let message = "it went away while it was read".to_owned();
            alone(Problem::without_place(
                &file,
                ProblemKind::Environment,
                message,
            ))
        })?;
    let mut problems = Problems {
        sources: &evaluated.sources,
        found: Vec::new(),
    };
    let drafts = declare::declare(&evaluated.items, &folder, &mut problems);
    let cell = resolve::resolve(&file, &evaluated.items, drafts, &mut problems);
    match cell {
        Some(cell) => Ok(cell),
        None => {
            let mut problems = problems.found;
            problems.sort_by(|a, b| a.place.cmp(&b.place));
            problems.dedup();
            Err(CellFileError { problems })
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn try_with(text: &str, limits: Limits, stack_bytes: usize) -> CellFileError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cell.star");
        std::fs::write(&path, text).unwrap();
        load_within(&path, limits, stack_bytes).expect_err("the file was accepted")
    }

    #[test]
    fn runaway_programs_are_stopped() {
        let small = Limits {
            calls: 20,
            heap_bytes: 4 * 1024 * 1024,
            ticks: 200_000,
            time: Duration::from_millis(100),
            ..Limits::USUAL
        };
        let patient = Limits {
            time: Duration::from_secs(60),
            ..small.clone()
        };
        let first = |text, limits: &Limits| {
            let error = try_with(text, limits.clone(), STACK_BYTES);
            error.problems[0].message.clone()
        };
        let deep = "def f(n):\n    return f(n + 1)\n\nf(0)\n";
        assert_eq!(
            first(deep, &patient),
            "functions call each other more than 20 deep"
        );
        let long = "for n in range(100000000):\n    x = n\n";
        assert_eq!(
            first(long, &patient),
            "evaluating it takes more than 200000 steps"
        );
        let slow = Limits {
            ticks: u64::MAX,
            ..small
        };
        assert_eq!(first(long, &slow), "evaluating it takes longer than 100ms");
        let large = "def f():\n    x = []\n    for n in range(100000):\n        x.append(str(n) * 1000)\nf()\n";
        assert_eq!(
            first(large, &patient),
            "evaluating it takes more than 4 MiB of memory"
        );
    }

    /// Whatever passes the scan must not overflow the stack, which would abort the whole process; and not come near it.
    #[test]
    fn the_deepest_source_that_passes_needs_a_tenth_of_the_stack() {
        let n = 190;
        for source in [
            format!("x = {}1{}", "[".repeat(n), "]".repeat(n)),
            format!("x = {}1{}", "(".repeat(n), ")".repeat(n)),
            format!("x = {}1{}", "{1: ".repeat(n / 2), "}".repeat(n / 2)),
            format!("x = {}1", "1 + ".repeat(n)),
            format!("x = {}1", "not ".repeat(n)),
            format!("x = {}1", "1 if 1 else ".repeat(n / 2)),
            format!("x = {}1", "lambda: ".repeat(n / 2)),
            format!("x = {}1{}", "len(".repeat(n / 2), ")".repeat(n / 2)),
            format!("x = [1{}]", " for a in b".repeat(n / 2)),
            format!("if 1:\n  pass\n{}", "elif 1:\n  pass\n".repeat(n)),
            format!(
                "{}pass",
                (0..28)
                    .map(|n| format!("{}if 1:\n", " ".repeat(n)))
                    .collect::<String>()
                    + &" ".repeat(28)
            ),
            format!(
                "{}pass",
                (0..28)
                    .map(|n| format!("{}def f():\n", " ".repeat(n)))
                    .collect::<String>()
                    + &" ".repeat(28)
            ),
        ] {
            assert_eq!(scan::guard(&source), Ok(()), "{source}");
            let error = try_with(&source, Limits::USUAL, STACK_BYTES / 10);
            assert!(!error.problems.is_empty());
        }
    }
}
