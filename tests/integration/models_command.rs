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
