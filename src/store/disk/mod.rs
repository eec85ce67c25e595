//! Disk cache: results as files in one folder, which survive a restart.
//!
//! A file is written under a temporary name and then renamed, and it ends with a checksum, so an incomplete file is
//! never used. Several processes may use the folder at the same time, so a file that disappears is not an error. The
//! modification time of a file is the time of its last use. Once the files exceed the capacity, the least recently used
//! ones are deleted.

mod eviction;
mod files;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::eviction::FolderStats;
use self::files::{file_name, is_not_found, mark_used, write_file};
use super::Usage;
pub use super::blob::BlobKey;
use super::blob::{FRAME_BYTES, HEADER_BYTES, header, payload, payload_length};

/// Why a result was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The folder cannot be created, or a file in it cannot be written.
    #[error("{path} cannot be written (CACHE_DIR): {source}")]
    Write {
        /// The file or the folder.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The result is larger than the capacity of the whole folder.
    #[error(
        "a result of {bytes} bytes is larger than the capacity of {capacity} bytes (WARM_BYTES)"
    )]
    TooLarge {
        /// Size of its file in bytes.
        bytes: u64,
        /// Capacity of the folder in bytes.
        capacity: u64,
    },
}

/// A folder of results with a byte limit. Clones share the counters.
#[derive(Debug, Clone)]
pub struct DiskStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    capacity: u64,
    hits: AtomicU64,
    misses: AtomicU64,
    evicted: AtomicU64,
    /// Whether the log already says that the folder cannot be written.
    has_warned: AtomicBool,
    stats: Mutex<FolderStats>,
}

impl DiskStore {
    /// Stores up to `capacity` bytes of files in `folder`. Nothing is read or written yet; the folder is created with
    /// the first file.
    pub fn new(folder: PathBuf, capacity: u64) -> Self {
        Self(Arc::new(Inner {
            folder,
            capacity,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            has_warned: AtomicBool::new(false),
            stats: Mutex::default(),
        }))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Maximum size of all files together in bytes.
    pub fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// Number of files deleted to make room for others.
    pub fn evicted(&self) -> u64 {
        self.0.evicted.load(Ordering::Relaxed)
    }

    /// Size in bytes of the file for a payload of `payload` bytes.
    pub fn file_bytes(payload: usize) -> u64 {
        payload as u64 + FRAME_BYTES
    }

    /// Returns the payload of a key; `None` if there is no valid file. A damaged file is deleted; a file of another
    /// model or format version is left alone.
    pub fn get(&self, key: &BlobKey) -> Option<Vec<u8>> {
        let found = self.read(key);
        let count = match found {
            Some(_) => &self.0.hits,
            None => &self.0.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Returns the size in bytes of a key's file, if it exists, has the expected length and belongs to the key's model.
    /// This counts as a use of the file. The checksum is not verified.
    pub fn touch(&self, key: &BlobKey) -> Option<u64> {
        let mut file = File::open(self.path(key)).ok()?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).ok()?;
        let length = file.metadata().ok()?.len();
        let payload = payload_length(&header, key)?;
        if length != payload.checked_add(FRAME_BYTES)? {
            return None;
        }
        mark_used(&file);
        Some(length)
    }

    /// Writes a payload, then deletes the least recently used files until all files fit. Returns the size of the file
    /// in bytes.
    ///
    /// # Errors
    /// If it is larger than the capacity, or the folder cannot be written.
    pub fn put(&self, key: &BlobKey, payload: &[u8]) -> Result<u64, DiskError> {
        let bytes = Self::file_bytes(payload.len());
        if bytes > self.0.capacity {
            return Err(DiskError::TooLarge {
                bytes,
                capacity: self.0.capacity,
            });
        }
        let path = self.path(key);
        let replaced = fs::metadata(&path).map(|metadata| metadata.len()).ok();
        write_file(&path, &header(key, payload.len()), payload)?;
        self.0.has_warned.store(false, Ordering::Relaxed);
        let is_scan_due = {
            let mut stats = self.stats();
            stats.bytes = stats.bytes.saturating_sub(replaced.unwrap_or(0)) + bytes;
            stats.entries += u64::from(replaced.is_none());
            !stats.is_recent() || stats.bytes > self.0.capacity
        };
        if is_scan_due {
            self.scan_and_evict();
        }
        Ok(bytes)
    }

    /// Logs why a result was not written. Further errors are not logged until a write has succeeded again.
    pub fn warn_once(&self, error: &DiskError) {
        if !self.0.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "cannot store results on disk");
        }
    }

    /// The current usage, as far as this process knows.
    pub fn usage(&self) -> Usage {
        let stats = self.stats();
        Usage {
            hits: self.0.hits.load(Ordering::Relaxed),
            misses: self.0.misses.load(Ordering::Relaxed),
            entries: stats.entries,
            bytes: stats.bytes,
            capacity: self.0.capacity,
        }
    }

    fn stats(&self) -> MutexGuard<'_, FolderStats> {
        self.0.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: &BlobKey) -> PathBuf {
        self.0.folder.join(file_name(key))
    }

    fn read(&self, key: &BlobKey) -> Option<Vec<u8>> {
        let path = self.path(key);
        let read = || {
            let mut file = File::open(&path)?;
            let mut bytes = vec![];
            file.read_to_end(&mut bytes)?;
            Ok((file, bytes))
        };
        let (file, bytes) = match read() {
            Ok(read) => read,
            Err(error) => {
                if !is_not_found(&error) {
                    tracing::warn!(file = %path.display(), %error, "cannot read a stored result");
                }
                return None;
            }
        };
        match payload(bytes, key) {
            Ok(Some(payload)) => {
                mark_used(&file);
                Some(payload)
            }
            Ok(None) => None,
            Err(reason) => {
                tracing::warn!(
                    file = %path.display(),
                    reason,
                    "a stored result is damaged: it is deleted and will be computed again"
                );
                // an error is ignored: another process may have deleted the file, and if it remains, the next read logs
                // it again
                let _ = fs::remove_file(&path);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
