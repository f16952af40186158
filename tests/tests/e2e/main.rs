//! End-to-end tests: what a person can do to a cell, and what misfortune can.
//!
//! They run one at a time, need the programs (`cargo build -p homeostat -p shop`), and those of the shop need MariaDB.
//! Some need root, and say so where they are skipped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bad_input;
mod cells;
mod check;
mod deaths;
mod machines;
mod people;
mod shop;
