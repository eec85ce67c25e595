//! The class head: logits of image tokens against text tokens.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;

/// `GroundingDinoContrastiveEmbedding`, which has no parameters, and `MMGroundingDinoContrastiveEmbedding`, which
/// divides by the square root of the width and adds a learned bias.
#[derive(Debug, Clone)]
pub struct ClassHead {
    /// The factor, and the bias, a single number; `None` for the parameter-free head.
    scaled: Option<(f64, Tensor)>,
}

impl ClassHead {
    /// Loads `bias` if the model has one. It is loaded from the first of `prefixes` that has it, because tied weights
    /// are stored under one name only.
    pub fn load(prefixes: &[VarBuilder], config: &Config) -> Result<Self> {
        if !config.is_mm() {
            return Ok(Self { scaled: None });
        }
        let with_bias = prefixes.iter().find(|vb| vb.contains_tensor("bias"));
        let Some(vb) = with_bias.or(prefixes.first()) else {
            candle_core::bail!("the class head has no tensor prefix")
        };
        let scale = 1.0 / (config.d_model as f64).sqrt();
        Ok(Self {
            scaled: Some((scale, vb.get((), "bias")?)),
        })
    }

    /// Queries `[B, Q, d]` and text `[B, T, d]` to logits `[B, Q, T]`. `text_bias` `[B, 1, T]` makes the logits of
    /// padding very negative.
    pub fn forward(&self, queries: &Tensor, text: &Tensor, text_bias: &Tensor) -> Result<Tensor> {
        let logits = queries.matmul(&text.transpose(1, 2)?)?;
        let logits = match &self.scaled {
            Some((scale, bias)) => (logits * *scale)?.broadcast_add(bias)?,
            None => logits,
        };
        logits.broadcast_add(text_bias)
    }
}
