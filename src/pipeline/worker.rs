//! The one thread that computes, behind a bounded queue.
//!
//! Requests wait in async code; the models run here, one prediction after the other. The thread loads
//! the models itself, so that the server listens before they are there.

use std::sync::Arc;

use image::RgbImage;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Pipeline, PredictError, Prediction};
use crate::detector::DetectionOptions;
use crate::prompt::Prompt;

/// One prediction to make.
#[derive(Debug, Clone)]
pub struct Request {
    /// The decoded image.
    pub image: Arc<RgbImage>,
    /// What to find in it.
    pub prompt: Prompt,
    /// What counts as found.
    pub options: DetectionOptions,
    /// Whether to cut it out too.
    pub with_masks: bool,
}

/// Where the models are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Being loaded; requests wait.
    Loading,
    /// Ready to compute.
    Ready,
    /// They will not come; the reason.
    Failed(String),
}

/// Why the worker gave no prediction.
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
    /// The prediction itself failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
}

struct Job {
    request: Request,
    span: tracing::Span,
    reply: oneshot::Sender<Result<Prediction, WorkerError>>,
}

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
        load: impl FnOnce() -> Result<Pipeline, E> + Send + 'static,
    ) -> std::io::Result<Self>
    where
        E: std::fmt::Display,
    {
        let (jobs, inbox) = mpsc::channel(queue.max(1));
        let (report, status) = watch::channel(Status::Loading);
        std::thread::Builder::new()
            .name("models".to_owned())
            .spawn(move || match load() {
                Ok(pipeline) => {
                    tracing::info!("the models are loaded");
                    report.send_replace(Status::Ready);
                    serve(&pipeline, inbox);
                }
                Err(error) => {
                    let reason = error.to_string();
                    tracing::error!(%reason, "the models could not be loaded");
                    report.send_replace(Status::Failed(reason.clone()));
                    refuse(&reason, inbox);
                }
            })?;
        Ok(Self { jobs, status })
    }

    /// Where the models are now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits for a prediction.
    ///
    /// # Errors
    /// At once if the queue is full; later if the models could not be loaded or fail.
    pub async fn predict(&self, request: Request) -> Result<Prediction, WorkerError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            request,
            span: tracing::Span::current(),
            reply,
        };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WorkerError::Busy(self.jobs.max_capacity()),
            mpsc::error::TrySendError::Closed(_) => WorkerError::Stopped,
        })?;
        answer.await.unwrap_or(Err(WorkerError::Stopped))
    }
}

/// Answers jobs until every handle is gone.
fn serve(pipeline: &Pipeline, mut inbox: mpsc::Receiver<Job>) {
    while let Some(job) = inbox.blocking_recv() {
        // nobody waits for it any more: the client has gone
        if job.reply.is_closed() {
            continue;
        }
        let answer = job.span.in_scope(|| compute(pipeline, &job.request));
        // a client that has gone meanwhile needs no answer
        let _ = job.reply.send(answer);
    }
}

/// One prediction; a panic in the models costs this request, not the server.
fn compute(pipeline: &Pipeline, request: &Request) -> Result<Prediction, WorkerError> {
    let predict = || {
        pipeline.predict(
            &request.image,
            &request.prompt,
            &request.options,
            request.with_masks,
        )
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(predict)) {
        Ok(prediction) => Ok(prediction?),
        Err(_) => {
            let reason = "the models panicked on this request".to_owned();
            let error = candle_core::Error::Msg(reason);
            Err(PredictError::Detect(crate::detector::DetectError::Model(error)).into())
        }
    }
}

/// Answers every job with the reason why there are no models.
fn refuse(reason: &str, mut inbox: mpsc::Receiver<Job>) {
    while let Some(job) = inbox.blocking_recv() {
        let _ = job
            .reply
            .send(Err(WorkerError::NotLoaded(reason.to_owned())));
    }
}
