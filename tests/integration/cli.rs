//! `groundling predict` as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{repository, scratch};

/// The binary in the repository, on the demo models, with the user's settings left out.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_groundling"));
    for (name, _) in std::env::vars() {
        let of_models = [
            "MODEL_",
            "HF_",
            "GROUNDING",
            "USE_",
            "SAM_",
            "MOBILESAM_",
            "VITH_",
        ];
        let of_detection = [
            "BOX_",
            "TEXT_",
            "NMS_",
            "MAX_",
            "LOG_",
            "PRECISION",
            "DEVICE",
            "DETECTOR_SIZE",
            "THREADS",
            "CACHE_",
            "WARM_",
        ];
        let mut all = of_models.iter().chain(&of_detection);
        if all.any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
        .env("DETECTOR", "demo")
        .env("SEGMENTER", "demo")
        .env("HF_HOME", scratch().join("hub-of-nobody"))
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .args(arguments)
        .current_dir(repository(""));
    command
}

/// Runs it.
pub fn groundling(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The error output of a command that must fail.
pub fn failure(arguments: &[&str]) -> String {
    let output = groundling(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

const SHAPES: &str = "examples/images/shapes.png";

/// What is found does not depend on the instruction set that the kernels are limited to, nor on the threads; half the
/// bits of the weights move boxes by little.
#[test]
fn older_cpus_other_threads_and_half_precision_find_the_same() {
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
                assert!((a - b).abs() < pixels, "{settings:?}: {a} and {b}");
            }
        }
    }
}

/// The precision that a CPU has no operations for is refused with what would be right.
#[test]
fn f16_is_for_gpus() {
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

/// A smaller detector input finds the large shapes too, and a size that makes no sense is refused.
#[test]
fn the_detectors_size_is_a_setting() {
    let predict = [
        "predict",
        SHAPES,
        "--prompt",
        "red circle",
        "--detector-size",
    ];
    let output = groundling(&[&predict[..], &["256"]].concat());
    assert!(output.status.success(), "{output:?}");
    let output = groundling(&[&predict[..], &["7"]].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("64..=2048"), "{error}");
}

#[test]
fn json_and_overlay() {
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
        assert_eq!(detection["mask"]["size"], serde_json::json!([480, 640]));
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
    assert!(changed > 1000, "{changed} pixels drawn");
}

#[test]
fn every_query_when_nothing_is_filtered() {
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
fn label_studio_tasks() {
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
    assert!(output.stdout.is_empty());
    let tasks: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(tasks[0]["data"]["image"], SHAPES);
    let result = &tasks[0]["predictions"][0]["result"];
    assert_eq!(result.as_array().unwrap().len(), 4);
    crate::support::check_regions(result, 640, 480, &["red circle", "blue star"]);
}

#[test]
fn one_bad_image_costs_only_itself() {
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
    assert_eq!(output.status.code(), Some(1));
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
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("broken.png: not a readable image"),
        "{errors}"
    );
    assert!(errors.contains("2 of 3 images"), "{errors}");
}

#[test]
fn wrong_settings_are_named() {
    assert!(failure(&["predict", SHAPES, "--prompt", " . "]).contains("has no words"));
    let long = "word ".repeat(400);
    let error = failure(&["predict", SHAPES, "--prompt", &long]);
    assert!(error.contains("the model's limit of 256 tokens"), "{error}");
    let output = groundling(&["predict", SHAPES, "--prompt", "x", "--box-threshold", "30"]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("from 0 to 1"), "{error}");
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
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

#[test]
fn nobody_listening_stops_nothing() {
    use std::process::Stdio;
    let mut serving = command(&["doctor", "--label-studio-host", "http://127.0.0.1:1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(serving.stdout.take());
    drop(serving.stderr.take());
    // its own verdict, and not a panic's 101
    assert_eq!(serving.wait().unwrap().code(), Some(1));
}
