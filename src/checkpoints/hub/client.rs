//! Requests to the hub about one file of a repository.

use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};

use super::error::HubError;
use super::revision::{RepoRevision, is_commit};
use crate::outgoing::{self, client, error_chain};

/// Timeout for the start of a response, and between two chunks of one.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 5;
/// Limit of a repository's file list, in bytes; this is thousands of files.
const MAX_LISTING: usize = 16 << 20;

/// The hub's address and token.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) token: Option<SecretString>,
}

/// The hub's metadata of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) commit: String,
    pub(super) etag: String,
    /// In bytes.
    pub(super) size: Option<u64>,
}

/// A failed attempt to download.
pub(super) enum AttemptError {
    /// Another attempt may succeed.
    Retry(HubError),
    /// Another attempt would fail in the same way.
    Fatal(HubError),
}

/// A client for one file of a repository.
#[derive(Debug)]
pub(super) struct FileClient<'a> {
    endpoint: &'a Endpoint,
    repo: &'a RepoRevision,
    file: &'a str,
    client: Client,
}

impl<'a> FileClient<'a> {
    /// Prepares a client for one file.
    ///
    /// # Errors
    /// If the system's TLS settings cannot be read.
    pub(super) fn new(
        endpoint: &'a Endpoint,
        repo: &'a RepoRevision,
        file: &'a str,
    ) -> Result<Self, HubError> {
        let builder = client().no_gzip().connect_timeout(CONNECT_TIMEOUT);
        let client = builder.build().map_err(|error| HubError::Unreachable {
            file: file.to_owned(),
            id: repo.id.clone(),
            host: without_password(&endpoint.url),
            reason: error_chain(&error),
        })?;
        Ok(Self {
            endpoint,
            repo,
            file,
            client,
        })
    }

    /// The name of the file.
    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    /// The repository.
    pub(super) fn repo(&self) -> &'a RepoRevision {
        self.repo
    }

    /// The repository's file list from the hub's API.
    ///
    /// # Errors
    /// If the hub cannot be reached, or its answer is invalid.
    pub(super) async fn list<T: serde::de::DeserializeOwned>(&self) -> Result<T, HubError> {
        let RepoRevision { id, revision } = self.repo;
        let url = self.url(&format!("api/models/{id}/revision/{revision}"))?;
        let response = self.send(Method::GET, url, None).await?;
        let response = self.expect_success(response)?;
        let body =
            tokio::time::timeout(READ_TIMEOUT, outgoing::read_body(response, MAX_LISTING)).await;
        let body = body.map_err(|_| self.timed_out())?;
        let body = body.map_err(|error| self.unexpected(error.to_string()))?;
        serde_json::from_slice(&body).map_err(|error| self.unexpected(error.to_string()))
    }

    /// Requests the file's metadata. Follows redirects only within the hub, because only the hub sends the file's
    /// commit and etag.
    ///
    /// # Errors
    /// If the hub cannot be reached, rejects the request, or its answer has no commit or etag.
    pub(super) async fn metadata(&self) -> Result<Metadata, HubError> {
        let mut url = self.resolve_url()?;
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::HEAD, url.clone(), None).await?;
            let next = redirect_target(&response).filter(|next| next.origin() == url.origin());
            match next {
                Some(next) if !response.headers().contains_key("x-linked-etag") => url = next,
                _ => return self.parse_metadata(response),
            }
        }
        Err(self.unexpected(TOO_MANY_REDIRECTS.to_owned()))
    }

    fn parse_metadata(&self, response: Response) -> Result<Metadata, HubError> {
        let is_redirect = response.status().is_redirection();
        let response = if is_redirect {
            response
        } else {
            self.expect_success(response)?
        };
        let header = |name: &str| header_text(response.headers(), name);
        let commit = header("x-repo-commit").filter(|commit| is_commit(commit));
        let commit = commit.ok_or_else(|| self.unexpected("it has no commit".to_owned()))?;
        let etag = header("x-linked-etag").or(header("etag"));
        let etag = etag.as_deref().map(|etag| {
            let strong = etag.strip_prefix("W/").unwrap_or(etag);
            strong.trim_matches('"').to_owned()
        });
        // the etag is used as a file name
        let is_file_name = |etag: &String| {
            let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            (1..=128).contains(&etag.len()) && etag.bytes().all(is_allowed)
        };
        let etag = etag
            .filter(is_file_name)
            .ok_or_else(|| self.unexpected("it has no usable etag".to_owned()))?;
        let content_length = || header("content-length").filter(|_| !is_redirect);
        let size = header("x-linked-size").or_else(content_length);
        Ok(Metadata {
            commit,
            etag,
            size: size.and_then(|size| size.parse().ok()),
        })
    }

    /// Requests the file's bytes from `start`, and follows redirects to any host. A 416 (no bytes from there) is also
    /// returned as a response.
    pub(super) async fn open(&self, start: u64) -> Result<Response, AttemptError> {
        let mut url = self.resolve_url().map_err(AttemptError::Fatal)?;
        for _ in 0..MAX_REDIRECTS {
            let range = (start > 0).then_some(start);
            let response = self.send(Method::GET, url, range).await;
            let response = response.map_err(AttemptError::Retry)?;
            if let Some(next) = redirect_target(&response) {
                url = next;
                continue;
            }
            let status = response.status();
            if status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(response);
            }
            let is_transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            let kind = match is_transient {
                true => AttemptError::Retry,
                false => AttemptError::Fatal,
            };
            return self.expect_success(response).map_err(kind);
        }
        let error = self.unexpected(TOO_MANY_REDIRECTS.to_owned());
        Err(AttemptError::Fatal(error))
    }

    fn url(&self, path: &str) -> Result<Url, HubError> {
        let endpoint = &self.endpoint.url;
        Url::parse(&format!("{endpoint}/{path}"))
            .ok()
            .filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host())
            .ok_or_else(|| HubError::Endpoint(without_password(endpoint)))
    }

    fn resolve_url(&self) -> Result<Url, HubError> {
        let RepoRevision { id, revision } = self.repo;
        let revision = revision.replace('/', "%2F");
        self.url(&format!("{id}/resolve/{revision}/{}", self.file))
    }

    /// Sends one request. The token is sent only to the hub's own origin.
    async fn send(
        &self,
        method: Method,
        url: Url,
        start: Option<u64>,
    ) -> Result<Response, HubError> {
        let is_hub = self.url("").is_ok_and(|hub| hub.origin() == url.origin());
        // sizes must be those of the file, not of a proxy's compressed form
        let mut request = self
            .client
            .request(method, url)
            .header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.endpoint.token.as_ref().filter(|_| is_hub) {
            let value = format!("Bearer {}", token.expose_secret());
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                self.unexpected(
                    "HF_TOKEN has characters that are not allowed in a token".to_owned(),
                )
            })?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(start) = start {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        match tokio::time::timeout(READ_TIMEOUT, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(error_chain(&error.without_url()))),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn expect_success(&self, response: Response) -> Result<Response, HubError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let (file, id, host) = (self.file.to_owned(), self.repo.id.clone(), self.host());
        Err(match status {
            StatusCode::NOT_FOUND => HubError::NotFound { file, id, host },
            status => HubError::Rejected {
                file,
                id,
                host,
                status: status.as_u16(),
                hint: match status.as_u16() {
                    401 | 403 => {
                        "HF_TOKEN is missing or has no access to the repository, or the repository does not exist"
                    }
                    _ => "try again later",
                },
            },
        })
    }

    /// The hub's URL without user name and password.
    pub(super) fn host(&self) -> String {
        without_password(&self.endpoint.url)
    }

    pub(super) fn timed_out(&self) -> HubError {
        self.unreachable(format!("no data for {} s", READ_TIMEOUT.as_secs()))
    }

    pub(super) fn unreachable(&self, reason: String) -> HubError {
        HubError::Unreachable {
            file: self.file.to_owned(),
            id: self.repo.id.clone(),
            host: self.host(),
            reason,
        }
    }

    pub(super) fn unexpected(&self, reason: String) -> HubError {
        HubError::UnexpectedResponse {
            file: self.file.to_owned(),
            id: self.repo.id.clone(),
            host: self.host(),
            reason,
        }
    }
}

const TOO_MANY_REDIRECTS: &str = "it redirects too often";

/// A header as text; `None` if it is missing or not ASCII.
pub(super) fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The target of a redirect; `None` if the response is not one.
fn redirect_target(response: &Response) -> Option<Url> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let next = response.url().join(location).ok()?;
    ["http", "https"].contains(&next.scheme()).then_some(next)
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
