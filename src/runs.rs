//! What the commands for whole projects are doing (`annotate`, `warm`, `evaluate`), for the status page of a server that has
//! the same `MODEL_DIR`: each run writes its progress to a file there.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The folder of the files in `MODEL_DIR`.
const FOLDER: &str = "runs";
/// Interval between two writes of a run.
const INTERVAL: Duration = Duration::from_secs(1);
/// A run that does not end, and has written nothing for this time, was killed.
const SILENT: Duration = Duration::from_secs(60);
/// Files of runs are removed after this time.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Limit of the runs that are listed, and of the size of a file in bytes.
const MAX_RUNS: usize = 50;
const MAX_BYTES: u64 = 64 << 10;

/// The progress of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunProgress {
    /// The command, such as `annotate`.
    pub command: String,
    /// The number of the project.
    pub project: u64,
    /// Number of tasks; an estimate.
    pub total: u64,
    /// Tasks that are done, those that failed included.
    pub done: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// Seconds since 1970.
    started: u64,
    /// Seconds since 1970.
    updated: u64,
    has_ended: bool,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It goes on.
    Running,
    /// It has ended.
    Ended,
    /// It gives no sign of life.
    Silent,
}

impl RunProgress {
    /// What the run is doing.
    pub fn state(&self) -> RunState {
        match now().saturating_sub(self.updated) > SILENT.as_secs() {
            _ if self.has_ended => RunState::Ended,
            true => RunState::Silent,
            false => RunState::Running,
        }
    }

    /// Time since the start.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.started))
    }
}

/// Writes the progress of a run of this process. It is written for the last time when this is dropped. A folder that cannot
/// be written to is no error, because the progress is only for people.
#[derive(Debug)]
pub struct RunFile {
    path: PathBuf,
    progress: RunProgress,
    written: Option<Instant>,
}

impl RunFile {
    /// Starts a run. Old files of other runs are removed.
    pub fn start(model_dir: &Path, command: &str, project: u64) -> Self {
        let folder = model_dir.join(FOLDER);
        remove_old(&folder);
        let now = now();
        Self {
            path: folder.join(format!(
                "{command}-{project}-{}-{now}.json",
                std::process::id()
            )),
            progress: RunProgress {
                command: command.to_owned(),
                project,
                total: 0,
                done: 0,
                failed: 0,
                last_error: None,
                started: now,
                updated: now,
                has_ended: false,
            },
            written: None,
        }
    }

    /// Sets the number of tasks.
    pub fn set_total(&mut self, total: u64) {
        self.progress.total = total;
        self.write(false);
    }

    /// Counts a task that is done.
    pub fn step(&mut self) {
        self.progress.done += 1;
        self.write(false);
    }

    /// Counts a failure of a task, which is also counted by [`Self::step`].
    pub fn fail(&mut self, error: String) {
        self.progress.failed += 1;
        self.progress.last_error = Some(error);
    }

    fn write(&mut self, is_last: bool) {
        if !is_last
            && self
                .written
                .is_some_and(|written| written.elapsed() < INTERVAL)
        {
            return;
        }
        self.written = Some(Instant::now());
        self.progress.updated = now();
        self.progress.has_ended = is_last;
        if let Err(error) = self.try_write() {
            tracing::debug!(
                "the progress cannot be written to {}: {error}",
                self.path.display()
            );
        }
    }

    fn try_write(&self) -> std::io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        // readers never see half a file
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(&self.progress)?)?;
        fs::rename(&new, &self.path)
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        self.write(true);
    }
}

/// The runs whose files are in a `MODEL_DIR`, the last one first.
pub fn list(model_dir: &Path) -> Vec<RunProgress> {
    let mut runs: Vec<RunProgress> = files(&model_dir.join(FOLDER))
        .filter(|(_, metadata)| metadata.len() <= MAX_BYTES)
        .filter_map(|(path, _)| serde_json::from_slice(&fs::read(path).ok()?).ok())
        .collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run.started));
    runs.truncate(MAX_RUNS);
    runs
}

/// The files of runs in a folder.
fn files(folder: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let path = entry.path();
        (path.extension()? == "json").then_some((path, metadata))
    })
}

fn remove_old(folder: &Path) {
    for (path, metadata) in files(folder) {
        let age = metadata
            .modified()
            .ok()
            .and_then(|modified| modified.elapsed().ok());
        if age.is_some_and(|age| age > KEPT) {
            // another run may have removed it
            let _ = fs::remove_file(path);
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_listed_while_it_works_and_after_its_end() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(list(folder.path()), []);
        let mut run = RunFile::start(folder.path(), "annotate", 7);
        run.set_total(3);
        let [listed] = &list(folder.path())[..] else {
            panic!("the run is not listed");
        };
        assert_eq!(
            (listed.total, listed.done, listed.state()),
            (3, 0, RunState::Running)
        );
        run.fail("the image is gone".to_owned());
        run.step();
        run.step();
        drop(run);
        let [listed] = &list(folder.path())[..] else {
            panic!("the run is not listed");
        };
        assert_eq!(
            (listed.done, listed.failed, listed.state()),
            (2, 1, RunState::Ended)
        );
        assert_eq!(listed.last_error.as_deref(), Some("the image is gone"));
        let silent = RunProgress {
            has_ended: false,
            updated: 0,
            ..listed.clone()
        };
        assert_eq!(silent.state(), RunState::Silent);
    }

    #[test]
    fn files_that_are_not_runs_are_ignored_and_a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(FOLDER)).unwrap();
        for (name, contents) in [("a.json", "{"), ("b.json", "[]"), ("c.txt", "{}")] {
            fs::write(folder.path().join(FOLDER).join(name), contents).unwrap();
        }
        assert_eq!(list(folder.path()), []);
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        RunFile::start(&file, "warm", 1).set_total(3);
        assert_eq!(list(&file), []);
    }
}
