//! The SQLite file of a single server: its schema, migration, and repair.
//!
//! A damaged file is renamed and replaced by a new one. A file of an older version is migrated, and a copy of the old
//! file is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use serde_json::Value;

use super::database::{Change, Database, StoredProject, WriteError};
use super::settings::ProjectSettings;
use super::store::ProjectStore;

/// The name of the file in `MODEL_DIR`.
const FILE: &str = "groundling.sqlite3";

const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS projects (
    project TEXT PRIMARY KEY, prompt TEXT, extra_params TEXT NOT NULL DEFAULT '', updated_at INTEGER NOT NULL
)";

/// The file's `user_version` since typed prompts and prompts from `extra_params` are stored separately.
const VERSION: i64 = 1;

/// Why a change could not be written.
#[derive(Debug, thiserror::Error)]
enum FileError {
    /// The folder of the file cannot be created.
    #[error("its folder cannot be created: {0}")]
    Folder(std::io::Error),
    /// SQLite failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

impl ProjectStore {
    /// Reads the file in `folder`, and starts the thread that writes it. A damaged file is renamed; the folder is created at
    /// the first write.
    pub fn open(folder: &Path) -> Self {
        Self::with_database(ProjectFile::new(folder.join(FILE)))
    }

    /// Reads the file in `folder` without writing to it: for inspecting what a server remembers.
    pub fn open_read_only(folder: &Path) -> Self {
        Self::new(load_read_only(&folder.join(FILE)))
    }
}

/// The file, opened for writing when it is first needed.
#[derive(Debug)]
struct ProjectFile {
    path: PathBuf,
    connection: Option<Connection>,
}

impl Database for ProjectFile {
    const POLL_INTERVAL: Option<Duration> = None;
    const RETRY_DELAY: Duration = Duration::from_secs(10);
    type Error = FileError;

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Never fails: a file that cannot be read has no projects.
    fn changed(&mut self) -> Result<Vec<StoredProject>, FileError> {
        let exists = self.path.exists();
        Ok(if exists { load(&self.path) } else { vec![] })
    }

    /// If the file turns out to be damaged, it is renamed and the change is written to a new file.
    fn write(&mut self, change: &Change) -> Result<(), WriteError<FileError>> {
        let result = match self.try_write(change) {
            Err(FileError::Sqlite(error)) if is_damaged(&error) => {
                self.connection = None;
                rename_damaged(&self.path);
                self.try_write(change)
            }
            result => result,
        };
        result.map_err(|error| {
            self.connection = None;
            WriteError::Later(error)
        })
    }
}

impl ProjectFile {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            connection: None,
        }
    }

    fn try_write(&mut self, change: &Change) -> Result<(), FileError> {
        let connection = match self.connection.take() {
            // the file may have been deleted while the server runs
            Some(connection) if self.path.exists() => connection,
            _ => {
                if let Some(folder) = self.path.parent() {
                    fs::create_dir_all(folder).map_err(FileError::Folder)?;
                }
                connect(&self.path)?
            }
        };
        Ok(apply(self.connection.insert(connection), change)?)
    }
}

fn apply(connection: &mut Connection, change: &Change) -> rusqlite::Result<()> {
    let (project, prompt, extra_params) = match change {
        Change::Write {
            project,
            prompt,
            extra_params,
        } => (project, prompt, extra_params),
        Change::Delete { project } => {
            connection.execute("DELETE FROM projects WHERE project = ?1", [project])?;
            return Ok(());
        }
    };
    // one transaction, so that a killed process leaves no partial change
    let transaction = connection.transaction()?;
    transaction.execute(
        "INSERT INTO projects (project, updated_at) VALUES (?1, unixepoch())
         ON CONFLICT (project) DO UPDATE SET updated_at = excluded.updated_at",
        [project],
    )?;
    if let Some(prompt) = prompt {
        let update = "UPDATE projects SET prompt = ?2 WHERE project = ?1";
        transaction.execute(update, params![project, prompt])?;
    }
    if let Some(extra_params) = extra_params {
        let update = "UPDATE projects SET extra_params = ?2 WHERE project = ?1";
        transaction.execute(update, params![project, extra_params])?;
    }
    transaction.commit()
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let is_new = !path.exists();
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute(SCHEMA, [])?;
    migrate(&mut connection, path, is_new)?;
    Ok(connection)
}

/// Migrates a file of an older groundling, and keeps a copy of the old file.
fn migrate(connection: &mut Connection, path: &Path, is_new: bool) -> rusqlite::Result<()> {
    let version = |connection: &Connection| -> rusqlite::Result<i64> {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0))
    };
    if is_new {
        return connection.pragma_update(None, "user_version", VERSION);
    }
    if version(connection)? >= VERSION {
        return Ok(());
    }
    let copy = path.with_extension("sqlite3.before-1");
    if !copy.exists() {
        connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()])?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // another server that shares the file may have migrated it in the meantime
    if version(&transaction)? < VERSION {
        for stored in all(&transaction)? {
            let (settings, _) = ProjectSettings::parse(&Value::String(stored.extra_params));
            // older versions stored a prompt from extra_params as if it had been typed
            if stored.prompt.is_some() && stored.prompt == settings.prompt {
                let update = "UPDATE projects SET prompt = NULL WHERE project = ?1";
                transaction.execute(update, [stored.project])?;
            }
        }
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    transaction.commit()?;
    tracing::info!(copy = %copy.display(), "the file of remembered prompts was migrated; a copy of the old file is kept");
    Ok(())
}

/// All projects, from the least to the most recently changed.
fn all(connection: &Connection) -> rusqlite::Result<Vec<StoredProject>> {
    let mut query = connection
        .prepare("SELECT project, prompt, extra_params FROM projects ORDER BY updated_at, rowid")?;
    let rows = query.query_map([], |row| {
        Ok(StoredProject {
            project: row.get(0)?,
            prompt: row.get(1)?,
            extra_params: row.get(2)?,
        })
    })?;
    rows.collect()
}

/// All projects. Returns none if the file cannot be read; a damaged file is also renamed.
fn load(path: &Path) -> Vec<StoredProject> {
    let read = connect(path).and_then(|connection| all(&connection));
    read.unwrap_or_else(|error| {
        warn_unreadable(path, &error);
        if is_damaged(&error) {
            rename_damaged(path);
        }
        vec![]
    })
}

/// All projects of a file that another process owns, opened read-only. Returns none if the file cannot be read.
fn load_read_only(path: &Path) -> Vec<StoredProject> {
    if !path.exists() {
        return vec![];
    }
    let read = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .and_then(|connection| all(&connection));
    read.unwrap_or_else(|error| {
        warn_unreadable(path, &error);
        vec![]
    })
}

fn warn_unreadable(path: &Path, error: &rusqlite::Error) {
    tracing::warn!(file = %path.display(), %error, "the file of remembered prompts cannot be read");
}

fn is_damaged(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, SystemIoFailure, Unknown};
    match error.sqlite_error_code() {
        Some(code) => matches!(
            code,
            DatabaseCorrupt | NotADatabase | SystemIoFailure | Unknown
        ),
        // the table has other columns
        None => true,
    }
}

fn rename_damaged(path: &Path) {
    let renamed = path.with_extension("sqlite3.damaged");
    match fs::rename(path, &renamed) {
        Ok(()) => tracing::warn!(
            renamed = %renamed.display(),
            "the file of remembered prompts is damaged; it was renamed, and a new file is started"
        ),
        Err(error) => tracing::warn!(
            %error,
            "the file of remembered prompts is damaged and could not be renamed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::label_studio::LabelStudio;

    /// Waits until the thread has written.
    fn eventually(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the change was not written within 20 s"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn prompt_on_disk(folder: &Path) -> Option<String> {
        ProjectStore::open_read_only(folder)
            .project("7.1")
            .typed_prompt
    }

    #[test]
    fn prompts_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let models = folder.path().join("models");
        let store = ProjectStore::open(&models);
        let extra = json!({"prompt": "pot", "box_threshold": 0.4});
        store.apply_setup("7.1", &extra, LabelStudio::default());
        assert_eq!(store.project("7.1").prompt(), Some("pot"));
        store.remember_prompt("7.1", "bok choi");
        // a prompt in extra_params takes precedence as long as it is set
        assert_eq!(store.project("7.1").prompt(), Some("pot"));
        let extra = json!({"box_threshold": 0.4});
        store.apply_setup("7.1", &extra, LabelStudio::default());
        assert_eq!(store.project("7.1").prompt(), Some("bok choi"));
        assert_eq!(store.name_of_number(7).as_deref(), Some("7.1"));
        assert_eq!(store.name_of_number(71), None);
        eventually(|| prompt_on_disk(&models).as_deref() == Some("bok choi"));
        let again = ProjectStore::open(&models);
        assert_eq!(again.project("7.1").settings.box_threshold, Some(0.4));
        again.apply_setup("7.1", &json!({"prompt": "cup"}), LabelStudio::default());
        assert_eq!(again.project("7.1").prompt(), Some("cup"));
    }

    #[test]
    fn a_file_of_an_older_version_is_migrated_and_a_copy_is_kept() {
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
        let store = ProjectStore::open(folder.path());
        let typed = |project: &str| store.project(project).typed_prompt;
        assert_eq!(typed("1.1"), None);
        assert_eq!(store.project("1.1").prompt(), Some("pot"));
        assert_eq!(typed("2.1").as_deref(), Some("cup"));
        assert_eq!(store.project("3.1").prompt(), Some("cup"));
        let copy = Connection::open(folder.path().join("groundling.sqlite3.before-1")).unwrap();
        assert_eq!(all(&copy).unwrap()[0].prompt.as_deref(), Some("pot"));
        // a second start has nothing to migrate
        drop(store);
        assert_eq!(
            ProjectStore::open(folder.path()).project("3.1").prompt(),
            Some("cup")
        );
    }

    #[test]
    fn a_forgotten_project_is_deleted_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = ProjectStore::open(folder.path());
        store.max_projects = 1;
        store.remember_prompt("1.1", "pot");
        store.remember_prompt("2.1", "dog");
        let on_disk = |name: &str| {
            let store = ProjectStore::open_read_only(folder.path());
            store.project(name).typed_prompt
        };
        eventually(|| on_disk("2.1").is_some());
        assert_eq!(on_disk("1.1"), None);
    }

    #[test]
    fn two_servers_can_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (
            ProjectStore::open(folder.path()),
            ProjectStore::open(folder.path()),
        );
        one.remember_prompt("7.1", "dog");
        eventually(|| prompt_on_disk(folder.path()).is_some());
        two.apply_setup(
            "7.1",
            &json!({"box_threshold": 0.4}),
            LabelStudio::default(),
        );
        let on_disk = || ProjectStore::open_read_only(folder.path()).project("7.1");
        eventually(|| on_disk().settings.box_threshold == Some(0.4));
        assert_eq!(on_disk().prompt(), Some("dog"));
    }

    #[test]
    fn a_damaged_or_deleted_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        fs::write(
            &file,
            "this is not a database, but long enough to be checked for being one",
        )
        .unwrap();
        let store = ProjectStore::open(folder.path());
        store.remember_prompt("7.1", "dog");
        eventually(|| file.exists() && prompt_on_disk(folder.path()).is_some());
        assert!(folder.path().join("groundling.sqlite3.damaged").exists());
        // the file is damaged, and then deleted, while the server runs
        fs::write(
            &file,
            "not a database any more, but still as long as a header of one",
        )
        .unwrap();
        store.remember_prompt("7.1", "cow");
        eventually(|| prompt_on_disk(folder.path()).as_deref() == Some("cow"));
        fs::remove_file(&file).unwrap();
        store.remember_prompt("7.1", "cat");
        eventually(|| file.exists() && prompt_on_disk(folder.path()).as_deref() == Some("cat"));

        // a folder that cannot be created
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let store = ProjectStore::open(&blocked.join("models"));
        store.remember_prompt("7.1", "dog");
        assert_eq!(store.project("7.1").prompt(), Some("dog"));
    }
}
