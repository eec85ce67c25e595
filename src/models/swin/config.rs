//! `backbone_config` of a Grounding DINO checkpoint.

use candle_nn::Activation;
use serde::Deserialize;

use crate::models::weights::{DeriveConfigError, InvalidConfig, Weights};

/// `SwinConfig`, with the reference's defaults. `image_size` is not read, because the weights do not depend on it:
/// any image size works.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
    pub patch_size: usize,
    pub num_channels: usize,
    pub embed_dim: usize,
    pub depths: Vec<usize>,
    pub num_heads: Vec<usize>,
    pub window_size: usize,
    pub mlp_ratio: f64,
    pub qkv_bias: bool,
    pub hidden_act: Activation,
    pub use_absolute_embeddings: bool,
    pub layer_norm_eps: f64,
    pub out_features: Option<Vec<String>>,
    pub out_indices: Option<Vec<i64>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            patch_size: 4,
            num_channels: 3,
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            num_heads: vec![3, 6, 12, 24],
            window_size: 7,
            mlp_ratio: 4.0,
            qkv_bias: true,
            hidden_act: Activation::Gelu,
            use_absolute_embeddings: false,
            layer_norm_eps: 1e-5,
            out_features: None,
            out_indices: None,
        }
    }
}

impl Config {
    /// Derives the configuration from the shapes of the tensors under `prefix`.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions.
    pub fn from_weights(weights: &Weights, prefix: &str) -> Result<Self, DeriveConfigError> {
        let projection = format!("{prefix}.embeddings.patch_embeddings.projection.weight");
        let [embed_dim, num_channels, patch_size, _] = weights.sizes(&projection)?;
        let stages = weights.count(&format!("{prefix}.encoder.layers"));
        let stage = |i: usize| format!("{prefix}.encoder.layers.{i}.blocks");
        let bias_table = |i: usize| -> Result<[usize; 2], DeriveConfigError> {
            let attention = format!("{}.0.attention.self", stage(i));
            weights.sizes(&format!("{attention}.relative_position_bias_table"))
        };
        let [offsets, _] = bias_table(0)?;
        let [hidden, _] = weights.sizes(&format!("{}.0.intermediate.dense.weight", stage(0)))?;
        let is_output = |stage: &usize| {
            let norm = format!("{prefix}.hidden_states_norms.stage{stage}.weight");
            weights.shape(&norm).is_some()
        };
        let query_bias = format!("{}.0.attention.self.query.bias", stage(0));
        Ok(Self {
            patch_size,
            num_channels,
            embed_dim,
            depths: (0..stages).map(|i| weights.count(&stage(i))).collect(),
            num_heads: (0..stages)
                .map(|i| bias_table(i).map(|[_, heads]| heads))
                .collect::<Result<_, _>>()?,
            // a table has (2 w - 1)^2 rows for a window of w x w tokens
            window_size: offsets.isqrt().div_ceil(2),
            mlp_ratio: hidden as f64 / embed_dim.max(1) as f64,
            qkv_bias: weights.shape(&query_bias).is_some(),
            out_indices: Some((1..=stages).filter(is_output).map(|i| i as i64).collect()),
            ..Self::default()
        })
    }

    /// The stages whose maps are outputs, counted from 1, in order.
    ///
    /// # Errors
    /// If a name or index is not a stage, or the length of a per-stage list is not that of `depths`.
    pub fn output_stages(&self) -> Result<Vec<usize>, InvalidConfig> {
        let stages = self.depths.len();
        if self.num_heads.len() != stages {
            return Err(InvalidConfig::new(
                "num_heads",
                format!("{:?}", self.num_heads),
                format!("it must have one number for each of the {stages} stages in depths"),
            ));
        }
        let chosen: Vec<i64> = match (&self.out_features, &self.out_indices) {
            (_, Some(indices)) => indices.clone(),
            (Some(names), None) => names
                .iter()
                .map(|name| {
                    name.strip_prefix("stage")
                        .and_then(|number| number.parse().ok())
                        .ok_or_else(|| {
                            InvalidConfig::new(
                                "out_features",
                                name,
                                "its names must be stage1, stage2, ...",
                            )
                        })
                })
                .collect::<Result<_, _>>()?,
            (None, None) => vec![stages as i64],
        };
        chosen
            .into_iter()
            .map(|index| {
                // Python's negative indices count from the end of [stem, stage1, ...]
                let stage = if index < 0 {
                    index + stages as i64 + 1
                } else {
                    index
                };
                usize::try_from(stage)
                    .ok()
                    .filter(|stage| (1..=stages).contains(stage))
                    .ok_or_else(|| {
                        let requirement = format!("it must be a stage from 1 to {stages}");
                        InvalidConfig::new("out_indices", index, requirement)
                    })
            })
            .collect()
    }

    /// Number of channels of stage `stage`, counted from 1.
    pub fn channels(&self, stage: usize) -> usize {
        self.embed_dim << (stage - 1)
    }
}
