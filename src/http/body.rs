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
use super::error::{RequestError, error_response};
use crate::budget::{Budget, OutOfMemory, Purpose, Reservation};

/// Limits for request bodies. Clones share the memory budget.
#[derive(Debug, Clone)]
pub struct BodyLimits {
    /// Maximum size of one body in bytes, after decompression.
    max_bytes: usize,
    /// The memory budget of all requests.
    budget: Budget,
}

/// Bytes of a body that are read without waiting for memory. The bodies of interactive requests are not larger. A
/// client that begins a large body and stops holds no more than this, so all 512 connections together hold at most 32
/// MiB in this way.
const UNRESERVED_BYTES: usize = 64 << 10;
/// How long a larger body waits for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client may send nothing in the middle of a body.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long receiving a whole body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

impl BodyLimits {
    /// Limits bodies to `max_bytes` after decompression; their memory is reserved from `budget`.
    pub fn new(max_bytes: usize, budget: Budget) -> Self {
        Self { max_bytes, budget }
    }

    /// Maximum size of a body in bytes, after decompression.
    pub(super) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// The largest size in bytes that a body with these headers can have.
    fn size_limit(&self, headers: &HeaderMap, is_compressed: bool) -> Result<usize, BodyError> {
        let content_length = headers.get(CONTENT_LENGTH);
        let content_length: Option<usize> =
            content_length.and_then(|length| length.to_str().ok()?.parse().ok());
        match content_length {
            Some(length) if length > self.max_bytes => Err(BodyError::TooLarge),
            // the decompressed size of a compressed body is not known in advance
            Some(length) if !is_compressed => Ok(length),
            _ => Ok(self.max_bytes),
        }
    }

    /// Reads a body. Before it reads more than the first `UNRESERVED_BYTES` bytes, it reserves memory for `size_limit`
    /// bytes.
    async fn read(
        &self,
        mut body: Body,
        size_limit: usize,
        compressed: Option<&CompressedBytes>,
    ) -> Result<JsonBody, BodyError> {
        let mut memory = self
            .budget
            .reserve_unchecked(size_limit.min(UNRESERVED_BYTES));
        let mut is_reserved = size_limit <= UNRESERVED_BYTES;
        let mut bytes = Vec::with_capacity(memory.bytes());
        loop {
            let frame = timeout(IDLE_TIMEOUT, body.frame()).await;
            let frame = match frame.map_err(|_| BodyError::Timeout)? {
                None => break,
                Some(frame) => frame.map_err(|error| BodyError::Interrupted(error.to_string()))?,
            };
            // a frame without data holds trailers, which are not used
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len() + data.len();
            if length > size_limit {
                return Err(BodyError::TooLarge);
            }
            if compressed.is_some_and(|bytes| length > bytes.max_decompressed()) {
                return Err(BodyError::DecompressionBomb);
            }
            if length > UNRESERVED_BYTES && !is_reserved {
                let rest = self
                    .budget
                    .reserve(Purpose::Body, size_limit - UNRESERVED_BYTES, MEMORY_TIMEOUT)
                    .await;
                memory.merge(rest.map_err(BodyError::OutOfMemory)?);
                is_reserved = true;
                if compressed.is_none() {
                    bytes.reserve_exact(size_limit - bytes.len());
                }
            }
            bytes.extend_from_slice(&data);
        }
        memory.shrink_to(bytes.len());
        Ok(JsonBody {
            bytes: bytes.into(),
            memory,
        })
    }
}

/// Request extension of compressed bodies: counts the compressed bytes received so far.
#[derive(Debug, Clone, Default)]
pub(super) struct CompressedBytes(Arc<AtomicUsize>);

/// Limit against decompression bombs: any body may have this many decompressed bytes, plus
/// [`MAX_COMPRESSION_RATIO`] for each compressed byte.
const MAX_DECOMPRESSED_BASE: usize = 1 << 20;
/// See [`MAX_DECOMPRESSED_BASE`]. Annotation masks, which compress best of all that Label Studio sends, have a ratio of
/// about 20.
const MAX_COMPRESSION_RATIO: usize = 100;

impl CompressedBytes {
    /// How many decompressed bytes are allowed for the compressed bytes received so far.
    fn max_decompressed(&self) -> usize {
        let compressed = self.0.load(Ordering::Relaxed);
        compressed
            .saturating_mul(MAX_COMPRESSION_RATIO)
            .saturating_add(MAX_DECOMPRESSED_BASE)
    }
}

/// Middleware that attaches [`CompressedBytes`] to requests with a `Content-Encoding`, and counts their compressed
/// bytes.
pub(super) async fn track_compressed(request: Request, next: axum::middleware::Next) -> Response {
    let encoding = request.headers().get(CONTENT_ENCODING);
    if encoding.is_none_or(|encoding| encoding == "identity") {
        return next.run(request).await;
    }
    let compressed = CompressedBytes::default();
    let count = compressed.0.clone();
    let mut request = request.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let length = frame.data_ref().map_or(0, Bytes::len);
            count.fetch_add(length, Ordering::Relaxed);
            frame
        }))
    });
    request.extensions_mut().insert(compressed);
    next.run(request).await
}

/// Extractor for a complete JSON body, after decompression.
#[derive(Debug)]
pub(super) struct JsonBody {
    /// The bytes of the body.
    pub(super) bytes: Bytes,
    /// The reservation for these bytes.
    pub(super) memory: Reservation,
}

impl FromRequest<AppState> for JsonBody {
    type Rejection = Response;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Response> {
        if !is_json(request.headers()) {
            let text = "the body must be JSON, with Content-Type: application/json";
            return Err(error_response(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let compressed = request.extensions().get::<CompressedBytes>().cloned();
        let bodies = &state.bodies;
        let read = async {
            let size_limit = bodies.size_limit(request.headers(), compressed.is_some())?;
            let body = request.into_body();
            bodies.read(body, size_limit, compressed.as_ref()).await
        };
        let read = timeout(BODY_TIMEOUT, read)
            .await
            .unwrap_or(Err(BodyError::Timeout));
        read.map_err(|error| error.into_response(bodies.max_bytes))
    }
}

/// A response body with its memory reservation, which is released when the last byte was sent.
pub(super) struct TrackedBody {
    bytes: Vec<u8>,
    _memory: Reservation,
}

impl TrackedBody {
    /// Creates a response body and counts its bytes in `budget`.
    pub(super) fn new(bytes: Vec<u8>, budget: &Budget) -> Self {
        Self {
            _memory: budget.reserve_unchecked(bytes.len()),
            bytes,
        }
    }
}

impl AsRef<[u8]> for TrackedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<TrackedBody> for Body {
    fn from(body: TrackedBody) -> Self {
        Bytes::from_owner(body).into()
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

/// Why a body could not be read completely.
enum BodyError {
    TooLarge,
    /// The decompressed body is too large for the compressed bytes that were received.
    DecompressionBomb,
    /// The client sent nothing for [`IDLE_TIMEOUT`], or the body took longer than [`BODY_TIMEOUT`].
    Timeout,
    /// The connection failed, or the body cannot be decompressed.
    Interrupted(String),
    OutOfMemory(OutOfMemory),
}

impl BodyError {
    fn into_response(self, max_bytes: usize) -> Response {
        match self {
            Self::TooLarge => {
                let text = format!("the body is larger than {max_bytes} bytes (MAX_BODY_BYTES)");
                error_response(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
            Self::OutOfMemory(error) => RequestError::from(error).into_response(),
            Self::DecompressionBomb => {
                let text = format!(
                    "the decompressed body is larger than {MAX_DECOMPRESSED_BASE} bytes plus {MAX_COMPRESSION_RATIO} times its compressed size: send it without Content-Encoding"
                );
                error_response(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
            Self::Timeout => {
                let (idle, total) = (IDLE_TIMEOUT.as_secs(), BODY_TIMEOUT.as_secs());
                let text = format!(
                    "the body was not received in time: the client sent nothing for {idle} s, or took more than {total} s"
                );
                error_response(StatusCode::REQUEST_TIMEOUT, &text)
            }
            Self::Interrupted(reason) => error_response(
                StatusCode::BAD_REQUEST,
                &format!("cannot read the body: {reason}"),
            ),
        }
    }
}

/// Returns the first `length` bytes of a body. The rest, up to `max_bytes` in all, is read and discarded, so that the
/// client can finish sending.
pub(super) async fn read_prefix(mut body: Body, length: usize, max_bytes: usize) -> Vec<u8> {
    let (mut prefix, mut received) = (vec![], 0);
    while received <= max_bytes {
        let Ok(Some(Ok(frame))) = timeout(IDLE_TIMEOUT, body.frame()).await else {
            break;
        };
        if let Ok(data) = frame.into_data() {
            received += data.len();
            prefix.extend_from_slice(&data[..data.len().min(length - prefix.len())]);
        }
    }
    prefix
}
