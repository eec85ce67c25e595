use std::time::{Duration, SystemTime};

use super::*;

fn key(model: u8, content: u8) -> BlobKey {
    BlobKey {
        model: [model; 32],
        content: [content; 32],
    }
}

/// Sets the time of the last use of a key's file.
fn set_last_use(store: &DiskStore, key: &BlobKey, seconds_ago: u64) {
    let file = File::open(store.path(key)).unwrap();
    let time = SystemTime::now() - Duration::from_secs(seconds_ago);
    file.set_modified(time).unwrap();
}

fn file_count(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, |entries| {
        let counts = entries.map(|entry| fs::read_dir(entry.unwrap().path()).unwrap().count());
        counts.sum()
    })
}

#[test]
fn a_written_payload_is_read_through_another_handle() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a/b");
    let (one, other) = (
        DiskStore::new(inside.clone(), 1 << 20),
        DiskStore::new(inside.clone(), 1 << 20),
    );
    one.scan_and_evict();
    assert!(
        !inside.exists(),
        "the folder is created before it is needed"
    );
    let key = key(1, 2);
    assert_eq!(one.get(&key), None);
    assert_eq!(one.touch(&key), None);
    for payload in [&b"some bytes"[..], b"other ones", b""] {
        let bytes = one.put(&key, payload).unwrap();
        assert_eq!(other.get(&key).as_deref(), Some(payload));
        assert_eq!(other.touch(&key), Some(bytes));
        assert_eq!(bytes, DiskStore::file_bytes(payload.len()));
    }
    assert_eq!(file_count(&inside), 1);
    other.scan_and_evict();
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
fn damaged_files_are_deleted_and_files_of_other_models_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = DiskStore::new(folder.path().to_owned(), 1 << 20);
    let (own, payload) = (key(1, 2), vec![7u8; 1000]);
    store.put(&own, &payload).unwrap();
    let path = store.path(&own);
    let complete = fs::read(&path).unwrap();
    let mut cases: Vec<Vec<u8>> = [
        0,
        1,
        50,
        HEADER_BYTES,
        HEADER_BYTES + 40,
        complete.len() - 1,
    ]
    .into_iter()
    .map(|length| complete[..length].to_vec())
    .collect();
    for at in [0, 20, 90, 200, complete.len() - 1] {
        let mut flipped = complete.clone();
        flipped[at] ^= 1;
        cases.push(flipped);
    }
    cases.push([&complete[..], b"more"].concat());
    for bytes in cases {
        fs::write(&path, bytes).unwrap();
        assert_eq!(store.get(&own), None);
        assert!(!path.exists());
    }
    // a file of another model whose identity has the same first bytes, and so the same file name
    let mut similar = own;
    similar.model[31] = 9;
    store.put(&similar, &payload).unwrap();
    assert_eq!(store.get(&own), None);
    assert_eq!(store.touch(&own), None);
    assert_eq!(store.get(&similar), Some(payload));
}

#[test]
fn the_least_recently_used_files_are_evicted_first() {
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
        set_last_use(&store, key, 100 - i as u64);
    }
    // the oldest file is used again, so the second is now the oldest
    assert!(store.get(&keys[0]).is_some());
    store.put(&keys[3], &payload).unwrap();
    let exists = |i: usize| store.path(&keys[i]).exists();
    assert_eq!(
        [0, 1, 2, 3].map(exists),
        [true, false, true, true],
        "the second file was the oldest"
    );
    assert_eq!((store.evicted(), store.usage().entries), (1, 3));
    // `touch` counts as a use, also through another handle
    let other = DiskStore::new(folder.path().to_owned(), store.capacity());
    assert!(other.touch(&keys[2]).is_some());
    set_last_use(&store, &keys[3], 50);
    other.put(&keys[4], &payload).unwrap();
    assert_eq!([0, 2, 3, 4].map(exists), [true, true, false, true]);
    // a payload larger than the capacity is refused, and nothing is evicted for it
    let error = store.put(&keys[1], &vec![0; 40_000]).unwrap_err();
    assert!(error.to_string().contains("WARM_BYTES"), "{error}");
    assert_eq!(file_count(folder.path()), 3);
    // a folder that is opened with a smaller capacity is reduced at once
    DiskStore::new(folder.path().to_owned(), 15_000).scan_and_evict();
    assert_eq!(file_count(folder.path()), 1);
}

#[test]
fn abandoned_temporary_files_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = DiskStore::new(folder.path().to_owned(), 1 << 20);
    store.put(&key(1, 2), b"finished").unwrap();
    let inside = folder.path().join("02");
    for (name, seconds) in [("old.part", 2 * 3600), ("new.part", 60), ("notes", 9000)] {
        let file = File::create(inside.join(name)).unwrap();
        let time = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    }
    store.scan_and_evict();
    assert!(!inside.join("old.part").exists());
    assert!(inside.join("new.part").exists() && inside.join("notes").exists());
    assert_eq!(store.usage().entries, 1);
}

#[test]
fn an_error_names_the_folder_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    // a file where the folder should be: permissions would not stop the root user
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let store = DiskStore::new(blocked, 1 << 20);
    store.scan_and_evict();
    let error = store.put(&key(1, 2), b"bytes").unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("file/02") && message.contains("CACHE_DIR"),
        "{message}"
    );
    assert_eq!(store.get(&key(1, 2)), None);
    store.warn_once(&error);
    assert!(store.0.has_warned.load(Ordering::Relaxed));
    assert_eq!(store.usage().bytes, 0);
}

#[test]
fn several_threads_can_share_a_folder() {
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
    stores[0].scan_and_evict();
    assert!(stores[0].usage().bytes <= 20_000);
}
