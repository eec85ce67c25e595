//! `POST /setup`: Label Studio connects a project, and asks again before every batch.

use axum::Json;
use axum::extract::State;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AppState;
use super::body::Whole;
use super::error::{ApiError, off_thread};
use super::request_span::belongs_to;
use crate::label_studio::{Credentials, LabelStudio, TokenSource};
use crate::labeling::{LabelingConfig, LabelingError};
use crate::preannotation::project::memory::Writing;

/// As far as it is used; the rest is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SetupRequest {
    project: Value,
    schema: Option<String>,
    hostname: Option<String>,
    access_token: Option<String>,
    extra_params: Value,
}

/// The model version, at once and whatever the labeling config looks like: a project is often connected
/// before its config is written. What is wrong with it goes to the log.
#[utoipa::path(
    post,
    path = "/setup",
    request_body(content = Value, description = "`{project, schema, hostname, access_token, extra_params}`"),
    responses((status = 200, description = "`{model_version}`, which names the models and all that changes results", body = Value))
)]
pub(super) async fn setup(
    State(state): State<AppState>,
    body: Whole,
) -> Result<Json<Value>, ApiError> {
    // a labeling config may be large: reading it is not for the async threads
    let (version, writing) = off_thread(move || introduce(&state, &body.bytes)).await?;
    writing.done().await;
    Ok(Json(json!({ "model_version": version })))
}

/// Takes a project in; the model version for it, and what is being written of it.
fn introduce(state: &AppState, body: &[u8]) -> (String, Writing) {
    let request: SetupRequest = serde_json::from_slice(body).unwrap_or_else(|error| {
        tracing::warn!(%error, "this /setup is not Label Studio's");
        SetupRequest::default()
    });
    let project = project_name(&request.project);
    belongs_to(&project);
    let config = request.schema.as_deref().map(LabelingConfig::parse);
    if let Some(Err(problem)) = config.as_ref().map(usable) {
        tracing::warn!("predictions will not work here yet: {problem}");
    }
    let preannotator = &state.preannotator;
    let mut writing = Writing::default();
    if !project.is_empty() {
        let mut studio = introduced(&request);
        if !state.trusts_setup {
            studio = studio.as_stranger();
        }
        let projects = preannotator.projects();
        writing = projects.take_setup(&project, &request.extra_params, studio);
    }
    let config = config.and_then(Result::ok);
    let version = preannotator.projects().version(&project, config.as_ref());
    (version, writing)
}

/// Bytes of a project's name; Label Studio's have some twenty.
const MAX_NAME: usize = 200;

/// Label Studio's name of a project: a text, or from other clients a number. A longer one than anybody has is none.
pub(super) fn project_name(project: &Value) -> String {
    match project {
        Value::String(name) if name.len() > MAX_NAME => {
            tracing::warn!(
                bytes = name.len(),
                "the project's name is left out: it may have {MAX_NAME} bytes"
            );
            String::new()
        }
        Value::String(name) => name.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// Label Studio by its own word: the last resort where neither host nor token are configured.
fn introduced(request: &SetupRequest) -> LabelStudio {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    let token = text(&request.access_token).map(|token| SecretString::from(token.as_str()));
    let credentials = token.map(|token| Credentials::new(token, TokenSource::Setup));
    let host = text(&request.hostname);
    LabelStudio::new(host.as_deref(), credentials).unwrap_or_else(|error| {
        tracing::debug!(%error, "the hostname of /setup is of no use");
        LabelStudio::default()
    })
}

/// Whether a config has what prompts and results need.
fn usable(config: &Result<LabelingConfig, LabelingError>) -> Result<(), LabelingError> {
    let config = config.as_ref().map_err(Clone::clone)?;
    let image = config.image()?;
    match config.region_controls(image).next() {
        Some(_) => Ok(()),
        None => Err(LabelingError::NoRegionControl(image.name.clone())),
    }
}
