//! Databases, users and privileges on a SQL server.

use super::FixError;
use super::step::Step;
use crate::deadline::Deadline;
use crate::sql::{
    SqlState, SqlStateProbe, UserAmiss, administer, database, has_user, identifier, join, missing,
    quoted, user_amiss,
};

pub(super) async fn plan(wanted: &SqlStateProbe, within: Deadline) -> Result<Vec<Step>, FixError> {
    let statements = within.keep("asking", statements(wanted, within)).await??;
    let steps = statements.into_iter().map(|(statement, shown)| Step::Sql {
        url: wanted.url.clone(),
        statement,
        shown,
    });
    Ok(steps.collect())
}

/// Each with what is shown of it, which is all but passwords.
async fn statements(
    wanted: &SqlStateProbe,
    within: Deadline,
) -> Result<Vec<(String, String)>, FixError> {
    let mut connection = administer(&wanted.url, within).await?;
    let plain = |statement: String| vec![(statement.clone(), statement)];
    Ok(match &wanted.state {
        SqlState::Database {
            name,
            charset,
            collation,
        } => {
            let mut options = String::new();
            if let Some(charset) = charset {
                options.push_str(&format!(" CHARACTER SET {charset}"));
            }
            if let Some(collation) = collation {
                options.push_str(&format!(" COLLATE {collation}"));
            }
            let name_there = identifier(name);
            match database(&mut connection, name).await? {
                None => plain(format!("CREATE DATABASE {name_there}{options}")),
                Some((is_charset, is_collation)) => {
                    let differs = |want: &Option<String>, is: &String| {
                        want.as_ref()
                            .is_some_and(|want| !want.eq_ignore_ascii_case(is))
                    };
                    if differs(charset, &is_charset) || differs(collation, &is_collation) {
                        plain(format!("ALTER DATABASE {name_there}{options}"))
                    } else {
                        Vec::new()
                    }
                }
            }
        }
        SqlState::User { who, password } => {
            let secret = password.as_ref();
            match user_amiss(&mut connection, &wanted.url, who, secret, within).await? {
                None => Vec::new(),
                Some(amiss) => {
                    let (verb, shown) = match amiss {
                        UserAmiss::Missing => ("CREATE", format!("CREATE USER {who}")),
                        UserAmiss::Password => ("ALTER", format!("set the password of {who}")),
                    };
                    let identified = match secret {
                        None => String::new(),
                        Some(secret) => format!(" IDENTIFIED BY {}", quoted(&secret.read()?)),
                    };
                    vec![(format!("{verb} USER {who}{identified}"), shown)]
                }
            }
        }
        SqlState::NoUser(who) => match has_user(&mut connection, who).await? {
            true => plain(format!("DROP USER {who}")),
            false => Vec::new(),
        },
        SqlState::Grant {
            who,
            privileges,
            on,
        } => match missing(&mut connection, who, privileges, on).await? {
            None => Vec::new(),
            Some(missing) => plain(format!("GRANT {} ON {on} TO {who}", join(&missing))),
        },
        SqlState::Replication { .. } => Vec::new(),
    })
}
