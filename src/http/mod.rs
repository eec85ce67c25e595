//! The API that Label Studio calls.
//!
//! | route | what it answers |
//! |---|---|
//! | `GET /`, `GET /health` | that the server is up; never waits for a model |
//! | `POST /setup` | the version of the models and settings |
//! | `POST /predict` | regions for tasks: interactively for a typed prompt, in a batch for labels |

mod error;
mod health;
mod predict;
mod setup;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;

use crate::config::ServeArgs;
use crate::detector::DetectionOptions;
use crate::media::Fetcher;
use crate::pipeline::worker::Worker;

/// What every handler shares.
#[derive(Debug, Clone)]
pub struct AppState {
    /// The models.
    pub worker: Worker,
    /// The way to images.
    pub fetcher: Fetcher,
    /// What counts as found.
    pub options: DetectionOptions,
    /// The tag of every prediction.
    pub model_version: Arc<str>,
}

/// Tasks come with all their annotations, masks included: many MB are normal.
const MAX_BODY_BYTES: usize = 256 << 20;

/// All routes.
pub fn router(state: AppState) -> Router {
    Router::new()
        .route("/", get(health::health))
        .route("/health", get(health::health))
        .route("/setup", post(setup::setup))
        .route("/predict", post(predict::predict))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(TraceLayer::new_for_http())
        .with_state(state)
}

/// Names the models and every setting that changes what they answer: while it stays the same, Label
/// Studio does not ask again for tasks that have a prediction.
pub fn model_version(args: &ServeArgs) -> String {
    let name = |model: &str| {
        let path = std::path::Path::new(model);
        path.file_name()
            .map_or(model.to_owned(), |name| name.to_string_lossy().into_owned())
    };
    let options = args.detection.options();
    let limit = options
        .max_detections
        .map(|n| format!(" max={n}"))
        .unwrap_or_default();
    format!(
        "groundling {} {}+{} box={} text={} nms={}{limit}",
        env!("CARGO_PKG_VERSION"),
        name(&args.models.detector),
        name(&args.models.segmenter),
        options.box_threshold,
        options.text_threshold,
        options.nms_iou,
    )
}
