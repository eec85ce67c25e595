//! The state of a project: its settings, prompt, Label Studio and model version.

mod file;
pub mod memory;
pub mod settings;
pub mod version;

use std::sync::Arc;

use secrecy::SecretString;
use serde_json::Value;

use self::memory::{ProjectMemory, Remembered, Writing};
use self::settings::{Numbers, ProjectSettings, Settings};
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
    memory: ProjectMemory,
}

/// A snapshot of a project for one request: later changes by other requests do not affect it.
#[derive(Debug, Clone)]
pub(super) struct View {
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

impl View {
    /// The settings for one of its images.
    pub(super) fn settings(&self, numbers: Numbers, image: &ImageTag) -> Settings {
        Settings::resolve(&self.options, &self.settings, numbers, &self.config, image)
    }
}

impl Projects {
    /// Combines the defaults with the remembered state.
    pub fn new(defaults: Defaults, memory: ProjectMemory) -> Self {
        Self { defaults, memory }
    }

    /// The current model version of a project's predictions.
    pub fn version(&self, project: &str, config: Option<&LabelingConfig>) -> String {
        let known = self.memory.project(project);
        self.version_of(&known.settings, known.prompt(), config)
    }

    /// Applies the `/setup` request of a project.
    pub fn take_setup(
        &self,
        project: &str,
        extra_params: &Value,
        label_studio: LabelStudio,
    ) -> Writing {
        self.memory
            .remember_setup(project, extra_params, label_studio)
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
    pub(super) fn view(
        &self,
        origin: Origin,
        config: Arc<LabelingConfig>,
        prompt: Option<&str>,
    ) -> View {
        let known = self.memory.project(&origin.project);
        let prompt = prompt.map(str::trim).or(known.prompt()).map(str::to_owned);
        let Remembered {
            settings,
            label_studio,
            ..
        } = known;
        View {
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
    pub(super) fn typed(&self, project: &str, prompt: &str) -> Writing {
        if self.defaults.remembers_prompts && !project.is_empty() {
            self.memory.remember_prompt(project, prompt)
        } else {
            Writing::default()
        }
    }
}
