//! A metric of a Prometheus text endpoint (the exposition format, version 0.0.4).

use std::collections::BTreeMap;

use hyper::StatusCode;

use crate::call::{Args, CallError};
use crate::deadline::Deadline;
use crate::http::{HttpError, HttpRequest, fetch};
use crate::matcher::Matcher;
use crate::shown;

#[derive(Debug, Clone, PartialEq)]
pub struct MetricProbe {
    request: HttpRequest,
    name: String,
    labels: BTreeMap<String, String>,
    value: Option<Matcher>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("no such series among {0}")]
    Missing(usize),
    #[error("{0}")]
    Wrong(String),
}

impl MetricProbe {
    pub(crate) fn from_args(args: &Args<'_>) -> Result<Self, CallError> {
        Ok(Self {
            request: HttpRequest::from_url(args, "url")?,
            name: args.need("name")?,
            labels: args.strings("labels")?,
            value: args.matcher("value")?,
        })
    }

    pub(crate) fn expected(&self) -> String {
        let series = series(&self.name, &self.labels);
        match &self.value {
            None => format!("{series} at {}", self.request.shown()),
            Some(value) => format!("{series} {value} at {}", self.request.shown()),
        }
    }
}

fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return name.to_owned();
    }
    let labels: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    format!("{name}{{{}}}", labels.join(","))
}

pub(crate) async fn look(probe: &MetricProbe, within: Deadline) -> Result<String, MetricError> {
    let answer = fetch(&probe.request, within).await?;
    if answer.status != StatusCode::OK {
        return Err(MetricError::Status(answer.status));
    }
    let text = String::from_utf8_lossy(&answer.body);
    let all: Vec<_> = text.lines().filter_map(Sample::parse).collect();
    let ours = |sample: &&Sample| {
        sample.name == probe.name
            && probe
                .labels
                .iter()
                .all(|(name, value)| sample.labels.get(name) == Some(value))
    };
    let found: Vec<_> = all.iter().filter(ours).collect();
    if found.is_empty() {
        return Err(MetricError::Missing(all.len()));
    }
    let wrong = found.iter().filter(|sample| {
        probe
            .value
            .as_ref()
            .is_some_and(|value| value.test(&sample.value.into()).is_err())
    });
    let wrong: Vec<_> = wrong.map(|sample| sample.shown()).collect();
    if wrong.is_empty() {
        let all: Vec<_> = found.iter().map(|sample| sample.shown()).collect();
        Ok(shown::head(all.join(", ").as_bytes()))
    } else {
        Err(MetricError::Wrong(shown::head(wrong.join(", ").as_bytes())))
    }
}

/// One line of the endpoint.
#[derive(Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Sample {
    fn shown(&self) -> String {
        format!("{} {}", series(&self.name, &self.labels), self.value)
    }

    /// `None` for comments, and for lines that are none of the format.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let end = line.find(['{', ' ', '\t'])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = BTreeMap::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = read_labels(inner, &mut labels)?;
        }
        let value = rest.split_ascii_whitespace().next()?;
        // Rust reads `+Inf`, `-Inf` and `NaN` as well.
        let value = value.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            labels,
            value,
        })
    }
}

/// `name="value",…}`; returns what follows.
fn read_labels<'a>(mut rest: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some(after);
        }
        let (name, value) = rest.split_once('=')?;
        let mut chars = value.trim_start().strip_prefix('"')?.chars();
        let mut text = String::new();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                other => text.push(other),
            }
        }
        labels.insert(name.trim().to_owned(), text);
        rest = chars.as_str();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_format() {
        let sample = Sample::parse(r#"up{job="a\"b}", le="+Inf",} 1.5e3 1700000000"#).unwrap();
        assert_eq!((sample.name.as_str(), sample.value), ("up", 1500.0));
        assert_eq!(sample.labels["job"], "a\"b}");
        assert_eq!(Sample::parse("up 1").map(|sample| sample.value), Some(1.0));
        for none in ["", "# HELP up 1", "up", "up{a=\"} 1", "up{a} 1", "up x"] {
            assert_eq!(Sample::parse(none), None, "{none}");
        }
    }
}
