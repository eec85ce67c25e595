//! Bounded fetching of images.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{
    AUTHORIZATION, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
};
use reqwest::{Response, StatusCode, Url};

use super::MediaError;
use super::guard::{AllowedHosts, PrivateHost, PublicOnly, check_literal};
use super::location::{Location, LocationError, describe, inline};
use crate::config::Secret;
use crate::label_studio::LabelStudio;
use crate::outgoing::{causes, client};

/// Limits of a [`Fetcher`].
#[derive(Debug, Clone)]
pub struct FetcherConfig {
    /// For one image, redirects included.
    pub timeout: Duration,
    /// Of the file.
    pub max_bytes: usize,
    /// Of the decoded image.
    pub max_pixels: usize,
    /// Hosts besides Label Studio whose addresses may be private.
    pub allowed_hosts: AllowedHosts,
    /// The folder that Label Studio serves local files from, where this machine has it too.
    pub local_files: Option<PathBuf>,
}

/// Which image to get, and on whose behalf.
#[derive(Debug, Clone, Copy)]
pub struct ImageRequest<'a> {
    /// What the task's data says.
    pub value: &'a str,
    /// Where relative URLs lie, and who gets the token.
    pub label_studio: &'a LabelStudio,
    /// Label Studio's number of the task.
    pub task: Option<u64>,
    /// The project's user and password for protected image URLs.
    pub login: Option<&'a (String, Secret)>,
}

/// Gets images; clones share its connections.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// For Label Studio and the hosts that were named.
    trusted: reqwest::Client,
    /// For the rest of the world: it resolves no name to a private address.
    guarded: reqwest::Client,
    pub(super) config: FetcherConfig,
}

const MAX_REDIRECTS: usize = 5;

/// What tells whether an image is still the same, as its host gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Validators {
    /// Of an HTTP answer; of a file, when it was changed and its length.
    etag: Option<String>,
    /// As a date of HTTP.
    last_modified: Option<String>,
}

impl Validators {
    fn are_none(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    fn of_file(metadata: &std::fs::Metadata) -> Self {
        let changed = metadata.modified().ok();
        Self {
            etag: changed.map(|time| format!("{time:?} {}", metadata.len())),
            last_modified: None,
        }
    }
}

/// What a host said.
#[derive(Debug)]
pub(super) enum Answer {
    /// The image is as it was.
    Same,
    /// The image's file.
    Bytes {
        bytes: Vec<u8>,
        validators: Validators,
    },
}

impl Fetcher {
    /// A fetcher with its own connections.
    ///
    /// # Errors
    /// If the system's TLS settings cannot be read.
    pub fn new(config: FetcherConfig) -> Result<Self, reqwest::Error> {
        Ok(Self {
            trusted: client().build()?,
            guarded: client().dns_resolver(PublicOnly::shared()).build()?,
            config,
        })
    }

    /// The bytes at a location, unless they are those of `known`.
    pub(super) async fn bytes(
        &self,
        location: Location,
        request: ImageRequest<'_>,
        known: Option<&Validators>,
    ) -> Result<Answer, MediaError> {
        let url = location.describe(request.label_studio);
        let read = self.read(location, request, known);
        let fetched = tokio::time::timeout(self.config.timeout, read).await;
        fetched.unwrap_or_else(|_| {
            let seconds = self.config.timeout.as_secs();
            Err(MediaError::Unreachable {
                url,
                reason: format!("it took more than {seconds} s (IMAGE_TIMEOUT_S)"),
            })
        })
    }

    async fn read(
        &self,
        location: Location,
        request: ImageRequest<'_>,
        known: Option<&Validators>,
    ) -> Result<Answer, MediaError> {
        let limit = self.config.max_bytes;
        let no_validators = Validators::default();
        let known = known.unwrap_or(&no_validators);
        match location {
            Location::Inline(uri) => {
                let url = format!("the task's data URI of {} characters", uri.len());
                let read = tokio::task::spawn_blocking(move || inline(&uri, limit)).await;
                match read {
                    Ok(bytes) => Ok(Answer::Bytes {
                        bytes: bytes?.ok_or(MediaError::TooLarge { url, limit })?,
                        validators: Validators::default(),
                    }),
                    Err(error) => Err(MediaError::Unreachable {
                        url,
                        reason: error.to_string(),
                    }),
                }
            }
            Location::File { path, root, name } => {
                let (limit, known) = (limit as u64, known.clone());
                let read = move || read_file(&path, &root, name, limit, &known);
                let read = tokio::task::spawn_blocking(read).await;
                read.unwrap_or_else(|e| {
                    Err(MediaError::Unreachable {
                        url: "a local file".to_owned(),
                        reason: e.to_string(),
                    })
                })
            }
            Location::Remote { url, otherwise } => {
                let first = self.download(url, request, known).await;
                match (first, otherwise) {
                    (Err(first @ MediaError::Status { .. }), Some(other)) => self
                        .download(other, request, known)
                        .await
                        .map_err(|_| first),
                    (first, _) => first,
                }
            }
        }
    }

    /// Follows a URL to its bytes. Each hop is held against the hosts that may be asked, and only Label
    /// Studio itself sees the token.
    async fn download(
        &self,
        start: Url,
        request: ImageRequest<'_>,
        known: &Validators,
    ) -> Result<Answer, MediaError> {
        let mut url = start.clone();
        let mut may_renew = true;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.hop(&url, &start, request, known).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED
                && request.label_studio.owns(&url)
                && std::mem::take(&mut may_renew)
                && request.label_studio.forget_access().await
            {
                continue;
            }
            if status == StatusCode::NOT_MODIFIED && !known.are_none() {
                return Ok(Answer::Same);
            }
            if !status.is_redirection() {
                return self.body(response, &url, request).await;
            }
            let target = response.headers().get(LOCATION);
            let target = target.and_then(|target| target.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            if let Some(next) = &next
                && request.label_studio.owns(&url)
                && !request.label_studio.owns(next)
                && (next.host_str(), next.path()) == (url.host_str(), url.path())
            {
                return Err(MediaError::Unreachable {
                    url: describe(&url, request.label_studio),
                    reason: format!(
                        "Label Studio has moved to {}: set LABEL_STUDIO_HOST to that address",
                        next.origin().ascii_serialization()
                    ),
                });
            }
            url = next
                .filter(|next| matches!(next.scheme(), "http" | "https"))
                .ok_or_else(|| MediaError::Unreachable {
                    url: describe(&url, request.label_studio),
                    reason: format!("it answered {status} without a usable address to go on to"),
                })?;
        }
        Err(MediaError::Unreachable {
            url: describe(&start, request.label_studio),
            reason: format!("it leads through more than {MAX_REDIRECTS} redirects"),
        })
    }

    /// One request of a download.
    async fn hop(
        &self,
        url: &Url,
        start: &Url,
        request: ImageRequest<'_>,
        known: &Validators,
    ) -> Result<Response, MediaError> {
        let studio = request.label_studio;
        let is_own = studio.owns(url);
        let is_known = is_own && !studio.is_stranger();
        let client = if is_known || self.config.allowed_hosts.contains(url) {
            &self.trusted
        } else {
            check_literal(url)?;
            &self.guarded
        };
        let mut get = client.get(url.clone());
        if let Some(etag) = &known.etag {
            get = get.header(IF_NONE_MATCH, etag);
        } else if let Some(date) = &known.last_modified {
            get = get.header(IF_MODIFIED_SINCE, date);
        }
        if is_own {
            // a stranger's token is exchanged with a stranger: by the client that is guarded
            if let Some(header) = studio.authorization(client).await? {
                get = get.header(AUTHORIZATION, header);
            }
        } else if let Some((user, password)) = request.login
            && url.origin() == start.origin()
        {
            get = get.basic_auth(user, Some(password.reveal()));
        }
        get.send().await.map_err(|e| failed(e, url, studio))
    }

    /// The body of the last answer, if it is an image's.
    async fn body(
        &self,
        mut response: Response,
        url: &Url,
        request: ImageRequest<'_>,
    ) -> Result<Answer, MediaError> {
        let studio = request.label_studio;
        let status = response.status();
        let name = || describe(url, studio);
        if matches!(status.as_u16(), 401 | 403) {
            return Err(MediaError::Refused {
                url: name(),
                status: status.as_u16(),
                hint: if studio.owns(url) {
                    studio.refusal_hint()
                } else if studio.base().and_then(host_of) == url.host_str().map(str::to_owned) {
                    "it is not the origin of LABEL_STUDIO_HOST, so it gets no token; set LABEL_STUDIO_HOST to this scheme, host and port"
                } else {
                    "the host does not give this image to groundling"
                },
            });
        }
        if !status.is_success() {
            return Err(MediaError::Status {
                url: name(),
                status: status.as_u16(),
                hint: missing_hint(url, studio),
            });
        }
        let limit = self.config.max_bytes;
        let too_large = || MediaError::TooLarge { url: name(), limit };
        if response.content_length().is_some_and(|n| n > limit as u64) {
            return Err(too_large());
        }
        let validator = |name| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let validators = Validators {
            etag: validator(ETAG),
            last_modified: validator(LAST_MODIFIED),
        };
        let mut bytes = vec![];
        while let Some(chunk) = response.chunk().await.map_err(|e| failed(e, url, studio))? {
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Answer::Bytes { bytes, validators })
    }
}

/// What a failing path of Label Studio usually means.
fn missing_hint(url: &Url, studio: &LabelStudio) -> &'static str {
    let path = url.path();
    if !studio.owns(url) {
        ""
    } else if path.contains("/data/local-files") {
        ": is the file there, does the project have a local storage for its folder, and does Label Studio serve local files (LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)?"
    } else if path.contains("/resolve/") {
        ": does the project have a cloud storage for it, with credentials that work?"
    } else if path.contains("/data/upload/") {
        ": Label Studio does not have this upload (any more)"
    } else {
        ""
    }
}

fn host_of(base: &str) -> Option<String> {
    Url::parse(base).ok()?.host_str().map(str::to_owned)
}

/// A request that failed on the way; the resolver's refusal is told as what it is.
fn failed(error: reqwest::Error, url: &Url, studio: &LabelStudio) -> MediaError {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(private) = cause.downcast_ref::<PrivateHost>() {
            return MediaError::Private(private.clone());
        }
        source = cause.source();
    }
    let hint = if studio.owns(url) && error.is_connect() {
        "; LABEL_STUDIO_HOST must be Label Studio's address as this machine reaches it"
    } else {
        ""
    };
    MediaError::Unreachable {
        url: describe(url, studio),
        reason: format!("{}{hint}", causes(&error.without_url())),
    }
}

/// Reads a local file. It was looked at by its name before, and could be another one by now: what counts is the file that
/// is open.
fn read_file(
    path: &Path,
    root: &Path,
    name: String,
    limit: u64,
    known: &Validators,
) -> Result<Answer, MediaError> {
    let shown = format!("the local file {name}");
    let unreadable = |reason: String| MediaError::Unreachable {
        url: shown.clone(),
        reason: format!("{reason} (LOCAL_FILES_DOCUMENT_ROOT)"),
    };
    let failed = |error: std::io::Error| unreadable(error.to_string());
    let file = open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a file".to_owned()));
    }
    let (real, real_root) = (path.canonicalize(), root.canonicalize());
    let (real, real_root) = (real.map_err(failed)?, real_root.map_err(failed)?);
    if !real.starts_with(real_root) || !is_same(&metadata, &real) {
        return Err(LocationError::Outside(name).into());
    }
    let too_large = || MediaError::TooLarge {
        url: shown.clone(),
        limit: limit as usize,
    };
    if metadata.len() > limit {
        return Err(too_large());
    }
    let validators = Validators::of_file(&metadata);
    if !known.are_none() && *known == validators {
        return Ok(Answer::Same);
    }
    // it may grow while it is read
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > limit {
        return Err(too_large());
    }
    Ok(Answer::Bytes { bytes, validators })
}

/// Opens what may be no file, without waiting for a writer to it.
fn open(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    }
    options.open(path)
}

/// Whether an open file is the one that has this name now.
fn is_same(open: &std::fs::Metadata, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        std::fs::symlink_metadata(path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino()))
    }
    #[cfg(not(unix))]
    {
        std::fs::symlink_metadata(path).is_ok_and(|named| named.len() == open.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_exchanged_after_it_was_looked_at_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let (file, secret) = (root.join("a.png"), folder.path().join("secret"));
        std::fs::write(&file, "picture").unwrap();
        std::fs::write(&secret, "secret").unwrap();
        let read = |limit| {
            let known = Validators::default();
            read_file(&file, &root, "a.png".to_owned(), limit, &known)
        };
        assert!(matches!(read(7), Ok(Answer::Bytes { bytes, .. }) if bytes == b"picture"));
        assert!(matches!(read(6), Err(MediaError::TooLarge { .. })));
        #[cfg(unix)]
        {
            std::fs::remove_file(&file).unwrap();
            std::os::unix::fs::symlink(&secret, &file).unwrap();
            let error = read(100).unwrap_err().to_string();
            assert!(
                error.contains("outside LOCAL_FILES_DOCUMENT_ROOT"),
                "{error}"
            );
            std::fs::remove_file(&file).unwrap();
            std::fs::create_dir(&file).unwrap();
            assert!(read(100).is_err());
        }
    }
}
