//! The HTTP API that Label Studio calls.
//!
//! | route | response |
//! |---|---|
//! | `GET /`, `GET /health` | liveness; never waits for a model. Browsers are led from `/` to the playground |
//! | `GET /ready` | 200 once the models can serve; until then 503 with the reason |
//! | `POST /setup` | the version of the models and settings |
//! | `POST /predict` | regions for tasks: for an annotator's input, or in a batch for the prompt or the labels |
//! | `POST /webhook` | an immediate acknowledgement |
//! | `GET /versions` | the model version |
//! | `GET /metrics` | metrics for Prometheus |
//! | `GET /api-docs` | the OpenAPI document of these routes, with the schema of every body |
//! | `GET /playground` | a page on which a person tries prompts and thresholds, with an interface of its own |

mod auth;
mod body;
mod encoding;
mod error;
mod health;
mod listen;
mod openapi;
mod operations;
mod origin;
mod playground;
mod predict;
mod request_span;
mod setup;
mod webhook;
mod wire;

use std::path::Path;
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

pub use self::auth::{BasicAuth, InvalidUserName};
pub use self::body::BodyLimits;
pub use self::listen::{ConnectionLimits, serve};
pub use self::origin::{AllowedOrigins, InvalidOrigin};
pub use self::playground::PlaygroundAccess;
use self::request_span::{RandomId, request_span};
use crate::preannotation::Preannotator;

/// State shared by all handlers.
#[derive(Debug, Clone)]
pub struct AppState {
    /// Turns tasks into regions.
    pub preannotator: Arc<Preannotator>,
    /// Required credentials; `None` lets everyone in.
    pub basic_auth: Option<BasicAuth>,
    /// The web origins that may call the API from a browser.
    pub origins: AllowedOrigins,
    /// Limits for request bodies.
    pub bodies: BodyLimits,
    /// Time limit for answering a batch. It must be below 100 s, the time that Label Studio waits.
    pub predict_deadline: Duration,
    /// Whether `/setup` may give a private address for Label Studio. True only if requests are authenticated, or the
    /// server listens on loopback only.
    pub trusts_setup: bool,
    /// Whether the playground is served.
    pub playground: PlaygroundAccess,
    /// `MODEL_DIR`, in which the commands for whole projects write their progress.
    pub model_dir: Arc<Path>,
    /// Becomes true when the server shuts down: batches are then answered with the results that they have so far.
    pub stop: watch::Sender<bool>,
}

/// The router with all routes and middleware.
pub fn router(state: AppState) -> Router {
    let (protected, protected_docs) = OpenApiRouter::with_openapi(openapi::ApiDoc::openapi())
        .routes(routes!(health::root))
        .routes(routes!(health::health))
        .routes(routes!(setup::setup))
        .routes(routes!(predict::predict))
        .routes(routes!(operations::versions))
        .routes(routes!(operations::metrics))
        .routes(routes!(openapi::api_docs))
        .split_for_parts();
    let (public, public_docs) = OpenApiRouter::new()
        // these need no credentials: Label Studio sends none with webhooks, and readiness is not a secret
        .routes(routes!(webhook::webhook))
        .routes(routes!(health::ready))
        .split_for_parts();
    let docs = openapi::ApiDocs::new(protected_docs, public_docs, &state);
    let protected = protected
        .merge(playground::routes(state.clone()))
        .layer(Extension(docs))
        .route_layer(from_fn_with_state(state.clone(), auth::require_credentials));
    protected
        .merge(public)
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(encoding::check_encoding))
        .layer(from_fn_with_state(state.clone(), origin::check_origin))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn_with_state(state.clone(), record_request))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(request_span)
                // errors are logged where they occur, with their cause
                .on_failure(()),
        )
        .layer(SetRequestIdLayer::x_request_id(RandomId))
        // other encodings are rejected by an inner layer (`encoding::check_encoding`), where requests have an id and
        // are counted
        .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
        .layer(from_fn(body::track_compressed))
        .layer(CompressionLayer::new())
        .with_state(state)
}

/// Middleware that records each request's route, status and duration.
async fn record_request(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    // only known routes become labels, so that clients cannot create any number of them
    let path = request.extensions().get::<MatchedPath>();
    let route = path.map_or("other".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let metrics = state.preannotator.metrics();
    metrics.record_request(&route, response.status().as_u16(), start.elapsed());
    response
}
