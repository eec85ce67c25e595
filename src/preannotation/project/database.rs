//! Writes changes of projects to the SQLite file, on a thread of its own.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::file::{FILE, ProjectFile, load, load_read_only};
use super::store::{ProjectStore, QueuedChange};

/// Limit of unwritten changes that are kept for a retry; beyond it the oldest is dropped.
const MAX_UNWRITTEN: usize = 10_000;
/// Delay before unwritten changes are retried.
const RETRY_DELAY: Duration = Duration::from_secs(10);

impl ProjectStore {
    /// Reads the file in `folder` and starts the thread that writes it. A damaged file is renamed; the folder is
    /// created at the first write.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join(FILE);
        let stored = if path.exists() { load(&path) } else { vec![] };
        let (writer, changes) = mpsc::channel();
        let started = std::thread::Builder::new()
            .name("projects".to_owned())
            .spawn(move || write_all(path, &changes));
        if let Err(error) = &started {
            tracing::warn!(%error, "prompts will be lost at a restart, because the thread that writes them could not be started");
        }
        Self::new(stored, started.is_ok().then_some(writer))
    }

    /// Reads the file in `folder` without writing to it: for inspecting what a server remembers.
    pub fn open_read_only(folder: &Path) -> Self {
        Self::new(load_read_only(&folder.join(FILE)), None)
    }
}

/// Writes changes as they arrive, until every sender is dropped. Changes that cannot be written, for example on a
/// full disk, are retried in order.
fn write_all(path: PathBuf, changes: &mpsc::Receiver<QueuedChange>) {
    let (mut file, mut unwritten) = (ProjectFile::new(path), VecDeque::new());
    loop {
        let received = match unwritten.is_empty() {
            true => changes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => changes.recv_timeout(RETRY_DELAY),
        };
        let is_last = match received {
            Ok(change) => {
                unwritten.push_back(change);
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        while let Some(QueuedChange { change, written }) = unwritten.pop_front() {
            match file.write(&change) {
                // the receiver may be gone already
                Ok(()) => drop(written.send(())),
                Err(error) => {
                    tracing::warn!(
                        file = %file.path().display(),
                        %error,
                        "a change of a project could not be written and is retried; it would be lost at a restart"
                    );
                    unwritten.push_front(QueuedChange { change, written });
                    break;
                }
            }
        }
        if unwritten.len() > MAX_UNWRITTEN {
            unwritten.pop_front();
        }
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use rusqlite::{Connection, params};
    use serde_json::json;

    use super::super::file::{SCHEMA, all};
    use super::*;
    use crate::label_studio::LabelStudio;

    /// Waits until the writer thread has written.
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
