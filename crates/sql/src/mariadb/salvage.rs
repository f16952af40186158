//! Applies received events that a restart left in the relay log, as clients would write them but under their own GTIDs.
//!
//! `mariadb-binlog` prints them with `gtid_domain_id`, `server_id` and `gtid_seq_no` set, and the server, being in strict
//! mode, refuses any that it has already. So an interrupted salvage is simply repeated, and the resulting binlog is the
//! one that replication would have written.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use homeostat_decider::Gtid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::driver::{Driver, SqlError, USER};
use super::gtid::beyond;
use super::{Member, STATEMENT, relay};

/// How much of what a program says on stderr is kept for the report.
const LONGEST_COMPLAINT: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    #[error("cannot read the relay log below {at}")]
    Read {
        at: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot run {program}")]
    Run {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} failed: {said}")]
    Program { program: String, said: String },
    #[error(
        "applying the relay log took longer than {limit_ms} ms; give the order again, it continues"
    )]
    TooLong { limit_ms: u128 },
}

/// The index of the relay log's files.
pub fn index(folder: &Path) -> PathBuf {
    folder.join("relay.index")
}

/// Applies what the relay log holds beyond `applied`.
///
/// # Errors
/// When a program fails or the server refuses an event; whole transactions before that are applied.
pub async fn salvage(
    driver: &mut Driver,
    this: &Member<'_>,
    applied: Option<Gtid>,
    limit: Duration,
) -> Result<(), SqlError> {
    let folder = this.data.join("sql");
    let read = |source| SalvageError::Read {
        at: folder.clone(),
        source,
    };
    let files = relay::files(&index(&folder)).map_err(read)?;
    let end = relay::scan(&files).map_err(read)?.last;
    // A printed event is larger than the event was by a third and must fit into one statement.
    let widen =
        "SET @packet = @@GLOBAL.max_allowed_packet; SET GLOBAL max_allowed_packet = 1073741824";
    driver
        .run("allow large statements", widen, STATEMENT)
        .await?;
    let login = write_login(this, driver)?;
    let result = timeout(limit, pipe(this, &login, applied, &files)).await;
    let removed = std::fs::remove_file(&login);
    driver
        .run(
            "allow statements as before",
            "SET GLOBAL max_allowed_packet = @packet",
            STATEMENT,
        )
        .await?;
    removed.map_err(|source| SalvageError::Read { at: login, source })?;
    let result = result.unwrap_or(Err(SalvageError::TooLong {
        limit_ms: limit.as_millis(),
    }));

    // The position judges, not the exit codes: a torn last event makes mariadb-binlog complain after it has printed all
    // that is whole.
    let now = driver
        .value("read the position", "SELECT @@GLOBAL.gtid_binlog_pos")
        .await?
        .unwrap_or_default();
    let now = super::gtid::position(&now)?;
    if beyond(end, now) {
        result?;
        return Err(SqlError::Condition(format!(
            "the relay log ends at {} and applying it ended at {}",
            end.map_or("nothing".into(), |gtid| gtid.to_string()),
            now.map_or("nothing".into(), |gtid| gtid.to_string()),
        )));
    }
    let position = now.map(|gtid| gtid.to_string()).unwrap_or_default();
    driver
        .run(
            "set the position",
            &format!("SET GLOBAL gtid_slave_pos = '{position}'"),
            STATEMENT,
        )
        .await
        .map(drop)
}

/// The client's login, in a file that only this user can read: never on a command line.
fn write_login(this: &Member<'_>, driver: &Driver) -> Result<PathBuf, SalvageError> {
    use std::io::Write;
    let path = this.run.join("salvage.cnf");
    let login = driver.login();
    let text = format!(
        "[client]\nsocket={}\nuser={USER}\npassword={}\n",
        login.socket.display(),
        login.password.reveal()
    );
    let write = || -> std::io::Result<()> {
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| SalvageError::Read {
        at: path.clone(),
        source,
    })?;
    Ok(path)
}

/// `mariadb-binlog … | mariadb …`, the pipe between the two held by the kernel alone.
async fn pipe(
    this: &Member<'_>,
    login: &Path,
    applied: Option<Gtid>,
    files: &[PathBuf],
) -> Result<(), SalvageError> {
    let programs = &this.config.programs;
    let mut reader = Command::new(&programs.binlog);
    reader.arg("--no-defaults");
    if let Some(applied) = applied {
        reader.arg(format!("--start-position={applied}"));
    }
    reader
        .args(files)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let run = |program: &Path| {
        let program = program.display().to_string();
        move |source| SalvageError::Run { program, source }
    };
    let mut reader = reader.spawn().map_err(run(&programs.binlog))?;
    let events = reader.stdout.take().map(TryInto::<Stdio>::try_into);
    let events = events
        .transpose()
        .map_err(run(&programs.binlog))?
        .unwrap_or(Stdio::null());
    let mut writer = Command::new(&programs.client)
        .arg(format!("--defaults-file={}", login.display()))
        // Values may hold any bytes; without this some would be taken for commands of the client.
        .args(["--binary-mode", "--batch", "--max-allowed-packet=1G"])
        .stdin(events)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(run(&programs.client))?;
    let (read_said, write_said) = tokio::join!(
        complaint(reader.stderr.take()),
        complaint(writer.stderr.take())
    );
    let wrote = writer.wait().await.map_err(run(&programs.client))?;
    let read = reader.wait().await.map_err(run(&programs.binlog))?;
    if !wrote.success() {
        return Err(SalvageError::Program {
            program: programs.client.display().to_string(),
            said: write_said,
        });
    }
    if !read.success() {
        return Err(SalvageError::Program {
            program: programs.binlog.display().to_string(),
            said: read_said,
        });
    }
    Ok(())
}

async fn complaint(stderr: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stderr) = stderr else {
        return String::new();
    };
    let mut said = Vec::new();
    // A read error ends what is known of the complaint, nothing else.
    let _ = (&mut stderr)
        .take(LONGEST_COMPLAINT)
        .read_to_end(&mut said)
        .await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&said).trim().to_owned()
}
