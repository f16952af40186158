//! Strings with `${…}` in them, as task commands, files and checks carry.
//!
//! There is one grammar and one list of variables, here, so that the room which checks a cell file and the room which
//! fills a task in on its machine cannot disagree. *Which* variables are allowed where is the cell file's business;
//! *what* they resolve to is known only on the machine, at start (a task's address is an observed fact).
//!
//! | written | resolves to |
//! |---|---|
//! | `${address}` | the task's own address |
//! | `${port.NAME}` | the number of one of its own ports |
//! | `${dir}` | its data folder |
//! | `${task}`, `${machine}` | its name, its machine's name |
//! | `${package}` | the path of its program or folder |
//! | `${endpoint.SERVICE}` | `host:port` at which this machine reaches the service |
//! | `${secret.SERVICE.NAME}` | a secret of the service; only in files |
//! | `${dir.TASK}` | the data folder of another task; only in the commands of checks |
//! | `$${` | the three characters `${` without their meaning |

use std::fmt;

use crate::{PortName, ServiceName, TaskName};

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable(Variable),
}

/// What may stand between `${` and `}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variable {
    Address,
    Port(PortName),
    Dir,
    DirOf(TaskName),
    Task,
    Machine,
    Package,
    Endpoint(ServiceName),
    Secret {
        service: ServiceName,
        /// What it is called by the service that hands it out: `dsn`.
        name: String,
    },
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTemplate {
    #[error("'${{' is not closed by a '}}'")]
    Unclosed,
    #[error("unknown variable '${{{0}}}'")]
    Unknown(String),
    #[error("'${{{variable}}}': {source}")]
    Name {
        variable: String,
        source: crate::BadName,
    },
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// [`BadTemplate`] for the first thing in it that is not a variable of the table above.
    pub fn parse(text: &str) -> Result<Self, BadTemplate> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                literal.push_str(&rest[..at - 1]);
                literal.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            literal.push_str(&rest[..at]);
            let inside = &rest[at + 2..];
            let end = inside.find('}').ok_or(BadTemplate::Unclosed)?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Variable(Variable::parse(&inside[..end])?));
            rest = &inside[end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts })
    }

    /// The variables in it, in the order in which they are written.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Variable(variable) => Some(variable),
        })
    }

    /// The text with every variable replaced by what `resolve` says.
    ///
    /// # Errors
    /// The first error of `resolve`.
    pub fn render<E>(
        &self,
        mut resolve: impl FnMut(&Variable) -> Result<String, E>,
    ) -> Result<String, E> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(variable) => out.push_str(&resolve(variable)?),
            }
        }
        Ok(out)
    }
}

impl Variable {
    /// The forms of all variables, for people.
    pub const FORMS: [&str; 9] = [
        "address",
        "port.NAME",
        "dir",
        "dir.TASK",
        "task",
        "machine",
        "package",
        "endpoint.SERVICE",
        "secret.SERVICE.NAME",
    ];

    fn parse(text: &str) -> Result<Self, BadTemplate> {
        let name = |source| BadTemplate::Name {
            variable: text.to_owned(),
            source,
        };
        let mut words = text.split('.');
        let known = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("address"), None, None, None) => Variable::Address,
            (Some("port"), Some(port), None, None) => {
                Variable::Port(PortName::new(port).map_err(name)?)
            }
            (Some("dir"), None, None, None) => Variable::Dir,
            (Some("dir"), Some(task), None, None) => {
                Variable::DirOf(TaskName::new(task).map_err(name)?)
            }
            (Some("task"), None, None, None) => Variable::Task,
            (Some("machine"), None, None, None) => Variable::Machine,
            (Some("package"), None, None, None) => Variable::Package,
            (Some("endpoint"), Some(service), None, None) => {
                Variable::Endpoint(ServiceName::new(service).map_err(name)?)
            }
            (Some("secret"), Some(service), Some(secret), None) if !secret.is_empty() => {
                Variable::Secret {
                    service: ServiceName::new(service).map_err(name)?,
                    name: secret.to_owned(),
                }
            }
            _ => return Err(BadTemplate::Unknown(text.to_owned())),
        };
        Ok(known)
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variable::Address => f.write_str("${address}"),
            Variable::Port(port) => write!(f, "${{port.{port}}}"),
            Variable::Dir => f.write_str("${dir}"),
            Variable::DirOf(task) => write!(f, "${{dir.{task}}}"),
            Variable::Task => f.write_str("${task}"),
            Variable::Machine => f.write_str("${machine}"),
            Variable::Package => f.write_str("${package}"),
            Variable::Endpoint(service) => write!(f, "${{endpoint.{service}}}"),
            Variable::Secret { service, name } => write!(f, "${{secret.{service}.{name}}}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_and_escapes_kept() {
        let template =
            Template::parse("a ${address}:${port.http} $${x} ${secret.shop-db.dsn}$").unwrap();
        let text = template
            .render(|variable| Ok::<_, ()>(format!("<{variable}>")))
            .unwrap();
        assert_eq!(
            text,
            "a <${address}>:<${port.http}> ${x} <${secret.shop-db.dsn}>$"
        );
        assert_eq!(template.variables().count(), 3);
    }

    #[test]
    fn plain_text_is_itself() {
        for text in ["", "$", "$$", "a $b {c}", "}", "$ {address}"] {
            let template = Template::parse(text).unwrap();
            assert_eq!(
                template.render(|_| Err::<String, ()>(())),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn every_form_is_accepted_and_reads_back() {
        for form in Variable::FORMS {
            let text = format!("${{{}}}", form.to_lowercase());
            let template = Template::parse(&text).unwrap();
            let variable = template.variables().next().unwrap();
            assert_eq!(variable.to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(Template::parse("x ${dir"), Err(BadTemplate::Unclosed));
        for unknown in [
            "",
            "adress",
            "port",
            "dir.a.b",
            "secret.a",
            "secret.a.",
            "dir ",
            "env.HOME",
        ] {
            let text = format!("${{{unknown}}}");
            assert_eq!(
                Template::parse(&text),
                Err(BadTemplate::Unknown(unknown.to_owned()))
            );
        }
        assert!(matches!(
            Template::parse("${endpoint.Shop}"),
            Err(BadTemplate::Name { .. })
        ));
    }
}
