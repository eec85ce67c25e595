//! The demo models end to end: images and prompts to detections and masks, compared with transformers, which has the
//! same weights.

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
fn scenes_give_the_detections_and_masks_of_the_reference() {
    let scenes = Scenes::read().unwrap();
    let found = compare(&scenes, &Device::Cpu).unwrap();
    let detections = scenes.scenes.iter().flat_map(|scene| {
        let detections = scene.detections.iter();
        detections.map(move |detection| (&scene.phrases, detection))
    });
    let with_phrase = detections.filter(|(phrases, detection)| {
        // if the reference's label is a phrase, our phrase is the same
        let is_phrase = phrases.contains(&detection.label);
        assert!(!is_phrase || detection.phrase == detection.label);
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
        with_phrase.count()
    );
    assert_eq!(found.wrong, Vec::<String>::new());
    assert!(found.scenes >= 20 && found.objects >= 20);
    assert!(found.boxes <= 0.05 && found.scores <= 1e-4);
    assert!(found.masks <= 1e-3 && found.quality <= 1e-4);
}

#[test]
fn points_on_and_off_an_object_give_its_mask() {
    let file = path("../../examples/images/shapes.png");
    let image = decode(&fs::read(file).unwrap(), 1 << 24).unwrap();
    let device = &Device::Cpu;
    let segmenter = demo(Role::Segmenter).unwrap();
    let segmenter = Segmenter::load(&segmenter, DType::F32, device).unwrap();
    let encoded = segmenter.encode(&image).unwrap();
    // the red circle: its box, its centre, and a point beside it on the background
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
    println!("mask from points and mask from the box: IoU {iou:.3}");
    assert!(iou > 0.8, "{iou}");
}

/// f16 as on a GPU, in plain tensor operations, and bf16 as on a CPU, where the weights are stored in bf16.
#[test]
fn half_precision_finds_the_same_objects() {
    let bytes = std::fs::read(path("../../examples/images/shapes.png")).unwrap();
    let image = decode(&bytes, usize::MAX).unwrap();
    let prompt = Prompt::parse("red circle. blue star.").unwrap();
    let options = DetectionOptions::default();
    let run = |dtype| {
        let detector = Detector::load(&demo(Role::Detector).unwrap(), dtype, &Device::Cpu).unwrap();
        let found = detector.detect(&image, &prompt, &options).unwrap();
        let segmenter =
            Segmenter::load(&demo(Role::Segmenter).unwrap(), dtype, &Device::Cpu).unwrap();
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
            let same = same.unwrap_or_else(|| panic!("{:?} is not detected", detection.phrase));
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
