//! `homeostat sql`: a client as the application's user. The password never appears on a command line.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use homeostat_api::v1::SecretRequest;

use crate::args::SqlOptions;
use crate::client::Client;
use crate::failure::Failure;
use crate::place;

pub(crate) async fn sql(state: Option<PathBuf>, options: SqlOptions) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let request = SecretRequest { service: options.cluster.clone(), name: "dsn".into(), machine: String::new() };
    let dsn = Client::new(&layout).0.secret(request).await?.into_inner().value;
    if options.dsn {
        println!("{dsn}");
        return Ok(ExitCode::SUCCESS);
    }
    let parts = parse(&dsn)
        .ok_or_else(|| Failure::bug(anyhow::anyhow!("the connection string of {} cannot be read", options.cluster)))?;
    let path = layout.run.join(format!("client-{}.cnf", std::process::id()));
    write_defaults(&path, &parts)
        .map_err(|error| Failure::cell(anyhow::anyhow!(error).context(format!("cannot write {}", path.display()))))?;
    let mut command = Command::new("mariadb");
    command.arg(format!("--defaults-extra-file={}", path.display()));
    if let Some(statement) = &options.execute {
        command.args(["--batch", "--execute", statement]);
    }
    command.arg(parts.database);
    let status = command.status();
    // Gone before anything is reported: it holds a password.
    let removed = std::fs::remove_file(&path);
    let status = status.map_err(|error| {
        Failure::cell(anyhow::anyhow!(error).context("cannot run the client 'mariadb'"))
            .hint("install it (Debian: mariadb-client-core), or use your own with: homeostat sql --dsn")
    })?;
    removed.map_err(|error| Failure::cell(anyhow::anyhow!(error).context(format!("remove {} by hand", path.display()))))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

#[derive(Debug, PartialEq, Eq)]
struct Parts<'a> {
    user: &'a str,
    password: &'a str,
    host: &'a str,
    port: &'a str,
    database: &'a str,
}

/// `mysql://user:password@host:port/database`, as the SQL service writes it (nothing in it needs escaping).
fn parse(dsn: &str) -> Option<Parts<'_>> {
    let rest = dsn.strip_prefix("mysql://")?;
    let (login, rest) = rest.split_once('@')?;
    let (user, password) = login.split_once(':')?;
    let (address, database) = rest.split_once('/')?;
    let (host, port) = address.rsplit_once(':')?;
    Some(Parts { user, password, host, port, database: database.split('?').next()? })
}

fn write_defaults(path: &std::path::Path, parts: &Parts<'_>) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(
        file,
        "[client]\nuser={}\npassword={}\nhost={}\nport={}\nprotocol=TCP",
        parts.user, parts.password, parts.host, parts.port
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_taken_apart() {
        let parts = parse("mysql://app:s3cret@127.77.1.1:7001/shop");
        let expect = Parts { user: "app", password: "s3cret", host: "127.77.1.1", port: "7001", database: "shop" };
        assert_eq!(parts, Some(expect));
        assert_eq!(parse("postgres://x"), None);
    }
}
