//! The one thread that computes, behind a bounded queue.
//!
//! Requests wait in async code; the models run here, one request after the other. The thread loads the
//! models itself, so that the server listens before they are there.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::{Pipeline, PredictError};
use crate::memory;

/// Where the models are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Being fetched or loaded; requests wait.
    Loading {
        /// What is being done.
        step: String,
    },
    /// Ready to compute.
    Ready {
        /// Where: `cpu` or `cuda:0`.
        device: String,
    },
    /// They will not come; the reason.
    Failed(String),
}

/// Why the worker gave no result.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Too many requests are waiting.
    #[error("{0} predictions are waiting already; try again later")]
    Busy(usize),
    /// The models could not be loaded.
    #[error("the models could not be loaded: {0}")]
    NotLoaded(String),
    /// The thread is gone.
    #[error("the model thread has stopped; restart groundling")]
    Stopped,
    /// A defect that cost this request, not the server.
    #[error("the models panicked on this request")]
    Panicked,
    /// The prediction itself failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
}

/// Tells how far the loading is.
#[derive(Debug, Clone)]
pub struct Reporter(watch::Sender<Status>);

impl Reporter {
    /// The step that is now being done.
    pub fn step(&self, step: impl Into<String>) {
        self.0.send_replace(Status::Loading { step: step.into() });
    }
}

/// What to do with the models, or with the reason why there are none.
type Job = Box<dyn FnOnce(Result<&Pipeline, &str>) + Send>;

/// A handle to the model thread; clones share it.
#[derive(Debug, Clone)]
pub struct Worker {
    jobs: mpsc::Sender<Job>,
    status: watch::Receiver<Status>,
}

impl Worker {
    /// Starts the thread, which loads the models with `load` and then serves up to `queue` waiting
    /// requests.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start<E>(
        queue: usize,
        load: impl FnOnce(Reporter) -> Result<Pipeline, E> + Send + 'static,
    ) -> std::io::Result<Self>
    where
        E: std::fmt::Display,
    {
        let (jobs, mut inbox) = mpsc::channel::<Job>(queue.max(1));
        let (report, status) = watch::channel(Status::Loading {
            step: "the models are being loaded".to_owned(),
        });
        let waiting = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()?;
        std::thread::Builder::new()
            .name("models".to_owned())
            .spawn(move || {
                let pipeline = load(Reporter(report.clone())).map_err(|error| error.to_string());
                match &pipeline {
                    Ok(pipeline) => {
                        let device = pipeline.device();
                        tracing::info!(%device, "the models are loaded");
                        report.send_replace(Status::Ready { device });
                    }
                    Err(reason) => {
                        tracing::error!(%reason, "the models could not be loaded");
                        report.send_replace(Status::Failed(reason.clone()));
                    }
                }
                // until every handle is gone
                while let Some(job) = next_job(&waiting, &mut inbox) {
                    job(pipeline.as_ref().map_err(String::as_str));
                }
            })?;
        Ok(Self { jobs, status })
    }

    /// Where the models are now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until the models are loaded, or have failed to.
    pub async fn loaded(&self) -> Status {
        let mut status = self.status.clone();
        // an error means that the thread is gone, and then the status stays as it is
        let _ = status
            .wait_for(|status| !matches!(status, Status::Loading { .. }))
            .await;
        self.status()
    }

    /// Runs `work` with the models and waits for what it gives. It is not run if nobody waits any more
    /// when its turn comes.
    ///
    /// # Errors
    /// At once if the queue is full; later if the models could not be loaded or fail.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pipeline) -> Result<T, PredictError> + Send + 'static,
    ) -> Result<T, WorkerError> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let job: Job = Box::new(move |pipeline| {
            if reply.is_closed() {
                return;
            }
            let answer = match pipeline {
                Ok(pipeline) => span.in_scope(|| caught(|| work(pipeline))),
                Err(reason) => Err(WorkerError::NotLoaded(reason.to_owned())),
            };
            // a client that has gone meanwhile needs no answer
            let _ = reply.send(answer);
        });
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WorkerError::Busy(self.jobs.max_capacity()),
            mpsc::error::TrySendError::Closed(_) => WorkerError::Stopped,
        })?;
        answer.await.unwrap_or(Err(WorkerError::Stopped))
    }
}

/// How long memory is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);

/// Waits for the next job; where none comes for a while, memory that is kept is given back first.
fn next_job(waiting: &tokio::runtime::Runtime, inbox: &mut mpsc::Receiver<Job>) -> Option<Job> {
    let soon = waiting.block_on(async { tokio::time::timeout(IDLE, inbox.recv()).await });
    soon.unwrap_or_else(|_| {
        memory::give_back();
        inbox.blocking_recv()
    })
}

/// A panic in the models costs one request, not the server.
fn caught<T>(work: impl FnOnce() -> Result<T, PredictError>) -> Result<T, WorkerError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(result) => Ok(result?),
        Err(_) => Err(WorkerError::Panicked),
    }
}
