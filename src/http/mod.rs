//! The API that Label Studio calls.
//!
//! | route | what it answers |
//! |---|---|
//! | `GET /`, `GET /health` | that the server is up; never waits for a model |
//! | `GET /ready` | 200 once the models can serve, 503 with the reason before |
//! | `POST /setup` | the version of the models and settings |
//! | `POST /predict` | regions for tasks: interactively for what an annotator did, in a batch for a prompt or the labels |
//! | `POST /webhook` | at once that it was heard |
//! | `GET /versions` | the model version |
//! | `GET /metrics` | counters for Prometheus |
//! | `GET /api-docs` | all of this as OpenAPI, with the schema of every body |

mod auth;
mod body;
mod encoding;
mod error;
mod health;
mod listen;
mod openapi;
mod operations;
mod origin;
mod predict;
mod request_span;
mod setup;
mod webhook;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Router};
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::decompression::RequestDecompressionLayer;
use tower_http::request_id::{PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::auth::BasicAuth;
pub use self::body::BodyLimits;
pub use self::listen::{ConnectionLimits, serve};
pub use self::origin::Origins;
use self::request_span::{RandomId, request_span};
use crate::preannotation::Preannotator;

/// What every handler shares.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The road from a task to its regions.
    pub preannotator: Arc<Preannotator>,
    /// Who may ask; everybody where there is none.
    pub basic_auth: Option<BasicAuth>,
    /// Which pages may call from a browser.
    pub origins: Origins,
    /// Which bodies are read.
    pub bodies: BodyLimits,
    /// For a batch; Label Studio waits 100 s.
    pub predict_deadline: Duration,
    /// Whether the address that `/setup` gives may be a private one: where nobody else can send it.
    pub trusts_setup: bool,
    /// Turns true when the server is to stop: batches are then answered as far as they are.
    pub stop: watch::Sender<bool>,
}

/// All routes.
pub fn router(state: AppState) -> Router {
    let (guarded, guarded_docs) = OpenApiRouter::with_openapi(openapi::ApiDoc::openapi())
        .routes(routes!(health::root))
        .routes(routes!(health::health))
        .routes(routes!(setup::setup))
        .routes(routes!(predict::predict))
        .routes(routes!(operations::versions))
        .routes(routes!(operations::metrics))
        .routes(routes!(openapi::api_docs))
        .split_for_parts();
    let (open, open_docs) = OpenApiRouter::new()
        // Label Studio signs no webhooks, and whether the models are loaded is no secret
        .routes(routes!(webhook::webhook))
        .routes(routes!(health::ready))
        .split_for_parts();
    let docs = openapi::ApiDocs::new(guarded_docs, open_docs, &state);
    let guarded = guarded
        .layer(Extension(docs))
        .route_layer(from_fn_with_state(state.clone(), auth::require));
    guarded
        .merge(open)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(encoding::require))
        .layer(from_fn_with_state(state.clone(), origin::require))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn_with_state(state.clone(), count))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(request_span)
                // failures log themselves, with their cause
                .on_failure(()),
        )
        .layer(SetRequestIdLayer::x_request_id(RandomId))
        // other encodings are refused further in, where requests have an id and are counted
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(from_fn(body::mark_packed))
        .layer(CompressionLayer::new())
        .with_state(state)
}

/// Counts requests by route, status and time.
async fn count(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    // only routes of the server, so that nobody can fill the counters
    let path = request.extensions().get::<MatchedPath>();
    let route = path.map_or("other".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let metrics = state.preannotator.metrics();
    metrics.request(&route, response.status().as_u16(), start.elapsed());
    response
}
