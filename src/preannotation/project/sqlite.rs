//! The SQLite file that stores the projects: its schema, migration, and repair.
//!
//! A damaged file is renamed and replaced by a new one. A file of an older version is migrated, and a copy of the old
//! file is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use serde_json::Value;

use super::settings::ProjectSettings;
use super::store::{Change, StoredProject};

/// The name of the file in `MODEL_DIR`.
pub(super) const FILE: &str = "groundling.sqlite3";

pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS projects (
    project TEXT PRIMARY KEY, prompt TEXT, extra_params TEXT NOT NULL DEFAULT '', updated_at INTEGER NOT NULL
)";

/// The file's `user_version` since typed prompts and prompts from `extra_params` are stored separately.
const VERSION: i64 = 1;

/// Why a change could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The folder of the file cannot be created.
    #[error("its folder cannot be created: {0}")]
    Folder(std::io::Error),
    /// SQLite failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// The file, opened for writing when it is first needed.
#[derive(Debug)]
pub(super) struct ProjectFile {
    path: PathBuf,
    connection: Option<Connection>,
}

impl ProjectFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            connection: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a change. If the file turns out to be damaged, it is renamed and the change is written to a new file.
    ///
    /// # Errors
    /// If the file cannot be written; the next call opens it again.
    pub(super) fn write(&mut self, change: &Change) -> Result<(), WriteError> {
        match self.try_write(change) {
            Err(WriteError::Sqlite(error)) if is_damaged(&error) => {
                self.connection = None;
                rename_damaged(&self.path);
                self.try_write(change)
            }
            result => result,
        }
        .inspect_err(|_| self.connection = None)
    }

    fn try_write(&mut self, change: &Change) -> Result<(), WriteError> {
        let connection = match self.connection.take() {
            // the file may have been deleted while the server runs
            Some(connection) if self.path.exists() => connection,
            _ => {
                if let Some(folder) = self.path.parent() {
                    fs::create_dir_all(folder).map_err(WriteError::Folder)?;
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
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<StoredProject>> {
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
pub(super) fn load(path: &Path) -> Vec<StoredProject> {
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
pub(super) fn load_read_only(path: &Path) -> Vec<StoredProject> {
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
