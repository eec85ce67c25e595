//! The groundling binary: reads the command line, starts the logs, runs the command.

use clap::Parser;
use groundling::commands::{predict, serve};
use groundling::config::{Cli, Command};
use groundling::telemetry;

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => {
            telemetry::init(&args.log)?;
            serve::run(args)
        }
        Command::Predict(args) => {
            telemetry::init(&args.log)?;
            predict::run(&args)
        }
    }
}
