//! The sizes of Hiera and its feature pyramid.

use candle_nn::Activation;
use serde::Deserialize;

use crate::models::weights::{
    DeriveConfigError, InvalidConfig, Weights, check_at_most, check_divides,
};

/// A tensor that only Hiera has.
pub const SIGNATURE: &str = "vision_encoder.backbone.patch_embed.projection.weight";

/// `Sam2VisionConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // the reference's own field names
pub struct Config {
    pub backbone_config: BackboneConfig,
    pub backbone_channel_list: Vec<usize>,
    pub fpn_hidden_size: usize,
    pub fpn_kernel_size: usize,
    pub fpn_top_down_levels: Vec<usize>,
    pub num_feature_levels: usize,
}

/// `Sam2HieraDetConfig`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct BackboneConfig {
    pub hidden_size: usize,
    pub num_channels: usize,
    pub image_size: [usize; 2],
    pub patch_kernel_size: [usize; 2],
    pub patch_stride: [usize; 2],
    pub patch_padding: [usize; 2],
    pub query_stride: [usize; 2],
    pub window_positional_embedding_background_size: [usize; 2],
    pub num_query_pool_stages: usize,
    pub blocks_per_stage: Vec<usize>,
    pub embed_dim_per_stage: Vec<usize>,
    pub num_attention_heads_per_stage: Vec<usize>,
    pub window_size_per_stage: Vec<usize>,
    pub global_attention_blocks: Vec<usize>,
    pub mlp_ratio: f64,
    pub hidden_act: Activation,
    pub layer_norm_eps: f64,
}

impl Default for Config {
    /// SAM 2.1 Hiera-tiny.
    fn default() -> Self {
        Self {
            backbone_config: BackboneConfig::default(),
            backbone_channel_list: vec![768, 384, 192, 96],
            fpn_hidden_size: 256,
            fpn_kernel_size: 1,
            fpn_top_down_levels: vec![2, 3],
            num_feature_levels: 3,
        }
    }
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            hidden_size: 96,
            num_channels: 3,
            image_size: [1024, 1024],
            patch_kernel_size: [7, 7],
            patch_stride: [4, 4],
            patch_padding: [3, 3],
            query_stride: [2, 2],
            window_positional_embedding_background_size: [7, 7],
            num_query_pool_stages: 3,
            blocks_per_stage: vec![1, 2, 7, 2],
            embed_dim_per_stage: vec![96, 192, 384, 768],
            num_attention_heads_per_stage: vec![1, 2, 4, 8],
            window_size_per_stage: vec![8, 4, 14, 7],
            global_attention_blocks: vec![5, 7, 9],
            mlp_ratio: 4.0,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
        }
    }
}

/// What no tensor of the published models shows: their number of blocks, the blocks with global attention, the heads
/// of the first stage, and the window sizes (`sam2/configs/sam2.1/*.yaml`).
struct PublishedModel {
    blocks: [usize; 4],
    global: [usize; 3],
    heads: usize,
    windows: [usize; 4],
}

/// Hiera-tiny, -small, -base+ and -large.
const PUBLISHED: [PublishedModel; 4] = [
    PublishedModel {
        blocks: [1, 2, 7, 2],
        global: [5, 7, 9],
        heads: 1,
        windows: [8, 4, 14, 7],
    },
    PublishedModel {
        blocks: [1, 2, 11, 2],
        global: [7, 10, 13],
        heads: 1,
        windows: [8, 4, 14, 7],
    },
    PublishedModel {
        blocks: [2, 3, 16, 3],
        global: [12, 16, 20],
        heads: 2,
        windows: [8, 4, 14, 7],
    },
    PublishedModel {
        blocks: [2, 6, 36, 4],
        global: [23, 33, 43],
        heads: 2,
        windows: [8, 4, 16, 8],
    },
];

impl Config {
    /// Rows, and columns, of the input in pixels.
    pub fn image_size(&self) -> usize {
        self.backbone_config.image_size[0]
    }

    /// Rows, and columns, of the maps of each stage.
    pub fn stage_grids(&self) -> Vec<usize> {
        let backbone = &self.backbone_config;
        let first = backbone.image_size[0] / backbone.patch_stride[0].max(1);
        let stages = 0..backbone.blocks_per_stage.len();
        stages
            .map(|stage| first >> stage.min(backbone.num_query_pool_stages))
            .collect()
    }

    /// Rows, and columns, of the image embedding: those of the third stage.
    pub fn grid(&self) -> usize {
        self.stage_grids().get(2).copied().unwrap_or(0)
    }

    /// Derives the configuration from the tensors' shapes, and the rest from the published model with the same number
    /// of blocks.
    ///
    /// # Errors
    /// If a tensor is missing or has another number of dimensions, or it is not one of the published models.
    pub(in crate::models::sam) fn from_weights(
        weights: &Weights,
    ) -> Result<Self, DeriveConfigError> {
        const BLOCKS: &str = "vision_encoder.backbone.blocks";
        let total = weights.count(BLOCKS);
        let published = PUBLISHED
            .iter()
            .find(|model| model.blocks.iter().sum::<usize>() == total);
        let published = published.ok_or(DeriveConfigError::Count {
            what: "blocks of Hiera",
            found: total,
            published: "12, 16, 24 or 48",
        })?;
        let [hidden_size, num_channels, ..] = weights.sizes::<4>(SIGNATURE)?;
        let [_, _, rows, columns] = weights.sizes("vision_encoder.backbone.pos_embed")?;
        let widths: Vec<usize> = (0..4).map(|stage| hidden_size << stage).collect();
        let heads = (0..4).map(|stage| published.heads << stage).collect();
        Ok(Self {
            backbone_channel_list: widths.iter().rev().copied().collect(),
            backbone_config: BackboneConfig {
                hidden_size,
                num_channels,
                window_positional_embedding_background_size: [rows, columns],
                blocks_per_stage: published.blocks.to_vec(),
                embed_dim_per_stage: widths,
                num_attention_heads_per_stage: heads,
                window_size_per_stage: published.windows.to_vec(),
                global_attention_blocks: published.global.to_vec(),
                ..BackboneConfig::default()
            },
            ..Self::default()
        })
    }

    pub(in crate::models::sam) fn validate(&self) -> Result<(), InvalidConfig> {
        let backbone = &self.backbone_config;
        let lists = [
            ("blocks_per_stage", backbone.blocks_per_stage.len()),
            ("embed_dim_per_stage", backbone.embed_dim_per_stage.len()),
            (
                "num_attention_heads_per_stage",
                backbone.num_attention_heads_per_stage.len(),
            ),
            (
                "window_size_per_stage",
                backbone.window_size_per_stage.len(),
            ),
            ("backbone_channel_list", self.backbone_channel_list.len()),
        ];
        for (field, stages) in lists {
            require(
                field,
                stages == 4,
                format!("{stages} values"),
                "only 4 stages are supported",
            )?;
        }
        for (field, [rows, columns]) in [
            ("image_size", backbone.image_size),
            ("patch_kernel_size", backbone.patch_kernel_size),
            ("patch_stride", backbone.patch_stride),
            ("patch_padding", backbone.patch_padding),
        ] {
            let value = format!("[{rows}, {columns}]");
            require(field, rows == columns, value, "both numbers must be equal")?;
        }
        let (kernel, padding) = (backbone.patch_kernel_size[0], backbone.patch_padding[0]);
        require(
            "patch_kernel_size, patch_padding",
            (kernel, padding) == (7, 3),
            format!("{kernel}, {padding}"),
            "only 7 and 3 are supported",
        )?;
        let query_stride = backbone.query_stride;
        require(
            "query_stride",
            query_stride == [2, 2],
            format!("{query_stride:?}"),
            "only [2, 2] is supported",
        )?;
        let levels = &self.fpn_top_down_levels;
        require(
            "fpn_top_down_levels",
            levels == &[2, 3],
            format!("{levels:?}"),
            "only [2, 3] is supported",
        )?;
        let levels = self.num_feature_levels;
        require(
            "num_feature_levels",
            levels == 3,
            levels.to_string(),
            "only 3 is supported",
        )?;
        let kernel = self.fpn_kernel_size;
        require(
            "fpn_kernel_size",
            kernel == 1,
            kernel.to_string(),
            "only 1 is supported",
        )?;
        let pools = backbone.num_query_pool_stages;
        require(
            "num_query_pool_stages",
            pools == 3,
            pools.to_string(),
            "only 3 is supported",
        )?;
        let widths: Vec<usize> = backbone.embed_dim_per_stage.iter().rev().copied().collect();
        require(
            "backbone_channel_list",
            widths == self.backbone_channel_list,
            format!("{:?}", self.backbone_channel_list),
            "it must be embed_dim_per_stage in reverse order",
        )?;
        check_divides("patch_stride", backbone.patch_stride[0], self.image_size())?;
        let grids = self.stage_grids();
        for (stage, grid) in grids.iter().enumerate() {
            check_at_most("blocks_per_stage", backbone.blocks_per_stage[stage], 256)?;
            check_divides(
                "num_attention_heads_per_stage",
                backbone.num_attention_heads_per_stage[stage],
                backbone.embed_dim_per_stage[stage],
            )?;
            // the queries of a window, and of the map, are pooled two by two before the next stage
            let window = backbone.window_size_per_stage[stage];
            let is_pooled = stage < 3;
            let is_even = window.is_multiple_of(2) && grid.is_multiple_of(2);
            require(
                "window_size_per_stage",
                window > 0 && (!is_pooled || is_even),
                format!("{window} on a map of {grid} rows"),
                "both must be even before a stage change",
            )?;
        }
        check_divides(
            "window_size_per_stage",
            backbone.window_size_per_stage[0],
            grids[0],
        )
    }
}

fn require(
    field: &str,
    holds: bool,
    value: String,
    requirement: &str,
) -> Result<(), InvalidConfig> {
    match holds {
        true => Ok(()),
        false => Err(InvalidConfig::new(field, value, requirement)),
    }
}
