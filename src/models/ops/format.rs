//! How the kernels keep weights.

use std::cell::Cell;

use super::Format;

thread_local! {
    static CURRENT: Cell<Format> = const { Cell::new(Format::F32) };
}

/// Runs `load`, in which this thread packs the weights of layers for the kernels in `format`; they stay so. What is
/// not multiplied as a whole matrix, such as biases and norms, is kept in f32 in any case, and so is a matrix that a
/// model computes.
pub fn with_weights_in<T>(format: Format, load: impl FnOnce() -> T) -> T {
    struct Restore(Format);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(format));
    load()
}

/// The format that weights are packed in now.
pub(super) fn current() -> Format {
    CURRENT.get()
}
