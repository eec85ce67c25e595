//! Remembers each project's last prompt and `extra_params`.
//!
//! Reads are answered from memory. With the feature `sqlite`, changes are also written to a file and survive a restart.
//! If the file is damaged or cannot be written, a warning is logged and the server continues without it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::settings::ProjectSettings;
use crate::label_studio::LabelStudio;

/// The remembered state of a project.
#[derive(Debug, Clone, Default)]
pub struct ProjectState {
    /// The prompt that an annotator typed last.
    pub typed_prompt: Option<String>,
    /// Settings parsed from `extra_params`.
    pub settings: ProjectSettings,
    /// Label Studio's address and token, as sent in `/setup`; not kept across restarts.
    pub label_studio: LabelStudio,
    /// `extra_params` as received.
    pub extra_params: String,
    /// Sequence number of the last change to this project, over the changes of all projects.
    changed: u64,
}

impl ProjectState {
    /// The prompt for requests without a typed prompt: the one in `extra_params`, else the last typed one.
    pub fn prompt(&self) -> Option<&str> {
        let pinned = self.settings.prompt.as_deref();
        let pinned = pinned.filter(|prompt| !prompt.is_empty());
        pinned.or(self.typed_prompt.as_deref())
    }
}

/// A project as it is stored in a file.
#[derive(Debug)]
pub(super) struct StoredProject {
    pub(super) project: String,
    pub(super) prompt: Option<String>,
    pub(super) extra_params: String,
}

/// A change to a stored project. It has only the changed columns, because another server may share the file.
#[derive(Debug)]
#[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
pub(super) enum Change {
    /// Columns to write; `None` leaves a column as it is.
    Write {
        project: String,
        prompt: Option<Option<String>>,
        extra_params: Option<String>,
    },
    /// Deletes the project.
    Delete { project: String },
}

/// A change in the writer's queue.
#[derive(Debug)]
#[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
pub(super) struct QueuedChange {
    pub(super) change: Change,
    /// Notified when the change is in the file.
    pub(super) written: oneshot::Sender<()>,
}

/// A change that is being written to the file.
#[derive(Debug, Default)]
pub struct PendingWrite(Option<oneshot::Receiver<()>>);

/// How long an answer waits until a typed prompt is in the file. A disk takes milliseconds. A full disk, or a file
/// that another process has locked, must not delay the annotator.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl PendingWrite {
    /// Waits until the change is in the file, for at most one second. A change that is in the file survives a
    /// crash of the process.
    pub async fn done(self) {
        if let Some(written) = self.0 {
            // failures are logged by the writer thread
            let _ = tokio::time::timeout(WRITE_TIMEOUT, written).await;
        }
    }
}

/// Limit of remembered projects, because any client that can send `/setup` can make up project ids. Beyond the limit,
/// the least recently changed project is forgotten.
const MAX_PROJECTS: usize = 10_000;
/// Limit of a project's `extra_params`, in bytes.
const MAX_EXTRA_PARAMS: usize = 64 << 10;

/// The states of all projects; clones share them.
#[derive(Debug, Clone)]
pub struct ProjectStore {
    projects: Arc<Mutex<HashMap<String, ProjectState>>>,
    pub(super) max_projects: usize,
    /// `None` if changes are not written to a file.
    writer: Option<mpsc::Sender<QueuedChange>>,
}

impl ProjectStore {
    /// A store without a file: it is empty, and forgets everything when the process ends.
    pub fn in_memory() -> Self {
        Self::new(vec![], None)
    }

    pub(super) fn new(
        stored: Vec<StoredProject>,
        writer: Option<mpsc::Sender<QueuedChange>>,
    ) -> Self {
        let projects = stored.into_iter().zip(0..).map(|(stored, changed)| {
            let extra_params = Value::String(stored.extra_params.clone());
            let (settings, _) = ProjectSettings::parse(&extra_params);
            let state = ProjectState {
                typed_prompt: stored.prompt,
                settings,
                label_studio: LabelStudio::default(),
                extra_params: stored.extra_params,
                changed,
            };
            (stored.project, state)
        });
        Self {
            projects: Arc::new(Mutex::new(projects.collect())),
            max_projects: MAX_PROJECTS,
            writer,
        }
    }

    /// The state of a project, by the name that Label Studio sends in `/setup` and `/predict`.
    pub fn project(&self, project: &str) -> ProjectState {
        self.projects().get(project).cloned().unwrap_or_default()
    }

    /// The full name of the project with this number, if only one Label Studio has a project with it.
    pub fn name_of_number(&self, number: u64) -> Option<String> {
        let projects = self.projects();
        let start = format!("{number}.");
        let mut matching = projects.keys().filter(|name| name.starts_with(&start));
        match (matching.next(), matching.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }

    /// Remembers a typed prompt.
    pub fn remember_prompt(&self, project: &str, prompt: &str) -> PendingWrite {
        self.change(project, |state| {
            if state.typed_prompt.as_deref() == Some(prompt) {
                return None;
            }
            state.typed_prompt = Some(prompt.to_owned());
            Some(Change::Write {
                project: project.to_owned(),
                prompt: Some(state.typed_prompt.clone()),
                extra_params: None,
            })
        })
    }

    /// Applies a `/setup` request. A prompt in `extra_params` takes precedence over typed prompts as long as it is
    /// set; setting it to "" also forgets the typed prompt.
    pub fn apply_setup(
        &self,
        project: &str,
        extra_params: &Value,
        label_studio: LabelStudio,
    ) -> PendingWrite {
        let text = match extra_params {
            Value::String(text) => text.trim().to_owned(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        if text.len() > MAX_EXTRA_PARAMS {
            tracing::warn!(
                project,
                bytes = text.len(),
                "extra_params are ignored, because they are larger than {MAX_EXTRA_PARAMS} bytes"
            );
            return PendingWrite::default();
        }
        self.change(project, |state| {
            state.label_studio = label_studio;
            if state.extra_params == text {
                return None;
            }
            let (settings, problems) = ProjectSettings::parse(extra_params);
            for problem in problems {
                tracing::warn!(project, "{problem}");
            }
            let forgets_prompt = settings.prompt.as_deref() == Some("");
            if forgets_prompt {
                state.typed_prompt = None;
            }
            state.settings = settings;
            state.extra_params.clone_from(&text);
            Some(Change::Write {
                project: project.to_owned(),
                prompt: forgets_prompt.then_some(None),
                extra_params: Some(text),
            })
        })
    }

    /// Changes a project's state, and queues the change that `apply` returns for the file.
    fn change(
        &self,
        project: &str,
        apply: impl FnOnce(&mut ProjectState) -> Option<Change>,
    ) -> PendingWrite {
        // locked until the change is queued, so that the file gets the changes in the same order
        let mut projects = self.projects();
        let latest = projects.values().map(|state| state.changed).max();
        if projects.len() >= self.max_projects && !projects.contains_key(project) {
            let oldest = projects.iter().min_by_key(|(_, state)| state.changed);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                tracing::info!(
                    project = oldest,
                    "the least recently changed project is forgotten, because more than {} projects are known",
                    self.max_projects
                );
                projects.remove(&oldest);
                self.queue(Change::Delete { project: oldest });
            }
        }
        let state = projects.entry(project.to_owned()).or_default();
        state.changed = latest.map_or(0, |latest| latest + 1);
        match apply(state) {
            Some(change) => self.queue(change),
            None => PendingWrite::default(),
        }
    }

    fn queue(&self, change: Change) -> PendingWrite {
        let Some(writer) = &self.writer else {
            return PendingWrite::default();
        };
        let (written, pending) = oneshot::channel();
        // the writer thread ends only when the last sender is dropped
        let _ = writer.send(QueuedChange { change, written });
        PendingWrite(Some(pending))
    }

    fn projects(&self) -> MutexGuard<'_, HashMap<String, ProjectState>> {
        self.projects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_prompt_in_extra_params_forgets_the_typed_prompt() {
        let store = ProjectStore::in_memory();
        let prompt = || store.project("7.1").prompt().map(str::to_owned);
        let setup = |extra: Value| store.apply_setup("7.1", &extra, LabelStudio::default());
        setup(json!({"prompt": "pot"}));
        setup(json!({}));
        assert_eq!(prompt(), None);
        store.remember_prompt("7.1", "typed");
        setup(json!({"box_threshold": 0.4}));
        assert_eq!(prompt().as_deref(), Some("typed"));
        setup(json!({"prompt": ""}));
        assert_eq!(prompt(), None);
        setup(json!({"prompt": "x".repeat(MAX_EXTRA_PARAMS)}));
        assert_eq!(prompt(), None);
    }

    #[test]
    fn the_least_recently_changed_project_is_forgotten() {
        let store = ProjectStore {
            max_projects: 3,
            ..ProjectStore::in_memory()
        };
        for project in ["1.1", "2.1", "3.1"] {
            store.remember_prompt(project, "pot");
        }
        store.remember_prompt("1.1", "cup");
        store.remember_prompt("4.1", "dog");
        let known = ["1.1", "2.1", "3.1", "4.1"].map(|name| store.project(name).typed_prompt);
        let known = known.each_ref().map(Option::as_deref);
        assert_eq!(known, [Some("cup"), None, Some("pot"), Some("dog")]);
    }
}
