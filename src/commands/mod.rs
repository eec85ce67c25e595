//! The commands of the binary, one module each.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::config::{Cli, Command};
use crate::models::DeviceFailure;
use crate::models::ops::InstructionSet;
use crate::pipeline::PredictError;
use crate::{telemetry, threads};

pub mod annotate;
pub mod bench;
pub mod completions;
pub mod connect;
pub mod credentials;
pub mod doctor;
pub mod download;
pub mod evaluate;
mod export;
pub mod health;
mod image_files;
pub mod models;
pub mod predict;
mod progress;
mod project;
pub mod selftest;
pub mod serve;
mod setup;
mod signals;
pub mod warm;

/// The whole binary: parses the command line, initializes logging, and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::read();
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_problem(format_args!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    if let Some(cpu) = command.cpu() {
        if let Some(limit) = cpu.instruction_set {
            InstructionSet::limit(limit.into());
        }
        // SAFETY: the program has only one thread at this point.
        #[allow(unsafe_code)]
        unsafe { threads::start(cpu.threads) }.context("cannot start the compute threads")?;
    }
    if let Some((log, level)) = command.log() {
        IS_QUIET.store(log.quiet.0, Ordering::Relaxed);
        let level = if log.quiet.0 { "error" } else { level };
        telemetry::init(log, level, command.trace())?;
    }
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Predict(args) => predict::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Selftest(args) => selftest::run(&args),
        Command::Annotate(args) => annotate::run(args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Warm(args) => warm::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::print(&args),
        Command::Man(args) => completions::write_manual(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Credentials(args) => credentials::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Download(args) => download::run(&args),
        Command::Models(args) => models::run(&args),
    }
}

/// Whether no further image can be predicted, because the device no longer works for this process.
fn is_device_lost(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<PredictError>();
    error.and_then(PredictError::device_failure) == Some(DeviceFailure::Lost)
}

/// Prints a line of the results to stdout. Ignores a closed pipe.
fn print_result(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line that is not part of the results, such as progress, to stderr, unless `--quiet` is set.
fn print_status(line: impl Display) {
    if !is_quiet() {
        print_problem(line);
    }
}

/// Prints an error to stderr.
fn print_problem(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Whether `--quiet` is set: only results and errors are printed.
static IS_QUIET: AtomicBool = AtomicBool::new(false);

fn is_quiet() -> bool {
    IS_QUIET.load(Ordering::Relaxed)
}
