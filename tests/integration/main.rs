//! The server and the command line from outside, on the demo models.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs
)]

mod addresses;
mod annotate;
mod api_docs;
mod batch;
mod bench;
mod brush_decoder;
mod checkpoints;
mod cli;
mod contract;
mod deploy;
mod faults;
mod hostile;
mod hub;
mod labeling;
mod layering;
mod log_lines;
mod media;
mod predict;
mod process;
mod secrets;
mod security;
mod selftest;
mod server;
mod stages;
mod studio;
mod support;
mod unsafe_code;
mod warm;
