//! Local files: opened once, and checked as what is open.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::MediaError;
use super::fetch::Validators;
use super::location::LocationError;

/// What a local file is called in messages.
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

/// Opens a local file, unless it is as it was. It was looked at by its name before, and could be another one by now: what
/// counts is the file that is open.
pub(super) fn open(
    path: &Path,
    root: &Path,
    name: String,
    limit: u64,
    known: &Validators,
) -> Result<Option<OpenFile>, MediaError> {
    let failed = |error: std::io::Error| unreadable(&name, &error.to_string());
    let file = open_now(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unreadable(&name, "it is not a file"));
    }
    let (real, real_root) = (path.canonicalize(), root.canonicalize());
    let (real, real_root) = (real.map_err(failed)?, real_root.map_err(failed)?);
    if !real.starts_with(real_root) || !is_same(&metadata, &real) {
        return Err(LocationError::Outside(name).into());
    }
    if metadata.len() > limit {
        return Err(MediaError::TooLarge {
            url: describe(&name),
            limit: limit as usize,
        });
    }
    let validators = Validators::of_file(&metadata);
    let is_same = !known.are_none() && *known == validators;
    Ok((!is_same).then_some(OpenFile {
        file,
        name,
        length: metadata.len() as usize,
        validators,
    }))
}

impl OpenFile {
    /// Its bytes. It may have grown since it was opened.
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

/// Opens what may be no file, without waiting for a writer to it.
fn open_now(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    options.open(path)
}

/// Whether an open file is the one that has this name now.
fn is_same(open: &std::fs::Metadata, path: &Path) -> bool {
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
    fn a_file_that_was_exchanged_after_it_was_looked_at_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let (file, secret) = (root.join("a.png"), folder.path().join("secret"));
        std::fs::write(&file, "picture").unwrap();
        std::fs::write(&secret, "secret").unwrap();
        let read = |limit| {
            let known = Validators::default();
            let file = open(&file, &root, "a.png".to_owned(), limit, &known)?;
            file.expect("there is nothing known").read(limit as usize)
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
