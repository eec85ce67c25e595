//! The hub (huggingface.co or a mirror), and the cache that every tool of its shares.
//!
//! The cache's layout is documented at <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>:
//! `models--OWNER--NAME/snapshots/COMMIT/FILE` leads to `blobs/ETAG`, and `refs/REVISION` holds a commit.
//! An etag is the file's SHA-256, of a small file git's SHA-1.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::config::HubArgs;

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `OWNER/NAME`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// Why a file could not be had; every message names the file or the host.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nothing may be fetched.
    #[error(
        "{id} is not in the hub's cache ({cache}), and HF_HUB_OFFLINE forbids to fetch it: run `groundling download {id}` where there is a network, or put a folder of that name into MODEL_DIR"
    )]
    #[allow(missing_docs)]
    Offline { id: String, cache: String },
    /// The host does not answer.
    #[error("{file} of {id} cannot be fetched from {endpoint}: {reason}")]
    #[allow(missing_docs)]
    Unreachable {
        file: String,
        id: String,
        endpoint: String,
        reason: String,
    },
    /// The hub refuses.
    #[error("{endpoint} refuses {file} of {id} with {status}: {hint}")]
    #[allow(missing_docs)]
    Refused {
        file: String,
        id: String,
        endpoint: String,
        status: u16,
        hint: &'static str,
    },
    /// The repository has no such file.
    #[error("there is no {file} in {id} at {endpoint}, or no such repository")]
    #[allow(missing_docs)]
    NotFound {
        file: String,
        id: String,
        endpoint: String,
    },
    /// The disk is full, or the cache may not be written.
    #[error("{file} of {id} cannot be stored in {cache}: {reason}; HF_HOME names another place")]
    #[allow(missing_docs)]
    Store {
        file: String,
        id: String,
        cache: String,
        reason: String,
    },
    /// What arrived is not what was published.
    #[error(
        "{path} is damaged: its SHA-256 is {found} and should be {expected}; it was removed, fetch it again"
    )]
    #[allow(missing_docs)]
    Checksum {
        path: String,
        found: String,
        expected: String,
    },
    /// The repository holds nothing that can be run.
    #[error("{id} holds no weights: one of {wanted} is needed, and there are {found}")]
    #[allow(missing_docs)]
    NoWeights {
        id: String,
        wanted: String,
        found: String,
    },
}

/// Told of a download on its way.
pub trait Watcher: Send + Sync {
    /// Bytes of a file that are there, of all it has.
    fn progress(&self, file: &str, bytes: u64, total: u64);
    /// A word on what is waited for.
    fn waiting(&self, what: &str);
}

/// The hub as configured.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<crate::config::Secret>,
    is_offline: bool,
}

/// Without a byte for so long, a download is given up; what is there is kept for the next time.
const STALLED: Duration = Duration::from_secs(60);

impl Hub {
    /// From the settings that every tool of the hub knows.
    pub fn new(args: &HubArgs) -> Self {
        Self {
            endpoint: args.hf_endpoint.trim_end_matches('/').to_owned(),
            cache: args.cache(),
            token: args.token(),
            is_offline: args.hf_hub_offline.0,
        }
    }

    /// The cache's folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Where files come from.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The folder of a snapshot in the cache that has all these files.
    pub fn cached(&self, source: &Source, files: &[&str]) -> Option<PathBuf> {
        let repo = Cache::new(self.cache.clone()).repo(self.repo(source));
        let commit = if is_commit(&source.revision) {
            source.revision.clone()
        } else {
            let folder = self.cache.join(self.repo(source).folder_name());
            let reference = folder.join("refs").join(&source.revision);
            std::fs::read_to_string(reference).ok()?.trim().to_owned()
        };
        let snapshot = repo.pointer_path(&commit);
        let has_all = files.iter().all(|file| snapshot.join(file).is_file());
        has_all.then_some(snapshot)
    }

    /// The names of a repository's files.
    ///
    /// # Errors
    /// If the hub cannot be reached or does not have it.
    pub fn list(&self, source: &Source) -> Result<Vec<String>, HubError> {
        self.allowed(&source.id)?;
        let info = self
            .api()
            .and_then(|api| api.repo(self.repo(source)).info())
            .map_err(|error| self.error(source, "the list of files", &error))?;
        Ok(info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect())
    }

    /// Fetches a file into the cache, goes on where an earlier try stopped, and compares its checksum;
    /// where it is. Another process that fetches the same file is waited for.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn fetch(
        &self,
        source: &Source,
        file: &str,
        sha256: Option<&str>,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<PathBuf, HubError> {
        self.allowed(&source.id)?;
        let path = self.fetch_unchecked(source, file, watcher)?;
        self.check(source, file, &path, sha256)?;
        Ok(path)
    }

    fn fetch_unchecked(
        &self,
        source: &Source,
        file: &str,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<PathBuf, HubError> {
        let api = self
            .api()
            .map_err(|error| self.error(source, file, &error))?;
        loop {
            let seen = Arc::new(AtomicU64::new(0));
            let meter = Meter {
                watcher: Arc::clone(watcher),
                seen: Arc::clone(&seen),
                file: file.to_owned(),
                bytes: 0,
                total: 0,
            };
            let (reply, answer) = mpsc::channel();
            let repo = api.repo(self.repo(source));
            let name = file.to_owned();
            // in a thread of its own, so that a silent host is noticed
            std::thread::spawn(move || {
                // who waits may have given up
                let _ = reply.send(repo.download_with_progress(&name, meter));
            });
            match patiently(&answer, &seen) {
                Some(Ok(path)) => return Ok(path),
                Some(Err(ApiError::LockAcquisition(_))) => {
                    watcher.waiting(&format!("another process fetches {file}"));
                    if let Some(folder) = self.cached(source, &[file]) {
                        return Ok(folder.join(file));
                    }
                }
                Some(Err(error)) => return Err(self.error(source, file, &error)),
                None => {
                    let reason = format!(
                        "nothing came for {} s; what is there is kept, try again to go on",
                        STALLED.as_secs()
                    );
                    return Err(self.unreachable(source, file, reason));
                }
            }
        }
    }

    /// Compares the checksum of a file in the cache with the one that is known, else with its blob's name.
    ///
    /// # Errors
    /// If they differ: the file is then removed.
    pub fn check(
        &self,
        source: &Source,
        file: &str,
        path: &Path,
        sha256: Option<&str>,
    ) -> Result<(), HubError> {
        let store = |reason: std::io::Error| HubError::Store {
            file: file.to_owned(),
            id: source.id.clone(),
            cache: self.cache.display().to_string(),
            reason: reason.to_string(),
        };
        let blob = path.canonicalize().map_err(store)?;
        let etag = blob.file_name().map(|name| name.to_string_lossy());
        let etag = etag.filter(|etag| etag.len() == 64);
        let Some(expected) = sha256.or(etag.as_deref()) else {
            return Ok(());
        };
        let found = self::sha256(&blob).map_err(store)?;
        if found == expected {
            return Ok(());
        }
        for path in [&blob, path] {
            // what cannot be removed is found again next time
            let _ = std::fs::remove_file(path);
        }
        Err(HubError::Checksum {
            path: path.display().to_string(),
            found,
            expected: expected.to_owned(),
        })
    }

    fn allowed(&self, id: &str) -> Result<(), HubError> {
        if !self.is_offline {
            return Ok(());
        }
        Err(HubError::Offline {
            id: id.to_owned(),
            cache: self.cache.display().to_string(),
        })
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.as_ref().map(|token| token.reveal().clone()))
            .with_progress(false)
            .with_retries(3)
            .with_user_agent("groundling", env!("CARGO_PKG_VERSION"))
            .build()
    }

    fn repo(&self, source: &Source) -> Repo {
        Repo::with_revision(source.id.clone(), RepoType::Model, source.revision.clone())
    }

    fn unreachable(&self, source: &Source, file: &str, reason: String) -> HubError {
        HubError::Unreachable {
            file: file.to_owned(),
            id: source.id.clone(),
            endpoint: self.endpoint.clone(),
            reason,
        }
    }

    fn error(&self, source: &Source, file: &str, error: &ApiError) -> HubError {
        let (file, id) = (file.to_owned(), source.id.clone());
        let endpoint = self.endpoint.clone();
        match error {
            ApiError::TooManyRetries(error) => self.error(source, &file, error),
            ApiError::RequestError(error) => match &**error {
                ureq::Error::StatusCode(404) => HubError::NotFound { file, id, endpoint },
                ureq::Error::StatusCode(status) => HubError::Refused {
                    file,
                    id,
                    endpoint,
                    status: *status,
                    hint: match status {
                        401 | 403 => {
                            "HF_TOKEN is missing or may not read it (or no such repository)"
                        }
                        429 => "too many requests, try again later",
                        _ => "try again later",
                    },
                },
                error => self.unreachable(source, &file, error.to_string()),
            },
            // both a broken connection and a full disk come as this
            ApiError::IoError(error) if is_of_the_disk(error) => HubError::Store {
                file,
                id,
                cache: self.cache.display().to_string(),
                reason: error.to_string(),
            },
            ApiError::InvalidResume => HubError::Store {
                file,
                id,
                cache: self.cache.display().to_string(),
                reason: "what was begun there (blobs/*.part) is longer than the file: remove it"
                    .to_owned(),
            },
            error => self.unreachable(source, &file, error.to_string()),
        }
    }
}

fn is_of_the_disk(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        NotADirectory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
    };
    matches!(
        error.kind(),
        StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied | NotADirectory
    )
}

/// The answer, or `None` if `seen` stands still for too long.
fn patiently<T>(answer: &mpsc::Receiver<T>, seen: &AtomicU64) -> Option<T> {
    let mut last = seen.load(Ordering::Relaxed);
    loop {
        match answer.recv_timeout(STALLED) {
            Ok(answer) => return Some(answer),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = seen.load(Ordering::Relaxed);
                if now == last {
                    return None;
                }
                last = now;
            }
        }
    }
}

/// Whether a revision is a commit and not a branch.
fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file's SHA-256 in hexadecimal.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> std::io::Result<String> {
    use std::fmt::Write;
    let mut file = std::fs::File::open(path)?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => context.update(&buffer[..length]),
        }
    }
    Ok(context
        .finish()
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            // writing to a string does not fail
            let _ = write!(text, "{byte:02x}");
            text
        }))
}

/// Passes the library's counts on.
struct Meter {
    watcher: Arc<dyn Watcher>,
    /// All that ever came: whether it stands still.
    seen: Arc<AtomicU64>,
    file: String,
    bytes: u64,
    total: u64,
}

impl Progress for Meter {
    fn init(&mut self, size: usize, _: &str) {
        (self.bytes, self.total) = (0, size as u64);
        self.seen.fetch_add(1, Ordering::Relaxed);
    }

    fn update(&mut self, size: usize) {
        self.bytes += size as u64;
        self.seen.fetch_add(size as u64, Ordering::Relaxed);
        self.watcher.progress(&self.file, self.bytes, self.total);
    }

    fn finish(&mut self) {
        self.watcher.progress(&self.file, self.total, self.total);
    }
}
