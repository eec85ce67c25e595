//! What a project is known for: its settings, its prompt, its Label Studio, and the model version that follows.

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

/// Where tasks come from.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Label Studio's name of the project, `79.1795353181`; empty where it said none.
    pub project: String,
    /// User and password for protected image URLs.
    pub login: Option<(String, SecretString)>,
}

/// What holds for all projects, as configured.
#[derive(Debug)]
pub struct Defaults {
    /// What it lacks comes from `/setup`.
    pub label_studio: LabelStudio,
    /// What counts as found.
    pub options: DetectionOptions,
    /// How far a polygon may be from its mask, in percent of an image's longer side.
    pub polygon_tolerance: f32,
    /// Version and models, the beginning of every model version.
    pub models: String,
    /// Whether a prompt that an annotator types counts for the project's next tasks.
    pub remembers_prompts: bool,
}

/// All projects.
#[derive(Debug)]
pub struct Projects {
    defaults: Defaults,
    memory: ProjectMemory,
}

/// A project as one request sees it from beginning to end, whatever others type or set meanwhile.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub origin: Origin,
    pub config: Arc<LabelingConfig>,
    /// Given, or the project's.
    pub prompt: Option<String>,
    pub label_studio: LabelStudio,
    /// What the request's predictions carry.
    pub version: String,
    pub polygon_tolerance: f32,
    settings: ProjectSettings,
    options: DetectionOptions,
}

impl View {
    /// What counts for one of its images.
    pub(super) fn settings(&self, numbers: Numbers, image: &ImageTag) -> Settings {
        Settings::resolve(&self.options, &self.settings, numbers, &self.config, image)
    }
}

impl Projects {
    /// With what is remembered of them.
    pub fn new(defaults: Defaults, memory: ProjectMemory) -> Self {
        Self { defaults, memory }
    }

    /// The version that predictions of a project carry now.
    pub fn version(&self, project: &str, config: Option<&LabelingConfig>) -> String {
        let known = self.memory.project(project);
        self.version_of(&known.settings, known.prompt(), config)
    }

    /// Takes in what `/setup` says of a project.
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

    /// A project as it is now, with a prompt that was given instead of its own.
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
            label_studio: self.defaults.label_studio.or(&label_studio),
            polygon_tolerance: self.defaults.polygon_tolerance,
            options: self.defaults.options,
            origin,
            config,
            prompt,
            settings,
        }
    }

    /// Remembers what an annotator typed, for the project's next tasks.
    pub(super) fn typed(&self, project: &str, prompt: &str) -> Writing {
        if self.defaults.remembers_prompts && !project.is_empty() {
            self.memory.remember_prompt(project, prompt)
        } else {
            Writing::default()
        }
    }
}
