//! What the evaluation of a cell file leaves behind: a list of calls with their arguments, as plain data.
//!
//! Starlark only *builds*; from here on Rust runs. Nothing of the starlark crate passes this point, so everything after
//! it can be tested without an evaluator, and sent to another thread.

use homeostat_model::library::Kind;

use crate::site;
use crate::source::Span;

/// One call of a builder.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub builder: Builder,
    pub arguments: Vec<Argument>,
    /// The whole call.
    pub at: Span,
    /// When a function of the file made the call: where that was called, innermost first.
    pub called_from: Vec<Span>,
}

#[derive(Debug, Clone)]
pub(crate) struct Argument {
    pub name: String,
    /// Set when it was given without its name.
    pub position: Option<usize>,
    pub value: Datum,
}

/// A Starlark value as data.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Datum {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Datum>),
    Dict(Vec<(Datum, Datum)>),
    /// The probe or fix that the item of this number declared.
    Probe(usize),
    /// Something that no builder takes: a function, a range. Carries the name of its type.
    Other(String),
}

impl Datum {
    /// What it is, for errors.
    pub(crate) fn kind(&self) -> String {
        match self {
            Datum::None => "None".to_owned(),
            Datum::Bool(_) => "a bool".to_owned(),
            Datum::Int(_) => "an int".to_owned(),
            Datum::Float(_) => "a float".to_owned(),
            Datum::Text(_) => "a string".to_owned(),
            Datum::List(_) => "a list".to_owned(),
            Datum::Dict(_) => "a dict".to_owned(),
            Datum::Probe(_) => "a probe".to_owned(),
            Datum::Other(name) => format!("a {name}"),
        }
    }
}

/// The functions that a file may call beside those of Starlark itself, as far as they declare something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builder {
    Cell,
    Machine,
    Package,
    Job,
    SqlCluster,
    Check,
    Tcp,
    Http,
    Sql,
    Command,
    Tasks,
    /// `check` of a `site.star`.
    SiteCheck,
    /// A probe or a fix of the library.
    Library(&'static Kind),
}

impl Builder {
    pub(crate) const OF_CELLS: [Builder; 11] = [
        Builder::Cell,
        Builder::Machine,
        Builder::Package,
        Builder::Job,
        Builder::SqlCluster,
        Builder::Check,
        Builder::Tcp,
        Builder::Http,
        Builder::Sql,
        Builder::Command,
        Builder::Tasks,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Builder::Cell => "cell",
            Builder::Machine => "machine",
            Builder::Package => "package",
            Builder::Job => "job",
            Builder::SqlCluster => "sql_cluster",
            Builder::Check => "check",
            Builder::Tcp => "tcp",
            Builder::Http => "http",
            Builder::Sql => "sql",
            Builder::Command => "command",
            Builder::Tasks => "tasks",
            Builder::SiteCheck => "check",
            Builder::Library(kind) => kind.name,
        }
    }

    /// All argument names; the first [`Builder::positional`] may be given without them.
    pub(crate) fn parameters(self) -> Vec<&'static str> {
        let names: &[&str] = match self {
            Builder::SiteCheck => &site::CHECK_ARGUMENTS,
            Builder::Library(kind) => return kind.args.iter().map(|arg| arg.name).collect(),
            Builder::Cell => &["name", "kind"],
            Builder::Machine => &["name", "rack", "cpu", "memory"],
            Builder::Package => &["name", "version", "path", "host"],
            Builder::Job => &[
                "name", "tasks", "package", "command", "env", "files", "ports", "endpoint",
                "needs", "cpu", "memory", "user", "grace", "restart", "owner",
            ],
            Builder::SqlCluster => &[
                "name",
                "members",
                "flavor",
                "database",
                "cpu",
                "memory",
                "profile",
                "reads",
                "durability",
                "cold_wait",
                "settings",
                "owner",
            ],
            Builder::Check => &[
                "name", "about", "probe", "after", "every", "timeout", "confirm",
            ],
            Builder::Tcp => &["at"],
            Builder::Http => &["at", "path", "status", "contains"],
            Builder::Sql => &["service", "query", "want"],
            Builder::Command => &["package", "command", "files"],
            Builder::Tasks => &["service"],
        };
        names.to_vec()
    }

    pub(crate) const fn positional(self) -> usize {
        match self {
            Builder::Cell
            | Builder::Machine
            | Builder::Package
            | Builder::Job
            | Builder::SqlCluster
            | Builder::Check
            | Builder::Tcp
            | Builder::Http
            | Builder::Tasks
            | Builder::SiteCheck
            | Builder::Library(_) => 1,
            Builder::Sql => 3,
            Builder::Command => 0,
        }
    }

    /// Whether what it answers is used by a check, as its probe or its fix.
    pub(crate) const fn is_probe(self) -> bool {
        match self {
            Builder::Tcp
            | Builder::Http
            | Builder::Sql
            | Builder::Command
            | Builder::Tasks
            | Builder::Library(_) => true,
            Builder::SiteCheck
            | Builder::Cell
            | Builder::Machine
            | Builder::Package
            | Builder::Job
            | Builder::SqlCluster
            | Builder::Check => false,
        }
    }
}
