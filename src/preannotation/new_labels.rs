//! Adds phrases that no label knows to the labels of a project, if the settings ask for it.

use std::sync::Arc;

use super::project::ProjectSnapshot;
use super::search::SearchResult;
use crate::label_studio::api::{Api, ApiError};
use crate::labeling::{ImageTag, LabelingConfig, LabelingError, with_labels};

/// Why labels could not be added.
#[derive(Debug, thiserror::Error)]
pub(super) enum NewLabelsError {
    #[error("the request does not say which project it belongs to")]
    NoProject,
    #[error("the client for Label Studio cannot be created: {0}")]
    Client(#[from] reqwest::Error),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Labeling(#[from] LabelingError),
}

/// Adds the phrases that found something, and that no label of the image knows, to the project in Label Studio. Returns
/// the snapshot with the new labels; `None` if there is nothing to add.
///
/// # Errors
/// If Label Studio cannot be reached, or refuses.
pub(super) async fn add_new_labels(
    snapshot: &ProjectSnapshot,
    image: &ImageTag,
    found: &SearchResult,
) -> Result<Option<(ProjectSnapshot, Vec<String>)>, NewLabelsError> {
    let phrases = found.phrases.iter().map(String::as_str);
    let mut unknown = snapshot.config.unknown_phrases(image, phrases);
    unknown.sort_unstable();
    unknown.dedup();
    if !snapshot.settings.add_labels || unknown.is_empty() {
        return Ok(None);
    }
    // the name of a project is its number and the time of its creation
    let number = snapshot.origin.project.split('.').next();
    let number: Option<u64> = number.and_then(|number| number.parse().ok());
    let number = number.ok_or(NewLabelsError::NoProject)?;
    let api = Api::new(snapshot.label_studio.clone())?;
    // the project's own config, because the request's may be older
    let project = api.project(number).await?;
    let changed = with_labels(&project.label_config, &image.name, &unknown)?;
    if changed != project.label_config {
        api.set_label_config(number, &changed).await?;
    }
    let outputs = snapshot.config.outputs.clone();
    let config = LabelingConfig::parse(&changed)?.with_outputs(outputs);
    let added: Vec<String> = unknown.into_iter().map(str::to_owned).collect();
    tracing::info!(labels = ?added, project = number, "labels were added to the project");
    Ok(Some((snapshot.with_config(Arc::new(config)), added)))
}
