//! Any pickle in an archive as torch writes it is an error or a tree of tensors, whose shapes may be any numbers; a
//! configuration is derived from them or refused. It is [`checkpoint`](./checkpoint.rs) without the archive's
//! checksums, which mutations rarely meet.

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

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|pickle: &[u8]| {
    let path: PathBuf = FOLDER.path().join("weights");
    let mut archive = ZipWriter::new(std::fs::File::create(&path).expect("a file"));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    archive
        .start_file("archive/data.pkl", stored)
        .expect("a member");
    archive.write_all(pickle).expect("a member");
    archive.finish().expect("an archive");
    let checkpoint = Checkpoint::File(path);
    if checkpoint.open().is_ok() {
        let _ = checkpoint.open_model::<grounding_dino::Config>();
        let _ = checkpoint.open_model::<sam::Config>();
    }
});
