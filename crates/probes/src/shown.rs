//! What other programs said, made fit to be shown.

use std::error::Error;

/// Longest excerpt of an answer or an output, in bytes. Leaves room for the words around it within
/// `Evidence::LONGEST`.
const EXCERPT: usize = 300;

/// The beginning of a text.
pub(crate) fn head(bytes: &[u8]) -> String {
    let text = clean(&bytes[..bytes.len().min(EXCERPT)]);
    if bytes.len() > EXCERPT {
        format!("{text}…")
    } else {
        text
    }
}

/// The end of a text, where programs say what went wrong.
pub(crate) fn tail(bytes: &[u8]) -> String {
    let text = clean(&bytes[bytes.len().saturating_sub(EXCERPT)..]);
    if bytes.len() > EXCERPT {
        format!("…{text}")
    } else {
        text
    }
}

/// An address without the password in it.
pub(crate) fn url(url: &str) -> String {
    let hidden = url.split_once("://").and_then(|(scheme, rest)| {
        let end = rest.find('/').unwrap_or(rest.len());
        let (_, host) = rest[..end].rsplit_once('@')?;
        Some(format!("{scheme}://…@{host}{}", &rest[end..]))
    });
    head(hidden.as_deref().unwrap_or(url).as_bytes())
}

/// An error with its causes, without saying twice what an error repeats of its source.
pub(crate) fn error(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for error in chain(error) {
        let next = error.to_string();
        if text.is_empty() {
            text = next;
        } else if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
    }
    clean(text.as_bytes())
}

/// An error and its sources.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        (*error).source()
    })
}

/// Not UTF-8 becomes the replacement character, and so do control characters: a terminal would obey them.
fn clean(bytes: &[u8]) -> String {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    String::from_utf8_lossy(bytes)
        .trim()
        .chars()
        .map(harmless)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        assert_eq!(
            head(b"\x1b]0;owned\x07 \xff ok\n"),
            "\u{fffd}]0;owned\u{fffd} \u{fffd} ok"
        );
    }

    #[test]
    fn passwords_in_addresses_are_hidden() {
        assert_eq!(url("mysql://a:p@ss@h:3/db"), "mysql://…@h:3/db");
        assert_eq!(url("http://h/x@y"), "http://h/x@y");
    }

    #[test]
    fn excerpts_are_bounded() {
        let long = vec![b'x'; 1 << 20];
        assert!(head(&long).len() <= EXCERPT + 3 && head(&long).ends_with('…'));
        assert!(tail(&long).len() <= EXCERPT + 3 && tail(&long).starts_with('…'));
        assert_eq!(tail(b"short"), "short");
    }
}
