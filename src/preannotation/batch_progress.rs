//! The batches in progress and the last ones that ended, for people who look at the status page.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Number of ended batches that are remembered.
const REMEMBERED: usize = 20;

/// What was done of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchProgress {
    /// The name of the project as Label Studio sends it; may be empty.
    pub project: String,
    /// Number of tasks.
    pub total: usize,
    /// Tasks with a prediction.
    pub done: usize,
    /// Tasks without one, because of an error.
    pub failed: usize,
    /// The last error.
    pub last_error: Option<String>,
    /// Time since the start.
    pub age: Duration,
    /// Whether it goes on.
    pub is_running: bool,
}

/// The batches of the server; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Batches(Arc<Mutex<VecDeque<(u64, Instant, BatchProgress)>>>);

/// A batch in progress. When it is dropped, the batch has ended.
#[derive(Debug)]
pub(super) struct RunningBatch {
    batches: Batches,
    number: u64,
}

impl Batches {
    /// Adds a batch.
    pub(super) fn start(&self, project: &str, total: usize) -> RunningBatch {
        let mut batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = batches.back().map_or(0, |(number, ..)| number + 1);
        let progress = BatchProgress {
            project: project.to_owned(),
            total,
            done: 0,
            failed: 0,
            last_error: None,
            age: Duration::ZERO,
            is_running: true,
        };
        batches.push_back((number, Instant::now(), progress));
        RunningBatch {
            batches: self.clone(),
            number,
        }
    }

    /// All batches, the last one first.
    pub(super) fn list(&self) -> Vec<BatchProgress> {
        let batches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = batches
            .iter()
            .rev()
            .map(|(_, start, progress)| BatchProgress {
                age: start.elapsed(),
                ..progress.clone()
            });
        list.collect()
    }
}

impl RunningBatch {
    /// Counts a task.
    pub(super) fn count<E: std::fmt::Display>(&self, error: Option<&E>) {
        self.change(|progress| match error {
            None => progress.done += 1,
            Some(error) => {
                progress.failed += 1;
                progress.last_error = Some(error.to_string());
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut BatchProgress)) {
        let mut batches = self
            .batches
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let own = batches
            .iter_mut()
            .find(|(number, ..)| *number == self.number);
        if let Some((_, _, progress)) = own {
            change(progress);
        }
    }
}

impl Drop for RunningBatch {
    fn drop(&mut self) {
        self.change(|progress| progress.is_running = false);
        let mut batches = self
            .batches
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let ended = batches.iter().filter(|(.., progress)| !progress.is_running);
        if ended.count() > REMEMBERED {
            let oldest = batches
                .iter()
                .position(|(.., progress)| !progress.is_running);
            oldest.map(|i| batches.remove(i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_listed_while_they_run_and_the_last_ones_afterwards() {
        let batches = Batches::default();
        let running = batches.start("7.1", 3);
        running.count(None::<&String>);
        running.count(Some(&"the image is gone"));
        for _ in 0..REMEMBERED + 5 {
            drop(batches.start("8.1", 1));
        }
        let list = batches.list();
        assert_eq!(list.len(), REMEMBERED + 1);
        let first = list.last().unwrap();
        assert_eq!((first.done, first.failed, first.is_running), (1, 1, true));
        assert_eq!(first.last_error.as_deref(), Some("the image is gone"));
        drop(running);
        assert!(batches.list().iter().all(|batch| !batch.is_running));
    }
}
