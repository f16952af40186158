//! The picture of a run: layers from left to right, what depends on nothing first. Who sees it for the first time should
//! find the root cause in seconds: it is the only thing in strong colour, and strong lines lead from it to what it blocks.

mod dot;
mod html;
mod layout;
mod svg;

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::CheckName;

use crate::row::{Report, Row};

/// As which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    Svg,
    Dot,
    Html,
}

/// More checks than this are not drawn one by one: what passes, and leads to nothing that does not, is drawn as groups.
const MOST_DRAWN: usize = 250;

/// What is drawn, in an order in which nothing comes before what it depends on.
#[derive(Debug)]
pub struct Graph<'a> {
    report: &'a Report,
    nodes: Vec<Node<'a>>,
    /// From what is depended on to what depends on it; without those that others imply.
    edges: Vec<Edge>,
}

#[derive(Debug)]
enum Node<'a> {
    Check(&'a Row),
    /// Checks that pass, in one box.
    Group {
        label: String,
        count: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    from: usize,
    to: usize,
    /// On the way from a root cause to what it blocks.
    failing: bool,
}

impl<'a> Graph<'a> {
    pub fn of(report: &'a Report) -> Self {
        let rows: Vec<&Row> = report.checks.iter().collect();
        let place: BTreeMap<&CheckName, usize> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| (&row.name, index))
            .collect();
        let needs: Vec<Vec<usize>> = rows
            .iter()
            .map(|row| {
                row.after
                    .iter()
                    .filter_map(|name| place.get(name).copied())
                    .collect()
            })
            .collect();
        let drawn = drawn_alone(&rows, &needs);
        let (nodes, node_of) = nodes(&rows, &needs, &drawn);
        let mut edges = BTreeSet::new();
        for (to, needs) in needs.iter().enumerate() {
            for &from in needs {
                edges.insert((node_of[from], node_of[to]));
            }
        }
        edges.retain(|(from, to)| from != to);
        let edges = without_implied(nodes.len(), &edges);
        let failing = |index: usize| match &nodes[index] {
            Node::Check(row) => row.is_root() || row.verdict == "blocked",
            Node::Group { .. } => false,
        };
        let edges = edges.into_iter().map(|(from, to)| Edge {
            from,
            to,
            failing: failing(from) && failing(to),
        });
        Self {
            report,
            edges: edges.collect(),
            nodes,
        }
    }

    pub fn draw(&self, picture: Picture) -> String {
        match picture {
            Picture::Svg => svg::draw(self),
            Picture::Dot => dot::draw(self),
            Picture::Html => html::draw(self),
        }
    }

    fn roots(&self) -> impl Iterator<Item = &'a Row> {
        self.report.checks.iter().filter(|row| row.is_root())
    }
}

/// In a large suite only what does not pass, and what is next to it, has a box of its own.
fn drawn_alone(rows: &[&Row], needs: &[Vec<usize>]) -> Vec<bool> {
    if rows.len() <= MOST_DRAWN {
        return vec![true; rows.len()];
    }
    let mut drawn: Vec<bool> = rows.iter().map(|row| row.verdict != "pass").collect();
    for (to, needs) in needs.iter().enumerate() {
        if rows[to].is_root() {
            for &from in needs {
                drawn[from] = true;
            }
        }
    }
    drawn
}

/// The nodes, and which one stands for each check. Groups are by how deep a check is and by the first part of its name.
fn nodes<'a>(
    rows: &[&'a Row],
    needs: &[Vec<usize>],
    drawn: &[bool],
) -> (Vec<Node<'a>>, Vec<usize>) {
    let depth = layout::depths(needs);
    let mut groups: BTreeMap<(usize, &str), Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        if !drawn[index] {
            let name = row.name.as_str();
            let begin = name.split_once('/').map_or("", |(begin, _)| begin);
            groups.entry((depth[index], begin)).or_default().push(index);
        }
    }
    let mut keyed: Vec<(usize, Node<'a>, Vec<usize>)> = Vec::new();
    for ((depth, begin), members) in groups {
        let label = if begin.is_empty() {
            "others".to_owned()
        } else {
            format!("{begin}/…")
        };
        let count = members.len();
        keyed.push((depth, Node::Group { label, count }, members));
    }
    for (index, row) in rows.iter().enumerate() {
        if drawn[index] {
            keyed.push((depth[index], Node::Check(row), vec![index]));
        }
    }
    keyed.sort_by_key(|(depth, _, members)| (*depth, members.first().copied()));
    let mut node_of = vec![0; rows.len()];
    let mut nodes = Vec::new();
    for (_, node, members) in keyed {
        for member in members {
            node_of[member] = nodes.len();
        }
        nodes.push(node);
    }
    (nodes, node_of)
}

/// Leaves out an edge where another way leads from one end to the other: it says nothing new and hides what does.
fn without_implied(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<(usize, usize)> {
    let words = count.div_ceil(64);
    let mut needs: Vec<Vec<usize>> = vec![Vec::new(); count];
    for &(from, to) in edges {
        needs[to].push(from);
    }
    // What lies beneath each node; from left to right, so that what is beneath is complete.
    let mut beneath = vec![vec![0_u64; words]; count];
    let mut kept = Vec::new();
    for to in 0..count {
        let mut all = vec![0_u64; words];
        // The nearest first: those that come later in the order cannot be beneath those before.
        needs[to].sort_unstable_by(|a, b| b.cmp(a));
        for &from in &needs[to] {
            if all[from / 64] >> (from % 64) & 1 == 0 {
                kept.push((from, to));
            }
            all[from / 64] |= 1 << (from % 64);
            for (word, more) in all.iter_mut().zip(&beneath[from]) {
                *word |= more;
            }
        }
        beneath[to] = all;
    }
    kept.sort_unstable();
    kept
}

/// Text for XML: escaped, and without characters that XML has no place for.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// At most so many characters.
fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests;
