//! Prompts, clicks and rectangles with a small model of each family. The weights are random, so that boxes and
//! masks mean nothing: they are compared with those that the library computes for the same input.

use std::path::PathBuf;

use candle_core::{DType, Device};
use groundling::detector::{DetectionOptions, Detector};
use groundling::geometry::{BoundingBox, Mask, Point, SegmentPrompt};
use groundling::models::weights::Checkpoint;
use groundling::prompt::Prompt;
use groundling::segmenter::{EncodedImage, Segmenter};
use serde_json::{Value, json};

use crate::brush_rle_decoder;
use crate::support::{
    SHAPES, SHAPES_CONFIG, app_with, data_uri, post, prompt_request, regions, repository, scratch,
};

/// Folders of `tests/reference/segmenter`.
const FAMILIES: [&str; 5] = [
    "sam_hq",
    "light_hq",
    "sam2",
    "efficientvit_sam",
    "efficientvit_sam_xl",
];

/// A checkpoint folder with the files that a published one has.
fn checkpoint(family: &str) -> PathBuf {
    let from = repository("tests/reference/segmenter").join(family);
    let folder = scratch().join("families").join(family);
    std::fs::create_dir_all(&folder).unwrap();
    let weights = ["model.safetensors", "original.pth", "original.pt"];
    let weights = weights.into_iter().find(|file| from.join(file).exists());
    for file in ["config.json", "preprocessor_config.json", weights.unwrap()] {
        if from.join(file).exists() {
            std::fs::copy(from.join(file), folder.join(file)).unwrap();
        }
    }
    if !folder.join("preprocessor_config.json").exists() {
        // the usual normalisation
        std::fs::write(folder.join("preprocessor_config.json"), "{}").unwrap();
    }
    folder
}

/// The pixels of a region's mask, row by row.
fn pixels(region: &Value) -> Vec<bool> {
    let rle: Vec<u8> = serde_json::from_value(region["value"]["rle"].clone()).unwrap();
    let values = brush_rle_decoder::decode(&rle);
    values.chunks(4).map(|rgba| rgba[3] == 255).collect()
}

/// Compares a region's mask with the library's. Numbers are rounded to percent and back on the way, so that a pixel whose
/// logit is nearly 0 may differ.
fn compare(what: &str, region: &Value, mask: &Mask) {
    let ours = pixels(region);
    let differing = ours.iter().zip(mask.pixels()).filter(|(a, b)| **a != *b);
    let (differing, area) = (differing.count(), ours.iter().filter(|p| **p).count());
    println!("{what}: {area} pixels, {differing} differ");
    assert!(area > 0 && differing <= 5, "{what}: {differing} of {area}");
}

/// The regions of one kind.
fn of_kind<'a>(found: &'a Value, kind: &str) -> Vec<&'a Value> {
    let found = found.as_array().unwrap().iter();
    found.filter(|region| region["type"] == kind).collect()
}

/// A rectangle region in pixels of the 640x480 picture.
fn bounding_box(value: &Value) -> BoundingBox {
    let number = |key: &str| value[key].as_f64().unwrap();
    BoundingBox {
        x0: (number("x") * 6.4) as f32,
        y0: (number("y") * 4.8) as f32,
        x1: ((number("x") + number("width")) * 6.4) as f32,
        y1: ((number("y") + number("height")) * 4.8) as f32,
    }
}

struct Family {
    name: &'static str,
    segmenter: Segmenter,
    image: EncodedImage,
    app: axum::Router,
}

impl Family {
    fn load(name: &'static str) -> Self {
        let folder = checkpoint(name);
        let segmenter = Segmenter::load(
            &Checkpoint::Folder(folder.clone()),
            DType::F32,
            &Device::Cpu,
        )
        .unwrap();
        let picture = image::load_from_memory(SHAPES).unwrap().into_rgb8();
        Self {
            name,
            image: segmenter.encode(&picture).unwrap(),
            segmenter,
            app: app_with(&["--segmenter", folder.to_str().unwrap()]),
        }
    }

    /// The regions for these regions of the context.
    async fn predict(&self, context: Value) -> Value {
        let mut request =
            prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle. blue star.");
        if !context.is_null() {
            request["params"]["context"]["result"] = context;
        }
        regions(&post(&self.app, "/predict", &request).await).clone()
    }

    /// The mask of an object with these points.
    fn mask_of_points(&self, points: &[Point]) -> Mask {
        let prompt = SegmentPrompt {
            points: points.to_vec(),
            bounding_box: None,
        };
        let mask = self.segmenter.segment_prompt(&self.image, &prompt);
        mask.unwrap().to_image_size().mask
    }
}

fn click(x: f64, y: f64, is_positive: bool) -> Value {
    json!({
        "type": "keypointlabels", "to_name": "image", "from_name": "label2", "is_positive": is_positive,
        "value": {"x": x, "y": y, "width": 0.2, "keypointlabels": ["Red Circle"]}
    })
}

#[tokio::test]
async fn every_family_answers_prompts_clicks_and_rectangles() {
    for name in FAMILIES {
        let family = Family::load(name);

        let found = family.predict(Value::Null).await;
        let rectangles = of_kind(&found, "rectanglelabels");
        assert_eq!(rectangles.len(), 2, "{name}: {found}");
        for (rectangle, mask) in rectangles.iter().zip(of_kind(&found, "brushlabels")) {
            let bounding_box = bounding_box(&rectangle["value"]);
            let masks = family
                .segmenter
                .segment_boxes(&family.image, &[bounding_box]);
            compare(&format!("{name}, prompt"), mask, &masks.unwrap()[0].mask);
        }

        let point = |x: f32, y: f32, is_foreground: bool| Point {
            x,
            y,
            is_foreground,
        };
        let points = [point(512.0, 360.0, true), point(64.0, 48.0, false)];
        let clicks = [click(80.0, 75.0, true), click(10.0, 10.0, false)];
        for count in 1..=clicks.len() {
            let found = family.predict(json!(clicks[..count])).await;
            let expected = family.mask_of_points(&points[..count]);
            let what = format!("{name}, {count} clicks");
            match of_kind(&found, "brushlabels")[..] {
                [mask] => compare(&what, mask, &expected),
                ref masks => panic!("{what}: {} masks", masks.len()),
            }
        }

        let value = json!({"x": 10, "y": 20, "width": 40, "height": 50, "rotation": 0, "rectanglelabels": ["Red Circle"]});
        let rectangle = json!([{
            "type": "rectanglelabels", "to_name": "image", "from_name": "label", "is_positive": true, "value": value
        }]);
        let found = family.predict(rectangle).await;
        let masks = family
            .segmenter
            .segment_boxes(&family.image, &[bounding_box(&value)])
            .unwrap();
        compare(
            &format!("{}, rectangle", family.name),
            of_kind(&found, "brushlabels")[0],
            &masks[0].mask,
        );
    }
}

#[tokio::test]
async fn stored_embeddings_of_every_family_give_the_same_masks() {
    for name in FAMILIES {
        let family = Family::load(name);
        let bytes = family.image.to_bytes().unwrap();
        assert_eq!(bytes.len(), EncodedImage::bytes_on_disk(&family.segmenter));
        let restored = EncodedImage::from_bytes(&bytes, &family.segmenter).unwrap();
        assert_eq!(restored.to_bytes().unwrap(), bytes, "{name}");
        let bounding_box = BoundingBox {
            x0: 100.0,
            y0: 90.0,
            x1: 400.0,
            y1: 350.0,
        };
        let mask = |image: &EncodedImage| {
            let masks = family.segmenter.segment_boxes(image, &[bounding_box]);
            masks.unwrap().remove(0).mask
        };
        let iou = mask(&family.image).iou(&mask(&restored));
        println!("{name}: IoU {iou} with the embedding in half precision");
        assert!(iou > 0.99, "{name}: {iou}");
    }
}

#[tokio::test]
async fn mm_grounding_dino_answers_prompts() {
    let from = repository("tests/reference/detector");
    let folder = scratch().join("families/mm");
    std::fs::create_dir_all(&folder).unwrap();
    for file in [
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    ] {
        std::fs::copy(from.join("mm").join(file), folder.join(file)).unwrap();
    }
    std::fs::copy(from.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let checkpoint = Checkpoint::Folder(folder.clone());
    let detector = Detector::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
    let picture = image::load_from_memory(SHAPES).unwrap().into_rgb8();
    let prompt = Prompt::parse("red circle. blue star.").unwrap();
    let all = DetectionOptions {
        box_threshold: 0.0,
        text_threshold: 0.25,
        nms_iou_threshold: 1.0,
        max_detections: None,
    };
    let mut scores: Vec<f32> = detector
        .detect(&picture, &prompt, &all)
        .unwrap()
        .iter()
        .map(|d| d.score)
        .collect();
    scores.sort_by(f32::total_cmp);
    // half of the boxes
    let threshold = scores[scores.len() / 2];
    let options = DetectionOptions {
        box_threshold: threshold,
        ..all
    };
    let expected = detector.detect(&picture, &prompt, &options).unwrap();
    assert!(!expected.is_empty());

    let app = app_with(&[
        "--detector",
        folder.to_str().unwrap(),
        "--segmenter",
        "none",
        "--nms-iou",
        "1",
        "--box-threshold",
        &threshold.to_string(),
    ]);
    let request = prompt_request(SHAPES_CONFIG, &data_uri(SHAPES), "red circle. blue star.");
    let found = regions(&post(&app, "/predict", &request).await).clone();
    let mut boxes: Vec<BoundingBox> = of_kind(&found, "rectanglelabels")
        .iter()
        .map(|r| bounding_box(&r["value"]))
        .collect();
    println!("{} boxes above {threshold}", boxes.len());
    assert_eq!(boxes.len(), expected.len(), "{found}");
    let mut expected: Vec<BoundingBox> = expected.iter().map(|d| d.bounding_box).collect();
    for boxes in [&mut boxes, &mut expected] {
        boxes.sort_by(|a, b| a.x0.total_cmp(&b.x0));
    }
    for (found, expected) in boxes.iter().zip(&expected) {
        // regions end at the edge of the image
        let limit = |value: f32, size: f32| value.clamp(0.0, size);
        for (a, b) in [
            (found.x0, limit(expected.x0, 640.0)),
            (found.y0, limit(expected.y0, 480.0)),
            (found.x1, limit(expected.x1, 640.0)),
            (found.y1, limit(expected.y1, 480.0)),
        ] {
            assert!((a - b).abs() < 0.1, "{found:?} instead of {expected:?}");
        }
    }
}
