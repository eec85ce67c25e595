//! The SQLite file that projects are remembered in: read when the program starts, and written by a thread of its own.
//!
//! A file that is damaged is put aside, and one of an older version is brought up to date, with a copy of it kept.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};
use serde_json::Value;
use tokio::sync::oneshot;

use super::settings::ProjectSettings;

/// A row of the file.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) project: String,
    pub(super) prompt: Option<String>,
    pub(super) extra_params: String,
}

/// What is to be written of a project: only what changed, for another server may share the file.
#[derive(Debug)]
pub(super) enum Change {
    /// What is to be written.
    Write {
        project: String,
        prompt: Option<Option<String>>,
        extra_params: Option<String>,
    },
    /// It is remembered no more.
    Forget { project: String },
}

/// A change on its way to the file.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) change: Change,
    /// Told when it is in the file.
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

/// What the file's `user_version` says where prompts that annotators typed and those of `extra_params` are apart.
const VERSION: i64 = 1;

/// Brings a file of an older groundling up to date, and keeps a copy of it as it was.
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
    // another server that shares the file may have been faster
    if version(&change)? < VERSION {
        for row in rows(&change)? {
            let (settings, _) = ProjectSettings::parse(&Value::String(row.extra_params));
            // until then a prompt of extra_params was written down as if it had been typed
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

/// All rows; none of a file that cannot be read, which is put aside if it is damaged.
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

/// All rows of somebody else's file; none if it cannot be read.
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

/// Changes that could not be written and are kept for another try; beyond these the oldest is given up.
const MOST_WAITING: usize = 10_000;
/// After this time what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Writes changes as they come, until every handle of the memory is gone. What cannot be written, as on a full disk, is
/// tried again, in its order.
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
                // nobody needs to wait for it
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

/// Writes a change; a file that turns out to be damaged is put aside, and a new one is begun.
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
    // all of it or nothing, whenever the process is killed
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
