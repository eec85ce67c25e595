//! `groundling predict`: image files and a prompt to JSON, Label Studio tasks and pictures.

use std::path::Path;

use serde_json::{Value, json};

use crate::command::{command, failure, groundling, text};
use crate::support::{check_regions, repository};

const SHAPES: &str = "examples/images/shapes.png";

/// Neither the instruction set of the kernels nor the number of threads changes the detections. With bf16 weights the
/// boxes move by a few pixels.
#[test]
fn every_instruction_set_thread_count_and_precision_gives_the_same_detections() {
    let detections = |settings: &[(&str, &str)]| -> Vec<Value> {
        let mut predict = command(&["predict", SHAPES, "--prompt", "red circle. blue star."]);
        let output = predict.envs(settings.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        found["results"][0]["detections"]
            .as_array()
            .unwrap()
            .clone()
    };
    let expected = detections(&[]);
    assert_eq!(expected.len(), 2);
    let set = "GROUNDLING_INSTRUCTION_SET";
    for (settings, pixels) in [
        ([(set, "portable"), ("THREADS", "1")], 0.01),
        ([(set, "avx2"), ("THREADS", "3")], 0.01),
        ([(set, "avx2"), ("PRECISION", "bf16")], 4.0),
        ([(set, "avx512_bf16"), ("PRECISION", "bf16")], 4.0),
    ] {
        let found = detections(&settings);
        assert_eq!(found.len(), expected.len(), "{settings:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found["phrase"], expected["phrase"], "{settings:?}");
            let numbers = |detection: &Value| -> Vec<f64> {
                let corners = detection["box"].as_array().unwrap().iter();
                corners.map(|corner| corner.as_f64().unwrap()).collect()
            };
            for (a, b) in numbers(found).iter().zip(numbers(expected)) {
                let difference = (a - b).abs();
                assert!(difference < pixels, "{settings:?}: {difference} pixels");
            }
        }
    }
}

#[test]
fn f16_on_a_cpu_is_an_error_that_names_the_right_precisions() {
    let arguments = ["--device", "cpu", "--precision", "f16"];
    let message = failure(
        &[
            &["predict", SHAPES, "--prompt", "red circle"],
            &arguments[..],
        ]
        .concat(),
    );
    assert!(message.contains("PRECISION=f16 needs a GPU"), "{message}");
    assert!(message.contains("use f32 or bf16"), "{message}");
}

#[test]
fn the_detector_size_can_be_reduced_within_limits() {
    let predict = [
        "predict",
        SHAPES,
        "--prompt",
        "red circle",
        "--detector-size",
    ];
    let output = groundling(&[&predict[..], &["256"]].concat());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let detections = &report["results"][0]["detections"];
    assert_eq!(detections[0]["phrase"], "red circle", "{report}");
    // too small
    let output = groundling(&[&predict[..], &["7"]].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = text(&output.stderr);
    assert!(error.contains("64..=2048"), "{error}");
}

#[test]
fn predict_writes_json_and_draws_the_detections() {
    let folder = tempfile::tempdir().unwrap();
    let overlay = folder.path().join("out");
    let output = groundling(&[
        "predict",
        SHAPES,
        "--prompt",
        "red circle. blue star.",
        "--overlay",
        overlay.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &report["results"][0];
    assert_eq!(
        (&result["width"], &result["height"]),
        (&640.into(), &480.into())
    );
    assert_eq!(result["prompt"], "red circle. blue star.");
    let detections = result["detections"].as_array().unwrap();
    let mut phrases: Vec<_> = detections
        .iter()
        .map(|d| d["phrase"].as_str().unwrap())
        .collect();
    phrases.sort();
    assert_eq!(phrases, ["blue star", "red circle"]);
    let scores: Vec<f64> = detections
        .iter()
        .map(|d| d["score"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b));
    for detection in detections {
        assert_eq!(detection["mask"]["size"], json!([480, 640]));
        assert!(detection["mask_score"].as_f64().unwrap() > 0.5);
        assert_eq!(detection["box"].as_array().unwrap().len(), 4);
    }
    for step in ["decode_ms", "detector_ms", "segmenter_ms", "total_ms"] {
        assert!(result["timings"][step].as_f64().unwrap() >= 0.0);
    }
    let drawn = image::open(overlay.join("shapes.png")).unwrap().into_rgb8();
    let original = image::open(repository(SHAPES)).unwrap().into_rgb8();
    assert_eq!(drawn.dimensions(), original.dimensions());
    let changed = drawn
        .pixels()
        .zip(original.pixels())
        .filter(|(a, b)| a != b)
        .count();
    assert!(changed > 1000, "only {changed} pixels are drawn");
}

#[test]
fn without_thresholds_every_query_is_a_detection() {
    let output = groundling(&[
        "predict",
        SHAPES,
        "--prompt",
        "star",
        "--box-threshold",
        "0",
        "--nms-iou",
        "1",
        "--segmenter",
        "none",
    ]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let config = std::fs::read(repository("models/demo/detector/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let detections = report["results"][0]["detections"].as_array().unwrap();
    assert_eq!(
        detections.len() as u64,
        config["num_queries"].as_u64().unwrap()
    );
    assert!(detections[0].get("mask").is_none());
}

#[test]
fn the_label_studio_format_is_a_task_with_valid_regions() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.json");
    let output = groundling(&[
        "predict",
        SHAPES,
        "--prompt",
        "red circle. blue star.",
        "--format",
        "label-studio",
        "--output",
        file.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let tasks: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(tasks[0]["data"]["image"], SHAPES);
    let result = &tasks[0]["predictions"][0]["result"];
    assert_eq!(result.as_array().unwrap().len(), 4);
    check_regions(result, 640, 480, &["red circle", "blue star"]);
}

#[test]
fn an_unreadable_image_is_an_error_of_that_image_only() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.png");
    std::fs::write(&broken, b"not an image").unwrap();
    let missing = folder.path().join("missing.png");
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let output = groundling(&[
        "predict",
        &path(&broken),
        &path(&missing),
        SHAPES,
        "--prompt",
        "red circle",
    ]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = report["results"].as_array().unwrap();
    assert!(
        results[0]["error"]
            .as_str()
            .unwrap()
            .contains("not a readable image")
    );
    assert!(
        results[1]["error"]
            .as_str()
            .unwrap()
            .contains("No such file")
    );
    assert_eq!(results[2]["detections"][0]["phrase"], "red circle");
    let errors = text(&output.stderr);
    assert!(
        errors.contains("broken.png: not a readable image"),
        "{errors}"
    );
    assert!(errors.contains("2 of 3 images"), "{errors}");
}

#[test]
fn an_error_names_the_wrong_setting() {
    assert!(failure(&["predict", SHAPES, "--prompt", " . "]).contains("has no words"));
    let long = "word ".repeat(400);
    let error = failure(&["predict", SHAPES, "--prompt", &long]);
    assert!(error.contains("the model's limit of 256 tokens"), "{error}");
    let output = groundling(&["predict", SHAPES, "--prompt", "x", "--box-threshold", "30"]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("from 0 to 1"), "{error}");
}

#[test]
fn an_empty_environment_variable_counts_as_unset() {
    let empty = [
        "BOX_THRESHOLD",
        "MAX_DETECTIONS",
        "LOG_LEVEL",
        "MODEL_DIR",
        "HF_HUB_OFFLINE",
        "USE_SAM",
    ];
    let output = command(&["predict", SHAPES, "--prompt", "red circle"])
        .envs(empty.map(|name| (name, "")))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
