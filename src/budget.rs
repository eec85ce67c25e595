//! The memory budget that all requests share: request bodies, image files, decoded pixels and results.
//!
//! A request reserves memory step by step, and keeps what it has while it waits for more. Requests that wait for each
//! other in a circle would never end. To prevent this, an earlier step may fill only a part of the budget: the rest is
//! left for the later steps of requests that are already running, which can then end and free their memory. Results are
//! the last step. They are counted without waiting, even above the total, and later reservations wait until they are
//! freed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// What a reservation is for, in the order in which a request needs memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A request's body after decompression: up to a quarter of the budget.
    Body,
    /// An encoded image file: up to half of the budget.
    File,
    /// Decoded pixels: up to the whole budget.
    Pixels,
}

impl Purpose {
    const ALL: [Self; 3] = [Self::Body, Self::File, Self::Pixels];

    fn index(self) -> usize {
        self as usize
    }
}

/// A memory budget in bytes. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// The largest value that `used` has had.
    peak: usize,
    /// The queue of waiting reservations of each purpose, in order of arrival.
    waiting: [VecDeque<WaitingReservation>; Purpose::ALL.len()],
}

#[derive(Debug)]
struct WaitingReservation {
    bytes: usize,
    grant: oneshot::Sender<Reservation>,
}

/// A reserved part of the budget, in bytes. It is released on drop.
#[derive(Debug)]
pub struct Reservation {
    bytes: usize,
    budget: Budget,
}

/// A reservation timed out because other requests use too much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed} bytes of memory are needed, and all requests together use {used} of {total} bytes (REQUEST_BYTES): try again later"
)]
pub struct OutOfMemory {
    /// Bytes that the reservation needs.
    pub needed: usize,
    /// Bytes in use.
    pub used: usize,
    /// Size of the whole budget in bytes.
    pub total: usize,
}

impl Budget {
    /// Creates a budget of `total` bytes.
    pub fn new(total: usize) -> Self {
        Self(Arc::new(Shared {
            total,
            state: Mutex::default(),
        }))
    }

    /// Reserves memory, and waits up to `timeout` for other requests to end. A reservation of more than the purpose's
    /// share is reduced to that share, so that a single request of any size that the other limits allow can always
    /// proceed.
    ///
    /// # Errors
    /// If there is not enough room within that time.
    pub async fn reserve(
        &self,
        purpose: Purpose,
        bytes: usize,
        timeout: Duration,
    ) -> Result<Reservation, OutOfMemory> {
        let bytes = bytes.min(self.max_reservation(purpose));
        // lets the next in the queue proceed if this call times out or is cancelled; declared before `receiver`, so that
        // it is dropped after it, when the closed channel marks this entry as abandoned
        let _cleanup = QueueCleanup(self);
        let mut receiver = {
            let mut state = self.state();
            let is_first = state.waiting[purpose.index()].is_empty();
            if is_first && state.used + bytes <= self.limit_in_use(purpose) {
                state.add(bytes);
                return Ok(self.reservation(bytes));
            }
            let (grant, receiver) = oneshot::channel();
            state.waiting[purpose.index()].push_back(WaitingReservation { bytes, grant });
            receiver
        };
        match tokio::time::timeout(timeout, &mut receiver).await {
            Ok(Ok(reservation)) => Ok(reservation),
            // the reservation may have arrived at the moment of the timeout
            _ => receiver.try_recv().map_err(|_| OutOfMemory {
                needed: bytes,
                used: self.state().used,
                total: self.0.total,
            }),
        }
    }

    /// Counts memory that is already in use, without waiting and even if it exceeds the budget.
    pub fn reserve_unchecked(&self, bytes: usize) -> Reservation {
        self.state().add(bytes);
        self.reservation(bytes)
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.state().used
    }

    /// The largest number of bytes that were in use at the same time.
    pub fn peak(&self) -> usize {
        self.state().peak
    }

    /// The number of bytes that may be in use, the new reservation included, when a reservation for this purpose is
    /// granted.
    fn limit_in_use(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Body => self.0.total / 4,
            Purpose::File => self.0.total / 2,
            Purpose::Pixels => self.0.total,
        }
    }

    /// The largest size in bytes of one reservation: what is left when the earlier steps have filled their parts.
    fn max_reservation(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Body => self.limit_in_use(Purpose::Body),
            Purpose::File => self.limit_in_use(Purpose::File) - self.limit_in_use(Purpose::Body),
            Purpose::Pixels => {
                self.limit_in_use(Purpose::Pixels) - self.limit_in_use(Purpose::File)
            }
        }
    }

    fn reservation(&self, bytes: usize) -> Reservation {
        Reservation {
            bytes,
            budget: self.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Releases `freed` bytes and grants the waiting reservations that fit now, those of later steps first.
    fn release(&self, freed: usize) {
        let mut state = self.state();
        state.used -= freed;
        for purpose in Purpose::ALL.into_iter().rev() {
            while let Some(first) = state.waiting[purpose.index()].front() {
                let is_abandoned = first.grant.is_closed();
                if !is_abandoned && state.used + first.bytes > self.limit_in_use(purpose) {
                    break;
                }
                let Some(next) = state.waiting[purpose.index()].pop_front() else {
                    break;
                };
                if is_abandoned {
                    continue;
                }
                state.add(next.bytes);
                if let Err(mut undelivered) = next.grant.send(self.reservation(next.bytes)) {
                    // the receiver was dropped at this moment; dropping the reservation unchanged would lock the state
                    // again
                    state.used -= std::mem::take(&mut undelivered.bytes);
                }
            }
        }
    }
}

impl State {
    fn add(&mut self, bytes: usize) {
        self.used += bytes;
        self.peak = self.peak.max(self.used);
    }
}

impl Reservation {
    /// Size of the reservation in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds another reservation of the same budget to this one.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Releases all but `bytes` bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        if freed > 0 {
            self.budget.release(freed);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// On drop, removes abandoned entries from the queues.
struct QueueCleanup<'a>(&'a Budget);

impl Drop for QueueCleanup<'_> {
    fn drop(&mut self) {
        self.0.release(0);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SHORT_TIMEOUT: Duration = Duration::from_millis(50);
    const LONG_TIMEOUT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn earlier_steps_leave_memory_for_later_steps() {
        let budget = Budget::new(1000);
        let body = budget
            .reserve(Purpose::Body, 250, SHORT_TIMEOUT)
            .await
            .unwrap();
        let error = budget
            .reserve(Purpose::Body, 1, SHORT_TIMEOUT)
            .await
            .unwrap_err();
        assert_eq!((error.needed, error.used, error.total), (1, 250, 1000));
        let file = budget
            .reserve(Purpose::File, 250, SHORT_TIMEOUT)
            .await
            .unwrap();
        budget
            .reserve(Purpose::File, 1, SHORT_TIMEOUT)
            .await
            .unwrap_err();
        // a reservation that is larger than its share is reduced to it
        let pixels = budget
            .reserve(Purpose::Pixels, 5000, SHORT_TIMEOUT)
            .await
            .unwrap();
        assert_eq!((pixels.bytes(), budget.used()), (500, 1000));
        let results = budget.reserve_unchecked(300);
        assert_eq!((budget.used(), budget.peak()), (1300, 1300));
        drop((body, file, pixels, results));
        assert_eq!((budget.used(), budget.peak()), (0, 1300));
    }

    #[tokio::test]
    async fn waiting_reservations_are_granted_in_order_and_abandoned_ones_are_skipped() {
        let budget = Budget::new(400);
        let mut first = budget
            .reserve(Purpose::Body, 100, SHORT_TIMEOUT)
            .await
            .unwrap();
        let wait = |bytes: usize, timeout: Duration| {
            let budget = budget.clone();
            tokio::spawn(async move { budget.reserve(Purpose::Body, bytes, timeout).await })
        };
        let large = wait(80, SHORT_TIMEOUT);
        tokio::task::yield_now().await;
        let cancelled = wait(70, LONG_TIMEOUT);
        tokio::task::yield_now().await;
        let small = wait(40, LONG_TIMEOUT);
        tokio::task::yield_now().await;
        // there is room for the small reservation, but larger ones are before it in the queue
        first.shrink_to(50);
        assert!(!small.is_finished());
        cancelled.abort();
        assert!(cancelled.await.unwrap_err().is_cancelled());
        // the large one times out, and the small one is granted
        assert!(large.await.unwrap().is_err());
        let small = timeout(LONG_TIMEOUT, small)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(budget.used(), 90);
        drop((first, small));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_requests_finish_and_release_all_memory() {
        let budget = Budget::new(1000);
        let one = |i: usize| {
            let budget = budget.clone();
            async move {
                let _body = budget
                    .reserve(Purpose::Body, 1 + i % 200, LONG_TIMEOUT)
                    .await?;
                tokio::task::yield_now().await;
                let file = budget
                    .reserve(Purpose::File, 1 + i % 230, LONG_TIMEOUT)
                    .await?;
                tokio::task::yield_now().await;
                let _pixels = budget
                    .reserve(Purpose::Pixels, 1 + i % 700, LONG_TIMEOUT)
                    .await?;
                drop(file);
                let _results = budget.reserve_unchecked(i % 50);
                tokio::task::yield_now().await;
                Ok::<_, OutOfMemory>(())
            }
        };
        let all: Vec<_> = (0..500).map(|i| tokio::spawn(one(i))).collect();
        for (i, request) in all.into_iter().enumerate() {
            let limit = if i % 7 == 0 {
                SHORT_TIMEOUT
            } else {
                LONG_TIMEOUT
            };
            // some requests are no longer awaited, but continue in the background
            if let Ok(finished) = timeout(limit, request).await {
                finished.unwrap().unwrap();
            }
        }
        let empty = async {
            while budget.used() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG_TIMEOUT, empty).await.unwrap();
        assert!(budget.peak() <= 1000 + 500 * 50);
    }
}
