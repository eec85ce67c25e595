//! The hub's cache, which all tools of the hub share.
//!
//! Its layout is documented at <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>:
//! `models--OWNER--NAME/snapshots/COMMIT/FILE` links to `blobs/ETAG`, and `refs/REVISION` holds a commit. An etag is
//! the file's SHA-256, or git's SHA-1 for a small file. Lock files are at the same paths as those of the Python
//! tools.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::{Cache, Repo, RepoType};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::revision::{RepoRevision, is_commit};

/// The folder of one repository in the cache.
#[derive(Debug)]
pub(super) struct CachedRepo {
    /// `models--OWNER--NAME`
    name: String,
    root: PathBuf,
    cache: PathBuf,
}

/// A blob that is being downloaded. Its lock keeps other processes from downloading it at the same time.
#[derive(Debug)]
pub(super) struct BlobLock {
    blob: PathBuf,
    etag: String,
    _lock: Option<File>,
}

/// The two checksums of a damaged file, in hexadecimal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) found: String,
    pub(super) expected: String,
}

impl CachedRepo {
    pub(super) fn new(cache: &Path, repo: &RepoRevision) -> Self {
        let name = Repo::new(repo.id.clone(), RepoType::Model).folder_name();
        Self {
            root: cache.join(&name),
            name,
            cache: cache.to_owned(),
        }
    }

    /// The folder of the whole cache.
    pub(super) fn cache_folder(&self) -> &Path {
        &self.cache
    }

    /// The folder of a revision's files; `None` if none of them was ever downloaded.
    pub(super) fn snapshot(&self, repo: &RepoRevision) -> Option<PathBuf> {
        let commit = if repo.is_commit() {
            repo.revision.clone()
        } else {
            let reference = self.root.join("refs").join(&repo.revision);
            let commit = fs::read_to_string(reference).ok()?.trim().to_owned();
            is_commit(&commit).then_some(commit)?
        };
        let folder = self.folder(repo, &commit);
        folder.is_dir().then_some(folder)
    }

    fn folder(&self, repo: &RepoRevision, commit: &str) -> PathBuf {
        let repo = Repo::with_revision(repo.id.clone(), RepoType::Model, repo.revision.clone());
        Cache::new(self.cache.clone())
            .repo(repo)
            .pointer_path(commit)
    }

    /// Locks a blob. Calls `waiting` once if another process holds the lock.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub(super) fn lock(&self, etag: &str, waiting: impl Fn()) -> io::Result<BlobLock> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs)?;
        let locks = self.cache.join(".locks").join(&self.name);
        fs::create_dir_all(&locks)?;
        let file = File::create(locks.join(format!("{etag}.lock")))?;
        let mut has_reported = false;
        let lock = loop {
            match file.try_lock() {
                Ok(()) => break Some(file),
                Err(TryLockError::WouldBlock) => {
                    if !has_reported {
                        waiting();
                        has_reported = true;
                    }
                    std::thread::sleep(Duration::from_millis(300));
                }
                // the file system has no locks: two processes may download the same file
                Err(TryLockError::Error(_)) => break None,
            }
        };
        Ok(BlobLock {
            blob: blobs.join(etag),
            etag: etag.to_owned(),
            _lock: lock,
        })
    }

    /// Links a blob under the file's name into the snapshot of a commit, and stores the commit of the revision.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub(super) fn publish(
        &self,
        blob: &BlobLock,
        repo: &RepoRevision,
        commit: &str,
        file: &str,
    ) -> io::Result<PathBuf> {
        let folder = self.folder(repo, commit);
        fs::create_dir_all(&folder)?;
        let pointer = folder.join(file);
        if !pointer.is_file() {
            // a broken link
            match fs::remove_file(&pointer) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            link(&blob.blob, &blob.etag, &pointer)?;
        }
        if repo.revision != commit {
            let reference = self.root.join("refs").join(&repo.revision);
            if let Some(parent) = reference.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(reference, commit)?;
        }
        Ok(pointer)
    }
}

#[cfg(unix)]
fn link(_: &Path, etag: &str, pointer: &Path) -> io::Result<()> {
    match std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), pointer) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Copies the file, because symbolic links need a privilege on these systems.
#[cfg(not(unix))]
fn link(blob: &Path, _: &str, pointer: &Path) -> io::Result<()> {
    fs::copy(blob, pointer).map(|_| ())
}

impl BlobLock {
    /// The path of the complete file.
    pub(super) fn blob(&self) -> &Path {
        &self.blob
    }

    /// The path of the partial download.
    pub(super) fn partial(&self) -> PathBuf {
        self.blob
            .with_file_name(format!("{}.incomplete", self.etag))
    }

    /// Compares the checksum of a file with the blob's etag; `None` if they are equal.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn checksum_mismatch(&self, file: &Path) -> io::Result<Option<Mismatch>> {
        checksum_mismatch(file, &self.etag)
    }
}

/// Compares the checksum of a file with its etag; `None` if they are equal, or if the etag is no checksum.
///
/// # Errors
/// If the file cannot be read.
pub(super) fn checksum_mismatch(file: &Path, etag: &str) -> io::Result<Option<Mismatch>> {
    let found = match etag.len() {
        64 => sha256(file)?,
        40 => git_sha1(file)?,
        // a mirror's own etag, which is no checksum
        _ => return Ok(None),
    };
    Ok((found != etag).then(|| Mismatch {
        found,
        expected: etag.to_owned(),
    }))
}

/// A file's SHA-256 in hexadecimal.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path) -> io::Result<String> {
    digest(path, Context::new(&SHA256))
}

/// The SHA-1 that git gives to a file with these contents.
fn git_sha1(path: &Path) -> io::Result<String> {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", fs::metadata(path)?.len()).as_bytes());
    digest(path, context)
}

fn digest(path: &Path, mut context: Context) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => context.update(&buffer[..length]),
        }
    }
    let digest = context.finish();
    Ok(digest.as_ref().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hello");
        fs::write(&file, "hello\n").unwrap();
        // the outputs of sha256sum and git hash-object
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let sha1 = "ce013625030ba8dba906f756967f9e9ca394464a";
        for etag in [sha256, sha1, "abc"] {
            assert_eq!(checksum_mismatch(&file, etag).unwrap(), None);
        }
        fs::write(&file, "hallo\n").unwrap();
        assert!(checksum_mismatch(&file, sha256).unwrap().is_some());
        assert!(checksum_mismatch(&file, sha1).unwrap().is_some());
    }
}
