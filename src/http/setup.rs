//! `POST /setup`: Label Studio calls it when a project is connected, and again before every batch.

use axum::Json;
use axum::extract::State;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::body::Whole;
use super::error::{ApiError, off_thread};
use super::openapi::{BodyRefusals, shapes};
use super::request_span::belongs_to;
use super::wire::{Bounded, ProjectName, read_object};
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
    #[schema(schema_with = shapes::extra_params)]
    extra_params: Bounded<10_000>,
}

/// The model version, which Label Studio compares with the version of its stored predictions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SetupAnswer {
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
        (status = 200, description = "The model version of the project", body = SetupAnswer),
        BodyRefusals
    )
)]
pub(super) async fn setup(
    State(state): State<AppState>,
    body: Whole,
) -> Result<Json<SetupAnswer>, ApiError> {
    // a labeling config may be large, so it is parsed outside of the async threads
    let (model_version, writing) = off_thread(move || introduce(&state, &body.bytes)).await??;
    writing.done().await;
    Ok(Json(SetupAnswer { model_version }))
}

/// Registers a project. Returns its model version, and the write of its settings to disk, which may still be running.
fn introduce(state: &AppState, body: &[u8]) -> Result<(String, PendingWrite), ApiError> {
    let request: SetupRequest = read_object(body)?;
    let project = &request.project.0;
    belongs_to(project);
    let config = request.schema.as_deref().map(LabelingConfig::parse);
    if let Some(Err(problem)) = config.as_ref().map(usable) {
        tracing::warn!("predictions will not work here yet: {problem}");
    }
    let preannotator = &state.preannotator;
    let mut writing = PendingWrite::default();
    if !project.is_empty() {
        let mut studio = introduced(&request);
        if !state.trusts_setup {
            studio = studio.as_stranger();
        }
        let projects = preannotator.projects();
        writing = projects.apply_setup(project, &request.extra_params.0, studio);
    }
    let config = config.and_then(Result::ok);
    let version = preannotator.projects().version(project, config.as_ref());
    Ok((version, writing))
}

/// Label Studio as described by the request. It is used only where the settings have no host or no token.
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

/// Checks that a config has an image and a control for regions.
fn usable(config: &Result<LabelingConfig, LabelingError>) -> Result<(), LabelingError> {
    let config = config.as_ref().map_err(Clone::clone)?;
    let image = config.image()?;
    match config.region_controls(image).next() {
        Some(_) => Ok(()),
        None => Err(LabelingError::NoRegionControl(image.name.clone())),
    }
}
