//! `GET /`, `GET /health` and `GET /ready`: liveness and readiness.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::AppState;
use crate::pipeline::loading::Status;

/// Whether the server is up, for Label Studio, which waits one second for any JSON.
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "It is up, whatever the state of the models", body = Value))
)]
pub(super) async fn health(State(state): State<AppState>) -> Json<Value> {
    Json(describe(&state))
}

/// The same as `/health`.
#[utoipa::path(
    get,
    path = "/",
    responses((status = 200, description = "As /health", body = Value))
)]
pub(super) async fn root(state: State<AppState>) -> Json<Value> {
    health(state).await
}

/// Whether predictions can be made, for orchestrators; needs no credentials.
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, description = "The models are loaded", body = Value),
        (status = 503, description = "They are not; the reason", body = Value)
    )
)]
pub(super) async fn ready(State(state): State<AppState>) -> (StatusCode, Json<Value>) {
    let reason = match state.preannotator.loading().status() {
        Status::Ready(_) => return (StatusCode::OK, Json(json!({ "ready": true }))),
        Status::Loading { step } | Status::Fetching { step } => step,
        Status::Failed { reason, again } => {
            let seconds = again.saturating_duration_since(Instant::now()).as_secs();
            format!("the models could not be loaded: {reason}; they are tried again in {seconds} s")
        }
    };
    let answer = Json(json!({ "ready": false, "reason": reason }));
    (StatusCode::SERVICE_UNAVAILABLE, answer)
}

fn describe(state: &AppState) -> Value {
    let preannotator = &state.preannotator;
    let (models, device) = match preannotator.loading().status() {
        Status::Loading { .. } | Status::Fetching { .. } => (json!("loading"), None),
        Status::Ready(models) => (json!("ready"), Some(models.device())),
        Status::Failed { reason, .. } => (json!({ "failed": reason }), None),
    };
    json!({
        "status": "UP",
        "model_class": "Groundling",
        "version": env!("CARGO_PKG_VERSION"),
        "model_version": preannotator.projects().version("", None),
        "ready": device.is_some(),
        "models": models,
        "device": device,
        "waiting": preannotator.waiting(),
    })
}
