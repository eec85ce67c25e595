//! The tracing span of a request, which adds its fields to every log line of the request.
//!
//! The span has the id and the route of the request and, once it is known, the project. Each task has its own span
//! inside it ([`crate::preannotation::Task::span`]).

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderValue;
use rand::Rng;
use tower_http::request_id::{MakeRequestId, RequestId};
use tracing::Span;
use tracing::field::Empty;

/// Generates an id for requests without an `X-Request-Id`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let id = format!("{:016x}", rand::rng().random::<u64>());
        HeaderValue::from_str(&id).ok().map(RequestId::new)
    }
}

/// Maximum number of characters of a request id in the log. The id comes from the client, so it cannot be trusted.
const MAX_ID_CHARS: usize = 64;

/// Creates the span of a request.
pub(super) fn request_span(request: &Request) -> Span {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>();
    let id = id.and_then(|id| id.header_value().to_str().ok());
    let id: String = id.unwrap_or_default().chars().take(MAX_ID_CHARS).collect();
    let route = extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let route = route.unwrap_or("other");
    // at level error, so that the span exists at every LOG_LEVEL
    tracing::error_span!("request", id, route, project = Empty)
}

/// Records the project in the span of the current request.
pub(super) fn record_project(project: &str) {
    Span::current().record("project", project);
}
