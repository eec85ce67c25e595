//! `groundling models`: the list of known models and where their files are on this machine.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::command::{command, failure};
use crate::support::repository;

/// Runs `groundling models --json` on a folder and returns its exit code and the list.
fn models(folder: &Path, flags: &[&str]) -> (Option<i32>, Vec<Value>) {
    let folder = folder.to_str().unwrap();
    let arguments = [&["models", "--json", "--model-dir", folder], flags];
    let output = command(&arguments.concat()).output().unwrap();
    let list = serde_json::from_slice(&output.stdout);
    let list = list.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), list)
}

fn entry<'a>(list: &'a [Value], name: &str) -> &'a Value {
    let entry = list.iter().find(|entry| entry["name"] == name);
    entry.unwrap_or_else(|| panic!("the list has no {name}"))
}

#[test]
fn models_are_listed_with_their_files_and_verify_finds_damage() {
    let models_folder = tempfile::tempdir().unwrap();
    let folder = models_folder.path().join("sam-vit-base");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(repository("models/demo/segmenter")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let (code, list) = models(models_folder.path(), &[]);
    assert_eq!(code, Some(0));
    assert_eq!(entry(&list, "grounding-dino-tiny")["path"], Value::Null);
    assert_eq!(entry(&list, "mobile-sam")["licence"], "Apache-2.0");
    let path = entry(&list, "sam-vit-base")["path"].as_str().unwrap();
    assert_eq!(Path::new(path), folder.join("model.safetensors"));
    // the files are those of the demo model, so the checksum is wrong
    let (code, list) = models(models_folder.path(), &["--verify"]);
    assert_eq!(code, Some(1));
    let damage = entry(&list, "sam-vit-base")["damaged"].to_string();
    assert!(damage.contains("SHA-256"), "{damage}");
}

#[test]
fn files_of_the_python_backends_are_found_under_the_models_names() {
    let models_folder = tempfile::tempdir().unwrap();
    let folder = models_folder.path();
    fs::copy(
        repository("tests/reference/segmenter/plain/original.pth"),
        folder.join("mobile_sam.pt"),
    )
    .unwrap();
    // an empty folder of an unfinished download does not hide the file
    fs::create_dir(folder.join("mobile-sam")).unwrap();
    let (code, list) = models(folder, &[]);
    assert_eq!(code, Some(0));
    let path = entry(&list, "mobile-sam")["path"].as_str().unwrap();
    assert!(path.ends_with("mobile_sam.pt"), "{path}");
}

#[test]
fn a_segmenter_as_detector_is_rejected_before_any_download() {
    let image = "examples/images/shapes.png";
    let error = failure(&[
        "predict",
        image,
        "--prompt",
        "star",
        "--detector",
        "Mobile-SAM",
    ]);
    assert!(error.contains("mobile-sam is a segmenter"), "{error}");
}

/// The rows of a table of docs/models.md: name, published accuracies in the columns of these benchmarks, parameters, time and
/// memory.
fn table(list: &[Value], role: &str, columns: &[(&str, &[&str])]) -> String {
    let headers = columns.iter().map(|(header, _)| *header);
    let headers: Vec<&str> = headers.collect();
    let mut lines = vec![
        format!(
            "| name | {} | parameters | time | memory |",
            headers.join(" | ")
        ),
        format!("|---|{}", "---:|".repeat(headers.len() + 3)),
    ];
    for entry in list.iter().filter(|entry| entry["role"] == role) {
        let published = entry["accuracy"].as_array().unwrap();
        let accuracy = |benchmarks: &&[&str]| {
            let found = published
                .iter()
                .find(|a| benchmarks.contains(&a["benchmark"].as_str().unwrap()));
            found.map_or("-".to_owned(), |a| {
                let (ap, source) = (a["ap"].as_f64().unwrap(), a["source"].as_str().unwrap());
                let is_trained = a["benchmark"].as_str().unwrap().contains("trained");
                match is_trained {
                    true => format!("([{ap:.1}]({source}))"),
                    false => format!("[{ap:.1}]({source})"),
                }
            })
        };
        let accuracies: Vec<String> = columns.iter().map(|(_, b)| accuracy(b)).collect();
        let number = |key: &str, unit: &str, digits: usize| match entry[key].as_f64() {
            Some(value) => format!("{value:.digits$} {unit}"),
            None => "-".to_owned(),
        };
        lines.push(format!(
            "| `{}` | {} | {} | {} | {} |",
            entry["name"].as_str().unwrap(),
            accuracies.join(" | "),
            number("parameters_millions", "M", 0),
            number("seconds", "s", 2),
            number("memory_mib", "MiB", 0),
        ));
    }
    lines.join("\n")
}

/// `INSTA_UPDATE=always` rewrites the tables, as it does the snapshots.
#[test]
fn the_documented_numbers_are_those_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let (_, list) = models(folder.path(), &[]);
    let file = repository("docs/models.md");
    let text = fs::read_to_string(&file).unwrap();
    let mut expected = text.clone();
    let tables = [
        (
            "detectors",
            table(
                &list,
                "detector",
                &[
                    ("LVIS minival box AP", &["LVIS minival box AP"]),
                    (
                        "COCO box AP",
                        &["COCO box AP", "COCO box AP (trained on COCO)"],
                    ),
                ],
            ),
        ),
        (
            "segmenters",
            table(
                &list,
                "segmenter",
                &[
                    (
                        "COCO mask AP, boxes of ViTDet-H",
                        &["COCO mask AP (boxes of ViTDet-H)"],
                    ),
                    (
                        "COCO mask AP, boxes of FocalNet-L DINO",
                        &["COCO mask AP (boxes of FocalNet-L DINO)"],
                    ),
                ],
            ),
        ),
    ];
    for (name, table) in tables {
        let (begin, end) = (
            format!("<!-- begin {name} -->\n"),
            format!("<!-- end {name} -->"),
        );
        let start = expected.find(&begin).unwrap() + begin.len();
        let stop = expected.find(&end).unwrap();
        expected.replace_range(start..stop, &format!("{table}\n"));
    }
    if std::env::var("INSTA_UPDATE").as_deref() == Ok("always") {
        fs::write(&file, &expected).unwrap();
    } else {
        assert!(
            text == expected,
            "docs/models.md has other numbers than `groundling models --json`: run this test with INSTA_UPDATE=always"
        );
    }
}

#[test]
fn a_pair_of_models_is_recommended() {
    let recommend = |flags: &[&str]| {
        let arguments = [
            &["models", "--recommend", "--json", "--device", "cpu"],
            flags,
        ];
        let output = command(&arguments.concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let best = recommend(&[]);
    assert_eq!(best["detector"]["name"], "llmdet-large");
    assert_eq!(best["segmenter"]["name"], "efficientvit-sam-xl1");
    let seconds = best["estimated_seconds"].as_f64().unwrap();
    // half of the time is enough for a smaller pair on any machine
    let limit = (0.5 * seconds).to_string();
    let faster = recommend(&["--seconds", &limit]);
    assert!(faster["estimated_seconds"].as_f64().unwrap() <= 0.5 * seconds);
    assert_ne!(faster["detector"]["name"], best["detector"]["name"]);

    let error = failure(&[
        "models",
        "--recommend",
        "--device",
        "cpu",
        "--seconds",
        "0.0001",
    ]);
    assert!(
        error.contains("no pair of models needs at most 0.0001 s"),
        "{error}"
    );
    for (flags, expected) in [
        (
            &["--recommend", "--seconds", "0"][..],
            "it must be a number above 0",
        ),
        (&["--seconds", "5"], "--recommend"),
    ] {
        let output = command(&[&["models"], flags].concat()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && error.contains(expected),
            "{error}"
        );
    }
}
