//! The hub (huggingface.co or a mirror): downloads files into the cache that all tools of the hub share.

pub mod cache;
mod client;
mod download;
mod error;
mod observer;
mod revision;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;

use self::cache::{CachedRepo, checksum_mismatch};
use self::client::{Endpoint, FileClient};
use self::download::Download;
pub use self::error::HubError;
pub use self::observer::{ProgressObserver, Silent};
pub(super) use self::revision::MAIN;
pub use self::revision::RepoRevision;
use crate::models::weights::{Checkpoint, weights_in};

/// The address, the cache and the token of the hub.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubSettings {
    /// The hub's URL, or a mirror's.
    pub endpoint: String,
    /// The folder of the cache, in the layout of the hub's own tools.
    pub cache: PathBuf,
    /// The token for repositories that are not public.
    pub token: Option<SecretString>,
    /// Whether downloads are disabled.
    pub is_offline: bool,
}

impl HubSettings {
    /// huggingface.co without a token; files are cached in this folder.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: cache.into(),
            token: None,
            is_offline: false,
        }
    }
}

/// A client of the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: Endpoint,
    cache: PathBuf,
    is_offline: bool,
}

impl Hub {
    /// Creates a client; opens no connection.
    pub fn new(settings: HubSettings) -> Self {
        let url = settings.endpoint.trim().trim_end_matches('/').to_owned();
        Self {
            endpoint: Endpoint {
                url,
                token: settings.token,
            },
            cache: settings.cache,
            is_offline: settings.is_offline,
        }
    }

    /// The cache's folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of a revision's files in the cache; `None` if none of them was ever downloaded.
    pub fn snapshot(&self, repo: &RepoRevision) -> Option<PathBuf> {
        CachedRepo::new(&self.cache, repo).snapshot(repo)
    }

    /// Checks that downloads are enabled. `name` is the user's name of the model, for the error.
    ///
    /// # Errors
    /// [`HubError::Offline`]
    pub fn check_online(&self, name: &str) -> Result<(), HubError> {
        if !self.is_offline {
            return Ok(());
        }
        Err(HubError::Offline {
            name: name.to_owned(),
            cache: self.cache.display().to_string(),
        })
    }

    /// The names of a repository's files, except those in subfolders.
    ///
    /// # Errors
    /// If the hub cannot be reached or does not have the repository.
    pub fn list(&self, repo: &RepoRevision) -> Result<Vec<String>, HubError> {
        let client = FileClient::new(&self.endpoint, repo, "the list of files")?;
        let listing = block_on(client.list::<Listing>())??;
        let names = listing.siblings.into_iter().map(|file| file.rfilename);
        Ok(names.filter(|name| is_file_name(name)).collect())
    }

    /// Downloads a file into the cache, unless a complete copy is there, and verifies its checksum. It resumes a
    /// partial download, and waits for another process that downloads the same file.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn fetch(
        &self,
        repo: &RepoRevision,
        file: &str,
        observer: &Arc<dyn ProgressObserver>,
    ) -> Result<PathBuf, HubError> {
        if let Some(path) = self.verified_file(repo, file) {
            return Ok(path);
        }
        let download = Download {
            client: FileClient::new(&self.endpoint, repo, file)?,
            cache: &CachedRepo::new(&self.cache, repo),
            observer,
        };
        block_on(download.run())?
    }

    /// The path of a cached checkpoint's weights if their checksum is wrong. The check takes half a second per
    /// gigabyte; damaged weights could otherwise give wrong results without an error.
    pub fn damaged_weights(&self, checkpoint: &Checkpoint) -> Option<PathBuf> {
        let path = match checkpoint {
            Checkpoint::Folder(folder) => weights_in(folder).ok()?,
            Checkpoint::File(path) => path.clone(),
            Checkpoint::Embedded { .. } => return None,
        };
        let blob = path.canonicalize().ok()?;
        let cache = self.cache.canonicalize().ok()?;
        let etag = blob.file_name()?.to_str()?;
        if !blob.starts_with(cache) || !path.starts_with(&self.cache) {
            return None;
        }
        match checksum_mismatch(&blob, etag) {
            Ok(None) => None,
            _ => Some(path),
        }
    }

    /// A cached file with a correct checksum. A file with a wrong checksum is deleted.
    fn verified_file(&self, repo: &RepoRevision, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(repo)?.join(file);
        // a branch may have moved to another commit
        if !repo.is_commit() && !self.is_offline {
            return None;
        }
        let blob = path.canonicalize().ok()?;
        let etag = blob.file_name()?.to_str()?;
        match checksum_mismatch(&blob, etag) {
            Ok(None) => Some(path),
            _ => {
                tracing::warn!(
                    path = %path.display(),
                    "a cached file is damaged and is downloaded again"
                );
                // a failure is reported by the later write
                let _ = fs::remove_file(&blob);
                None
            }
        }
    }
}

/// Runs a future on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, HubError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(HubError::Runtime)?;
    Ok(runtime.block_on(work))
}

#[derive(Debug, serde::Deserialize)]
struct Listing {
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, serde::Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Whether the name has no path separators and no leading dot, so that the hub's answer cannot point outside the
/// cache.
fn is_file_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+ ".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.len() < 200 && name.chars().all(is_allowed)
}
