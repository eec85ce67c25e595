//! Interrupts between two operations: work pauses for more urgent work, or is cancelled if its result is no longer
//! needed.
//!
//! The models do not depend on it. Their linear layers, of which every block has several, call the interrupt that is
//! set for the current thread.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::Result;

/// A check between two operations. It may block.
pub trait Interrupt: Send + Sync {
    /// Whether to continue; if not, the work ends with an error.
    fn should_continue(&self) -> bool;
}

thread_local! {
    /// The interrupt of the work that this thread runs.
    static CURRENT: RefCell<Option<Arc<dyn Interrupt>>> = const { RefCell::new(None) };
}

/// Runs `work`, and calls `interrupt` between the model operations that this thread runs in it.
pub fn interruptible<T>(interrupt: Arc<dyn Interrupt>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Arc<dyn Interrupt>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.replace(self.0.take());
        }
    }
    let _restore = Restore(CURRENT.replace(Some(interrupt)));
    work()
}

/// Calls the current thread's interrupt.
///
/// # Errors
/// If the work is cancelled.
pub(super) fn check_interrupt() -> Result<()> {
    let current = CURRENT.with_borrow(Option::clone);
    match current {
        Some(interrupt) if !interrupt.should_continue() => {
            candle_core::bail!("the work was cancelled, because its result is no longer needed")
        }
        _ => Ok(()),
    }
}
