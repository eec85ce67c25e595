//! The arguments of each command.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DetectionArgs, HttpArgs, ImageLimitArgs, LogArgs, MediaArgs, ModelArgs, StoreArgs};

/// `groundling serve`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct ServeArgs {
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// The settings of all steps from a Label Studio task to its regions.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct SetupArgs {
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
    /// Image files, or folders of image files.
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,
    /// The objects to find: phrases separated by "." or ",", such as "bok choi. pot."
    #[arg(long, short)]
    pub prompt: String,
    /// The output format.
    #[arg(long, value_enum, default_value_t = OutputFormat::Json)]
    pub format: OutputFormat,
    /// The file to write the results to. [default: the standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Also write a PNG per image to this folder, with boxes, masks, phrases and scores drawn on it.
    #[arg(long, value_name = "DIR")]
    pub overlay: Option<PathBuf>,
    /// The labeling config that `--format label-studio` writes for. Without one, rectangles belong to a control "label"
    /// and masks to a control "label2", with the prompt's phrases as labels.
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

/// The output format of `predict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// `{"results": [...]}` with boxes in pixels and masks as COCO RLE.
    Json,
    /// Tasks with predictions, for Label Studio's import.
    LabelStudio,
}

/// `groundling annotate`.
#[derive(Debug, Args)]
pub struct AnnotateArgs {
    /// The objects to find. [default: the prompt last used in the project, else the project's labels]
    #[arg(long)]
    pub prompt: Option<String>,
    /// Delete the predictions of groundling's other model versions (other releases, models, settings or prompts), each
    /// once its task has a prediction of the current version. Predictions of others are never deleted. The command asks
    /// first. With `--only-unlabeled`, tasks that have annotations keep theirs.
    #[arg(long)]
    pub replace: bool,
    /// Do not ask before predictions are deleted.
    #[arg(long, requires = "replace")]
    pub yes: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub tasks: ProjectTasksArgs,
}

/// `groundling warm`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct WarmArgs {
    #[command(flatten)]
    pub tasks: ProjectTasksArgs,
}

/// The tasks of a project that a command works on, and how it works.
#[derive(Debug, Args)]
pub struct ProjectTasksArgs {
    /// The number of the project, as in its address: http://localhost:8080/projects/7.
    #[arg(long, value_name = "N")]
    pub project: u64,
    /// Skip tasks that have annotations.
    #[arg(long)]
    pub only_unlabeled: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// `groundling doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Also check this project: its labeling config, one of its images, its connected backends.
    #[arg(long, value_name = "N")]
    pub project: Option<u64>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub setup: SetupArgs,
}

/// `groundling download`.
#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// Names that `groundling models` lists, or repositories of the hub (OWNER/NAME, OWNER/NAME@REVISION).
    /// [default: the models that the settings select]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Also copy each model to a subfolder of this folder, without links. Carry the folder to a machine without a
    /// network and use it there as MODEL_DIR.
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
    /// Read every local file and compare its checksum.
    #[arg(long)]
    pub verify: bool,
    /// Suggest a detector and a segmenter: the pair with the best published accuracies that is fast enough on this
    /// machine.
    #[arg(long, conflicts_with = "verify")]
    pub recommend: bool,
    /// With --recommend, the longest time of the first prompt on an image, on a CPU. [default: no limit]
    #[arg(long, requires = "recommend", value_name = "SECONDS", value_parser = positive)]
    pub seconds: Option<f64>,
    /// Print JSON, for scripts.
    #[arg(long)]
    pub json: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub models: ModelArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// A number above zero.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.trim().parse().ok();
    let number = number.filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "it must be a number above 0, such as 5".to_owned())
}
