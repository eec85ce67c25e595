//! The groundling binary: reads the command line, starts the logs, runs the command.

use std::io::Write;
use std::process::ExitCode;

use groundling::commands::{annotate, bench, doctor, download, models, predict, serve};
use groundling::config::{Cli, Command};
use groundling::telemetry;

fn main() -> ExitCode {
    let cli = Cli::read();
    let command = cli.command.unwrap_or(Command::Serve(cli.serve));
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // nobody may read it
            let _ = writeln!(std::io::stderr(), "Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let (log, level) = command.log();
    telemetry::init(log, level)?;
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Predict(args) => predict::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Annotate(args) => annotate::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Download(args) => download::run(&args),
        Command::Models(args) => models::run(&args),
    }
}
