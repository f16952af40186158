//! From a path to a suite: `site.star`, a folder with one in it, or a goss file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use homeostat_cellfile::ProblemKind;
use homeostat_checks::{ProofBook, Suite};

use crate::failure::{Failure, Kind};
use crate::style;

/// The longest goss file.
const LONGEST_GOSS: u64 = 16 * 1024 * 1024;

pub(crate) fn read(path: &Path, parameters: &[String]) -> Result<Suite, Failure> {
    let path = whole(path);
    let parameters = pairs(parameters)?;
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("yaml" | "yml") if parameters.is_empty() => goss(&path),
        Some("yaml" | "yml") => Err(Failure::input(anyhow::anyhow!(
            "a goss file has no parameters"
        ))),
        Some(_) | None => site(&path, &parameters),
    }
}

fn whole(path: &Path) -> PathBuf {
    if path.is_dir() {
        path.join("site.star")
    } else {
        path.to_owned()
    }
}

fn pairs(parameters: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for text in parameters {
        let Some((name, value)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            let error = anyhow::anyhow!("--set {text}: no value");
            return Err(Failure::input(error).hint("write --set NAME=VALUE"));
        };
        if pairs.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Failure::input(anyhow::anyhow!(
                "--set {name} is given twice"
            )));
        }
    }
    Ok(pairs)
}

/// Evaluated in a process of its own: a file that eats memory or time ends that process and nothing else.
fn site(path: &Path, parameters: &BTreeMap<String, String>) -> Result<Suite, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::bug(anyhow::anyhow!(error)))?;
    let mut child = Command::new(program);
    child.arg("read-site").arg(path);
    let site = homeostat_cellfile::load_site_apart(child, path, parameters).map_err(|error| {
        let is_bug = |kind| matches!(kind, ProblemKind::Bug);
        let bug = error.problems.iter().any(|problem| is_bug(problem.kind));
        Failure {
            kind: if bug { Kind::Bug } else { Kind::Input },
            error: anyhow::anyhow!("{error}"),
            hint: None,
        }
    })?;
    let proofs = ProofBook::open(ProofBook::usual_folder());
    Suite::from_site(site, &proofs).map_err(Failure::input)
}

fn goss(path: &Path) -> Result<Suite, Failure> {
    let text = read_goss(path)?;
    Suite::from_goss(&text).map_err(|error| named(path, error))
}

#[derive(Debug, Args)]
pub(crate) struct ConvertOptions {
    /// A goss file without templates: the output of `goss render`
    pub path: PathBuf,
}

/// `homeostat convert goss.yaml`: prints the same checks in our language.
pub(crate) fn convert(options: &ConvertOptions) -> Result<ExitCode, Failure> {
    let text = read_goss(&options.path)?;
    let site =
        homeostat_checks::goss_to_site(&text).map_err(|error| named(&options.path, error))?;
    style::say(site.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn named(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    Failure::input(error.into().context(path.display().to_string()))
}

fn read_goss(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let fail = |error: std::io::Error| {
        Failure::input(anyhow::anyhow!(error).context(format!("cannot read {shown}")))
    };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > LONGEST_GOSS {
        let error = anyhow::anyhow!("{shown} is larger than {LONGEST_GOSS} bytes");
        return Err(Failure::input(error));
    }
    std::fs::read_to_string(path).map_err(fail)
}
