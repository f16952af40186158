//! For Graphviz, and what else reads its language.

use std::fmt::Write as _;

use super::layout::title;
use super::{Graph, Node};
use crate::row::Mark;

pub(super) fn draw(graph: &Graph<'_>) -> String {
    let mut dot = String::from(
        "digraph checks {\n  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\"];\n",
    );
    for (index, node) in graph.nodes.iter().enumerate() {
        let (verdict, seen) = match node {
            Node::Check(row) => (row.verdict, row.seen.as_str()),
            Node::Group { verdict, .. } => (*verdict, ""),
        };
        let (fill, text) = match verdict {
            Mark::Pass => ("#f1f8f3", "#1f2933"),
            Mark::Fail => ("#c62828", "#ffffff"),
            Mark::GaveUp => ("#8e1f3f", "#ffffff"),
            Mark::Fixing => ("#ef8f1d", "#2b1800"),
            Mark::Blocked => ("#f3e4e4", "#5b4040"),
            Mark::Flaky => ("#fff6d6", "#1f2933"),
            Mark::Unknown | Mark::Skipped => ("#eceff3", "#1f2933"),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            dot,
            "  n{index} [label={}, tooltip={}, fillcolor=\"{fill}\", fontcolor=\"{text}\"];",
            quoted(&format!("{}\n{verdict}", title(node))),
            quoted(seen)
        );
    }
    for edge in &graph.edges {
        let strong = if edge.failing {
            " [color=\"#c62828\", penwidth=3]"
        } else {
            ""
        };
        let _ = writeln!(dot, "  n{} -> n{}{strong};", edge.from, edge.to);
    }
    dot.push_str("}\n");
    dot
}

fn quoted(text: &str) -> String {
    let text = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("\"{text}\"")
}
