//! What the binary does: one module per command.

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

/// A line for whoever reads the results; nobody may, and that stops nothing.
fn print(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A line beside the results, such as progress.
fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
