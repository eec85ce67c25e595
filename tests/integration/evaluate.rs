//! `groundling evaluate`: predictions compared with the annotations of a project and of a COCO file.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::annotate::run;
use crate::command::{groundling, text};
use crate::fake_studio::{FakeStudio, LEGACY_TOKEN, StudioOptions};
use crate::support::{SHAPES, scratch};

async fn studio() -> FakeStudio {
    FakeStudio::start(StudioOptions {
        tasks: 30,
        ..StudioOptions::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_compared_with_its_annotations_and_gets_the_best_thresholds() {
    let studio = studio().await;
    let report = scratch().join("evaluate.html");
    let arguments = [
        "evaluate",
        "--project",
        "7",
        "--json",
        "--apply",
        "labels",
        "--report",
        report.to_str().unwrap(),
    ];
    let output = run(&studio, LEGACY_TOKEN, &arguments).await;
    assert!(output.status.success(), "{output:?}");
    let printed = text(&output.stdout);
    let end = printed.rfind("\n}").unwrap() + 2;
    let summary: Value = serde_json::from_str(&printed[..end]).unwrap();
    // three tasks are annotated; each has two circles, of which one is in the picture, and a star
    assert_eq!(summary["images"], 3);
    assert_eq!(summary["overall"]["true_objects"], 9);
    let labels = summary["labels"].as_array().unwrap();
    let label = |name: &str| labels.iter().find(|label| label["label"] == name).unwrap();
    let circle = label("Red Circle");
    assert_eq!(
        (&circle["precision"], &circle["recall"]),
        (&json!(1.0), &json!(0.5))
    );
    assert_eq!(label("Blue Star")["f1"], 1.0, "{summary}");
    assert!(
        (summary["box"]["ap50"].as_f64().unwrap() - 0.75).abs() < 0.01,
        "{summary}"
    );
    assert_eq!(summary["mask"], Value::Null, "no mask is annotated");
    let config = studio.changed_label_config().unwrap();
    assert_eq!(config.matches("score_threshold=").count(), 4, "{config}");
    let report = fs::read_to_string(report).unwrap();
    assert_eq!(report.matches("data:image/jpeg;base64,").count(), 3);
    assert!(
        report.contains("Red Circle (missed"),
        "the missed circle is not shown"
    );
    assert!(!report.contains("http"), "the report loads something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_without_annotations_has_nothing_to_compare() {
    let studio = FakeStudio::start(StudioOptions {
        tasks: 3,
        ..StudioOptions::default()
    })
    .await;
    let output = run(&studio, LEGACY_TOKEN, &["evaluate", "--project", "7"]).await;
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains("project 7 has no submitted annotation"),
        "{error}"
    );
}

/// A COCO file with one image in which a red circle and a blue star are annotated.
fn coco_file(name: &str, image: &str) -> PathBuf {
    let folder = scratch().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("shapes.png"), SHAPES).unwrap();
    let annotation = |id: u64, category: u64, bbox: [f64; 4]| json!({"id": id, "image_id": 9, "category_id": category, "bbox": bbox, "iscrowd": 0, "area": bbox[2] * bbox[3]});
    let file = json!({
        "images": [{"id": 9, "file_name": image, "width": 640, "height": 480}],
        "categories": [{"id": 3, "name": "blue star"}, {"id": 8, "name": "Red_Circle"}],
        "annotations": [annotation(1, 3, [85.0, 325.0, 135.0, 141.0]), annotation(2, 8, [408.0, 282.0, 187.0, 189.0])],
    });
    let path = folder.join("annotations.json");
    fs::write(&path, file.to_string()).unwrap();
    path
}

#[test]
fn a_coco_file_is_compared_with_the_predictions_of_its_categories() {
    let file = coco_file("evaluate-coco", "shapes.png");
    let folder = file.parent().unwrap();
    let predictions = folder.join("predictions.json");
    let arguments = |extra: &[&'static str]| {
        let mut all: Vec<String> = [
            "evaluate",
            "--coco",
            file.to_str().unwrap(),
            "--images",
            folder.to_str().unwrap(),
        ]
        .map(str::to_owned)
        .to_vec();
        all.extend(extra.iter().map(|argument| (*argument).to_owned()));
        all
    };
    let run = |arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        groundling(&arguments)
    };
    let mut with_predictions = arguments(&["--json"]);
    with_predictions.extend([
        "--predictions".to_owned(),
        predictions.to_str().unwrap().to_owned(),
    ]);
    let output = run(&with_predictions);
    assert!(output.status.success(), "{output:?}");
    let summary: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(summary["box"]["ap50"], 1.0, "{summary}");
    let names: Vec<_> = summary["labels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|label| label["label"].clone())
        .collect();
    assert_eq!(names, ["Red_Circle", "blue star"]);
    let predictions: Value = serde_json::from_slice(&fs::read(predictions).unwrap()).unwrap();
    let first = &predictions[0];
    assert_eq!(first["image_id"], 9);
    assert!(
        [3, 8].contains(&first["category_id"].as_u64().unwrap()),
        "the ids of the file: {first}"
    );
    // two detectors are compared in a table, and in a list of JSON
    let output = run(&arguments(&["--detector", "demo", "--detector", "demo"]));
    assert!(output.status.success(), "{output:?}");
    let table = text(&output.stdout);
    assert!(
        table.contains("box AP50") && table.contains("best threshold"),
        "{table}"
    );
    let output = run(&arguments(&[
        "--json",
        "--detector",
        "demo",
        "--detector",
        "demo",
    ]));
    let list: Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 2);
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let missing = coco_file("evaluate-missing", "gone.png");
    let folder = missing.parent().unwrap().to_str().unwrap();
    let missing = missing.to_str().unwrap();
    for (arguments, expected) in [
        (vec!["evaluate"], "--project"),
        (vec!["evaluate", "--coco", missing], "--images"),
        (
            vec!["evaluate", "--coco", missing, "--images", folder],
            "gone.png",
        ),
        (
            vec![
                "evaluate", "--coco", missing, "--images", folder, "--apply", "labels",
            ],
            "--project",
        ),
        (
            vec!["evaluate", "--coco", "none.json", "--images", folder],
            "none.json",
        ),
    ] {
        let output = groundling(&arguments);
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        let error = text(&output.stderr);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}
