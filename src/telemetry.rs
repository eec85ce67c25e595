//! Logs: to the standard error, as lines for people or as JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogArgs, LogFormat};

/// Starts logging, at a level of `default` where nothing is said; call once.
///
/// # Errors
/// If the level is neither a level nor a filter.
pub fn init(args: &LogArgs, default: &str) -> Result<(), ParseError> {
    // Python's names work too
    let level = match args
        .log_level
        .as_deref()
        .unwrap_or(default)
        .to_lowercase()
        .as_str()
    {
        "warning" => "warn".to_owned(),
        "critical" | "fatal" => "error".to_owned(),
        level => level.to_owned(),
    };
    let filter = EnvFilter::builder().parse(level)?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // a closed standard error stops nothing
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}
