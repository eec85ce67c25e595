//! SAM, stage by stage, compared with the reference.

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use candle_nn::VarBuilder;
use groundling::models::sam::image_encoder::ImageEncoder;
use groundling::models::sam::{
    Config, Family, ImageEmbeddings, Masks, PointLabel, Prompts, Sam, tiny_vit,
};

use crate::compare::{Fixture, checkpoint, original_checkpoint, path};

/// SAM twice, and one model of each other family and image encoder.
const MODELS: [&str; 7] = [
    "plain",
    "varied",
    "sam_hq",
    "light_hq",
    "sam2",
    "efficientvit_sam",
    "efficientvit_sam_xl",
];
const CASES: [&str; 8] = [
    "box",
    "boxes",
    "box_multimask",
    "points",
    "objects",
    "points_box",
    "mask_box",
    "mask_points",
];

fn load(model: &str) -> (Sam, Fixture) {
    let folder = format!("segmenter/{model}");
    // some models have only their authors' file
    let (_folder, original) = original_checkpoint(&folder);
    let checkpoint = match path(&folder).join("model.safetensors").exists() {
        true => checkpoint(&folder),
        false => original,
    };
    let (weights, config) = checkpoint.open_model::<Config>().unwrap();
    let sam = weights
        .load(DType::F32, &Device::Cpu, |vb| Sam::load(vb, &config))
        .unwrap();
    (sam, Fixture::load(&format!("{folder}/image")))
}

/// The prompts of a case, in pixels of the model's input.
fn prompts(case: &Fixture) -> Prompts {
    let points = case.has("input_points").then(|| {
        let points = case.get("input_points").i(0).unwrap();
        let count = points.dim(1).unwrap();
        let labels = case.integers("input_labels");
        let points: Vec<Vec<Vec<f32>>> = points.to_vec3().unwrap();
        points
            .iter()
            .zip(labels.chunks(count))
            .map(|(points, labels)| {
                let label = |label: &i64| match label {
                    0 => PointLabel::Background,
                    1 => PointLabel::Foreground,
                    -10 => PointLabel::Padding,
                    other => panic!("unknown point label {other}"),
                };
                let points = points.iter().map(|p| (p[0], p[1]));
                points.zip(labels.iter().map(label)).collect()
            })
            .collect()
    });
    let boxes = case.has("input_boxes").then(|| {
        let boxes: Vec<Vec<f32>> = case.get("input_boxes").i(0).unwrap().to_vec2().unwrap();
        boxes.iter().map(|b| [b[0], b[1], b[2], b[3]]).collect()
    });
    let masks = case.has("input_masks").then(|| case.get("input_masks"));
    Prompts {
        points,
        boxes,
        masks,
    }
}

/// The reference's embeddings of the image of all cases.
fn embeddings(sam: &Sam, image: &Fixture) -> ImageEmbeddings {
    let fine = fine_maps(sam.config().family);
    let channels_last = |key: &&str| image.get(key).permute((0, 2, 3, 1)).unwrap();
    ImageEmbeddings {
        coarse: image.get("image_embeddings"),
        fine: fine
            .iter()
            .map(channels_last)
            .map(|map| map.contiguous().unwrap())
            .collect(),
    }
}

/// The keys of the finer maps of an image.
fn fine_maps(family: Family) -> &'static [&'static str] {
    match family {
        Family::Sam => &[],
        Family::SamHq => &["hq_features"],
        Family::Sam2 => &["high_res.0", "high_res.1"],
    }
}

#[test]
fn image_embeddings_and_positions_equal_the_reference() {
    for model in MODELS {
        let (sam, image) = load(model);
        let embeddings = sam.encode_image(&image.get("pixel_values")).unwrap();
        image.compare("image_embeddings", &embeddings.coarse);
        let fine = fine_maps(sam.config().family);
        assert_eq!(embeddings.fine.len(), fine.len(), "{model}");
        for (key, map) in fine.iter().zip(&embeddings.fine) {
            image.compare(key, &map.permute((0, 3, 1, 2)).unwrap());
        }
        if !image.has("image_wide_positional_embeddings") {
            continue;
        }
        let (_, cells, channels) = sam.image_positions().dims3().unwrap();
        let grid = (cells as f64).sqrt() as usize;
        let positions = sam
            .image_positions()
            .transpose(1, 2)
            .and_then(|p| p.reshape((1, channels, grid, grid)))
            .unwrap();
        image.compare("image_wide_positional_embeddings", &positions);
    }
}

#[test]
fn stages_of_hiera_and_efficient_vit_equal_the_reference() {
    for model in ["sam2", "efficientvit_sam", "efficientvit_sam_xl"] {
        let (sam, image) = load(model);
        let pixels = image.get("pixel_values");
        let (stages, is_channels_last) = match sam.image_encoder() {
            ImageEncoder::Hiera(hiera) => (hiera.stages(&pixels).unwrap(), true),
            ImageEncoder::EfficientVit(encoder) => (encoder.stages(&pixels).unwrap(), false),
            other => panic!("{model}: {other:?}"),
        };
        for (i, stage) in stages.into_iter().enumerate() {
            let stage = match is_channels_last {
                true => stage,
                false => stage.permute((0, 3, 1, 2)).unwrap(),
            };
            image.compare(&format!("vision.stage.{i}"), &stage);
        }
    }
}

#[test]
fn prompt_embeddings_and_masks_equal_the_reference() {
    for model in MODELS {
        let (sam, image) = load(model);
        for name in CASES {
            let case = Fixture::load(&format!("segmenter/{model}/{name}"));
            compare_case(&sam, &image, &case).unwrap();
        }
    }
}

fn compare_case(sam: &Sam, image: &Fixture, case: &Fixture) -> Result<()> {
    let embeddings = embeddings(sam, image);
    let prompts = prompts(case);
    let sparse = sam.embed_prompts(&prompts)?;
    case.compare("sparse_embeddings", &sparse.unsqueeze(0)?);
    let dense = sam.prompt_encoder().embed_masks(prompts.masks.as_ref())?;
    if case.has("dense_embeddings") {
        let theirs = case.raw("dense_embeddings").dims().to_vec();
        case.compare(
            "dense_embeddings",
            &dense.broadcast_as(theirs)?.contiguous()?,
        );
    }
    let (tokens, cells) = sam
        .mask_decoder()
        .transform(&embeddings.coarse, &sparse, &dense)?;
    case.compare("decoder.tokens_out", &tokens.unsqueeze(0)?);
    if case.has("decoder.image_out") {
        case.compare("decoder.image_out", &cells.unsqueeze(0)?);
    }
    let multimask = case.raw("low_res_masks").dim(2)? > 1;
    let mut masks = sam.predict_masks(&embeddings, &prompts, multimask)?;
    if sam.config().family == Family::SamHq {
        sort_by_score(&mut masks)?;
    }
    case.compare("low_res_masks", &masks.low_res_masks.unsqueeze(0)?);
    case.compare("iou_scores", &masks.iou_scores.unsqueeze(0)?);
    if let Some(scores) = &masks.object_scores {
        case.compare("object_score_logits", &scores.unsqueeze(0)?);
    }
    Ok(())
}

/// Sorts the masks of each prompt by descending score, as the reference of SAM-HQ does.
pub fn sort_by_score(masks: &mut Masks) -> Result<()> {
    let (scores, order) = masks.iou_scores.contiguous()?.sort_last_dim(false)?;
    let sorted = (0..order.dim(0)?)
        .map(|prompt| {
            masks
                .low_res_masks
                .get(prompt)?
                .index_select(&order.get(prompt)?, 0)
        })
        .collect::<Result<Vec<_>>>()?;
    masks.low_res_masks = Tensor::stack(&sorted, 0)?;
    masks.iou_scores = scores;
    Ok(())
}

#[test]
fn a_box_alone_gives_the_same_mask_as_among_others() {
    for model in MODELS {
        let (sam, image) = load(model);
        let embeddings = embeddings(&sam, &image);
        let case = Fixture::load(&format!("segmenter/{model}/boxes"));
        let boxes = prompts(&case).boxes.unwrap();
        let theirs: Tensor = case.get("low_res_masks").i(0).unwrap();
        for (i, one) in boxes.into_iter().enumerate() {
            let prompts = Prompts {
                boxes: Some(vec![one]),
                ..Prompts::default()
            };
            let masks = sam.predict_masks(&embeddings, &prompts, false).unwrap();
            let difference = (masks.low_res_masks - theirs.i(i..i + 1).unwrap())
                .and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>())
                .unwrap();
            println!("{model} box {i} alone: difference {difference:.1e}");
            assert!(difference < 1e-3);
        }
    }
}

#[test]
fn stages_of_mobile_sam_equal_the_reference() {
    let fixture = Fixture::load("segmenter/tiny_vit");
    let tensors = fixture
        .keys()
        .map(|k| (k.clone(), fixture.get(k)))
        .collect();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let config = |embed_dims: &[usize]| tiny_vit::Config {
        image_size: 64,
        embed_dims: embed_dims.to_vec(),
        depths: vec![2, 2, 0],
        num_heads: vec![1, 3],
        window_sizes: vec![0, 5],
        mbconv_expand_ratio: 4,
        output_channels: 256,
    };
    let channels_first = |xs: Tensor| xs.permute((0, 3, 1, 2)).unwrap();
    let tokens = |xs: Tensor| xs.flatten(1, 2).unwrap();

    let embed = tiny_vit::PatchEmbed::load(8, vb.pp("patch_embed")).unwrap();
    let embedded = embed.forward(&fixture.get("patch_embed.input")).unwrap();
    fixture.compare("patch_embed.output", &channels_first(embedded));

    let stage = |name: &str, number: usize, dims: &[usize], input: &Tensor| {
        let stage = tiny_vit::Stage::load(vb.pp(name), &config(dims), number).unwrap();
        tokens(stage.forward(&input.contiguous().unwrap()).unwrap())
    };
    let input = fixture.get("convolutions.input").permute((0, 2, 3, 1));
    let merged = stage("convolutions", 0, &[8, 12, 20], &input.unwrap());
    fixture.compare("convolutions.output", &merged);
    let input = fixture.get("attention.input").reshape((2, 9, 13, 12));
    let merged = stage("attention", 1, &[8, 12, 20, 28], &input.unwrap());
    fixture.compare("attention.output", &merged);
}
