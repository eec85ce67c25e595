//! Any bytes as a file of weights are an error or a checkpoint; its configuration is derived or refused. The bytes
//! decide on the format: safetensors, or the zip archive that torch writes.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use groundling::models::weights::Checkpoint;
use groundling::models::{grounding_dino, sam};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|bytes: &[u8]| {
    let path: PathBuf = FOLDER.path().join("weights");
    std::fs::write(&path, bytes).expect("a file");
    let checkpoint = Checkpoint::File(path);
    if checkpoint.open().is_ok() {
        let _ = checkpoint.open_model::<grounding_dino::Config>();
        let _ = checkpoint.open_model::<sam::Config>();
    }
});
