//! Reads local files. All checks are made on the open file, so that replacing it between a check and the read has no
//! effect.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::MediaError;
use super::fetch::Validators;
use super::location::LocationError;

/// The name of a local file in messages.
pub(super) fn describe(name: &str) -> String {
    format!("the local file {name}")
}

/// A local file that is open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    name: String,
    pub(super) length: usize,
    validators: Validators,
}

/// Opens a local file; returns `None` if its validators equal `known`. The path was checked before, but it could name
/// another file by now, so the checks are repeated on the open file.
pub(super) fn open(
    path: &Path,
    root: &Path,
    name: String,
    limit: u64,
    known: &Validators,
) -> Result<Option<OpenFile>, MediaError> {
    let failed = |error: std::io::Error| unreadable(&name, &error.to_string());
    let file = open_nonblocking(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unreadable(&name, "it is not a regular file"));
    }
    let (real, real_root) = (path.canonicalize(), root.canonicalize());
    let (real, real_root) = (real.map_err(failed)?, real_root.map_err(failed)?);
    if !real.starts_with(real_root) || !is_same_file(&metadata, &real) {
        return Err(LocationError::Outside(name).into());
    }
    if metadata.len() > limit {
        return Err(MediaError::TooLarge {
            url: describe(&name),
            limit: limit as usize,
        });
    }
    let validators = Validators::of_file(&metadata);
    let is_unchanged = !known.is_empty() && *known == validators;
    Ok((!is_unchanged).then_some(OpenFile {
        file,
        name,
        length: metadata.len() as usize,
        validators,
    }))
}

impl OpenFile {
    /// Reads the bytes of the file, at most `limit`: it may have grown since it was opened.
    pub(super) fn read(self, limit: usize) -> Result<(Vec<u8>, Validators), MediaError> {
        let mut bytes = Vec::with_capacity(self.length);
        let read = self.file.take(limit as u64 + 1).read_to_end(&mut bytes);
        let read = read.map_err(|error| unreadable(&self.name, &error.to_string()))?;
        if read > limit {
            return Err(MediaError::TooLarge {
                url: describe(&self.name),
                limit,
            });
        }
        Ok((bytes, self.validators))
    }
}

fn unreadable(name: &str, reason: &str) -> MediaError {
    MediaError::Unreachable {
        url: describe(name),
        reason: format!("{reason} (LOCAL_FILES_DOCUMENT_ROOT)"),
    }
}

/// Opens a path that may not be a regular file. It does not block on a named pipe without a writer.
fn open_nonblocking(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    options.open(path)
}

/// Whether the open file is the file that the path names now.
fn is_same_file(open: &std::fs::Metadata, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::symlink_metadata(path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()))
    }
    #[cfg(not(unix))]
    {
        std::fs::symlink_metadata(path).is_ok_and(|named| named.len() == open.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_replaced_after_the_check_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let (file, secret) = (root.join("a.png"), folder.path().join("secret"));
        std::fs::write(&file, "picture").unwrap();
        std::fs::write(&secret, "secret").unwrap();
        let read = |limit| {
            let known = Validators::default();
            let file = open(&file, &root, "a.png".to_owned(), limit, &known)?;
            file.expect("no validators are known").read(limit as usize)
        };
        assert!(matches!(read(7), Ok((bytes, _)) if bytes == b"picture"));
        assert!(matches!(read(6), Err(MediaError::TooLarge { .. })));
        #[cfg(unix)]
        {
            std::fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink(&secret, &file).unwrap();
            let error = read(100).unwrap_err().to_string();
            assert!(
                error.contains("outside LOCAL_FILES_DOCUMENT_ROOT"),
                "{error}"
            );
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
            assert!(read(100).is_err());
        }
    }
}
