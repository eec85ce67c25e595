//! How many requests of annotators may be on their way: Label Studio does not ask again, so what would come too late is
//! refused at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The way in for annotators; clones share it.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    limit: usize,
}

/// Too many requests are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} requests of annotators are waiting or being worked on, and no more may be (MAX_QUEUE): ask again later"
)]
pub struct Busy(pub usize);

/// A request's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    /// For `limit` requests at a time.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// How many requests are on their way.
    pub fn count(&self) -> usize {
        self.limit - self.places.available_permits()
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// If as many as may be are in already.
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
