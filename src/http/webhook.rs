//! `POST /webhook`: events of a project.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::body::read_prefix;

/// Bytes of the body that are kept. Label Studio writes the action first; the rest may be many MB and is ignored.
const PREFIX_BYTES: usize = 4 << 10;

/// The acknowledgement of an event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WebhookResponse {
    /// `ok` or `Unknown event`.
    status: &'static str,
    /// Always an empty object, because events cause no action.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    result: Option<NoResult>,
    /// Explains why the event had no effect, if the user may expect one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    message: Option<&'static str>,
}

/// An empty JSON object.
#[derive(Debug, Serialize)]
struct NoResult {}

impl WebhookResponse {
    fn acknowledged(message: Option<&'static str>) -> Json<Self> {
        Json(Self {
            status: "ok",
            result: Some(NoResult {}),
            message,
        })
    }
}

/// Acknowledges an event without an action.
///
/// Label Studio's Submit button waits up to one second for this response. groundling does not train.
#[utoipa::path(
    post,
    path = "/webhook",
    request_body(content = Option<serde_json::Value>, description = "Label Studio's event, `{\"action\": ..., ...}` with the action first; any other body is an unknown event"),
    responses(
        (status = 201, description = "A known event", body = WebhookResponse),
        (status = 200, description = "Any other event", body = WebhookResponse)
    )
)]
pub(super) async fn webhook(
    State(state): State<AppState>,
    request: Request,
) -> (StatusCode, Json<WebhookResponse>) {
    // this route needs no credentials, so only the first bytes are kept
    let prefix = read_prefix(request.into_body(), PREFIX_BYTES, state.bodies.max_bytes()).await;
    let action = action(&prefix).unwrap_or_default();
    tracing::debug!(action, "webhook");
    match action {
        "START_TRAINING" => {
            tracing::info!("START_TRAINING is ignored: groundling does not train models");
            let text = "groundling does not train models: its models find what the prompt names without training";
            (
                StatusCode::CREATED,
                WebhookResponse::acknowledged(Some(text)),
            )
        }
        "ANNOTATION_CREATED"
        | "ANNOTATION_UPDATED"
        | "ANNOTATIONS_DELETED"
        | "ANNOTATION_DELETED"
        | "TASKS_CREATED"
        | "TASKS_DELETED"
        | "PROJECT_UPDATED" => (StatusCode::CREATED, WebhookResponse::acknowledged(None)),
        _ => {
            let unknown = WebhookResponse {
                status: "Unknown event",
                result: None,
                message: None,
            };
            (StatusCode::OK, Json(unknown))
        }
    }
}

/// Extracts the action from the first bytes of an event: the string under the first key, if that key is `action`.
fn action(prefix: &[u8]) -> Option<&str> {
    let prefix = prefix.trim_ascii_start().strip_prefix(b"{")?;
    let prefix = prefix.trim_ascii_start().strip_prefix(b"\"action\"")?;
    let prefix = prefix.trim_ascii_start().strip_prefix(b":")?;
    let prefix = prefix.trim_ascii_start().strip_prefix(b"\"")?;
    let end = prefix
        .iter()
        .position(|byte| !(byte.is_ascii_uppercase() || *byte == b'_'))?;
    let (name, rest) = prefix.split_at(end);
    // a name with other characters is not an action of Label Studio
    rest.starts_with(b"\"")
        .then(|| str::from_utf8(name).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_is_the_first_key_of_the_body() {
        for (body, expected) in [
            (
                &br#"{"action": "TASKS_CREATED", "project": {"id": 1"#[..],
                Some("TASKS_CREATED"),
            ),
            (
                b" {\n \"action\" :\"START_TRAINING\"}",
                Some("START_TRAINING"),
            ),
            (br#"{"project": {"action": "TASKS_CREATED"}}"#, None),
            (br#"{"action": "tasks created"}"#, None),
            (br#"{"action": "TASKS"#, None),
            (br#"{"action": 5}"#, None),
            (b"", None),
            (b"\xff\xfe", None),
        ] {
            assert_eq!(action(body), expected, "{}", String::from_utf8_lossy(body));
        }
    }
}
