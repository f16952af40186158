//! Where the customers and the auditor go: to the web service, or straight to the database.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::database::Database;

#[derive(clap::Args)]
#[group(id = "target", required = true, multiple = false)]
pub struct Args {
    /// The web service
    #[arg(long, value_name = "HOST:PORT")]
    to: Option<String>,
    /// The database itself: mysql://user:password@host:port/database
    #[arg(long, value_name = "URL")]
    sql: Option<String>,
    /// The database itself, its URL in a file (which keeps the password out of the process list)
    #[arg(long, value_name = "FILE")]
    db_file: Option<PathBuf>,
}

#[derive(Clone)]
pub enum Target {
    Web { address: String },
    Sql { url: String },
}

impl Args {
    pub fn target(self) -> anyhow::Result<Target> {
        match (self.to, self.sql, self.db_file) {
            (Some(address), _, _) => Ok(Target::Web { address }),
            (None, Some(url), _) => Ok(Target::Sql { url }),
            (None, None, Some(file)) => Ok(Target::Sql {
                url: read_url(&file)?,
            }),
            (None, None, None) => anyhow::bail!("one of --to, --sql and --db-file is needed"),
        }
    }
}

pub fn read_url(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read the database URL in {file:?}"))
}

pub fn open_database(file: &Path, connections: usize) -> anyhow::Result<Database> {
    Database::open(&read_url(file)?, connections).with_context(|| format!("in {file:?}"))
}
