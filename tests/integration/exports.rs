//! `--export` of `predict` and `annotate`: datasets for training. `tests/exports/check.py` reads them with the tools that
//! train.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::annotate::run;
use crate::command::{failure, groundling, text};
use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};

const SHAPES: &str = "examples/images/shapes.png";

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The names of the files in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn predict_exports_the_boxes_and_masks_of_its_json() {
    let folder = tempfile::tempdir().unwrap();
    let export = folder.path().join("new/export");
    let broken = folder.path().join("broken.png");
    fs::write(&broken, "no image").unwrap();
    let output = groundling(&[
        "predict",
        SHAPES,
        broken.to_str().unwrap(),
        "--prompt",
        "blue star. red circle. -green star",
        "--export",
        export.to_str().unwrap(),
        "--export-format",
        "coco,yolo",
    ]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "the broken image: {output:?}"
    );
    let messages = text(&output.stderr);
    assert!(
        messages.contains("has 1 images with 2 objects"),
        "{messages}"
    );
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found["results"][0]["detections"].as_array().unwrap();

    let dataset = json(&export.join("coco/annotations.json"));
    let categories = dataset["categories"].as_array().unwrap();
    let categories: Vec<&str> = categories
        .iter()
        .map(|category| category["name"].as_str().unwrap())
        .collect();
    assert_eq!(categories, ["blue star", "red circle"]);
    let annotations = dataset["annotations"].as_array().unwrap();
    assert_eq!((found.len(), annotations.len()), (2, 2));
    for (annotation, detection) in annotations.iter().zip(found) {
        let class = annotation["category_id"].as_u64().unwrap() as usize;
        assert_eq!(detection["phrase"], categories[class - 1]);
        assert_eq!(annotation["segmentation"], detection["mask"]);
        assert_eq!(annotation["score"], detection["score"]);
        let (bbox, corners) = (numbers(&annotation["bbox"]), numbers(&detection["box"]));
        let right_bottom = [bbox[0] + bbox[2], bbox[1] + bbox[3]];
        for (a, b) in bbox[..2].iter().chain(&right_bottom).zip(&corners) {
            assert!((a - b).abs() < 0.002, "{bbox:?} {corners:?}");
        }
    }
    for format in ["coco", "yolo"] {
        assert_eq!(names(&export.join(format).join("images")), ["shapes.png"]);
    }
    let lines = fs::read_to_string(export.join("yolo/labels/shapes.txt")).unwrap();
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn an_export_that_cannot_be_written_is_refused_before_anything_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let export = folder.path().to_str().unwrap();
    let predict = ["predict", SHAPES, "--prompt", "red circle"];
    let masks = [
        "--export",
        export,
        "--export-format",
        "masks",
        "--segmenter",
        "none",
    ];
    let message = failure(&[&predict[..], &masks].concat());
    assert!(message.contains("`masks` needs masks"), "{message}");
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let message = failure(&[&predict[..], &["--export", export]].concat());
    assert!(message.contains("has files already"), "{message}");
    assert_eq!(names(folder.path()), ["notes.txt"]);
    let output = groundling(&[&predict[..], &["--export-format", "yolo"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("--export <DIR>"),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn annotate_exports_every_image_with_the_labels_also_if_it_is_predicted_already() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 12,
        ..StudioOptions::default()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    for attempt in ["first", "second"] {
        let export = folder.path().join(attempt);
        let arguments = [
            "annotate",
            "--project",
            "7",
            "--prompt",
            "blue star. red circle. green triangle",
            "--export",
            export.to_str().unwrap(),
            "--export-format",
            "coco,masks",
        ];
        let output = run(&studio, LEGACY_TOKEN, &arguments).await;
        // the image of one task is missing
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let summary = text(&output.stdout);
        assert!(
            summary.contains("has 11 images with 22 objects"),
            "{summary}"
        );
        // no label matches the triangle
        assert!(
            summary.contains("left out of the export: 11 without a class"),
            "{summary}"
        );
        assert_eq!(studio.stored_predictions().len(), 11);

        let dataset = json(&export.join("coco/annotations.json"));
        let categories = dataset["categories"].as_array().unwrap().iter();
        let categories: Vec<&Value> = categories.map(|category| &category["name"]).collect();
        assert_eq!(categories, ["Red Circle", "Blue Star"]);
        let images = names(&export.join("coco/images"));
        assert_eq!(images.len(), 11);
        assert_eq!(images[0], "100-shapes-0.png");
        assert_eq!(images, names(&export.join("masks/instances")));
        let image = image::open(export.join("coco/images/100-shapes-0.png"));
        let original = image::open(crate::support::repository(SHAPES)).unwrap();
        assert!(image.unwrap().into_rgb8() == original.into_rgb8());
    }
}
