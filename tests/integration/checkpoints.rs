//! Checkpoints that cannot be used: the file and what is wrong with it are named.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};

use crate::cli::failure;
use crate::support::repository;

/// A copy of a demo checkpoint to damage.
struct Copy {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Copy {
    fn of(kind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(kind);
        fs::create_dir(&path).unwrap();
        for entry in fs::read_dir(repository("models/demo").join(kind)).unwrap() {
            let file = entry.unwrap().path();
            fs::copy(&file, path.join(file.file_name().unwrap())).unwrap();
        }
        Self {
            _folder: folder,
            path,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What `predict` says with it as `--detector` or `--segmenter`.
    fn error(&self) -> String {
        let kind = self.path.file_name().unwrap().to_str().unwrap();
        let flag = format!("--{kind}");
        let path = self.path.to_str().unwrap();
        let image = "examples/images/shapes.png";
        failure(&["predict", image, "--prompt", "star", &flag, path])
    }

    fn tensors(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.file("model.safetensors"), &Device::Cpu).unwrap()
    }
}

#[test]
fn a_missing_folder() {
    let image = "examples/images/shapes.png";
    let error = failure(&[
        "predict",
        image,
        "--prompt",
        "star",
        "--detector",
        "no-such",
    ]);
    assert!(
        error.contains("there is no detector \"no-such\""),
        "{error}"
    );
}

#[test]
fn a_missing_file() {
    for (kind, file) in [
        ("detector", "config.json"),
        ("detector", "preprocessor_config.json"),
        ("detector", "tokenizer.json"),
        ("detector", "model.safetensors"),
        ("segmenter", "config.json"),
        ("segmenter", "model.safetensors"),
    ] {
        let copy = Copy::of(kind);
        fs::remove_file(copy.file(file)).unwrap();
        let error = copy.error();
        assert!(
            error.contains(file) && error.contains("cannot read"),
            "{error}"
        );
    }
}

#[test]
fn a_truncated_file() {
    for kind in ["detector", "segmenter"] {
        let copy = Copy::of(kind);
        let weights = copy.file("model.safetensors");
        let bytes = fs::read(&weights).unwrap();
        for length in [0, 5, bytes.len() / 2] {
            fs::write(&weights, &bytes[..length]).unwrap();
            let error = copy.error();
            assert!(
                error.contains("model.safetensors does not hold"),
                "{length}: {error}"
            );
        }
    }
}

#[test]
fn a_missing_tensor_and_one_of_another_shape() {
    for (kind, name) in [
        ("detector", "model.text_projection.weight"),
        ("segmenter", "mask_decoder.iou_token.weight"),
    ] {
        let copy = Copy::of(kind);
        let mut tensors = copy.tensors();
        let tensor = tensors.remove(name).unwrap();
        candle_core::safetensors::save(&tensors, copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(error.contains(name), "{error}");
        tensors.insert(
            name.to_owned(),
            tensor
                .narrow(0, 0, 1)
                .unwrap()
                .contiguous()
                .unwrap()
                .repeat((3, 1))
                .unwrap(),
        );
        candle_core::safetensors::save(&tensors, copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(
            error.contains(name) && error.contains("shape mismatch"),
            "{error}"
        );
    }
}

#[test]
fn another_architecture() {
    let copy = Copy::of("detector");
    for (config, expected) in [
        (r#"{"model_type": "bert"}"#, "\"bert\""),
        (r#"{}"#, "\"grounding-dino\" is needed"),
        ("not json", "config.json is not a usable configuration"),
        (
            r#"{"model_type": "grounding-dino", "backbone_config": {"model_type": "resnet"}}"#,
            "\"resnet\" is not supported",
        ),
        (
            r#"{"model_type": "grounding-dino", "d_model": 250}"#,
            "d_model=250",
        ),
    ] {
        fs::write(copy.file("config.json"), config).unwrap();
        let error = copy.error();
        assert!(
            error.contains(expected) && error.contains("config.json"),
            "{error}"
        );
    }
    // a segmenter's folder as a detector
    let segmenter = repository("models/demo/segmenter");
    let image = "examples/images/shapes.png";
    let flags = ["--detector", segmenter.to_str().unwrap()];
    let error = failure(&["predict", image, "--prompt", "star", flags[0], flags[1]]);
    assert!(error.contains("\"sam\""), "{error}");
}
