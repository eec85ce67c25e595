//! `GET /`, `GET /health` and `GET /ready`: liveness and readiness.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::AppState;
use crate::pipeline::worker::Status;

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
    let (status, reason) = match state.preannotator.worker.status() {
        Status::Ready { .. } => return (StatusCode::OK, Json(json!({ "ready": true }))),
        Status::Loading { step } => (StatusCode::SERVICE_UNAVAILABLE, step),
        Status::Failed(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the models could not be loaded: {reason}"),
        ),
    };
    (status, Json(json!({ "ready": false, "reason": reason })))
}

fn describe(state: &AppState) -> Value {
    let preannotator = &state.preannotator;
    let (models, device) = match preannotator.worker.status() {
        Status::Loading { .. } => (json!("loading"), None),
        Status::Ready { device } => (json!("ready"), Some(device)),
        Status::Failed(reason) => (json!({ "failed": reason }), None),
    };
    json!({
        "status": "UP",
        "model_class": "Groundling",
        "version": env!("CARGO_PKG_VERSION"),
        "model_version": preannotator.version("", None),
        "ready": device.is_some(),
        "models": models,
        "device": device,
        "waiting": preannotator.gate.waiting(),
    })
}
