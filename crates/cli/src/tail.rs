//! The end of a log, without reading all of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// More than this is never looked at: a log may have gigabytes.
const LONGEST: u64 = 4 * 1024 * 1024;

/// The last lines of an open file, newest last. Leaves the file at the end of what was read.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn last_lines(file: &mut File, lines: usize) -> io::Result<Vec<u8>> {
    let length = file.seek(SeekFrom::End(0))?;
    let begin = length.saturating_sub(LONGEST);
    file.seek(SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    if begin > 0 {
        // It may begin in the middle of a line.
        let whole = text
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(text.len(), |at| at + 1);
        text.drain(..whole);
    }
    // What ends the last line does not begin another one.
    let inner = text.len() - usize::from(text.ends_with(b"\n"));
    let mut newlines = (0..inner).rev().filter(|at| text[*at] == b'\n');
    let cut = match lines.checked_sub(1) {
        None => text.len(),
        Some(before) => newlines.nth(before).map_or(0, |at| at + 1),
    };
    text.drain(..cut);
    Ok(text)
}

/// The last lines of a log as text; empty when there is none.
pub(crate) fn last_words(path: &Path, lines: usize) -> String {
    let text = File::open(path)
        .and_then(|mut file| last_lines(&mut file, lines))
        .unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    fn last(text: &[u8], lines: usize) -> String {
        let path = std::env::temp_dir().join(format!(
            "homeostat-tail-{}-{lines}-{}",
            std::process::id(),
            text.len()
        ));
        File::create(&path).unwrap().write_all(text).unwrap();
        let words = last_words(&path, lines);
        std::fs::remove_file(&path).unwrap();
        words
    }

    #[test]
    fn the_last_lines_are_found_whether_or_not_the_last_one_is_ended() {
        assert_eq!(last(b"a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(last(b"a\nb\nc", 2), "b\nc");
        assert_eq!(last(b"a\n", 5), "a\n");
        assert_eq!(last(b"a\nb\n", 0), "");
        assert_eq!(last(b"", 3), "");
    }

    #[test]
    fn what_is_no_text_is_shown_as_far_as_it_is() {
        assert_eq!(last(b"a\n\xff\nb\n", 2), "\u{fffd}\nb\n");
    }

    #[test]
    fn only_the_end_of_a_large_log_is_read_and_no_line_is_halved() {
        let mut text = vec![b'x'; usize::try_from(LONGEST).unwrap()];
        text.extend_from_slice(b"\nthe end\n");
        assert_eq!(last(&text, 100), "the end\n");
    }
}
