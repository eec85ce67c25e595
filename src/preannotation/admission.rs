//! Bounds the annotator requests in progress. Label Studio does not retry a request, so a request that would be
//! answered too late is refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Admission control for annotator requests; clones share one limit.
#[derive(Debug, Clone)]
pub struct Admission {
    permits: Arc<Semaphore>,
    limit: usize,
}

/// The limit of annotator requests in progress is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} annotator requests are waiting or being processed, which is the limit (MAX_QUEUE): try again later"
)]
pub struct Busy(pub usize);

/// RAII permit of one request; released on drop.
#[derive(Debug)]
pub struct Permit {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Admits at most `limit` requests at a time, at least 1.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Number of requests in progress.
    pub fn count(&self) -> usize {
        self.limit - self.permits.available_permits()
    }

    /// Admits a request.
    ///
    /// # Errors
    /// [`Busy`] if the limit is reached.
    pub fn acquire(&self) -> Result<Permit, Busy> {
        match self.permits.clone().try_acquire_owned() {
            Ok(permit) => Ok(Permit { _permit: permit }),
            Err(_) => Err(Busy(self.count())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_permit_admits_the_next_request() {
        let admission = Admission::new(2);
        let (first, _second) = (admission.acquire().unwrap(), admission.acquire().unwrap());
        let refused = admission.acquire().unwrap_err();
        assert_eq!((refused, admission.count()), (Busy(2), 2));
        drop(first);
        assert_eq!(admission.count(), 1);
        assert!(admission.acquire().is_ok());
    }
}
