//! `GET /`, `GET /health` and `GET /ready`: liveness and readiness.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::header::{LOCATION, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::playground::wants_page;
use crate::pipeline::handle::{LoadStatus, ModelsUnavailable};

/// The state of the server.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `UP`.
    status: &'static str,
    model_class: &'static str,
    /// The version of groundling.
    version: &'static str,
    /// The model version of projects without their own settings.
    model_version: String,
    /// Whether the models are loaded.
    ready: bool,
    models: Models,
    /// The device that the models run on; null until they are loaded.
    #[schema(required)]
    device: Option<String>,
    /// Number of interactive requests that are waiting or running.
    waiting: usize,
}

/// The state of the models.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Models {
    Loading,
    Ready,
    /// Loading failed, or the device has failed, with the reason.
    Failed(String),
}

/// Readiness.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    ready: bool,
    /// Why predictions cannot be made yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// Liveness: answers as soon as the server runs.
///
/// Label Studio calls it, accepts any JSON, and waits one second.
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "The server runs, whatever the state of the models", body = Health))
)]
pub(super) async fn health(State(state): State<AppState>) -> Json<Health> {
    Json(describe(&state))
}

/// The same as `/health`; browsers are led to the playground, if it is served.
#[utoipa::path(
    get,
    path = "/",
    responses(
        (status = 200, description = "The same as /health", body = Health),
        (status = 303, description = "To clients that accept text/html: the address of the playground")
    )
)]
pub(super) async fn root(State(state): State<AppState>, headers: HeaderMap) -> Response {
    match wants_page(&state, &headers) {
        // relative, because a proxy may serve groundling below a path
        true => (
            StatusCode::SEE_OTHER,
            [(VARY, "accept"), (LOCATION, "playground")],
        )
            .into_response(),
        false => ([(VARY, "accept")], Json(describe(&state))).into_response(),
    }
}

/// Readiness, for orchestrators: whether predictions can be made. Needs no credentials.
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, description = "The models are loaded", body = Readiness),
        (status = 503, description = "The models are not loaded; `reason` says why", body = Readiness)
    )
)]
pub(super) async fn ready(State(state): State<AppState>) -> (StatusCode, Json<Readiness>) {
    let reason = match state.preannotator.models_handle().status() {
        LoadStatus::Ready(_) => {
            let (ready, reason) = (true, None);
            return (StatusCode::OK, Json(Readiness { ready, reason }));
        }
        LoadStatus::Loading { step } | LoadStatus::Downloading { step } => step,
        LoadStatus::Failed { reason, retry_at } => {
            let seconds = retry_at.saturating_duration_since(Instant::now()).as_secs();
            format!("the models could not be loaded: {reason}; the next attempt is in {seconds} s")
        }
        LoadStatus::DeviceLost { reason } => ModelsUnavailable::DeviceLost(reason).to_string(),
    };
    let readiness = Json(Readiness {
        ready: false,
        reason: Some(reason),
    });
    (StatusCode::SERVICE_UNAVAILABLE, readiness)
}

fn describe(state: &AppState) -> Health {
    let preannotator = &state.preannotator;
    let (models, device) = match preannotator.models_handle().status() {
        LoadStatus::Loading { .. } | LoadStatus::Downloading { .. } => (Models::Loading, None),
        LoadStatus::Ready(models) => (Models::Ready, Some(models.device())),
        LoadStatus::Failed { reason, .. } | LoadStatus::DeviceLost { reason } => {
            (Models::Failed(reason), None)
        }
    };
    Health {
        status: "UP",
        model_class: "Groundling",
        version: env!("CARGO_PKG_VERSION"),
        model_version: preannotator.projects().version("", None),
        ready: device.is_some(),
        models,
        device,
        waiting: preannotator.waiting(),
    }
}
