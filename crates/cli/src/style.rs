//! Colours and symbols, on a terminal only.

use std::io::IsTerminal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Terminal,
    Plain,
}

/// Where standard output goes; NO_COLOR (no-color.org) counts as plain.
pub(crate) fn output() -> Output {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
        Output::Terminal
    } else {
        Output::Plain
    }
}

/// A word in the colour of what it says; the word itself always says it too.
pub(crate) fn word(text: &str, output: Output) -> String {
    let colour = match text {
        "up" | "pass" | "ready" | "running" | "primary" => 32,
        "starting" | "degraded" | "unknown" | "flaky" | "blocked" | "reporting" | "stopping" | "pending" => 33,
        "fail" | "down" | "lost" | "exited" | "silent" => 31,
        _ => 0,
    };
    match output {
        Output::Terminal if colour != 0 => format!("\x1b[{colour}m{text}\x1b[0m"),
        Output::Terminal | Output::Plain => text.to_owned(),
    }
}
