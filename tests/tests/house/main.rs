//! House rules that a compiler does not see: which crate may use which, what is absent, and documents that still match the
//! code. They are ordinary tests, so nobody has to remember them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod crates;
mod documents;
mod workspace;

#[track_caller]
fn nothing(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
}
