//! The picture of a run: layers from left to right, what depends on nothing first. Who sees it for the first time should
//! find the root cause in seconds: it is the only thing in strong colour, and strong lines lead from it to what it blocks.

mod dot;
mod html;
mod layout;
mod svg;

use std::collections::{BTreeMap, BTreeSet};

use homeostat_model::CheckName;

use crate::row::{Mark, Report, Row};

/// As which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Picture {
    Svg,
    Dot,
    Html,
}

/// In a suite of more checks than this, only what matters for the root causes has a box of its own; the rest is drawn as
/// groups of the same verdict.
const MOST_DRAWN: usize = 250;
/// More boxes than this nobody looks at; the least important are left out, and counted.
const MOST_BOXES: usize = 500;

/// What is drawn, in an order in which nothing comes before what it depends on.
#[derive(Debug)]
pub struct Graph<'a> {
    report: &'a Report,
    nodes: Vec<Node<'a>>,
    /// From what is depended on to what depends on it; without those that others imply.
    edges: Vec<Edge>,
    /// How many checks are in no box.
    left_out: usize,
}

#[derive(Debug)]
enum Node<'a> {
    Check(&'a Row),
    /// Checks of the same verdict, in one box.
    Group {
        label: String,
        count: usize,
        verdict: Mark,
    },
}

impl Node<'_> {
    fn verdict(&self) -> Mark {
        match self {
            Node::Check(row) => row.verdict,
            Node::Group { verdict, .. } => *verdict,
        }
    }

    fn is_root(&self) -> bool {
        self.verdict().is_root()
    }
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
                if let (Some(from), Some(to)) = (node_of[from], node_of[to]) {
                    edges.insert((from, to));
                }
            }
        }
        edges.retain(|(from, to)| from != to);
        let edges = without_implied(nodes.len(), &edges);
        let failing =
            |index: usize| nodes[index].is_root() || nodes[index].verdict() == Mark::Blocked;
        let edges = edges.into_iter().map(|(from, to)| Edge {
            from,
            to,
            failing: failing(from) && failing(to),
        });
        Self {
            report,
            edges: edges.collect(),
            left_out: node_of.iter().filter(|node| node.is_none()).count(),
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

/// In a large suite: root causes and what nobody knows, what they need, and what they block directly, as far as it fits.
fn drawn_alone(rows: &[&Row], needs: &[Vec<usize>]) -> Vec<bool> {
    if rows.len() <= MOST_DRAWN {
        return vec![true; rows.len()];
    }
    let mut drawn = vec![false; rows.len()];
    let mut room = MOST_DRAWN;
    let mut draw = |index: usize, drawn: &mut Vec<bool>| {
        if room > 0 && !drawn[index] {
            drawn[index] = true;
            room -= 1;
        }
    };
    for wanted in [true, false] {
        for (index, row) in rows.iter().enumerate() {
            let odd = !matches!(row.verdict, Mark::Pass | Mark::Blocked);
            if odd && row.is_root() == wanted {
                draw(index, &mut drawn);
            }
        }
    }
    for (to, needs) in needs.iter().enumerate() {
        let below_root = needs.iter().any(|from| rows[*from].is_root());
        if rows[to].is_root() {
            needs.iter().for_each(|from| draw(*from, &mut drawn));
        } else if below_root {
            draw(to, &mut drawn);
        }
    }
    drawn
}

/// A node with what it stands for, before the least important are left out.
struct Keyed<'a> {
    depth: usize,
    node: Node<'a>,
    members: Vec<usize>,
}

/// The nodes, and which one stands for each check. Groups are of the same depth, verdict, and first part of the name.
fn nodes<'a>(
    rows: &[&'a Row],
    needs: &[Vec<usize>],
    drawn: &[bool],
) -> (Vec<Node<'a>>, Vec<Option<usize>>) {
    let depth = layout::depths(needs);
    let mut groups: BTreeMap<(usize, &str, &'static str), (Mark, Vec<usize>)> = BTreeMap::new();
    let mut all = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if drawn[index] {
            all.push(Keyed {
                depth: depth[index],
                node: Node::Check(row),
                members: vec![index],
            });
        } else {
            let name = row.name.as_str();
            let begin = name.split_once('/').map_or("", |(begin, _)| begin);
            groups
                .entry((depth[index], begin, row.verdict.word()))
                .or_insert_with(|| (row.verdict, Vec::new()))
                .1
                .push(index);
        }
    }
    for ((depth, begin, _), (verdict, members)) in groups {
        let label = if begin.is_empty() {
            "others".to_owned()
        } else {
            format!("{begin}/…")
        };
        all.push(Keyed {
            depth,
            node: Node::Group {
                label,
                count: members.len(),
                verdict,
            },
            members,
        });
    }
    // Worst first, to be kept; then as they are drawn.
    let rank = |keyed: &Keyed<'_>| {
        Mark::ALL
            .iter()
            .position(|mark| *mark == keyed.node.verdict())
    };
    all.sort_by_key(rank);
    all.truncate(MOST_BOXES);
    all.sort_by_key(|keyed| (keyed.depth, keyed.members.first().copied()));
    let mut node_of = vec![None; rows.len()];
    let mut nodes = Vec::new();
    for keyed in all {
        for member in keyed.members {
            node_of[member] = Some(nodes.len());
        }
        nodes.push(keyed.node);
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
