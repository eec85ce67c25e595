//! Downloads images over HTTP: redirects, credentials, retries and advice on errors.

use std::time::Instant;

use reqwest::header::{
    AUTHORIZATION, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
};
use reqwest::{Response, StatusCode, Url};
use secrecy::ExposeSecret;

use super::fetch::{FetchResult, ImageFile, Validators};
use super::guard::{PrivateHost, check_literal};
use super::location::describe;
use super::{Fetcher, ImageRequest, MediaError};
use crate::label_studio::LabelStudio;
use crate::outgoing::{error_chain, retry_after};

const MAX_REDIRECTS: usize = 5;
/// How often a request to a busy host is repeated.
const MAX_RETRIES: usize = 3;

impl Fetcher {
    /// Downloads a URL and follows its redirects. Each request is checked against the allowed hosts, and only Label
    /// Studio itself receives the token.
    pub(super) async fn download(
        &self,
        start: Url,
        request: ImageRequest<'_>,
        known: &Validators,
    ) -> Result<FetchResult, MediaError> {
        let mut url = start.clone();
        let (mut may_renew_token, mut retries) = (true, 0);
        let started = Instant::now();
        let mut redirects = 0;
        while redirects <= MAX_REDIRECTS {
            let response = self.send_request(&url, &start, request, known).await?;
            let status = response.status();
            if let Some(after) = retry_after(&response)
                && retries < MAX_RETRIES
                && started.elapsed() + after < self.config.timeout
            {
                retries += 1;
                tokio::time::sleep(after).await;
                continue;
            }
            if status == StatusCode::UNAUTHORIZED
                && request.label_studio.is_same_origin(&url)
                && std::mem::take(&mut may_renew_token)
                && request.label_studio.discard_access_token().await
            {
                continue;
            }
            if status == StatusCode::NOT_MODIFIED && !known.is_empty() {
                return Ok(FetchResult::NotModified);
            }
            if !status.is_redirection() {
                return self.read_response(response, &url, request).await;
            }
            let target = response.headers().get(LOCATION);
            let target = target.and_then(|target| target.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            if let Some(next) = &next
                && request.label_studio.is_same_origin(&url)
                && !request.label_studio.is_same_origin(next)
                && (next.host_str(), next.path()) == (url.host_str(), url.path())
            {
                return Err(MediaError::Unreachable {
                    url: describe(&url, request.label_studio),
                    reason: format!(
                        "Label Studio redirects to {}: set LABEL_STUDIO_HOST to that address",
                        next.origin().ascii_serialization()
                    ),
                });
            }
            redirects += 1;
            url = next
                .filter(|next| matches!(next.scheme(), "http" | "https"))
                .ok_or_else(|| MediaError::Unreachable {
                    url: describe(&url, request.label_studio),
                    reason: format!(
                        "the response {status} has no Location header with an http(s) URL"
                    ),
                })?;
        }
        Err(MediaError::Unreachable {
            url: describe(&start, request.label_studio),
            reason: format!("it has more than {MAX_REDIRECTS} redirects"),
        })
    }

    /// Sends one request of a download.
    async fn send_request(
        &self,
        url: &Url,
        start: &Url,
        request: ImageRequest<'_>,
        known: &Validators,
    ) -> Result<Response, MediaError> {
        let studio = request.label_studio;
        let is_label_studio = studio.is_same_origin(url);
        let is_trusted = is_label_studio && !studio.is_untrusted();
        let client = if is_trusted || self.config.allowed_hosts.contains(url) {
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
        if is_label_studio {
            // an untrusted Label Studio also receives the token exchange, so that request must use the guarded client
            if let Some(header) = studio.authorization(client).await? {
                get = get.header(AUTHORIZATION, header);
            }
        } else if let Some((user, password)) = request.login
            && url.origin() == start.origin()
        {
            get = get.basic_auth(user, Some(password.expose_secret()));
        }
        get.send().await.map_err(|e| request_error(e, url, studio))
    }

    /// Checks the final response of a download and reads its body.
    async fn read_response(
        &self,
        mut response: Response,
        url: &Url,
        request: ImageRequest<'_>,
    ) -> Result<FetchResult, MediaError> {
        let studio = request.label_studio;
        let status = response.status();
        let name = || describe(url, studio);
        if matches!(status.as_u16(), 401 | 403) {
            return Err(MediaError::Refused {
                url: name(),
                status: status.as_u16(),
                hint: if status.as_u16() == 403 && is_local_file(url, studio) {
                    "Label Studio answers so, whatever the token is, if it does not serve local files: set LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true in its environment. Otherwise the token's user has no access to the project"
                } else if studio.is_same_origin(url) {
                    studio.refusal_hint()
                } else if studio.base().and_then(host_of) == url.host_str().map(str::to_owned) {
                    "the URL does not have the scheme, host and port of LABEL_STUDIO_HOST, so no token was sent: set LABEL_STUDIO_HOST to them"
                } else {
                    "the host denies access to this image"
                },
            });
        }
        if !status.is_success() {
            let hint = match retry_after(&response) {
                Some(after) => format!("; its Retry-After is {} s", after.as_secs()).into(),
                None => missing_hint(url, studio).into(),
            };
            return Err(MediaError::Status {
                url: name(),
                status: status.as_u16(),
                hint,
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
        let content_length = response.content_length();
        let content_length = content_length.and_then(|length| usize::try_from(length).ok());
        let mut memory = self
            .reserve_memory(content_length.unwrap_or(limit), name)
            .await?;
        let mut bytes = vec![];
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|e| request_error(e, url, studio))?
        {
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        memory.shrink_to(bytes.len());
        Ok(FetchResult::File(ImageFile::new(bytes, validators, memory)))
    }
}

/// The usual reason why Label Studio does not return a file, by the path of its URL.
/// Whether Label Studio serves this image from its local storage.
fn is_local_file(url: &Url, studio: &LabelStudio) -> bool {
    studio.is_same_origin(url) && url.path().contains("/data/local-files")
}

fn missing_hint(url: &Url, studio: &LabelStudio) -> &'static str {
    let path = url.path();
    if !studio.is_same_origin(url) {
        ""
    } else if is_local_file(url, studio) {
        ": check that the file exists, that the project has a local storage for its folder, and that Label Studio serves local files (LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT)"
    } else if path.contains("/resolve/") {
        ": check that the project has a cloud storage for this URI, with valid credentials"
    } else if path.contains("/data/upload/") {
        ": Label Studio does not have this upload"
    } else {
        ""
    }
}

fn host_of(base: &str) -> Option<String> {
    Url::parse(base).ok()?.host_str().map(str::to_owned)
}

/// Converts a request error. If the resolver refused a private address, the result is that error.
fn request_error(error: reqwest::Error, url: &Url, studio: &LabelStudio) -> MediaError {
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        if let Some(private) = cause.downcast_ref::<PrivateHost>() {
            return MediaError::Private(private.clone());
        }
        source = cause.source();
    }
    let is_unreachable_studio = studio.is_same_origin(url) && error.is_connect();
    let mut reason = error_chain(&error.without_url());
    // the chain may end with advice about a certificate already
    if is_unreachable_studio && !reason.contains("SSL_CERT_FILE") {
        reason.push_str(
            "; LABEL_STUDIO_HOST must be an address of Label Studio that this machine can reach",
        );
    }
    MediaError::Unreachable {
        url: describe(url, studio),
        reason,
    }
}
