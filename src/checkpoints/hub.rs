//! The hub (huggingface.co or a mirror): what it has, and how that comes into the cache.

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

/// Why a file could not be had; every message names the file or the host.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum HubError {
    /// Nothing may be fetched.
    #[error(
        "{name} is not here (neither in MODEL_DIR nor in the hub's cache, {cache}), and HF_HUB_OFFLINE forbids to fetch it: run `groundling download {name}` where there is a network"
    )]
    Offline { name: String, cache: String },
    /// The setting is no address.
    #[error("HF_ENDPOINT {0:?} is no address such as https://huggingface.co")]
    Endpoint(String),
    /// The system is out of something.
    #[error("the system gives no means to wait for the hub: {0}")]
    Runtime(io::Error),
    /// The host does not answer, or breaks off.
    #[error("{file} of {id} cannot be fetched from {host}: {reason}; what came is kept")]
    Unreachable {
        file: String,
        id: String,
        host: String,
        reason: String,
    },
    /// The hub refuses.
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
    /// The answer is not the hub's.
    #[error("{host} does not answer as the hub does: {reason} (for {file} of {id}, HF_ENDPOINT)")]
    Strange {
        file: String,
        id: String,
        host: String,
        reason: String,
    },
    /// The disk is full, or the cache may not be written.
    #[error("{file} of {id} cannot be stored in {cache}: {reason}; HF_HOME names another place")]
    Store {
        file: String,
        id: String,
        cache: String,
        reason: io::Error,
    },
    /// What arrived is not what was published.
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
    /// What is here is not what was published, and nothing may be fetched.
    #[error(
        "{path} is damaged: its checksum is not the one that it was published with; fetch it again with `groundling download`"
    )]
    Damaged { path: String },
    /// The repository holds nothing that can be run, or too much.
    #[error("{id} holds {found}: exactly one file of weights is needed, or model.safetensors")]
    NoWeights { id: String, found: String },
}

/// Told of a download on its way.
pub trait Watcher: Send + Sync {
    /// Bytes of a file that are there, of all it has.
    fn progress(&self, file: &str, bytes: u64, total: u64);
    /// A word on what is waited for.
    fn waiting(&self, what: &str);
    /// Everything is here; what is done now.
    fn loading(&self, what: &str) {
        self.waiting(what);
    }
}

/// The hub as configured.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    pub(super) token: Option<SecretString>,
    is_offline: bool,
}

impl Hub {
    /// From the settings that every tool of the hub knows.
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

    /// The files of a revision that are in the cache.
    pub fn snapshot(&self, source: &Source) -> Option<PathBuf> {
        Repository::new(&self.cache, source).snapshot(source)
    }

    /// That something may be fetched; `name` is what the user calls it.
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

    /// The names of a repository's files, without those in folders.
    ///
    /// # Errors
    /// If the hub cannot be reached or does not have it.
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

    /// Brings a file into the cache, unless it is there whole: goes on where an earlier try stopped, and
    /// compares its checksum. Another process that fetches the same file is waited for.
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

    /// The weights of a checkpoint in the cache, if their checksum is not the one they were published with.
    /// It takes half a second per gigabyte, and a model that errs quietly would cost more.
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

    /// A file of the cache whose checksum is right; one whose checksum is not is removed.
    fn whole(&self, source: &Source, file: &str) -> Option<PathBuf> {
        let path = self.snapshot(source)?.join(file);
        // a branch may have moved on
        if !is_commit(&source.revision) && !self.is_offline {
            return None;
        }
        let blob = path.canonicalize().ok()?;
        let etag = blob.file_name()?.to_str()?;
        match differs(&blob, etag) {
            Ok(None) => Some(path),
            _ => {
                tracing::warn!(path = %path.display(), "damaged, it is fetched again");
                // what cannot be removed is told when it is to be written
                let _ = fs::remove_file(&blob);
                None
            }
        }
    }
}

/// Runs one request after the other on this thread.
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

/// A name without folders: what a hub says must not lead out of the cache.
fn is_file_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.+ ".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.len() < 200 && name.chars().all(fits)
}
