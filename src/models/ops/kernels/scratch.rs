//! Memory that kernels work in: buffers that every thread keeps, and results that tasks fill.

#![allow(unsafe_code)]

use std::cell::RefCell;

/// Numbers of a cache line.
const LINE: usize = 16;

/// One cache line, to which buffers are aligned.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct Line([f32; LINE]);

/// A buffer of f32 that starts at a cache line.
#[derive(Debug, Clone, Default)]
pub struct Aligned(Vec<Line>);

impl Aligned {
    /// `count` zeros, rounded up to whole lines.
    pub fn zeros(count: usize) -> Self {
        Self(vec![Line([0.0; LINE]); count.div_ceil(LINE)])
    }

    pub fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    /// All numbers.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let count = self.0.len() * LINE;
        // SAFETY: a `Line` is `LINE` f32 without gaps (`repr(C)`), all of them initialised.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), count) }
    }
}

thread_local! {
    static KEPT: RefCell<Aligned> = const { RefCell::new(Aligned(vec![])) };
}

/// A buffer that a task works in. It is the thread's own as long as the task runs, and kept for the next one.
#[derive(Debug)]
pub struct Scratch(Aligned);

impl Scratch {
    /// Takes the thread's buffer.
    pub fn take() -> Self {
        Self(KEPT.take())
    }

    /// Parts of these lengths, each of which starts at a cache line. What they hold is left from earlier.
    pub fn parts<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let whole = lengths.map(|length| length.next_multiple_of(LINE));
        let total = whole.iter().sum::<usize>() / LINE;
        if self.0.0.len() < total {
            self.0.0.resize(total, Line([0.0; LINE]));
        }
        let mut rest = self.0.as_mut_slice();
        std::array::from_fn(|i| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(whole[i]);
            rest = after;
            &mut part[..lengths[i]]
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        KEPT.replace(std::mem::take(&mut self.0));
    }
}

/// A pointer that the tasks of a kernel share; each touches its own part.
#[derive(Debug, Clone, Copy)]
pub struct Shared<T>(T);

// SAFETY: every kernel that uses it gives each task a part of its own to write, and nothing is read that
// another task writes.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    pub fn new(pointer: T) -> Self {
        Self(pointer)
    }

    /// The pointer; a method, so that closures take the whole wrapper.
    pub fn get(self) -> T {
        self.0
    }
}

/// A vector of `length` numbers that `fill` writes; nothing is cleared before.
///
/// # Safety
/// `fill` must write every one of the `length` numbers at the pointer it is given.
pub unsafe fn filled(length: usize, fill: impl FnOnce(Shared<*mut f32>)) -> Vec<f32> {
    let mut output: Vec<f32> = Vec::with_capacity(length);
    fill(Shared::new(output.as_mut_ptr()));
    // SAFETY: the capacity is there, and the caller promises that all is written.
    unsafe { output.set_len(length) };
    output
}
