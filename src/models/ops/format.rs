//! The format in which the kernels store weights.

use std::cell::Cell;

use super::Format;

thread_local! {
    /// The format in which this thread packs weights.
    static CURRENT: Cell<Format> = const { Cell::new(Format::F32) };
}

/// Runs `load`, in which this thread packs weights for the kernels in `format`; they keep this format afterwards.
/// Biases and norms, which are not factors of a matrix product, are always stored in f32, and so are matrices that a
/// model computes.
pub fn with_weight_format<T>(format: Format, load: impl FnOnce() -> T) -> T {
    struct Restore(Format);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _restore = Restore(CURRENT.replace(format));
    load()
}

/// The current format for packing weights.
pub(super) fn current() -> Format {
    CURRENT.get()
}
