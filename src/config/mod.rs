//! Every flag and its environment variable, grouped by the step of the road it belongs to.

mod bench;
mod http;
mod models;
mod selftest;
mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

pub use self::bench::{BenchArgs, Dimensions, Half};
pub use self::http::{HttpArgs, PromptMemory};
pub use self::models::{
    CpuArgs, DeviceChoice, HubArgs, InstructionSetChoice, ModelArgs, Precision, PythonArgs, Switch,
};
pub use self::selftest::SelftestArgs;
pub use self::store::StoreArgs;
use crate::detector::DetectionOptions;

/// Words in, boxes and masks out: a Label Studio ML backend.
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
    /// Reads the command line and the environment, and ends the process with the reason if they make no
    /// sense. An empty variable is as good as none: compose files write them so.
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

/// What to do; `serve` where nothing is said.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer Label Studio over HTTP (the default).
    Serve(ServeArgs),
    /// Find objects in image files and write JSON and pictures.
    Predict(PredictArgs),
    /// Measure how long each stage of a prediction takes on this machine.
    Bench(BenchArgs),
    /// Check that this machine computes the right results.
    Selftest(SelftestArgs),
    /// Predict all tasks of a Label Studio project, and store what was found there.
    Annotate(AnnotateArgs),
    /// Look at the images of a Label Studio project before anybody clicks, and keep what the segmenter saw on disk.
    Warm(WarmArgs),
    /// Look for what keeps Label Studio and groundling from working together, and say what to change.
    Doctor(DoctorArgs),
    /// Fetch models, so that no network is needed later.
    Download(DownloadArgs),
    /// List the models that are known by name: sizes, licences, and what is on this machine.
    Models(ModelsArgs),
}

impl Command {
    /// How it logs, and how much where nothing is said.
    pub fn log(&self) -> (&LogArgs, &'static str) {
        match self {
            Self::Serve(args) => (&args.road.log, "info"),
            Self::Predict(args) => (&args.log, "warn"),
            Self::Bench(args) => (&args.log, "warn"),
            Self::Selftest(args) => (&args.log, "warn"),
            Self::Annotate(args) => (&args.road.log, "warn"),
            Self::Warm(args) => (&args.road.log, "warn"),
            Self::Doctor(args) => (&args.road.log, "error"),
            Self::Download(args) => (&args.log, "warn"),
            Self::Models(args) => (&args.log, "error"),
        }
    }

    /// The file that it writes a trace of its spans to.
    pub fn trace(&self) -> Option<&Path> {
        match self {
            Self::Serve(args) => args.http.trace.as_deref(),
            _ => None,
        }
    }

    /// How it computes on the CPU; `None` where it computes nothing.
    pub fn cpu(&self) -> Option<&CpuArgs> {
        match self {
            Self::Serve(args) => Some(&args.road.models.cpu),
            Self::Predict(args) => Some(&args.models.cpu),
            Self::Annotate(args) => Some(&args.road.models.cpu),
            Self::Warm(args) => Some(&args.road.models.cpu),
            Self::Bench(args) => Some(&args.models.cpu),
            Self::Selftest(args) => Some(&args.cpu),
            Self::Doctor(_) | Self::Download(_) | Self::Models(_) => None,
        }
    }
}

/// `groundling serve`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ServeArgs {
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub road: RoadArgs,
}

/// The road from a task of Label Studio to its regions.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct RoadArgs {
    #[command(flatten)]
    pub media: MediaArgs,
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub detection: DetectionArgs,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

/// `groundling predict`.
#[derive(Debug, Args)]
pub struct PredictArgs {
    /// Image files, or folders of them.
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// What to find: phrases separated by "." or ",", such as "bok choi. pot."
    #[arg(long, short)]
    pub prompt: String,
    /// What to write.
    #[arg(long, value_enum, default_value_t = OutputFormat::Json)]
    pub format: OutputFormat,
    /// Where to write it; the standard output where nothing is said.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Also write a PNG per image to this folder, with boxes, masks, phrases and scores drawn.
    #[arg(long, value_name = "DIR")]
    pub overlay: Option<PathBuf>,
    /// The labeling config whose controls and labels `--format label-studio` uses; without one,
    /// rectangles go to "label" and masks to "label2", with the prompt's phrases as labels.
    #[arg(long, value_name = "FILE")]
    pub labeling_config: Option<PathBuf>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub limits: ImageLimitArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub models: ModelArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub detection: DetectionArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// `groundling annotate`.
#[derive(Debug, Args)]
pub struct AnnotateArgs {
    /// The number of the project, as in its address: http://localhost:8080/projects/7.
    #[arg(long, value_name = "N")]
    pub project: u64,
    /// What to find; without one, the prompt last used in the project, else its labels.
    #[arg(long)]
    pub prompt: Option<String>,
    /// Leave out tasks that have annotations.
    #[arg(long)]
    pub only_unlabeled: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub road: RoadArgs,
}

/// `groundling warm`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// The number of the project, as in its address: http://localhost:8080/projects/7.
    #[arg(long, value_name = "N")]
    pub project: u64,
    /// Leave out tasks that have annotations.
    #[arg(long)]
    pub only_unlabeled: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub road: RoadArgs,
}

/// `groundling doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at this project too: its labeling config, an image of it, its connected backends.
    #[arg(long, value_name = "N")]
    pub project: Option<u64>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub road: RoadArgs,
}

/// `groundling download`.
#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// Names that `groundling models` lists, or ids of the hub (OWNER/NAME, OWNER/NAME@REVISION); without
    /// one, the models that would run.
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Also put them into this folder, one folder each, without links: to carry them to a machine without
    /// a network, where it is MODEL_DIR.
    #[arg(long, short, value_name = "DIR")]
    pub output: Option<PathBuf>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub models: ModelArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// `groundling models`.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// Read every file that is here and compare its checksum.
    #[arg(long)]
    pub verify: bool,
    /// JSON, for scripts.
    #[arg(long)]
    pub json: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub models: ModelArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where images come from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub struct MediaArgs {
    /// Label Studio's address as this machine reaches it, such as http://localhost:8080.
    #[arg(long, env = "LABEL_STUDIO_HOST", value_name = "URL")]
    pub label_studio_host: Option<String>,
    /// Another name of the same setting.
    #[arg(long, env = "LABEL_STUDIO_URL", value_name = "URL", hide = true)]
    pub label_studio_url: Option<String>,
    /// A personal access token of Label Studio (a legacy token works too), for images that lie there.
    #[arg(
        long,
        env = "LABEL_STUDIO_ACCESS_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub label_studio_access_token: Option<SecretString>,
    /// Another name of the same setting.
    #[arg(
        long,
        env = "LABEL_STUDIO_API_KEY",
        value_name = "TOKEN",
        hide = true,
        hide_env_values = true
    )]
    pub label_studio_api_key: Option<SecretString>,
    /// The folder that Label Studio serves local files from, if this machine has it too: they are then
    /// read from disk.
    #[arg(long, env = "LOCAL_FILES_DOCUMENT_ROOT", value_name = "DIR")]
    pub local_files_document_root: Option<PathBuf>,
    /// Another name of the same setting.
    #[arg(
        long,
        env = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT",
        value_name = "DIR",
        hide = true
    )]
    pub label_studio_local_files_document_root: Option<PathBuf>,
    /// Hosts besides Label Studio that images may come from although their addresses are private, such
    /// as "minio:9000, nas"; "*" for all.
    #[arg(
        long,
        env = "ALLOWED_IMAGE_HOSTS",
        default_value = "",
        value_name = "HOST[:PORT],...",
        hide_default_value = true
    )]
    pub allowed_image_hosts: String,
    /// Seconds for fetching one image.
    #[arg(long, env = "IMAGE_TIMEOUT_S", default_value_t = 30)]
    pub image_timeout_s: u64,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub limits: ImageLimitArgs,
}

impl MediaArgs {
    /// Label Studio's address under either name; an empty one is none.
    pub fn host(&self) -> Option<&str> {
        [&self.label_studio_host, &self.label_studio_url]
            .into_iter()
            .flatten()
            .map(|host| host.trim())
            .find(|host| !host.is_empty())
    }

    /// The token under either name, blanks around it taken off; an empty one is none.
    pub fn token(&self) -> Option<SecretString> {
        [&self.label_studio_access_token, &self.label_studio_api_key]
            .into_iter()
            .flatten()
            .map(|token| SecretString::from(token.expose_secret().trim()))
            .find(|token| !token.expose_secret().is_empty())
    }

    /// The folder of local files under either name; an empty one is none.
    pub fn local_files(&self) -> Option<&PathBuf> {
        [
            &self.local_files_document_root,
            &self.label_studio_local_files_document_root,
        ]
        .into_iter()
        .flatten()
        .find(|folder| !folder.as_os_str().is_empty())
    }
}

/// How large an image may be.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub struct ImageLimitArgs {
    /// Bytes an image file may have.
    #[arg(long, env = "MAX_IMAGE_BYTES", default_value_t = 100 << 20)]
    pub max_image_bytes: usize,
    /// Pixels an image may have, told before it is decoded.
    #[arg(long, env = "MAX_IMAGE_PIXELS", default_value_t = 120_000_000)]
    pub max_image_pixels: usize,
}

/// What counts as found.
#[derive(Debug, Args)]
#[command(next_help_heading = "Detection")]
pub struct DetectionArgs {
    /// How sure the detector must be of a box, 0 to 1: lower finds more and errs more.
    #[arg(long, env = "BOX_THRESHOLD", default_value_t = UpTo(0.3), value_name = "0..1")]
    pub box_threshold: Fraction,
    /// How well a phrase must fit to name a box, 0 to 1.
    #[arg(long, env = "TEXT_THRESHOLD", default_value_t = UpTo(0.25), value_name = "0..1")]
    pub text_threshold: Fraction,
    /// Boxes of one phrase that overlap by more than this (IoU) become one; 1 keeps all.
    #[arg(long, env = "NMS_IOU", default_value_t = UpTo(0.7), value_name = "0..1")]
    pub nms_iou: Fraction,
    /// At most this many objects per image, the best; all where nothing is said.
    #[arg(long, env = "MAX_DETECTIONS", value_name = "N")]
    pub max_detections: Option<usize>,
    /// How far a polygon may be from its mask's boundary, in percent of the image's longer side: more
    /// means fewer corners.
    #[arg(
        long,
        env = "POLYGON_TOLERANCE",
        default_value_t = UpTo(0.2),
        value_name = "PERCENT"
    )]
    pub polygon_tolerance: Percent,
}

impl DetectionArgs {
    /// The detector's options.
    pub fn options(&self) -> DetectionOptions {
        DetectionOptions {
            box_threshold: self.box_threshold.0,
            text_threshold: self.text_threshold.0,
            nms_iou_threshold: self.nms_iou.0,
            max_detections: self.max_detections,
        }
    }
}

/// Logging.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// error, warn, info, debug or trace, or a filter such as "info,groundling=debug"; info for serve,
    /// warn or error for the other commands where nothing is said.
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Lines for people or JSON for machines.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What `predict` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// `{"results": [...]}` with boxes in pixels and masks as COCO RLE.
    Json,
    /// Tasks with predictions, for Label Studio's import.
    LabelStudio,
}

/// A number of 0 to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpTo<const MAX: u8>(pub f32);

/// A number of 0 to 1.
pub type Fraction = UpTo<1>;
/// A number of 0 to 100.
pub type Percent = UpTo<100>;

impl<const MAX: u8> FromStr for UpTo<MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.trim()
            .parse()
            .ok()
            .filter(|value| (0.0..=f32::from(MAX)).contains(value))
            .map(Self)
            .ok_or_else(|| format!("it must be a number from 0 to {MAX}, such as 0.3"))
    }
}

impl<const MAX: u8> fmt::Display for UpTo<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
