//! The arguments of each command.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use secrecy::SecretString;

use super::values::{InvalidValue, Shard};
use super::{
    DetectionArgs, ExportArgs, HttpArgs, ImageLimitArgs, LabelStudioArgs, LogArgs, MediaArgs,
    ModelArgs, StoreArgs,
};

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
    pub export: ExportArgs,
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
    /// Print a line of JSON for each task, `{"task", "regions", "deleted", "error"}`, and at last the summary.
    #[arg(long)]
    pub json: bool,
    /// Do not ask before predictions are deleted.
    #[arg(long, requires = "replace")]
    pub yes: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub export: ExportArgs,
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
    /// Work on one of COUNT parts of the tasks; INDEX counts from 0. Processes with different indices share a project, and
    /// each task belongs to exactly one part. With COUNT alone, the index is that of a Kubernetes Indexed Job
    /// (JOB_COMPLETION_INDEX).
    #[arg(long, value_name = "INDEX/COUNT")]
    pub shard: Option<Shard>,
    /// The index of this process in a Kubernetes Indexed Job, for `--shard COUNT`.
    #[arg(long, env = "JOB_COMPLETION_INDEX", value_name = "INDEX", hide = true)]
    pub shard_index: Option<u64>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub setup: SetupArgs,
}

impl ProjectTasksArgs {
    /// The part of the tasks to work on: its index, and the number of parts.
    ///
    /// # Errors
    /// If the index is missing, or too large.
    pub fn part(&self) -> Result<(u64, u64), InvalidValue> {
        let Some(Shard { index, count }) = self.shard else {
            return Ok((0, 1));
        };
        match index.or(self.shard_index) {
            Some(index) if index < count => Ok((index, count)),
            Some(index) => Err(InvalidValue(format!(
                "JOB_COMPLETION_INDEX is {index}, but --shard has only {count} parts (0 to {}): the Job's `completions` must be equal to the count",
                count - 1
            ))),
            None => Err(InvalidValue(
                "--shard COUNT needs JOB_COMPLETION_INDEX; without it, write --shard INDEX/COUNT, such as 0/8".to_owned(),
            )),
        }
    }
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

/// `groundling connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The number of an existing project, as in its address: http://localhost:8080/projects/7. [default: the project with
    /// the title of --title, which is created if there is none]
    #[arg(long, value_name = "N", conflicts_with = "title")]
    pub project: Option<u64>,
    /// The title of the project.
    #[arg(long, default_value = "groundling")]
    pub title: String,
    /// groundling's address as seen from Label Studio's server.
    #[arg(
        long,
        env = "GROUNDLING_URL",
        default_value = "http://localhost:9090",
        value_name = "URL"
    )]
    pub url: String,
    /// A file with a labeling config for the project; it replaces the project's own. [default: a new project gets boxes,
    /// masks and a field for prompts, an existing one keeps its config]
    #[arg(long, value_name = "FILE")]
    pub labeling_config: Option<PathBuf>,
    /// The labels of a new project, separated by commas.
    #[arg(long, value_name = "LABELS", conflicts_with = "labeling_config")]
    pub labels: Option<String>,
    /// Image files, or folders of image files, that are uploaded if the project has no task.
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    pub images: Vec<PathBuf>,
    /// Upload the built-in pictures of coloured shapes if the project has no task, for the demo models.
    #[arg(long, conflicts_with = "images")]
    pub demo: bool,
    /// The address at which people open Label Studio, if it is not LABEL_STUDIO_HOST; only for the message at the end.
    #[arg(long, env = "LABEL_STUDIO_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// How long to wait for Label Studio to start and for groundling to load its models, in seconds.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub wait: u64,
    /// The user name that groundling requires (its basic authentication).
    #[arg(long, env = "BASIC_AUTH_USER", value_name = "USER")]
    pub basic_auth_user: Option<String>,
    /// The password that groundling requires.
    #[arg(
        long,
        env = "BASIC_AUTH_PASS",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    pub basic_auth_pass: Option<SecretString>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub label_studio: LabelStudioArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub log: LogArgs,
}

/// `groundling completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `groundling man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder for the pages, one for each command.
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
}

/// `groundling credentials`.
#[derive(Debug, Args)]
pub struct CredentialsArgs {
    /// The folder of the credentials: the files `password` and `token`.
    #[arg(long, value_name = "DIR", default_value = "/secrets")]
    pub folder: PathBuf,
    /// Label Studio's data folder. The account is added to its file `.env`, from which Label Studio creates it when it
    /// starts for the first time.
    #[arg(long, value_name = "DIR", conflicts_with = "show")]
    pub label_studio_data: Option<PathBuf>,
    /// Print the user, the password and the token.
    #[arg(long)]
    pub show: bool,
}

/// `groundling health`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// The port of the server, on this machine.
    #[arg(long, env = "PORT", default_value_t = 9090)]
    pub port: u16,
    /// The address that the server listens on; 0.0.0.0 is asked at 127.0.0.1.
    #[arg(long, env = "BIND_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind_address: IpAddr,
    /// Only ask whether the server runs, not whether its models are loaded.
    #[arg(long)]
    pub alive: bool,
}

/// `groundling download`.
#[derive(Debug, Args)]
pub struct DownloadArgs {
    /// Names that `groundling models` lists, or repositories of the hub (OWNER/NAME, OWNER/NAME@REVISION).
    /// [default: the models that the settings select]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Leave models that are on this machine as they are, without asking the hub. [default: their checksums are compared, and
    /// a newer version is downloaded where no version is fixed]
    #[arg(long)]
    pub if_missing: bool,
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
