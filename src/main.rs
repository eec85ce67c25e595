//! The groundling binary: parses the command line, initializes logging, runs the command.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use groundling::commands::{
    annotate, bench, doctor, download, models, predict, selftest, serve, warm,
};
use groundling::config::{Cli, Command};
use groundling::models::ops::InstructionSet;
use groundling::{telemetry, threads};

fn main() -> ExitCode {
    let cli = Cli::read();
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // stderr may be closed
            let _ = writeln!(std::io::stderr(), "Error: {error:#}");
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
        unsafe { threads::start(cpu.threads) }.context("cannot start the threads that compute")?;
    }
    let (log, level) = command.log();
    telemetry::init(log, level, command.trace())?;
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Predict(args) => predict::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Selftest(args) => selftest::run(&args),
        Command::Annotate(args) => annotate::run(args),
        Command::Warm(args) => warm::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Download(args) => download::run(&args),
        Command::Models(args) => models::run(&args),
    }
}
