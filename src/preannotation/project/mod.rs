//! The state of a project: its settings, prompt, Label Studio and model version.

#[cfg(feature = "sqlite")]
mod file;
pub mod settings;
pub mod store;
pub mod version;
#[cfg(feature = "sqlite")]
mod writer;

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::Value;

use self::settings::{ControlThresholds, ImageSettings, ProjectSettings};
use self::store::{PendingWrite, ProjectState, ProjectStore};
use crate::detector::DetectionOptions;
use crate::label_studio::LabelStudio;
use crate::labeling::{ImageTag, LabelingConfig};

/// Where a task comes from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Label Studio's name of the project, for example `79.1795353181`; empty if the request has none.
    pub project: String,
    /// User and password for protected image URLs.
    pub login: Option<(String, SecretString)>,
}

/// Configured defaults for all projects.
#[derive(Debug)]
pub struct Defaults {
    /// Label Studio's address and token; missing values come from `/setup`.
    pub label_studio: LabelStudio,
    /// Detection thresholds.
    pub options: DetectionOptions,
    /// Maximum distance of a polygon from its mask's boundary, in percent of the image's longer side.
    pub polygon_tolerance: f32,
    /// groundling's version and the models' names: the start of every model version.
    pub models: String,
    /// Whether a typed prompt is used for the project's next tasks.
    pub remembers_prompts: bool,
}

/// The defaults and the remembered state of all projects.
#[derive(Debug)]
pub struct Projects {
    defaults: Defaults,
    store: ProjectStore,
}

/// A snapshot of a project for one request: later changes by other requests do not affect it.
#[derive(Debug, Clone)]
pub(super) struct ProjectSnapshot {
    pub origin: Origin,
    pub config: Arc<LabelingConfig>,
    /// The given prompt, else the project's.
    pub prompt: Option<String>,
    pub label_studio: LabelStudio,
    /// The model version of the request's predictions.
    pub version: String,
    pub polygon_tolerance: f32,
    settings: ProjectSettings,
    options: DetectionOptions,
}

impl ProjectSnapshot {
    /// The settings for one of its images.
    pub(super) fn settings(
        &self,
        thresholds: ControlThresholds,
        image: &ImageTag,
    ) -> ImageSettings {
        ImageSettings::resolve(
            &self.options,
            &self.settings,
            thresholds,
            &self.config,
            image,
        )
    }
}

impl Projects {
    /// Combines the defaults with the remembered state.
    pub fn new(defaults: Defaults, store: ProjectStore) -> Self {
        Self { defaults, store }
    }

    /// The current model version of a project's predictions.
    pub fn version(&self, project: &str, config: Option<&LabelingConfig>) -> String {
        let known = self.store.project(project);
        self.version_of(&known.settings, known.prompt(), config)
    }

    /// Applies the `/setup` request of a project.
    pub fn apply_setup(
        &self,
        project: &str,
        extra_params: &Value,
        label_studio: LabelStudio,
    ) -> PendingWrite {
        self.store.apply_setup(project, extra_params, label_studio)
    }

    fn version_of(
        &self,
        settings: &ProjectSettings,
        prompt: Option<&str>,
        config: Option<&LabelingConfig>,
    ) -> String {
        let Defaults {
            options,
            polygon_tolerance,
            models,
            ..
        } = &self.defaults;
        version::of_project(
            models,
            options,
            *polygon_tolerance,
            settings,
            prompt,
            config,
        )
    }

    /// A snapshot of a project; `prompt`, if given, replaces the project's own.
    pub(super) fn snapshot(
        &self,
        origin: Origin,
        config: Arc<LabelingConfig>,
        prompt: Option<&str>,
    ) -> ProjectSnapshot {
        let known = self.store.project(&origin.project);
        let prompt = prompt.map(str::trim).or(known.prompt()).map(str::to_owned);
        let ProjectState {
            settings,
            label_studio,
            ..
        } = known;
        ProjectSnapshot {
            version: self.version_of(&settings, prompt.as_deref(), Some(&config)),
            label_studio: self.defaults.label_studio.with_fallback(&label_studio),
            polygon_tolerance: self.defaults.polygon_tolerance,
            options: self.defaults.options,
            origin,
            config,
            prompt,
            settings,
        }
    }

    /// Remembers a typed prompt for the project's next tasks.
    pub(super) fn remember_prompt(&self, project: &str, prompt: &str) -> PendingWrite {
        if self.defaults.remembers_prompts && !project.is_empty() {
            self.store.remember_prompt(project, prompt)
        } else {
            PendingWrite::default()
        }
    }
}
