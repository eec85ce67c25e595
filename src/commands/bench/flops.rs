//! The number of floating-point operations of each stage, from the model's configuration and the sizes of its inputs.
//!
//! The counts include the matrix products of the published architecture: linear layers, convolutions, attention and
//! sampling. A multiply-add counts as two operations. Norms, activations and softmax are not counted. The box head of
//! the query selection is counted only for the selected tokens, because only their boxes are used. Where the code
//! reorders products and needs fewer operations than published, a stage's rate still refers to the published number,
//! and can exceed the processor's peak.

use std::collections::HashMap;

use crate::geometry::ImageSize;
use crate::models::sam::config::ImageEncoderConfig;
use crate::models::{bert, grounding_dino, sam, swin};

/// Operations by stage name.
#[derive(Debug, Default)]
pub(super) struct Flops(HashMap<&'static str, u64>);

/// A linear layer on `rows` rows.
fn linear(rows: usize, input: usize, output: usize) -> u64 {
    2 * (rows * input * output) as u64
}

/// Both matrix products of attention, over all heads with a total width of `width`.
fn attention(queries: usize, keys: usize, width: usize) -> u64 {
    2 * linear(queries, width, keys)
}

/// Projections of queries, keys, values and the result, each `width` wide, and the attention itself.
fn multihead_attention(queries: usize, keys: usize, width: usize) -> u64 {
    2 * linear(queries, width, width)
        + 2 * linear(keys, width, width)
        + attention(queries, keys, width)
}

/// A perceptron with one hidden layer.
fn mlp(rows: usize, width: usize, hidden: usize) -> u64 {
    2 * linear(rows, width, hidden)
}

/// A 3x3 convolution with `cells` output positions.
fn conv3x3(cells: usize, input: usize, output: usize) -> u64 {
    linear(cells, 9 * input, output)
}

/// A depthwise 3x3 convolution.
fn depthwise3x3(cells: usize, channels: usize) -> u64 {
    linear(cells, 9, channels)
}

/// `(rows, columns)` of a feature map.
type Grid = (usize, usize);

fn cells((rows, columns): Grid) -> usize {
    rows * columns
}

fn halved((rows, columns): Grid) -> Grid {
    (rows.div_ceil(2), columns.div_ceil(2))
}

/// The number of tokens of a map that is padded to whole windows.
fn windowed((rows, columns): Grid, window: usize) -> usize {
    rows.next_multiple_of(window.max(1)) * columns.next_multiple_of(window.max(1))
}

impl Flops {
    /// The operations of a stage; `None` if they are unknown.
    pub(super) fn of(&self, stage: &str) -> Option<u64> {
        self.0.get(stage).copied().filter(|flops| *flops > 0)
    }

    fn add(&mut self, stage: &'static str, flops: u64) {
        *self.0.entry(stage).or_default() += flops;
    }

    /// Adds the detector on an image of size `input`; `tokens` has the number of tokens of each pass's caption.
    pub(super) fn add_detector(
        &mut self,
        config: &grounding_dino::Config,
        input: ImageSize,
        tokens: &[usize],
    ) {
        let (backbone, maps) = swin_flops(&config.backbone_config, input);
        let (projections, levels) = input_projection(config, &maps);
        self.add("detector.encode_image.swin", backbone);
        self.add("detector.encode_image.input_projection", projections);
        self.add("detector.encode_image", backbone + projections);
        let image: usize = levels.iter().map(|level| cells(*level)).sum();
        for text in tokens {
            self.add_pass(config, image, *text);
        }
    }

    /// Adds one pass: a caption of `text` tokens on an image of `image` tokens.
    fn add_pass(&mut self, config: &grounding_dino::Config, image: usize, text: usize) {
        let d = config.d_model;
        self.add("detector.text", bert_flops(&config.text_config, text));

        let width = config.encoder_ffn_dim / 2;
        let layers = config.encoder_layers as u64;
        // queries, values and outputs of both modalities; one attention map serves both directions
        let fusion =
            3 * (linear(image, d, width) + linear(text, d, width)) + 3 * linear(image, width, text);
        let enhancer = multihead_attention(text, text, d) + mlp(text, d, width);
        let deformable = deformable_attention(
            image,
            image,
            d,
            config.encoder_attention_heads,
            config.num_feature_levels * config.encoder_n_points,
        );
        let feed_forward = mlp(image, d, config.encoder_ffn_dim);
        self.add("detector.encoder.fusion", layers * fusion);
        self.add("detector.encoder.text_enhancer", layers * enhancer);
        self.add("detector.encoder.deformable_attention", layers * deformable);
        self.add(
            "detector.encoder",
            layers * (fusion + enhancer + deformable + feed_forward),
        );

        let queries = config.num_queries.min(image);
        let box_head = 2 * linear(queries, d, d) + linear(queries, d, 4);
        self.add(
            "detector.query_selection",
            linear(image, d, d) + linear(image, d, text) + box_head,
        );

        let layers = config.decoder_layers as u64;
        let deformable = deformable_attention(
            queries,
            image,
            d,
            config.decoder_attention_heads,
            config.num_feature_levels * config.decoder_n_points,
        );
        let layer = multihead_attention(queries, queries, d)
            + multihead_attention(queries, text, d)
            + deformable
            + mlp(queries, d, config.decoder_ffn_dim)
            // position embeddings of the boxes
            + linear(queries, config.query_dim / 2 * d, d)
            + linear(queries, d, d)
            + box_head;
        self.add("detector.decoder.deformable_attention", layers * deformable);
        self.add("detector.decoder", layers * layer);
    }

    /// Adds the segmenter on one image and this number of boxes.
    pub(super) fn add_segmenter(&mut self, config: &sam::Config, boxes: usize) {
        let encoder = match &config.image_encoder {
            ImageEncoderConfig::Vit(vit) => Some(vit_flops(vit)),
            ImageEncoderConfig::TinyVit(tiny_vit) => Some(tiny_vit_flops(tiny_vit)),
            ImageEncoderConfig::Hiera(hiera) => Some(hiera_flops(hiera)),
            // its sizes are only in its tensors
            ImageEncoderConfig::EfficientVit(_) => None,
        };
        if let Some(encoder) = encoder {
            self.add("segmenter.encode_image", encoder);
        }
        let image = config.grid().pow(2);
        let (transformer, upscaling) = mask_decoder(&config.mask_decoder, image);
        let boxes = boxes as u64;
        self.add("segmenter.masks.two_way_transformer", boxes * transformer);
        self.add("segmenter.masks", boxes * (transformer + upscaling));
    }
}

/// The operations of Swin on an image, and its output maps with their channels.
fn swin_flops(config: &swin::Config, input: ImageSize) -> (u64, Vec<(Grid, usize)>) {
    let patch = config.patch_size;
    let mut grid = (input.height.div_ceil(patch), input.width.div_ceil(patch));
    let pixels = config.num_channels * patch * patch;
    let mut flops = linear(cells(grid), pixels, config.embed_dim);
    // a loaded configuration is valid, so it has output stages
    let outputs = config.output_stages().unwrap_or_default();
    let mut maps = vec![];
    for (stage, depth) in (1..).zip(&config.depths) {
        let width = config.channels(stage);
        let window = config.window_size;
        let padded = windowed(grid, window);
        let hidden = (config.mlp_ratio * width as f64) as usize;
        let block = 4 * linear(padded, width, width)
            + attention(padded, window * window, width)
            + mlp(cells(grid), width, hidden);
        flops += *depth as u64 * block;
        if outputs.contains(&stage) {
            maps.push((grid, width));
        }
        if stage < config.depths.len() {
            grid = halved(grid);
            flops += linear(cells(grid), 4 * width, 2 * width);
        }
    }
    (flops, maps)
}

/// The operations of the maps' projections, and the resulting feature levels.
fn input_projection(config: &grounding_dino::Config, maps: &[(Grid, usize)]) -> (u64, Vec<Grid>) {
    let d = config.d_model;
    let mut flops = 0;
    let mut levels: Vec<Grid> = vec![];
    let mut last = ((0, 0), d);
    for level in 0..config.num_feature_levels {
        if let Some(map) = maps.get(level) {
            last = *map;
            flops += linear(cells(last.0), last.1, d);
        } else {
            let grid = halved(last.0);
            flops += conv3x3(cells(grid), last.1, d);
            last = (grid, d);
        }
        levels.push(last.0);
    }
    (flops, levels)
}

fn bert_flops(config: &bert::Config, tokens: usize) -> u64 {
    let width = config.hidden_size;
    let layer =
        multihead_attention(tokens, tokens, width) + mlp(tokens, width, config.intermediate_size);
    config.num_hidden_layers as u64 * layer
}

/// Multi-scale deformable attention: every query samples `samples` positions per head.
fn deformable_attention(
    queries: usize,
    values: usize,
    d: usize,
    heads: usize,
    samples: usize,
) -> u64 {
    let projections = linear(values, d, d) + linear(queries, d, d);
    let offsets_and_weights = linear(queries, d, 3 * heads * samples);
    // bilinear interpolation of four neighbours, then the weighted sum, per channel
    let sampling = linear(queries * samples, 4, d) + linear(queries, samples, d);
    projections + offsets_and_weights + sampling
}

fn neck(image: usize, input: usize, output: usize) -> u64 {
    linear(image, input, output) + conv3x3(image, output, output)
}

fn vit_flops(config: &sam::vit::Config) -> u64 {
    let (width, side) = (config.hidden_size, config.grid());
    let image = side * side;
    let hidden = config.mlp_dim;
    let hidden = hidden.unwrap_or((config.mlp_ratio * width as f64) as usize);
    let layer = |layer: usize| {
        let window = match config.global_attn_indexes.contains(&layer) || config.window_size == 0 {
            true => side,
            false => config.window_size,
        };
        let tokens = windowed((side, side), window);
        // products of each query with the row and the column embeddings
        let positions = match config.use_rel_pos {
            true => 2 * linear(tokens, width, window),
            false => 0,
        };
        4 * linear(tokens, width, width)
            + attention(tokens, window * window, width)
            + positions
            + mlp(image, width, hidden)
    };
    let patches = config.num_channels * config.patch_size.pow(2);
    linear(image, patches, width)
        + (0..config.num_hidden_layers).map(layer).sum::<u64>()
        + neck(image, width, config.output_channels)
}

fn tiny_vit_flops(config: &sam::tiny_vit::Config) -> u64 {
    let Some(first) = config.embed_dims.first() else {
        return 0;
    };
    let side = config.image_size;
    let half = (side / 2, side / 2);
    let mut grid = halved(half);
    let mut width = *first;
    let mut flops = conv3x3(cells(half), 3, width / 2) + conv3x3(cells(grid), width / 2, width);
    for (stage, depth) in config.depths.iter().enumerate() {
        let block = match stage {
            0 => {
                let hidden = config.mbconv_expand_ratio * width;
                mlp(cells(grid), width, hidden) + depthwise3x3(cells(grid), hidden)
            }
            _ => {
                let window = config.window_sizes[stage];
                let tokens = windowed(grid, window);
                4 * linear(tokens, width, width)
                    + attention(tokens, window * window, width)
                    + depthwise3x3(cells(grid), width)
                    + mlp(cells(grid), width, 4 * width)
            }
        };
        flops += *depth as u64 * block;
        if let Some(next) = config.embed_dims.get(stage + 1) {
            flops += linear(cells(grid), width, *next);
            // the last stage keeps the resolution
            if stage + 2 < config.embed_dims.len() {
                grid = halved(grid);
            }
            flops += depthwise3x3(cells(grid), *next) + linear(cells(grid), *next, *next);
            width = *next;
        }
    }
    flops + neck(cells(grid), width, config.output_channels)
}

/// Hiera, and the part of its feature pyramid that is computed.
fn hiera_flops(config: &sam::hiera::Config) -> u64 {
    let backbone = &config.backbone_config;
    let widths = &backbone.embed_dim_per_stage;
    let patch = backbone.num_channels * backbone.patch_kernel_size[0].pow(2);
    let sides = config.stage_grids();
    let mut flops = linear(sides[0] * sides[0], patch, widths[0]);
    let mut index = 0;
    for (stage, depth) in backbone.blocks_per_stage.iter().enumerate() {
        let (width, side) = (widths[stage], sides[stage]);
        for block in 0..*depth {
            // the first block of a stage has the map, the width and the windows of the stage before
            let before = if block == 0 {
                stage.saturating_sub(1)
            } else {
                stage
            };
            let (input, map) = (widths[before], sides[before]);
            let window = match backbone.global_attention_blocks.contains(&index) {
                true => map,
                false => backbone.window_size_per_stage[before],
            };
            let tokens = windowed((map, map), window);
            let queries = tokens * side * side / (map * map);
            flops += linear(tokens, input, 3 * width)
                + attention(queries, window * window, width)
                + linear(side * side, width, width)
                + mlp(
                    side * side,
                    width,
                    (backbone.mlp_ratio * width as f64) as usize,
                );
            if input != width {
                flops += linear(map * map, input, width);
            }
            index += 1;
        }
    }
    let width = config.fpn_hidden_size;
    let level = |stage: usize, output: usize| linear(sides[stage].pow(2), widths[stage], output);
    flops + level(0, width / 8) + level(1, width / 4) + level(2, width) + level(3, width)
}

/// The operations of the two-way transformer, and of the upscaling after it, for one box on a map of `image` tokens. What
/// SAM-HQ and SAM 2 add to SAM's mask decoder is not counted.
fn mask_decoder(config: &sam::config::MaskDecoderConfig, image: usize) -> (u64, u64) {
    let width = config.hidden_size;
    // the tokens: IoU, masks, and two corners
    let tokens = 1 + (config.num_multimask_outputs + 1) + 2;
    let cross = |rate: usize| {
        let inner = width / rate.max(1);
        2 * linear(tokens, width, inner)
            + 2 * linear(image, width, inner)
            + attention(tokens, image, inner)
    };
    let block = multihead_attention(tokens, tokens, width)
        + 2 * cross(2)
        + mlp(tokens, width, config.mlp_dim);
    let transformer =
        config.num_hidden_layers as u64 * block + cross(config.attention_downsample_rate);
    // two transposed convolutions of stride 2, and the product with the mask's weights
    let upscaling = linear(image, width, 4 * (width / 4))
        + linear(4 * image, width / 4, 4 * (width / 8))
        + linear(16 * image, width / 8, 1);
    (transformer, upscaling)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn giga(flops: Option<u64>) -> f64 {
        flops.unwrap() as f64 / 1e9
    }

    #[test]
    fn the_work_of_published_models_equals_known_values() {
        let mut flops = Flops::default();
        let input = ImageSize {
            height: 800,
            width: 1066,
        };
        flops.add_detector(&grounding_dino::Config::default(), input, &[8]);
        flops.add_segmenter(&sam::Config::default(), 1);
        let near = |stage: &str, expected: f64| {
            let found = giga(flops.of(stage));
            assert!(
                (found / expected - 1.0).abs() < 0.02,
                "{stage}: {found} GFLOP"
            );
        };
        // 6 layers: three projections of 17,821 tokens between 256 and 1,024 channels, and three products with 8 text
        // tokens
        near("detector.encoder.fusion", 173.4);
        near("segmenter.encode_image", 970.0);
        assert_eq!(flops.of("detector.preprocess"), None);
    }
}
