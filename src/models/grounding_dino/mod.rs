//! Grounding DINO, the detector (Liu et al. 2023, <https://arxiv.org/abs/2303.05499>), and MM-Grounding-DINO (Zhao et
//! al. 2024, <https://arxiv.org/abs/2401.02361>), which has different heads. LLMDet is MM-Grounding-DINO with other
//! weights.
//!
//! The image part ([`GroundingDino::encode_image`]: Swin, input projections, positions) does not depend on the
//! caption. [`GroundingDino::detect`] runs the other parts on its result: BERT, the feature enhancer, the query
//! selection and the decoder.

pub mod class_head;
pub mod config;
pub mod decoder;
pub mod deformable_attention;
pub mod encoder;
pub mod fusion;
mod geometry;
pub mod input_projection;
pub mod pyramid;
pub mod query_selection;
pub mod text_enhancer;
pub mod text_mask;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

pub use config::Config;
pub use encoder::VisionFeatures;
pub use text_mask::TextTokens;

use self::class_head::ClassHead;
use self::decoder::{Decoder, DecoderInput, inverse_sigmoid};
use self::deformable_attention::Memory;
use self::encoder::Encoder;
use self::geometry::{BatchSizes, Geometry, GeometryCache};
use self::input_projection::InputProjection;
use self::pyramid::Pyramid;
use self::query_selection::{Proposals, QuerySelection};
use crate::models::bert::Bert;
use crate::models::layers::{Linear, Mlp, MultiheadAttention, linear};
use crate::models::swin::Swin;
use crate::models::weights::ModelConfig;

/// `GroundingDinoForObjectDetection`.
#[derive(Debug, Clone)]
pub struct GroundingDino {
    backbone: Swin,
    input_projection: InputProjection,
    /// `[L, d]`: added to the positions of each level.
    level_embed: Tensor,
    text_backbone: Bert,
    text_projection: Linear,
    encoder: Encoder,
    query_selection: QuerySelection,
    /// `[Q, d]`; `None` if the features of the selected tokens are the queries.
    query_embeddings: Option<Tensor>,
    decoder: Decoder,
    /// One per decoder layer; published Grounding DINO models share one.
    box_heads: Vec<Mlp>,
    class_head: ClassHead,
    geometry_cache: GeometryCache,
    config: Config,
}

/// Image and text features after the feature enhancer.
#[derive(Debug, Clone)]
pub struct EnhancedFeatures {
    /// `[B, N, d]`: the image tokens.
    pub vision: Tensor,
    /// `[B, T, d]`
    pub text: Tensor,
    /// `[B, 1, T]`: 0, or very negative for padding.
    pub text_bias: Tensor,
}

/// Output of the last decoder layer, per query.
#[derive(Debug, Clone)]
pub struct Output {
    /// `[B, Q, T]`: the logit of each query for each text token; minus infinity for padding.
    pub logits: Tensor,
    /// `[B, Q, 4]`: boxes cxcywh, 0..1 of the unpadded image.
    pub pred_boxes: Tensor,
}

impl GroundingDino {
    /// Loads a checkpoint with the published tensor names (`model.*`, `bbox_embed.*`).
    ///
    /// # Errors
    /// If the configuration is not supported, or a tensor is missing or has another shape; the message names it.
    pub fn load(vb: VarBuilder, config: &Config) -> Result<Self> {
        config.validate().map_err(candle_core::Error::msg)?;
        let d = config.d_model;
        let vb_m = vb.pp("model");
        // tied weights are stored under one name only
        let vb_d = vb_m.pp("decoder");
        let prefixes = |head: &str, i: usize| [vb.pp(head).pp(i), vb_d.pp(head).pp(i)];
        let box_heads = (0..config.decoder_layers)
            .map(|i| {
                let i = if config.shares_box_head() { 0 } else { i };
                let [top_level, in_decoder] = prefixes("bbox_embed", i);
                let vb = match top_level.contains_tensor("layers.0.weight") {
                    false if in_decoder.contains_tensor("layers.0.weight") => in_decoder,
                    _ => top_level,
                };
                Mlp::load(&[d, d, d, 4], vb)
            })
            .collect::<Result<_>>()?;
        let last = config.decoder_layers.saturating_sub(1);
        let class_head = ClassHead::load(&prefixes("class_embed", last), config)?;
        let query_embeddings = if config.embedding_init_target {
            Some(vb_m.get((config.num_queries, d), "query_position_embeddings.weight")?)
        } else {
            None
        };
        Ok(Self {
            backbone: Swin::load(
                vb_m.pp("backbone.conv_encoder.model"),
                &config.backbone_config,
            )?,
            input_projection: InputProjection::load(vb_m.pp("input_proj_vision"), config)?,
            level_embed: vb_m.get((config.num_feature_levels, d), "level_embed")?,
            text_backbone: Bert::load(vb_m.pp("text_backbone"), &config.text_config)?,
            text_projection: linear(
                config.text_config.hidden_size,
                d,
                vb_m.pp("text_projection"),
            )?,
            encoder: Encoder::load(vb_m.pp("encoder"), config)?,
            query_selection: QuerySelection::load(vb_m.clone(), config)?,
            query_embeddings,
            decoder: Decoder::load(vb_m.pp("decoder"), config)?,
            box_heads,
            class_head,
            geometry_cache: GeometryCache::default(),
            config: config.clone(),
        })
    }

    /// The configuration that the model was loaded with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The image features for [`GroundingDino::detect`]. The inputs are normalised pixels `[B, 3, H, W]`, padded at
    /// the bottom and the right, and the `(height, width)` of each image inside them.
    pub fn encode_image(
        &self,
        pixel_values: &Tensor,
        valid_sizes: &[(usize, usize)],
    ) -> Result<VisionFeatures> {
        let (batch, _, height, width) = pixel_values.dims4()?;
        if valid_sizes.len() != batch {
            candle_core::bail!(
                "there are {batch} images, but {} image sizes",
                valid_sizes.len()
            )
        }
        let device = pixel_values.device();
        let maps = self.backbone.forward(pixel_values)?;
        let sources = self.input_projection.forward(&maps)?;
        let shapes = sources
            .iter()
            .map(|map| map.dims4().map(|(_, height, width, _)| (height, width)))
            .collect::<Result<Vec<_>>>()?;
        let flattened = sources
            .iter()
            .map(|map| map.flatten(1, 2))
            .collect::<Result<Vec<_>>>()?;
        let sizes = BatchSizes {
            padded: (height, width),
            valid: valid_sizes.to_vec(),
            maps: shapes,
        };
        let geometry = self
            .geometry_cache
            .get(sizes, |sizes| self.geometry(sizes, device))?;
        Ok(VisionFeatures {
            hidden_states: Tensor::cat(&flattened, 1)?,
            positions: geometry.positions,
            token_mask: geometry.token_mask,
            pyramid: geometry.pyramid,
        })
    }

    fn geometry(&self, sizes: &BatchSizes, device: &Device) -> Result<Geometry> {
        let pyramid = Pyramid::new(sizes.padded, &sizes.valid, &sizes.maps);
        let d = self.config.d_model;
        let temperature = self.config.positional_embedding_temperature;
        let sines = pyramid.sine_positions(d, temperature, device)?;
        let level_positions = pyramid
            .levels()
            .iter()
            .enumerate()
            .map(|(i, level)| {
                self.level_embed
                    .narrow(0, i, 1)?
                    .broadcast_as((level.tokens(), d))
            })
            .collect::<Result<Vec<_>>>()?;
        let level_positions = Tensor::cat(&level_positions, 0)?;
        Ok(Geometry {
            positions: sines
                .to_dtype(self.level_embed.dtype())?
                .broadcast_add(&level_positions)?,
            token_mask: pyramid.token_mask(device)?,
            pyramid,
        })
    }

    /// Runs BERT and projects its output, to `[B, T, d]`.
    pub fn encode_text(&self, tokens: &TextTokens) -> Result<Tensor> {
        let dtype = self.level_embed.dtype();
        let token_types = tokens.input_ids.zeros_like()?;
        let bias = tokens.phrase_bias.to_dtype(dtype)?;
        self.text_backbone
            .forward(&tokens.input_ids, &token_types, &tokens.position_ids, &bias)?
            .apply(&self.text_projection)
    }

    /// Detects the objects that the captions name. There is one caption per image of `features`; `text` is the output
    /// of [`GroundingDino::encode_text`].
    ///
    /// # Errors
    /// If a caption is longer than `max_text_len` tokens, or the number of captions is not the number of images.
    pub fn detect(
        &self,
        features: &VisionFeatures,
        text: &Tensor,
        tokens: &TextTokens,
    ) -> Result<Output> {
        let enhanced = self.enhance(features, text, tokens)?;
        let EnhancedFeatures {
            vision,
            text,
            text_bias,
        } = &enhanced;
        let proposals = self
            .query_selection
            .forward(vision, text, text_bias, &features.pyramid)?;
        self.decode(features, &enhanced, proposals)
    }

    /// Runs the feature enhancer: image and text attend to each other.
    ///
    /// # Errors
    /// As [`GroundingDino::detect`].
    pub fn enhance(
        &self,
        features: &VisionFeatures,
        text: &Tensor,
        tokens: &TextTokens,
    ) -> Result<EnhancedFeatures> {
        let (captions, length) = tokens.input_ids.dims2()?;
        let batch = features.hidden_states.dim(0)?;
        if captions != batch {
            candle_core::bail!("there are {batch} images, but {captions} captions")
        }
        if length > self.config.max_text_len {
            let limit = self.config.max_text_len;
            candle_core::bail!("the caption has {length} tokens, more than max_text_len={limit}")
        }
        let text_bias = tokens.padding_bias(text.dtype())?;
        let (vision, text) = self.encoder.forward(features, text, tokens)?;
        Ok(EnhancedFeatures {
            vision,
            text,
            text_bias,
        })
    }

    /// The box heads, one per decoder layer.
    pub fn box_heads(&self) -> &[Mlp] {
        &self.box_heads
    }

    /// The query selection, the first stage of the two-stage model.
    pub fn query_selection(&self) -> &QuerySelection {
        &self.query_selection
    }

    /// Runs the decoder on the selected queries, and its heads.
    pub fn decode(
        &self,
        features: &VisionFeatures,
        enhanced: &EnhancedFeatures,
        proposals: Proposals,
    ) -> Result<Output> {
        let EnhancedFeatures {
            vision,
            text,
            text_bias,
        } = enhanced;
        let pyramid = &features.pyramid;
        let batch = features.hidden_states.dim(0)?;
        let reference_points = candle_nn::ops::sigmoid(&proposals.coord_logits)?;
        let queries = match &self.query_embeddings {
            Some(embeddings) => {
                let (_, count, d) = proposals.object_queries.dims3()?;
                let embeddings = embeddings.narrow(0, 0, count)?.unsqueeze(0)?;
                embeddings.broadcast_as((batch, count, d))?.contiguous()?
            }
            None => proposals.object_queries,
        };
        let input = DecoderInput {
            memory: Memory {
                hidden_states: vision,
                token_mask: features.token_mask.as_ref(),
                pyramid,
            },
            text,
            text_bias,
        };
        let decoded = self
            .decoder
            .forward(&queries, &reference_points, input, &self.box_heads)?;

        let last = decoded.hidden_states.len().checked_sub(1);
        let (Some(last), Some(box_head)) = (last, self.box_heads.last()) else {
            candle_core::bail!("the decoder has no layers: decoder_layers=0")
        };
        let hidden_states = &decoded.hidden_states[last];
        let previous = match last {
            0 => &reference_points,
            _ => &decoded.reference_points[last - 1],
        };
        let delta = box_head.forward(hidden_states)?.to_dtype(DType::F32)?;
        Ok(Output {
            logits: self
                .class_head
                .forward(hidden_states, text, text_bias)?
                .to_dtype(DType::F32)?,
            pred_boxes: candle_nn::ops::sigmoid(&(delta + inverse_sigmoid(previous)?)?)?,
        })
    }
}

/// `GroundingDinoMultiheadAttention`, with projections of equal width.
fn multihead_attention(vb: VarBuilder, width: usize, heads: usize) -> Result<MultiheadAttention> {
    let project = |name: &str| linear(width, width, vb.pp(name));
    Ok(MultiheadAttention::new(
        project("query")?,
        project("key")?,
        project("value")?,
        project("out_proj")?,
        heads,
    ))
}
