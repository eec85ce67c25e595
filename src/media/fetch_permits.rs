//! Limits how many images are fetched at the same time: in total, and from one host, so that a host that does not
//! answer does not block the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ImageLimits;

/// The permits for fetches: in total, and for each host.
#[derive(Debug)]
pub(super) struct FetchPermits {
    all: Arc<Semaphore>,
    per_host: usize,
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl FetchPermits {
    pub(super) fn new(limits: ImageLimits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.fetches)),
            per_host: limits.fetches_per_host,
            hosts: Mutex::default(),
        }
    }

    /// Waits for the permits to fetch from a host. They are released on drop.
    pub(super) async fn acquire(
        &self,
        host: Option<String>,
    ) -> (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>) {
        // the permit of the host comes first: a fetch that waits for a slow host must not hold a permit that others
        // could use
        let host_permit = match host {
            Some(host) => self.host_semaphore(host).acquire_owned().await.ok(),
            None => None,
        };
        (host_permit, self.all.clone().acquire_owned().await.ok())
    }

    fn host_semaphore(&self, host: String) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.get(&host).and_then(Weak::upgrade) {
            return known;
        }
        hosts.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(self.per_host));
        hosts.insert(host, Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn fetches_from_one_host_do_not_block_other_hosts() {
        let permits = FetchPermits::new(ImageLimits {
            fetches: 3,
            fetches_per_host: 2,
            ..ImageLimits::default()
        });
        let slow_host = || permits.acquire(Some("slow".to_owned()));
        let _held = (slow_host().await, slow_host().await);
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, slow_host()).await.is_err());
        let other_host = permits.acquire(Some("other".to_owned()));
        assert!(tokio::time::timeout(soon, other_host).await.is_ok());
    }
}
