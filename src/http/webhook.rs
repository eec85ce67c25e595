//! `POST /webhook`: what happens in a project.

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;

/// An annotation with hundreds of masks.
const MAX_HELD: usize = 32 << 20;

/// The rest of a webhook may be many MB, and is not looked at.
#[derive(Debug, Default, Deserialize)]
struct Webhook {
    #[serde(default)]
    action: String,
}

/// Heard, and nothing done: the annotator's Submit waits for this answer, at most one second. groundling
/// does not train.
#[utoipa::path(
    post,
    path = "/webhook",
    request_body(content = Value, description = "`{action, project, ...}`"),
    responses(
        (status = 201, description = "A known event", body = Value),
        (status = 200, description = "Any other event", body = Value)
    )
)]
pub(super) async fn webhook(
    State(_): State<AppState>,
    request: Request,
) -> (StatusCode, Json<Value>) {
    // anyone may send one, so little is held; of a longer one the action is not known, and not needed
    let body = to_bytes(request.into_body(), MAX_HELD).await;
    let body = body.unwrap_or_default();
    let Webhook { action } = serde_json::from_slice(&body).unwrap_or_default();
    tracing::debug!(action, "webhook");
    match action.as_str() {
        "START_TRAINING" => {
            tracing::info!("training was asked for: groundling does not train");
            let text = "groundling does not train: its models find what words name as they are";
            (
                StatusCode::CREATED,
                Json(json!({"status": "ok", "result": {}, "message": text})),
            )
        }
        "ANNOTATION_CREATED"
        | "ANNOTATION_UPDATED"
        | "ANNOTATIONS_DELETED"
        | "ANNOTATION_DELETED"
        | "TASKS_CREATED"
        | "TASKS_DELETED"
        | "PROJECT_UPDATED" => (
            StatusCode::CREATED,
            Json(json!({"status": "ok", "result": {}})),
        ),
        _ => (StatusCode::OK, Json(json!({"status": "Unknown event"}))),
    }
}
