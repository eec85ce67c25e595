//! Remembers each project's last prompt and `extra_params`.
//!
//! Reads are answered from memory. With the features `sqlite` and `postgres`, changes are also written to a database and
//! survive a restart; servers that share a PostgreSQL database also see each other's. If the database is damaged or away,
//! a warning is logged and the server goes on without it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use super::database::{Change, QueuedChange, StoredProject};
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
    /// Number of changes that are not in the database yet.
    unwritten: u32,
}

impl ProjectState {
    /// The prompt for requests without a typed prompt: the one in `extra_params`, else the last typed one.
    pub fn prompt(&self) -> Option<&str> {
        let pinned = self.settings.prompt.as_deref();
        let pinned = pinned.filter(|prompt| !prompt.is_empty());
        pinned.or(self.typed_prompt.as_deref())
    }
}

/// A change that is being written to the database.
#[derive(Debug, Default)]
pub struct PendingWrite(Option<oneshot::Receiver<()>>);

/// How long an answer waits until a typed prompt is in the database. It takes milliseconds. A full disk, or a file that
/// another process has locked, must not delay the annotator.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

impl PendingWrite {
    /// Waits until the change is in the database, for at most one second. A change that is in the database survives a
    /// crash of the process.
    pub async fn done(self) {
        if let Some(written) = self.0 {
            // failures are logged by the thread that writes
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
    pub(super) projects: ProjectMap,
    pub(super) max_projects: usize,
    /// `None` if changes are not written to a database.
    pub(super) writer: Option<Writer>,
}

/// The states by the name of the project; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct ProjectMap(Arc<Mutex<HashMap<String, ProjectState>>>);

/// The way to the thread that writes changes.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) changes: mpsc::Sender<QueuedChange>,
    /// Whether the database could be used last time.
    pub(super) is_available: Arc<AtomicBool>,
}

impl ProjectMap {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, ProjectState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a change of a project is in the database.
    #[cfg_attr(not(any(feature = "postgres", feature = "sqlite")), allow(dead_code))]
    pub(super) fn written(&self, project: &str) {
        if let Some(state) = self.lock().get_mut(project) {
            state.unwritten = state.unwritten.saturating_sub(1);
        }
    }

    /// Takes over projects from the database, from the least to the most recently changed. A project with changes that are
    /// not in the database yet stays as it is: they are later than what was read.
    pub(super) fn take_over(&self, stored: Vec<StoredProject>) {
        let mut projects = self.lock();
        let next = next_number(&projects);
        for (stored, changed) in stored.into_iter().zip(next..) {
            let state = projects.entry(stored.project).or_default();
            if state.unwritten > 0 {
                continue;
            }
            state.changed = changed;
            state.typed_prompt = stored.prompt;
            if state.extra_params != stored.extra_params {
                let extra_params = Value::String(stored.extra_params);
                state.settings = ProjectSettings::parse(&extra_params).0;
                state.extra_params = extra_params.as_str().unwrap_or_default().to_owned();
            }
        }
    }
}

/// The number of the next change.
fn next_number(projects: &HashMap<String, ProjectState>) -> u64 {
    let numbers = projects.values().map(|state| state.changed);
    numbers.max().map_or(0, |latest| latest + 1)
}

impl ProjectStore {
    /// A store without a database: it is empty, and forgets everything when the process ends.
    pub fn in_memory() -> Self {
        Self::new(vec![])
    }

    /// A store of these projects, whose changes are not written.
    pub(super) fn new(stored: Vec<StoredProject>) -> Self {
        let projects = ProjectMap::default();
        projects.take_over(stored);
        Self {
            projects,
            max_projects: MAX_PROJECTS,
            writer: None,
        }
    }

    /// The state of a project, by the name that Label Studio sends in `/setup` and `/predict`.
    pub fn project(&self, project: &str) -> ProjectState {
        self.projects
            .lock()
            .get(project)
            .cloned()
            .unwrap_or_default()
    }

    /// The full name of the project with this number, if only one Label Studio has a project with it.
    pub fn name_of_number(&self, number: u64) -> Option<String> {
        let projects = self.projects.lock();
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

    /// Changes a project's state, and queues the change that `apply` returns for the database.
    fn change(
        &self,
        project: &str,
        apply: impl FnOnce(&mut ProjectState) -> Option<Change>,
    ) -> PendingWrite {
        // locked until the change is queued, so that the database gets the changes in the same order
        let mut projects = self.projects.lock();
        let number = next_number(&projects);
        if projects.len() >= self.max_projects && !projects.contains_key(project) {
            let oldest = projects.iter().min_by_key(|(_, state)| state.changed);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                tracing::info!(
                    project = oldest,
                    "the least recently changed project is forgotten, because more than {} projects are known",
                    self.max_projects
                );
                projects.remove(&oldest);
                if let Some(writer) = &self.writer {
                    writer.queue(Change::Delete { project: oldest });
                }
            }
        }
        let state = projects.entry(project.to_owned()).or_default();
        state.changed = number;
        match (apply(state), &self.writer) {
            (Some(change), Some(writer)) => {
                state.unwritten += 1;
                writer.queue(change)
            }
            _ => PendingWrite::default(),
        }
    }
}

impl Writer {
    /// Queues a change. While the database is away, there is nothing to wait for.
    fn queue(&self, change: Change) -> PendingWrite {
        let (written, pending) = oneshot::channel();
        // the thread ends only when the last sender is dropped
        let _ = self.changes.send(QueuedChange { change, written });
        PendingWrite(self.is_available.load(Ordering::Relaxed).then_some(pending))
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
