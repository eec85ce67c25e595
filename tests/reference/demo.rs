//! The demo models end to end: pictures and prompts to detections and masks, against transformers
//! with the same weights.

use std::fs;

use candle_core::{DType, Device};
use groundling::checkpoints::{Role, demo};
use groundling::commands::selftest::demo::compare;
use groundling::commands::selftest::scenes::Scenes;
use groundling::detector::{DetectionOptions, Detector};
use groundling::geometry::{BoundingBox, Point, SegmentPrompt};
use groundling::media::decode;
use groundling::prompt::Prompt;
use groundling::segmenter::Segmenter;

use crate::compare::path;

#[test]
fn scenes_are_seen_as_by_the_reference() {
    let scenes = Scenes::read().unwrap();
    let found = compare(&scenes, &Device::Cpu).unwrap();
    let answers = scenes.scenes.iter().flat_map(|scene| {
        let answers = scene.detections.iter();
        answers.map(move |answer| (&scene.phrases, answer))
    });
    let sound = answers.filter(|(phrases, answer)| {
        // where the reference's label is a phrase, it is ours too
        let is_phrase = phrases.contains(&answer.label);
        assert!(!is_phrase || answer.phrase == answer.label);
        is_phrase
    });
    println!(
        "{} scenes, {} detections: boxes within {:.3} pixels, scores within {:.1e}, masks of IoU {:.5} or more, \
         their quality within {:.1e}; the reference's own label is a phrase of the prompt in {}",
        found.scenes,
        found.objects,
        found.boxes,
        found.scores,
        1.0 - found.masks,
        found.quality,
        sound.count()
    );
    assert_eq!(found.wrong, Vec::<String>::new());
    assert!(found.scenes >= 20 && found.objects >= 20);
    assert!(found.boxes <= 0.05 && found.scores <= 1e-4);
    assert!(found.masks <= 1e-3 && found.quality <= 1e-4);
}

#[test]
fn a_point_on_an_object_finds_it() {
    let file = path("../../examples/images/shapes.png");
    let image = decode(&fs::read(file).unwrap(), 1 << 24).unwrap();
    let device = &Device::Cpu;
    let segmenter = demo(Role::Segmenter);
    let segmenter = Segmenter::load(&segmenter, DType::F32, device).unwrap();
    let encoded = segmenter.encode(&image).unwrap();
    // the red circle: its box, its middle, and a place beside it that is off it
    let circle = BoundingBox {
        x0: 414.0,
        y0: 285.0,
        x1: 596.0,
        y1: 466.0,
    };
    let boxed = segmenter.segment_boxes(&encoded, &[circle]).unwrap();
    let point = |x, y, is_foreground| Point {
        x,
        y,
        is_foreground,
    };
    let prompt = SegmentPrompt {
        bounding_box: None,
        points: vec![point(505.0, 375.0, true), point(380.0, 250.0, false)],
    };
    let pointed = segmenter.segment_prompt(&encoded, &prompt).unwrap();
    let iou = pointed.to_image_size().mask.iou(&boxed[0].mask);
    println!("from points against from the box: IoU {iou:.3}");
    assert!(iou > 0.8, "{iou}");
}

/// Half of the bits: f16 as on a GPU, by the plain-tensor paths, and bf16 as on a CPU, where the weights are kept in
/// it. What is found stays found.
#[test]
fn half_precision_finds_the_same() {
    let bytes = std::fs::read(path("../../examples/images/shapes.png")).unwrap();
    let image = decode(&bytes, usize::MAX).unwrap();
    let prompt = Prompt::parse("red circle. blue star.").unwrap();
    let options = DetectionOptions::default();
    let run = |dtype| {
        let detector = Detector::load(&demo(Role::Detector), dtype, &Device::Cpu).unwrap();
        let found = detector.detect(&image, &prompt, &options).unwrap();
        let segmenter = Segmenter::load(&demo(Role::Segmenter), dtype, &Device::Cpu).unwrap();
        let encoded = segmenter.encode(&image).unwrap();
        let boxes: Vec<BoundingBox> = found.iter().map(|d| d.bounding_box).collect();
        let masks = segmenter.segment_boxes(&encoded, &boxes).unwrap();
        (found.clone(), masks)
    };
    let (exact, exact_masks) = run(DType::F32);
    assert_eq!(exact.len(), 2);
    for dtype in [DType::F16, DType::BF16] {
        let (found, masks) = run(dtype);
        assert_eq!(found.len(), exact.len(), "{dtype:?}");
        for (i, detection) in exact.iter().enumerate() {
            let same = found.iter().position(|d| d.phrase == detection.phrase);
            let same = same.unwrap_or_else(|| panic!("no {:?}", detection.phrase));
            let overlap = detection.bounding_box.iou(found[same].bounding_box);
            let (a, b) = (&exact_masks[i].mask, &masks[same].mask);
            let mask_overlap = a.iou(b);
            println!(
                "{dtype:?} {:?}: box {overlap:.4}, mask {mask_overlap:.4}",
                detection.phrase
            );
            assert_ne!(
                found[same].score, detection.score,
                "{dtype:?} changes numbers"
            );
            assert!(overlap > 0.95 && mask_overlap > 0.95);
        }
    }
}
