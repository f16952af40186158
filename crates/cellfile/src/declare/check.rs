//! `check()` and the probes.

use std::time::Duration;

use homeostat_model::{CheckName, HttpProbe, ProbeSpec};

use super::job::{command, files};
use super::{CheckDraft, ProbeDraft};
use crate::item::{Builder, Datum, Item};
use crate::reader::Reader;

/// Checking more often than this measures the checks.
const SHORTEST_EVERY: Duration = Duration::from_millis(100);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(10);
pub(crate) const DEFAULT_EVERY: Duration = Duration::from_secs(5);
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
/// One failure may be chance; two in a row are looked into.
pub(crate) const DEFAULT_CONFIRM: u32 = 2;

pub(super) fn check(mut reader: Reader<'_, '_, '_>, items: &[Item]) -> Option<CheckDraft> {
    let name: Option<CheckName> = reader.required_name("name");
    let about = reader.text("about").map(str::to_owned);
    let after = reader.names("after");
    let every = reader
        .duration("every", SHORTEST_EVERY)
        .unwrap_or(DEFAULT_EVERY);
    let timeout = reader
        .duration("timeout", SHORTEST_TIMEOUT)
        .unwrap_or(DEFAULT_TIMEOUT);
    let confirm = reader.whole("confirm", 1..=100).unwrap_or(DEFAULT_CONFIRM);
    let index = match reader.given("probe") {
        Some(Datum::Probe(index)) => *index,
        Some(other) => {
            let message = format!("'probe' must be a probe, not {}", other.kind());
            let hint = "probes are tcp(), http(), sql(), command() and tasks()".to_owned();
            reader.bad_with_hint("probe", None, message, hint);
            return None;
        }
        None => {
            reader.missing("probe");
            return None;
        }
    };
    let item = items.get(index)?;
    let draft = probe(Reader::new(item, reader.problems), index)?;
    Some(CheckDraft {
        name: name?,
        about,
        after,
        probe: draft,
        every,
        timeout,
        confirm,
    })
}

fn probe(mut reader: Reader<'_, '_, '_>, item: usize) -> Option<ProbeDraft> {
    let mut at_endpoint_of_subject = false;
    let mut at = |reader: &mut Reader<'_, '_, '_>| {
        at_endpoint_of_subject = reader.given("at").is_none();
        reader.text("at").unwrap_or_default().to_owned()
    };
    let spec = match reader.item.builder {
        Builder::Tcp => ProbeSpec::Tcp {
            at: at(&mut reader),
        },
        Builder::Http => {
            let at = at(&mut reader);
            ProbeSpec::Http(http(&mut reader, at))
        }
        Builder::Sql => {
            let service = reader.required_name("service");
            let query = reader.required_text("query");
            let want = match reader.given("want") {
                Some(Datum::Int(number)) => Some(number.to_string()),
                _ => reader.text("want").map(str::to_owned),
            };
            ProbeSpec::Sql {
                service: service?,
                query: query?.to_owned(),
                want,
            }
        }
        Builder::Command => {
            let package = reader.name("package");
            let files = files(&mut reader);
            ProbeSpec::Command {
                package,
                command: command(&mut reader)?,
                files,
            }
        }
        Builder::Tasks => ProbeSpec::Tasks {
            service: reader.required_name("service")?,
        },
        Builder::Cell
        | Builder::Machine
        | Builder::Package
        | Builder::Job
        | Builder::SqlCluster
        | Builder::Check
        | Builder::SiteCheck
        | Builder::Library(_) => return None,
    };
    Some(ProbeDraft {
        spec,
        at_endpoint_of_subject,
        item,
    })
}

fn http(reader: &mut Reader<'_, '_, '_>, at: String) -> HttpProbe {
    let path = reader.text("path").unwrap_or("/");
    if !path.starts_with('/') || path.contains(char::is_whitespace) {
        reader.bad(
            "path",
            None,
            format!("'path' must begin with '/' and have no blanks in it, not '{path}'"),
        );
    }
    let status = reader.whole("status", 100..=599).unwrap_or(200);
    HttpProbe {
        at,
        path: path.to_owned(),
        status: u16::try_from(status).unwrap_or(200),
        contains: reader.text("contains").map(str::to_owned),
    }
}
