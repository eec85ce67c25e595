//! Checkpoints that cannot be used: the error names the file and says what is wrong with it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};

use crate::command::{failure, groundling};
use crate::support::repository;

/// A copy of a demo checkpoint that a test can damage.
pub struct CheckpointCopy {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl CheckpointCopy {
    /// Copies the demo detector or segmenter.
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

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The output of `predict` with this checkpoint as `--detector` or `--segmenter`.
    fn output(&self) -> std::process::Output {
        let kind = self.path.file_name().unwrap().to_str().unwrap();
        let flag = format!("--{kind}");
        let path = self.path.to_str().unwrap();
        let image = "examples/images/shapes.png";
        groundling(&["predict", image, "--prompt", "star", &flag, path])
    }

    /// The error of `predict`, which must fail.
    pub fn error(&self) -> String {
        let output = self.output();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn tensors(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.file("model.safetensors"), &Device::Cpu).unwrap()
    }
}

#[test]
fn an_unknown_detector_is_an_error_that_names_it() {
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
fn a_missing_file_is_named() {
    for (kind, file) in [
        ("detector", "preprocessor_config.json"),
        ("detector", "tokenizer.json"),
        ("segmenter", "preprocessor_config.json"),
    ] {
        let copy = CheckpointCopy::of(kind);
        fs::remove_file(copy.file(file)).unwrap();
        let error = copy.error();
        assert!(
            error.contains(file) && error.contains("cannot read"),
            "{error}"
        );
    }
    for kind in ["detector", "segmenter"] {
        let copy = CheckpointCopy::of(kind);
        fs::remove_file(copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(
            error.contains("has no weights: it must have model.safetensors"),
            "{error}"
        );
    }
}

#[test]
fn weights_without_a_config_json_are_an_error_that_says_where_to_put_it() {
    for kind in ["detector", "segmenter"] {
        let copy = CheckpointCopy::of(kind);
        fs::remove_file(copy.file("config.json")).unwrap();
        let error = copy.error();
        assert!(error.contains("put its config.json beside it"), "{error}");
    }
}

#[test]
fn one_weights_file_may_have_any_name_but_two_are_ambiguous() {
    let copy = CheckpointCopy::of("segmenter");
    fs::rename(copy.file("model.safetensors"), copy.file("a.safetensors")).unwrap();
    let output = copy.output();
    assert!(output.status.success(), "{output:?}");
    fs::copy(copy.file("a.safetensors"), copy.file("b.safetensors")).unwrap();
    let error = copy.error();
    assert!(error.contains("(a.safetensors, b.safetensors)"), "{error}");
}

#[test]
fn a_truncated_file_is_not_a_usable_checkpoint() {
    for kind in ["detector", "segmenter"] {
        let copy = CheckpointCopy::of(kind);
        let weights = copy.file("model.safetensors");
        let bytes = fs::read(&weights).unwrap();
        for length in [0, 5, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&weights, &bytes[..length]).unwrap();
            let error = copy.error();
            assert!(
                error.contains("model.safetensors is not a usable checkpoint"),
                "{length}: {error}"
            );
        }
    }
}

#[test]
fn a_missing_tensor_and_a_tensor_with_another_shape_are_named() {
    for (kind, name) in [
        ("detector", "model.text_projection.weight"),
        ("segmenter", "mask_decoder.iou_token.weight"),
    ] {
        let copy = CheckpointCopy::of(kind);
        let mut tensors = copy.tensors();
        let tensor = tensors.remove(name).unwrap();
        candle_core::safetensors::save(&tensors, copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        let expected = format!("the tensor {name} is missing");
        assert!(error.contains(&expected), "{error}");
        let wider = Tensor::cat(&[&tensor, &tensor], 0).unwrap();
        tensors.insert(name.to_owned(), wider);
        candle_core::safetensors::save(&tensors, copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(
            error.contains(name) && error.contains("but the model needs"),
            "{error}"
        );
    }
}

/// A copy of the demo segmenter with this file in place of its weights.
pub fn with_weights(name: &str, bytes: &[u8]) -> CheckpointCopy {
    let copy = CheckpointCopy::of("segmenter");
    fs::remove_file(copy.file("model.safetensors")).unwrap();
    fs::write(copy.file(name), bytes).unwrap();
    copy
}

#[test]
fn an_invalid_preprocessor_setting_is_named_with_its_value() {
    let copy = CheckpointCopy::of("detector");
    for (config, expected) in [
        (
            r#"{"size": {"shortest_edge": 100000000000}}"#,
            "100000000000",
        ),
        (
            r#"{"size": {"shortest_edge": 0}}"#,
            "size=0: an edge must have 1 to 8192 pixels",
        ),
        (r#"{"image_std": [0, 0, 0]}"#, "image_std"),
        (r#"{"do_normalize": false}"#, "do_normalize=false"),
    ] {
        fs::write(copy.file("preprocessor_config.json"), config).unwrap();
        let error = copy.error();
        assert!(
            error.contains("preprocessor_config.json") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn an_unsupported_model_is_named() {
    let copy = CheckpointCopy::of("segmenter");
    let tensor = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    for (name, expected) in [
        (
            "detector_model.detr_decoder.presence_token.weight",
            "it contains SAM 3, which is not supported",
        ),
        ("sam_mask_decoder.hf_token.weight", "HQ-SAM 2"),
        ("something.else", "of an unknown model"),
    ] {
        let tensors = HashMap::from([(name.to_owned(), tensor.clone())]);
        candle_core::safetensors::save(&tensors, copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_invalid_or_unsupported_configuration_is_named() {
    let copy = CheckpointCopy::of("detector");
    for (config, expected) in [
        (r#"{"model_type": "bert"}"#, "\"bert\""),
        (
            r#"{}"#,
            "\"grounding-dino\" or \"mm-grounding-dino\" is needed",
        ),
        ("not json", "config.json is not a usable configuration"),
        (
            r#"{"model_type": "grounding-dino", "backbone_config": {"model_type": "resnet"}}"#,
            "\"resnet\" is not supported",
        ),
        (
            r#"{"model_type": "grounding-dino", "d_model": 250, "num_queries": null}"#,
            "d_model=250",
        ),
        (
            r#"{"model_type": "grounding-dino", "encoder_layers": 1000000000000}"#,
            "encoder_layers=1000000000000: it must be at most 256",
        ),
    ] {
        fs::write(copy.file("config.json"), config).unwrap();
        let error = copy.error();
        assert!(
            error.contains(expected) && error.contains("config.json"),
            "{error}"
        );
    }
    // the folder of a segmenter as detector
    let segmenter = repository("models/demo/segmenter");
    let image = "examples/images/shapes.png";
    let flags = ["--detector", segmenter.to_str().unwrap()];
    let error = failure(&["predict", image, "--prompt", "star", flags[0], flags[1]]);
    assert!(error.contains("\"sam\""), "{error}");
}
