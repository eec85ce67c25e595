//! The commands of the binary, one module each.

use std::fmt::Display;
use std::io::Write;

pub mod annotate;
pub mod bench;
pub mod doctor;
pub mod download;
pub mod models;
pub mod predict;
mod progress;
mod project;
mod road;
pub mod selftest;
pub mod serve;
pub mod warm;

/// Prints a line of the results to stdout. Ignores a closed pipe.
fn print(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line that is not part of the results, such as progress, to stderr.
fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
