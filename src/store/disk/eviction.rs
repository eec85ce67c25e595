//! Keeps the folder of the disk cache within its capacity.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::files::{finished_files, is_not_found};
use super::{DiskError, DiskStore};

/// Other processes also write files, so the folder is listed again after this time.
const MAX_SCAN_AGE: Duration = Duration::from_secs(60);

/// The contents of the folder when it was last scanned, plus what was written since.
#[derive(Debug, Default)]
pub(super) struct FolderStats {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    scanned_at: Option<Instant>,
}

impl FolderStats {
    /// Whether the folder was scanned a short time ago.
    pub(super) fn is_recent(&self) -> bool {
        self.scanned_at
            .is_some_and(|at| at.elapsed() < MAX_SCAN_AGE)
    }
}

impl DiskStore {
    /// Lists the folder: counts its files, removes temporary files of killed processes, and deletes the least recently
    /// used files until the others fit. Call it once at startup; later, [`Self::put`] calls it when it is due.
    pub fn scan_and_evict(&self) {
        // the folder is listed without the lock, so that a slow disk does not delay callers of `usage`
        let stats = self.evict();
        *self.stats() = stats;
    }

    /// Once the files exceed the capacity, they are deleted until this many bytes are left. The margin avoids listing a
    /// full folder after every write.
    pub fn bytes_after_eviction(&self) -> u64 {
        self.0.capacity - self.0.capacity / 64
    }

    /// Lists the folder and evicts files. Returns what is left.
    fn evict(&self) -> FolderStats {
        let mut files = finished_files(&self.0.folder);
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let mut count = files.len() as u64;
        if bytes > self.0.capacity {
            files.sort_by_key(|file| file.used_at);
            for file in &files {
                if bytes <= self.bytes_after_eviction() {
                    break;
                }
                match fs::remove_file(&file.path) {
                    Ok(()) => {
                        self.0.evicted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if is_not_found(&error) => {}
                    Err(source) => {
                        let path = file.path.display().to_string();
                        self.warn_once(&DiskError::Write { path, source });
                        break;
                    }
                }
                bytes -= file.bytes;
                count -= 1;
            }
        }
        FolderStats {
            entries: count,
            bytes,
            scanned_at: Some(Instant::now()),
        }
    }
}
