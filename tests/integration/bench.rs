//! `groundling bench`: the time, work and memory of each stage of a prediction.

use std::path::Path;

use serde_json::Value;

use crate::command::{command, failure, groundling};

/// Runs one repetition and returns the JSON report.
fn report(arguments: &[&str]) -> Value {
    let fixed = ["bench", "--repeat", "1", "--warm-up", "0", "--json"];
    let output = groundling(&[&fixed, arguments].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The names of the stages.
fn names(report: &Value) -> Vec<&str> {
    let stages = report["stages"].as_array().unwrap();
    let names = stages.iter().map(|stage| stage["name"].as_str().unwrap());
    names.collect()
}

const DETECTOR: [&str; 8] = [
    "detector.preprocess",
    "detector.encode_image",
    "detector.text",
    "detector.encoder",
    "detector.query_selection",
    "detector.decoder",
    "detector.post_process",
    "detector.other",
];
const SEGMENTER: [&str; 5] = [
    "segmenter.preprocess",
    "segmenter.encode_image",
    "segmenter.masks",
    "segmenter.post_process",
    "segmenter.other",
];

#[test]
fn bench_reports_every_stage_of_a_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let report = report(&[
        "--image",
        "examples/images/shapes.png",
        "--prompt",
        "red circle. blue star.",
        "--trace",
        trace.to_str().unwrap(),
    ]);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["device"], "cpu");
    assert_eq!(report["precision"], "f32");
    assert!(report["threads"].as_u64().unwrap() >= 1);
    let sets = ["portable", "avx2", "avx512", "avx512_bf16", "neon"];
    assert!(sets.contains(&report["instruction_set"].as_str().unwrap()));
    let image = &report["image"];
    assert_eq!(image["source"], "examples/images/shapes.png");
    assert_eq!(
        (&image["height"], &image["width"]),
        (&480.into(), &640.into())
    );
    assert_eq!(report["detector"]["name"], "demo");
    assert_eq!(report["detector"]["prompt"], "red circle. blue star.");
    // [CLS] red circle . blue star . [SEP]
    assert_eq!(report["detector"]["tokens"], serde_json::json!([8]));
    assert_eq!(
        report["segmenter"],
        serde_json::json!({"name": "demo", "boxes": 2})
    );
    assert_eq!(
        (&report["repeat"], &report["warm_up"]),
        (&1.into(), &0.into())
    );
    assert!(report["load_s"].as_f64().unwrap() > 0.0);
    let peak = report["peak_f32_gflops"].as_f64().unwrap();
    assert!(peak > 0.0);
    assert_eq!(
        report["peak_memory_mib"]
            .as_f64()
            .is_some_and(|mib| mib > 1.0),
        cfg!(target_os = "linux")
    );

    assert_eq!(
        names(&report),
        [&["decode"][..], &DETECTOR, &SEGMENTER].concat()
    );
    let total = report["total"]["median_s"].as_f64().unwrap();
    let mut sum = 0.0;
    for stage in report["stages"].as_array().unwrap() {
        let median = stage["median_s"].as_f64().unwrap();
        sum += median;
        assert_eq!(stage["samples_s"], serde_json::json!([median]));
        assert_eq!(
            (&stage["min_s"], &stage["max_s"]),
            (&stage["median_s"], &stage["median_s"])
        );
        if let Some(gflop) = stage["gflop"].as_f64() {
            let rate = stage["gflops"].as_f64().unwrap();
            assert!((rate * median / gflop - 1.0).abs() < 1e-6);
            let share = stage["share_of_peak"].as_f64().unwrap();
            assert!((share * peak / rate - 1.0).abs() < 1e-6);
        }
    }
    // the stages cover the whole prediction except for small gaps
    assert!((0.8..=1.0).contains(&(sum / total)), "{sum} s of {total} s");
    let encoder = &report["stages"][4];
    assert_eq!(encoder["name"], "detector.encoder");
    assert!(encoder["gflop"].as_f64().unwrap() > 0.0);
    let parts = encoder["parts"].as_array().unwrap();
    assert!(
        parts
            .iter()
            .any(|part| part["name"] == "detector.encoder.fusion")
    );

    check_trace(&trace, total);
}

/// The file of `--trace` has complete events inside the event of the run.
fn check_trace(file: &Path, total_s: f64) {
    let trace: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let span = |event: &Value| {
        let (start, duration) = (event["ts"].as_f64(), event["dur"].as_f64());
        (start.unwrap(), start.unwrap() + duration.unwrap())
    };
    let run = events.iter().find(|event| event["name"] == "run").unwrap();
    let (start, end) = span(run);
    assert!(((end - start) / 1e6 - total_s).abs() < 1e-3);
    for event in events {
        assert_eq!(
            (&event["ph"], &event["pid"], &event["tid"]),
            (&"X".into(), &1.into(), &1.into())
        );
        let (from, to) = span(event);
        assert!(start <= from && from <= to && to <= end + 1e-3, "{event}");
    }
    for name in [
        "decode",
        "detect",
        "swin",
        "fusion",
        "image_encoder",
        "mask_decoder",
    ] {
        assert!(events.iter().any(|event| event["name"] == name), "{name}");
    }
}

#[test]
fn the_image_size_and_the_number_of_boxes_can_be_chosen() {
    let size = ["--image-size", "96x128", "--boxes", "20"];
    let report = report(&size);
    assert_eq!(
        report["image"],
        serde_json::json!({"source": "noise", "height": 96, "width": 128})
    );
    assert_eq!(report["segmenter"]["boxes"], 20);
    assert_eq!(names(&report), [&DETECTOR[..], &SEGMENTER].concat());
}

#[test]
fn one_model_can_be_measured_alone() {
    let size = ["--image-size", "96x128"];
    let detector = report(&[&size[..], &["--only", "detector"]].concat());
    assert_eq!(names(&detector), DETECTOR);
    assert_eq!(detector["segmenter"], Value::Null);
    let without = report(&[&size[..], &["--segmenter", "none"]].concat());
    assert_eq!(names(&without), DETECTOR);
    // the missing detector is not loaded
    let only = ["--only", "segmenter", "--detector", "./nowhere"];
    let segmenter = report(&[&size[..], &only].concat());
    assert_eq!(names(&segmenter), SEGMENTER);
    assert_eq!(segmenter["detector"], Value::Null);
    assert_eq!(segmenter["segmenter"]["boxes"], 1);
}

#[test]
fn the_default_output_is_a_table() {
    let output = command(&[
        "bench",
        "--repeat",
        "1",
        "--image-size",
        "96x128",
        "--boxes",
        "1",
    ])
    .output()
    .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for word in [
        "STAGE",
        "detector.encoder",
        "  fusion",
        "segmenter.masks",
        "\ntotal",
        "GFLOP/s",
    ] {
        assert!(text.contains(word), "the table has no {word}:\n{text}");
    }
}

#[test]
fn an_error_says_what_cannot_be_measured() {
    let nothing = ["bench", "--only", "segmenter", "--segmenter", "none"];
    assert!(failure(&nothing).contains("nothing to measure"));
    let nothing = ["bench", "--detector", "none", "--segmenter", "none"];
    assert!(failure(&nothing).contains("nothing to measure"));
    let nothing = [
        "predict",
        "examples/images/shapes.png",
        "--prompt",
        "dog",
        "--detector",
        "none",
    ];
    assert!(failure(&nothing).contains("DETECTOR=none"));
    // a server would try to load them again and again
    let nothing = [
        "serve",
        "--port",
        "0",
        "--detector",
        "none",
        "--segmenter",
        "none",
    ];
    assert!(failure(&nothing).contains("leave no model to run"));
    let compared = [
        "serve",
        "--port",
        "0",
        "--playground-segmenters",
        "mobile-sam,none",
    ];
    assert!(failure(&compared).contains("PLAYGROUND_SEGMENTERS: \"none\""));
    let missing = ["bench", "--image", "nowhere.png"];
    assert!(failure(&missing).contains("cannot read the file nowhere.png"));
    let unknown = groundling(&["bench", "--image-size", "800"]);
    assert_eq!(unknown.status.code(), Some(2));
    let error = String::from_utf8(unknown.stderr).unwrap();
    assert!(error.contains("800x1066"), "{error}");
}
