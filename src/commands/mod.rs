//! What the binary does: one module per command.

pub mod annotate;
pub mod doctor;
pub mod predict;
mod road;
pub mod serve;
