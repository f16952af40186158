//! YAML as JSON values that know their line.
//!
//! Made from the events of the parser, because an error must name a line, and because goss reads a key that stands
//! twice, an alias or a tag differently from what a general loader does.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::Value;

use super::GossError;

/// A file nested deeper is no goss file.
const DEEPEST: usize = 64;

/// All nodes of a file, aliases counted as what they stand for: a few lines of YAML can stand for billions.
const MOST_NODES: usize = 1_000_000;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Scalar(Value),
    List(Vec<Node>),
    /// In the order of the file.
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(super) fn value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(nodes) => nodes.iter().map(Node::value).collect(),
            Data::Map(entries) => entries
                .iter()
                .map(|(key, node)| (key.clone(), node.value()))
                .collect(),
        }
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T, GossError> {
        Err(GossError {
            line: Some(self.line),
            message: message.into(),
        })
    }

    fn size(&self) -> usize {
        match &self.data {
            Data::Scalar(_) => 1,
            Data::List(nodes) => 1 + nodes.iter().map(Node::size).sum::<usize>(),
            Data::Map(entries) => 1 + entries.iter().map(|(_, node)| node.size()).sum::<usize>(),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Node, GossError> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        nodes: 0,
    };
    let mut root = None;
    loop {
        let (event, line) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event => {
                if root.is_some() {
                    return Err(at(line, "there is more than one document"));
                }
                root = Some(reader.node(event, line, DEEPEST)?);
            }
        }
    }
    root.ok_or(GossError {
        line: None,
        message: "the file is empty".to_owned(),
    })
}

fn at(line: usize, message: impl Into<String>) -> GossError {
    GossError {
        line: Some(line),
        message: message.into(),
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), GossError> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(at(error.marker().line(), error.info())),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, GossError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(at(line, "it is nested too deep"));
        };
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            return Err(at(line, "the file is too large"));
        }
        let (anchor, data) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text = text.into_owned();
                let is_text =
                    style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str");
                (
                    anchor,
                    Data::Scalar(if is_text { text.into() } else { scalar(text) }),
                )
            }
            Event::SequenceStart(anchor, _) => (anchor, Data::List(self.list(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Data::Map(self.map(depth)?)),
            Event::Alias(anchor) => {
                let Some(known) = self.anchors.get(&anchor) else {
                    return Err(at(line, "the alias stands for nothing"));
                };
                self.nodes += known.size();
                return Ok(known.clone());
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(at(line, "the file ends too early")),
        };
        let node = Node { line, data };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, GossError> {
        let mut nodes = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(nodes);
            }
            nodes.push(self.node(event, line, depth)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(String, Node)>, GossError> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key = match self.node(event, line, depth)?.data {
                Data::Scalar(Value::String(text)) => text,
                Data::Scalar(other) => other.to_string(),
                Data::List(_) | Data::Map(_) => {
                    return Err(at(line, "a key is a list or a mapping"));
                }
            };
            if key == "<<" {
                return Err(at(
                    line,
                    "merging with '<<' is not supported: use the output of `goss render`",
                ));
            }
            if entries.iter().any(|(known, _)| *known == key) {
                return Err(at(line, format!("'{key}' is there twice")));
            }
            let (event, line) = self.next()?;
            entries.push((key, self.node(event, line, depth)?));
        }
    }
}

/// As YAML 1.2 says, which goss's library does too where it matters: `yes` and `on` are texts.
fn scalar(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return true.into(),
        "false" | "False" | "FALSE" => return false.into(),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(&text);
    // `0644` is octal for goss; written so for a mode it means a number that no mode is, in goss as well.
    let octal = digits.strip_prefix("0o").or(digits.strip_prefix('0'));
    if let Some(octal) = octal.filter(|rest| !rest.is_empty())
        && let Ok(number) = i64::from_str_radix(octal, 8)
    {
        return number.into();
    }
    if let Some(hex) = digits.strip_prefix("0x")
        && let Ok(number) = i64::from_str_radix(hex, 16)
    {
        return number.into();
    }
    if let Ok(number) = text.parse::<i64>() {
        return number.into();
    }
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.contains(|c: char| c.is_ascii_digit());
    match text.parse::<f64>() {
        Ok(number) if is_number && number.is_finite() => number.into(),
        Ok(_) | Err(_) => text.into(),
    }
}
