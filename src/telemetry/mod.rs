//! Logging to standard error, as text or JSON, and tracing to a file.

mod escaping_writer;
mod problems;
mod trace;

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::escaping_writer::EscapingWriter;
use self::problems::ProblemLayer;
use self::trace::TraceFile;

use crate::config::{LogArgs, LogFormat};

/// Sets up logging, and writes a trace to the file `trace` if it is given. `default` is the log level if `args` has
/// none. Call it once.
///
/// # Errors
/// If the level is neither a log level nor a filter, or the trace cannot be written.
pub(crate) fn init(args: &LogArgs, default: &str, trace: Option<&Path>) -> anyhow::Result<()> {
    // Python's level names are accepted too
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
    // https://no-color.org
    let refuses_colours = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let logs = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal() && !refuses_colours)
        // ignores errors of a closed standard error
        .log_internal_errors(false)
        .with_writer(|| EscapingWriter(std::io::stderr()));
    let logs = match args.log_format {
        LogFormat::Text => logs.boxed(),
        LogFormat::Json => logs.json().boxed(),
    };
    let trace = trace.map(|file| {
        let started = TraceFile::create(file);
        started.with_context(|| format!("cannot write the trace file {}", file.display()))
    });
    tracing_subscriber::registry()
        .with(logs.with_filter(filter))
        .with(ProblemLayer.with_filter(LevelFilter::WARN))
        .with(trace.transpose()?.map(TraceFile::layer))
        .init();
    Ok(())
}
