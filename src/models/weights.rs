//! Checkpoint files to tensors.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

/// Where a checkpoint's files are.
#[derive(Debug, Clone)]
pub enum Checkpoint {
    /// A folder as published: `config.json`, `preprocessor_config.json`, `model.safetensors`, and for
    /// detectors `tokenizer.json`.
    Folder(PathBuf),
    /// Files compiled into the program.
    Embedded {
        /// What to call it in messages.
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
    /// A JSON file is not what it should be.
    #[error("{file} is not a usable configuration: {reason}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The tokenizer cannot be read.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The weights are damaged, incomplete, or of another model.
    #[error("{file} does not hold the model its config.json describes: {source}")]
    Weights {
        /// The file.
        file: String,
        /// The cause; names the tensor.
        source: candle_core::Error,
    },
}

impl Checkpoint {
    /// The file as it is called in messages.
    pub fn describe(&self, file: &str) -> String {
        match self {
            Self::Folder(folder) => folder.join(file).display().to_string(),
            Self::Embedded { name, .. } => format!("built-in {name}/{file}"),
        }
    }

    /// The bytes of a small file.
    ///
    /// # Errors
    /// [`CheckpointError::Read`] if it is not there.
    pub fn read(&self, file: &str) -> Result<Vec<u8>, CheckpointError> {
        let error = |source| CheckpointError::Read {
            file: self.describe(file),
            source,
        };
        match self {
            Self::Folder(folder) => std::fs::read(folder.join(file)).map_err(error),
            Self::Embedded { .. } => self
                .embedded(file)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| error(std::io::ErrorKind::NotFound.into())),
        }
    }

    /// A JSON file, after a look at its `model_type`, where `expected` names one.
    ///
    /// # Errors
    /// If it is missing, not JSON, of another model type, or a field does not fit.
    pub fn config<T: serde::de::DeserializeOwned>(
        &self,
        file: &str,
        expected: Option<&str>,
    ) -> Result<T, CheckpointError> {
        let bytes = self.read(file)?;
        let error = |reason: String| CheckpointError::Config {
            file: self.describe(file),
            reason,
        };
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?;
        let found = value.get("model_type").and_then(|v| v.as_str());
        if let Some(expected) = expected.filter(|expected| found != Some(expected)) {
            return Err(error(format!(
                "model_type is {found:?}, a checkpoint with {expected:?} is needed here"
            )));
        }
        serde_json::from_value(value).map_err(|e| error(e.to_string()))
    }

    /// `config.json` of a model of this type, if `validate` finds nothing wrong with it.
    ///
    /// # Errors
    /// See [`Checkpoint::config`]; what `validate` says names the file too.
    pub fn model_config<T: serde::de::DeserializeOwned>(
        &self,
        model_type: &str,
        validate: impl FnOnce(&T) -> Result<(), String>,
    ) -> Result<T, CheckpointError> {
        const FILE: &str = "config.json";
        let config = self.config(FILE, Some(model_type))?;
        validate(&config).map_err(|reason| CheckpointError::Config {
            file: self.describe(FILE),
            reason,
        })?;
        Ok(config)
    }

    /// The tensors of `model.safetensors`, converted to `dtype` as they are loaded, through `load`.
    ///
    /// # Errors
    /// If the file is missing, damaged or truncated, or `load` misses a tensor.
    pub fn load_weights<M>(
        &self,
        dtype: DType,
        device: &Device,
        load: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
    ) -> Result<M, CheckpointError> {
        const FILE: &str = "model.safetensors";
        let error = |source| CheckpointError::Weights {
            file: self.describe(FILE),
            source,
        };
        let vb = match self {
            Self::Folder(folder) => {
                let path = folder.join(FILE);
                // a missing file is told apart from a damaged one
                std::fs::File::open(&path).map_err(|source| CheckpointError::Read {
                    file: self.describe(FILE),
                    source,
                })?;
                map_safetensors(&path, dtype, device).map_err(error)?
            }
            Self::Embedded { .. } => {
                let bytes = self.embedded(FILE).unwrap_or_default();
                VarBuilder::from_slice_safetensors(bytes, dtype, device).map_err(error)?
            }
        };
        load(vb).map_err(error)
    }

    fn embedded(&self, file: &str) -> Option<&'static [u8]> {
        match self {
            Self::Folder(_) => None,
            Self::Embedded { files, .. } => files
                .iter()
                .find(|(name, _)| *name == file)
                .map(|(_, bytes)| *bytes),
        }
    }
}

#[allow(unsafe_code)]
fn map_safetensors(
    path: &Path,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<VarBuilder<'static>> {
    // SAFETY: the map is read while the model loads and not kept after; a file that is changed in
    // these seconds gives wrong weights, as it would for any reader.
    unsafe { VarBuilder::from_mmaped_safetensors(&[path], dtype, device) }
}
