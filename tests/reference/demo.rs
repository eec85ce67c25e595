//! The demo models end to end: pictures and prompts to detections and masks, against transformers
//! with the same weights.

use std::fs;

use candle_core::{DType, Device};
use groundling::checkpoints::{Role, demo};
use groundling::detector::{DetectionOptions, Detector};
use groundling::geometry::{BoundingBox, ImageSize, Mark, Mask, Point};
use groundling::media::decode;
use groundling::prompt::Prompt;
use groundling::segmenter::Segmenter;
use serde::Deserialize;

use crate::compare::path;

#[derive(Deserialize)]
struct Expected {
    box_threshold: f32,
    text_threshold: f32,
    scenes: Vec<Scene>,
}

#[derive(Deserialize)]
struct Scene {
    image: String,
    prompt: String,
    phrases: Vec<String>,
    detections: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(rename = "box")]
    bounding_box: [f32; 4],
    score: f32,
    /// What the reference strings together from single tokens.
    label: String,
    phrase: String,
    iou_score: f32,
    mask: Rle,
}

#[derive(Deserialize)]
struct Rle {
    size: [usize; 2],
    counts: String,
}

/// COCO's compressed RLE, decoded by its description and not by our encoder.
fn decode_rle(rle: &Rle) -> Mask {
    let mut runs: Vec<i64> = vec![];
    let mut characters = rle.counts.bytes().map(|c| i64::from(c) - 48);
    while let Some(mut c) = characters.next() {
        let (mut value, mut shift) = (c & 0x1f, 5);
        while c & 0x20 != 0 {
            c = characters.next().unwrap();
            value |= (c & 0x1f) << shift;
            shift += 5;
        }
        if c & 0x10 != 0 {
            value |= -1 << shift;
        }
        if runs.len() > 2 {
            value += runs[runs.len() - 2];
        }
        runs.push(value);
    }
    let columns: Vec<bool> = runs
        .iter()
        .enumerate()
        .flat_map(|(i, run)| std::iter::repeat_n(i % 2 == 1, *run as usize))
        .collect();
    let [height, width] = rle.size;
    let rows = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
    Mask::from_pixels(
        ImageSize { height, width },
        rows.map(|(y, x)| columns[x * height + y]),
    )
}

#[test]
fn scenes_are_seen_as_by_the_reference() {
    let text = fs::read(path("demo/expected.json")).unwrap();
    let expected: Expected = serde_json::from_slice(&text).unwrap();
    assert!(expected.scenes.len() >= 20);
    let device = &Device::Cpu;
    let detector = demo(Role::Detector);
    let detector = Detector::load(&detector, DType::F32, device).unwrap();
    let segmenter = demo(Role::Segmenter);
    let segmenter = Segmenter::load(&segmenter, DType::F32, device).unwrap();
    let options = DetectionOptions {
        box_threshold: expected.box_threshold,
        text_threshold: expected.text_threshold,
        // the reference suppresses nothing
        nms_iou: 1.0,
        max_detections: None,
    };

    let (mut worst_box, mut worst_score, mut worst_mask, mut worst_quality) =
        (0f32, 0f32, 1f32, 0f32);
    let (mut compared, mut sound) = (0, 0);
    for scene in &expected.scenes {
        let bytes = fs::read(path("demo").join(&scene.image)).unwrap();
        let image = decode(&bytes, 1 << 24).unwrap();
        let prompt = Prompt::parse(&scene.prompt).unwrap();
        assert_eq!(prompt.phrases(), scene.phrases);
        let found = detector
            .detect(&[(&image, &prompt)], &options)
            .unwrap()
            .remove(0);
        let name = &scene.image;
        assert_eq!(found.len(), scene.detections.len(), "{name}: detections");
        if found.is_empty() {
            continue;
        }
        let theirs: Vec<BoundingBox> = scene
            .detections
            .iter()
            .map(|d| {
                let [x0, y0, x1, y1] = d.bounding_box;
                BoundingBox { x0, y0, x1, y1 }
            })
            .collect();
        let encoded = segmenter.encode(&image).unwrap();
        let masks = segmenter.segment_boxes(&encoded, &theirs).unwrap();
        for ((ours, theirs), mask) in found.iter().zip(&scene.detections).zip(&masks) {
            let corners = ours.bounding_box.corners();
            let off = corners
                .iter()
                .zip(theirs.bounding_box)
                .map(|(a, b)| (a - b).abs());
            worst_box = worst_box.max(off.fold(0.0, f32::max));
            worst_score = worst_score.max((ours.score - theirs.score).abs());
            worst_mask = worst_mask.min(mask.mask.iou(&decode_rle(&theirs.mask)));
            worst_quality = worst_quality.max((mask.score - theirs.iou_score).abs());
            assert_eq!(ours.phrase, theirs.phrase, "{name}");
            if scene.phrases.contains(&theirs.label) {
                assert_eq!(
                    ours.phrase, theirs.label,
                    "{name}: where the reference's label is a phrase"
                );
                sound += 1;
            }
            compared += 1;
        }
    }
    println!(
        "{} scenes, {compared} detections: boxes within {worst_box:.3} pixels, scores within \
         {worst_score:.1e}, masks of IoU {worst_mask:.5} or more, their quality within \
         {worst_quality:.1e}; the reference's own label is a phrase of the prompt in {sound}",
        expected.scenes.len()
    );
    assert!(compared >= 20, "{compared} detections");
    assert!(
        worst_box <= 0.5 && worst_score <= 1e-3 && worst_mask >= 0.999 && worst_quality <= 1e-3
    );
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
    let point = |x, y, is_positive| Point { x, y, is_positive };
    let mark = Mark {
        bounding_box: None,
        points: vec![point(505.0, 375.0, true), point(380.0, 250.0, false)],
    };
    let pointed = segmenter.segment_mark(&encoded, &mark).unwrap();
    let iou = pointed.mask.iou(&boxed[0].mask);
    println!("from points against from the box: IoU {iou:.3}");
    assert!(iou > 0.8, "{iou}");
}

/// Half of the bits, as on a GPU, by the plain-tensor paths: what is found stays found. (candle multiplies no
/// bf16 matrices on a CPU.)
#[test]
fn half_precision_finds_the_same() {
    let bytes = std::fs::read(path("../../examples/images/shapes.png")).unwrap();
    let image = decode(&bytes, usize::MAX).unwrap();
    let prompt = Prompt::parse("red circle. blue star.").unwrap();
    let options = DetectionOptions::default();
    let run = |dtype| {
        let detector = Detector::load(&demo(Role::Detector), dtype, &Device::Cpu).unwrap();
        let found = detector.detect(&[(&image, &prompt)], &options).unwrap();
        let segmenter = Segmenter::load(&demo(Role::Segmenter), dtype, &Device::Cpu).unwrap();
        let encoded = segmenter.encode(&image).unwrap();
        let boxes: Vec<BoundingBox> = found[0].iter().map(|d| d.bounding_box).collect();
        let masks = segmenter.segment_boxes(&encoded, &boxes).unwrap();
        (found[0].clone(), masks)
    };
    let (exact, exact_masks) = run(DType::F32);
    assert_eq!(exact.len(), 2);
    let (found, masks) = run(DType::F16);
    for (i, detection) in exact.iter().enumerate() {
        let same = found.iter().position(|d| d.phrase == detection.phrase);
        let same = same.unwrap_or_else(|| panic!("no {}", detection.phrase));
        let overlap = detection.bounding_box.iou(found[same].bounding_box);
        let (a, b) = (&exact_masks[i].mask, &masks[same].mask);
        let mask_overlap = a.iou(b);
        println!(
            "f16 {}: box {overlap:.4}, mask {mask_overlap:.4}",
            detection.phrase
        );
        assert!(overlap > 0.95 && mask_overlap > 0.95);
    }
}
