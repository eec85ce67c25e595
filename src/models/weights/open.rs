//! Opens a checkpoint: its configuration files, and its weights.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::checkpoint::{EMBEDDED_WEIGHTS, MODEL_CONFIG};
use super::tensor_file::TensorFile;
use super::{
    Checkpoint, CheckpointError, ConfigFileError, InvalidConfig, ModelConfig, PREPROCESSOR_CONFIG,
    UnusableWeights, Weights, weights_in,
};

impl Checkpoint {
    /// Opens a model, and reads its `preprocessor_config.json`, which is checked with `validate`.
    ///
    /// If the weights have no `config.json`, the preprocessor configuration may be missing too, and `P`'s default is
    /// used. With a `config.json`, it is required.
    ///
    /// # Errors
    /// See [`Checkpoint::open_model`] and [`Checkpoint::config`]; also if the preprocessor configuration is required
    /// but missing, or not supported.
    pub fn open_with_processor<C: ModelConfig, P: DeserializeOwned + Default>(
        &self,
        validate: impl FnOnce(&P) -> Result<(), InvalidConfig>,
    ) -> Result<(Weights, C, P), CheckpointError> {
        let (weights, config) = self.open_model::<C>()?;
        let processor = match self.config(PREPROCESSOR_CONFIG, &[])? {
            Some(processor) => processor,
            None if self.read(MODEL_CONFIG)?.is_none() => P::default(),
            None => return Err(self.missing_file(PREPROCESSOR_CONFIG)),
        };
        validate(&processor).map_err(|error| self.invalid(PREPROCESSOR_CONFIG, error))?;
        Ok((weights, config, processor))
    }

    /// Opens the weights of a model and its configuration: `config.json` if it exists, else derived from the tensors'
    /// shapes.
    ///
    /// # Errors
    /// If a file is missing or damaged, or belongs to another model.
    pub fn open_model<C: ModelConfig>(&self) -> Result<(Weights, C), CheckpointError> {
        if let Some(config) = self.config::<C>(MODEL_CONFIG, C::MODEL_TYPES)? {
            config
                .validate()
                .map_err(|error| self.invalid(MODEL_CONFIG, error))?;
            let mut weights = self.open()?;
            weights.require(C::ARCHITECTURE)?;
            weights.config_source = MODEL_CONFIG.to_owned();
            return Ok((weights, config));
        }
        let weights = self.open()?;
        weights.require(C::ARCHITECTURE)?;
        let derive = || -> Result<C, UnusableWeights> {
            let config = C::from_weights(&weights)?;
            config.validate()?;
            Ok(config)
        };
        let config = derive().map_err(|reason| CheckpointError::Unusable {
            file: weights.file.clone(),
            reason,
        })?;
        Ok((weights, config))
    }

    /// Reads a JSON file and, if `expected` is not empty, checks its `model_type`. `None` if the file does not exist.
    ///
    /// # Errors
    /// If it is not valid JSON, has another model type, or a field is invalid.
    pub fn config<T: DeserializeOwned>(
        &self,
        file: &str,
        expected: &[&str],
    ) -> Result<Option<T>, CheckpointError> {
        let Some(bytes) = self.read(file)? else {
            return Ok(None);
        };
        let invalid = |error: serde_json::Error| self.invalid(file, error);
        let mut value: serde_json::Value = serde_json::from_slice(&bytes).map_err(invalid)?;
        // in the reference, null is the same as a missing field
        remove_nulls(&mut value);
        let found = value.get("model_type").and_then(|v| v.as_str());
        let is_expected =
            expected.is_empty() || found.is_some_and(|found| expected.contains(&found));
        if !is_expected {
            let error = ConfigFileError::ModelType {
                found: found.map(str::to_owned),
                expected: expected.iter().map(|name| (*name).to_owned()).collect(),
            };
            return Err(self.invalid(file, error));
        }
        serde_json::from_value(value).map(Some).map_err(invalid)
    }

    /// Opens the weights and detects their layout. Reads no tensor yet.
    ///
    /// # Errors
    /// If there are no weights, or they are damaged or of an unknown model.
    pub fn open(&self) -> Result<Weights, CheckpointError> {
        let (file, opened) = match self {
            Self::Embedded { .. } => {
                let bytes = self.embedded(EMBEDDED_WEIGHTS).unwrap_or_default();
                (
                    self.describe(EMBEDDED_WEIGHTS),
                    TensorFile::from_slice(bytes),
                )
            }
            Self::File(path) => (path.display().to_string(), open_file(path)?),
            Self::Folder(folder) => {
                let path = weights_in(folder)?;
                (path.display().to_string(), open_file(&path)?)
            }
        };
        opened
            .and_then(|tensors| Weights::new(file.clone(), tensors))
            .map_err(|reason| CheckpointError::Unusable {
                file,
                reason: UnusableWeights::Content(reason),
            })
    }

    fn invalid(&self, file: &str, error: impl Into<ConfigFileError>) -> CheckpointError {
        CheckpointError::Config {
            file: self.describe(file),
            reason: error.into(),
        }
    }
}

/// Opens a file of weights. The outer error is a missing file, the inner one a damaged file.
fn open_file(path: &Path) -> Result<Result<TensorFile, String>, CheckpointError> {
    std::fs::File::open(path).map_err(|reason| CheckpointError::Read {
        file: path.display().to_string(),
        reason,
    })?;
    Ok(TensorFile::open(path))
}

fn remove_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_with_an_impossible_size_is_an_error() {
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
