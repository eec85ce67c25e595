//! A look between two operations: where work lets more urgent work go first, and where work that nobody waits for ends.
//!
//! The models do not know of it. Their linear layers, of which every block has several, look up what the thread that
//! computes was told.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::Result;

/// What is done between two operations. It may block.
pub trait Interrupt: Send + Sync {
    /// Whether to go on; otherwise the work ends with an error.
    fn goes_on(&self) -> bool;
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Interrupt>>> = const { RefCell::new(None) };
}

/// Runs `work`, and asks `interrupt` between the operations of the models that this thread runs in it.
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

/// Whether the work of this thread goes on.
///
/// # Errors
/// If it does not.
pub(super) fn between_operations() -> Result<()> {
    let current = CURRENT.with_borrow(Option::clone);
    match current {
        Some(interrupt) if !interrupt.goes_on() => {
            candle_core::bail!("nobody waits for the result any more")
        }
        _ => Ok(()),
    }
}
