//! Why an API call failed, and whether a retry makes sense.

use std::time::Duration;

use serde_json::Value;

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
    Unreachable {
        url: String,
        reason: String,
        /// Whether a retry fails too, because a certificate is not trusted.
        is_permanent: bool,
    },
    /// The response has status 401 or 403.
    #[error("{path} answered {status}: {hint}")]
    #[allow(missing_docs)]
    Refused {
        path: String,
        status: u16,
        hint: &'static str,
    },
    /// The response has another error status; `text` is the message in its body, or the beginning of it.
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

/// What Label Studio answers if it refuses to call a private address.
pub(super) const BLOCKED_ADDRESS: &str = "resolves to a reserved network address";
/// Limit of a message, in characters.
const MAX_MESSAGE: usize = 500;

/// The message in the body of an error response: Label Studio's `detail` and `validation_errors`, else the body's beginning.
pub(super) fn summary(body: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let mut messages = vec![];
    for field in ["detail", "validation_errors", "error"] {
        if let Some(value) = parsed.as_ref().and_then(|body| body.get(field)) {
            collect_texts(value, &mut messages);
        }
    }
    let text = match messages.is_empty() {
        true => body.to_owned(),
        false => messages.join(": "),
    };
    text.chars().take(MAX_MESSAGE).collect()
}

fn collect_texts<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(values) => values.iter().for_each(|value| collect_texts(value, texts)),
        Value::Object(fields) => fields
            .values()
            .for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

/// The delay after the first attempt; it doubles with each further attempt.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(500);
/// Upper limit for a delay from `Retry-After`.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

impl ApiError {
    /// Whether a retry may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { is_permanent, .. } => !is_permanent,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// Whether Label Studio refused to call a private address of a backend.
    pub fn is_blocked_address(&self) -> bool {
        matches!(self, Self::Status { text, .. } if text.contains(BLOCKED_ADDRESS))
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
