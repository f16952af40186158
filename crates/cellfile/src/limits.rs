//! How much a cell file may ask of the program that reads it.

use std::time::Duration;

/// Far above what a cell file needs, far below what hurts.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Of one file.
    pub source_bytes: usize,
    /// Loaded by the cell file, itself not counted.
    pub files: usize,
    /// Calls of builders.
    pub items: usize,
    /// Starlark functions calling one another.
    pub calls: usize,
    pub heap_bytes: usize,
    /// Function calls and rounds of loops.
    pub ticks: u64,
    pub time: Duration,
}

impl Limits {
    pub(crate) const USUAL: Limits = Limits {
        source_bytes: 1024 * 1024,
        files: 64,
        items: 10_000,
        calls: 100,
        heap_bytes: 256 * 1024 * 1024,
        ticks: 10_000_000,
        time: Duration::from_secs(10),
    };

    /// Checks are many and often made by loops: 100,000 of them, each of a check, a probe and a fix.
    pub(crate) const SITE: Limits = Limits {
        source_bytes: 16 * 1024 * 1024,
        items: 400_000,
        heap_bytes: 512 * 1024 * 1024,
        ..Limits::USUAL
    };
}

/// Stack of the thread that evaluates. The starlark crate walks the syntax tree recursively; what [`crate::scan`] lets
/// through needs less than a tenth of this even in an unoptimised build, where frames are largest (a test tries). Only
/// what is touched costs memory.
pub(crate) const STACK_BYTES: usize = 256 * 1024 * 1024;
