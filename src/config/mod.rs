//! Every flag and its environment variable, grouped by the step that it configures.

mod bench;
mod commands;
mod detection;
mod evaluate;
mod export;
mod http;
mod hub;
mod label_studio;
mod log;
mod media;
mod models;
mod python;
mod selftest;
mod store;
mod values;

use std::fs;
use std::path::Path;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::bench::{BenchArgs, Dimensions, Half};
pub use self::commands::{
    AnnotateArgs, CompletionsArgs, ConnectArgs, CredentialsArgs, DoctorArgs, DownloadArgs,
    HealthArgs, ManArgs, ModelsArgs, OutputFormat, PredictArgs, ProjectTasksArgs, ServeArgs,
    SetupArgs, WarmArgs,
};
pub use self::detection::DetectionArgs;
pub use self::evaluate::{ApplyTo, ComparedModelArgs, EvaluateArgs, Protocol};
pub use self::export::ExportArgs;
pub use self::http::{HttpArgs, PromptMemory, TypedPrompts};
pub use self::hub::HubArgs;
pub use self::label_studio::LabelStudioArgs;
pub use self::log::{LogArgs, LogFormat};
pub use self::media::{ImageLimitArgs, MediaArgs};
pub use self::models::{CpuArgs, InstructionSetChoice, ModelArgs};
pub use self::python::PythonArgs;
pub use self::selftest::SelftestArgs;
pub use self::store::StoreArgs;

/// Grounding DINO and SAM as a Label Studio ML backend: finds the objects that a prompt names, and returns boxes and
/// masks.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[allow(missing_docs)]
    #[command(subcommand)]
    pub command: Option<Command>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub serve: ServeArgs,
}

impl Cli {
    /// Parses the command line and the environment. If they are invalid, prints the reason and ends the process. An
    /// empty environment variable counts as unset, because compose files set variables this way.
    pub fn read() -> Self {
        let command = with_secret_files(Self::command()).unwrap_or_else(|error| error.exit());
        let matches = without_empty_variables(command).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// Takes secrets that are not set from the files that the variables of their names and `_FILE` name, as containers pass
/// them.
fn with_secret_files(mut command: clap::Command) -> Result<clap::Command, clap::Error> {
    let mut secrets = vec![];
    let commands = std::iter::once(&command).chain(command.get_subcommands());
    for arg in commands.flat_map(clap::Command::get_arguments) {
        let name = arg.get_env().filter(|_| arg.is_hide_env_values_set());
        let Some(name) = name.map(|name| name.to_string_lossy().into_owned()) else {
            continue;
        };
        let variable = format!("{name}_FILE");
        let file = std::env::var_os(&variable).filter(|file| !file.is_empty());
        let is_set = std::env::var_os(&name).is_some_and(|value| !value.is_empty());
        let Some(file) = file.filter(|_| !is_set) else {
            continue;
        };
        let secret = fs::read_to_string(&file).map_err(|error| {
            let file = Path::new(&file).display();
            let text = format!("{variable}: cannot read {file}: {error}\n");
            clap::Error::raw(ErrorKind::Io, text)
        })?;
        secrets.push((arg.get_id().clone(), secret.trim().to_owned()));
    }
    let set = |arg: clap::Arg| {
        let secret = secrets.iter().find(|(id, _)| id == arg.get_id());
        match secret.filter(|(_, secret)| !secret.is_empty()) {
            Some((_, secret)) => arg.default_value(secret.clone()).hide_default_value(true),
            None => arg,
        }
    };
    command = command.mut_args(set);
    Ok(command.mut_subcommands(|subcommand| subcommand.mut_args(set)))
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|v| v.is_empty());
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
        .mut_subcommands(without_empty_variables)
}

/// The commands; the default is `serve`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve predictions to Label Studio over HTTP (the default command).
    Serve(ServeArgs),
    /// Find objects in image files and write JSON and pictures.
    Predict(PredictArgs),
    /// Measure how long each stage of a prediction takes on this machine.
    Bench(BenchArgs),
    /// Check that this machine computes correct results.
    Selftest(SelftestArgs),
    /// Predict all tasks of a Label Studio project, and store the predictions there.
    Annotate(AnnotateArgs),
    /// Compare predictions with the annotations of a project or of a COCO file, and find the best thresholds.
    Evaluate(Box<EvaluateArgs>),
    /// Compute the image embeddings of a Label Studio project in advance and store them on disk, so that the first
    /// click on each image is fast.
    Warm(WarmArgs),
    /// Connect a project of Label Studio to groundling: create or find the project, connect it, and check the connection by
    /// a prediction. The command can be repeated.
    Connect(ConnectArgs),
    /// Check the connection between Label Studio and groundling, and say how to fix problems.
    Doctor(DoctorArgs),
    /// Make the account and the token of a Label Studio that is started beside groundling, or show them.
    Credentials(CredentialsArgs),
    /// Ask a server on this machine whether its models are loaded; for the health check of a container.
    Health(HealthArgs),
    /// Download models, so that no network is needed later.
    Download(DownloadArgs),
    /// List the models that are known by name, with sizes and licences, and which of them are on this machine.
    Models(ModelsArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Write manual pages.
    Man(ManArgs),
}

impl Command {
    /// The log settings, and the default log level; `None` for commands that log nothing.
    pub fn log(&self) -> Option<(&LogArgs, &'static str)> {
        Some(match self {
            Self::Serve(args) => (&args.setup.log, "info"),
            Self::Predict(args) => (&args.log, "warn"),
            Self::Bench(args) => (&args.log, "warn"),
            Self::Selftest(args) => (&args.log, "warn"),
            Self::Annotate(args) => (&args.tasks.setup.log, "warn"),
            Self::Evaluate(args) => (&args.log, "warn"),
            Self::Warm(args) => (&args.tasks.setup.log, "warn"),
            Self::Connect(args) => (&args.log, "warn"),
            Self::Doctor(args) => (&args.setup.log, "error"),
            Self::Completions(_) | Self::Credentials(_) | Self::Health(_) | Self::Man(_) => {
                return None;
            }
            Self::Download(args) => (&args.log, "warn"),
            Self::Models(args) => (&args.log, "error"),
        })
    }

    /// The file to write a trace of the spans to.
    pub fn trace(&self) -> Option<&Path> {
        match self {
            Self::Serve(args) => args.http.trace.as_deref(),
            _ => None,
        }
    }

    /// The CPU settings; `None` for commands that run no model.
    pub fn cpu(&self) -> Option<&CpuArgs> {
        match self {
            Self::Serve(args) => Some(&args.setup.models.cpu),
            Self::Predict(args) => Some(&args.models.cpu),
            Self::Annotate(args) => Some(&args.tasks.setup.models.cpu),
            Self::Evaluate(args) => Some(&args.models.models.cpu),
            Self::Warm(args) => Some(&args.tasks.setup.models.cpu),
            Self::Bench(args) => Some(&args.models.cpu),
            Self::Selftest(args) => Some(&args.cpu),
            Self::Completions(_)
            | Self::Connect(_)
            | Self::Credentials(_)
            | Self::Doctor(_)
            | Self::Health(_)
            | Self::Download(_)
            | Self::Man(_)
            | Self::Models(_) => None,
        }
    }
}
