//! The SQLite file that stores project settings. It is read when the program starts, and a separate thread writes it.
//!
//! A damaged file is renamed and replaced by a new one. A file of an older version is migrated, and a copy of the old
//! file is kept.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use serde_json::Value;
use tokio::sync::oneshot;

use super::settings::ProjectSettings;

/// A row of the table `projects`.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) project: String,
    pub(super) prompt: Option<String>,
    pub(super) extra_params: String,
}

/// A change to a project's row. It holds only the changed columns, because another server may share the file.
#[derive(Debug)]
pub(super) enum Change {
    /// Columns to write; `None` leaves a column as it is.
    Write {
        project: String,
        prompt: Option<Option<String>>,
        extra_params: Option<String>,
    },
    /// Deletes the row.
    Forget { project: String },
}

/// A queued change.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) change: Change,
    /// Notified when the change is in the file.
    pub(super) written: oneshot::Sender<()>,
}

/// The name of the file in `MODEL_DIR`.
pub const FILE: &str = "groundling.sqlite3";

pub(super) const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS projects (
    project TEXT PRIMARY KEY, prompt TEXT, extra_params TEXT NOT NULL DEFAULT '', updated_at INTEGER NOT NULL
)";

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let is_new = !file.exists();
    let mut connection = Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.execute(SCHEMA, [])?;
    migrate(&mut connection, file, is_new)?;
    Ok(connection)
}

/// The file's `user_version` since typed prompts and prompts from `extra_params` are stored separately.
const VERSION: i64 = 1;

/// Migrates a file of an older groundling, and keeps a copy of the old file.
fn migrate(connection: &mut Connection, file: &Path, is_new: bool) -> rusqlite::Result<()> {
    let version = |connection: &Connection| -> rusqlite::Result<i64> {
        connection.query_row("PRAGMA user_version", [], |row| row.get(0))
    };
    if is_new {
        return connection.pragma_update(None, "user_version", VERSION);
    }
    if version(connection)? >= VERSION {
        return Ok(());
    }
    let copy = file.with_extension("sqlite3.before-1");
    if !copy.exists() {
        connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()])?;
    }
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // another server that shares the file may have migrated it in the meantime
    if version(&change)? < VERSION {
        for row in rows(&change)? {
            let (settings, _) = ProjectSettings::parse(&Value::String(row.extra_params));
            // older versions stored a prompt from extra_params as if it had been typed
            if row.prompt.is_some() && row.prompt == settings.prompt {
                let update = "UPDATE projects SET prompt = NULL WHERE project = ?1";
                change.execute(update, [row.project])?;
            }
        }
        change.pragma_update(None, "user_version", VERSION)?;
    }
    change.commit()?;
    tracing::info!(copy = %copy.display(), "the file of remembered prompts is up to date; it is kept as it was");
    Ok(())
}

pub(super) fn rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut query = connection
        .prepare("SELECT project, prompt, extra_params FROM projects ORDER BY updated_at, rowid")?;
    let rows = query.query_map([], |row| {
        Ok(Row {
            project: row.get(0)?,
            prompt: row.get(1)?,
            extra_params: row.get(2)?,
        })
    })?;
    rows.collect()
}

/// All rows. Returns none if the file cannot be read; a damaged file is also renamed.
pub(super) fn load(file: &Path) -> Vec<Row> {
    let read = connect(file).and_then(|connection| rows(&connection));
    read.unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "remembered prompts cannot be read");
        if is_damaged(&error) {
            put_aside(file);
        }
        vec![]
    })
}

/// All rows of a file that another process owns, opened read-only. Returns none if the file cannot be read.
pub(super) fn peek(file: &Path) -> Vec<Row> {
    if !file.exists() {
        return vec![];
    }
    let read = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .and_then(|connection| rows(&connection));
    read.unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "remembered prompts cannot be read");
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
        // the table has other columns
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

/// Limit of unwritten changes that are kept for a retry; beyond it the oldest is dropped.
const MOST_WAITING: usize = 10_000;
/// Delay before unwritten changes are retried.
const AGAIN: Duration = Duration::from_secs(10);

/// Writes changes as they arrive, until every sender is dropped. Changes that cannot be written, for example on a
/// full disk, are retried in order.
pub(super) fn write_all(file: &Path, orders: &mpsc::Receiver<Order>) {
    let (mut connection, mut waiting) = (None, VecDeque::new());
    loop {
        let order = match waiting.is_empty() {
            true => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => orders.recv_timeout(AGAIN),
        };
        let is_last = match order {
            Ok(order) => {
                waiting.push_back(order);
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        while let Some(Order { change, written }) = waiting.pop_front() {
            match write_or_begin_anew(file, &mut connection, &change) {
                // the receiver may be gone already
                Ok(()) => drop(written.send(())),
                Err(error) => {
                    let name = file.display();
                    tracing::warn!(file = %name, %error, "a prompt is not written yet: it would be forgotten at the next start");
                    connection = None;
                    waiting.push_front(Order { change, written });
                    break;
                }
            }
        }
        if waiting.len() > MOST_WAITING {
            waiting.pop_front();
        }
        if is_last {
            return;
        }
    }
}

/// Writes a change. If the file turns out to be damaged, it is renamed and the change is written to a new file.
fn write_or_begin_anew(
    file: &Path,
    connection: &mut Option<Connection>,
    change: &Change,
) -> anyhow::Result<()> {
    let written = write(file, connection, change);
    if let Err(error) = &written
        && error.downcast_ref().is_some_and(is_damaged)
    {
        *connection = None;
        put_aside(file);
        return write(file, connection, change);
    }
    written
}

fn write(file: &Path, connection: &mut Option<Connection>, change: &Change) -> anyhow::Result<()> {
    let open = match connection.take() {
        // the file may have been deleted while the server runs
        Some(open) if file.exists() => open,
        _ => {
            if let Some(folder) = file.parent() {
                fs::create_dir_all(folder)?;
            }
            connect(file)?
        }
    };
    let open = connection.insert(open);
    let (project, prompt, extra_params) = match change {
        Change::Write {
            project,
            prompt,
            extra_params,
        } => (project, prompt, extra_params),
        Change::Forget { project } => {
            open.execute("DELETE FROM projects WHERE project = ?1", [project])?;
            return Ok(());
        }
    };
    // one transaction, so that a killed process leaves no partial change
    let transaction = open.transaction()?;
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
    transaction.commit()?;
    Ok(())
}
