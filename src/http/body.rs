//! A request's body: admitted before it is read, whole, as JSON, with errors as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::AppState;
use super::error::failure;

/// The memory that bodies may take; clones share it.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    /// Of one body, unpacked.
    limit: usize,
    /// Units of [`UNIT`] bytes for all of them together.
    all: Arc<Semaphore>,
}

/// Bytes that one permit stands for.
const UNIT: usize = 4 << 10;
/// Bodies of the largest size that may be read at a time.
const LARGEST_AT_ONCE: usize = 4;
/// How long a body may wait for its turn.
const TURN: Duration = Duration::from_secs(20);
/// How long a client may be silent in the middle of a body.
const SILENCE: Duration = Duration::from_secs(20);
/// How long a body may take in all.
const WHOLE: Duration = Duration::from_secs(120);
/// Seconds after which bodies that were being read have been.
const RETRY_S: u16 = 5;

impl BodyBudget {
    /// For bodies of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let units = (LARGEST_AT_ONCE * limit.div_ceil(UNIT)).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            limit,
            all: Arc::new(Semaphore::new(units)),
        }
    }

    /// Bytes of the largest body.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Waits until there is room for a body that says so of itself; before a byte of it is read.
    async fn admit(&self, headers: &HeaderMap, was_packed: bool) -> Result<Admitted, Response> {
        let told = headers.get(CONTENT_LENGTH);
        let told: Option<usize> = told.and_then(|length| length.to_str().ok()?.parse().ok());
        if told.is_some_and(|length| length > self.limit) {
            return Err(too_large(self.limit));
        }
        // what a packed body becomes is not known before
        let expected = match told {
            Some(length) if !was_packed => length,
            _ => self.limit,
        };
        let units = u32::try_from(expected.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let turn = self.all.clone().acquire_many_owned(units);
        match timeout(TURN, turn).await {
            Ok(Ok(room)) => Ok(Admitted {
                expected,
                _room: room,
            }),
            // the semaphore is never closed
            Ok(Err(_)) | Err(_) => {
                let text = "too many large requests are being read: ask again later";
                let mut refusal = failure(StatusCode::SERVICE_UNAVAILABLE, text);
                let headers = refusal.headers_mut();
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_S));
                Err(refusal)
            }
        }
    }
}

/// A body's room.
#[derive(Debug)]
struct Admitted {
    expected: usize,
    _room: OwnedSemaphorePermit,
}

/// Marks a request whose body was packed, before it is unpacked on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed;

/// Marks requests with a `Content-Encoding`.
pub(super) async fn mark_packed(mut request: Request, next: axum::middleware::Next) -> Response {
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        request.extensions_mut().insert(Packed);
    }
    next.run(request).await
}

/// The whole body, unpacked; its room is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Whole {
    bytes: Bytes,
    _admitted: Admitted,
}

impl Whole {
    /// Its bytes. Whoever moves them elsewhere moves their room too.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl FromRequest<AppState> for Whole {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        if !is_json(request.headers()) {
            let text = "the body must be JSON, with Content-Type: application/json";
            return Err(failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let was_packed = request.extensions().get::<Packed>().is_some();
        let admitted = state.bodies.admit(request.headers(), was_packed).await?;
        let bytes = timeout(WHOLE, read(request.into_body(), admitted.expected)).await;
        let bytes = bytes.unwrap_or(Err(Unread::Silent));
        Ok(Self {
            bytes: bytes.map_err(|problem| problem.answer(state.bodies.limit()))?,
            _admitted: admitted,
        })
    }
}

/// Whether a body says that it is JSON: no page of another site can send such a body unasked.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| {
        let kind = kind.trim().to_ascii_lowercase();
        kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json")
    })
}

/// Why a body was not read to its end.
enum Unread {
    TooLarge,
    Silent,
    Broken(String),
}

impl Unread {
    fn answer(self, limit: usize) -> Response {
        match self {
            Self::TooLarge => too_large(limit),
            Self::Silent => failure(
                StatusCode::REQUEST_TIMEOUT,
                "the body stopped coming, or came too slowly",
            ),
            Self::Broken(reason) => failure(
                StatusCode::BAD_REQUEST,
                &format!("the body cannot be read: {reason}"),
            ),
        }
    }
}

fn too_large(limit: usize) -> Response {
    let text =
        format!("the body is larger than the {limit} bytes that one may have (MAX_BODY_BYTES)");
    failure(StatusCode::PAYLOAD_TOO_LARGE, &text)
}

/// Reads up to `limit` bytes.
async fn read(mut body: Body, limit: usize) -> Result<Bytes, Unread> {
    let mut bytes = vec![];
    loop {
        let frame = timeout(SILENCE, body.frame()).await;
        let frame = match frame.map_err(|_| Unread::Silent)? {
            None => return Ok(bytes.into()),
            Some(frame) => frame.map_err(|error| Unread::Broken(error.to_string()))?,
        };
        // what is no data is a trailer, and of no use
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > limit {
                return Err(Unread::TooLarge);
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// The first `held` bytes of a body. The rest is read and let go, up to `limit` bytes, so that the client can send it.
pub(super) async fn beginning(mut body: Body, held: usize, limit: usize) -> Vec<u8> {
    let (mut start, mut seen) = (vec![], 0);
    while seen <= limit {
        let Ok(Some(Ok(frame))) = timeout(SILENCE, body.frame()).await else {
            break;
        };
        if let Ok(data) = frame.into_data() {
            seen += data.len();
            start.extend_from_slice(&data[..data.len().min(held - start.len())]);
        }
    }
    start
}
