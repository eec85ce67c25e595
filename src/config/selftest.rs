//! `groundling selftest`.

use clap::Args;

use super::{CpuArgs, DeviceChoice, LogArgs};

/// `groundling selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Check fewer rows, tokens, windows and pictures: seconds in place of minutes.
    #[arg(long)]
    pub quick: bool,
    /// JSON, for scripts.
    #[arg(long)]
    pub json: bool,
    /// The device to check: "auto" is a GPU where the build and the machine have one.
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
