//! Remembers each project's last prompt and `extra_params` across restarts.
//!
//! Reads are answered from memory; changes are also written to a file. If the file is damaged or cannot be written, a
//! warning is logged and the server continues without it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

pub use super::file::FILE;
use super::file::{Change, Order, Row, load, peek, write_all};
use super::settings::ProjectSettings;
use crate::label_studio::LabelStudio;

/// The remembered state of a project.
#[derive(Debug, Clone, Default)]
pub struct Remembered {
    /// The prompt that an annotator typed last.
    pub typed: Option<String>,
    /// Settings parsed from `extra_params`.
    pub settings: ProjectSettings,
    /// Label Studio's address and token, as sent in `/setup`; not kept across restarts.
    pub label_studio: LabelStudio,
    /// `extra_params` as received.
    pub extra_params: String,
    /// Sequence number of the last change to this project, over the changes of all projects.
    changed: u64,
}

impl Remembered {
    /// The prompt for requests without a typed prompt: the one in `extra_params`, else the last typed one.
    pub fn prompt(&self) -> Option<&str> {
        let pinned = self.settings.prompt.as_deref();
        let pinned = pinned.filter(|prompt| !prompt.is_empty());
        pinned.or(self.typed.as_deref())
    }
}

/// The store of all projects; clones share it.
#[derive(Debug, Clone)]
pub struct ProjectMemory {
    projects: Arc<Mutex<HashMap<String, Remembered>>>,
    most: usize,
    /// `None` if changes are not written to a file.
    writer: Option<mpsc::Sender<Order>>,
}

/// A change that is being written to the file.
#[derive(Debug, Default)]
pub struct Writing(Option<oneshot::Receiver<()>>);

/// How long an answer waits until a typed prompt is in the file. A disk takes milliseconds. A full disk, or a file
/// that another process has locked, must not delay the annotator.
const WRITING: Duration = Duration::from_secs(1);

impl Writing {
    /// Waits until the change is in the file, for at most one second. A change that is in the file survives a
    /// crash of the process.
    pub async fn done(self) {
        if let Some(written) = self.0 {
            // failures are logged by the writer thread
            let _ = tokio::time::timeout(WRITING, written).await;
        }
    }
}

/// Limit of remembered projects, because any client that can send `/setup` can make up project ids. Beyond the limit,
/// the least recently changed project is forgotten.
const MAX_PROJECTS: usize = 10_000;
/// Limit of a project's `extra_params`, in bytes.
const MAX_EXTRA_PARAMS: usize = 64 << 10;

impl ProjectMemory {
    /// Reads the file in `folder` and starts the thread that writes it. A damaged file is renamed; the folder is
    /// created at the first write.
    pub fn open(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let projects = as_map(if file.exists() { load(&file) } else { vec![] });
        let (writer, changes) = mpsc::channel();
        let started = std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || write_all(&file, &changes));
        if let Err(error) = &started {
            tracing::warn!(%error, "prompts will be forgotten at the next start");
        }
        Self {
            projects: Arc::new(Mutex::new(projects)),
            most: MAX_PROJECTS,
            writer: started.is_ok().then_some(writer),
        }
    }

    /// Reads the file in `folder` without writing to it: for inspecting what a server remembers.
    pub fn look(folder: &Path) -> Self {
        Self {
            projects: Arc::new(Mutex::new(as_map(peek(&folder.join(FILE))))),
            most: MAX_PROJECTS,
            writer: None,
        }
    }

    /// The state of a project, by the name that Label Studio sends in `/setup` and `/predict`.
    pub fn project(&self, project: &str) -> Remembered {
        let projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        projects.get(project).cloned().unwrap_or_default()
    }

    /// The full name of the project with this number, if only one Label Studio has a project with it.
    pub fn name_of_number(&self, number: u64) -> Option<String> {
        let projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        let start = format!("{number}.");
        let mut matching = projects.keys().filter(|name| name.starts_with(&start));
        match (matching.next(), matching.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }

    /// Remembers a typed prompt.
    pub fn remember_prompt(&self, project: &str, prompt: &str) -> Writing {
        self.change(project, |remembered| {
            if remembered.typed.as_deref() == Some(prompt) {
                return None;
            }
            remembered.typed = Some(prompt.to_owned());
            Some((Some(remembered.typed.clone()), None))
        })
    }

    /// Applies a `/setup` request. A prompt in `extra_params` takes precedence over typed prompts as long as it is
    /// set; setting it to "" also forgets the typed prompt.
    pub fn remember_setup(
        &self,
        project: &str,
        extra_params: &Value,
        label_studio: LabelStudio,
    ) -> Writing {
        let text = match extra_params {
            Value::String(text) => text.trim().to_owned(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        if text.len() > MAX_EXTRA_PARAMS {
            tracing::warn!(
                project,
                bytes = text.len(),
                "extra_params are left out: they may have {MAX_EXTRA_PARAMS} bytes"
            );
            return Writing::default();
        }
        self.change(project, |remembered| {
            remembered.label_studio = label_studio;
            if remembered.extra_params == text {
                return None;
            }
            let (settings, problems) = ProjectSettings::parse(extra_params);
            for problem in problems {
                tracing::warn!(project, "{problem}");
            }
            let forgets = settings.prompt.as_deref() == Some("");
            if forgets {
                remembered.typed = None;
            }
            remembered.settings = settings;
            remembered.extra_params.clone_from(&text);
            Some((forgets.then_some(None), Some(text)))
        })
    }

    /// Changes a project's state, and writes the columns that `change` returns: the prompt and `extra_params`.
    fn change(
        &self,
        project: &str,
        change: impl FnOnce(&mut Remembered) -> Option<(Option<Option<String>>, Option<String>)>,
    ) -> Writing {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        // the writer thread ends when the last handle is dropped
        let write = |change| {
            let (written, writing) = oneshot::channel();
            let order = Order { change, written };
            let _ = self.writer.as_ref().map(|writer| writer.send(order));
            Writing(Some(writing))
        };
        let latest = projects.values().map(|known| known.changed).max();
        if projects.len() >= self.most && !projects.contains_key(project) {
            let oldest = projects.iter().min_by_key(|(_, known)| known.changed);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                tracing::info!(
                    project = oldest,
                    "forgotten: more than {} projects are known, and it was not changed for longest",
                    self.most
                );
                projects.remove(&oldest);
                write(Change::Forget { project: oldest });
            }
        }
        let remembered = projects.entry(project.to_owned()).or_default();
        remembered.changed = latest.map_or(0, |latest| latest + 1);
        let Some((prompt, extra_params)) = change(remembered) else {
            return Writing::default();
        };
        write(Change::Write {
            project: project.to_owned(),
            prompt,
            extra_params,
        })
    }
}

fn as_map(rows: Vec<Row>) -> HashMap<String, Remembered> {
    let projects = rows.into_iter().zip(0..).map(|(row, changed)| {
        let (settings, _) = ProjectSettings::parse(&Value::String(row.extra_params.clone()));
        let remembered = Remembered {
            typed: row.prompt,
            settings,
            extra_params: row.extra_params,
            changed,
            ..Remembered::default()
        };
        (row.project, remembered)
    });
    projects.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use rusqlite::{Connection, params};
    use serde_json::json;

    use super::super::file::{SCHEMA, rows};
    use super::*;

    /// Waits until the writer thread has written.
    fn eventually(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(20), "it never came");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn prompt_on_disk(folder: &Path) -> Option<String> {
        ProjectMemory::look(folder).project("7.1").typed
    }

    #[test]
    fn prompts_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let models = folder.path().join("models");
        let memory = ProjectMemory::open(&models);
        let extra = json!({"prompt": "pot", "box_threshold": 0.4});
        memory.remember_setup("7.1", &extra, LabelStudio::default());
        assert_eq!(memory.project("7.1").prompt(), Some("pot"));
        memory.remember_prompt("7.1", "bok choi");
        // a prompt in extra_params takes precedence as long as it is set
        assert_eq!(memory.project("7.1").prompt(), Some("pot"));
        let extra = json!({"box_threshold": 0.4});
        memory.remember_setup("7.1", &extra, LabelStudio::default());
        assert_eq!(memory.project("7.1").prompt(), Some("bok choi"));
        assert_eq!(memory.name_of_number(7).as_deref(), Some("7.1"));
        assert_eq!(memory.name_of_number(71), None);
        eventually(|| prompt_on_disk(&models).as_deref() == Some("bok choi"));
        let again = ProjectMemory::open(&models);
        assert_eq!(again.project("7.1").settings.box_threshold, Some(0.4));
        again.remember_setup("7.1", &json!({"prompt": "cup"}), LabelStudio::default());
        assert_eq!(again.project("7.1").prompt(), Some("cup"));
    }

    #[test]
    fn a_prompt_that_was_set_can_be_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let memory = ProjectMemory::open(folder.path());
        let prompt = || memory.project("7.1").prompt().map(str::to_owned);
        let setup = |extra: Value| memory.remember_setup("7.1", &extra, LabelStudio::default());
        setup(json!({"prompt": "pot"}));
        setup(json!({}));
        assert_eq!(prompt(), None);
        memory.remember_prompt("7.1", "typed");
        setup(json!({"box_threshold": 0.4}));
        assert_eq!(prompt().as_deref(), Some("typed"));
        setup(json!({"prompt": ""}));
        assert_eq!(prompt(), None);
        setup(json!({"prompt": "x".repeat(MAX_EXTRA_PARAMS)}));
        assert_eq!(prompt(), None);
    }

    #[test]
    fn an_older_file_is_brought_up_to_date_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        {
            let old = Connection::open(&file).unwrap();
            old.execute(SCHEMA, []).unwrap();
            let insert = "INSERT INTO projects VALUES (?1, ?2, ?3, 0)";
            for (project, prompt, extra) in [
                ("1.1", Some("pot"), "{\"prompt\": \"pot\"}"),
                ("2.1", Some("cup"), "{\"prompt\": \"pot\"}"),
                ("3.1", Some("cup"), ""),
            ] {
                old.execute(insert, params![project, prompt, extra])
                    .unwrap();
            }
        }
        let memory = ProjectMemory::open(folder.path());
        let typed = |project: &str| memory.project(project).typed;
        assert_eq!(typed("1.1"), None);
        assert_eq!(memory.project("1.1").prompt(), Some("pot"));
        assert_eq!(typed("2.1").as_deref(), Some("cup"));
        assert_eq!(memory.project("3.1").prompt(), Some("cup"));
        let copy = Connection::open(folder.path().join("groundling.sqlite3.before-1")).unwrap();
        assert_eq!(rows(&copy).unwrap()[0].prompt.as_deref(), Some("pot"));
        // a second start has nothing to migrate
        drop(memory);
        assert_eq!(
            ProjectMemory::open(folder.path()).project("3.1").prompt(),
            Some("cup")
        );
    }

    #[test]
    fn the_project_that_was_not_changed_for_longest_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let memory = ProjectMemory {
            most: 3,
            ..ProjectMemory::open(folder.path())
        };
        for project in ["1.1", "2.1", "3.1"] {
            memory.remember_prompt(project, "pot");
        }
        memory.remember_prompt("1.1", "cup");
        memory.remember_prompt("4.1", "dog");
        let known = ["1.1", "2.1", "3.1", "4.1"].map(|name| memory.project(name).typed);
        let known = known.each_ref().map(Option::as_deref);
        assert_eq!(known, [Some("cup"), None, Some("pot"), Some("dog")]);
        let on_disk = |name: &str| ProjectMemory::look(folder.path()).project(name).typed;
        eventually(|| on_disk("4.1").is_some());
        assert_eq!(on_disk("2.1"), None);
        assert_eq!(on_disk("1.1").as_deref(), Some("cup"));
    }

    #[test]
    fn two_servers_may_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (
            ProjectMemory::open(folder.path()),
            ProjectMemory::open(folder.path()),
        );
        one.remember_prompt("7.1", "dog");
        eventually(|| prompt_on_disk(folder.path()).is_some());
        two.remember_setup(
            "7.1",
            &json!({"box_threshold": 0.4}),
            LabelStudio::default(),
        );
        let on_disk = || ProjectMemory::look(folder.path()).project("7.1");
        eventually(|| on_disk().settings.box_threshold == Some(0.4));
        assert_eq!(on_disk().prompt(), Some("dog"));
    }

    #[test]
    fn a_damaged_or_lost_file_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        fs::write(
            &file,
            "this is no database, and long enough to be looked at as one",
        )
        .unwrap();
        let memory = ProjectMemory::open(folder.path());
        memory.remember_prompt("7.1", "dog");
        eventually(|| file.exists() && prompt_on_disk(folder.path()).is_some());
        assert!(folder.path().join("groundling.sqlite3.damaged").exists());
        // the file is damaged, and then deleted, while the server runs
        fs::write(
            &file,
            "not a database any more, for whatever reason there may be",
        )
        .unwrap();
        memory.remember_prompt("7.1", "cow");
        eventually(|| prompt_on_disk(folder.path()).as_deref() == Some("cow"));
        fs::remove_file(&file).unwrap();
        memory.remember_prompt("7.1", "cat");
        eventually(|| file.exists() && prompt_on_disk(folder.path()).as_deref() == Some("cat"));

        // a folder that cannot be created
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let memory = ProjectMemory::open(&blocked.join("models"));
        memory.remember_prompt("7.1", "dog");
        assert_eq!(memory.project("7.1").prompt(), Some("dog"));
    }
}
