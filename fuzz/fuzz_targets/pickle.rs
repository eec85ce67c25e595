//! Any pickle in a torch archive is an error, or a tree of tensors with any shapes from which a configuration is derived
//! or rejected. Other than in [`checkpoint`](./checkpoint.rs), the checksums of the archive are always right, so that
//! mutations reach the pickle.

#![no_main]

use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

use groundling::models::weights::Checkpoint;
use groundling::models::{grounding_dino, sam};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder can be created"));

fuzz_target!(|pickle: &[u8]| {
    let path: PathBuf = FOLDER.path().join("weights");
    let mut archive = ZipWriter::new(std::fs::File::create(&path).expect("the file can be created"));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    archive
        .start_file("archive/data.pkl", stored)
        .expect("the pickle can be written");
    archive.write_all(pickle).expect("the pickle can be written");
    archive.finish().expect("the archive can be written");
    let checkpoint = Checkpoint::File(path);
    if checkpoint.open().is_ok() {
        let _ = checkpoint.open_model::<grounding_dino::Config>();
        let _ = checkpoint.open_model::<sam::Config>();
    }
});
