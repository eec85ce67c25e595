//! Loads the models in the background: locates and downloads them, and retries after a failure.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Models;

/// The loading state of the models.
#[derive(Debug, Clone)]
pub enum Status {
    /// The models are being loaded from disk, which takes seconds.
    Loading {
        /// The current step.
        step: String,
    },
    /// The models are being downloaded, which may take minutes.
    Fetching {
        /// The progress of the download.
        step: String,
    },
    /// The models are loaded.
    Ready(Arc<Models>),
    /// Loading failed; it will be retried.
    Failed {
        /// The error message.
        reason: String,
        /// The time of the next attempt.
        again: Instant,
    },
}

/// Why the models are not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// They are being downloaded.
    #[error("the models are not here yet: {0}")]
    Fetching(String),
    /// Loading failed; it will be retried.
    #[error("the models could not be loaded: {reason}; they are tried again in {seconds} s")]
    #[allow(missing_docs)]
    Failed { reason: String, seconds: u64 },
    /// The loading thread has ended without a result.
    #[error("the thread that loads the models has stopped; restart groundling")]
    Stopped,
}

impl NotReady {
    /// Seconds after which a client should retry.
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::Fetching(_) => 10,
            Self::Failed { seconds, .. } => (*seconds).max(1),
            Self::Stopped => 60,
        }
    }
}

/// Reports the progress of loading.
#[derive(Debug, Clone)]
pub struct Reporter(watch::Sender<Status>);

impl Reporter {
    /// Reports a step on this machine.
    pub fn loading(&self, step: impl Into<String>) {
        self.0.send_replace(Status::Loading { step: step.into() });
    }

    /// Reports the progress of a download.
    pub fn fetching(&self, step: impl Into<String>) {
        self.0.send_replace(Status::Fetching { step: step.into() });
    }
}

/// Delays between attempts; each delay is twice the one before.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// The delay after the first failure.
    pub first: Duration,
    /// The maximum delay.
    pub longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            longest: Duration::from_secs(300),
        }
    }
}

/// A handle to the models and their loading state; clones share it.
#[derive(Debug, Clone)]
pub struct Loading(watch::Receiver<Status>);

impl Loading {
    /// Starts the thread that calls `load` until it succeeds or all handles are dropped.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start<E: std::fmt::Display>(
        pauses: Pauses,
        load: impl Fn(Reporter) -> Result<Models, E> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (report, status) = watch::channel(Status::Loading {
            step: "the models are being looked up".to_owned(),
        });
        std::thread::Builder::new()
            .name("loading".to_owned())
            .spawn(move || until_loaded(&report, pauses, load))?;
        Ok(Self(status))
    }

    /// The current state.
    pub fn status(&self) -> Status {
        self.0.borrow().clone()
    }

    /// The models. Waits while they are loaded from disk.
    ///
    /// # Errors
    /// Immediately if they are being downloaded or if loading failed.
    pub async fn models(&self) -> Result<Arc<Models>, NotReady> {
        let mut status = self.0.clone();
        let settled = status
            .wait_for(|status| !matches!(status, Status::Loading { .. }))
            .await
            .map(|status| status.clone());
        match settled {
            Ok(Status::Ready(models)) => Ok(models),
            Ok(Status::Fetching { step }) => Err(NotReady::Fetching(step)),
            Ok(Status::Failed { reason, again }) => Err(NotReady::Failed {
                reason,
                seconds: again
                    .saturating_duration_since(Instant::now())
                    .as_secs_f32()
                    .ceil() as u64,
            }),
            // the thread has ended; the last status is still valid
            Ok(Status::Loading { .. }) | Err(_) => match self.status() {
                Status::Ready(models) => Ok(models),
                _ => Err(NotReady::Stopped),
            },
        }
    }

    /// The models. Also waits while they are downloaded.
    ///
    /// # Errors
    /// At the first failure.
    pub async fn fetched(&self) -> Result<Arc<Models>, NotReady> {
        let mut status = self.0.clone();
        let is_settled =
            |status: &Status| matches!(status, Status::Ready(_) | Status::Failed { .. });
        // an error means that the thread has ended; the status then no longer changes
        let _ = status.wait_for(is_settled).await;
        self.models().await
    }
}

fn until_loaded<E: std::fmt::Display>(
    report: &watch::Sender<Status>,
    pauses: Pauses,
    load: impl Fn(Reporter) -> Result<Models, E>,
) {
    let mut pause = pauses.first;
    loop {
        // without this, a panic would leave all requests waiting
        let loaded = catch_unwind(AssertUnwindSafe(|| load(Reporter(report.clone()))));
        let reason = match loaded {
            Ok(Ok(models)) => {
                tracing::info!(device = models.device(), "the models are loaded");
                report.send_replace(Status::Ready(Arc::new(models)));
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "loading them panicked, which is a defect of groundling".to_owned(),
        };
        let seconds = pause.as_secs_f32();
        tracing::error!(%reason, "the models could not be loaded; they are tried again in {seconds} s");
        let again = Instant::now() + pause;
        report.send_replace(Status::Failed { reason, again });
        while let Some(rest) = again.checked_duration_since(Instant::now()) {
            if report.is_closed() {
                return;
            }
            std::thread::sleep(rest.min(Duration::from_millis(500)));
        }
        if report.is_closed() {
            return;
        }
        pause = (pause * 2).min(pauses.longest);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::pipeline::testing::demo_models;

    const SOON: Pauses = Pauses {
        first: Duration::from_millis(20),
        longest: Duration::from_millis(40),
    };

    async fn ready(loading: &Loading) -> Arc<Models> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match loading.models().await {
                Ok(models) => return models,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_failure_and_a_panic_are_tried_again() {
        let tries = Arc::new(AtomicU32::new(0));
        let counted = tries.clone();
        let loading = Loading::start(SOON, move |_| {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err("the hub is away"),
                1 => panic!("a defect"),
                _ => Ok(demo_models()),
            }
        })
        .unwrap();
        let failed = loading.fetched().await.unwrap_err();
        assert!(matches!(&failed, NotReady::Failed { reason, .. } if reason == "the hub is away"));
        assert!(failed.to_string().contains("tried again in"), "{failed}");
        ready(&loading).await;
        assert_eq!(tries.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn whoever_asks_waits_for_loading_and_not_for_fetching() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let loading = Loading::start(SOON, move |reporter| {
            reporter.fetching("model.safetensors: 12 %");
            wait.lock().unwrap().recv().unwrap();
            reporter.loading("from disk");
            wait.lock().unwrap().recv().unwrap();
            Ok::<_, String>(demo_models())
        })
        .unwrap();
        let refused = loop {
            match tokio::time::timeout(Duration::from_millis(5), loading.models()).await {
                Ok(refused) => break refused.unwrap_err(),
                // the download has not started yet
                Err(_) => continue,
            }
        };
        assert_eq!(
            refused,
            NotReady::Fetching("model.safetensors: 12 %".to_owned())
        );
        assert!(refused.retry_after() > 0);
        go.send(()).unwrap();
        let asked = tokio::spawn({
            let loading = loading.clone();
            async move { loading.models().await.is_ok() }
        });
        while matches!(loading.status(), Status::Fetching { .. }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        go.send(()).unwrap();
        // the request came during the download or during loading, whichever was first
        let _ = asked.await.unwrap();
        ready(&loading).await;
    }
}
