//! What came of a run, in the formats that people and programs read. Each is a consumer of the same events.

mod json;
mod junit;
mod prometheus;
mod tap;
mod terminal;

pub use json::Json;
pub use junit::Junit;
pub use prometheus::Prometheus;
pub use tap::Tap;
pub use terminal::{Colour, Terminal};

use homeostat_model::CheckName;

fn names(names: &[CheckName]) -> String {
    let names: Vec<&str> = names.iter().map(CheckName::as_str).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
