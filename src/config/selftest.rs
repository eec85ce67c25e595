//! `groundling selftest`.

use std::path::PathBuf;

use clap::Args;

use super::{CpuArgs, LogArgs};
use crate::pipeline::settings::DeviceChoice;

/// `groundling selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Check fewer rows, tokens, windows and images, which takes seconds instead of minutes.
    #[arg(long)]
    pub quick: bool,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
    /// Also write the results as JSON to this file, with the processor, the GPU and its driver: attach it to an issue.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// The device to check; "auto" is a GPU if the build and the machine have one.
    #[arg(
        long,
        env = "DEVICE",
        default_value = "auto",
        value_name = "auto|cpu|cuda[:N]"
    )]
    pub device: DeviceChoice,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub cpu: CpuArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}
