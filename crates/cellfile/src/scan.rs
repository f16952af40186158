//! A small lexer of our own for Starlark source, used twice.
//!
//! *Before* parsing, [`guard`] refuses source that is nested so deeply that the parser or the compiler of the starlark
//! crate would overflow its stack, which aborts the whole process. It counts everything that can make the syntax tree
//! deeper: brackets, operators in a row, blocks, `elif`.
//!
//! *After* evaluation, [`argument`] and [`text_within`] find the argument of a call that an error is about: the evaluator
//! knows only where the whole call stands.

use std::ops::Range;

/// A stretch of source in bytes.
pub(crate) type Stretch = Range<usize>;

/// How deep the syntax tree of one statement may become. Real cell files stay below 20.
const DEEPEST: usize = 200;
/// How deep blocks may be nested.
const DEEPEST_BLOCK: usize = 30;
/// How many `elif` a file may have: each nests the rest of its chain one deeper.
const MOST_ELIF: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Close,
    /// `,` or `;`: what comes next begins anew.
    Separator,
    Newline,
    Text,
    /// A name, a keyword or a number.
    Word,
    Operator,
}

#[derive(Debug, Clone)]
struct Token {
    kind: Kind,
    at: Stretch,
}

/// Refuses source that is nested too deeply, and says where and what.
pub(crate) fn guard(source: &str) -> Result<(), (Stretch, &'static str)> {
    // One counter for each open bracket: how much deeper the current element may have become by operators.
    let mut levels = vec![0_usize];
    let mut depth = 0_usize;
    let mut elifs = 0_usize;
    let mut blocks: Vec<usize> = Vec::new();
    for token in Tokens::new(source) {
        let word = &source[token.at.clone()];
        let deeper = match token.kind {
            Kind::Open => {
                levels.push(0);
                true
            }
            Kind::Close if levels.len() > 1 => {
                depth -= levels.pop().map_or(0, |inner| inner + 1);
                true
            }
            Kind::Separator => {
                depth -= levels.last_mut().map_or(0, std::mem::take);
                false
            }
            Kind::Newline if levels.len() == 1 => {
                depth -= levels.last_mut().map_or(0, std::mem::take);
                if let Some(indent) = indent_after(source, token.at.end) {
                    blocks.retain(|block| *block < indent);
                    if indent > 0 {
                        blocks.push(indent);
                    }
                }
                false
            }
            Kind::Word => {
                elifs += usize::from(word == "elif");
                is_operator_word(word)
            }
            Kind::Operator => true,
            Kind::Close | Kind::Newline | Kind::Text => false,
        };
        if deeper {
            depth += 1;
            // What an opening bracket adds is taken back with its closing one, not with the next comma.
            if token.kind != Kind::Open
                && let Some(level) = levels.last_mut()
            {
                *level += 1;
            }
        }
        if depth > DEEPEST {
            return Err((token.at, "this expression is nested too deeply"));
        }
        if blocks.len() > DEEPEST_BLOCK {
            return Err((token.at, "this block is nested too deeply"));
        }
        if elifs > MOST_ELIF {
            return Err((token.at, "the file has too many 'elif'"));
        }
    }
    Ok(())
}

/// Which argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which<'a> {
    Position(usize),
    Named(&'a str),
}

/// Where the value of an argument stands in the call that stands at `call`.
pub(crate) fn argument(source: &str, call: &Stretch, which: Which<'_>) -> Option<Stretch> {
    let inside = source.get(call.clone())?;
    let mut tokens = Tokens::new(inside).filter(|token| token.kind != Kind::Newline);
    tokens.find(|token| token.kind == Kind::Open)?;
    let mut depth = 0_usize;
    let mut current: Vec<Token> = Vec::new();
    let mut position = 0;
    for token in tokens {
        let ends = depth == 0 && matches!(token.kind, Kind::Separator | Kind::Close);
        if !ends {
            match token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                Kind::Separator | Kind::Newline | Kind::Text | Kind::Word | Kind::Operator => {}
            }
            current.push(token);
            continue;
        }
        if let Some(value) = matching(inside, &current, which, &mut position) {
            return Some(call.start + value.start..call.start + value.end);
        }
        current.clear();
        if token.kind == Kind::Close {
            return None;
        }
    }
    None
}

/// The value among the tokens of one argument, if it is the one looked for.
fn matching(
    source: &str,
    tokens: &[Token],
    which: Which<'_>,
    position: &mut usize,
) -> Option<Stretch> {
    let is_equals = |token: Option<&Token>| token.is_some_and(|t| &source[t.at.clone()] == "=");
    let (first, last) = (tokens.first()?, tokens.last()?);
    if is_equals(tokens.get(1)) && !is_equals(tokens.get(2)) {
        let named = &source[first.at.clone()];
        return (which == Which::Named(named))
            .then(|| tokens[2..].first().map(|t| t.at.start..last.at.end))?;
    }
    let here = which == Which::Position(*position);
    *position += 1;
    here.then_some(first.at.start..last.at.end)
}

/// Where a text literal, or a piece of one, stands within a stretch: first a whole literal, then any occurrence.
pub(crate) fn text_within(source: &str, within: &Stretch, text: &str) -> Option<Stretch> {
    let inside = source.get(within.clone())?;
    let whole = Tokens::new(inside)
        .filter(|token| token.kind == Kind::Text)
        .find(|token| {
            let literal = &inside[token.at.clone()];
            literal.trim_matches(['"', '\'']) == text
        })
        .map(|token| token.at);
    let found = whole.or_else(|| inside.find(text).map(|at| at..at + text.len()))?;
    Some(within.start + found.start..within.start + found.end)
}

fn is_operator_word(word: &str) -> bool {
    matches!(
        word,
        "and" | "or" | "not" | "if" | "else" | "for" | "in" | "lambda"
    )
}

/// The indentation of the line that begins at `from`, unless it holds nothing.
fn indent_after(source: &str, from: usize) -> Option<usize> {
    let rest = &source[from..];
    let indent = rest.len() - rest.trim_start_matches([' ', '\t']).len();
    match rest[indent..].chars().next() {
        None | Some('\n' | '\r' | '#') => None,
        Some(_) => Some(indent),
    }
}

struct Tokens<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn new(source: &'a str) -> Self {
        Self { source, at: 0 }
    }

    /// The end of the literal whose quotes begin at `from`.
    fn end_of_text(&self, from: usize) -> usize {
        let rest = &self.source[from..];
        let quote = &rest[..1];
        let triple = quote.repeat(3);
        let (close, from) = if rest.starts_with(&triple) {
            (triple.as_str(), from + 3)
        } else {
            (quote, from + 1)
        };
        let mut characters = self.source[from..].char_indices();
        while let Some((offset, c)) = characters.next() {
            if c == '\\' {
                characters.next();
            } else if self.source[from + offset..].starts_with(close) {
                return from + offset + close.len();
            } else if c == '\n' && close.len() == 1 {
                // An unclosed literal ends with its line; the parser will say so.
                return from + offset;
            }
        }
        self.source.len()
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let rest = &self.source[self.at..];
            let first = rest.chars().next()?;
            let begin = self.at;
            let (kind, length) = match first {
                ' ' | '\t' | '\r' => {
                    self.at += 1;
                    continue;
                }
                '#' => {
                    self.at += rest.find('\n').unwrap_or(rest.len());
                    continue;
                }
                '\\' if rest[1..].starts_with('\n') => {
                    self.at += 2;
                    continue;
                }
                '\n' => (Kind::Newline, 1),
                '(' | '[' | '{' => (Kind::Open, 1),
                ')' | ']' | '}' => (Kind::Close, 1),
                ',' | ';' => (Kind::Separator, 1),
                '"' | '\'' => (Kind::Text, self.end_of_text(begin) - begin),
                c if c.is_alphanumeric() || c == '_' => {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                    let end = end.unwrap_or(rest.len());
                    let prefix = end <= 2 && rest[..end].chars().all(|c| "rRbBfF".contains(c));
                    if prefix && rest[end..].starts_with(['"', '\'']) {
                        (Kind::Text, self.end_of_text(begin + end) - begin)
                    } else {
                        (Kind::Word, end)
                    }
                }
                other => (Kind::Operator, other.len_utf8()),
            };
            self.at = begin + length;
            return Some(Token {
                kind,
                at: begin..self.at,
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_source_passes() {
        let flat: String = (0..2000)
            .map(|n| format!("job(name = \"j-{n}\", needs = [\"a\", \"b\"], env = {{\"A\": \"x\" + \"y\"}})\n"))
            .collect();
        assert_eq!(guard(&flat), Ok(()));
        assert_eq!(
            guard(&format!("x = [{}]", "f(1)[0].y, ".repeat(5000))),
            Ok(())
        );
        assert_eq!(guard("x = \"((((((\" # ((((\ny = '''\n((\n'''"), Ok(()));
    }

    #[test]
    fn every_way_to_nest_deeply_is_refused() {
        let n = 5000;
        for source in [
            format!("x = {}", "[".repeat(n)),
            format!("x = {}1{}", "(".repeat(n), ")".repeat(n)),
            format!("x = {}1", "1 + ".repeat(n)),
            format!("x = {}1", "not ".repeat(n)),
            format!("x = {}1", "- ".repeat(n)),
            format!("x = {}1", "1 if 1 else ".repeat(n)),
            format!("x = {}1", "lambda: ".repeat(n)),
            format!("x = a{}", ".b".repeat(n)),
            format!("x = a{}", "()".repeat(n)),
            format!("x = a{}", "[0]".repeat(n)),
            format!("x = [{}]", "1 + [1, ".repeat(n)),
            format!("x = [1{}]", " for a in b".repeat(n)),
            format!("if 1:\n  pass\n{}", "elif 1:\n  pass\n".repeat(n)),
            (0..100)
                .map(|n| format!("{}if 1:\n", " ".repeat(n)))
                .collect(),
        ] {
            assert!(guard(&source).is_err(), "accepted: {}…", &source[..30]);
        }
    }

    #[test]
    fn arguments_are_found() {
        let source = "x = 1\njob(\"web\", f(a = 1, b), needs = [\n  \"a\",\n  'b'], cpu = x == 1)";
        let call = 6..source.len();
        let find = |which| argument(source, &call, which).map(|at| &source[at]);
        assert_eq!(find(Which::Position(0)), Some("\"web\""));
        assert_eq!(find(Which::Position(1)), Some("f(a = 1, b)"));
        assert_eq!(find(Which::Named("needs")), Some("[\n  \"a\",\n  'b']"));
        assert_eq!(find(Which::Named("cpu")), Some("x == 1"));
        assert_eq!(find(Which::Named("a")), None);
        assert_eq!(find(Which::Position(2)), None);
        let needs = argument(source, &call, Which::Named("needs")).unwrap();
        assert_eq!(
            text_within(source, &needs, "b").map(|at| &source[at]),
            Some("'b'")
        );
        assert_eq!(text_within(source, &needs, "c"), None);
    }
}
