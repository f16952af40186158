#![allow(clippy::unwrap_used)]

use super::*;
use crate::row::{Mark, Summary};

fn row(name: &str, verdict: &str, after: &[&str]) -> Row {
    Row {
        verdict: Mark::ALL
            .into_iter()
            .find(|mark| mark.word() == verdict)
            .unwrap(),
        after: after
            .iter()
            .map(|name| CheckName::new(*name).unwrap())
            .collect(),
        expected: "a < b & c".to_owned(),
        seen: "\u{1b}[31m\"nothing\"".to_owned(),
        ..Row::skipped(CheckName::new(name).unwrap())
    }
}

fn report(checks: Vec<Row>) -> Report {
    Report {
        summary: Summary::of(&checks),
        checks,
        took_ms: 1.0,
    }
}

#[test]
fn edges_that_others_imply_are_left_out_and_the_failing_way_is_known() {
    let report = report(vec![
        row("base", "fail", &[]),
        row("mid", "blocked", &["base"]),
        row("top", "blocked", &["base", "mid"]),
        row("other", "pass", &[]),
        row("end", "blocked", &["top", "other"]),
    ]);
    let graph = Graph::of(&report);
    let name = |index: usize| layout::title(&graph.nodes[index]);
    let mut edges: Vec<String> = graph
        .edges
        .iter()
        .map(|edge| format!("{} {} {}", name(edge.from), name(edge.to), edge.failing))
        .collect();
    edges.sort();
    assert_eq!(
        edges,
        [
            "base mid true",
            "mid top true",
            "other end false",
            "top end true"
        ]
    );
}

#[test]
fn what_programs_wrote_cannot_break_the_picture() {
    let report = report(vec![row("a", "fail", &[])]);
    let graph = Graph::of(&report);
    for picture in [Picture::Svg, Picture::Html, Picture::Dot] {
        let text = graph.draw(picture);
        assert!(!text.contains('\u{1b}') || picture == Picture::Dot);
        assert!(!text.contains("a < b &"), "{text}");
    }
}

#[test]
fn boxes_do_not_overlap_and_edges_run_to_the_right() {
    let mut rows = Vec::new();
    for n in 0..120_usize {
        let after: Vec<String> = (1..=3)
            .filter_map(|k| (n * 7 % 11 * k + k).checked_sub(2))
            .filter(|m| *m < n)
            .map(|m| format!("check-{m}"))
            .collect();
        let after: Vec<&str> = after.iter().map(String::as_str).collect();
        rows.push(row(&format!("check-{n}"), "pass", &after));
    }
    let report = report(rows);
    let graph = Graph::of(&report);
    let layout = layout::layout(&graph);
    for (index, (x, y)) in layout.places.iter().enumerate() {
        assert!(*x >= 0.0 && x + layout::BOX_WIDTH <= layout.width + 0.1);
        for (other_x, other_y) in &layout.places[index + 1..] {
            assert!(
                x != other_x || (y - other_y).abs() >= layout::BOX_HEIGHT,
                "{index}"
            );
        }
    }
    for way in &layout.ways {
        assert!(way.is_sorted_by(|a, b| a.0 <= b.0), "{way:?}");
    }
}

#[test]
fn a_large_suite_is_drawn_by_groups_around_what_does_not_pass() {
    let mut rows = vec![row("net/up", "pass", &[])];
    for n in 0..1000 {
        rows.push(row(&format!("files/n{n}"), "pass", &["net/up"]));
    }
    rows.push(row("db", "fail", &["net/up"]));
    rows.push(row("web", "blocked", &["db"]));
    let report = report(rows);
    let graph = Graph::of(&report);
    let titles: Vec<String> = graph.nodes.iter().map(layout::title).collect();
    assert_eq!(titles, ["net/up", "files/… (1000 pass)", "db", "web"]);
}

#[test]
fn a_hundred_thousand_checks_in_a_deep_chain_make_a_picture_that_can_be_looked_at() {
    let mut rows = vec![row("n0", "fail", &[])];
    for n in 1..10_000_usize {
        rows.push(row(&format!("n{n}"), "blocked", &[&format!("n{}", n - 1)]));
    }
    for n in 0..90_000_usize {
        rows.push(row(
            &format!("leaf/n{n}"),
            "blocked",
            &[&format!("n{}", n % 100)],
        ));
    }
    let report = report(rows);
    let graph = Graph::of(&report);
    assert!(graph.nodes.len() <= MOST_BOXES && graph.left_out > 0);
    assert!(graph.draw(Picture::Svg).len() < 2_000_000);
}
