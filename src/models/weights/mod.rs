//! Reads checkpoint files: all formats and naming schemes that users have, under one set of names for the models.

mod grounding_dino_names;
mod layout;
mod names;
mod opened;
mod pickle;
mod safetensors_file;
mod sam_names;
mod tensor_file;
mod torch_file;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use self::layout::{Architecture, Layout};
pub use self::opened::{Weights, tensor_type};
use self::tensor_file::TensorFile;

/// The location of a checkpoint's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// A folder as published: the weights and, if present, `config.json`, `preprocessor_config.json` and
    /// `tokenizer.json`.
    Folder(PathBuf),
    /// Only a file of weights; the configuration is derived from its tensors.
    File(PathBuf),
    /// Files compiled into the program.
    Embedded {
        /// The name in messages.
        name: &'static str,
        /// File names and contents.
        files: &'static [(&'static str, &'static [u8])],
    },
}

/// Why a checkpoint could not be loaded; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is missing or unreadable.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The folder has no weights, or several files of weights.
    #[error("{folder} {reason}")]
    Folder {
        /// The folder.
        folder: String,
        /// What is wrong, and how to fix it.
        reason: String,
    },
    /// A JSON file is invalid.
    #[error("{file} is not a usable configuration: {reason}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong, and how to fix it.
        reason: String,
    },
    /// The tokenizer is invalid.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The file of weights is damaged, or its model is unknown.
    #[error("{file} is not a usable checkpoint: {reason}")]
    Unusable {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is missing, or has another shape.
    #[error("{file} does not hold the model that {described_by} describes: {reason}")]
    Weights {
        /// The file.
        file: String,
        /// The source of the expected shapes: `config.json`, or the tensors themselves.
        described_by: String,
        /// The cause, with the tensor's name.
        reason: String,
    },
}

/// The configuration of a model that can be loaded from a checkpoint.
pub trait ModelConfig: serde::de::DeserializeOwned {
    /// The required architecture of the weights.
    const ARCHITECTURE: Architecture;
    /// The accepted values of `model_type` in `config.json`.
    const MODEL_TYPES: &'static [&'static str];

    /// Derives the configuration from the tensors' shapes, for weights without a `config.json`.
    ///
    /// # Errors
    /// The name of a missing tensor.
    fn of_weights(weights: &Weights) -> Result<Self, String>;

    /// Checks that the model can be built from this configuration.
    ///
    /// # Errors
    /// A sentence with the field, its value and the supported values.
    fn validate(&self) -> Result<(), String>;
}

/// The published file names of weights; the first one that exists is used.
const WEIGHTS: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// The extensions of other files of weights.
pub const WEIGHT_ENDINGS: [&str; 5] = ["safetensors", "pth", "pt", "bin", "ckpt"];

impl Checkpoint {
    /// The path of a file in messages.
    pub fn describe(&self, file: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(file).display().to_string(),
            Self::File(path) => path.display().to_string(),
            Self::Embedded { name, .. } => format!("built-in {name}/{file}"),
        }
    }

    /// The bytes of a small file next to the weights; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] if it exists but cannot be read.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        match self {
            Self::Folder(folder) => match std::fs::read(folder.join(file)) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(CheckpointError::Read {
                    file: self.describe(file),
                    source,
                }),
            },
            Self::File(_) => Ok(None),
            Self::Embedded { .. } => Ok(self.embedded(file).map(<[u8]>::to_vec)),
        }
    }

    /// Reads and validates a JSON file next to the weights. If the weights have no `config.json`, the file may be
    /// missing, and the defaults are used. With a `config.json`, it is required.
    ///
    /// # Errors
    /// If a required file is missing, or see [`Checkpoint::config`]. An error of `validate` is reported with the
    /// file's name.
    pub fn companion<T: serde::de::DeserializeOwned + Default>(
        &self,
        file: &str,
        validate: impl FnOnce(&T) -> Result<(), String>,
    ) -> Result<T, CheckpointError> {
        let value = match self.config(file, &[])? {
            Some(value) => value,
            None if self.read("config.json")?.is_none() => T::default(),
            None => return Err(self.lacks(file)),
        };
        validate(&value).map_err(|reason| CheckpointError::Config {
            file: self.describe(file),
            reason,
        })?;
        Ok(value)
    }

    /// The error for a missing file.
    pub fn lacks(&self, file: &str) -> CheckpointError {
        CheckpointError::Read {
            file: self.describe(file),
            source: std::io::ErrorKind::NotFound.into(),
        }
    }

    /// Reads a JSON file and, if `expected` is not empty, checks its `model_type`. `None` if the file does not exist.
    ///
    /// # Errors
    /// If it is not valid JSON, has another model type, or a field is invalid.
    pub fn config<T: serde::de::DeserializeOwned>(
        &self,
        file: &str,
        expected: &[&str],
    ) -> Result<Option<T>, CheckpointError> {
        let Some(bytes) = self.read(file)? else {
            return Ok(None);
        };
        let error = |reason: String| CheckpointError::Config {
            file: self.describe(file),
            reason,
        };
        let mut value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?;
        // in the reference, null is the same as a missing field
        drop_nulls(&mut value);
        let found = value.get("model_type").and_then(|v| v.as_str());
        let is_expected =
            expected.is_empty() || found.is_some_and(|found| expected.contains(&found));
        if !is_expected {
            let expected: Vec<String> = expected.iter().map(|e| format!("{e:?}")).collect();
            return Err(error(format!(
                "its model_type is {}, and {} is needed here",
                found.map_or("missing".to_owned(), |found| format!("{found:?}")),
                expected.join(" or ")
            )));
        }
        let value = serde_json::from_value(value).map_err(|e| error(e.to_string()))?;
        Ok(Some(value))
    }

    /// Opens the weights of a model and its configuration: `config.json` if it exists, else derived from the tensors'
    /// shapes.
    ///
    /// # Errors
    /// If a file is missing or damaged, or belongs to another model.
    pub fn open_model<C: ModelConfig>(&self) -> Result<(Weights, C), CheckpointError> {
        const FILE: &str = "config.json";
        let unusable = |file: &str, reason| CheckpointError::Unusable {
            file: file.to_owned(),
            reason,
        };
        if let Some(config) = self.config::<C>(FILE, C::MODEL_TYPES)? {
            config
                .validate()
                .map_err(|reason| CheckpointError::Config {
                    file: self.describe(FILE),
                    reason,
                })?;
            let mut weights = self.open()?;
            weights.require(C::ARCHITECTURE)?;
            weights.described_by = FILE.to_owned();
            return Ok((weights, config));
        }
        let weights = self.open()?;
        weights.require(C::ARCHITECTURE)?;
        let config = C::of_weights(&weights)
            .and_then(|config| config.validate().map(|()| config))
            .map_err(|reason| unusable(&weights.file, reason))?;
        Ok((weights, config))
    }

    /// Opens the weights and detects their layout. Reads no tensor yet.
    ///
    /// # Errors
    /// If there are no weights, or they are damaged or of an unknown model.
    pub fn open(&self) -> Result<Weights, CheckpointError> {
        let (file, opened) = match self {
            Self::Embedded { .. } => {
                let bytes = self.embedded(WEIGHTS[0]).unwrap_or_default();
                (self.describe(WEIGHTS[0]), TensorFile::of_slice(bytes))
            }
            Self::File(path) => (path.display().to_string(), open_file(path)?),
            Self::Folder(folder) => {
                let path = weights_in(folder)?;
                (path.display().to_string(), open_file(&path)?)
            }
        };
        opened
            .and_then(|tensors| Weights::new(file.clone(), tensors))
            .map_err(|reason| CheckpointError::Unusable { file, reason })
    }

    /// Reads the file of weights from its start to its end, block by block: for a digest of it.
    ///
    /// # Errors
    /// If there is no file of weights, or it cannot be read.
    pub fn read_weights(&self, mut read: impl FnMut(&[u8])) -> Result<(), CheckpointError> {
        let path = match self {
            Self::Embedded { .. } => {
                read(self.embedded(WEIGHTS[0]).unwrap_or_default());
                return Ok(());
            }
            Self::File(path) => path.clone(),
            Self::Folder(folder) => weights_in(folder)?,
        };
        read_blocks(&path, read).map_err(|source| CheckpointError::Read {
            file: path.display().to_string(),
            source,
        })
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Folder(_) | Self::File(_) => None,
            Self::Embedded { files, .. } => files
                .iter()
                .find(|(name, _)| *name == file)
                .map(|(_, bytes)| *bytes),
        }
    }
}

fn read_blocks(path: &Path, mut read: impl FnMut(&[u8])) -> std::io::Result<()> {
    let mut file = std::fs::File::open(path)?;
    let mut block = vec![0; 1 << 18];
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(count) => read(&block[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens a file of weights. The outer error is a missing file, the inner one a damaged file.
fn open_file(path: &Path) -> Result<Result<TensorFile, String>, CheckpointError> {
    std::fs::File::open(path).map_err(|source| CheckpointError::Read {
        file: path.display().to_string(),
        source,
    })?;
    Ok(TensorFile::open(path))
}

/// The file of weights in a folder.
///
/// # Errors
/// If there is none, or there are several and none has a published name.
pub fn weights_in(folder: &Path) -> Result<PathBuf, CheckpointError> {
    let entries = std::fs::read_dir(folder).map_err(|source| CheckpointError::Read {
        file: folder.display().to_string(),
        source,
    })?;
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|file| folder.join(file).is_file())
        .collect();
    files.sort();
    let error = |reason: String| CheckpointError::Folder {
        folder: folder.display().to_string(),
        reason,
    };
    match weights_among(&files) {
        Ok(file) => Ok(folder.join(file)),
        Err(several) if several.is_empty() => Err(error(format!(
            "holds no weights: {} or another file that ends with .{} is missing",
            WEIGHTS[0],
            WEIGHT_ENDINGS.join(", .")
        ))),
        Err(several) => Err(error(format!(
            "holds several files of weights ({}): give the path of one",
            several.join(", ")
        ))),
    }
}

/// The file of weights among the file names of a folder or a repository: one with a published name, else the only
/// file with the first extension that occurs.
///
/// # Errors
/// All files of weights, if there are none or several.
pub fn weights_among(files: &[String]) -> Result<&str, Vec<&str>> {
    let published = |name: &&str| files.iter().any(|file| file == name);
    if let Some(name) = WEIGHTS.into_iter().find(published) {
        return Ok(name);
    }
    let mut all: Vec<&str> = vec![];
    for ending in WEIGHT_ENDINGS {
        let ends = |file: &&str| file.rsplit_once('.').is_some_and(|(_, e)| e == ending);
        let found: Vec<&str> = files.iter().map(String::as_str).filter(ends).collect();
        if let ([only], true) = (found.as_slice(), all.is_empty()) {
            return Ok(only);
        }
        all.extend(found);
    }
    Err(all)
}

/// The first line of an error, without candle's backtrace.
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

fn drop_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_a_repository() {
        let among = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            weights_among(&files).ok().map(str::to_owned)
        };
        let published = ["a.safetensors", "model.safetensors", "config.json"];
        assert_eq!(among(&published).as_deref(), Some("model.safetensors"));
        assert_eq!(among(&["README.md", "sam.pt"]).as_deref(), Some("sam.pt"));
        assert_eq!(among(&["a.safetensors", "b.safetensors"]), None);
        assert_eq!(among(&["README.md"]), None);
    }

    #[test]
    fn a_tensor_of_impossible_sizes_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sam.safetensors");
        let open = |size: u64| {
            // the file contains no data for this tensor
            let header = format!(
                r#"{{"vision_encoder.patch_embed.projection.weight":{{"dtype":"F32","shape":[0,{size}],"data_offsets":[0,0]}}}}"#
            );
            let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
            std::fs::write(&path, bytes).unwrap();
            Checkpoint::File(path.clone())
                .open()
                .map_err(|e| e.to_string())
        };
        open(768).unwrap();
        let error = open(1 << 63).unwrap_err();
        assert!(error.contains("[0, 9223372036854775808]"), "{error}");
    }
}
