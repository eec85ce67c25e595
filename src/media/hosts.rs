//! Limits how many images are fetched at the same time: in total, and from one host, so that a host that does not
//! answer does not block the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ImageLimits;

/// The permits for fetches: in total, and for each host.
#[derive(Debug)]
pub(super) struct Hosts {
    all: Arc<Semaphore>,
    of_host: usize,
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Hosts {
    pub(super) fn new(limits: ImageLimits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.fetches)),
            of_host: limits.fetches_of_host,
            hosts: Mutex::default(),
        }
    }

    /// Waits for the permits to fetch from a host. They are released on drop.
    pub(super) async fn enter(
        &self,
        host: Option<String>,
    ) -> (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>) {
        // the permit of the host comes first: a fetch that waits for a slow host must not hold a permit that others
        // could use
        let own = match host {
            Some(host) => self.of(host).acquire_owned().await.ok(),
            None => None,
        };
        (own, self.all.clone().acquire_owned().await.ok())
    }

    fn of(&self, host: String) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.get(&host).and_then(Weak::upgrade) {
            return known;
        }
        hosts.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(self.of_host));
        hosts.insert(host, Arc::downgrade(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_host_leaves_room_for_others() {
        let hosts = Hosts::new(ImageLimits {
            fetches: 3,
            fetches_of_host: 2,
            ..ImageLimits::default()
        });
        let slow = || hosts.enter(Some("slow".to_owned()));
        let _held = (slow().await, slow().await);
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, slow()).await.is_err());
        let quick = hosts.enter(Some("quick".to_owned()));
        assert!(tokio::time::timeout(soon, quick).await.is_ok());
    }
}
