//! What becomes of the data of tasks that have left. The agent's loop moves folders, which takes no time; what is not wanted
//! any more is removed beside it, however large it is.

use std::path::{Path, PathBuf};

use homeostat_api::v1::Folder;
use homeostat_model::TaskName;

use super::Agent;
use crate::AgentError;
use crate::prepare::make_folder;

impl Agent {
    /// What becomes of the data of a task that is forgotten.
    pub(super) fn clear_folder(
        &self,
        task: &TaskName,
        generation: u64,
        folder: i32,
    ) -> Result<(), AgentError> {
        let data = self.layout.task_data(task);
        match Folder::try_from(folder) {
            // Also what a newer controller may wish: nothing is lost by keeping it.
            Ok(Folder::Keep) | Err(_) => Ok(()),
            Ok(Folder::Remove) => {
                let aside = self.aside_of(task).into_iter();
                let all = aside.chain([self.layout.task_logs(task), data]);
                let discarded = all.map(|folder| self.discard(&folder));
                discarded.collect::<Result<Vec<()>, _>>().map(drop)
            }
            Ok(Folder::Aside) => {
                let aside = self.layout.set_aside();
                make_folder(&aside, 0o700)?;
                rename(&data, &aside, &format!("{task}.{generation}"))?;
                Ok(())
            }
        }
    }

    /// What was put aside of a task.
    fn aside_of(&self, task: &TaskName) -> Vec<PathBuf> {
        let of_task = format!("{task}.");
        let entries = std::fs::read_dir(self.layout.set_aside());
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&of_task))
            .map(|entry| entry.path())
            .collect()
    }

    /// Where folders are that are being removed.
    fn removing(&self) -> PathBuf {
        self.layout.state.join("removing")
    }

    /// Takes a folder out of its place at once, and removes it then.
    fn discard(&self, folder: &Path) -> Result<(), AgentError> {
        let removing = self.removing();
        make_folder(&removing, 0o700)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if let Some(gone) = rename(folder, &removing, &name)? {
            remove_beside(vec![gone]);
        }
        Ok(())
    }

    /// Goes on with what an earlier agent was removing.
    pub(super) fn sweep(&self) {
        let entries = std::fs::read_dir(self.removing());
        let left = entries.into_iter().flatten().flatten();
        remove_beside(left.map(|entry| entry.path()).collect());
    }
}

/// Moves a folder to `parent`, under a name that is free there: what was moved there earlier is never replaced. `None`: there
/// is no such folder.
fn rename(folder: &Path, parent: &Path, name: &str) -> Result<Option<PathBuf>, AgentError> {
    if !folder.exists() {
        return Ok(None);
    }
    let mut target = parent.join(name);
    let mut number = 2_u64;
    while target.exists() {
        target = parent.join(format!("{name}.{number}"));
        number += 1;
    }
    std::fs::rename(folder, &target)
        .map_err(|error| AgentError::io("cannot put aside", folder, error))?;
    Ok(Some(target))
}

fn remove_beside(folders: Vec<PathBuf>) {
    if folders.is_empty() {
        return;
    }
    tokio::task::spawn_blocking(move || {
        for folder in folders {
            if let Err(error) = remove(&folder) {
                // The next agent tries again.
                eprintln!("{}", error.line());
            }
        }
    });
}

/// A folder and all in it; gone already is fine.
pub(super) fn remove(folder: &Path) -> Result<(), AgentError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(AgentError::io("cannot remove", folder, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_aside_earlier_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let aside = folder.path().join("aside");
        std::fs::create_dir(&aside).unwrap();
        let data = folder.path().join("web-0");
        let mut names = Vec::new();
        for text in ["first", "second", "third"] {
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("file"), text).unwrap();
            let moved = rename(&data, &aside, "web-0.1").unwrap().unwrap();
            assert_eq!(std::fs::read_to_string(moved.join("file")).unwrap(), text);
            names.push(moved.file_name().unwrap().to_owned());
        }
        assert_eq!(names, ["web-0.1", "web-0.1.2", "web-0.1.3"]);
        assert_eq!(rename(&data, &aside, "web-0.1").unwrap(), None);
    }
}
