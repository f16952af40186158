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
    if std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    {
        Output::Terminal
    } else {
        Output::Plain
    }
}

/// Prints data. A reader that went away (`| head`) has what it wanted: that is no error.
pub(crate) fn say(text: impl Display) {
    write_line(text).unwrap_or_default();
}

/// Prints a line of many.
///
/// # Errors
/// When nobody reads any more.
pub(crate) fn write_line(text: impl Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// As much of a line as `width` columns show; colours take none.
pub(crate) fn clip(line: &str, width: usize) -> String {
    let mut shown = 0;
    let visible = |(c, takes): (char, usize)| {
        shown += takes;
        (shown <= width || takes == 0).then_some(c)
    };
    places(line).filter_map(visible).collect()
}

/// How many columns a text takes on a screen.
pub(crate) fn width(text: &str) -> usize {
    places(text).map(|(_, takes)| takes).sum()
}

/// Each character with the columns it takes: none for those that only change the colour.
fn places(text: &str) -> impl Iterator<Item = (char, usize)> {
    text.chars().scan(Colour::Unchanged, |colour, c| {
        let before = *colour;
        *colour = match (before, c) {
            (_, '\x1b') => Colour::Changing,
            (Colour::Changing, 'm') => Colour::Unchanged,
            (Colour::Unchanged | Colour::Changing, _) => before,
        };
        let visible = before == Colour::Unchanged && *colour == Colour::Unchanged;
        Some((c, usize::from(visible)))
    })
}

/// Whether a sequence that changes the colour is under way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colour {
    Unchanged,
    Changing,
}

/// A word in the colour of what it says; the word itself always says it too.
pub(crate) fn word(text: &str, output: Output) -> String {
    let colour = match text {
        "up" | "pass" | "ready" | "running" | "primary" => 32,
        "starting" | "degraded" | "unknown" | "flaky" | "blocked" | "fixing" | "reporting"
        | "stopping" | "pending" | "draining" | "drained" | "returning" | "updating" => 33,
        "fail" | "gave-up" | "down" | "lost" | "exited" | "silent" => 31,
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
        assert_eq!(
            clip(&format!("web {} and more", word("up", Output::Terminal)), 6),
            "web \x1b[32mup\x1b[0m"
        );
        assert_eq!(
            clip(&word("starting", Output::Terminal), 3),
            "\x1b[33msta\x1b[0m"
        );
        assert_eq!(clip("short", 80), "short");
    }
}
