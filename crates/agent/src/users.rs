//! Which user a task runs as.

use homeostat_model::TaskName;
use homeostat_supervisor::launch::UserIds;

use crate::AgentError;

/// Turns a launch's `user` into ids. `None`: the user that runs the cell.
///
/// `cell_user` is the unprivileged user that the cell chose for its tasks when root runs it.
pub(crate) fn resolve(
    task: &TaskName,
    user: &str,
    cell_user: Option<u32>,
) -> Result<Option<UserIds>, AgentError> {
    let root = rustix::process::geteuid().is_root();
    match user {
        "cell" => Ok(cell_user
            .filter(|_| root)
            .map(|id| UserIds { uid: id, gid: id })),
        "root" if root => Ok(None),
        named if !root => Err(AgentError::NotRoot {
            task: task.clone(),
            user: named.to_owned(),
        }),
        named => {
            let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
            find(&passwd, named)
                .map(Some)
                .ok_or_else(|| AgentError::UnknownUser {
                    task: task.clone(),
                    user: named.to_owned(),
                })
        }
    }
}

/// Local users only (passwd(5)): a task's user must not depend on a directory server that may be down.
fn find(passwd: &str, name: &str) -> Option<UserIds> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(UserIds { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nweb:x:33:34:w:/:/bin/false\nbroken:x\n";
        assert_eq!(find(passwd, "web"), Some(UserIds { uid: 33, gid: 34 }));
        assert_eq!(find(passwd, "we"), None);
        assert_eq!(find(passwd, "broken"), None);
    }
}
