//! `groundling completions` and `groundling man`: files for shells and for `man`, made from the command line's definition.

use std::fs;
use std::io;

use anyhow::Context;
use clap::CommandFactory;

use super::print_result;
use crate::config::{Cli, CompletionsArgs, ManArgs};

const PROGRAM: &str = "groundling";

/// Prints a completion script.
///
/// # Errors
/// Never; the type is that of all commands.
#[allow(clippy::unnecessary_wraps)]
pub fn print(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = vec![];
    clap_complete::generate(args.shell, &mut Cli::command(), PROGRAM, &mut script);
    print_result(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// Writes a manual page for each command.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_manual(args: &ManArgs) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        fs::create_dir_all(&args.output)?;
        clap_mangen::generate_to(Cli::command(), &args.output)
    };
    write().with_context(|| {
        let folder = args.output.display();
        format!("cannot write the manual pages to {folder}")
    })
}
