//! Bounds the annotator requests in progress. Label Studio does not retry a request, so a request that would be
//! answered too late is refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Admission control for annotator requests; clones share one limit.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    limit: usize,
}

/// The limit of annotator requests in progress is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} requests of annotators are waiting or being worked on, and no more may be (MAX_QUEUE): ask again later"
)]
pub struct Busy(pub usize);

/// RAII permit of one request; released on drop.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// Admits at most `limit` requests at a time, at least 1.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Number of requests in progress.
    pub fn count(&self) -> usize {
        self.limit - self.places.available_permits()
    }

    /// Admits a request.
    ///
    /// # Errors
    /// [`Busy`] if the limit is reached.
    pub fn enter(&self) -> Result<Place, Busy> {
        match self.places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => Err(Busy(self.count())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_leave_make_room() {
        let admission = Admission::new(2);
        let (first, _second) = (admission.enter().unwrap(), admission.enter().unwrap());
        let refused = admission.enter().unwrap_err();
        assert_eq!((refused, admission.count()), (Busy(2), 2));
        drop(first);
        assert_eq!(admission.count(), 1);
        assert!(admission.enter().is_ok());
    }
}
