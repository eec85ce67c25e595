//! Request bodies: memory is reserved before a body is read, the body is read completely, and errors are JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::AppState;
use super::error::{ApiError, failure};
use crate::budget::{Budget, OutOfMemory, Purpose, Reservation};

/// Limits for request bodies. Clones share the memory budget.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// Maximum size of one body in bytes, after decompression.
    limit: usize,
    /// The memory budget of all requests.
    budget: Budget,
}

/// Bytes of a body that are read without waiting for memory. The bodies of interactive requests are not larger. A
/// client that begins a large body and stops holds no more than this, so all 512 connections together hold at most 32
/// MiB in this way.
const SMALL: usize = 64 << 10;
/// How long a larger body waits for memory.
const TURN: Duration = Duration::from_secs(20);
/// How long a client may send nothing in the middle of a body.
const SILENCE: Duration = Duration::from_secs(20);
/// How long receiving a whole body may take.
const WHOLE: Duration = Duration::from_secs(120);

impl BodyLimits {
    /// Limits bodies to `limit` bytes after decompression; their memory is reserved from `budget`.
    pub fn new(limit: usize, budget: Budget) -> Self {
        Self { limit, budget }
    }

    /// Maximum size of a body in bytes, after decompression.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The largest size in bytes that a body with these headers can have.
    fn expected(&self, headers: &HeaderMap, was_packed: bool) -> Result<usize, Unread> {
        let told = headers.get(CONTENT_LENGTH);
        let told: Option<usize> = told.and_then(|length| length.to_str().ok()?.parse().ok());
        match told {
            Some(length) if length > self.limit => Err(Unread::TooLarge),
            // the decompressed size of a compressed body is not known in advance
            Some(length) if !was_packed => Ok(length),
            _ => Ok(self.limit),
        }
    }

    /// Reads a body. Before it reads more than the first `SMALL` bytes, it reserves memory for the `expected` size.
    async fn read(
        &self,
        mut body: Body,
        expected: usize,
        packed: Option<&Packed>,
    ) -> Result<Whole, Unread> {
        let mut memory = self.budget.count(expected.min(SMALL));
        let mut is_admitted = expected <= SMALL;
        let mut bytes = Vec::with_capacity(memory.bytes());
        loop {
            let frame = timeout(SILENCE, body.frame()).await;
            let frame = match frame.map_err(|_| Unread::Silent)? {
                None => break,
                Some(frame) => frame.map_err(|error| Unread::Broken(error.to_string()))?,
            };
            // a frame without data holds trailers, which are not used
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > expected {
                return Err(Unread::TooLarge);
            }
            if packed.is_some_and(|packed| length > packed.may_be()) {
                return Err(Unread::Bomb);
            }
            if length > SMALL && !is_admitted {
                let rest = self
                    .budget
                    .reserve(Purpose::Body, expected - SMALL, TURN)
                    .await;
                memory.merge(rest.map_err(Unread::NoMemory)?);
                is_admitted = true;
                if packed.is_none() {
                    bytes.reserve_exact(expected - bytes.len());
                }
            }
            bytes.extend_from_slice(&data);
        }
        memory.shrink_to(bytes.len());
        Ok(Whole {
            bytes: bytes.into(),
            memory,
        })
    }
}

/// Request extension of compressed bodies: counts the compressed bytes received so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Packed(Arc<AtomicUsize>);

/// Limits against decompression bombs: any body may have this many decompressed bytes, plus this many for each
/// compressed byte. Annotation masks, which compress best of all that Label Studio sends, have a ratio of about 20.
const UNPACKED: (usize, usize) = (1 << 20, 100);

impl Packed {
    /// How many decompressed bytes are allowed for the compressed bytes received so far.
    fn may_be(&self) -> usize {
        let packed = self.0.load(Ordering::Relaxed);
        packed.saturating_mul(UNPACKED.1).saturating_add(UNPACKED.0)
    }
}

/// Middleware that attaches [`Packed`] to requests with a `Content-Encoding` and counts their compressed bytes.
pub(super) async fn mark_packed(request: Request, next: axum::middleware::Next) -> Response {
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_none_or(|encoding| encoding == "identity") {
        return next.run(request).await;
    }
    let packed = Packed::default();
    let count = packed.0.clone();
    let mut request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let length = frame.data_ref().map_or(0, Bytes::len);
            count.fetch_add(length, Ordering::Relaxed);
            frame
        }))
    });
    request.extensions_mut().insert(packed);
    next.run(request).await
}

/// Extractor for a complete JSON body, after decompression.
#[derive(Debug)]
pub(super) struct Whole {
    /// The bytes of the body.
    pub(super) bytes: Bytes,
    /// The reservation for these bytes.
    pub(super) memory: Reservation,
}

impl FromRequest<AppState> for Whole {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        if !is_json(request.headers()) {
            let text = "the body must be JSON, with Content-Type: application/json";
            return Err(failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let packed = request.extensions().get::<Packed>().cloned();
        let bodies = &state.bodies;
        let read = async {
            let expected = bodies.expected(request.headers(), packed.is_some())?;
            let body = request.into_body();
            bodies.read(body, expected, packed.as_ref()).await
        };
        let read = timeout(WHOLE, read).await.unwrap_or(Err(Unread::Silent));
        read.map_err(|problem| problem.answer(bodies.limit))
    }
}

/// A response body with its memory reservation, which is released when the last byte was sent.
pub(super) struct Sent {
    bytes: Vec<u8>,
    _memory: Reservation,
}

impl Sent {
    /// Creates a response body and counts its bytes in `budget`.
    pub(super) fn new(bytes: Vec<u8>, budget: &Budget) -> Self {
        Self {
            _memory: budget.count(bytes.len()),
            bytes,
        }
    }
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Sent> for Body {
    fn from(sent: Sent) -> Self {
        Bytes::from_owner(sent).into()
    }
}

/// Whether the `Content-Type` is JSON. This also protects from cross-site requests: a browser sends such a type to
/// another site only after a preflight request.
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

/// Why a body could not be read to its end.
enum Unread {
    TooLarge,
    /// A decompression bomb: the decompressed body is too large for the bytes that were sent.
    Bomb,
    Silent,
    Broken(String),
    NoMemory(OutOfMemory),
}

impl Unread {
    fn answer(self, limit: usize) -> Response {
        match self {
            Self::TooLarge => {
                let text = format!(
                    "the body is larger than the {limit} bytes that one may have (MAX_BODY_BYTES)"
                );
                failure(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
            Self::NoMemory(error) => ApiError::from(error).into_response(),
            Self::Bomb => {
                let (bytes, times) = UNPACKED;
                let text = format!(
                    "the body unpacks to more than {bytes} bytes and {times} times what was sent: send it without Content-Encoding"
                );
                failure(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
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

/// Returns the first `held` bytes of a body. The rest, up to `limit` bytes, is read and discarded, so that the client
/// can finish sending.
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
