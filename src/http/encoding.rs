//! Checks the `Content-Encoding` of requests: gzip or none.

use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::error_response;

/// Middleware that answers 415 to any other encoding, with an error that names it. The decompression layer alone would
/// answer with an empty body.
pub(super) async fn check_encoding(request: Request, next: Next) -> Response {
    match request.headers().get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "gzip" && encoding != "identity" => {
            let text = format!(
                "Content-Encoding {} is not supported: a body must be gzip-encoded or not encoded",
                String::from_utf8_lossy(encoding.as_bytes())
            );
            let accepted = [(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))];
            (
                accepted,
                error_response(StatusCode::UNSUPPORTED_MEDIA_TYPE, &text),
            )
                .into_response()
        }
        _ => next.run(request).await,
    }
}
