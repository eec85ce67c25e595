//! Any bytes as a weights file are an error, or a checkpoint whose configuration is derived or rejected. The bytes decide
//! the format: safetensors, or the zip archive of a torch file.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use groundling::models::weights::Checkpoint;
use groundling::models::{grounding_dino, sam};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder can be created"));

fuzz_target!(|bytes: &[u8]| {
    let path: PathBuf = FOLDER.path().join("weights");
    std::fs::write(&path, bytes).expect("the file can be written");
    let checkpoint = Checkpoint::File(path);
    if checkpoint.open().is_ok() {
        let _ = checkpoint.open_model::<grounding_dino::Config>();
        let _ = checkpoint.open_model::<sam::Config>();
    }
});
