//! `POST /setup`: Label Studio calls it when a project is connected, and again before every batch.

use axum::Json;
use axum::extract::State;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::body::JsonBody;
use super::error::{RequestError, run_blocking};
use super::openapi::{BodyErrorResponses, schemas};
use super::request_span::record_project;
use super::wire::{BoundedJson, ProjectName, parse_object};
use crate::label_studio::{Credentials, LabelStudio, TokenSource};
use crate::labeling::{LabelingConfig, LabelingError};
use crate::preannotation::project::store::PendingWrite;

/// A setup request. Fields that are not listed here are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct SetupRequest {
    #[serde(default)]
    project: ProjectName,
    /// The labeling config.
    #[schema(example = "<View><Image name=\"image\" value=\"$image\"/></View>")]
    schema: Option<String>,
    /// Label Studio's address, as configured there.
    #[schema(example = "http://localhost:8080")]
    hostname: Option<String>,
    /// A legacy API token of Label Studio.
    access_token: Option<String>,
    #[serde(default)]
    #[schema(schema_with = schemas::extra_params)]
    extra_params: BoundedJson<10_000>,
}

/// The model version, which Label Studio compares with the version of its stored predictions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SetupResponse {
    /// Identifies the models and all settings that change results.
    #[schema(min_length = 1)]
    model_version: String,
}

/// Registers a project and returns its model version.
///
/// It succeeds for any labeling config, because a project is often connected before its config is written. Problems of
/// the config are logged.
#[utoipa::path(
    post,
    path = "/setup",
    request_body = SetupRequest,
    responses(
        (status = 200, description = "The model version of the project", body = SetupResponse),
        BodyErrorResponses
    )
)]
pub(super) async fn setup(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<SetupResponse>, RequestError> {
    // a labeling config may be large, so it is parsed outside of the async threads
    let (model_version, writing) =
        run_blocking(move || register_project(&state, &body.bytes)).await??;
    writing.done().await;
    Ok(Json(SetupResponse { model_version }))
}

/// Registers a project. Returns its model version, and the write of its settings to disk, which may still be running.
fn register_project(state: &AppState, body: &[u8]) -> Result<(String, PendingWrite), RequestError> {
    let request: SetupRequest = parse_object(body)?;
    let project = &request.project.0;
    record_project(project);
    let config = request.schema.as_deref().map(LabelingConfig::parse);
    if let Some(Err(problem)) = config.as_ref().map(check_config) {
        tracing::warn!("the labeling config cannot be used for predictions: {problem}");
    }
    let preannotator = &state.preannotator;
    let mut writing = PendingWrite::default();
    if !project.is_empty() {
        let mut studio = label_studio_from_request(&request);
        if !state.trusts_setup {
            studio = studio.untrusted();
        }
        let projects = preannotator.projects();
        writing = projects.apply_setup(project, &request.extra_params.0, studio);
    }
    let config = config.and_then(Result::ok);
    let version = preannotator.projects().version(project, config.as_ref());
    Ok((version, writing))
}

/// Label Studio as described by the request. It is used only where the settings have no host or no token.
fn label_studio_from_request(request: &SetupRequest) -> LabelStudio {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    let token = text(&request.access_token).map(|token| SecretString::from(token.as_str()));
    let credentials = token.map(|token| Credentials::new(token, TokenSource::Setup));
    let host = text(&request.hostname);
    LabelStudio::new(host.as_deref(), credentials).unwrap_or_else(|error| {
        tracing::debug!(%error, "the hostname of /setup is ignored");
        LabelStudio::default()
    })
}

/// Checks that a config has an image and a control for regions.
fn check_config(config: &Result<LabelingConfig, LabelingError>) -> Result<(), LabelingError> {
    let config = config.as_ref().map_err(Clone::clone)?;
    config.require_region_control(config.image()?)
}
