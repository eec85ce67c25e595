//! What the binary does: one module per command.

pub mod predict;
pub mod serve;
