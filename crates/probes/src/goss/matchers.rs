//! Goss's matchers as ours.

use serde_json::{Map, Value, json};

use super::GossError;
use super::yaml::{Data, Node};

/// What an attribute is compared with when nothing more is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Default {
    /// A list means that all of it is there.
    Elements,
    /// A list means patterns over lines, as for all that goss reads from a stream.
    Patterns,
}

pub(super) fn convert(node: &Node, default: Default) -> Result<Value, GossError> {
    match (&node.data, default) {
        (Data::List(nodes), Default::Patterns) => {
            let patterns = nodes.iter().map(|node| match &node.data {
                Data::Scalar(Value::String(text)) => Ok(Value::from(text.clone())),
                Data::Scalar(Value::Number(number)) => Ok(number.to_string().into()),
                _ => node.error("patterns are texts"),
            });
            Ok(json!({ "lines": patterns.collect::<Result<Vec<_>, _>>()? }))
        }
        _ => matcher(node),
    }
}

fn matcher(node: &Node) -> Result<Value, GossError> {
    let entries = match &node.data {
        Data::Scalar(Value::Null) => return node.error("there is nothing to compare with"),
        Data::Scalar(value) => return Ok(value.clone()),
        Data::List(nodes) => return Ok(json!({ "has": all(nodes)? })),
        Data::Map(entries) => entries,
    };
    let [(name, operand)] = entries.as_slice() else {
        return node.error("a matcher has exactly one name");
    };
    let inner = || matcher(operand);
    let several = || match &operand.data {
        Data::List(nodes) => all(nodes),
        _ => operand.error(format!("'{name}' is followed by a list")),
    };
    let text = || match &operand.data {
        Data::Scalar(Value::String(text)) => Ok(Value::from(text.clone())),
        Data::Scalar(Value::Number(number)) => Ok(number.to_string().into()),
        _ => operand.error(format!("'{name}' is followed by a text")),
    };
    let number = || match &operand.data {
        Data::Scalar(value @ Value::Number(_)) => Ok(value.clone()),
        _ => operand.error(format!("'{name}' is followed by a number")),
    };
    Ok(match name.as_str() {
        "equal" => json!({ "equals": operand.value() }),
        "have-prefix" => json!({ "prefix": text()? }),
        "have-suffix" => json!({ "suffix": text()? }),
        "match-regexp" => json!({ "regex": text()? }),
        "contain-substring" => json!({ "contains": text()? }),
        "have-len" => json!({ "length": number()? }),
        "have-key" => json!({ "key": inner()? }),
        "have-key-with-value" => json!({ "entries": mapped(operand)? }),
        "contain-element" => json!({ "has": [inner()?] }),
        "contain-elements" => json!({ "has": several()? }),
        "consist-of" => json!({ "only": several()? }),
        "have-patterns" => convert(operand, Default::Patterns)?,
        "and" => json!({ "all": several()? }),
        "or" => json!({ "any": several()? }),
        "not" => json!({ "not": inner()? }),
        "gt" => json!({ "greater": number()? }),
        "ge" => json!({ "at_least": number()? }),
        "lt" => json!({ "less": number()? }),
        "le" => json!({ "at_most": number()? }),
        "semver-constraint" => json!({ "version": constraint(&text()?) }),
        "gjson" => json!({ "json": places(operand)? }),
        _ => return node.error(format!("'{name}' is no matcher of goss")),
    })
}

/// goss lets a sign stand apart from its version, and so do we; `!1.2.3` is its `!=`.
fn constraint(text: &Value) -> Value {
    text.as_str()
        .map(str::trim)
        .map(Value::from)
        .unwrap_or_default()
}

fn all(nodes: &[Node]) -> Result<Vec<Value>, GossError> {
    nodes.iter().map(matcher).collect()
}

fn mapped(node: &Node) -> Result<Map<String, Value>, GossError> {
    let Data::Map(entries) = &node.data else {
        return node.error("a mapping is wanted here");
    };
    let entries = entries
        .iter()
        .map(|(key, node)| Ok((key.clone(), matcher(node)?)));
    entries.collect()
}

/// `@this` is all of it.
fn places(node: &Node) -> Result<Map<String, Value>, GossError> {
    let rename = |(key, value)| (if key == "@this" { String::new() } else { key }, value);
    Ok(mapped(node)?.into_iter().map(rename).collect())
}
