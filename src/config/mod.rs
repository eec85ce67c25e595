//! Every flag and its environment variable, grouped by the step that it configures.

mod bench;
mod commands;
mod detection;
mod http;
mod hub;
mod log;
mod media;
mod models;
mod python;
mod selftest;
mod store;
mod values;

use std::path::Path;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use self::bench::{BenchArgs, Dimensions, Half};
pub use self::commands::{
    AnnotateArgs, DoctorArgs, DownloadArgs, ModelsArgs, OutputFormat, PredictArgs,
    ProjectTasksArgs, ServeArgs, SetupArgs, WarmArgs,
};
pub use self::detection::DetectionArgs;
pub use self::http::{HttpArgs, PromptMemory, TypedPrompts};
pub use self::hub::HubArgs;
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
        let matches = without_empty_variables(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
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
    /// Compute the image embeddings of a Label Studio project in advance and store them on disk, so that the first
    /// click on each image is fast.
    Warm(WarmArgs),
    /// Check the connection between Label Studio and groundling, and say how to fix problems.
    Doctor(DoctorArgs),
    /// Download models, so that no network is needed later.
    Download(DownloadArgs),
    /// List the models that are known by name, with sizes and licences, and which of them are on this machine.
    Models(ModelsArgs),
}

impl Command {
    /// The log settings, and the default log level.
    pub fn log(&self) -> (&LogArgs, &'static str) {
        match self {
            Self::Serve(args) => (&args.setup.log, "info"),
            Self::Predict(args) => (&args.log, "warn"),
            Self::Bench(args) => (&args.log, "warn"),
            Self::Selftest(args) => (&args.log, "warn"),
            Self::Annotate(args) => (&args.tasks.setup.log, "warn"),
            Self::Warm(args) => (&args.tasks.setup.log, "warn"),
            Self::Doctor(args) => (&args.setup.log, "error"),
            Self::Download(args) => (&args.log, "warn"),
            Self::Models(args) => (&args.log, "error"),
        }
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
            Self::Warm(args) => Some(&args.tasks.setup.models.cpu),
            Self::Bench(args) => Some(&args.models.cpu),
            Self::Selftest(args) => Some(&args.cpu),
            Self::Doctor(_) | Self::Download(_) | Self::Models(_) => None,
        }
    }
}
