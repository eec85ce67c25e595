//! Grounding DINO, stage by stage, compared with the reference.

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use groundling::models::bert::Bert;
use groundling::models::grounding_dino::config::Config;
use groundling::models::grounding_dino::decoder::{Decoder, DecoderInput};
use groundling::models::grounding_dino::deformable_attention::{DeformableAttention, Memory};
use groundling::models::grounding_dino::encoder::{Encoder, VisionFeatures};
use groundling::models::grounding_dino::fusion::FusionLayer;
use groundling::models::grounding_dino::input_projection::InputProjection;
use groundling::models::grounding_dino::pyramid::Pyramid;
use groundling::models::grounding_dino::query_selection::QuerySelection;
use groundling::models::grounding_dino::text_enhancer::TextEnhancerLayer;
use groundling::models::grounding_dino::{GroundingDino, TextTokens};
use groundling::models::swin::{self, Swin};

use crate::compare::{Fixture, checkpoint};

const CASES: [(&str, &str); 7] = [
    ("plain", "single"),
    ("plain", "batch"),
    ("plain", "truncated"),
    ("varied", "single"),
    ("varied", "batch"),
    ("mm", "single"),
    ("mm", "batch"),
];

/// Runs `test` on every case.
fn on_every_case(test: impl Fn(&Config, VarBuilder, &Case) -> Result<()>) {
    for (model, case) in CASES {
        let checkpoint = checkpoint(&format!("detector/{model}"));
        let (weights, config) = checkpoint.open_model::<Config>().unwrap();
        let case = Case::load(&format!("detector/{model}/{case}"), &config);
        weights
            .load(DType::F32, &Device::Cpu, |vb| test(&config, vb, &case))
            .unwrap();
    }
}

/// A fixture and what the model derives from its inputs.
struct Case {
    fixture: Fixture,
    pixel_values: Tensor,
    valid_sizes: Vec<(usize, usize)>,
    tokens: TextTokens,
    pyramid: Pyramid,
}

impl Case {
    fn load(name: &str, config: &Config) -> Self {
        let fixture = Fixture::load(name);
        let pixel_values = fixture.get("pixel_values");
        let (_, _, height, width) = pixel_values.dims4().unwrap();
        let valid_sizes = fixture.valid_sizes();
        let tokens = TextTokens::new(&fixture.captions(), &Device::Cpu).unwrap();
        let shapes: Vec<_> = (0..config.num_feature_levels)
            .map(|level| {
                let (_, _, h, w) = fixture.raw(&format!("source.{level}")).dims4().unwrap();
                (h, w)
            })
            .collect();
        let pyramid = Pyramid::new((height, width), &valid_sizes, &shapes);
        Self {
            fixture,
            pixel_values,
            valid_sizes,
            tokens,
            pyramid,
        }
    }

    /// The encoder's image input, computed from the reference's maps.
    fn vision_features(&self, config: &Config, vb: &VarBuilder) -> Result<VisionFeatures> {
        let device = &Device::Cpu;
        let d = config.d_model;
        let level_embed = vb.get((config.num_feature_levels, d), "model.level_embed")?;
        let mut sources = vec![];
        let mut level_positions = vec![];
        for (i, level) in self.pyramid.levels().iter().enumerate() {
            let source = self.fixture.get(&format!("source.{i}"));
            sources.push(source.flatten_from(2)?.transpose(1, 2)?);
            level_positions.push(level_embed.i(i)?.broadcast_as((level.tokens(), d))?);
        }
        let sines =
            self.pyramid
                .sine_positions(d, config.positional_embedding_temperature, device)?;
        Ok(VisionFeatures {
            hidden_states: Tensor::cat(&sources, 1)?,
            positions: sines.broadcast_add(&Tensor::cat(&level_positions, 0)?)?,
            token_mask: self.pyramid.token_mask(device)?,
            pyramid: self.pyramid.clone(),
        })
    }
}

#[test]
fn swin_maps_equal_the_reference() {
    on_every_case(|config, vb, case| {
        let vb = vb.pp("model.backbone.conv_encoder.model");
        let swin = Swin::load(vb, &config.backbone_config)?;
        for (i, map) in swin.forward(&case.pixel_values)?.iter().enumerate() {
            case.fixture
                .compare(&format!("swin.{i}"), &map.permute((0, 3, 1, 2))?);
        }
        Ok(())
    });
}

#[test]
fn text_tokens_and_bert_equal_the_reference() {
    on_every_case(|config, vb, case| {
        let (fixture, tokens) = (&case.fixture, &case.tokens);
        fixture.compare("input_ids", &tokens.input_ids);
        fixture.compare("attention_mask", &tokens.attention_mask);
        fixture.compare("position_ids", &tokens.position_ids);
        if fixture.has("text_self_attention_masks") {
            let visible = tokens.phrase_bias.squeeze(1)?.eq(0f32)?;
            fixture.compare("text_self_attention_masks", &visible);
        }
        let bert = Bert::load(vb.pp("model.text_backbone"), &config.text_config)?;
        let hidden_states = bert.forward(
            &tokens.input_ids,
            &tokens.input_ids.zeros_like()?,
            &tokens.position_ids,
            &tokens.phrase_bias,
        )?;
        fixture.compare("bert_last_hidden_state", &hidden_states);
        if fixture.has("text_projection") {
            let text = GroundingDino::load(vb, config)?.encode_text(tokens)?;
            fixture.compare("text_projection", &text);
        }
        Ok(())
    });
}

#[test]
fn levels_and_positions_equal_the_reference() {
    on_every_case(|config, vb, case| {
        let (fixture, device) = (&case.fixture, &Device::Cpu);
        let features =
            GroundingDino::load(vb, config)?.encode_image(&case.pixel_values, &case.valid_sizes)?;
        let sines = features.pyramid.sine_positions(
            config.d_model,
            config.positional_embedding_temperature,
            device,
        )?;
        let mask = features.pyramid.token_mask(device)?;
        let mut start = 0;
        for (i, level) in features.pyramid.levels().iter().enumerate() {
            let map = |flat: &Tensor| -> Result<Tensor> {
                flat.narrow(1, start, level.tokens())?
                    .transpose(1, 2)?
                    .reshape(((), flat.dim(2)?, level.height, level.width))
            };
            fixture.compare(&format!("source.{i}"), &map(&features.hidden_states)?);
            if fixture.has(&format!("position.{i}")) {
                fixture.compare(&format!("position.{i}"), &map(&sines)?);
            }
            if let Some(mask) = &mask {
                let mask = map(&mask.unsqueeze(2)?)?.squeeze(1)?;
                fixture.compare(&format!("source_mask.{i}"), &mask);
            }
            start += level.tokens();
        }
        if fixture.has("encoder.reference_points") {
            let points = features.pyramid.reference_points(device)?;
            fixture.compare("encoder.reference_points", &points);
        }
        if fixture.has("encoder.valid_ratios") {
            let ratios = features.pyramid.valid_ratios(device)?;
            fixture.compare("encoder.valid_ratios", &ratios);
        }
        if fixture.has("encoder.position_embeddings") {
            fixture.compare("encoder.position_embeddings", &features.positions);
        }
        Ok(())
    });
}

#[test]
fn encoder_blocks_equal_the_reference() {
    on_every_case(|config, vb, case| {
        let fixture = &case.fixture;
        for layer in 0..config.encoder_layers {
            let name = |key: &str| format!("encoder.{layer}.{key}");
            if !fixture.has(&name("fusion.vision_in")) {
                continue;
            }
            let vb = vb.pp("model.encoder.layers").pp(layer);
            let mask = case.pyramid.token_mask(&Device::Cpu)?;
            let (vision, text) = FusionLayer::load(vb.pp("fusion_layer"), config)?.forward(
                &fixture.get(&name("fusion.vision_in")),
                &fixture.get(&name("fusion.text_in")),
                mask.as_ref(),
                &case.tokens.padding_bias(DType::F32)?,
            )?;
            fixture.compare(&name("fusion.vision_out"), &vision);
            fixture.compare(&name("fusion.text_out"), &text);

            let enhanced = TextEnhancerLayer::load(vb.pp("text_enhancer_layer"), config)?.forward(
                &fixture.get(&name("text_enhancer.in")),
                &fixture.get("text_position_embeddings"),
                &case.tokens.phrase_bias,
            )?;
            fixture.compare(&name("text_enhancer.out"), &enhanced);

            let attention = DeformableAttention::load(
                vb.pp("deformable_layer.self_attn"),
                config,
                config.encoder_attention_heads,
                config.encoder_n_points,
            )?;
            let hidden_states = fixture.get(&name("deformable.hidden_states_in"));
            let attended = attention.forward(
                &(&hidden_states + fixture.get("encoder.position_embeddings"))?,
                &fixture.get("encoder.reference_points"),
                Memory {
                    hidden_states: &hidden_states,
                    token_mask: mask.as_ref(),
                    pyramid: &case.pyramid,
                },
            )?;
            fixture.compare(&name("deformable.out"), &attended);
        }
        Ok(())
    });
}

#[test]
fn the_encoder_equals_the_reference() {
    on_every_case(|config, vb, case| {
        let encoder = Encoder::load(vb.pp("model.encoder"), config)?;
        let text = GroundingDino::load(vb.clone(), config)?.encode_text(&case.tokens)?;
        let features = case.vision_features(config, &vb)?;
        let (vision, text) = encoder.forward(&features, &text, &case.tokens)?;
        case.fixture.compare("encoder.vision", &vision);
        case.fixture.compare("encoder.text", &text);
        Ok(())
    });
}

#[test]
fn query_selection_equals_the_reference() {
    on_every_case(|config, vb, case| {
        let fixture = &case.fixture;
        let (logits, _) = case.pyramid.proposals(&Device::Cpu)?;
        fixture.compare("proposals.output_proposals", &logits);
        let proposals = QuerySelection::load(vb.pp("model"), config)?.forward(
            &fixture.get("encoder.vision"),
            &fixture.get("encoder.text"),
            &case.tokens.padding_bias(DType::F32)?,
            &case.pyramid,
        )?;
        fixture.compare("proposals.topk", &proposals.indices);
        let points = candle_nn::ops::sigmoid(&proposals.coord_logits)?;
        fixture.compare("decoder.init_reference_points", &points);
        if fixture.has("proposals.object_query") {
            let theirs = fixture.get("proposals.object_query").i(0)?;
            let selected = theirs.index_select(&proposals.indices.i(0)?, 0)?;
            let difference = (proposals.object_queries.i(0)? - selected)?
                .abs()?
                .max_all()?;
            let difference = difference.to_scalar::<f32>()?;
            println!("proposals.object_query, selected tokens: difference {difference:.1e}");
            assert!(difference < 1e-4);
        }
        Ok(())
    });
}

#[test]
fn the_decoder_equals_the_reference() {
    on_every_case(|config, vb, case| {
        let fixture = &case.fixture;
        let d = config.d_model;
        let model = GroundingDino::load(vb.clone(), config)?;
        let decoder = Decoder::load(vb.pp("model.decoder"), config)?;
        let queries = vb.get(
            (config.num_queries, d),
            "model.query_position_embeddings.weight",
        )?;
        let vision = fixture.get("encoder.vision");
        let batch = vision.dim(0)?;
        let mask = case.pyramid.token_mask(&Device::Cpu)?;
        let output = decoder.forward(
            &queries.unsqueeze(0)?.repeat((batch, 1, 1))?,
            &fixture.get("decoder.init_reference_points"),
            DecoderInput {
                memory: Memory {
                    hidden_states: &vision,
                    token_mask: mask.as_ref(),
                    pyramid: &case.pyramid,
                },
                text: &fixture.get("encoder.text"),
                text_bias: &case.tokens.padding_bias(DType::F32)?,
            },
            model.box_heads(),
        )?;
        for (i, (hidden_states, points)) in output
            .hidden_states
            .iter()
            .zip(&output.reference_points)
            .enumerate()
        {
            fixture.compare(&format!("decoder.{i}.normed_hidden_states"), hidden_states);
            fixture.compare(&format!("decoder.{i}.reference_points"), points);
        }
        Ok(())
    });
}

#[test]
fn the_whole_model_equals_the_reference() {
    on_every_case(|config, vb, case| {
        let model = GroundingDino::load(vb, config)?;
        let features = model.encode_image(&case.pixel_values, &case.valid_sizes)?;
        let output = model.detect(&features, &model.encode_text(&case.tokens)?, &case.tokens)?;
        // our logits end with the text; the reference pads them to max_text_len
        let padding = config.max_text_len - output.logits.dim(D::Minus1)?;
        let (batch, queries, _) = output.logits.dims3()?;
        let padding = Tensor::full(f32::NEG_INFINITY, (batch, queries, padding), &Device::Cpu)?;
        let logits = Tensor::cat(&[&output.logits, &padding], 2)?;
        case.fixture.compare("logits", &logits);
        case.fixture.compare("pred_boxes", &output.pred_boxes);
        Ok(())
    });
}

#[test]
fn input_projection_with_wider_groups_equals_the_reference() {
    // in the tiny models, each of the group norm's 32 groups has one channel; here it has two
    let fixture = Fixture::load("detector/input_projection");
    let channels = fixture.raw("input").dim(1).unwrap();
    let config = Config {
        d_model: 64,
        num_feature_levels: 1,
        backbone_config: swin::Config {
            embed_dim: channels,
            depths: vec![1],
            num_heads: vec![1],
            out_indices: Some(vec![1]),
            ..swin::Config::default()
        },
        ..Config::default()
    };
    let tensors = ["0.weight", "0.bias", "1.weight", "1.bias"]
        .map(|name| (format!("0.{name}"), fixture.get(name)));
    let vb = VarBuilder::from_tensors(tensors.into(), DType::F32, &Device::Cpu);
    let projection = InputProjection::load(vb, &config).unwrap();
    let map = fixture.get("input").permute((0, 2, 3, 1)).unwrap();
    let levels = projection.forward(&[map]).unwrap();
    let level = levels[0].permute((0, 3, 1, 2)).unwrap();
    fixture.compare("output", &level);
}

#[test]
fn a_caption_alone_has_the_same_features_as_in_a_batch() {
    let mut compared = 0;
    for (model, case) in CASES {
        let checkpoint = checkpoint(&format!("detector/{model}"));
        let (weights, config) = checkpoint.open_model::<Config>().unwrap();
        let case = Case::load(&format!("detector/{model}/{case}"), &config);
        if case.valid_sizes.len() < 2 {
            continue;
        }
        let model = weights
            .load(DType::F32, &Device::Cpu, |vb| {
                GroundingDino::load(vb, &config)
            })
            .unwrap();
        compared += compare_captions(&model, &case).unwrap();
    }
    assert!(compared >= 2, "{compared} captions");
}

/// Encodes each caption of a batch alone; returns the number of captions that were compared.
fn compare_captions(model: &GroundingDino, case: &Case) -> Result<usize> {
    let together = model.encode_text(&case.tokens)?;
    let ids = case.tokens.input_ids.to_vec2::<u32>()?;
    let mask = case.tokens.attention_mask.to_vec2::<u32>()?;
    let mut compared = 0;
    for (i, (ids, mask)) in ids.iter().zip(&mask).enumerate() {
        let count = mask.iter().sum::<u32>() as usize;
        // Without padding, the last [SEP] ends no phrase (see text_mask.rs), so it is not compared. A caption that does
        // not end with a dot is skipped, because its last phrase would have no block.
        if ids[count - 2] != 1012 {
            continue;
        }
        let alone = TextTokens::new(&[ids[..count].to_vec()], &Device::Cpu)?;
        let alone = model.encode_text(&alone)?.narrow(1, 0, count - 1)?;
        let in_batch = together.narrow(0, i, 1)?.narrow(1, 0, count - 1)?;
        let difference = (alone - in_batch)?.abs()?.max_all()?.to_scalar::<f32>()?;
        println!("caption {i} alone: difference {difference:.1e}");
        assert!(difference < 1e-5, "caption {i}: {difference:e}");
        compared += 1;
    }
    Ok(compared)
}
