//! What every line of the log says of the request that it belongs to.
//!
//! A request has a span with its id, its route and, once that is known, its project. Each task in it has another one
//! ([`crate::preannotation::Task::span`]).

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderValue;
use rand::Rng;
use tower_http::request_id::{MakeRequestId, RequestId};
use tracing::Span;
use tracing::field::Empty;

/// Names requests that come without an `X-Request-Id`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RandomId;

impl MakeRequestId for RandomId {
    fn make_request_id<B>(&mut self, _: &axum::http::Request<B>) -> Option<RequestId> {
        let id = format!("{:016x}", rand::rng().random::<u64>());
        HeaderValue::from_str(&id).ok().map(RequestId::new)
    }
}

/// Characters of a request's id that are logged: a proxy may have chosen it, or anybody else.
const MAX_ID: usize = 64;

/// The span of a request.
pub(super) fn request_span(request: &Request) -> Span {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>();
    let id = id.and_then(|id| id.header_value().to_str().ok());
    let id: String = id.unwrap_or_default().chars().take(MAX_ID).collect();
    let route = extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    let route = route.unwrap_or("other");
    // of the highest level, so that it is there whatever LOG_LEVEL is
    tracing::error_span!("request", id, route, project = Empty)
}

/// Notes the project of the request that is being answered.
pub(super) fn belongs_to(project: &str) {
    Span::current().record("project", project);
}
