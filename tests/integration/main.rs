//! The server and the command line from outside, on the demo models.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs
)]

mod checkpoints;
mod cli;
mod layering;
mod predict;
mod server;
mod support;
