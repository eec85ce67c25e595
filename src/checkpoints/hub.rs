//! The hub (huggingface.co or a mirror): lists and downloads files into the cache.

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;

use super::cache::{Repository, differs, is_commit};
use super::transfer::Transfer;
use crate::config::HubArgs;
use crate::models::weights::{Checkpoint, weights_in};

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// `OWNER/NAME`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

/// Why a file cannot be downloaded or used; every message names the file or the host.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum HubError {
    /// Downloads are disabled.
    #[error(
        "{name} is not here (neither in MODEL_DIR nor in the hub's cache, {cache}), and HF_HUB_OFFLINE forbids to fetch it: run `groundling download {name}` where there is a network"
    )]
    Offline { name: String, cache: String },
    /// The setting is not a valid URL.
    #[error("HF_ENDPOINT {0:?} is no address such as https://huggingface.co")]
    Endpoint(String),
    /// The async runtime cannot be created.
    #[error("the system gives no means to wait for the hub: {0}")]
    Runtime(io::Error),
    /// The host does not answer, or the connection was lost.
    #[error("{file} of {id} cannot be fetched from {host}: {reason}; what came is kept")]
    Unreachable {
        file: String,
        id: String,
        host: String,
        reason: String,
    },
    /// The hub rejects the request.
    #[error("{host} refuses {file} of {id} with {status}: {hint}")]
    Refused {
        file: String,
        id: String,
        host: String,
        status: u16,
        hint: &'static str,
    },
    /// The repository has no such file.
    #[error(
        "{host} has no {file} in {id}, or no such repository; nor is there a file or folder of that name here"
    )]
    NotFound {
        file: String,
        id: String,
        host: String,
    },
    /// The answer does not follow the hub's protocol.
    #[error("{host} does not answer as the hub does: {reason} (for {file} of {id}, HF_ENDPOINT)")]
    Strange {
        file: String,
        id: String,
        host: String,
        reason: String,
    },
    /// The disk is full, or the cache is not writable.
    #[error("{file} of {id} cannot be stored in {cache}: {reason}; HF_HOME names another place")]
    Store {
        file: String,
        id: String,
        cache: String,
        reason: io::Error,
    },
    /// The checksum of the downloaded file is wrong.
    #[error(
        "{file} of {id} came damaged from {host}: its checksum is {found} and should be {expected}; it was removed, fetch it again"
    )]
    Checksum {
        file: String,
        id: String,
        host: String,
        found: String,
        expected: String,
    },
    /// The checksum of the local file is wrong, and downloads are disabled.
    #[error(
        "{path} is damaged: its checksum is not the one that it was published with; fetch it again with `groundling download`"
    )]
    Damaged { path: String },
    /// The repository has no usable weights, or several files of weights.
    #[error("{id} holds {found}: exactly one file of weights is needed, or model.safetensors")]
    NoWeights { id: String, found: String },
}

/// Observes the progress of a download.
pub trait Watcher: Send + Sync {
    /// `bytes` of the file's `total` bytes are there.
    fn progress(&self, file: &str, bytes: u64, total: u64);
    /// Reports what the download waits for.
    fn waiting(&self, what: &str);
    /// All files are there; reports the next step.
    fn loading(&self, what: &str) {
        self.waiting(what);
    }
}

/// The configured hub.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    pub(super) token: Option<SecretString>,
    is_offline: bool,
}

impl Hub {
    /// Reads the settings that all tools of the hub share.
    pub fn new(args: &HubArgs) -> Self {
        Self {
            endpoint: args.hf_endpoint.trim().trim_end_matches('/').to_owned(),
            cache: args.cache(),
            token: args.token(),
            is_offline: args.hf_hub_offline.0,
        }
    }

    /// The cache's folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of a revision's files in the cache.
    pub fn snapshot(&self, source: &Source) -> Option<PathBuf> {
        Repository::new(&self.cache, source).snapshot(source)
    }

    /// Checks that downloads are enabled. `name` is the user's name of the model, for the error.
    ///
    /// # Errors
    /// [`HubError::Offline`]
    pub fn may_fetch(&self, name: &str) -> Result<(), HubError> {
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
    pub fn list(&self, source: &Source) -> Result<Vec<String>, HubError> {
        let transfer = Transfer {
            hub: self,
            source,
            file: "the list of files",
        };
        let listing = run(transfer.list::<Listing>())??;
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
        source: &Source,
        file: &str,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<PathBuf, HubError> {
        let transfer = Transfer {
            hub: self,
            source,
            file,
        };
        match self.whole(source, file) {
            Some(path) => Ok(path),
            None => run(transfer.fetch(&Repository::new(&self.cache, source), watcher))?,
        }
    }

    /// The path of a cached checkpoint's weights if their checksum is wrong. The check takes half a second per
    /// gigabyte; damaged weights could otherwise give wrong results without an error.
    pub fn damaged(&self, checkpoint: &Checkpoint) -> Option<PathBuf> {
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
        match differs(&blob, etag) {
            Ok(None) => None,
            _ => Some(path),
        }
    }

    /// A cached file with a correct checksum. A file with a wrong checksum is deleted.
    fn whole(&self, source: &Source, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(source)?.join(file);
        // a branch may have moved to another commit
        if !is_commit(&source.revision) && !self.is_offline {
            return None;
        }
        let blob = path.canonicalize().ok()?;
        let etag = blob.file_name()?.to_str()?;
        match differs(&blob, etag) {
            Ok(None) => Some(path),
            _ => {
                tracing::warn!(path = %path.display(), "damaged, it is fetched again");
                // a failure is reported by the later write
                let _ = fs::remove_file(&blob);
                None
            }
        }
    }
}

/// Runs a future to its end on this thread.
fn run<T>(work: impl Future<Output = T>) -> Result<T, HubError> {
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
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+ ".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.len() < 200 && name.chars().all(fits)
}
