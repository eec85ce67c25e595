//! Downloads one file from the hub into the cache.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::ExposeSecret;

use super::cache::{Repository, Slot, is_commit};
use super::hub::{Hub, HubError, Source, Watcher};
use crate::outgoing::{self, client, error_chain};

/// The hub's metadata of a file.
#[derive(Debug)]
struct Remote {
    commit: String,
    etag: String,
    size: Option<u64>,
}

/// Timeout for the start of a response, and between two chunks of one.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);
/// Limit of consecutive attempts that receive no byte.
const TRIES: u32 = 4;
const MAX_REDIRECTS: usize = 5;
/// Limit of a repository's file list, in bytes; this is thousands of files.
const MAX_LISTING: usize = 16 << 20;

/// A failed attempt: `Again` may be retried, `Over` must not.
enum Attempt {
    Again(HubError),
    Over(HubError),
}

/// A request for one file of a repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) hub: &'a Hub,
    pub(super) source: &'a Source,
    pub(super) file: &'a str,
}

impl Transfer<'_> {
    /// The repository's file list from the hub's API.
    ///
    /// # Errors
    /// If the hub cannot be reached, or its answer is invalid.
    pub(super) async fn list<T: serde::de::DeserializeOwned>(&self) -> Result<T, HubError> {
        let Source { id, revision } = self.source;
        let client = self.client()?;
        let url = self.url(&format!("api/models/{id}/revision/{revision}"))?;
        let response = self.ask(&client, Method::GET, url, None).await?;
        let response = self.expect_success(response)?;
        let answer =
            tokio::time::timeout(PATIENCE, outgoing::read_body(response, MAX_LISTING)).await;
        let answer = answer.map_err(|_| self.unreachable(self.silence()))?;
        let answer = answer.map_err(|error| self.strange(error.to_string()))?;
        serde_json::from_slice(&answer).map_err(|error| self.strange(error.to_string()))
    }

    /// Downloads the file into the cache.
    ///
    /// # Errors
    /// See [`HubError`].
    pub(super) async fn fetch(
        &self,
        repository: &Repository,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<PathBuf, HubError> {
        let client = self.client()?;
        let remote = self.describe(&client).await?;
        let store = |error| self.store(error);
        let file = self.file;
        let slot = repository
            .slot(&remote.etag, || {
                watcher.waiting(&format!("another process fetches {file}"));
            })
            .map_err(store)?;
        if !slot.blob().is_file() || slot.differs(slot.blob()).map_err(store)?.is_some() {
            self.download(&client, &remote, &slot, watcher).await?;
        }
        repository
            .publish(&slot, self.source, &remote.commit, file)
            .map_err(store)
    }

    fn client(&self) -> Result<Client, HubError> {
        let builder = client().no_gzip().connect_timeout(CONNECT);
        builder
            .build()
            .map_err(|e| self.unreachable(error_chain(&e)))
    }

    fn url(&self, path: &str) -> Result<Url, HubError> {
        let endpoint = &self.hub.endpoint;
        Url::parse(&format!("{endpoint}/{path}"))
            .ok()
            .filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
            .ok_or_else(|| HubError::Endpoint(without_password(endpoint)))
    }

    fn resolve_url(&self) -> Result<Url, HubError> {
        let Source { id, revision } = self.source;
        let revision = revision.replace('/', "%2F");
        self.url(&format!("{id}/resolve/{revision}/{}", self.file))
    }

    /// Sends one request. The token is sent only to the hub's own origin.
    async fn ask(
        &self,
        client: &Client,
        method: Method,
        url: Url,
        start: Option<u64>,
    ) -> Result<Response, HubError> {
        let is_hub = self.url("").is_ok_and(|hub| hub.origin() == url.origin());
        // sizes must be those of the file, not of a proxy's compressed form
        let mut request = client
            .request(method, url)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.hub.token.as_ref().filter(|_| is_hub) {
            let value = format!("Bearer {}", token.expose_secret());
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                self.strange("HF_TOKEN holds characters that no token has".to_owned())
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(start) = start {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        match tokio::time::timeout(PATIENCE, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(error_chain(&error.without_url()))),
            Err(_) => Err(self.unreachable(self.silence())),
        }
    }

    /// Requests the metadata, and follows redirects only within the hub, because only the hub sends the file's commit
    /// and etag.
    async fn describe(&self, client: &Client) -> Result<Remote, HubError> {
        let mut url = self.resolve_url()?;
        for _ in 0..MAX_REDIRECTS {
            let response = self.ask(client, Method::HEAD, url.clone(), None).await?;
            let next = redirect(&response).filter(|next| next.origin() == url.origin());
            match next {
                Some(next) if !response.headers().contains_key("x-linked-etag") => url = next,
                _ => return self.remote(response),
            }
        }
        Err(self.strange("it redirects in circles".to_owned()))
    }

    fn remote(&self, response: Response) -> Result<Remote, HubError> {
        let is_redirect = response.status().is_redirection();
        let response = if is_redirect {
            response
        } else {
            self.expect_success(response)?
        };
        let header = |name: &str| text(response.headers(), name);
        let commit = header("x-repo-commit").filter(|commit| is_commit(commit));
        let commit = commit.ok_or_else(|| self.strange("it tells no commit".to_owned()))?;
        let etag = header("x-linked-etag").or(header("etag"));
        let etag = etag.as_deref().map(|etag| {
            let strong = etag.strip_prefix("W/").unwrap_or(etag);
            strong.trim_matches('"').to_owned()
        });
        // the etag is used as a file name
        let is_name = |etag: &String| {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            (1..=128).contains(&etag.len()) && etag.bytes().all(fits)
        };
        let etag = etag
            .filter(is_name)
            .ok_or_else(|| self.strange("it tells no usable etag".to_owned()))?;
        let own = || header("content-length").filter(|_| !is_redirect);
        let size = header("x-linked-size").or_else(own);
        Ok(Remote {
            commit,
            etag,
            size: size.and_then(|size| size.parse().ok()),
        })
    }

    /// Downloads into the slot, and retries as long as attempts make progress.
    async fn download(
        &self,
        client: &Client,
        remote: &Remote,
        slot: &Slot,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<(), HubError> {
        let part = slot.part();
        let store = |error| self.store(error);
        let mut tries = 0;
        loop {
            let before = length(&part);
            match self.attempt(client, remote, &part, watcher).await {
                Ok(()) => break,
                Err(Attempt::Over(error)) => return Err(error),
                Err(Attempt::Again(error)) => {
                    tries = if length(&part) > before { 0 } else { tries + 1 };
                    if tries >= TRIES {
                        return Err(error);
                    }
                    tracing::debug!(%error, "another try");
                    tokio::time::sleep(Duration::from_millis(200 << tries)).await;
                }
            }
        }
        if let Some((found, expected)) = slot.differs(&part).map_err(store)? {
            // if it cannot be removed, the next run detects it again
            let _ = fs::remove_file(&part);
            return Err(HubError::Checksum {
                file: self.file.to_owned(),
                id: self.source.id.clone(),
                host: self.host(),
                found,
                expected,
            });
        }
        fs::rename(&part, slot.blob()).map_err(store)
    }

    /// Downloads the missing part of the file. Done when the file is complete.
    async fn attempt(
        &self,
        client: &Client,
        remote: &Remote,
        part: &Path,
        watcher: &Arc<dyn Watcher>,
    ) -> Result<(), Attempt> {
        let store = |error| Attempt::Over(self.store(error));
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(part)
            .map_err(store)?;
        let mut bytes = length(part);
        if remote.size.is_some_and(|size| bytes > size) {
            restart(&file, &mut bytes).map_err(store)?;
        }
        if remote.size == Some(bytes) && bytes > 0 {
            return Ok(());
        }
        let mut response = self.open(client, bytes).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), bytes) => {}
            // the download starts from the beginning
            StatusCode::OK | StatusCode::PARTIAL_CONTENT if bytes == 0 => {}
            StatusCode::OK => restart(&file, &mut bytes).map_err(store)?,
            // the bytes on disk do not belong to this file
            _ => {
                restart(&file, &mut bytes).map_err(store)?;
                return Err(Attempt::Again(
                    self.strange("it resumes elsewhere".to_owned()),
                ));
            }
        }
        let total = remote
            .size
            .or_else(|| response.content_length().map(|left| bytes + left));
        loop {
            let piece = match tokio::time::timeout(PATIENCE, response.chunk()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    let reason = error_chain(&error.without_url());
                    return Err(Attempt::Again(self.unreachable(reason)));
                }
                Err(_) => return Err(Attempt::Over(self.unreachable(self.silence()))),
            };
            file.write_all(&piece).map_err(store)?;
            bytes += piece.len() as u64;
            watcher.progress(self.file, bytes, total.unwrap_or(bytes));
        }
        file.sync_all().map_err(store)?;
        match total {
            Some(total) if bytes != total => Err(Attempt::Again(
                self.unreachable(format!("it ended after {bytes} of {total} bytes")),
            )),
            _ => Ok(()),
        }
    }

    /// Requests the file's bytes from `start`, and follows redirects to any host.
    async fn open(&self, client: &Client, start: u64) -> Result<Response, Attempt> {
        let mut url = self.resolve_url().map_err(Attempt::Over)?;
        for _ in 0..MAX_REDIRECTS {
            let range = (start > 0).then_some(start);
            let response = self.ask(client, Method::GET, url, range).await;
            let response = response.map_err(Attempt::Again)?;
            match redirect(&response) {
                Some(next) => url = next,
                None if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(response);
                }
                None => {
                    let may_pass = response.status().is_server_error()
                        || response.status() == StatusCode::TOO_MANY_REQUESTS;
                    return self
                        .expect_success(response)
                        .map_err(|error| match may_pass {
                            true => Attempt::Again(error),
                            false => Attempt::Over(error),
                        });
                }
            }
        }
        Err(Attempt::Over(
            self.strange("it redirects in circles".to_owned()),
        ))
    }

    fn expect_success(&self, response: Response) -> Result<Response, HubError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let (file, id, host) = (self.file.to_owned(), self.source.id.clone(), self.host());
        Err(match status {
            StatusCode::NOT_FOUND => HubError::NotFound { file, id, host },
            status => HubError::Refused {
                file,
                id,
                host,
                status: status.as_u16(),
                hint: match status.as_u16() {
                    401 | 403 => {
                        "HF_TOKEN is missing or may not read it, or there is no such repository"
                    }
                    _ => "try again later",
                },
            },
        })
    }

    /// The hub's URL without user name and password.
    fn host(&self) -> String {
        without_password(&self.hub.endpoint)
    }

    fn silence(&self) -> String {
        format!("nothing came for {} s", PATIENCE.as_secs())
    }

    fn unreachable(&self, reason: String) -> HubError {
        HubError::Unreachable {
            file: self.file.to_owned(),
            id: self.source.id.clone(),
            host: self.host(),
            reason,
        }
    }

    fn strange(&self, reason: String) -> HubError {
        HubError::Strange {
            file: self.file.to_owned(),
            id: self.source.id.clone(),
            host: self.host(),
            reason,
        }
    }

    fn store(&self, reason: io::Error) -> HubError {
        HubError::Store {
            file: self.file.to_owned(),
            id: self.source.id.clone(),
            cache: self.hub.cache.display().to_string(),
            reason,
        }
    }
}

/// Empties the partial file.
fn restart(file: &File, bytes: &mut u64) -> io::Result<()> {
    *bytes = 0;
    file.set_len(0)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The target of a redirect; `None` if the response is not one.
fn redirect(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let next = response.url().join(location).ok()?;
    ["http", "https"].contains(&next.scheme()).then_some(next)
}

/// Whether a partial response begins at the requested byte.
fn begins_at(headers: &HeaderMap, start: u64) -> bool {
    let range = text(headers, "content-range");
    let first = range.as_deref().and_then(|range| {
        let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
        first.parse::<u64>().ok()
    });
    first == Some(start)
}

fn without_password(endpoint: &str) -> String {
    match Url::parse(endpoint) {
        Ok(mut url) if url.has_host() => {
            // the URL has a host, so these cannot fail
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.as_str().trim_end_matches('/').to_owned()
        }
        _ => endpoint.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}
