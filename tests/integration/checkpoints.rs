//! Checkpoints that cannot be used: the file and what is wrong with it are named.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};

use crate::cli::{failure, groundling};
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

    /// What `predict` does with it as `--detector` or `--segmenter`.
    fn output(&self) -> std::process::Output {
        let kind = self.path.file_name().unwrap().to_str().unwrap();
        let flag = format!("--{kind}");
        let path = self.path.to_str().unwrap();
        let image = "examples/images/shapes.png";
        groundling(&["predict", image, "--prompt", "star", &flag, path])
    }

    /// What it says, where it must fail.
    fn error(&self) -> String {
        let output = self.output();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
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
        ("detector", "preprocessor_config.json"),
        ("detector", "tokenizer.json"),
        ("segmenter", "preprocessor_config.json"),
    ] {
        let copy = Copy::of(kind);
        fs::remove_file(copy.file(file)).unwrap();
        let error = copy.error();
        assert!(
            error.contains(file) && error.contains("cannot read"),
            "{error}"
        );
    }
    for kind in ["detector", "segmenter"] {
        let copy = Copy::of(kind);
        fs::remove_file(copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(
            error.contains("has no weights: it must have model.safetensors"),
            "{error}"
        );
    }
}

#[test]
fn weights_alone_that_do_not_tell_their_configuration() {
    for kind in ["detector", "segmenter"] {
        let copy = Copy::of(kind);
        fs::remove_file(copy.file("config.json")).unwrap();
        let error = copy.error();
        assert!(error.contains("put its config.json beside it"), "{error}");
    }
}

#[test]
fn several_files_of_weights() {
    let copy = Copy::of("segmenter");
    fs::rename(copy.file("model.safetensors"), copy.file("a.safetensors")).unwrap();
    // one of any name will do
    let error = copy.output();
    assert!(error.status.success(), "{error:?}");
    fs::copy(copy.file("a.safetensors"), copy.file("b.safetensors")).unwrap();
    let error = copy.error();
    assert!(error.contains("(a.safetensors, b.safetensors)"), "{error}");
}

#[test]
fn a_truncated_file() {
    for kind in ["detector", "segmenter"] {
        let copy = Copy::of(kind);
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

/// A segmenter's folder with this as its only file of weights.
fn with_weights(name: &str, bytes: &[u8]) -> Copy {
    let copy = Copy::of("segmenter");
    fs::remove_file(copy.file("model.safetensors")).unwrap();
    fs::write(copy.file(name), bytes).unwrap();
    copy
}

/// A torch file with this pickle.
fn torch_file(pickle: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(&mut bytes));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("archive/data.pkl", stored).unwrap();
    std::io::Write::write_all(&mut archive, pickle).unwrap();
    archive.finish().unwrap();
    bytes
}

#[test]
fn a_pickle_with_code_is_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("it-ran");
    let order = format!("touch {}", trace.display());
    // what pickle.dumps(..., 2) writes of an object whose __reduce__ gives (os.system, (order,))
    let mut pickle = b"\x80\x02cposix\nsystem\nq\x00X".to_vec();
    pickle.extend((order.len() as u32).to_le_bytes());
    pickle.extend(order.as_bytes());
    pickle.extend(b"q\x01\x85q\x02Rq\x03.");
    let hidden = [
        b"\x80\x02}X\x05\x00\x00\x00model".as_slice(),
        &pickle[2..pickle.len() - 1],
        b"s.",
    ];
    for pickle in [pickle.clone(), hidden.concat()] {
        let error = with_weights("sam.pth", &torch_file(&pickle)).error();
        assert!(
            error.contains("sam.pth") && error.contains("it refers to posix.system"),
            "{error}"
        );
    }
    // not even when the archive is left away, as torch wrote before 1.6
    let error = with_weights("sam.pt", &pickle).error();
    assert!(
        error.contains("sam.pt") && error.contains("before 1.6"),
        "{error}"
    );
    assert!(!trace.exists());
}

#[test]
fn what_is_no_checkpoint() {
    let sam = fs::read(repository("tests/reference/segmenter/plain/original.pth")).unwrap();
    let no_tensors = torch_file(b"\x80\x02}.");
    let endless = torch_file(b"\x80\x02(X\xff\xff\xff\xff");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
    for (bytes, expected) in [
        (&sam[..sam.len() / 2], "it may be truncated"),
        (no_tensors.as_slice(), "it contains no tensors"),
        (endless.as_slice(), "it ends unexpectedly"),
        (
            b"PK\x03\x04 and nothing more".as_slice(),
            "not a complete zip archive",
        ),
        (pointer.as_slice(), "a Git LFS pointer"),
        (
            b"<html>not found</html>".as_slice(),
            "neither a safetensors file nor",
        ),
    ] {
        let error = with_weights("sam.pth", bytes).error();
        assert!(
            error.contains("sam.pth") && error.contains(expected),
            "{expected}: {error}"
        );
    }
    // a bit that fell over: the archive knows its checksums
    let mut flipped = sam.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let original = repository("tests/reference/segmenter/plain");
    let copy = with_weights("sam.pth", &flipped);
    fs::copy(original.join("config.json"), copy.file("config.json")).unwrap();
    let error = copy.error();
    assert!(
        error.contains("sam.pth") && error.to_lowercase().contains("checksum"),
        "{error}"
    );
}

#[test]
fn pixels_that_make_no_sense() {
    let copy = Copy::of("detector");
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
fn models_that_are_known_and_not_supported() {
    let copy = Copy::of("segmenter");
    let tensor = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    for (name, expected) in [
        ("image_encoder.trunk.patch_embed.proj.weight", "SAM 2"),
        ("mask_decoder.hf_token.weight", "SAM-HQ"),
        ("something.else", "of an unknown model"),
    ] {
        let tensors = HashMap::from([(name.to_owned(), tensor.clone())]);
        candle_core::safetensors::save(&tensors, copy.file("model.safetensors")).unwrap();
        let error = copy.error();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn another_architecture() {
    let copy = Copy::of("detector");
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
    // a segmenter's folder as a detector
    let segmenter = repository("models/demo/segmenter");
    let image = "examples/images/shapes.png";
    let flags = ["--detector", segmenter.to_str().unwrap()];
    let error = failure(&["predict", image, "--prompt", "star", flags[0], flags[1]]);
    assert!(error.contains("\"sam\""), "{error}");
}
