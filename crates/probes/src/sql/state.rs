//! What is on a SQL server: databases, users and their privileges; and whether it replicates.
//!
//! The same questions are asked by probes and by fixes, which make the difference good with statements of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder, Row};

use super::{SqlError, SqlUrl, connect, log_in, text_at};
use crate::call::{Args, CallError};
use crate::deadline::Deadline;

/// Enough for the privileges of one user.
const ROWS: usize = 10_000;

/// Access denied (server error numbers 1044, 1045, 1698).
const DENIED: [u16; 3] = [1044, 1045, 1698];
/// There is no such grant defined.
const NO_GRANT: u16 = 1141;

#[derive(Debug, Clone, PartialEq)]
pub struct SqlStateProbe {
    pub(crate) url: SqlUrl,
    pub(crate) state: SqlState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SqlState {
    Database {
        name: String,
        charset: Option<String>,
        collation: Option<String>,
    },
    User {
        who: Account,
        password: Option<Secret>,
    },
    NoUser(Account),
    Grant {
        who: Account,
        privileges: BTreeSet<String>,
        on: Scope,
    },
    Replication {
        most_lag: Option<Duration>,
    },
}

/// `'user'@'host'`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) host: String,
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", quoted(&self.user), quoted(&self.host))
    }
}

/// A password or where it is; it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub(crate) fn read(&self) -> Result<String, SqlError> {
        match self.0.strip_prefix("file:") {
            None => Ok(self.0.clone()),
            Some(path) => std::fs::read_to_string(path)
                .map(|text| text.trim_end_matches('\n').to_owned())
                .map_err(|source| SqlError::UrlFile {
                    path: path.to_owned(),
                    source,
                }),
        }
    }
}

/// What privileges are on: `*` stands for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    database: Option<String>,
    table: Option<String>,
}

impl Scope {
    fn parse(text: &str) -> Option<Self> {
        let (database, table) = text.split_once('.')?;
        let part = |text: &str| (text != "*").then(|| text.trim_matches('`').replace("``", "`"));
        let scope = Self {
            database: part(database),
            table: part(table),
        };
        let nonsense = scope.database.is_none() && scope.table.is_some();
        (!nonsense && !database.is_empty() && !table.is_empty()).then_some(scope)
    }

    /// Statements that make what it names, so that something can be granted on it.
    pub(crate) fn example(&self) -> Vec<String> {
        let Some(database) = &self.database else {
            return Vec::new();
        };
        let mut statements = vec![format!(
            "CREATE DATABASE IF NOT EXISTS {}",
            identifier(database)
        )];
        if self.table.is_some() {
            statements.push(format!("CREATE TABLE IF NOT EXISTS {self} (id INT)"));
        }
        statements
    }

    /// Whether privileges on this hold on `other` too.
    fn covers(&self, other: &Self) -> bool {
        match (&self.database, &self.table) {
            (None, _) => true,
            (Some(_), None) => self.database == other.database,
            (Some(_), Some(_)) => self == other,
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |part: &Option<String>| part.as_deref().map_or("*".to_owned(), identifier);
        write!(f, "{}.{}", part(&self.database), part(&self.table))
    }
}

/// A text as SQL. The sessions of fixes have an empty `sql_mode`, in which a backslash escapes.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

pub(crate) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

impl SqlStateProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Option<Self>, CallError> {
        let word = |arg: &str| {
            args.text(arg)
                .map(|word| {
                    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    if word.is_empty() || !word.chars().all(good) {
                        return args.refuse(arg, format!("'{word}' is not possible"));
                    }
                    Ok(word.to_owned())
                })
                .transpose()
        };
        let who = |arg: &str| {
            Ok::<_, CallError>(Account {
                user: args.need(arg)?,
                host: args.text("host").unwrap_or("%").to_owned(),
            })
        };
        let state = match args.kind.name {
            "sql_database" => SqlState::Database {
                name: args.need("name")?,
                charset: word("charset")?,
                collation: word("collation")?,
            },
            "sql_user" => SqlState::User {
                who: who("name")?,
                password: args.text("password").map(|text| Secret(text.to_owned())),
            },
            "sql_user_absent" => SqlState::NoUser(who("name")?),
            "sql_grant" => SqlState::Grant {
                who: who("user")?,
                privileges: privileges(args)?,
                on: match Scope::parse(&args.need("on")?) {
                    Some(scope) => scope,
                    None => {
                        return args.refuse("on", "it is no scope").map_err(|error| {
                            error.with_hint("write database.*, database.table or *.*")
                        });
                    }
                },
            },
            "sql_replication" => SqlState::Replication {
                most_lag: args.duration("lag")?,
            },
            _ => return Ok(None),
        };
        let url = SqlUrl::from_args(args)?;
        Ok(Some(Self { url, state }))
    }

    pub(crate) fn expected(&self) -> String {
        let on = self.url.shown();
        match &self.state {
            SqlState::Database { name, .. } => format!("database {name} at {on}"),
            SqlState::User { who, .. } => format!("user {who} at {on}"),
            SqlState::NoUser(who) => format!("no user {who} at {on}"),
            SqlState::Grant {
                who,
                privileges,
                on: scope,
            } => {
                let privileges: Vec<_> = privileges.iter().map(String::as_str).collect();
                format!("{who} has {} on {scope} at {on}", privileges.join(", "))
            }
            SqlState::Replication { most_lag: None } => format!("{on} replicates"),
            SqlState::Replication {
                most_lag: Some(lag),
            } => {
                format!("{on} replicates, at most {lag:?} behind")
            }
        }
    }
}

fn privileges(args: &Args<'_>) -> Result<BTreeSet<String>, CallError> {
    let all = args.texts("privileges").unwrap_or_default();
    let good = |text: &String| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ')
    };
    if all.is_empty() || !all.iter().all(good) {
        return args
            .refuse("privileges", "each is one privilege in words")
            .map_err(|error| error.with_hint("write [\"SELECT\", \"INSERT\"]"));
    }
    Ok(all.iter().map(|text| full_name(text)).collect())
}

fn full_name(privilege: &str) -> String {
    match privilege.trim().to_ascii_uppercase().as_str() {
        "ALL" => ALL.to_owned(),
        other => other.to_owned(),
    }
}

const ALL: &str = "ALL PRIVILEGES";

pub(crate) async fn look_at_state(
    probe: &SqlStateProbe,
    within: Deadline,
) -> Result<String, SqlError> {
    let looking = async {
        let mut connection = administer(&probe.url, within).await?;
        amiss(&mut connection, probe, within).await
    };
    match within.keep("asking", looking).await?? {
        Look::Right(seen) => Ok(seen),
        Look::Amiss(seen) => Err(SqlError::State(seen)),
    }
}

/// A session in which names and texts mean what [`quoted`] and [`identifier`] write.
pub(crate) async fn administer(url: &SqlUrl, within: Deadline) -> Result<Conn, SqlError> {
    let mut connection = log_in(url, within.all, ROWS).await?;
    connection
        .query_drop("SET SESSION sql_mode = ''")
        .await
        .map_err(SqlError::Query)?;
    Ok(connection)
}

enum Look {
    Right(String),
    Amiss(String),
}

async fn amiss(
    connection: &mut Conn,
    probe: &SqlStateProbe,
    within: Deadline,
) -> Result<Look, SqlError> {
    let verdict = |amiss: Option<String>, right: &str| match amiss {
        Some(amiss) => Look::Amiss(amiss),
        None => Look::Right(right.to_owned()),
    };
    Ok(match &probe.state {
        SqlState::Database {
            name,
            charset,
            collation,
        } => match database(connection, name).await? {
            None => Look::Amiss("there is no such database".to_owned()),
            Some((is_charset, is_collation)) => {
                let differs = |want: &Option<String>, is: &String| {
                    want.as_ref()
                        .is_some_and(|want| !want.eq_ignore_ascii_case(is))
                };
                let seen = format!("charset {is_charset}, collation {is_collation}");
                if differs(charset, &is_charset) || differs(collation, &is_collation) {
                    Look::Amiss(seen)
                } else {
                    Look::Right(seen)
                }
            }
        },
        SqlState::User { who, password } => {
            let amiss = user_amiss(connection, &probe.url, who, password.as_ref(), within).await?;
            verdict(amiss.map(UserAmiss::words), "the user is there")
        }
        SqlState::NoUser(who) => {
            let there = has_user(connection, who).await?;
            verdict(
                there.then(|| "the user is there".to_owned()),
                "no such user",
            )
        }
        SqlState::Grant {
            who,
            privileges,
            on,
        } => {
            let missing = missing(connection, who, privileges, on).await?;
            let words = missing.map(|missing| format!("without {}", join(&missing)));
            verdict(words, "all are granted")
        }
        SqlState::Replication { most_lag } => replication(connection, *most_lag).await?,
    })
}

pub(crate) fn join(words: &BTreeSet<String>) -> String {
    words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Its charset and collation.
pub(crate) async fn database(
    connection: &mut Conn,
    name: &str,
) -> Result<Option<(String, String)>, SqlError> {
    let row: Option<Row> = connection
        .exec_first(
            "SELECT default_character_set_name, default_collation_name \
             FROM information_schema.schemata WHERE schema_name = ?",
            (name,),
        )
        .await
        .map_err(SqlError::Query)?;
    Ok(row.map(|row| (text_at(&row, 0), text_at(&row, 1))))
}

pub(crate) async fn has_user(connection: &mut Conn, who: &Account) -> Result<bool, SqlError> {
    let found: Option<u8> = connection
        .exec_first(
            "SELECT 1 FROM mysql.user WHERE user = ? AND host = ?",
            (&who.user, &who.host),
        )
        .await
        .map_err(SqlError::Query)?;
    Ok(found.is_some())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UserAmiss {
    Missing,
    Password,
}

impl UserAmiss {
    fn words(self) -> String {
        match self {
            UserAmiss::Missing => "there is no such user".to_owned(),
            UserAmiss::Password => "the user cannot log in with the password".to_owned(),
        }
    }
}

pub(crate) async fn user_amiss(
    connection: &mut Conn,
    url: &SqlUrl,
    who: &Account,
    password: Option<&Secret>,
    within: Deadline,
) -> Result<Option<UserAmiss>, SqlError> {
    if !has_user(connection, who).await? {
        return Ok(Some(UserAmiss::Missing));
    }
    let Some(password) = password else {
        return Ok(None);
    };
    let opts = OptsBuilder::from_opts(url.opts()?)
        .user(Some(&who.user))
        .pass(Some(password.read()?))
        .db_name(None::<String>);
    match connect(opts.into(), within.all, 1).await {
        Ok(_) => Ok(None),
        Err(SqlError::Login(mysql_async::Error::Server(error))) if DENIED.contains(&error.code) => {
            Ok(Some(UserAmiss::Password))
        }
        Err(error) => Err(error),
    }
}

/// Of the wanted privileges those that are not granted; `None`: all are.
pub(crate) async fn missing(
    connection: &mut Conn,
    who: &Account,
    wanted: &BTreeSet<String>,
    on: &Scope,
) -> Result<Option<BTreeSet<String>>, SqlError> {
    let grants: Vec<String> = match connection.query(format!("SHOW GRANTS FOR {who}")).await {
        Ok(grants) => grants,
        Err(mysql_async::Error::Server(error)) if error.code == NO_GRANT => Vec::new(),
        Err(error) => return Err(SqlError::Query(error)),
    };
    let mut granted = BTreeSet::new();
    for (privileges, scope) in grants.iter().filter_map(|grant| read_grant(grant)) {
        if scope.covers(on) {
            granted.extend(privileges);
        }
    }
    if granted.contains(ALL) {
        return Ok(None);
    }
    let missing: BTreeSet<_> = wanted.difference(&granted).cloned().collect();
    Ok((!missing.is_empty()).then_some(missing))
}

/// ``GRANT SELECT, INSERT (`a`, `b`) ON `shop`.* TO `app`@`%` …``; privileges on columns are left out.
fn read_grant(grant: &str) -> Option<(Vec<String>, Scope)> {
    let rest = grant.strip_prefix("GRANT ")?;
    let (privileges, rest) = rest.split_once(" ON ")?;
    let (scope, _) = rest.rsplit_once(" TO ")?;
    let scope = Scope::parse(&scope.replace("\\_", "_"))?;
    let mut depth = 0;
    let parts = privileges.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    let whole = parts.filter(|part| !part.contains('(')).map(full_name);
    Some((whole.collect(), scope))
}

async fn replication(connection: &mut Conn, most_lag: Option<Duration>) -> Result<Look, SqlError> {
    let version: Option<String> = connection
        .query_first("SELECT VERSION()")
        .await
        .map_err(SqlError::Query)?;
    let is_mariadb = version.is_some_and(|version| version.contains("MariaDB"));
    let question = if is_mariadb {
        "SHOW ALL SLAVES STATUS"
    } else {
        "SHOW REPLICA STATUS"
    };
    let rows: Vec<Row> = connection.query(question).await.map_err(SqlError::Query)?;
    if rows.is_empty() {
        return Ok(Look::Amiss("it replicates from nobody".to_owned()));
    }
    let mut seen = Vec::new();
    for row in &rows {
        let source = Source::read(row);
        if let Some(amiss) = source.amiss(most_lag) {
            return Ok(Look::Amiss(amiss));
        }
        seen.push(format!("{} s behind", source.behind));
    }
    Ok(Look::Right(seen.join(", ")))
}

/// What a replica says of one source. MySQL changed the words in 8.0.22, MariaDB kept them.
struct Source {
    io: String,
    sql: String,
    behind: String,
    error: String,
}

impl Source {
    fn read(row: &Row) -> Self {
        let columns: BTreeMap<String, usize> = row
            .columns_ref()
            .iter()
            .enumerate()
            .map(|(at, column)| (column.name_str().into_owned(), at))
            .collect();
        let text = |names: [&str; 2]| {
            let at = names.iter().find_map(|name| columns.get(*name));
            at.map_or("NULL".to_owned(), |at| text_at(row, *at))
        };
        let errors = [
            ["Last_IO_Error", "Last_IO_Error"],
            ["Last_SQL_Error", "Last_SQL_Error"],
        ];
        let errors = errors.map(text);
        Self {
            io: text(["Slave_IO_Running", "Replica_IO_Running"]),
            sql: text(["Slave_SQL_Running", "Replica_SQL_Running"]),
            behind: text(["Seconds_Behind_Master", "Seconds_Behind_Source"]),
            error: errors
                .into_iter()
                .find(|error| !error.is_empty())
                .unwrap_or_default(),
        }
    }

    fn amiss(&self, most_lag: Option<Duration>) -> Option<String> {
        let Self {
            io,
            sql,
            behind,
            error,
        } = self;
        if io != "Yes" || sql != "Yes" {
            return Some(format!("receiving: {io}, applying: {sql}: {error}"));
        }
        let in_time = |most: Duration| behind.parse::<u64>().is_ok_and(|is| is <= most.as_secs());
        match most_lag {
            Some(most) if !in_time(most) => Some(format!("{behind} s behind")),
            Some(_) | None => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read() {
        let (privileges, scope) =
            read_grant("GRANT SELECT, INSERT (`a`, `b`), SHOW VIEW ON `shop\\_1`.* TO `app`@`%` WITH GRANT OPTION")
                .unwrap();
        assert_eq!(privileges, ["SELECT", "SHOW VIEW"]);
        assert_eq!(scope.to_string(), "`shop_1`.*");
        assert!(Scope::parse("*.*").unwrap().covers(&scope));
        assert!(scope.covers(&Scope::parse("shop_1.t").unwrap()));
        assert!(!scope.covers(&Scope::parse("*.*").unwrap()));
        for bad in ["shop", "*.t", ".t", "shop."] {
            assert_eq!(Scope::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn nothing_breaks_out_of_its_quotes() {
        assert_eq!(quoted(r"a'b\'c"), r"'a''b\\''c'");
        assert_eq!(identifier("a`b"), "`a``b`");
    }
}
