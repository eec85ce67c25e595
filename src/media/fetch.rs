//! Bounded fetching of images.

use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::redirect::Policy;

use super::{LabelStudio, Location, MediaError};
use crate::config::Secret;

/// Limits and credentials of a [`Fetcher`].
#[derive(Debug, Clone)]
pub struct FetcherConfig {
    /// Where relative URLs lie.
    pub label_studio: LabelStudio,
    /// Label Studio's legacy access token.
    pub access_token: Option<Secret>,
    /// For one image, redirects included.
    pub timeout: Duration,
    /// Of the file.
    pub max_bytes: usize,
    /// Of the decoded image.
    pub max_pixels: usize,
}

/// Gets images; clones share its connections.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    config: FetcherConfig,
}

const MAX_REDIRECTS: usize = 5;

impl Fetcher {
    /// A fetcher with its own connections.
    ///
    /// # Errors
    /// If the system's TLS settings cannot be read.
    pub fn new(config: FetcherConfig) -> Result<Self, reqwest::Error> {
        // reqwest drops Authorization on a redirect to another host
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(Policy::limited(MAX_REDIRECTS))
            .user_agent(concat!("groundling/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, config })
    }

    pub(super) fn label_studio(&self) -> &LabelStudio {
        &self.config.label_studio
    }

    pub(super) fn max_pixels(&self) -> usize {
        self.config.max_pixels
    }

    /// The bytes at a location.
    pub(super) async fn bytes(&self, location: Location) -> Result<Vec<u8>, MediaError> {
        let limit = self.config.max_bytes;
        let name = location.to_string();
        let (url, is_label_studio) = match location {
            Location::Inline(bytes) if bytes.len() > limit => {
                return Err(MediaError::TooLarge { url: name, limit });
            }
            Location::Inline(bytes) => return Ok(bytes),
            Location::Remote {
                url,
                is_label_studio,
            } => (url, is_label_studio),
        };
        let unreachable = |error: reqwest::Error| MediaError::Unreachable {
            url: name.clone(),
            reason: causes(&error.without_url()),
        };
        let mut request = self.client.get(url);
        if let Some(token) = self
            .config
            .access_token
            .as_ref()
            .filter(|_| is_label_studio)
        {
            request = request.header(AUTHORIZATION, format!("Token {}", token.reveal()));
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if matches!(status.as_u16(), 401 | 403) {
            return Err(MediaError::Refused {
                url: name,
                status: status.as_u16(),
                hint: match (is_label_studio, &self.config.access_token) {
                    (true, None) => {
                        "set LABEL_STUDIO_ACCESS_TOKEN to a token of Label Studio (Account & Settings)"
                    }
                    (true, Some(_)) => {
                        "Label Studio does not accept the token in LABEL_STUDIO_ACCESS_TOKEN"
                    }
                    (false, _) => "the host does not give this image to groundling",
                },
            });
        }
        if !status.is_success() {
            return Err(MediaError::Status {
                url: name,
                status: status.as_u16(),
            });
        }
        let mut bytes = vec![];
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > limit {
                return Err(MediaError::TooLarge { url: name, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// An error and what caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
