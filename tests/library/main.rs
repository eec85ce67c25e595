//! The library as another program uses it: without the server, the hub and the command line.
//!
//! `cargo test --release --no-default-features --test library` runs these tests without any feature.

#![allow(clippy::unwrap_used)]

use groundling::candle_core::{DType, Device};
use groundling::detector::{DetectError, DetectionOptions, Detector, detections};
use groundling::geometry::{BoundingBox, Detection, ImageSize, Mask, Point, SegmentPrompt};
use groundling::image::RgbImage;
use groundling::models::weights::{Checkpoint, CheckpointError};
use groundling::prompt::Prompt;
use groundling::segmenter::Segmenter;

/// Where `examples/images/shapes.png` has its red circle, in pixels.
const RED_CIRCLE: BoundingBox = BoundingBox {
    x0: 415.0,
    y0: 286.0,
    x1: 595.0,
    y1: 466.0,
};

fn path(relative: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn shapes() -> RgbImage {
    let image = image::open(path("examples/images/shapes.png")).unwrap();
    image.into_rgb8()
}

fn checkpoint(role: &str) -> Checkpoint {
    Checkpoint::Folder(path("models/demo").join(role))
}

fn detector() -> Detector {
    Detector::load(&checkpoint("detector"), DType::F32, &Device::Cpu).unwrap()
}

fn segmenter() -> Segmenter {
    Segmenter::load(&checkpoint("segmenter"), DType::F32, &Device::Cpu).unwrap()
}

fn detect(prompt: &str) -> Vec<Detection> {
    let prompt = Prompt::parse(prompt).unwrap();
    let options = DetectionOptions::default();
    detector().detect(&shapes(), &prompt, &options).unwrap()
}

/// Share of a mask's pixels that lie in a box, and the box's share that they fill, both 0..1.
fn shares(mask: &Mask, inside: BoundingBox) -> (f32, f32) {
    let width = mask.size().width;
    let pixels = mask.pixels().enumerate().filter(|(_, is_set)| *is_set);
    let is_inside = |i: usize| {
        let (x, y) = ((i % width) as f32, (i / width) as f32);
        (inside.x0..inside.x1).contains(&x) && (inside.y0..inside.y1).contains(&y)
    };
    let count = pixels.filter(|(i, _)| is_inside(*i)).count() as f32;
    (count / mask.area() as f32, count / inside.area())
}

#[test]
fn a_prompt_finds_the_objects_that_it_names() {
    let found = detect("red circle");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].phrase.as_deref(), Some("red circle"));
    assert!(found[0].bounding_box.iou(RED_CIRCLE) > 0.9, "{found:?}");
    let both = detect("red circle. blue star.");
    let phrases: Vec<_> = both.iter().filter_map(|d| d.phrase.as_deref()).collect();
    assert!(phrases.contains(&"red circle") && phrases.contains(&"blue star"));
    let scores: Vec<f32> = both.iter().map(|d| d.score).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
}

#[test]
fn image_features_can_be_reused_for_other_prompts() {
    let (detector, image) = (detector(), shapes());
    let features = detector.encode_image(&image).unwrap();
    let options = DetectionOptions::default();
    for text in ["red circle", "blue star"] {
        let prompt = Prompt::parse(text).unwrap();
        let passes = detector.passes(&prompt).unwrap();
        let queries: Vec<_> = passes
            .iter()
            .map(|pass| {
                let text = detector.encode_text(&pass.caption).unwrap();
                detector.run_pass(&features, &text).unwrap()
            })
            .collect();
        let found = detections(passes.iter().zip(&queries), ImageSize::of(&image), &options);
        assert_eq!(found, detector.detect(&image, &prompt, &options).unwrap());
    }
}

#[test]
fn a_box_becomes_the_mask_of_its_object() {
    let segmenter = segmenter();
    let encoded = segmenter.encode(&shapes()).unwrap();
    let masks = segmenter.segment_boxes(&encoded, &[RED_CIRCLE]).unwrap();
    assert_eq!(masks.len(), 1);
    assert_eq!(masks[0].mask.size(), ImageSize::of(&shapes()));
    let (inside, filled) = shares(&masks[0].mask, RED_CIRCLE);
    // a circle fills pi/4 of its square
    assert!(
        inside > 0.98 && (filled - 0.785).abs() < 0.03,
        "{inside} {filled}"
    );
}

#[test]
fn a_click_becomes_the_mask_of_the_object_under_it() {
    let segmenter = segmenter();
    let encoded = segmenter.encode(&shapes()).unwrap();
    let click = SegmentPrompt {
        bounding_box: None,
        points: vec![Point {
            x: 505.0,
            y: 375.0,
            is_foreground: true,
        }],
    };
    let mask = segmenter.segment_prompt(&encoded, &click).unwrap();
    let (inside, filled) = shares(&mask.to_image_size().mask, RED_CIRCLE);
    assert!(inside > 0.95 && filled > 0.7, "{inside} {filled}");
}

#[test]
fn errors_name_what_is_wrong() {
    assert!(Prompt::parse(" . , ").is_err());
    let missing = Checkpoint::Folder(path("models/no-such-model"));
    let error = Detector::load(&missing, DType::F32, &Device::Cpu).unwrap_err();
    assert!(matches!(error, CheckpointError::Read { .. }), "{error:?}");
    assert!(error.to_string().contains("no-such-model"), "{error}");
    let wrong = Detector::load(&checkpoint("segmenter"), DType::F32, &Device::Cpu).unwrap_err();
    assert!(wrong.to_string().contains("segmenter"), "{wrong}");
    let long = Prompt::parse(&"word ".repeat(400)).unwrap();
    let options = DetectionOptions::default();
    let error = detector().detect(&shapes(), &long, &options).unwrap_err();
    assert!(
        matches!(error, DetectError::PromptTooLong { .. }),
        "{error}"
    );
}
