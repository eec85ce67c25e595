//! Keeps the projects in a database: a thread writes the changes of this server, and reads those of others.
//!
//! Requests are answered from memory, so they go on while the database is away. Changes wait meanwhile, and are written in
//! their order when it is back.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::store::{ProjectMap, ProjectStore, Writer};

/// A project as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredProject {
    pub(super) project: String,
    pub(super) prompt: Option<String>,
    pub(super) extra_params: String,
}

/// A change to a stored project. It has only the changed columns, because another server may share the database.
#[derive(Debug)]
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

impl Change {
    /// The name of the changed project.
    pub(super) fn project(&self) -> &str {
        match self {
            Self::Write { project, .. } | Self::Delete { project } => project,
        }
    }
}

/// Where the projects are stored, so that they survive a restart.
pub(super) trait Database: Send + 'static {
    /// How often the changes of other servers are read; `None` if only this server writes while it runs.
    const POLL_INTERVAL: Option<Duration>;
    /// Delay before a failed call is repeated.
    const RETRY_DELAY: Duration;
    /// Why a call failed.
    type Error: Display;

    /// Its name in log lines, without a password.
    fn name(&self) -> String;

    /// The projects that any server changed since the last call, from the least to the most recently changed. The first
    /// call returns all projects.
    ///
    /// # Errors
    /// If the database cannot be read; the next call connects again.
    fn changed(&mut self) -> Result<Vec<StoredProject>, Self::Error>;

    /// Writes a change.
    ///
    /// # Errors
    /// If the database cannot be written; the next call connects again.
    fn write(&mut self, change: &Change) -> Result<(), WriteError<Self::Error>>;
}

/// Why a change was not written.
#[derive(Debug)]
pub(super) enum WriteError<E> {
    /// A later attempt may succeed.
    Later(E),
    /// The database refuses this change; SQLite refuses none.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    Never(E),
}

/// A change in the queue of the thread.
#[derive(Debug)]
pub(super) struct QueuedChange {
    pub(super) change: Change,
    /// Notified when the change is written.
    pub(super) written: oneshot::Sender<()>,
}

/// Limit of unwritten changes that are kept for a retry; beyond it the oldest is dropped.
const MAX_UNWRITTEN: usize = 10_000;

impl ProjectStore {
    /// Reads all projects, and starts the thread that writes changes and reads those of other servers. If the database
    /// cannot be read, the store starts empty, and the thread reads it later.
    pub(super) fn with_database(database: impl Database) -> Self {
        let mut store = Self::in_memory();
        let is_available = Arc::new(AtomicBool::new(false));
        let (changes, queue) = mpsc::channel();
        let (first_read, wait) = mpsc::channel();
        let mut worker = Worker {
            database,
            projects: store.projects.clone(),
            unwritten: VecDeque::new(),
            is_available: is_available.clone(),
        };
        let started = std::thread::Builder::new()
            .name("projects".to_owned())
            .spawn(move || {
                worker.read_all();
                drop(first_read);
                worker.run(&queue);
            });
        match started {
            Ok(_) => {
                // an error: the thread has dropped its end after the first read
                let _: Result<(), _> = wait.recv();
                store.writer = Some(Writer {
                    changes,
                    is_available,
                });
            }
            Err(error) => {
                tracing::warn!(%error, "prompts are not remembered across restarts, because the thread for the database could not be started");
            }
        }
        store
    }
}

/// The thread's state.
struct Worker<D> {
    database: D,
    projects: ProjectMap,
    unwritten: VecDeque<QueuedChange>,
    /// Whether the last call succeeded.
    is_available: Arc<AtomicBool>,
}

impl<D: Database> Worker<D> {
    /// Reads all projects for the first time.
    fn read_all(&mut self) {
        match self.database.changed() {
            Ok(stored) => {
                self.is_available.store(true, Ordering::Relaxed);
                self.projects.take_over(stored);
            }
            Err(error) => tracing::warn!(
                database = self.database.name(),
                %error,
                "the remembered prompts cannot be read; the server goes on without them and tries again"
            ),
        }
    }

    /// Works until every sender of changes is dropped.
    fn run(mut self, changes: &Receiver<QueuedChange>) {
        let mut last_poll = Instant::now();
        loop {
            let received = match self.delay(last_poll.elapsed()) {
                Some(delay) => changes.recv_timeout(delay),
                None => changes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let is_last = matches!(received, Err(RecvTimeoutError::Disconnected));
            self.unwritten.extend(received.ok());
            self.write_unwritten();
            if is_last {
                return;
            }
            if self.unwritten.is_empty() && self.delay(last_poll.elapsed()) == Some(Duration::ZERO)
            {
                self.read_changes();
                last_poll = Instant::now();
            }
        }
    }

    /// How long to wait for a change, when the last poll was `since_poll` ago; `None` without a limit.
    fn delay(&self, since_poll: Duration) -> Option<Duration> {
        if !self.unwritten.is_empty() {
            return Some(D::RETRY_DELAY);
        }
        let interval = match self.is_available.load(Ordering::Relaxed) {
            true => D::POLL_INTERVAL?,
            false => D::RETRY_DELAY,
        };
        Some(interval.saturating_sub(since_poll))
    }

    /// Writes the changes in their order. Those that cannot be written now, for example on a full disk, are kept.
    fn write_unwritten(&mut self) {
        while let Some(QueuedChange { change, written }) = self.unwritten.pop_front() {
            match self.database.write(&change) {
                Ok(()) => {
                    self.available();
                    self.projects.written(change.project());
                    // the receiver may be gone already
                    let _ = written.send(());
                }
                Err(WriteError::Never(error)) => {
                    self.projects.written(change.project());
                    tracing::warn!(
                        database = self.database.name(),
                        project = change.project(),
                        %error,
                        "a change of a project cannot be written, and will be lost at a restart"
                    );
                }
                Err(WriteError::Later(error)) => {
                    self.unavailable(&error);
                    self.unwritten.push_front(QueuedChange { change, written });
                    break;
                }
            }
        }
        if self.unwritten.len() > MAX_UNWRITTEN {
            let dropped = self.unwritten.pop_front();
            if let Some(dropped) = dropped {
                self.projects.written(dropped.change.project());
            }
        }
    }

    /// Takes over the changes of other servers.
    fn read_changes(&mut self) {
        match self.database.changed() {
            Ok(stored) => {
                self.available();
                self.projects.take_over(stored);
            }
            Err(error) => self.unavailable(&error),
        }
    }

    fn available(&self) {
        if !self.is_available.swap(true, Ordering::Relaxed) {
            tracing::info!(
                database = self.database.name(),
                "the database of remembered prompts is available again"
            );
        }
    }

    /// Says once that the database is away.
    fn unavailable(&self, error: &impl Display) {
        if self.is_available.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                database = self.database.name(),
                %error,
                "the database of remembered prompts cannot be used; the server goes on from memory and tries again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard};

    use serde_json::json;

    use super::*;
    use crate::label_studio::LabelStudio;

    /// A database in memory, which several stores share and which can be away.
    #[derive(Debug, Clone, Default)]
    struct SharedDatabase(Arc<Mutex<Rows>>);

    #[derive(Debug, Default)]
    struct Rows {
        /// The rows with the numbers of their last changes.
        rows: Vec<(u64, StoredProject)>,
        changes: u64,
        is_away: bool,
    }

    /// A store's connection to it.
    #[derive(Debug)]
    struct Connection {
        database: SharedDatabase,
        seen: u64,
    }

    impl SharedDatabase {
        fn lock(&self) -> MutexGuard<'_, Rows> {
            self.0.lock().unwrap()
        }

        fn store(&self) -> ProjectStore {
            ProjectStore::with_database(Connection {
                database: self.clone(),
                seen: 0,
            })
        }

        fn prompt(&self, project: &str) -> Option<String> {
            let rows = self.lock();
            let mut rows = rows.rows.iter();
            let (_, row) = rows.find(|(_, row)| row.project == project)?;
            row.prompt.clone()
        }
    }

    impl Database for Connection {
        const POLL_INTERVAL: Option<Duration> = Some(Duration::from_millis(5));
        const RETRY_DELAY: Duration = Duration::from_millis(5);
        type Error = &'static str;

        fn name(&self) -> String {
            "database in memory".to_owned()
        }

        fn changed(&mut self) -> Result<Vec<StoredProject>, &'static str> {
            let rows = self.database.lock();
            if rows.is_away {
                return Err("away");
            }
            let since = std::mem::replace(&mut self.seen, rows.changes);
            let mut changed: Vec<_> = rows.rows.iter().filter(|row| row.0 > since).collect();
            changed.sort_by_key(|row| row.0);
            Ok(changed.into_iter().map(|row| row.1.clone()).collect())
        }

        fn write(&mut self, change: &Change) -> Result<(), WriteError<&'static str>> {
            let mut rows = self.database.lock();
            if rows.is_away {
                return Err(WriteError::Later("away"));
            }
            rows.changes += 1;
            let number = rows.changes;
            let index = rows
                .rows
                .iter()
                .position(|row| row.1.project == change.project());
            match change {
                Change::Delete { .. } => {
                    index.map(|index| rows.rows.remove(index));
                }
                Change::Write { prompt, .. } if prompt == &Some(Some("refused".to_owned())) => {
                    return Err(WriteError::Never("refused"));
                }
                Change::Write {
                    project,
                    prompt,
                    extra_params,
                } => {
                    let mut row = match index {
                        Some(index) => rows.rows.remove(index).1,
                        None => StoredProject {
                            project: project.clone(),
                            prompt: None,
                            extra_params: String::new(),
                        },
                    };
                    row.prompt = prompt.clone().unwrap_or(row.prompt);
                    row.extra_params = extra_params.clone().unwrap_or(row.extra_params);
                    rows.rows.push((number, row));
                }
            }
            Ok(())
        }
    }

    fn eventually(is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn typed(store: &ProjectStore, project: &str) -> Option<String> {
        store.project(project).typed_prompt
    }

    #[test]
    fn servers_with_one_database_see_each_others_changes() {
        let database = SharedDatabase::default();
        let (one, two) = (database.store(), database.store());
        one.remember_prompt("7.1", "dog");
        eventually(|| typed(&two, "7.1").as_deref() == Some("dog"));
        let extra = json!({"box_threshold": 0.4});
        two.apply_setup("7.1", &extra, LabelStudio::default());
        eventually(|| one.project("7.1").settings.box_threshold == Some(0.4));
        // the other column is as it was
        assert_eq!(typed(&one, "7.1").as_deref(), Some("dog"));
        // a server that starts later
        assert_eq!(typed(&database.store(), "7.1").as_deref(), Some("dog"));
    }

    #[test]
    fn a_server_goes_on_while_the_database_is_away_and_catches_up() {
        let database = SharedDatabase::default();
        let (one, two) = (database.store(), database.store());
        one.remember_prompt("7.1", "dog");
        one.remember_prompt("8.1", "cow");
        eventually(|| typed(&two, "8.1").is_some());
        database.lock().is_away = true;
        // also one that starts meanwhile
        let late = database.store();
        assert_eq!(typed(&late, "7.1"), None);
        one.remember_prompt("7.1", "cat");
        assert_eq!(typed(&one, "7.1").as_deref(), Some("cat"));
        two.remember_prompt("8.1", "bird");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(database.prompt("7.1").as_deref(), Some("dog"));
        database.lock().is_away = false;
        for store in [&one, &two, &late] {
            eventually(|| typed(store, "7.1").as_deref() == Some("cat"));
            eventually(|| typed(store, "8.1").as_deref() == Some("bird"));
        }
    }

    #[test]
    fn a_change_that_the_database_refuses_does_not_stop_later_ones() {
        let database = SharedDatabase::default();
        let store = database.store();
        store.remember_prompt("7.1", "refused");
        store.remember_prompt("8.1", "dog");
        eventually(|| database.prompt("8.1").is_some());
        assert_eq!(typed(&store, "7.1").as_deref(), Some("refused"));
    }

    #[tokio::test]
    async fn an_answer_does_not_wait_for_a_database_that_is_away() {
        let database = SharedDatabase::default();
        let store = database.store();
        database.lock().is_away = true;
        // the first change notices it, and waits at most a second
        store.remember_prompt("7.1", "dog").done().await;
        let start = Instant::now();
        for prompt in ["a", "b", "c", "d"] {
            store.remember_prompt("7.1", prompt).done().await;
        }
        assert!(start.elapsed() < Duration::from_millis(500));
        database.lock().is_away = false;
        eventually(|| database.prompt("7.1").as_deref() == Some("d"));
    }
}
