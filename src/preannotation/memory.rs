//! What is remembered of each project: its last prompt and its `extra_params`, across restarts.
//!
//! Answers come from memory; a thread of its own writes to an SQLite file. If the file cannot be written
//! or is damaged, a log line says so and everything goes on without it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rusqlite::{Connection, params};
use serde_json::Value;

use super::settings::ProjectSettings;
use crate::label_studio::LabelStudio;

/// What is known of a project.
#[derive(Debug, Clone, Default)]
pub struct Remembered {
    /// What was asked for last: typed, or set by `extra_params`.
    pub prompt: Option<String>,
    /// From `extra_params`.
    pub settings: ProjectSettings,
    /// Label Studio as it introduced itself; not kept across restarts.
    pub label_studio: LabelStudio,
    /// `extra_params` as they came.
    pub extra_params: String,
}

/// The memory; clones share it.
#[derive(Debug, Clone)]
pub struct ProjectMemory {
    projects: Arc<Mutex<HashMap<String, Remembered>>>,
    /// `None` where nothing is written.
    writer: Option<mpsc::Sender<Row>>,
}

#[derive(Debug)]
struct Row {
    project: String,
    prompt: Option<String>,
    extra_params: String,
}

/// The name of the file in `MODEL_DIR`.
pub const FILE: &str = "groundling.sqlite3";

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS projects (
    project TEXT PRIMARY KEY, prompt TEXT, extra_params TEXT NOT NULL, updated_at INTEGER NOT NULL
)";

impl ProjectMemory {
    /// Reads the file in a folder and starts the thread that writes it. A damaged file is put aside; the
    /// folder is made when there is something to write.
    pub fn open(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let projects = read(&file);
        let (writer, rows) = mpsc::channel();
        let started = std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || write_all(&file, &rows));
        if let Err(error) = &started {
            tracing::warn!(%error, "prompts will be forgotten at the next start");
        }
        Self {
            projects: Arc::new(Mutex::new(projects)),
            writer: started.is_ok().then_some(writer),
        }
    }

    /// Reads the file in a folder, and writes nothing: for a look at what a server remembers.
    pub fn look(folder: &Path) -> Self {
        Self {
            projects: Arc::new(Mutex::new(read(&folder.join(FILE)))),
            writer: None,
        }
    }

    /// What is known of a project, named as Label Studio does in `/setup` and `/predict`.
    pub fn project(&self, project: &str) -> Remembered {
        let projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        projects.get(project).cloned().unwrap_or_default()
    }

    /// The name of the project with this number, where only one Label Studio has one.
    pub fn name_of_number(&self, number: u64) -> Option<String> {
        let projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        let start = format!("{number}.");
        let mut matching = projects.keys().filter(|name| name.starts_with(&start));
        match (matching.next(), matching.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }

    /// Remembers what an annotator asked for.
    pub fn remember_prompt(&self, project: &str, prompt: &str) {
        self.change(project, |remembered| {
            let is_new = remembered.prompt.as_deref() != Some(prompt);
            remembered.prompt = Some(prompt.to_owned());
            is_new
        });
    }

    /// Takes in a `/setup`. A prompt in `extra_params` counts from the moment it is set there, until an
    /// annotator types another.
    pub fn remember_setup(&self, project: &str, extra_params: &Value, label_studio: LabelStudio) {
        let text = match extra_params {
            Value::String(text) => text.trim().to_owned(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        self.change(project, |remembered| {
            remembered.label_studio = label_studio;
            if remembered.extra_params == text {
                return false;
            }
            let (settings, problems) = ProjectSettings::parse(extra_params);
            for problem in problems {
                tracing::warn!(project, "{problem}");
            }
            if settings.prompt.is_some() && settings.prompt != remembered.settings.prompt {
                remembered.prompt.clone_from(&settings.prompt);
            }
            remembered.settings = settings;
            remembered.extra_params = text;
            true
        });
    }

    /// Changes what is known of a project, and writes it down if `change` says so.
    fn change(&self, project: &str, change: impl FnOnce(&mut Remembered) -> bool) {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = projects.entry(project.to_owned()).or_default();
        if !change(remembered) {
            return;
        }
        if let Some(writer) = &self.writer {
            let row = Row {
                project: project.to_owned(),
                prompt: remembered.prompt.clone(),
                extra_params: remembered.extra_params.clone(),
            };
            // the thread ends with the last handle, not before
            let _ = writer.send(row);
        }
    }
}

/// What a file remembers; nothing where there is none.
fn read(file: &Path) -> HashMap<String, Remembered> {
    let rows = if file.exists() { load(file) } else { vec![] };
    let projects = rows.into_iter().map(|row| {
        let (settings, _) = ProjectSettings::parse(&Value::String(row.extra_params.clone()));
        let remembered = Remembered {
            prompt: row.prompt,
            settings,
            extra_params: row.extra_params,
            ..Remembered::default()
        };
        (row.project, remembered)
    });
    projects.collect()
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute(SCHEMA, [])?;
    Ok(connection)
}

/// All rows; none of a file that cannot be read, which is put aside if it is damaged.
fn load(file: &Path) -> Vec<Row> {
    let read = || -> rusqlite::Result<Vec<Row>> {
        let connection = connect(file)?;
        let mut query = connection.prepare("SELECT project, prompt, extra_params FROM projects")?;
        let rows = query.query_map([], |row| {
            Ok(Row {
                project: row.get(0)?,
                prompt: row.get(1)?,
                extra_params: row.get(2)?,
            })
        })?;
        rows.collect()
    };
    read().unwrap_or_else(|error| {
        let name = file.display();
        tracing::warn!(file = %name, %error, "remembered prompts cannot be read");
        if is_damaged(&error) {
            put_aside(file);
        }
        vec![]
    })
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SystemIoFailure, Unknown};
    match error.sqlite_error_code() {
        Some(code) => matches!(
            code,
            DatabaseCorrupt | NotADatabase | SystemIoFailure | Unknown
        ),
        // a table of another form
        None => true,
    }
}

fn put_aside(file: &Path) {
    let aside = file.with_extension("sqlite3.damaged");
    match fs::rename(file, &aside) {
        Ok(()) => tracing::warn!(file = %aside.display(), "put aside; a new one is begun"),
        Err(error) => tracing::warn!(%error, "it could not be put aside"),
    }
}

/// Writes rows as they come, until every handle of the memory is gone.
fn write_all(file: &Path, rows: &mpsc::Receiver<Row>) {
    let mut connection = None;
    while let Ok(row) = rows.recv() {
        let mut written = write(file, &mut connection, &row);
        if let Err(error) = &written
            && error.downcast_ref().is_some_and(is_damaged)
        {
            connection = None;
            put_aside(file);
            written = write(file, &mut connection, &row);
        }
        if let Err(error) = written {
            let name = file.display();
            tracing::warn!(file = %name, %error, "the prompt will be forgotten at the next start");
            connection = None;
        }
    }
}

fn write(file: &Path, connection: &mut Option<Connection>, row: &Row) -> anyhow::Result<()> {
    let open = match connection.take() {
        // the file may have been deleted under a running server
        Some(open) if file.exists() => open,
        _ => {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            connect(file)?
        }
    };
    let open = connection.insert(open);
    open.execute(
        "INSERT INTO projects VALUES (?1, ?2, ?3, unixepoch())
         ON CONFLICT (project) DO UPDATE SET
         prompt = excluded.prompt, extra_params = excluded.extra_params, updated_at = excluded.updated_at",
        params![row.project, row.prompt, row.extra_params],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    /// Waits for the thread to have written.
    fn eventually(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(20), "it never came");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn prompt_on_disk(folder: &Path) -> Option<String> {
        ProjectMemory::open(folder).project("7.1").prompt
    }

    #[test]
    fn prompts_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let models = folder.path().join("models");
        let memory = ProjectMemory::open(&models);
        let extra = json!({"prompt": "pot", "box_threshold": 0.4});
        memory.remember_setup("7.1", &extra, LabelStudio::default());
        assert_eq!(memory.project("7.1").prompt.as_deref(), Some("pot"));
        memory.remember_prompt("7.1", "bok choi");
        // the same setup again is no news
        memory.remember_setup("7.1", &extra, LabelStudio::default());
        assert_eq!(memory.project("7.1").prompt.as_deref(), Some("bok choi"));
        assert_eq!(memory.name_of_number(7).as_deref(), Some("7.1"));
        assert_eq!(memory.name_of_number(71), None);
        eventually(|| prompt_on_disk(&models).as_deref() == Some("bok choi"));
        let again = ProjectMemory::open(&models);
        assert_eq!(again.project("7.1").settings.box_threshold, Some(0.4));
        again.remember_setup("7.1", &json!({"prompt": "cup"}), LabelStudio::default());
        assert_eq!(again.project("7.1").prompt.as_deref(), Some("cup"));
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
        // damaged, and then deleted, under the running server
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

        // a folder that cannot be made
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let memory = ProjectMemory::open(&blocked.join("models"));
        memory.remember_prompt("7.1", "dog");
        assert_eq!(memory.project("7.1").prompt.as_deref(), Some("dog"));
    }
}
