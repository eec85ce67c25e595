//! Configurations of models: their source, and the checks that all of them share.

use std::fmt::Display;

use super::{Architecture, Weights};

/// The configuration of a model that can be loaded from a checkpoint.
pub trait ModelConfig: serde::de::DeserializeOwned {
    /// The required architecture of the weights.
    const ARCHITECTURE: Architecture;
    /// The accepted values of `model_type` in `config.json`.
    const MODEL_TYPES: &'static [&'static str];

    /// Derives the configuration from the tensors' shapes, for weights without a `config.json`.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions, or the shapes do not determine the configuration.
    fn from_weights(weights: &Weights) -> Result<Self, DeriveConfigError>;

    /// Checks that the model can be built from this configuration.
    ///
    /// # Errors
    /// The first field whose value is not supported.
    fn validate(&self) -> Result<(), InvalidConfig>;
}

/// A field of a configuration whose value is not supported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}={value}: {requirement}")]
pub struct InvalidConfig {
    field: String,
    value: String,
    requirement: String,
}

impl InvalidConfig {
    /// The field (or fields), its value, and the values that are supported, for example `"it must be at most 256"`.
    pub fn new(
        field: impl Into<String>,
        value: impl Display,
        requirement: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            requirement: requirement.into(),
        }
    }
}

/// Why a configuration cannot be derived from the tensors of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeriveConfigError {
    /// The file does not have this tensor.
    #[error("the tensor {0} is missing")]
    MissingTensor(String),
    /// A tensor has another number of dimensions.
    #[error("the tensor {name} has the shape {shape:?}, and {expected} dimensions are expected")]
    Dimensions {
        /// The tensor.
        name: String,
        /// Its sizes.
        shape: Vec<usize>,
        /// The expected number of dimensions.
        expected: usize,
    },
    /// A tensor does not have the width of the published models, so the number of attention heads is unknown.
    #[error(
        "its configuration cannot be derived from its tensors, because the width of {name} is {found} and not {published} as in published models: put its config.json beside it"
    )]
    Width {
        /// The tensor.
        name: String,
        /// Its last size; 0 if it is missing.
        found: usize,
        /// The width in published models.
        published: usize,
    },
    /// No published model has this number of layers, so what the shapes do not show is unknown.
    #[error(
        "its configuration cannot be derived from its tensors, because it has {found} {what} and not {published} as published models: put its config.json beside it"
    )]
    Count {
        /// What is counted.
        what: &'static str,
        /// The number in the file.
        found: usize,
        /// The numbers of published models.
        published: &'static str,
    },
}

/// Checks that `parts` divides `whole`; `name` names the parts.
///
/// # Errors
/// If it does not, or is 0.
pub(in crate::models) fn check_divides(
    name: &str,
    parts: usize,
    whole: usize,
) -> Result<(), InvalidConfig> {
    match parts > 0 && whole.is_multiple_of(parts) {
        true => Ok(()),
        false => Err(InvalidConfig::new(
            name,
            parts,
            format!("it must divide {whole}"),
        )),
    }
}

/// Checks a limit that is far beyond every published model. A larger value is a mistake, and would use up the memory.
///
/// # Errors
/// If the value exceeds the limit.
pub(in crate::models) fn check_at_most(
    name: &str,
    value: usize,
    limit: usize,
) -> Result<(), InvalidConfig> {
    match value <= limit {
        true => Ok(()),
        false => Err(InvalidConfig::new(
            name,
            value,
            format!("it must be at most {limit}"),
        )),
    }
}
