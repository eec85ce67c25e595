//! The server and the command line, tested from outside with the demo models. docs/tests.md says which test holds which
//! promise.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    missing_docs
)]

// helpers
mod brush_rle_decoder;
mod command;
mod connect;
mod fake_hub;
mod fake_studio;
mod server_process;
mod settings_page;
mod support;

// the contract with Label Studio
mod areas;
mod batch;
mod contract;
mod labeling;
mod messages;
mod new_labels;
mod outputs;
mod pages;
mod playground;
mod predict;
mod protocol;
mod server;
mod words;

// images and addresses
mod addresses;
mod failing_hosts;
mod media;

// limits, secrets, caches and scheduling
mod caches;
mod hostile;
mod log_lines;
mod scheduling;
mod secrets;

// models
mod checkpoints;
mod families;
mod hub;
mod torch_files;

// commands
mod annotate;
mod bench;
mod doctor;
mod evaluate;
mod exports;
mod models_command;
mod predict_command;
mod selftest;
mod warm;

// what operators and users see, and the rules of the code
mod api_docs;
mod deploy;
mod doc_names;
mod layering;
mod snapshots;
mod unsafe_code;
