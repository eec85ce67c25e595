//! Why a checkpoint cannot be loaded.

use std::path::PathBuf;

use super::{Architecture, DeriveConfigError, InvalidConfig};

/// Why a checkpoint could not be loaded; every message names the file.
///
/// The messages contain their causes, so no variant has a separate source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder is missing or unreadable.
    #[error("cannot read {file}: {reason}")]
    Read {
        /// The file or folder.
        file: String,
        /// The cause.
        reason: std::io::Error,
    },
    /// The folder has no weights.
    #[error(
        "{} has no weights: it must have model.safetensors, or another file with the extension .safetensors, .pth, .pt, .bin or .ckpt",
        .folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder has several files of weights, and none has a published name.
    #[error(
        "{} has several files of weights ({}): give the path of one of them",
        .folder.display(),
        .files.join(", ")
    )]
    SeveralWeights {
        /// The folder.
        folder: PathBuf,
        /// The names of the files.
        files: Vec<String>,
    },
    /// A JSON file is invalid.
    #[error("{file} is not a usable configuration: {reason}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong.
        reason: ConfigFileError,
    },
    /// The tokenizer is invalid.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file of weights is damaged, or belongs to another model.
    #[error("{file} is not a usable checkpoint: {reason}")]
    Unusable {
        /// The file.
        file: String,
        /// What is wrong.
        reason: UnusableWeights,
    },
    /// A tensor is missing, or has another shape.
    #[error("{file} does not contain the model that {config_source} describes: {reason}")]
    Weights {
        /// The file.
        file: String,
        /// The source of the expected shapes: `config.json`, or the tensors themselves.
        config_source: String,
        /// The first line of candle's error, with the tensor's name.
        reason: String,
    },
}

/// Why a JSON file is not a usable configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigFileError {
    /// The file is not valid JSON, or a field has the wrong type.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The file describes another kind of model.
    #[error(
        "its model_type is {}, and {} is needed",
        quoted(.found.as_slice(), "missing"),
        quoted(.expected, "none")
    )]
    ModelType {
        /// The `model_type` of the file, if it has one.
        found: Option<String>,
        /// The accepted values.
        expected: Vec<String>,
    },
    /// The value of a field is not supported.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
}

/// The values in quotes, separated by "or"; `if_empty` if there are none.
fn quoted(values: &[String], if_empty: &str) -> String {
    let values: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    match values.is_empty() {
        true => if_empty.to_owned(),
        false => values.join(" or "),
    }
}

/// Why a file of weights cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnusableWeights {
    /// The file cannot be parsed, contains more than weights, or has the tensors of an unknown model.
    #[error("{0}")]
    Content(String),
    /// The weights are those of another kind of model.
    #[error("it is {}, but {} is needed", .found.describe(), .expected.describe())]
    Architecture {
        /// The architecture of the file.
        found: Architecture,
        /// The architecture that is needed.
        expected: Architecture,
    },
    /// The file has no `config.json` beside it, and the configuration cannot be derived from the tensors.
    #[error(transparent)]
    Derive(#[from] DeriveConfigError),
    /// The configuration that is derived from the tensors is not supported.
    #[error("the configuration derived from its tensors is not supported: {0}")]
    Config(#[from] InvalidConfig),
}
