//! Torch files as checkpoints: pickles are read without running code, and a damaged file is an error that names it.

use std::fs;

use crate::checkpoints::with_weights;
use crate::support::repository;

/// A torch file (a zip archive) with this pickle.
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
fn a_pickle_that_calls_a_function_is_rejected_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("code-ran");
    let shell_command = format!("touch {}", trace.display());
    // pickle.dumps(..., 2) of an object whose __reduce__ returns (os.system, (shell_command,))
    let mut pickle = b"\x80\x02cposix\nsystem\nq\x00X".to_vec();
    pickle.extend((shell_command.len() as u32).to_le_bytes());
    pickle.extend(shell_command.as_bytes());
    pickle.extend(b"q\x01\x85q\x02Rq\x03.");
    // the same as a value in a dictionary
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
    // the format before torch 1.6: a pickle without an archive
    let error = with_weights("sam.pt", &pickle).error();
    assert!(
        error.contains("sam.pt") && error.contains("before 1.6"),
        "{error}"
    );
    assert!(!trace.exists());
}

#[test]
fn a_damaged_or_foreign_file_is_an_error_that_says_what_is_wrong() {
    let sam = fs::read(repository("tests/reference/segmenter/plain/original.pth")).unwrap();
    let no_tensors = torch_file(b"\x80\x02}.");
    let truncated_pickle = torch_file(b"\x80\x02(X\xff\xff\xff\xff");
    let lfs_pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n";
    for (bytes, expected) in [
        (&sam[..sam.len() / 2], "it may be truncated"),
        (no_tensors.as_slice(), "it contains no tensors"),
        (truncated_pickle.as_slice(), "it ends unexpectedly"),
        (
            b"PK\x03\x04 and nothing more".as_slice(),
            "not a complete zip archive",
        ),
        (lfs_pointer.as_slice(), "a Git LFS pointer"),
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
    // a flipped bit: the archive has checksums
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
