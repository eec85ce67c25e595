//! The files of the disk cache: their names, listing and writing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ring::digest::{Context, SHA256};

use super::{BlobKey, DiskError};

/// A finished file in the folder.
#[derive(Debug)]
pub(super) struct StoredFile {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// The time of the last use.
    pub(super) used_at: SystemTime,
}

/// Extension of finished files.
const FINISHED_EXTENSION: &str = "bin";
/// Extension of temporary files.
const TEMPORARY_EXTENSION: &str = "part";

/// A temporary file that was not modified for this time belongs to a process that no longer runs.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// Path of a key's file inside of the folder: `ab/0123456789abcdef-abcd....bin`. The name has the first 8 bytes of the
/// model's identity and the digest of the content; the subfolder is named after the first byte of that digest.
pub(super) fn file_name(key: &BlobKey) -> PathBuf {
    let content = hex(&key.content);
    let name = format!("{}-{content}.{FINISHED_EXTENSION}", hex(&key.model[..8]));
    Path::new(&content[..2]).join(name)
}

/// Lists the finished files below a folder, and removes abandoned temporary files.
pub(super) fn finished_files(folder: &Path) -> Vec<StoredFile> {
    let mut found = vec![];
    let Ok(folders) = fs::read_dir(folder) else {
        return found;
    };
    let files = folders
        .filter_map(|folder| fs::read_dir(folder.ok()?.path()).ok())
        .flatten()
        .filter_map(Result::ok);
    for file in files {
        let path = file.path();
        // the file was deleted after the folder was listed
        let Ok(metadata) = file.metadata() else {
            continue;
        };
        let used_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(FINISHED_EXTENSION) => found.push(StoredFile {
                path,
                bytes: metadata.len(),
                used_at,
            }),
            Some(TEMPORARY_EXTENSION)
                if used_at.elapsed().is_ok_and(|age| age > ABANDONED_AFTER) =>
            {
                // an error is ignored: another process may have removed it
                let _ = fs::remove_file(&path);
            }
            _ => {}
        }
    }
    found
}

/// Writes a file under a temporary name, then renames it.
pub(super) fn write_file(path: &Path, header: &[u8], payload: &[u8]) -> Result<(), DiskError> {
    let failed = |path: &Path, source| DiskError::Write {
        path: path.display().to_string(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    }
    let temporary = path.with_extension(format!(
        "{:016x}.{TEMPORARY_EXTENSION}",
        rand::random::<u64>()
    ));
    let write = || {
        let mut sum = Context::new(&SHA256);
        let mut file = File::create_new(&temporary)?;
        for part in [header, payload] {
            sum.update(part);
            file.write_all(part)?;
        }
        file.write_all(sum.finish().as_ref())?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| {
        // an error is ignored: a file that remains is removed later as abandoned
        let _ = fs::remove_file(&temporary);
        failed(path, error)
    })
}

/// Sets the modification time, which is the time of the last use. If it cannot be set, the only effect is that the file
/// is evicted earlier.
pub(super) fn mark_used(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}

/// Whether the error means that the file does not exist.
pub(super) fn is_not_found(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
