//! Images that are prepared before the first click on them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;
use tracing::Instrument;

/// The work in progress, and the finished work, of each open task.
#[derive(Debug, Default)]
pub(super) struct Prewarms(Mutex<HashMap<Key, AbortHandle>>);

/// A task of a project.
type Key = (String, Option<u64>);

/// Limit of the tasks that are prepared at a time; a request beyond it is not prepared. Each one waits for the scheduler, so
/// they take memory but no more cores than one.
const MAX_IN_PROGRESS: usize = 16;
/// Limit of remembered tasks.
const MAX_REMEMBERED: usize = 1000;

impl Prewarms {
    /// Starts the work for a task, unless it is already in progress. Returns whether it was done before.
    pub(super) fn start(
        &self,
        project: &str,
        task: Option<u64>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> bool {
        let key = (project.to_owned(), task);
        let mut all = self.all();
        let is_done = all.get(&key).map(AbortHandle::is_finished);
        if is_done == Some(false) {
            return false;
        }
        let in_progress = all.values().filter(|work| !work.is_finished()).count();
        if in_progress >= MAX_IN_PROGRESS {
            tracing::debug!("the image is not prepared for clicks: too many others are");
            return false;
        }
        if all.len() >= MAX_REMEMBERED {
            all.retain(|_, work| !work.is_finished());
        }
        // also if it was done before, because the result may have left the cache; else this is only a look-up
        let work = tokio::spawn(work.in_current_span());
        all.insert(key, work.abort_handle());
        is_done == Some(true)
    }

    /// Cancels the work for a task, if it is not done. A step that already computes runs to its end.
    pub(super) fn cancel(&self, project: &str, task: Option<u64>) {
        if let Some(work) = self.all().remove(&(project.to_owned(), task)) {
            work.abort();
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Key, AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_task_is_prepared_once_and_can_be_left() {
        let (prewarms, started) = (Prewarms::default(), Arc::new(AtomicUsize::new(0)));
        let gate = Arc::new(Semaphore::new(0));
        let start = |task: u64| {
            let (started, gate) = (started.clone(), gate.clone());
            prewarms.start("7", Some(task), async move {
                started.fetch_add(1, Ordering::SeqCst);
                let _permit = gate.acquire().await;
            })
        };
        assert!(!start(1) && !start(1) && !start(2));
        tokio::task::yield_now().await;
        assert_eq!(started.load(Ordering::SeqCst), 2);
        prewarms.cancel("7", Some(2));
        gate.add_permits(1);
        while prewarms.all().values().any(|work| !work.is_finished()) {
            tokio::task::yield_now().await;
        }
        assert_eq!(prewarms.all().len(), 1);
        assert!(start(1));
        // beyond the limit, nothing is started
        for task in 10..100 {
            start(task);
        }
        tokio::task::yield_now().await;
        assert!(started.load(Ordering::SeqCst) <= 3 + MAX_IN_PROGRESS);
    }
}
