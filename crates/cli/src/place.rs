//! Which cell is meant.

use std::path::{Path, PathBuf};

use homeostat_cell::home;
use homeostat_model::{CellIdentity, CellLayout, CellName};

use crate::failure::Failure;

/// The cell that the verb is about: `--state`, or the only one this user has.
pub(crate) fn find(state: Option<PathBuf>) -> Result<(CellIdentity, CellLayout), Failure> {
    let state = match state {
        Some(state) => state,
        None => only()?,
    };
    home::find(&state).map_err(Failure::input)
}

fn only() -> Result<PathBuf, Failure> {
    let mut cells = all();
    match (cells.pop(), cells.pop()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Failure::input(anyhow::anyhow!("there is no cell here yet"))
            .hint("start one with: homeostat up CELL_FOLDER (for example examples/shop)")),
        (Some(a), Some(b)) => Err(Failure::input(anyhow::anyhow!(
            "there are several cells: which one is meant?"
        ))
        .hint(format!(
            "say it with --state DIR, for example --state {} or --state {}",
            b.display(),
            a.display()
        ))),
    }
}

/// The state folders of every cell in the usual place.
pub(crate) fn all() -> Vec<PathBuf> {
    let Ok(any) = CellName::new("x") else {
        return Vec::new();
    };
    let usual = home::default_state(&any);
    let folder = usual.parent().unwrap_or(Path::new("/"));
    let mut cells: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| CellLayout::identity(path).is_file())
        .collect();
    cells.sort();
    cells
}
