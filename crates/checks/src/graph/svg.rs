//! The picture itself. Symbols are drawn, not written: not every font has them.

use std::fmt::Write as _;

use super::layout::{BOX_HEIGHT, BOX_WIDTH, Layout, layout, title};
use super::{Graph, Node, escaped, short};
use crate::row::{Mark, Row};

const MARGIN: f64 = 28.0;
const HEADER: f64 = 64.0;
/// Characters of the two lines of a box that fit.
const NAME_FITS: usize = 25;
const DETAIL_FITS: usize = 31;
/// The narrowest picture: header and evidence need it.
const NARROWEST: f64 = 760.0;
const EVIDENCE_LINE: f64 = 19.0;
/// Root causes explained beneath the picture.
const MOST_EXPLAINED: usize = 12;

/// How a verdict looks.
struct Look {
    fill: &'static str,
    line: &'static str,
    text: &'static str,
    detail: &'static str,
    /// In a field of 16 by 16.
    symbol: &'static str,
    dashed: &'static str,
    thick: f64,
}

const CHECK_MARK: &str = "M3 8.5 L6.5 12 L13 4.5";
const CROSS: &str = "M4 4 L12 12 M12 4 L4 12";
const BARRED: &str = "M8 2.5 A5.5 5.5 0 1 0 8.01 2.5 M4.2 11.8 L11.8 4.2";
const TURNING: &str = "M12.8 6 A5.3 5.3 0 1 0 13 9.5 M13.2 2.5 L12.9 6.2 L9.3 5.9";
const WAVES: &str = "M2 6 Q5 2.5 8 6 T14 6 M2 11 Q5 7.5 8 11 T14 11";
const QUESTION: &str = "M5 6 A3 3 0 1 1 8 8.8 L8 10.3 M8 12.8 L8 13.3";
const DASH: &str = "M4 8 L12 8";

fn look(verdict: Mark) -> Look {
    let plain = Look {
        fill: "#ffffff",
        line: "#b8c2cc",
        text: "#1f2933",
        detail: "#66727f",
        symbol: CHECK_MARK,
        dashed: "",
        thick: 1.2,
    };
    match verdict {
        Mark::Pass => Look {
            fill: "#f1f8f3",
            line: "#8fc7a1",
            ..plain
        },
        Mark::Fail => Look {
            fill: "#c62828",
            line: "#7f1313",
            text: "#ffffff",
            detail: "#ffdcdc",
            symbol: CROSS,
            thick: 2.5,
            ..plain
        },
        Mark::GaveUp => Look {
            fill: "#8e1f3f",
            line: "#4f0f22",
            text: "#ffffff",
            detail: "#ffd9e4",
            symbol: CROSS,
            thick: 2.5,
            ..plain
        },
        Mark::Fixing => Look {
            fill: "#ef8f1d",
            line: "#a65b00",
            text: "#2b1800",
            detail: "#4d2d00",
            symbol: TURNING,
            thick: 2.5,
            ..plain
        },
        Mark::Blocked => Look {
            fill: "#f3e4e4",
            line: "#c98f8f",
            text: "#5b4040",
            detail: "#8a6464",
            symbol: BARRED,
            dashed: " stroke-dasharray=\"6 4\"",
            ..plain
        },
        Mark::Flaky => Look {
            fill: "#fff6d6",
            line: "#d6b13c",
            symbol: WAVES,
            ..plain
        },
        Mark::Skipped => Look {
            symbol: DASH,
            dashed: " stroke-dasharray=\"2 3\"",
            ..plain
        },
        Mark::Unknown => Look {
            fill: "#eceff3",
            line: "#7b8794",
            symbol: QUESTION,
            dashed: " stroke-dasharray=\"2 3\"",
            ..plain
        },
    }
}

pub(super) fn draw(graph: &Graph<'_>) -> String {
    let layout = layout(graph);
    let evidence = evidence(graph);
    let width = layout.width.max(NARROWEST) + 2.0 * MARGIN;
    let below = HEADER + layout.height + 3.0 * MARGIN;
    let height = below
        + evidence.len() as f64 * EVIDENCE_LINE
        + if evidence.is_empty() { 0.0 } else { MARGIN };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"ui-sans-serif, system-ui, 'DejaVu Sans', sans-serif\">\n"
    );
    svg.push_str("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n");
    header(&mut svg, graph);
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(
        svg,
        "<g transform=\"translate({MARGIN} {})\">",
        HEADER + MARGIN
    );
    edges(&mut svg, graph, &layout);
    for (node, place) in graph.nodes.iter().zip(&layout.places) {
        draw_node(&mut svg, node, *place);
    }
    svg.push_str("</g>\n");
    for (index, line) in evidence.iter().enumerate() {
        let y = below + index as f64 * EVIDENCE_LINE;
        let _ = writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y:.0}\" font-size=\"13\">{line}</text>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn header(svg: &mut String, graph: &Graph<'_>) {
    let left_out = match graph.left_out {
        0 => String::new(),
        count => format!("; {count} are not drawn"),
    };
    let summary = escaped(&format!("{}{left_out}", graph.report.summary));
    let roots = graph.roots().count();
    let verdict = match roots {
        0 if graph
            .report
            .checks
            .iter()
            .all(|row| row.passes() || row.verdict == Mark::Skipped) =>
        {
            "all pass".to_owned()
        }
        0 => "nothing failed; not everything was run".to_owned(),
        1 => "1 root cause".to_owned(),
        roots => format!("{roots} root causes"),
    };
    let colour = if roots == 0 { "#1f2933" } else { "#c62828" };
    let _ = writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"34\" font-size=\"20\" font-weight=\"600\" fill=\"{colour}\">{verdict}</text>\n<text x=\"{MARGIN}\" y=\"56\" font-size=\"13\" fill=\"#66727f\">{summary}</text>"
    );
}

/// The failing ones last, so that they lie on top.
fn edges(svg: &mut String, graph: &Graph<'_>, layout: &Layout) {
    let mut order: Vec<usize> = (0..graph.edges.len()).collect();
    let is_root = |index: usize| graph.nodes[index].is_root();
    order.sort_by_key(|index| {
        let edge = graph.edges[*index];
        (edge.failing, is_root(edge.from))
    });
    for index in order {
        let edge = graph.edges[index];
        let (colour, thick) = match (edge.failing, is_root(edge.from)) {
            (true, true) => ("#c62828", 3.2),
            (true, false) => ("#dd7373", 2.4),
            (false, _) => ("#cbd2d9", 1.3),
        };
        let way = curve(&layout.ways[index]);
        let _ = writeln!(
            svg,
            "<path d=\"{way}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{thick}\"/>"
        );
    }
}

/// Through all points; level where it touches a box or passes a column.
fn curve(way: &[(f64, f64)]) -> String {
    let mut path = String::new();
    let Some((x, y)) = way.first() else {
        return path;
    };
    let _ = write!(path, "M{x:.1} {y:.1}");
    for pair in way.windows(2) {
        let ((x1, y1), (x2, y2)) = (pair[0], pair[1]);
        if (y1 - y2).abs() < 0.5 {
            let _ = write!(path, " L{x2:.1} {y2:.1}");
        } else {
            let middle = (x1 + x2) / 2.0;
            let _ = write!(
                path,
                " C{middle:.1} {y1:.1} {middle:.1} {y2:.1} {x2:.1} {y2:.1}"
            );
        }
    }
    path
}

fn draw_node(svg: &mut String, node: &Node<'_>, (x, y): (f64, f64)) {
    let (look, detail, tip) = match node {
        Node::Check(row) => (look(row.verdict), detail(row), tip(row)),
        Node::Group { count, verdict, .. } => (
            look(*verdict),
            format!("{count} checks: {verdict}"),
            title(node),
        ),
    };
    let name = match node {
        Node::Check(row) => row.name.to_string(),
        Node::Group { label, .. } => label.clone(),
    };
    let top = y - BOX_HEIGHT / 2.0;
    let weight = if look.thick > 2.0 { 700 } else { 500 };
    let _ = writeln!(
        svg,
        "<g transform=\"translate({x:.1} {top:.1})\"><title>{tip}</title>\
         <rect width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"7\" fill=\"{fill}\" stroke=\"{line}\" stroke-width=\"{thick}\"{dashed}/>\
         <path transform=\"translate(9 13)\" d=\"{symbol}\" fill=\"none\" stroke=\"{text}\" stroke-width=\"2\" stroke-linecap=\"round\" stroke-linejoin=\"round\"/>\
         <text x=\"33\" y=\"18\" font-size=\"12.5\" font-weight=\"{weight}\" fill=\"{text}\">{name}</text>\
         <text x=\"33\" y=\"33\" font-size=\"10.5\" fill=\"{detail_colour}\">{detail}</text></g>",
        tip = escaped(&tip),
        fill = look.fill,
        line = look.line,
        thick = look.thick,
        dashed = look.dashed,
        symbol = look.symbol,
        text = look.text,
        detail_colour = look.detail,
        name = escaped(&short(&name, NAME_FITS)),
        detail = escaped(&short(&detail, DETAIL_FITS)),
    );
}

/// The second line of a box: the verdict in words, and what matters most of the rest.
fn detail(row: &Row) -> String {
    match row.verdict {
        Mark::Pass => format!("pass · {:.0} ms", row.took_ms),
        Mark::Blocked => match row.blocked_by.as_slice() {
            [] => "blocked".to_owned(),
            [only] => format!("blocked by {only}"),
            several => format!("blocked by {} root causes", several.len()),
        },
        Mark::Flaky => format!("flaky · {} of {} failed", row.flakes.count, row.flakes.of),
        Mark::GaveUp | Mark::Fail | Mark::Fixing | Mark::Unknown | Mark::Skipped => {
            match row.seen.as_str() {
                "" => row.verdict.to_string(),
                seen => format!("{} · {seen}", row.verdict),
            }
        }
    }
}

/// What is shown on hover.
fn tip(row: &Row) -> String {
    let mut tip = format!("{}: {}", row.name, row.verdict);
    let mut add = |what: &str, text: &str| {
        if !text.is_empty() {
            let _ = write!(tip, "\n{what}: {text}");
        }
    };
    add("expected", &row.expected);
    add("seen", &row.seen);
    let names: Vec<&str> = row.blocked_by.iter().map(|name| name.as_str()).collect();
    add("blocked by", &names.join(", "));
    add("owner", row.owner.as_deref().unwrap_or_default());
    add("fix", row.fix_said.as_deref().unwrap_or_default());
    add("at", row.at.as_deref().unwrap_or_default());
    tip
}

/// What is written beneath: the evidence of each root cause.
fn evidence(graph: &Graph<'_>) -> Vec<String> {
    const FITS: usize = 110;
    let mut lines = Vec::new();
    for row in graph.roots().take(MOST_EXPLAINED) {
        let owner = match &row.owner {
            Some(owner) => format!(" ({})", escaped(owner)),
            None => String::new(),
        };
        lines.push(format!(
            "<tspan fill=\"#c62828\" font-weight=\"700\">{}</tspan><tspan fill=\"#66727f\"> {}{owner}</tspan>",
            escaped(row.name.as_str()),
            row.verdict
        ));
        for (what, text) in [("expected", &row.expected), ("seen", &row.seen)] {
            if !text.is_empty() {
                lines.push(format!(
                    "<tspan dx=\"16\" fill=\"#66727f\">{what}</tspan> <tspan fill=\"#1f2933\">{}</tspan>",
                    escaped(&short(text, FITS))
                ));
            }
        }
    }
    let more = graph.roots().count().saturating_sub(MOST_EXPLAINED);
    if more > 0 {
        lines.push(format!(
            "<tspan fill=\"#66727f\">and {more} more root causes</tspan>"
        ));
    }
    lines
}
