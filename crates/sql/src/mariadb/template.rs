//! Data folders: one template per server version, made once on a machine and copied for each member.
//!
//! Making one takes half a second, copying one 25 ms. The template has no secret in it and nobody can log in to it: the
//! keeper's account is locked, without a password, until the init file of a start gives it one; root and the anonymous
//! users are gone. Template and copies become visible by a rename, complete and synced, or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use homeostat_supervisor::launch::UserIds;
use rustix::fs::{FlockOperation, flock, syncfs};

use super::driver::USER;
use crate::keeper::config::Programs;

/// Counted up when what is in a template changes.
const FORMAT: u32 = 1;
/// How much of what a failed program said is repeated.
const LONGEST_COMPLAINT: usize = 2000;

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {program}: is it installed (Debian: mariadb-server-core)?")]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed ({status}): {said}")]
    Program {
        program: PathBuf,
        status: std::process::ExitStatus,
        said: String,
    },
}

fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> TemplateError + 'a {
    move |source| TemplateError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Makes `data` from the template of this server version, making that first where it is missing.
///
/// # Errors
/// When a folder cannot be written or one of the server's programs fails.
pub fn provide(
    programs: &Programs,
    shared: &Path,
    user: Option<UserIds>,
    data: &Path,
) -> Result<(), TemplateError> {
    let template = template(programs, shared, user)?;
    let unfinished = beside(data, "new");
    remove(&unfinished)?;
    let mut copy = Command::new("cp");
    copy.args(["-a", "--sparse=always", "--reflink=auto", "--"])
        .arg(&template)
        .arg(&unfinished);
    run(copy, "")?;
    give(&unfinished, user)?;
    finish(&unfinished, data)
}

/// The template's folder, made when it is missing. One maker at a time; the others wait for it.
fn template(
    programs: &Programs,
    shared: &Path,
    user: Option<UserIds>,
) -> Result<PathBuf, TemplateError> {
    // The server's user passes through it to the template that is being made.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(shared)
        .map_err(io_error("make folder", shared))?;
    open_passage(shared)?;
    let folder = shared.join(format!("{}-{FORMAT}", version(programs)?));
    if folder.is_dir() {
        return Ok(folder);
    }
    let lock_path = beside(&folder, "lock");
    let lock = File::create(&lock_path).map_err(io_error("open", &lock_path))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| io_error("lock", &lock_path)(error.into()))?;
    if !folder.is_dir() {
        let unfinished = beside(&folder, "new");
        remove(&unfinished)?;
        fs::create_dir(&unfinished).map_err(io_error("make folder", &unfinished))?;
        give(&unfinished, user)?;
        // Never the machine's own: every MariaDB that starts removes the temporary tables of all others from it.
        let temporary = beside(&folder, "tmp");
        remove(&temporary)?;
        fs::create_dir(&temporary).map_err(io_error("make folder", &temporary))?;
        give(&temporary, user)?;
        make(programs, user, &unfinished, &temporary)?;
        remove(&temporary)?;
        finish(&unfinished, &folder)?;
    }
    Ok(folder)
}

/// `mariadb-10.11.19-1` and `new` make `mariadb-10.11.19-1.new`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Adds what the umask may have taken from a folder of ours.
fn open_passage(folder: &Path) -> Result<(), TemplateError> {
    let found = fs::metadata(folder).map_err(io_error("look at", folder))?;
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o011 == 0o011 || found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o011))
        .map_err(io_error("open the way through", folder))
}

/// `mariadb-10.11.19`, as the server calls itself.
fn version(programs: &Programs) -> Result<String, TemplateError> {
    let mut command = Command::new(&programs.server);
    command.args(["--no-defaults", "--version"]);
    let text = run(command, "")?;
    // mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)
    let version = text
        .split("Ver ")
        .nth(1)
        .and_then(|rest| rest.split([' ', '-']).next())
        .unwrap_or("unknown");
    Ok(format!("mariadb-{}", version.trim()))
}

fn make(
    programs: &Programs,
    user: Option<UserIds>,
    data: &Path,
    temporary: &Path,
) -> Result<(), TemplateError> {
    let at = format!("--datadir={}", data.display());
    // The log file's size is a server's own at each start; here it only has to be small.
    let temporary = format!("--tmpdir={}", temporary.display());
    let common = [
        "--no-defaults",
        at.as_str(),
        temporary.as_str(),
        "--skip-name-resolve",
        "--innodb-log-file-size=8M",
    ];
    let mut install = as_user(&programs.install, user);
    install.args(common).args([
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-log-bin",
    ]);
    run(install, "")?;
    let mut bootstrap = as_user(&programs.server, user);
    bootstrap.args(common).args([
        "--bootstrap",
        "--skip-log-bin",
        "--innodb-buffer-pool-size=16M",
    ]);
    run(bootstrap, &accounts()).map(drop)
}

/// What a template has beyond what `mariadb-install-db` makes. Unlogged, so every member begins with the same empty
/// position and the same tables.
fn accounts() -> String {
    // Bootstrapping runs without accounts; FLUSH makes it read them, so that they can be changed.
    format!(
        "FLUSH PRIVILEGES;\n\
         DELETE FROM mysql.global_priv WHERE User IN ('root', 'mysql', '');\n\
         DELETE FROM mysql.proxies_priv;\n\
         DELETE FROM mysql.db;\n\
         FLUSH PRIVILEGES;\n\
         CREATE USER '{USER}'@'localhost' IDENTIFIED VIA mysql_native_password USING 'invalid' ACCOUNT LOCK;\n\
         GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'localhost' WITH GRANT OPTION;\n\
         CREATE DATABASE homeostat;\n\
         CREATE TABLE homeostat.epoch (epoch BIGINT UNSIGNED NOT NULL PRIMARY KEY, version BIGINT UNSIGNED NOT NULL, \
         holder VARCHAR(80) NOT NULL, ackers TEXT NOT NULL, commits BIGINT UNSIGNED NOT NULL) ENGINE=InnoDB;\n"
    )
}

fn as_user(program: &Path, user: Option<UserIds>) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = user {
        command.gid(user.gid).uid(user.uid);
    }
    // mariadb-install-db is a shell script; without a home the programs look for option files nowhere.
    command
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C");
    command
}

/// Runs a program to its end, with `input` on stdin, and returns what it wrote to stdout.
fn run(mut command: Command, input: &str) -> Result<String, TemplateError> {
    let program = PathBuf::from(command.get_program());
    let fail = |source| TemplateError::Run {
        program: program.clone(),
        source,
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read it fails, and says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(fail)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = format!("{} {}", text(&output.stdout), text(&output.stderr));
    let from = said
        .char_indices()
        .rev()
        .nth(LONGEST_COMPLAINT)
        .map_or(0, |(at, _)| at);
    Err(TemplateError::Program {
        program,
        status: output.status,
        said: said[from..].trim().to_owned(),
    })
}

/// Syncs what is in `unfinished` and gives it its name.
fn finish(unfinished: &Path, name: &Path) -> Result<(), TemplateError> {
    let sync = |path: &Path| -> io::Result<()> {
        let folder = File::open(path)?;
        // One call for some 200 files; the folder's own entry comes with it.
        syncfs(&folder).map_err(Into::into)
    };
    sync(unfinished).map_err(io_error("sync", unfinished))?;
    fs::rename(unfinished, name).map_err(io_error("rename to", name))?;
    let parent = name.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", parent))
}

fn remove(path: &Path) -> Result<(), TemplateError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

/// Makes `user` the owner of everything below `path`. Changes nothing where it is already, or where nobody is named.
fn give(path: &Path, user: Option<UserIds>) -> Result<(), TemplateError> {
    let Some(user) = user else { return Ok(()) };
    let found = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    if found.uid() != user.uid || found.gid() != user.gid {
        std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
            .map_err(io_error("hand over", path))?;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path).map_err(io_error("list", path))? {
            give(&entry.map_err(io_error("list", path))?.path(), Some(user))?;
        }
    }
    Ok(())
}
