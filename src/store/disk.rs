//! Disk cache: results as files in one folder, which survive a restart.
//!
//! A file is written under a temporary name and then renamed, and it ends with a checksum, so an incomplete file is
//! never used. Several processes may use the folder at the same time, so a file that disappears is not an error. The
//! modification time of a file is the time of its last use. Once the files exceed the capacity, the least recently used
//! ones are deleted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ring::digest::{Context, SHA256};

use super::Usage;
pub use super::blob::BlobKey;
use super::blob::{FRAME_BYTES, HEADER_BYTES, header, payload, payload_length};

/// Why a result was not written.
#[derive(Debug, thiserror::Error)]
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
        "a result takes {bytes} bytes, and all of them together may take {capacity} (WARM_BYTES)"
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
    has_complained: AtomicBool,
    held: Mutex<Held>,
}

/// The contents of the folder when it was last listed, plus what was written since.
#[derive(Debug, Default)]
struct Held {
    entries: u64,
    bytes: u64,
    listed: Option<Instant>,
}

/// A finished file in the folder.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Extensions of finished and of temporary files.
const FINISHED: &str = "bin";
const TEMPORARY: &str = "part";

/// A temporary file that was not modified for this time belongs to a process that no longer runs.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Other processes also write files, so the folder is listed again after this time.
const LISTING_AGE: Duration = Duration::from_secs(60);

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
            has_complained: AtomicBool::new(false),
            held: Mutex::default(),
        }))
    }

    /// Lists the folder: counts its files, removes temporary files of killed processes, and deletes the least recently
    /// used files until the others fit. Call it once at startup; later, [`Self::put`] calls it when it is due.
    pub fn tidy(&self) {
        // the folder is listed without the lock, so that a slow disk does not delay callers of `usage`
        let held = self.list();
        *self.held() = held;
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// Maximum size of all files together in bytes.
    pub fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// Once the files exceed the capacity, they are deleted until this many bytes are left. The margin avoids listing a
    /// full folder after every write.
    pub fn bytes_after_eviction(&self) -> u64 {
        self.0.capacity - self.0.capacity / 64
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
        let replaced = fs::metadata(&path).map(|there| there.len()).ok();
        write(&path, &header(key, payload.len()), payload)?;
        self.0.has_complained.store(false, Ordering::Relaxed);
        let is_due = {
            let mut held = self.held();
            held.bytes = held.bytes.saturating_sub(replaced.unwrap_or(0)) + bytes;
            held.entries += u64::from(replaced.is_none());
            let is_fresh = held.listed.is_some_and(|at| at.elapsed() < LISTING_AGE);
            !is_fresh || held.bytes > self.0.capacity
        };
        if is_due {
            self.tidy();
        }
        Ok(bytes)
    }

    /// Logs why a result was not written. Further errors are not logged until a write has succeeded again.
    pub fn complain(&self, error: &DiskError) {
        if !self.0.has_complained.swap(true, Ordering::Relaxed) {
            tracing::warn!("results are not kept on disk: {error}");
        }
    }

    /// The current usage, as far as this process knows.
    pub fn usage(&self) -> Usage {
        let held = self.held();
        Usage {
            hits: self.0.hits.load(Ordering::Relaxed),
            misses: self.0.misses.load(Ordering::Relaxed),
            entries: held.entries,
            bytes: held.bytes,
            capacity: self.0.capacity,
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Path of a key's file: `ab/0123456789abcdef-abcd....bin`. The name has the first 8 bytes of the model's identity
    /// and the digest of the content; the folder is named after the first byte of that digest.
    fn path(&self, key: &BlobKey) -> PathBuf {
        let content = hex(&key.content);
        let name = format!("{}-{content}.{FINISHED}", hex(&key.model[..8]));
        self.0.folder.join(&content[..2]).join(name)
    }

    fn read(&self, key: &BlobKey) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), "a kept result cannot be read: {error}");
                return None;
            }
        };
        let mut bytes = vec![];
        if let Err(error) = file.read_to_end(&mut bytes) {
            tracing::warn!(file = %path.display(), "a kept result cannot be read: {error}");
            return None;
        }
        match payload(bytes, key) {
            Ok(Some(payload)) => {
                mark_used(&file);
                Some(payload)
            }
            Ok(None) => None,
            Err(reason) => {
                tracing::warn!(
                    file = %path.display(),
                    "a kept result is damaged ({reason}): it is deleted, and computed again"
                );
                // an error is ignored: another process may have deleted the file, and if it remains, the next read logs
                // it again
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// See [`Self::tidy`].
    fn list(&self) -> Held {
        let mut entries = entries(&self.0.folder);
        let mut bytes: u64 = entries.iter().map(|entry| entry.bytes).sum();
        let mut count = entries.len() as u64;
        if bytes > self.0.capacity {
            entries.sort_by_key(|entry| entry.used);
            for entry in &entries {
                if bytes <= self.bytes_after_eviction() {
                    break;
                }
                match fs::remove_file(&entry.path) {
                    Ok(()) => {
                        self.0.evicted.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if is_absent(&error) => {}
                    Err(source) => {
                        let path = entry.path.display().to_string();
                        self.complain(&DiskError::Write { path, source });
                        break;
                    }
                }
                bytes -= entry.bytes;
                count -= 1;
            }
        }
        Held {
            entries: count,
            bytes,
            listed: Some(Instant::now()),
        }
    }
}

/// Lists the finished files below a folder, and removes abandoned temporary files.
fn entries(folder: &Path) -> Vec<Entry> {
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
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|ending| ending.to_str()) {
            Some(FINISHED) => found.push(Entry {
                path,
                bytes: metadata.len(),
                used,
            }),
            Some(TEMPORARY) if used.elapsed().is_ok_and(|age| age > ABANDONED) => {
                // an error is ignored: another process may have removed it
                let _ = fs::remove_file(&path);
            }
            _ => {}
        }
    }
    found
}

/// Writes a file under a temporary name, then renames it.
fn write(path: &Path, header: &[u8], payload: &[u8]) -> Result<(), DiskError> {
    let failed = |path: &Path, source| DiskError::Write {
        path: path.display().to_string(),
        source,
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    }
    let temporary = path.with_extension(format!("{:016x}.{TEMPORARY}", rand::random::<u64>()));
    let written = || {
        let mut sum = Context::new(&SHA256);
        let mut file = File::create_new(&temporary)?;
        for part in [header, payload] {
            sum.update(part);
            file.write_all(part)?;
        }
        file.write_all(sum.finish().as_ref())?;
        fs::rename(&temporary, path)
    };
    written().map_err(|error| {
        // an error is ignored: a file that remains is removed later as abandoned
        let _ = fs::remove_file(&temporary);
        failed(path, error)
    })
}

/// Sets the modification time, which is the time of the last use. If it cannot be set, the only effect is that the file
/// is evicted earlier.
fn mark_used(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}

/// Whether the error means that the file does not exist.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(model: u8, content: u8) -> BlobKey {
        BlobKey {
            model: [model; 32],
            content: [content; 32],
        }
    }

    /// Sets the time of the last use of a key's file.
    fn used(store: &DiskStore, key: &BlobKey, seconds_ago: u64) {
        let file = File::open(store.path(key)).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds_ago);
        file.set_modified(time).unwrap();
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).map_or(0, |entries| {
            let counts = entries.map(|entry| fs::read_dir(entry.unwrap().path()).unwrap().count());
            counts.sum()
        })
    }

    #[test]
    fn what_is_written_is_read_by_another_handle() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a/b");
        let (one, other) = (
            DiskStore::new(inside.clone(), 1 << 20),
            DiskStore::new(inside.clone(), 1 << 20),
        );
        one.tidy();
        assert!(!inside.exists(), "nothing is made before it is needed");
        let key = key(1, 2);
        assert_eq!(one.get(&key), None);
        assert_eq!(one.touch(&key), None);
        for payload in [&b"some bytes"[..], b"other ones", b""] {
            let bytes = one.put(&key, payload).unwrap();
            assert_eq!(other.get(&key).as_deref(), Some(payload));
            assert_eq!(other.touch(&key), Some(bytes));
            assert_eq!(bytes, DiskStore::file_bytes(payload.len()));
        }
        assert_eq!(files(&inside), 1);
        other.tidy();
        for store in [&one, &other] {
            let usage = store.usage();
            assert_eq!(
                (usage.entries, usage.bytes),
                (1, DiskStore::file_bytes(0)),
                "{usage:?}"
            );
        }
        assert_eq!((one.usage().misses, other.usage().hits), (1, 3));
        // a file that another process has deleted
        fs::remove_file(one.path(&key)).unwrap();
        assert_eq!(other.get(&key), None);
    }

    #[test]
    fn damaged_files_are_deleted_and_those_of_others_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = DiskStore::new(folder.path().to_owned(), 1 << 20);
        let (ours, payload) = (key(1, 2), vec![7u8; 1000]);
        store.put(&ours, &payload).unwrap();
        let path = store.path(&ours);
        let whole = fs::read(&path).unwrap();
        let mut cases: Vec<Vec<u8>> = [0, 1, 50, HEADER_BYTES, HEADER_BYTES + 40, whole.len() - 1]
            .into_iter()
            .map(|length| whole[..length].to_vec())
            .collect();
        for at in [0, 20, 90, 200, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            cases.push(flipped);
        }
        cases.push([&whole[..], b"more"].concat());
        for bytes in cases {
            fs::write(&path, bytes).unwrap();
            assert_eq!(store.get(&ours), None);
            assert!(!path.exists());
        }
        // a file of another model whose identity has the same first bytes, and so the same file name
        let mut similar = ours;
        similar.model[31] = 9;
        store.put(&similar, &payload).unwrap();
        assert_eq!(store.get(&ours), None);
        assert_eq!(store.touch(&ours), None);
        assert_eq!(store.get(&similar), Some(payload));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let payload = vec![1u8; 10_000];
        // room for three and a half files
        let store = DiskStore::new(
            folder.path().to_owned(),
            DiskStore::file_bytes(payload.len()) * 7 / 2,
        );
        let keys: Vec<BlobKey> = (0..5).map(|i| key(1, i)).collect();
        for (i, key) in keys[..3].iter().enumerate() {
            store.put(key, &payload).unwrap();
            used(&store, key, 100 - i as u64);
        }
        // the oldest file is used again, so the second is now the oldest
        assert!(store.get(&keys[0]).is_some());
        store.put(&keys[3], &payload).unwrap();
        let is_there = |i: usize| store.path(&keys[i]).exists();
        assert_eq!(
            [0, 1, 2, 3].map(is_there),
            [true, false, true, true],
            "the second was the oldest"
        );
        assert_eq!((store.evicted(), store.usage().entries), (1, 3));
        // `touch` counts as a use, also through another handle
        let other = DiskStore::new(folder.path().to_owned(), store.capacity());
        assert!(other.touch(&keys[2]).is_some());
        used(&store, &keys[3], 50);
        other.put(&keys[4], &payload).unwrap();
        assert_eq!([0, 2, 3, 4].map(is_there), [true, true, false, true]);
        // a payload larger than the capacity is refused, and nothing is evicted for it
        let error = store.put(&keys[1], &vec![0; 40_000]).unwrap_err();
        assert!(error.to_string().contains("WARM_BYTES"), "{error}");
        assert_eq!(files(folder.path()), 3);
        // a folder that is opened with a smaller capacity is reduced at once
        DiskStore::new(folder.path().to_owned(), 15_000).tidy();
        assert_eq!(files(folder.path()), 1);
    }

    #[test]
    fn temporary_files_of_killed_processes_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = DiskStore::new(folder.path().to_owned(), 1 << 20);
        store.put(&key(1, 2), b"finished").unwrap();
        let inside = folder.path().join("02");
        for (name, seconds) in [("old.part", 2 * 3600), ("new.part", 60), ("notes", 9000)] {
            let file = File::create(inside.join(name)).unwrap();
            let time = SystemTime::now() - Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
        }
        store.tidy();
        assert!(!inside.join("old.part").exists());
        assert!(inside.join("new.part").exists() && inside.join("notes").exists());
        assert_eq!(store.usage().entries, 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        // a file where the folder should be: permissions would not stop the root user
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let store = DiskStore::new(blocked, 1 << 20);
        store.tidy();
        let error = store.put(&key(1, 2), b"bytes").unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("file/02") && told.contains("CACHE_DIR"),
            "{told}"
        );
        assert_eq!(store.get(&key(1, 2)), None);
        store.complain(&error);
        assert!(store.0.has_complained.load(Ordering::Relaxed));
        assert_eq!(store.usage().bytes, 0);
    }

    #[test]
    fn several_threads_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let stores: Vec<DiskStore> = (0..3)
            .map(|_| DiskStore::new(folder.path().to_owned(), 20_000))
            .collect();
        std::thread::scope(|scope| {
            for (number, store) in stores.iter().enumerate() {
                scope.spawn(move || {
                    for i in 0..60u8 {
                        let key = key(1, i % 20);
                        store.put(&key, &vec![i % 20; 1000 + number]).unwrap();
                        if let Some(payload) = store.get(&key) {
                            assert!(payload.iter().all(|byte| *byte == i % 20));
                        }
                    }
                });
            }
        });
        stores[0].tidy();
        assert!(stores[0].usage().bytes <= 20_000);
    }
}
