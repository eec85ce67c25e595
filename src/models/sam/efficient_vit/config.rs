//! The sizes of EfficientViT that its tensors do not show.

use serde::Deserialize;

use crate::models::weights::{DeriveConfigError, InvalidConfig, Weights, check_at_most};

/// A tensor that only EfficientViT has.
pub const SIGNATURE: &str = "vision_encoder.backbone.stages.0.op_list.0.conv.weight";

/// The epsilon of all norms (`sam_model_zoo.py`).
pub const NORM_EPS: f64 = 1e-6;

/// The sizes that the tensors do not show.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows, and columns, of the input in pixels: 512 in L0 to L2, 1024 in XL0 and XL1.
    pub image_size: usize,
    /// Channels of the image embedding.
    pub output_channels: usize,
}

impl Default for Config {
    /// EfficientViT-SAM-L0.
    fn default() -> Self {
        Self {
            image_size: 512,
            output_channels: 256,
        }
    }
}

impl Config {
    /// Derives the configuration: the XL models have six stages, and the L models five.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions.
    pub(in crate::models::sam) fn from_weights(
        weights: &Weights,
    ) -> Result<Self, DeriveConfigError> {
        let [output_channels] = weights.sizes("vision_encoder.norm.weight")?;
        let image_size = match weights.count("vision_encoder.backbone.stages") {
            0..=5 => 512,
            _ => 1024,
        };
        Ok(Self {
            image_size,
            output_channels,
        })
    }

    pub(in crate::models::sam) fn validate(&self) -> Result<(), InvalidConfig> {
        check_at_most("image_size", self.image_size, 8192)
    }
}
