//! The same weights under their authors' names, in torch's files: the outputs must be equal bit by bit.

use candle_core::{DType, Device, Tensor};
use groundling::models::grounding_dino::{self, GroundingDino, TextTokens};
use groundling::models::sam::{self, Prompts, Sam};
use groundling::models::weights::{Checkpoint, ModelConfig, Weights};

use crate::compare::{Fixture, checkpoint, original_checkpoint};

/// A tiny model's published files, and a folder with its configuration and its original file.
fn checkpoints(model: &str) -> (tempfile::TempDir, [Checkpoint; 2]) {
    let (folder, original) = original_checkpoint(model);
    (folder, [checkpoint(model), original])
}

/// The outputs of both checkpoints.
fn outputs<C: ModelConfig>(
    model: &str,
    names: [&str; 2],
    run: impl Fn(Weights, &C) -> Vec<Tensor>,
) -> [Vec<Vec<f32>>; 2] {
    let (_folder, checkpoints) = checkpoints(model);
    let mut names = names.into_iter();
    checkpoints.map(|checkpoint| {
        let (weights, config) = checkpoint.open_model::<C>().unwrap();
        assert_eq!(Some(weights.layout().name), names.next());
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
        run(weights, &config).iter().map(numbers).collect()
    })
}

#[test]
fn grounding_dino_files_of_both_layouts_give_equal_outputs() {
    let fixture = Fixture::load("detector/plain/single");
    let pixels = fixture.get("pixel_values");
    let (_, _, height, width) = pixels.dims4().unwrap();
    let ids = fixture.integers("input_ids");
    let ids = ids.iter().map(|id| *id as u32).collect();
    let tokens = TextTokens::new(&[ids], &Device::Cpu).unwrap();
    let names = [
        "Grounding DINO in transformers' names",
        "Grounding DINO in its authors' names",
    ];
    let [published, original] = outputs(
        "detector/plain",
        names,
        |weights, config: &grounding_dino::Config| {
            let model = weights
                .load(DType::F32, &Device::Cpu, |vb| {
                    GroundingDino::load(vb, config)
                })
                .unwrap();
            let features = model.encode_image(&pixels, &[(height, width)]).unwrap();
            let output = {
                let text = model.encode_text(&tokens).unwrap();
                model.detect(&features, &text, &tokens).unwrap()
            };
            vec![output.logits, output.pred_boxes]
        },
    );
    assert!(published == original);
}

#[test]
fn segmenter_files_of_both_layouts_give_equal_outputs() {
    for (model, name) in [("plain", "SAM"), ("sam_hq", "SAM-HQ"), ("sam2", "SAM 2")] {
        let folder = format!("segmenter/{model}");
        let pixels = Fixture::load(&format!("{folder}/image")).get("pixel_values");
        let names = [
            &*format!("{name} in transformers' names"),
            &*format!("{name} in its authors' names"),
        ];
        let [published, original] = outputs(&folder, names, |weights, config: &sam::Config| {
            let model = weights
                .load(DType::F32, &Device::Cpu, |vb| Sam::load(vb, config))
                .unwrap();
            let embeddings = model.encode_image(&pixels).unwrap();
            let prompts = Prompts {
                boxes: Some(vec![[3.0, 5.0, 40.0, 50.0]]),
                ..Prompts::default()
            };
            let masks = model.predict_masks(&embeddings, &prompts, false).unwrap();
            let maps = embeddings.maps().cloned();
            maps.chain([masks.low_res_masks, masks.iou_scores])
                .collect()
        });
        assert!(published == original, "{model}");
    }
}
