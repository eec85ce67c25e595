//! Working memory of kernels: per-thread buffers, and outputs that parallel tasks fill.

#![allow(unsafe_code)]

use std::cell::RefCell;

/// Numbers per cache line.
const LINE_NUMBERS: usize = 16;

/// One cache line; buffers are aligned to it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct CacheLine([f32; LINE_NUMBERS]);

/// A buffer of f32 that is aligned to a cache line.
#[derive(Debug, Clone, Default)]
pub struct AlignedBuffer(Vec<CacheLine>);

impl AlignedBuffer {
    /// A buffer of `count` zeros, rounded up to whole cache lines.
    pub fn zeros(count: usize) -> Self {
        Self(vec![
            CacheLine([0.0; LINE_NUMBERS]);
            count.div_ceil(LINE_NUMBERS)
        ])
    }

    /// The address of the first number.
    pub fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    /// All numbers.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let count = self.0.len() * LINE_NUMBERS;
        // SAFETY: a `CacheLine` is `LINE_NUMBERS` f32 without gaps (`repr(C)`), all of them initialised.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), count) }
    }
}

thread_local! {
    /// The buffer that this thread's next task takes.
    static THREAD_BUFFER: RefCell<AlignedBuffer> = const { RefCell::new(AlignedBuffer(vec![])) };
}

/// A buffer for one task. It is taken from the thread, and returned for the next task.
#[derive(Debug)]
pub struct Scratch(AlignedBuffer);

impl Scratch {
    /// Takes the thread's buffer.
    pub fn take() -> Self {
        Self(THREAD_BUFFER.take())
    }

    /// Splits the buffer into parts of these lengths, each aligned to a cache line. The contents are undefined: they
    /// may be left from earlier tasks.
    pub fn parts<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let padded = lengths.map(|length| length.next_multiple_of(LINE_NUMBERS));
        let total = padded.iter().sum::<usize>() / LINE_NUMBERS;
        if self.0.0.len() < total {
            self.0.0.resize(total, CacheLine([0.0; LINE_NUMBERS]));
        }
        let mut rest = self.0.as_mut_slice();
        std::array::from_fn(|i| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(padded[i]);
            rest = after;
            &mut part[..lengths[i]]
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        THREAD_BUFFER.replace(std::mem::take(&mut self.0));
    }
}

/// A pointer that the tasks of a kernel share; each task accesses its own part.
#[derive(Debug, Clone, Copy)]
pub struct SharedPointer<T>(T);

// SAFETY: every kernel gives each task its own part to write, and no task reads what another one writes.
unsafe impl<T> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T: Copy> SharedPointer<T> {
    /// Wraps a pointer.
    pub fn new(pointer: T) -> Self {
        Self(pointer)
    }

    /// The pointer. It is a method, so that closures capture the whole wrapper.
    pub fn get(self) -> T {
        self.0
    }
}

/// Creates a vector of `length` numbers with `fill`; the memory is not initialised before.
///
/// # Safety
/// `fill` must write all `length` numbers at its pointer.
pub unsafe fn filled(length: usize, fill: impl FnOnce(SharedPointer<*mut f32>)) -> Vec<f32> {
    let mut output: Vec<f32> = Vec::with_capacity(length);
    fill(SharedPointer::new(output.as_mut_ptr()));
    // SAFETY: the capacity is sufficient, and the caller guarantees that all numbers are written.
    unsafe { output.set_len(length) };
    output
}
