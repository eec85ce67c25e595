//! Fetches the files of images, with limits on time, size and memory.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::MediaError;
use super::data_uri::{decode_data_uri, describe_data_uri};
use super::guard::{AllowedHosts, PublicResolver};
use super::local;
use super::location::Location;
use crate::budget::{Budget, Purpose, Reservation};
use crate::label_studio::LabelStudio;
use crate::outgoing::client;

/// Configuration of a [`Fetcher`].
#[derive(Debug, Clone)]
pub struct FetcherConfig {
    /// Time limit for one image, including redirects.
    pub timeout: Duration,
    /// Maximum size of an image file in bytes.
    pub max_bytes: usize,
    /// Maximum number of pixels of a decoded image.
    pub max_pixels: usize,
    /// Hosts, besides Label Studio, that may have private addresses.
    pub allowed_hosts: AllowedHosts,
    /// The folder from which Label Studio serves local files, if it exists on this machine too.
    pub local_files: Option<PathBuf>,
}

/// An image to fetch, with the context and credentials for it.
#[derive(Debug, Clone, Copy)]
pub struct ImageRequest<'a> {
    /// The image value in the task's data.
    pub value: &'a str,
    /// The Label Studio that relative URLs refer to, and that receives the token.
    pub label_studio: &'a LabelStudio,
    /// Label Studio's id of the task.
    pub task: Option<u64>,
    /// The project's user name and password for protected image URLs.
    pub login: Option<&'a (String, SecretString)>,
}

/// Fetches images. Clones share the connection pools.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// Client for Label Studio and the allowed hosts.
    pub(super) trusted: reqwest::Client,
    /// Client for all other hosts. It resolves no name to a private address.
    pub(super) guarded: reqwest::Client,
    /// The memory budget of all requests.
    pub(super) budget: Budget,
    pub(super) config: FetcherConfig,
}

/// The HTTP validators of an image, which show whether it has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Validators {
    /// The `ETag` of a response; for a local file, its modification time and length.
    pub(super) etag: Option<String>,
    /// The `Last-Modified` date of a response.
    pub(super) last_modified: Option<String>,
}

impl Validators {
    pub(super) fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    pub(super) fn of_file(metadata: &std::fs::Metadata) -> Self {
        let changed = metadata.modified().ok();
        Self {
            etag: changed.map(|time| format!("{time:?} {}", metadata.len())),
            last_modified: None,
        }
    }
}

/// The result of a conditional request.
#[derive(Debug)]
pub(super) enum FetchResult {
    /// The image has not changed.
    NotModified,
    /// The file of the image.
    File(ImageFile),
}

/// An image file in memory.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub(super) bytes: Vec<u8>,
    pub(super) validators: Validators,
    /// The memory reservation for `bytes`.
    _memory: Reservation,
}

impl ImageFile {
    pub(super) fn new(bytes: Vec<u8>, validators: Validators, memory: Reservation) -> Self {
        Self {
            bytes,
            validators,
            _memory: memory,
        }
    }
}

/// How long fetching a file waits for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

impl Fetcher {
    /// Creates a fetcher with its own connections. It reserves the memory for image files from `budget`.
    ///
    /// # Errors
    /// If the system's TLS settings cannot be read.
    pub fn new(config: FetcherConfig, budget: Budget) -> Result<Self, reqwest::Error> {
        Ok(Self {
            trusted: client().build()?,
            guarded: client().dns_resolver(PublicResolver::shared()).build()?,
            budget,
            config,
        })
    }

    /// Fetches the file at a location, unless it still has the validators `known`.
    pub(super) async fn fetch_file(
        &self,
        location: Location,
        request: ImageRequest<'_>,
        known: Option<&Validators>,
    ) -> Result<FetchResult, MediaError> {
        let url = location.describe(request.label_studio);
        let read = self.fetch_without_timeout(location, request, known);
        let fetched = tokio::time::timeout(self.config.timeout, read).await;
        fetched.unwrap_or_else(|_| {
            let seconds = self.config.timeout.as_secs();
            Err(MediaError::Unreachable {
                url,
                reason: format!("it took more than {seconds} s (IMAGE_TIMEOUT_S)"),
            })
        })
    }

    /// [`Self::fetch_file`] without the time limit.
    async fn fetch_without_timeout(
        &self,
        location: Location,
        request: ImageRequest<'_>,
        known: Option<&Validators>,
    ) -> Result<FetchResult, MediaError> {
        let limit = self.config.max_bytes;
        let no_validators = Validators::default();
        let known = known.unwrap_or(&no_validators);
        match location {
            Location::Inline(uri) => {
                let url = describe_data_uri(&uri);
                let memory = self
                    .reserve_memory(uri.len() / 4 * 3, || url.clone())
                    .await?;
                let read = move || Ok(decode_data_uri(&uri, limit)?);
                let bytes = run_blocking(&url, read).await?;
                let bytes = bytes.ok_or(MediaError::TooLarge { url, limit })?;
                Ok(FetchResult::File(ImageFile::new(
                    bytes,
                    Validators::default(),
                    memory,
                )))
            }
            Location::File { path, root, name } => {
                let shown = local::describe(&name);
                let (root, known) = (root.clone(), known.clone());
                let open = move || local::open(&path, &root, name, limit as u64, &known);
                let Some(file) = run_blocking(&shown, open).await? else {
                    return Ok(FetchResult::NotModified);
                };
                let memory = self.reserve_memory(file.length, || shown.clone()).await?;
                let read = move || file.read(limit);
                let (bytes, validators) = run_blocking(&shown, read).await?;
                Ok(FetchResult::File(ImageFile::new(bytes, validators, memory)))
            }
            Location::Remote { url, fallback } => {
                let first = self.download(url, request, known).await;
                match (first, fallback) {
                    (Err(first @ MediaError::Status { .. }), Some(fallback)) => self
                        .download(fallback, request, known)
                        .await
                        .map_err(|_| first),
                    (first, _) => first,
                }
            }
        }
    }

    /// Reserves memory for an image file: `bytes`, but no more than the size limit, because no more is read.
    pub(super) async fn reserve_memory(
        &self,
        bytes: usize,
        url: impl FnOnce() -> String,
    ) -> Result<Reservation, MediaError> {
        let bytes = bytes.min(self.config.max_bytes);
        let memory = self.budget.reserve(Purpose::File, bytes, MEMORY_TIMEOUT);
        let memory = memory.await;
        memory.map_err(|source| MediaError::Memory { url: url(), source })
    }
}

/// Runs blocking reads outside of the async threads.
async fn run_blocking<T: Send + 'static>(
    name: &str,
    read: impl FnOnce() -> Result<T, MediaError> + Send + 'static,
) -> Result<T, MediaError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| {
        Err(MediaError::Unreachable {
            url: name.to_owned(),
            reason: error.to_string(),
        })
    })
}
