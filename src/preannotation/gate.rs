//! How many tasks may be on their way: an image is held in memory from its fetching to its prediction.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::pipeline::worker::WorkerError;

/// Who waits for a prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// An annotator in the editor; refused at once where too many wait.
    Interactive,
    /// Nobody in particular; waits as long as it takes.
    Batch,
}

/// The way in; those who wait hold no image.
#[derive(Debug)]
pub struct Gate {
    /// Interactive requests that may wait or be served.
    queue: Semaphore,
    size: usize,
    interactive: Semaphore,
    /// Of its own, so that an annotator waits for a few tasks of a batch at most.
    batch: Semaphore,
}

/// Interactive requests whose images are in memory.
const INTERACTIVE_AT_ONCE: usize = 4;
/// Tasks of batches whose images are in memory: while one is computed, the next is fetched.
pub(super) const BATCH_AT_ONCE: usize = 2;

/// The most jobs that reach the model thread at a time.
pub const JOBS: usize = INTERACTIVE_AT_ONCE + BATCH_AT_ONCE;

/// Somebody's place; gives it back when dropped.
#[derive(Debug)]
pub(super) struct Place<'a> {
    _own: SemaphorePermit<'a>,
    _queued: Option<SemaphorePermit<'a>>,
}

impl Gate {
    /// For `queue` interactive requests.
    pub fn new(queue: usize) -> Self {
        let size = queue.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            queue: Semaphore::new(size),
            size,
            interactive: Semaphore::new(INTERACTIVE_AT_ONCE),
            batch: Semaphore::new(BATCH_AT_ONCE),
        }
    }

    /// How many interactive requests wait or are served.
    pub fn waiting(&self) -> usize {
        self.size - self.queue.available_permits()
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`WorkerError::Busy`] for an interactive request where too many wait.
    pub(super) async fn enter(&self, urgency: Urgency) -> Result<Place<'_>, WorkerError> {
        // the semaphores are never closed
        let stopped = |_| WorkerError::Stopped;
        match urgency {
            Urgency::Interactive => {
                let queued = self
                    .queue
                    .try_acquire()
                    .map_err(|_| WorkerError::Busy(self.size))?;
                Ok(Place {
                    _own: self.interactive.acquire().await.map_err(stopped)?,
                    _queued: Some(queued),
                })
            }
            Urgency::Batch => Ok(Place {
                _own: self.batch.acquire().await.map_err(stopped)?,
                _queued: None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn annotators_are_refused_when_too_many_wait_and_batches_wait() {
        let gate = Gate::new(5);
        let mut places = vec![];
        for _ in 0..INTERACTIVE_AT_ONCE {
            places.push(gate.enter(Urgency::Interactive).await.unwrap());
        }
        let fifth = gate.enter(Urgency::Interactive);
        tokio::pin!(fifth);
        assert!(timeout(SOON, &mut fifth).await.is_err());
        assert_eq!(gate.waiting(), 5);
        let sixth = gate.enter(Urgency::Interactive).await.unwrap_err();
        assert!(matches!(sixth, WorkerError::Busy(5)));
        places.pop();
        fifth.await.unwrap();
        let batch = [
            gate.enter(Urgency::Batch).await.unwrap(),
            gate.enter(Urgency::Batch).await.unwrap(),
        ];
        let third = gate.enter(Urgency::Batch);
        tokio::pin!(third);
        assert!(timeout(SOON, &mut third).await.is_err());
        drop(batch);
        third.await.unwrap();
    }
}
