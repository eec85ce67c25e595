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
    waiting: [VecDeque<Waiting>; Purpose::ALL.len()],
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    turn: oneshot::Sender<Reservation>,
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
    "{needed} bytes of memory are needed, and other requests use {used} of the {total} that there are for all of them (REQUEST_BYTES): ask again later"
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

    /// Reserves memory, and waits up to `patience` for other requests to end. A reservation of more than the purpose's
    /// share is reduced to that share, so that a single request of any size that the other limits allow can always
    /// proceed.
    ///
    /// # Errors
    /// If there is not enough room within that time.
    pub async fn reserve(
        &self,
        purpose: Purpose,
        bytes: usize,
        patience: Duration,
    ) -> Result<Reservation, OutOfMemory> {
        let bytes = bytes.min(self.most(purpose));
        // lets the next in the queue proceed if this call times out or is cancelled; declared before `turn`, so that it
        // is dropped after it, when the closed channel marks this entry as abandoned
        let _leaving = Leaving(self);
        let mut turn = {
            let mut state = self.state();
            let is_first = state.waiting[purpose.index()].is_empty();
            if is_first && state.used + bytes <= self.limit(purpose) {
                state.take(bytes);
                return Ok(self.reservation(bytes));
            }
            let (turn, coming) = oneshot::channel();
            state.waiting[purpose.index()].push_back(Waiting { bytes, turn });
            coming
        };
        match tokio::time::timeout(patience, &mut turn).await {
            Ok(Ok(reservation)) => Ok(reservation),
            // the reservation may have arrived at the moment of the timeout
            _ => turn.try_recv().map_err(|_| OutOfMemory {
                needed: bytes,
                used: self.state().used,
                total: self.0.total,
            }),
        }
    }

    /// Counts memory that is already in use, without waiting and even if it exceeds the budget.
    pub fn count(&self, bytes: usize) -> Reservation {
        self.state().take(bytes);
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
    fn limit(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Body => self.0.total / 4,
            Purpose::File => self.0.total / 2,
            Purpose::Pixels => self.0.total,
        }
    }

    /// The largest size in bytes of one reservation: what is left when the earlier steps have filled their parts.
    fn most(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Body => self.limit(Purpose::Body),
            Purpose::File => self.limit(Purpose::File) - self.limit(Purpose::Body),
            Purpose::Pixels => self.limit(Purpose::Pixels) - self.limit(Purpose::File),
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
    fn give_back(&self, freed: usize) {
        let mut state = self.state();
        state.used -= freed;
        for purpose in Purpose::ALL.into_iter().rev() {
            while let Some(first) = state.waiting[purpose.index()].front() {
                let is_gone = first.turn.is_closed();
                if !is_gone && state.used + first.bytes > self.limit(purpose) {
                    break;
                }
                let Some(next) = state.waiting[purpose.index()].pop_front() else {
                    break;
                };
                if is_gone {
                    continue;
                }
                state.take(next.bytes);
                if let Err(mut unwanted) = next.turn.send(self.reservation(next.bytes)) {
                    // the receiver was dropped at this moment; dropping the reservation unchanged would lock the state
                    // again
                    state.used -= std::mem::take(&mut unwanted.bytes);
                }
            }
        }
    }
}

impl State {
    fn take(&mut self, bytes: usize) {
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
            self.budget.give_back(freed);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

/// On drop, removes abandoned entries from the queues.
struct Leaving<'a>(&'a Budget);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.give_back(0);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn earlier_steps_leave_room_for_later_ones() {
        let budget = Budget::new(1000);
        let body = budget.reserve(Purpose::Body, 250, SOON).await.unwrap();
        let error = budget.reserve(Purpose::Body, 1, SOON).await.unwrap_err();
        assert_eq!((error.needed, error.used, error.total), (1, 250, 1000));
        let file = budget.reserve(Purpose::File, 250, SOON).await.unwrap();
        budget.reserve(Purpose::File, 1, SOON).await.unwrap_err();
        // a reservation that is larger than its share is reduced to it
        let pixels = budget.reserve(Purpose::Pixels, 5000, SOON).await.unwrap();
        assert_eq!((pixels.bytes(), budget.used()), (500, 1000));
        let results = budget.count(300);
        assert_eq!((budget.used(), budget.peak()), (1300, 1300));
        drop((body, file, pixels, results));
        assert_eq!((budget.used(), budget.peak()), (0, 1300));
    }

    #[tokio::test]
    async fn those_who_wait_come_in_their_order_and_those_who_leave_hold_up_nobody() {
        let budget = Budget::new(400);
        let mut first = budget.reserve(Purpose::Body, 100, SOON).await.unwrap();
        let wait = |bytes: usize, patience: Duration| {
            let budget = budget.clone();
            tokio::spawn(async move { budget.reserve(Purpose::Body, bytes, patience).await })
        };
        let large = wait(80, SOON);
        tokio::task::yield_now().await;
        let gone = wait(70, LONG);
        tokio::task::yield_now().await;
        let small = wait(40, LONG);
        tokio::task::yield_now().await;
        // there is room for the small reservation, but larger ones are before it in the queue
        first.shrink_to(50);
        assert!(!small.is_finished());
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        // the large one times out, and the small one is granted
        assert!(large.await.unwrap().is_err());
        let small = timeout(LONG, small).await.unwrap().unwrap().unwrap();
        assert_eq!(budget.used(), 90);
        drop((first, small));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_requests_end_and_give_everything_back() {
        let budget = Budget::new(1000);
        let one = |i: usize| {
            let budget = budget.clone();
            async move {
                let _body = budget.reserve(Purpose::Body, 1 + i % 200, LONG).await?;
                tokio::task::yield_now().await;
                let file = budget.reserve(Purpose::File, 1 + i % 230, LONG).await?;
                tokio::task::yield_now().await;
                let _pixels = budget.reserve(Purpose::Pixels, 1 + i % 700, LONG).await?;
                drop(file);
                let _results = budget.count(i % 50);
                tokio::task::yield_now().await;
                Ok::<_, OutOfMemory>(())
            }
        };
        let all: Vec<_> = (0..500).map(|i| tokio::spawn(one(i))).collect();
        for (i, request) in all.into_iter().enumerate() {
            let patience = if i % 7 == 0 { SOON } else { LONG };
            // some requests are no longer awaited, but continue in the background
            if let Ok(ended) = timeout(patience, request).await {
                ended.unwrap().unwrap();
            }
        }
        let empty = async {
            while budget.used() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, empty).await.unwrap();
        assert!(budget.peak() <= 1000 + 500 * 50);
    }
}
