//! `GET /health` and `GET /`.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::AppState;
use crate::pipeline::worker::Status;

/// Label Studio waits one second for any JSON; how the models are is told beside it.
pub(super) async fn health(State(state): State<AppState>) -> Json<Value> {
    let models = match state.worker.status() {
        Status::Loading => json!("loading"),
        Status::Ready => json!("ready"),
        Status::Failed(reason) => json!({ "failed": reason }),
    };
    Json(json!({
        "status": "UP",
        "model_class": "Groundling",
        "version": env!("CARGO_PKG_VERSION"),
        "model_version": &*state.model_version,
        "models": models,
    }))
}
