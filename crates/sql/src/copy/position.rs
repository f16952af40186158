//! Where a copy stands, and how its server learns it.
//!
//! A copy has no binlog: its server would say that its log is empty, and its first own event would begin at sequence 1.
//! Neither is true. MariaDB has a file for this case: when the index of the binlog is missing, it reads `binlog.state`
//! (one GTID a line), takes it for the end of its log and begins the first file with it.

use std::path::Path;

use homeostat_decider::Gtid;
use homeostat_model::Epoch;
use homeostat_supervisor::launch::UserIds;

use super::{CopyError, io_error};
use crate::mariadb::gtid::{epoch_of, position};

/// What the backup program calls it, old name and new.
const RECORDED: [&str; 2] = ["xtrabackup_binlog_info", "mariadb_backup_binlog_info"];
/// After `log_bin` in [`crate::mariadb::settings`].
const STATE: &str = "binlog.state";

/// The position that the backup program recorded in `folder`.
///
/// # Errors
/// When there is none, it is none of this project's, or the copy lacks the barrier of `at_least`.
pub(super) fn recorded(folder: &Path, at_least: Epoch) -> Result<Gtid, CopyError> {
    let path = RECORDED.map(|name| folder.join(name));
    let path = path.iter().find(|path| path.exists());
    let path = path.ok_or_else(|| CopyError::Useless("no position was recorded with it".into()))?;
    let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
    // binlog.000007  4711  0-1-3000000000042
    let gtid = text.split_whitespace().nth(2).unwrap_or_default();
    let at = position(gtid).map_err(|error| CopyError::Useless(error.to_string()))?;
    let at = at.ok_or_else(|| CopyError::Useless("its log is empty".into()))?;
    if epoch_of(at) < at_least {
        return Err(CopyError::Useless(format!(
            "it stands at {at}, before the barrier of epoch {at_least}"
        )));
    }
    Ok(at)
}

/// Tells the server of `folder` that its log ends at `at`.
///
/// # Errors
/// When it cannot be written.
pub(super) fn instil(folder: &Path, at: Gtid, user: Option<UserIds>) -> Result<(), CopyError> {
    let path = folder.join(STATE);
    std::fs::write(&path, format!("{at}\n")).map_err(io_error("write", &path))?;
    super::folder::give(&path, user)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_position_of_ours_in_the_right_epoch_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let why = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(folder.path().join(RECORDED[0]), text).unwrap();
            }
            match recorded(folder.path(), Epoch(3)) {
                Ok(at) => at.to_string(),
                Err(error) => error.to_string(),
            }
        };
        insta::assert_debug_snapshot!(
            [
                None,
                Some("binlog.000007\t4711\t0-1-3000000000042\n"),
                Some("binlog.000007\t4711\t\n"),
                Some("binlog.000007\t4711\t0-1-2999999999999\n"),
                Some("binlog.000007\t4711\t0-1-3000000000042,1-1-1\n"),
            ]
            .map(why),
            @r#"
        [
            "the copy is of no use: no position was recorded with it",
            "0-1-3000000000042",
            "the copy is of no use: its log is empty",
            "the copy is of no use: it stands at 0-1-2999999999999, before the barrier of epoch 3",
            "the copy is of no use: the position '0-1-3000000000042,1-1-1' is not one GTID of domain 0",
        ]
        "#
        );
    }
}
