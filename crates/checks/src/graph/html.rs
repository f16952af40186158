//! A page with the picture, and beneath it every check with its evidence. It needs nothing from elsewhere.

use std::fmt::Write as _;

use super::{Graph, escaped, svg};
use crate::row::Mark;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:0;color:#1f2933}\
.picture{overflow:auto;border-bottom:1px solid #cbd2d9}\
table{border-collapse:collapse;margin:24px;max-width:1200px}\
td,th{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid #eceff3;vertical-align:top}\
th{color:#66727f;font-weight:500}\
td.fail,td.gave-up{color:#c62828;font-weight:700}td.blocked,td.fixing,td.unknown{color:#a65b00}td.pass{color:#2e7d4f}";

pub(super) fn draw(graph: &Graph<'_>) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title><style>{STYLE}</style></head><body>\n<div class=\"picture\">\n{}</div>\n",
        escaped(&graph.report.summary.to_string()),
        svg::draw(graph)
    );
    page.push_str("<table><tr><th>verdict</th><th>check</th><th>expected</th><th>seen</th><th>blocked by</th><th>took</th></tr>\n");
    for verdict in Mark::ALL {
        for row in graph
            .report
            .checks
            .iter()
            .filter(|row| row.verdict == verdict)
        {
            let blocked: Vec<&str> = row.blocked_by.iter().map(|name| name.as_str()).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                page,
                "<tr><td class=\"{verdict}\">{verdict}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.0} ms</td></tr>",
                row.name,
                escaped(&row.expected),
                escaped(&row.seen),
                escaped(&blocked.join(", ")),
                row.took_ms
            );
        }
    }
    page.push_str("</table></body></html>\n");
    page
}
