//! Plain goss files (version 0.4, what `goss render` writes) as calls of our library, and as text in our language.
//!
//! Every resource type of Linux and every matcher is known. What cannot be looked at here (TLS, CAA records, the run
//! levels of other init systems) becomes a check that is *not run* and says why; what is no goss file, or needs
//! `goss render` first, is an error that names its line. An attribute that goss does not know is an error as well:
//! goss passes over it, and a misspelt one then passes for ever.
//!
//! Where we differ on purpose: commands run with PATH and LANG only, and `consist-of` over a text is over its lines,
//! where goss reports an error.

mod matchers;
mod resources;
mod starlark;
mod yaml;

use std::collections::BTreeSet;
use std::time::Duration;

use homeostat_model::library::Call;

use crate::Probe;
use resources::Resource;
use yaml::Data;

/// One resource of a goss file.
#[derive(Debug, Clone, PartialEq)]
pub struct GossCheck {
    /// `file/etc-passwd`: fit for a check, unique in the file.
    pub name: String,
    pub call: Call,
    /// How long goss would wait.
    pub timeout: Option<Duration>,
    pub skip: Skip,
    /// Where it is in the file, from 1.
    pub line: usize,
}

/// Whether the file says that it is to be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    No,
    Yes,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", .line.map(|line| format!("line {line}: ")).unwrap_or_default())]
pub struct GossError {
    /// From 1.
    pub line: Option<usize>,
    pub message: String,
}

/// # Errors
/// When the text is no goss file without templates, or says something that cannot be.
pub fn read(text: &str) -> Result<Vec<GossCheck>, GossError> {
    if let Some(line) = text.lines().position(|line| line.contains("{{")) {
        return Err(GossError {
            line: Some(line + 1),
            message: "templates are not read: use the output of `goss render`".to_owned(),
        });
    }
    let root = yaml::parse(text)?;
    let Data::Map(sections) = &root.data else {
        return root.error("a goss file is a mapping of resource types");
    };
    let mut checks = Vec::new();
    let mut names = BTreeSet::new();
    for (section, node) in sections {
        let entries = match &node.data {
            Data::Map(entries) => entries,
            Data::Scalar(serde_json::Value::Null) => continue,
            Data::Scalar(_) | Data::List(_) => {
                return node.error(format!("'{section}' is not a mapping of resources"));
            }
        };
        for (id, node) in entries {
            let resource = Resource::new(section, id, node)?;
            let (call, timeout) = resource.convert()?;
            // Whatever is wrong with a value is found now, with its line.
            if let Err(error) = Probe::from_call(&call) {
                return node.error(format!("{section} '{id}': {error}"));
            }
            checks.push(GossCheck {
                name: name(section, id, &mut names),
                call,
                timeout,
                skip: resource.skip()?,
                line: node.line,
            });
        }
    }
    if checks.is_empty() {
        return root.error("the file tests nothing");
    }
    Ok(checks)
}

/// The same in the language of `site.star`.
///
/// # Errors
/// As [`read`].
pub fn to_starlark(text: &str) -> Result<String, GossError> {
    Ok(starlark::write(&read(text)?))
}

/// Lower-case letters, digits and `-`, in parts between slashes; at most 80 bytes.
fn name(section: &str, id: &str, taken: &mut BTreeSet<String>) -> String {
    const LONGEST: usize = 60;
    let mut tail = String::new();
    for c in id.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            tail.push(c);
        } else if !tail.is_empty() && !tail.ends_with('-') {
            tail.push('-');
        }
        if tail.len() >= LONGEST {
            break;
        }
    }
    let tail = match tail.trim_end_matches('-') {
        "" => "unnamed",
        tail => tail,
    };
    let name = format!("{section}/{tail}");
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut candidates = std::iter::once(name.clone()).chain(numbered);
    // There are more numbers than resources.
    let free = candidates
        .find(|name| !taken.contains(name))
        .unwrap_or(name);
    taken.insert(free.clone());
    free
}
