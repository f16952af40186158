//! `homeostat sql`: a client as the application's user. The password never appears on a command line.

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use homeostat_api::v1::SecretRequest;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::args::SqlOptions;
use crate::client::Client;
use crate::failure::Failure;
use crate::place;
use crate::style::say;

pub(crate) async fn sql(state: Option<PathBuf>, options: SqlOptions) -> Result<ExitCode, Failure> {
    let (_, layout) = place::find(state)?;
    let request = SecretRequest {
        service: options.cluster.clone(),
        name: "dsn".into(),
        machine: String::new(),
    };
    let dsn = Client::new(&layout)
        .0
        .secret(request)
        .await?
        .into_inner()
        .value;
    if options.dsn {
        say(dsn);
        return Ok(ExitCode::SUCCESS);
    }
    let parts = parse(&dsn).ok_or_else(|| {
        Failure::bug(anyhow::anyhow!(
            "the connection string of {} cannot be read",
            options.cluster
        ))
    })?;
    let options_file = options_file(&parts).map_err(|error| {
        Failure::cell(anyhow::anyhow!(error).context("cannot hand the password to the client"))
    })?;
    let mut command = Command::new("mariadb");
    command.arg(format!(
        "--defaults-extra-file=/proc/self/fd/{}",
        options_file.as_raw_fd()
    ));
    if let Some(statement) = &options.execute {
        command.args(["--batch", "--execute", statement]);
    }
    command.arg(parts.database);
    // The client takes this process's place: the terminal, its signals and its exit status are the client's own.
    let error = command.exec();
    Err(
        Failure::cell(anyhow::anyhow!(error).context("cannot run the client 'mariadb'")).hint(
            "install it (Debian: mariadb-client-core), or use your own with: homeostat sql --dsn",
        ),
    )
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
    Some(Parts {
        user,
        password,
        host,
        port,
        database: database.split('?').next()?,
    })
}

/// The client's options in memory, under no name that others could open and that would have to be removed again.
fn options_file(parts: &Parts<'_>) -> std::io::Result<File> {
    // Inherited by the client: not closed on exec.
    let mut file = File::from(memfd_create("homeostat-sql", MemfdFlags::empty())?);
    // The client passes over a file that everybody may write.
    file.set_permissions(Permissions::from_mode(0o600))?;
    writeln!(
        file,
        "[client]\nuser={}\npassword={}\nhost={}\nport={}\nprotocol=TCP",
        parts.user, parts.password, parts.host, parts.port
    )?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_taken_apart() {
        let parts = parse("mysql://app:s3cret@127.77.1.1:7001/shop");
        let expect = Parts {
            user: "app",
            password: "s3cret",
            host: "127.77.1.1",
            port: "7001",
            database: "shop",
        };
        assert_eq!(parts, Some(expect));
        assert_eq!(parse("postgres://x"), None);
    }
}
