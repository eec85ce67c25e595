//! Why an API call failed, and whether a retry makes sense.

use std::time::Duration;

use crate::label_studio::TokenError;

/// Why an API call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The address of Label Studio is not configured.
    #[error("LABEL_STUDIO_HOST is not set: it must be the address of Label Studio")]
    NoHost,
    /// There is no usable token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The connection failed.
    #[error("cannot reach Label Studio at {url}: {reason} (LABEL_STUDIO_HOST)")]
    #[allow(missing_docs)]
    Unreachable { url: String, reason: String },
    /// The response has status 401 or 403.
    #[error("{path} answered {status}: {hint}")]
    #[allow(missing_docs)]
    Refused {
        path: String,
        status: u16,
        hint: &'static str,
    },
    /// The response has another error status; `text` is the beginning of its body.
    #[error("{path} answered {status}: {text}")]
    #[allow(missing_docs)]
    Status {
        path: String,
        status: u16,
        text: String,
        /// The `Retry-After` of the response, if it has one.
        retry_after: Option<Duration>,
    },
    /// The response does not have the expected form.
    #[error("{path} returned an unexpected response: {reason}")]
    #[allow(missing_docs)]
    InvalidResponse { path: String, reason: String },
}

/// The delay after the first attempt; it doubles with each further attempt.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Upper limit for a delay from `Retry-After`.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

impl ApiError {
    /// Whether a retry may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// How long to wait before the next attempt, after `attempts` attempts (at least 1).
    pub(super) fn retry_delay(&self, attempts: u32) -> Duration {
        let requested = match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let default = FIRST_RETRY_DELAY * 2u32.pow(attempts.saturating_sub(1));
        requested.map_or(default, |requested| requested.min(MAX_RETRY_DELAY))
    }
}
