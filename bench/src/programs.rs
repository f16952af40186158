//! The programs that are measured: those built with this one, and the server that is installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

#[derive(Debug)]
pub struct Programs {
    pub homeostat: PathBuf,
    pub shop: PathBuf,
    pub mariadbd: PathBuf,
    pub install: PathBuf,
    /// Cargo's name for how they were built.
    pub profile: String,
}

impl Programs {
    /// Those that lie beside this program: what is measured is what was built with it, never what happens to be
    /// installed.
    pub fn find() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("find this program")?;
        let folder = own.parent().context("this program lies in no folder")?;
        let beside = |name: &str| {
            let path = folder.join(name);
            if !path.is_file() {
                let release = if folder.ends_with("release") {
                    "--release "
                } else {
                    ""
                };
                bail!(
                    "{} is missing; build it with: cargo build {release}-p homeostat -p shop",
                    path.display()
                );
            }
            Ok(path)
        };
        Ok(Self {
            homeostat: beside("homeostat")?,
            shop: beside("shop")?,
            mariadbd: installed("mariadbd")?,
            install: installed("mariadb-install-db")?,
            profile: folder
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        })
    }
}

/// An ordinary user's PATH often has no sbin.
fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = format!("{path}:/usr/sbin:/usr/local/sbin")
        .split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.is_file());
    found.with_context(|| format!("{name} is not installed (Debian: mariadb-server-core)"))
}
