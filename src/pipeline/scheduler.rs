//! A scheduler for the models' work: the most urgent step runs first, and steps of equal urgency run in the order of
//! arrival.
//!
//! A step is one pass of the detector, one image encoding, or one group of boxes. Each urgency has its own thread.
//! Only the most urgent thread with work computes; the others pause between two operations of the models
//! ([`crate::models::ops::interruptible`]) until it is done. All of them share one thread pool for the operations, so
//! the cores are not oversubscribed.
//!
//! A step whose caller has stopped waiting is removed from the queue at once. If it is running, it ends at the next
//! operation.

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
    /// An annotator who works in the editor.
    Annotator,
    /// A person who has opened a task.
    Opened,
    /// A batch of tasks.
    Batch,
    /// No request waits: the result is computed in advance.
    Warming,
}

impl Urgency {
    /// All urgencies, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Annotator, Self::Opened, Self::Batch, Self::Warming];

    /// The name in logs and metrics.
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
    /// A defect: the step panicked. Only this step fails; the server continues.
    #[error(
        "a model panicked on this request; this is a bug in groundling, and the log has the details"
    )]
    Panicked,
    /// The threads have ended.
    #[error("the threads that run the models have ended; restart groundling")]
    Stopped,
}

/// The step queues and their threads; clones share them. The threads end when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Scheduler(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a step is queued, ends, or is cancelled.
    changed: Condvar,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    lanes: [Lane; Urgency::ALL.len()],
    is_closed: bool,
    /// When the last step ended; `None` if a step is pending or the unused memory has been released.
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
    is_cancelled: Arc<AtomicBool>,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Step({})", self.number)
    }
}

impl State {
    /// Whether more urgent work is waiting or running.
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

/// How long unused memory is kept for the next step.
const MEMORY_RELEASE_DELAY: Duration = Duration::from_secs(30);

impl Scheduler {
    /// Starts one thread per urgency.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let scheduler = Self(Arc::new(Handle(shared.clone())));
        for urgency in Urgency::ALL {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("models-{}", urgency.name()))
                .spawn(move || run_lane(&shared, urgency))?;
        }
        Ok(scheduler)
    }

    /// Runs `work` when its turn comes, and returns its result. Dropping the future cancels the step.
    ///
    /// # Errors
    /// If `work` panics, or the threads have ended.
    pub async fn run<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StepError> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let handle = self.0.queue(urgency, move |interrupt| {
            let result = catch_unwind(AssertUnwindSafe(|| {
                span.in_scope(|| interruptible(interrupt, work))
            }));
            // the receiver may be gone
            let _ = reply.send(result.map_err(|_| StepError::Panicked));
        });
        let result = answer.await.unwrap_or(Err(StepError::Stopped));
        drop(handle);
        result
    }

    /// Number of steps that are waiting or running, per urgency.
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
    ) -> StepHandle {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let is_cancelled = Arc::new(AtomicBool::new(false));
        let step = Step {
            number,
            work: Box::new(work),
            is_cancelled: is_cancelled.clone(),
        };
        self.0.state().lanes[urgency.index()].queue.push_back(step);
        self.0.changed.notify_all();
        StepHandle {
            shared: self.0.clone(),
            urgency,
            number,
            is_cancelled,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closed = true;
        // waiting callers get an error, because their reply channels are dropped
        for lane in &mut state.lanes {
            lane.queue.clear();
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

/// A handle to a queued step; dropping it cancels the step.
#[derive(Debug)]
struct StepHandle {
    shared: Arc<Shared>,
    urgency: Urgency,
    number: u64,
    is_cancelled: Arc<AtomicBool>,
}

impl Drop for StepHandle {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        let mut state = self.shared.state();
        let queue = &mut state.lanes[self.urgency.index()].queue;
        // drop the step after the lock is released: destructors of captured values may run any code
        let cancelled = queue
            .iter()
            .position(|step| step.number == self.number)
            .and_then(|at| queue.remove(at));
        drop(state);
        drop(cancelled);
        self.shared.changed.notify_all();
    }
}

/// The thread of one urgency: runs its steps one by one until the scheduler is dropped.
fn run_lane(shared: &Arc<Shared>, urgency: Urgency) {
    while let Some(step) = next_step(shared, urgency) {
        let interrupt = Arc::new(Preemption {
            shared: shared.clone(),
            urgency,
            is_cancelled: step.is_cancelled,
        });
        (step.work)(interrupt);
        let mut state = shared.state();
        state.lanes[urgency.index()].is_computing = false;
        state.idle_since = state.is_idle().then(Instant::now);
        drop(state);
        shared.changed.notify_all();
    }
}

/// Waits for the thread's next step. The most urgent thread also releases unused memory after a time without work.
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
                Some(MEMORY_RELEASE_DELAY.saturating_sub(since.elapsed()))
            }
            _ => None,
        };
        state = match rest {
            Some(Duration::ZERO) => {
                state.idle_since = None;
                drop(state);
                memory::release_cached();
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

/// RetryDelays a step while more urgent work is pending, and ends a cancelled one.
struct Preemption {
    shared: Arc<Shared>,
    urgency: Urgency,
    is_cancelled: Arc<AtomicBool>,
}

impl Interrupt for Preemption {
    fn should_continue(&self) -> bool {
        let is_cancelled = || self.is_cancelled.load(Ordering::Relaxed);
        if is_cancelled() {
            return false;
        }
        let mut state = self.shared.state();
        while state.has_more_urgent(self.urgency) && !is_cancelled() {
            let waited = self.shared.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        !is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use candle_core::{Device, Tensor};

    use super::*;
    use crate::models::ops::{Activation, Matrix, linear};

    /// Runs model operations until `is_over` is set or they are interrupted, and counts them.
    fn operations(count: &AtomicU64, is_over: &AtomicBool) -> candle_core::Result<()> {
        let one = Tensor::ones((1, 1), candle_core::DType::F32, &Device::Cpu)?;
        let weight = Matrix::new(one.clone())?;
        while !is_over.load(Ordering::SeqCst) {
            linear(&one, &weight, None, Activation::None, None)?;
            count.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// A step of operations that runs until it is cancelled or `is_over` is set.
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

        /// Waits until two more operations are done; false after 20 s.
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
            // the current operation ends; after that the count must not change
            std::thread::sleep(Duration::from_millis(50));
            let before = seen(&count);
            std::thread::sleep(Duration::from_millis(50));
            (before, seen(&count))
        };
        let (before, after) = scheduler.run(Urgency::Annotator, urgent).await.unwrap();
        assert_eq!(
            before, after,
            "the batch continued while urgent work was running"
        );
        assert!(
            busy.advances().await,
            "the batch did not continue after the urgent work"
        );
        busy.is_over.store(true, Ordering::SeqCst);
        batch.await.unwrap().unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_abandoned_step_leaves_the_queue_and_stops_computing() {
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
        for abandoned in waiting {
            abandoned.abort();
            assert!(abandoned.await.unwrap_err().is_cancelled());
        }
        assert_eq!(
            scheduler.waiting()[0],
            1,
            "the abandoned steps are still queued"
        );
        // the running step ends by itself, and the next one runs
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
            "the abandoned step is still computing"
        );
    }

    #[tokio::test]
    async fn steps_run_by_urgency_and_then_in_the_order_of_arrival() {
        let scheduler = Scheduler::start().unwrap();
        let (release, released) = mpsc::channel::<()>();
        let hold = scheduler.run(Urgency::Annotator, move || released.recv());
        let order = Arc::new(Mutex::new(vec![]));
        let step = |urgency: Urgency, name: &'static str| {
            let order = order.clone();
            scheduler.run(urgency, move || order.lock().unwrap().push(name))
        };
        let steps = async {
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
        let (held, _, ()) = tokio::join!(hold, steps, freed);
        assert!(
            held.unwrap().is_err(),
            "the first step ends when its sender is dropped"
        );
        let order = order.lock().unwrap().clone();
        assert_eq!(
            order,
            ["annotator", "opened", "batch 1", "batch 2", "warming"]
        );
    }

    #[tokio::test]
    async fn a_panic_fails_only_its_own_step() {
        let scheduler = Scheduler::start().unwrap();
        let failed = scheduler.run(Urgency::Batch, || panic!("a bug"));
        assert_eq!(failed.await, Err(StepError::Panicked));
        assert_eq!(scheduler.run(Urgency::Batch, || 1).await, Ok(1));
    }
}
