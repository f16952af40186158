//! Replication accounts: one per member, on every member, never binlogged, locked at every start of a server.
//!
//! They are the holder's door. A member may receive (and acknowledge!) only after the holder unlocked its account, so
//! locking it and then killing what is connected is how a member is shut out (failover.md section 2).

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_decider::MemberId;
use tokio::time::{Instant, sleep};

use super::driver::{Driver, SqlError, quote, text};
use super::facts::{Reading, run_and_read};
use super::{Member, STATEMENT};

const PREFIX: &str = "replica-";
/// How long connections of a locked account may take to go.
const LEAVING: Duration = Duration::from_secs(5);

/// The account with which `member` connects to its source.
pub fn name(member: &MemberId) -> String {
    format!("{PREFIX}{member}")
}

/// Whose account this is.
pub fn member_of(user: &str) -> Option<MemberId> {
    MemberId::new(user.strip_prefix(PREFIX)?).ok()
}

/// `'replica-a'@'%'` for an SQL statement.
pub fn account(member: &MemberId) -> String {
    format!("{}@'%'", quote(&name(member)))
}

/// Unlocks one account.
///
/// # Errors
/// Also when the member is not one of the cluster: it has no account here.
pub async fn unlock(
    driver: &mut Driver,
    this: &Member<'_>,
    member: &MemberId,
) -> Result<Reading, SqlError> {
    known(this, member)?;
    let sql = format!("ALTER USER {} ACCOUNT UNLOCK", account(member));
    run_and_read(driver, "unlock a replication account", &sql, STATEMENT).await
}

/// Locks the accounts of `members` and ends whatever is connected with them; returns when none is left.
///
/// # Errors
/// When a connection does not go, or the server does not answer.
pub async fn shut_out(
    driver: &mut Driver,
    this: &Member<'_>,
    members: &[&MemberId],
) -> Result<(), SqlError> {
    for member in members {
        known(this, member)?;
    }
    if members.is_empty() {
        return Ok(());
    }
    let accounts: Vec<String> = members.iter().map(|member| account(member)).collect();
    let lock = format!("ALTER USER {} ACCOUNT LOCK", accounts.join(", "));
    driver
        .run("lock replication accounts", &lock, STATEMENT)
        .await?;
    let users: BTreeSet<String> = members.iter().map(|member| name(member)).collect();
    kick(driver, &users).await
}

fn known(this: &Member<'_>, member: &MemberId) -> Result<(), SqlError> {
    if this.config.members.contains_key(member) {
        return Ok(());
    }
    Err(SqlError::Condition(format!(
        "{member} is not a member that this keeper was configured with"
    )))
}

/// Kills every connection of `users` until none is seen. The accounts are locked, so none can be added, but for one that
/// was let in a moment before the lock and is still being set up: it is listed without its user, and the loop waits
/// until it has one or is gone.
async fn kick(driver: &mut Driver, users: &BTreeSet<String>) -> Result<(), SqlError> {
    const LIST: &str = "SELECT ID, USER FROM information_schema.PROCESSLIST";
    let started = Instant::now();
    let mut unsettled: Option<BTreeSet<u64>> = None;
    loop {
        let sets = driver.run("list connections", LIST, STATEMENT).await?;
        let mut theirs = Vec::new();
        let mut nameless = BTreeSet::new();
        for row in sets.iter().flatten() {
            let user = text(row, "USER").unwrap_or_default();
            let id = text(row, "ID").and_then(|id| id.parse().ok());
            let id: u64 = id.ok_or(SqlError::Answer {
                what: "list connections",
                lacks: "a connection's number",
            })?;
            if users.contains(&user) {
                theirs.push(id);
            } else if user == "unauthenticated user" {
                nameless.insert(id);
            }
        }
        // Those that came after the first look were checked against the lock.
        let before = unsettled.get_or_insert_with(|| nameless.clone());
        before.retain(|id| nameless.contains(id));
        if theirs.is_empty() && before.is_empty() {
            return Ok(());
        }
        if started.elapsed() > LEAVING {
            let left = format!(
                "{} connections of locked replication accounts did not end",
                theirs.len()
            );
            return Err(SqlError::Condition(left));
        }
        for id in theirs {
            match driver
                .run(
                    "kill a connection",
                    &format!("KILL HARD CONNECTION {id}"),
                    STATEMENT,
                )
                .await
            {
                Ok(_) => {}
                // It went by itself.
                Err(error) if error.code() == Some(1094) => {}
                Err(error) => return Err(error),
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn accounts_name_their_member() {
        let member = MemberId::new("shop-db-1").unwrap();
        assert_eq!(member_of(&name(&member)), Some(member));
        assert_eq!(member_of("shop"), None);
    }
}
