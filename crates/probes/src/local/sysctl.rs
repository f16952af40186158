//! Kernel parameters.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::{LocalError, LocalProbe, Presence, Subject, equals, is_missing, trouble};
use crate::call::{Args, CallError};
use crate::wants::{Facts, Wants};

pub(super) fn from_args(args: &Args<'_>) -> Result<LocalProbe, CallError> {
    let name = param_name(args)?;
    let matcher = match args.value("value") {
        Some(Value::String(text)) => Some(equals(&squeezed(text))),
        _ => args.matcher("value")?,
    };
    let mut wants = Wants::default();
    if let Some(matcher) = matcher {
        wants.push("value", matcher);
    }
    if args.bool("persist") == Some(true) {
        let Some(value) = plain_value(args) else {
            return args.refuse("persist", "only a plain value can be in a file");
        };
        wants.push("persisted", equals(&persistent(&name, &value)));
    }
    let subject = Subject::KernelParam(name);
    Ok(LocalProbe::new(subject, Presence::There, wants))
}

/// A value that can be written: text, or a whole number.
pub(crate) fn plain_value(args: &Args<'_>) -> Option<String> {
    match args.value("value")? {
        Value::String(text) if !text.contains('\n') => Some(squeezed(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Where it stands for the next boot.
pub(crate) fn persistent_file(name: &str) -> PathBuf {
    let name = name.replace('/', ".");
    PathBuf::from(format!("/etc/sysctl.d/90-homeostat-{name}.conf"))
}

/// All that is in that file.
pub(crate) fn persistent(name: &str, value: &str) -> String {
    format!("# Written by homeostat.\n{name} = {value}\n")
}

pub(crate) fn param_name(args: &Args<'_>) -> Result<String, CallError> {
    let name = args.need("name")?;
    let good = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let parts = name.split(['.', '/']);
    if !name.chars().all(good) || parts.clone().any(str::is_empty) || parts.count() < 2 {
        return args
            .refuse("name", format!("'{name}' is no kernel parameter"))
            .map_err(|error| error.with_hint("write it with dots: net.ipv4.ip_forward"));
    }
    Ok(name)
}

/// As sysctl(8): the first separator decides which of dot and slash separates; the other is part of a name.
pub(crate) fn file_of(name: &str) -> PathBuf {
    let dots = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('.'));
    let swapped = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if dots {
        name.chars().map(swapped).collect()
    } else {
        name.to_owned()
    };
    PathBuf::from("/proc/sys").join(path)
}

/// Several values with one tab between, as the kernel shows them.
pub(crate) fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join("\t")
}

pub(super) fn facts(name: &str, wants: &Wants) -> Result<Option<Facts>, LocalError> {
    match fs::read(file_of(name)) {
        Ok(value) => {
            let value = squeezed(&String::from_utf8_lossy(&value));
            let mut facts = Facts::from([("value", value.into())]);
            if wants.asks("persisted") {
                let file = fs::read(persistent_file(name)).unwrap_or_default();
                facts.insert(
                    "persisted",
                    String::from_utf8_lossy(&file).into_owned().into(),
                );
            }
            Ok(Some(facts))
        }
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(trouble(format!("read {name}"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_change_places() {
        let path = |name| file_of(name).display().to_string();
        assert_eq!(path("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(
            path("net.ipv4.conf.eth0/7.mtu"),
            "/proc/sys/net/ipv4/conf/eth0.7/mtu"
        );
        assert_eq!(
            squeezed(" 4096  131072\t6291456\n"),
            "4096\t131072\t6291456"
        );
    }
}
