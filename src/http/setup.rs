//! `POST /setup`: Label Studio connects a project, and asks again before every batch.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use crate::labeling::LabelingConfig;

/// As far as it is used; the rest is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SetupRequest {
    project: Value,
    schema: Option<String>,
}

/// Answers with the model version whatever the labeling config looks like: a project is often
/// connected before its config is written. What is wrong with it goes to the log.
pub(super) async fn setup(State(state): State<AppState>, body: String) -> Json<Value> {
    let request: SetupRequest = serde_json::from_str(&body).unwrap_or_default();
    let problem = match request.schema.as_deref().map(LabelingConfig::parse) {
        None => None,
        Some(Err(error)) => Some(error),
        Some(Ok(config)) => config
            .image()
            .and_then(|image| config.text_area(image).map(|_| ()))
            .err(),
    };
    if let Some(problem) = problem {
        tracing::warn!(project = %request.project, "prompts will not work here yet: {problem}");
    }
    Json(json!({ "model_version": &*state.model_version }))
}
