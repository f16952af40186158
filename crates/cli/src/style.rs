//! Colours and symbols, on a terminal only.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

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

/// Prints a line of data. A reader that went away (`| head`) has what it wanted: the program ends without noise.
pub(crate) fn say(text: impl Display) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// As much of a line as `width` columns show; colours take none.
pub(crate) fn clip(line: &str, width: usize) -> String {
    let mut clipped = String::new();
    let (mut shown, mut in_colour) = (0, false);
    for c in line.chars() {
        if c == '\x1b' {
            in_colour = true;
        } else if !in_colour {
            shown += 1;
        }
        if shown <= width {
            clipped.push(c);
        }
        if in_colour && c == 'm' {
            in_colour = false;
        }
    }
    clipped
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_take_no_place_and_are_never_left_on() {
        assert_eq!(clip("web up", 4), "web ");
        assert_eq!(clip(&format!("web {} and more", word("up", Output::Terminal)), 6), "web \x1b[32mup\x1b[0m");
        assert_eq!(clip(&word("starting", Output::Terminal), 3), "\x1b[33msta\x1b[0m");
        assert_eq!(clip("short", 80), "short");
    }
}
