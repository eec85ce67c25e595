//! Logging.

use clap::{Args, ValueEnum};

use super::values::Switch;

/// Logging.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// error, warn, info, debug or trace, or a filter such as "info,groundling=debug".
    /// [default: info for serve, warn or error for the other commands]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// The format of log lines: text for people, JSON for machines.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Print results and errors only: no progress, and no notes.
    #[arg(long, short, env = "GROUNDLING_QUIET", value_name = "0|1", num_args = 0..=1, require_equals = true, default_missing_value = "1", default_value = "0", hide_default_value = true)]
    pub quiet: Switch,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
