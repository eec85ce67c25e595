//! The order in which work is computed: the most urgent first, and of equal urgency the first that came.
//!
//! Work comes in steps: one pass of the detector, one image encoding, one group of boxes. Each urgency has a thread of
//! its own, of which only the most urgent one that has work computes: the others stop between two operations of the
//! models ([`crate::models::ops::interruptible`]) until it is done. All of them share one pool of threads for the
//! operations themselves, so that nothing oversubscribes the cores.
//!
//! A step that nobody waits for any more gives up its place at once, and ends between two operations if it was being
//! computed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::memory;
use crate::models::ops::{Interrupt, interruptible};

/// Who waits for a step, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// An annotator in the editor.
    Annotator,
    /// Somebody who has opened a task.
    Opened,
    /// Nobody in particular: one of many tasks.
    Batch,
    /// Nobody yet: it may be asked for later.
    Warming,
}

impl Urgency {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Annotator, Self::Opened, Self::Batch, Self::Warming];

    /// In logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Annotator => "annotator",
            Self::Opened => "opened",
            Self::Batch => "batch",
            Self::Warming => "warming",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Why a step has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// A defect that cost this step, not the server.
    #[error("the models panicked on this request")]
    Panicked,
    /// The threads are gone.
    #[error("the models' threads have stopped; restart groundling")]
    Stopped,
}

/// The queue, and the threads that work it off; clones share them. The threads end with the last clone.
#[derive(Debug, Clone)]
pub struct Scheduler(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Something was queued, has ended, or has been given up.
    changed: Condvar,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lanes: [Lane; Urgency::ALL.len()],
    is_closed: bool,
    /// When the last step ended; `None` once the memory it left was given back.
    idle_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<Step>,
    is_computing: bool,
}

struct Step {
    number: u64,
    work: Box<dyn FnOnce(Arc<dyn Interrupt>) + Send>,
    is_given_up: Arc<AtomicBool>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Step({})", self.number)
    }
}

impl State {
    /// Whether work of more urgency waits or is being computed.
    fn has_more_urgent(&self, urgency: Urgency) -> bool {
        let mut before = self.lanes[..urgency.index()].iter();
        before.any(|lane| lane.is_computing || !lane.queue.is_empty())
    }

    fn is_idle(&self) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.all(|lane| !lane.is_computing && lane.queue.is_empty())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long memory is kept for the next step.
const IDLE: Duration = Duration::from_secs(30);

impl Scheduler {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let scheduler = Self(Arc::new(Handle(shared.clone())));
        for urgency in Urgency::ALL {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("models-{}", urgency.name()))
                .spawn(move || work_off(&shared, urgency))?;
        }
        Ok(scheduler)
    }

    /// Runs `work` when its turn comes, and waits for what it gives. Whoever stops waiting gives up the place.
    ///
    /// # Errors
    /// If it panics, or the threads are gone.
    pub async fn run<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StepError> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let place = self.0.queue(urgency, move |interrupt| {
            let result = catch_unwind(AssertUnwindSafe(|| {
                span.in_scope(|| interruptible(interrupt, work))
            }));
            // whoever asked may be gone
            let _ = reply.send(result.map_err(|_| StepError::Panicked));
        });
        let result = answer.await.unwrap_or(Err(StepError::Stopped));
        drop(place);
        result
    }

    /// Steps that wait or are being computed, by urgency.
    pub fn waiting(&self) -> [usize; Urgency::ALL.len()] {
        let state = self.0.0.state();
        let count = |lane: &Lane| lane.queue.len() + usize::from(lane.is_computing);
        std::array::from_fn(|i| count(&state.lanes[i]))
    }
}

impl Handle {
    fn queue(
        &self,
        urgency: Urgency,
        work: impl FnOnce(Arc<dyn Interrupt>) + Send + 'static,
    ) -> Place {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let is_given_up = Arc::new(AtomicBool::new(false));
        let step = Step {
            number,
            work: Box::new(work),
            is_given_up: is_given_up.clone(),
        };
        self.0.state().lanes[urgency.index()].queue.push_back(step);
        self.0.changed.notify_all();
        Place {
            shared: self.0.clone(),
            urgency,
            number,
            is_given_up,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closed = true;
        // what is left is answered by the end of its reply
        for lane in &mut state.lanes {
            lane.queue.clear();
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// A step's place; given up when it is dropped.
#[derive(Debug)]
struct Place {
    shared: Arc<Shared>,
    urgency: Urgency,
    number: u64,
    is_given_up: Arc<AtomicBool>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        let mut state = self.shared.state();
        let queue = &mut state.lanes[self.urgency.index()].queue;
        // it is dropped after the lock is released: what it captured may do anything when it is dropped
        let given_up = queue
            .iter()
            .position(|step| step.number == self.number)
            .and_then(|at| queue.remove(at));
        drop(state);
        drop(given_up);
        self.shared.changed.notify_all();
    }
}

/// One urgency's thread: its steps, one after the other, until the scheduler is gone.
fn work_off(shared: &Arc<Shared>, urgency: Urgency) {
    while let Some(step) = next_step(shared, urgency) {
        let interrupt = Arc::new(MoreUrgent {
            shared: shared.clone(),
            urgency,
            is_given_up: step.is_given_up,
        });
        (step.work)(interrupt);
        let mut state = shared.state();
        state.lanes[urgency.index()].is_computing = false;
        state.idle_since = state.is_idle().then(Instant::now);
        drop(state);
        shared.changed.notify_all();
    }
}

/// Waits for the thread's next step. The most urgent thread gives back memory when nothing was computed for a while.
fn next_step(shared: &Shared, urgency: Urgency) -> Option<Step> {
    let mut state = shared.state();
    loop {
        if state.is_closed {
            return None;
        }
        if !state.has_more_urgent(urgency)
            && let Some(step) = state.lanes[urgency.index()].queue.pop_front()
        {
            state.lanes[urgency.index()].is_computing = true;
            state.idle_since = None;
            return Some(step);
        }
        let rest = match state.idle_since {
            Some(since) if urgency == Urgency::Annotator => {
                Some(IDLE.saturating_sub(since.elapsed()))
            }
            _ => None,
        };
        state = match rest {
            Some(Duration::ZERO) => {
                state.idle_since = None;
                drop(state);
                memory::give_back();
                shared.state()
            }
            Some(rest) => {
                let waited = shared.changed.wait_timeout(state, rest);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = shared.changed.wait(state);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        };
    }
}

/// Lets work of more urgency go first.
struct MoreUrgent {
    shared: Arc<Shared>,
    urgency: Urgency,
    is_given_up: Arc<AtomicBool>,
}

impl Interrupt for MoreUrgent {
    fn goes_on(&self) -> bool {
        let is_given_up = || self.is_given_up.load(Ordering::Relaxed);
        if is_given_up() {
            return false;
        }
        let mut state = self.shared.state();
        while state.has_more_urgent(self.urgency) && !is_given_up() {
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        !is_given_up()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::models::ops::{Activation, Matrix, linear};

    /// Operations of the models, one after the other, until they are told to stop; counts them.
    fn operations(count: &AtomicU64, is_over: &AtomicBool) -> candle_core::Result<()> {
        let one = Tensor::ones((1, 1), candle_core::DType::F32, &Device::Cpu)?;
        let weight = Matrix::new(one.clone())?;
        while !is_over.load(Ordering::SeqCst) {
            linear(&one, &weight, None, Activation::None, None)?;
            count.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A step of operations that runs until it is dropped or told to stop.
    #[derive(Clone, Default)]
    struct Busy {
        count: Arc<AtomicU64>,
        is_over: Arc<AtomicBool>,
    }

    impl Busy {
        fn start(
            &self,
            scheduler: &Scheduler,
            urgency: Urgency,
        ) -> tokio::task::JoinHandle<Result<candle_core::Result<()>, StepError>> {
            let (this, scheduler) = (self.clone(), scheduler.clone());
            let run = async move {
                let work = move || operations(&this.count, &this.is_over);
                scheduler.run(urgency, work).await
            };
            tokio::spawn(run)
        }

        /// Waits until more operations are done.
        async fn advances(&self) -> bool {
            let before = self.count.load(Ordering::SeqCst);
            let deadline = Instant::now() + Duration::from_secs(20);
            while self.count.load(Ordering::SeqCst) <= before + 1 {
                if Instant::now() > deadline {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            true
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn urgent_work_runs_between_two_operations_of_other_work() {
        let scheduler = Scheduler::start().unwrap();
        let busy = Busy::default();
        let batch = busy.start(&scheduler, Urgency::Batch);
        assert!(busy.advances().await);
        let count = busy.count.clone();
        let urgent = move || {
            let seen = |count: &AtomicU64| count.load(Ordering::SeqCst);
            // the operation that was under way ends, and then nothing moves
            std::thread::sleep(Duration::from_millis(50));
            let before = seen(&count);
            std::thread::sleep(Duration::from_millis(50));
            (before, seen(&count))
        };
        let (before, after) = scheduler.run(Urgency::Annotator, urgent).await.unwrap();
        assert_eq!(before, after, "the batch went on beside urgent work");
        assert!(busy.advances().await, "the batch never went on");
        busy.is_over.store(true, Ordering::SeqCst);
        batch.await.unwrap().unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_leaves_gives_up_the_place_and_what_is_computed() {
        let scheduler = Scheduler::start().unwrap();
        let busy = Busy::default();
        let first = busy.start(&scheduler, Urgency::Annotator);
        assert!(busy.advances().await);
        let waiting: Vec<_> = (0..6)
            .map(|_| Busy::default().start(&scheduler, Urgency::Annotator))
            .collect();
        while scheduler.waiting()[0] < 7 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for leaving in waiting {
            leaving.abort();
            assert!(leaving.await.unwrap_err().is_cancelled());
        }
        assert_eq!(scheduler.waiting()[0], 1, "who has left still waits");
        // the one being computed ends by itself, and the next one's turn comes
        first.abort();
        let next = tokio::time::timeout(
            Duration::from_secs(20),
            scheduler.run(Urgency::Annotator, || 7),
        );
        assert_eq!(next.await.unwrap(), Ok(7));
        let ended = busy.count.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(
            busy.count.load(Ordering::SeqCst),
            ended,
            "it was computed to no end"
        );
    }

    #[tokio::test]
    async fn the_more_urgent_first_and_of_equals_who_came_first() {
        let scheduler = Scheduler::start().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let hold = scheduler.run(Urgency::Annotator, move || released.recv());
        let order = Arc::new(Mutex::new(vec![]));
        let step = |urgency: Urgency, name: &'static str| {
            let order = order.clone();
            scheduler.run(urgency, move || order.lock().unwrap().push(name))
        };
        let asked = async {
            tokio::join!(
                step(Urgency::Warming, "warming"),
                step(Urgency::Batch, "batch 1"),
                step(Urgency::Batch, "batch 2"),
                step(Urgency::Opened, "opened"),
                step(Urgency::Annotator, "annotator"),
            )
        };
        let freed = async {
            while scheduler.waiting().iter().sum::<usize>() < 6 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(release);
        };
        let (held, _, ()) = tokio::join!(hold, asked, freed);
        assert!(held.unwrap().is_err(), "released by dropping");
        let order = order.lock().unwrap().clone();
        assert_eq!(
            order,
            ["annotator", "opened", "batch 1", "batch 2", "warming"]
        );
    }

    #[tokio::test]
    async fn a_panic_costs_one_step() {
        let scheduler = Scheduler::start().unwrap();
        let failed = scheduler.run(Urgency::Batch, || panic!("a defect"));
        assert_eq!(failed.await, Err(StepError::Panicked));
        assert_eq!(scheduler.run(Urgency::Batch, || 1).await, Ok(1));
    }
}
