//! A handle to models that are loaded in the background. A failed attempt to load them is retried.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Models;

/// The loading state of the models.
#[derive(Debug, Clone)]
pub enum LoadStatus {
    /// The models are being loaded from disk, which takes seconds.
    Loading {
        /// The current step.
        step: String,
    },
    /// The models are being downloaded, which may take minutes.
    Downloading {
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
        retry_at: Instant,
    },
    /// The device of the loaded models has failed, and cannot be used by this process any more.
    DeviceLost {
        /// The device's error.
        reason: String,
    },
}

/// Why the models are not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelsUnavailable {
    /// They are being downloaded.
    #[error("the models are still being downloaded: {0}")]
    Downloading(String),
    /// Loading failed; it will be retried.
    #[error("the models could not be loaded: {reason}; the next attempt is in {seconds} s")]
    #[allow(missing_docs)]
    Failed { reason: String, seconds: u64 },
    /// The device has failed, and cannot be used by this process any more.
    #[error(
        "the device has failed and cannot be used by this process any more: {0}; restart groundling"
    )]
    DeviceLost(String),
    /// The loading thread has ended without a result.
    #[error("the thread that loads the models has ended without a result; restart groundling")]
    Stopped,
}

impl ModelsUnavailable {
    /// Seconds after which a client should retry.
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::Downloading(_) => 10,
            Self::Failed { seconds, .. } => (*seconds).max(1),
            Self::DeviceLost(_) | Self::Stopped => 60,
        }
    }
}

/// Reports the progress of loading.
#[derive(Debug, Clone)]
pub struct LoadProgress(watch::Sender<LoadStatus>);

impl LoadProgress {
    /// Reports a step on this machine.
    pub fn loading(&self, step: impl Into<String>) {
        self.0
            .send_replace(LoadStatus::Loading { step: step.into() });
    }

    /// Reports the progress of a download.
    pub fn downloading(&self, step: impl Into<String>) {
        self.0
            .send_replace(LoadStatus::Downloading { step: step.into() });
    }
}

/// Delays between attempts; each delay is twice the one before.
#[derive(Debug, Clone, Copy)]
pub struct RetryDelays {
    /// The delay after the first failure.
    pub first: Duration,
    /// The maximum delay.
    pub longest: Duration,
}

impl Default for RetryDelays {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            longest: Duration::from_secs(300),
        }
    }
}

/// A handle to the models and their loading state; clones share it.
#[derive(Debug, Clone)]
pub struct ModelsHandle {
    loading: watch::Receiver<LoadStatus>,
    /// The error of a device that was lost after the models were loaded.
    lost: Arc<OnceLock<String>>,
}

impl ModelsHandle {
    /// Starts the thread that calls `load` until it succeeds or all handles are dropped.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start<E: std::fmt::Display>(
        delays: RetryDelays,
        load: impl Fn(LoadProgress) -> Result<Models, E> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (report, status) = watch::channel(LoadStatus::Loading {
            step: "locating the models".to_owned(),
        });
        std::thread::Builder::new()
            .name("loading".to_owned())
            .spawn(move || load_with_retries(&report, delays, load))?;
        Ok(Self {
            loading: status,
            lost: Arc::default(),
        })
    }

    /// The current state.
    pub fn status(&self) -> LoadStatus {
        match self.lost.get() {
            Some(reason) => LoadStatus::DeviceLost {
                reason: reason.clone(),
            },
            None => self.loading.borrow().clone(),
        }
    }

    /// Marks the models as unusable, because their device has failed. Returns the error for this and all later requests.
    pub fn lose_device(&self, reason: String) -> ModelsUnavailable {
        let first = self.lost.get_or_init(|| {
            tracing::error!(%reason, "the device has failed; restart groundling");
            reason
        });
        ModelsUnavailable::DeviceLost(first.clone())
    }

    /// The models. Waits while they are loaded from disk.
    ///
    /// # Errors
    /// Immediately if they are being downloaded, if loading failed, or if the device has failed.
    pub async fn get(&self) -> Result<Arc<Models>, ModelsUnavailable> {
        if let Some(reason) = self.lost.get() {
            return Err(ModelsUnavailable::DeviceLost(reason.clone()));
        }
        let mut status = self.loading.clone();
        let settled = status
            .wait_for(|status| !matches!(status, LoadStatus::Loading { .. }))
            .await
            .map(|status| status.clone());
        match settled {
            Ok(LoadStatus::Ready(models)) => Ok(models),
            Ok(LoadStatus::Downloading { step }) => Err(ModelsUnavailable::Downloading(step)),
            Ok(LoadStatus::Failed { reason, retry_at }) => Err(ModelsUnavailable::Failed {
                reason,
                seconds: retry_at
                    .saturating_duration_since(Instant::now())
                    .as_secs_f32()
                    .ceil() as u64,
            }),
            // the thread has ended; the last status is still valid
            Ok(LoadStatus::Loading { .. } | LoadStatus::DeviceLost { .. }) | Err(_) => {
                match self.status() {
                    LoadStatus::Ready(models) => Ok(models),
                    _ => Err(ModelsUnavailable::Stopped),
                }
            }
        }
    }

    /// The models. Also waits while they are downloaded.
    ///
    /// # Errors
    /// At the first failure.
    pub async fn get_after_download(&self) -> Result<Arc<Models>, ModelsUnavailable> {
        let mut status = self.loading.clone();
        let is_settled = |status: &LoadStatus| {
            matches!(status, LoadStatus::Ready(_) | LoadStatus::Failed { .. })
        };
        // an error means that the thread has ended; the status then no longer changes
        let _ = status.wait_for(is_settled).await;
        self.get().await
    }
}

fn load_with_retries<E: std::fmt::Display>(
    report: &watch::Sender<LoadStatus>,
    delays: RetryDelays,
    load: impl Fn(LoadProgress) -> Result<Models, E>,
) {
    let mut delay = delays.first;
    loop {
        // without this, a panic would leave all requests waiting
        let loaded = catch_unwind(AssertUnwindSafe(|| load(LoadProgress(report.clone()))));
        let reason = match loaded {
            Ok(Ok(models)) => {
                tracing::info!(device = models.device(), "the models are loaded");
                report.send_replace(LoadStatus::Ready(Arc::new(models)));
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "loading them panicked; this is a bug in groundling".to_owned(),
        };
        let seconds = delay.as_secs_f32();
        tracing::error!(%reason, "the models could not be loaded; the next attempt is in {seconds} s");
        let retry_at = Instant::now() + delay;
        report.send_replace(LoadStatus::Failed { reason, retry_at });
        while let Some(rest) = retry_at.checked_duration_since(Instant::now()) {
            if report.is_closed() {
                return;
            }
            std::thread::sleep(rest.min(Duration::from_millis(500)));
        }
        if report.is_closed() {
            return;
        }
        delay = (delay * 2).min(delays.longest);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::pipeline::testing::demo_models;

    const SOON: RetryDelays = RetryDelays {
        first: Duration::from_millis(20),
        longest: Duration::from_millis(40),
    };

    async fn ready(models: &ModelsHandle) -> Arc<Models> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match models.get().await {
                Ok(models) => return models,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn loading_is_retried_after_a_failure_and_after_a_panic() {
        let tries = Arc::new(AtomicU32::new(0));
        let counted = tries.clone();
        let models = ModelsHandle::start(SOON, move |_| {
            match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err("the hub is not reachable"),
                1 => panic!("a bug"),
                _ => Ok(demo_models()),
            }
        })
        .unwrap();
        let failed = models.get_after_download().await.unwrap_err();
        assert!(
            matches!(&failed, ModelsUnavailable::Failed { reason, .. } if reason == "the hub is not reachable")
        );
        assert!(
            failed.to_string().contains("next attempt is in"),
            "{failed}"
        );
        ready(&models).await;
        assert_eq!(tries.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn requests_wait_for_loading_and_not_for_downloads() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let models = ModelsHandle::start(SOON, move |progress| {
            progress.downloading("model.safetensors: 12 %");
            wait.lock().unwrap().recv().unwrap();
            progress.loading("from disk");
            wait.lock().unwrap().recv().unwrap();
            Ok::<_, String>(demo_models())
        })
        .unwrap();
        let refused = loop {
            match tokio::time::timeout(Duration::from_millis(5), models.get()).await {
                Ok(refused) => break refused.unwrap_err(),
                // the download has not started yet
                Err(_) => continue,
            }
        };
        assert_eq!(
            refused,
            ModelsUnavailable::Downloading("model.safetensors: 12 %".to_owned())
        );
        assert!(refused.retry_after() > 0);
        go.send(()).unwrap();
        let request = tokio::spawn({
            let models = models.clone();
            async move { models.get().await.is_ok() }
        });
        while matches!(models.status(), LoadStatus::Downloading { .. }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        go.send(()).unwrap();
        // the request came during the download or during loading, whichever was first
        let _ = request.await.unwrap();
        ready(&models).await;
    }
}
