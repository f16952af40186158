//! `homeostat check --cell A --cell B`: the checks that cells run by themselves, as a matrix of service by cell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use homeostat_checks::Summary;
use serde::{Deserialize, Serialize};

use crate::check::{Format, code};
use crate::client::Client;
use crate::failure::Failure;
use crate::place;
use crate::style::{Output, output, say, width, word};

/// Of a cell's status, what the matrix is made of.
#[derive(Debug, Clone, Deserialize)]
struct Answer {
    cell: String,
    checks: Vec<Check>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct Check {
    name: String,
    about: String,
    verdict: String,
}

/// One column.
#[derive(Debug, Clone, Serialize)]
struct Column {
    cell: String,
    /// Why it could not be asked; its checks are unknown then.
    problem: Option<String>,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    cells: &'a [Column],
}

pub(crate) async fn matrix(cells: &[PathBuf], format: Format) -> Result<ExitCode, Failure> {
    let mut columns = Vec::new();
    for cell in cells {
        columns.push(column(cell).await?);
    }
    match format {
        Format::Terminal => say(table(&columns, output())),
        Format::Json => {
            let document = Document {
                version: 1,
                cells: &columns,
            };
            say(serde_json::to_string_pretty(&document).map_err(Failure::bug)?);
        }
        Format::Junit | Format::Prometheus | Format::Tap => {
            return Err(Failure::input(anyhow::anyhow!(
                "this format has no place for several cells"
            ))
            .hint("use --format terminal or json"));
        }
    }
    let words = columns.iter().flat_map(words);
    Ok(ExitCode::from(code(Summary::of_words(words).standing())))
}

async fn column(state: &Path) -> Result<Column, Failure> {
    let (identity, layout) = place::find(Some(state.to_owned()))?;
    let json = match Client::new(&layout).status_json().await {
        Ok(json) => json,
        Err(status) => {
            return Ok(Column {
                cell: identity.name.to_string(),
                problem: Some(status.message().to_owned()),
                checks: Vec::new(),
            });
        }
    };
    let answer: Answer = serde_json::from_str(&json).map_err(|error| {
        Failure::bug(anyhow::anyhow!(error).context("the controller's status cannot be read"))
    })?;
    Ok(Column {
        cell: answer.cell,
        problem: None,
        checks: answer.checks,
    })
}

/// A cell that does not answer, or checks nothing, is one thing that nobody knows.
fn words(column: &Column) -> Vec<&str> {
    if column.checks.is_empty() {
        return vec!["unknown"];
    }
    column
        .checks
        .iter()
        .map(|check| check.verdict.as_str())
        .collect()
}

fn table(columns: &[Column], output: Output) -> String {
    let services: BTreeSet<&str> = columns
        .iter()
        .flat_map(|column| &column.checks)
        .map(|check| check.about.as_str())
        .collect();
    let mut rows: Vec<Vec<String>> = vec![
        std::iter::once("SERVICE".to_owned())
            .chain(columns.iter().map(|column| column.cell.clone()))
            .collect(),
    ];
    for service in services {
        let fields = columns.iter().map(|column| field(column, service, output));
        rows.push(std::iter::once(service.to_owned()).chain(fields).collect());
    }
    let count = columns.len() + 1;
    let widest = |index: usize| rows.iter().map(|row| width(&row[index])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(widest).collect();
    let line = |row: &Vec<String>| {
        let padded = row
            .iter()
            .zip(&widths)
            .map(|(field, wide)| format!("{field}{}", " ".repeat(wide - width(field))));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    for column in columns {
        if let Some(problem) = &column.problem {
            lines.push(format!("{} does not answer: {problem}", column.cell));
        } else if column.checks.is_empty() {
            lines.push(format!("{} runs no checks", column.cell));
        }
    }
    lines.join("\n")
}

/// The worst verdict of a service in a cell, and how many of its checks have it.
fn field(column: &Column, service: &str, output: Output) -> String {
    if column.problem.is_some() {
        return word("unknown", output);
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for check in column.checks.iter().filter(|check| check.about == service) {
        *counts.entry(check.verdict.as_str()).or_default() += 1;
    }
    let all: usize = counts.values().sum();
    let Some((worst, count)) = Summary::worst(counts.keys().copied()).and_then(|worst| {
        counts
            .get_key_value(worst)
            .map(|(worst, count)| (*worst, *count))
    }) else {
        return "-".to_owned();
    };
    let of = if count == all {
        format!(" {all}")
    } else {
        format!(" {count}/{all}")
    };
    format!("{}{of}", word(worst, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(cell: &str, checks: &[(&str, &str, &str)]) -> Column {
        Column {
            cell: cell.to_owned(),
            problem: None,
            checks: checks
                .iter()
                .map(|(name, about, verdict)| Check {
                    name: (*name).to_owned(),
                    about: (*about).to_owned(),
                    verdict: (*verdict).to_owned(),
                })
                .collect(),
        }
    }

    #[test]
    fn the_matrix_shows_the_worst_of_each_service() {
        let mut dead = column("berlin", &[]);
        dead.problem = Some("no such file".to_owned());
        let columns = [
            column(
                "paris",
                &[
                    ("db/tasks", "db", "pass"),
                    ("db/answers", "db", "pass"),
                    ("web/up", "web", "fail"),
                    ("web/tasks", "web", "pass"),
                ],
            ),
            column(
                "oslo",
                &[
                    ("db/tasks", "db", "blocked"),
                    ("db/answers", "db", "gave-up"),
                ],
            ),
            dead,
            column("rome", &[]),
        ];
        insta::assert_snapshot!(table(&columns, Output::Plain), @r"
        SERVICE  paris     oslo         berlin   rome
        db       pass 2    gave-up 1/2  unknown  -
        web      fail 1/2  -            unknown  -
        berlin does not answer: no such file
        rome runs no checks
        ");
        let words: Vec<&str> = columns.iter().flat_map(words).collect();
        assert_eq!(words.iter().filter(|word| **word == "unknown").count(), 2);
    }
}
