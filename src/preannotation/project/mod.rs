//! The state of a project: its settings, prompt, Label Studio and model version.

// unused in a build without a database
#[cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]
mod database;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod settings;
#[cfg(feature = "sqlite")]
mod sqlite;
pub mod store;
pub mod version;

use std::borrow::Cow;
use std::sync::Arc;

use secrecy::SecretString;
use serde_json::Value;

use self::settings::{ControlThresholds, PredictionSettings, ProjectSettings, SearchThresholds};
use self::store::{PendingWrite, ProjectState, ProjectStore};
use super::Task;
use crate::detector::{DetectionOptions, PhraseThresholds};
use crate::label_studio::LabelStudio;
use crate::labeling::{ImageTag, LabelingConfig};
use crate::prompt::Prompt;

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
    /// The settings of predictions.
    pub prediction: PredictionSettings,
    /// groundling's version and the models' names: the start of every model version.
    pub models: String,
    /// Whether prompts can be searched for: a detector is configured.
    pub has_detector: bool,
    /// Whether objects can be segmented: a segmenter is configured.
    pub has_segmenter: bool,
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
    /// The labeling config with the project's outputs, and with the labels of the task.
    pub config: Arc<LabelingConfig>,
    /// The labeling config without the labels of a task.
    project_config: Arc<LabelingConfig>,
    /// The given prompt, else the project's.
    pub prompt: Option<String>,
    pub label_studio: LabelStudio,
    /// The model version of the request's predictions.
    pub version: String,
    /// The settings of predictions, those of the project included.
    pub settings: PredictionSettings,
    /// The settings in the project's `extra_params`.
    extra_params: ProjectSettings,
    /// A box threshold in the place of all others.
    only_threshold: Option<f32>,
}

impl ProjectSnapshot {
    /// The snapshot with one box threshold, 0..1, in the place of all others.
    pub(super) fn with_only_threshold(self, threshold: f32) -> Self {
        Self {
            only_threshold: Some(threshold),
            ..self
        }
    }

    /// The box threshold of a label, without those of `<Number>` controls.
    pub(super) fn threshold_of(&self, label: &str) -> f32 {
        let own = match self.extra_params.box_threshold {
            Some(_) => None,
            None => self.config.controls.iter().find_map(|control| {
                let mut labels = control.labels.iter();
                labels.find(|other| other.name() == label)?.score_threshold
            }),
        };
        own.unwrap_or(self.settings.options.box_threshold)
    }

    /// The snapshot with the labels that a task brings along. The model version does not change with them.
    pub(super) fn for_task(&self, task: &Task) -> Cow<'_, Self> {
        match self.config.for_task(&task.data) {
            Cow::Borrowed(_) => Cow::Borrowed(self),
            Cow::Owned(config) => Cow::Owned(Self {
                config: Arc::new(config),
                ..self.clone()
            }),
        }
    }

    /// The snapshot with a changed labeling config. The model version stays that of the request.
    pub(super) fn with_config(&self, config: Arc<LabelingConfig>) -> Self {
        Self {
            config,
            ..self.clone()
        }
    }

    /// The thresholds for a prompt in one of its images.
    pub(super) fn thresholds(
        &self,
        controls: ControlThresholds,
        image: &ImageTag,
        prompt: &Prompt,
    ) -> SearchThresholds {
        if let Some(box_threshold) = self.only_threshold {
            return SearchThresholds {
                options: DetectionOptions {
                    box_threshold,
                    text_threshold: controls
                        .text_threshold
                        .unwrap_or(self.settings.options.text_threshold),
                    ..self.settings.options
                },
                phrases: PhraseThresholds::default(),
            };
        }
        SearchThresholds::resolve(
            self.settings.options,
            &self.extra_params,
            controls,
            &self.config,
            image,
            prompt,
        )
    }
}

impl Projects {
    /// Combines the defaults with the remembered state.
    pub fn new(defaults: Defaults, store: ProjectStore) -> Self {
        Self { defaults, store }
    }

    /// Whether prompts can be searched for.
    pub fn has_detector(&self) -> bool {
        self.defaults.has_detector
    }

    /// Whether objects can be segmented.
    pub fn has_segmenter(&self) -> bool {
        self.defaults.has_segmenter
    }

    /// The Label Studio of the settings.
    pub(super) fn label_studio(&self) -> &LabelStudio {
        &self.defaults.label_studio
    }

    /// The settings of predictions, without those of projects.
    pub fn prediction_settings(&self) -> &PredictionSettings {
        &self.defaults.prediction
    }

    /// The current model version of a project's predictions.
    pub fn version(&self, project: &str, config: Option<&LabelingConfig>) -> String {
        let known = self.store.project(project);
        let settings = self.defaults.prediction.with(&known.settings);
        let config = config.map(|config| match settings.outputs {
            None => Cow::Borrowed(config),
            Some(_) => Cow::Owned(config.clone().with_outputs(settings.outputs.clone())),
        });
        self.version_of(&settings, known.prompt(), config.as_deref())
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
        settings: &PredictionSettings,
        prompt: Option<&str>,
        config: Option<&LabelingConfig>,
    ) -> String {
        version::of_project(&self.defaults.models, settings, prompt, config)
    }

    /// A snapshot of a project; `prompt`, if given, replaces the project's own. An empty one stands for the labels.
    pub(super) fn snapshot(
        &self,
        origin: Origin,
        config: Arc<LabelingConfig>,
        prompt: Option<&str>,
    ) -> ProjectSnapshot {
        let known = self.store.project(&origin.project);
        let prompt = match prompt.map(str::trim) {
            Some(given) => Some(given).filter(|prompt| !prompt.is_empty()),
            None => known.prompt(),
        };
        let prompt = prompt.map(str::to_owned);
        let ProjectState {
            settings: extra_params,
            label_studio,
            ..
        } = known;
        let settings = self.defaults.prediction.with(&extra_params);
        let config = match settings.outputs.clone() {
            None => config,
            outputs => Arc::new(Arc::unwrap_or_clone(config).with_outputs(outputs)),
        };
        ProjectSnapshot {
            version: self.version_of(&settings, prompt.as_deref(), Some(&config)),
            label_studio: self.defaults.label_studio.with_fallback(&label_studio),
            origin,
            project_config: config.clone(),
            config,
            prompt,
            settings,
            extra_params,
            only_threshold: None,
        }
    }

    /// A snapshot with another prompt.
    pub(super) fn with_prompt(&self, snapshot: ProjectSnapshot, prompt: &str) -> ProjectSnapshot {
        let prompt = Some(prompt.trim().to_owned());
        ProjectSnapshot {
            version: self.version_of(
                &snapshot.settings,
                prompt.as_deref(),
                Some(&snapshot.project_config),
            ),
            prompt,
            ..snapshot
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
