//! The program's allocator: large blocks that are freed are kept for the next ones.
//!
//! Every tensor operation allocates its output. System allocators give blocks of many megabytes back to the
//! kernel at once, and get them again as fresh pages, each of which faults and is cleared: a third of a
//! detection's time. What is kept is bounded (1 GiB); [`give_back`] returns it when there is nothing to do.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, PoisonError};

#[global_allocator]
static ALLOCATOR: CachingAllocator = CachingAllocator;

/// Blocks from this size on are kept.
const LARGE: usize = 1 << 20;

/// Bytes that may be kept.
const LIMIT: usize = 1 << 30;

/// Large blocks start at a huge page, where the system has those.
const HUGE_PAGE: usize = 2 << 20;

/// Blocks that may be kept.
const PLACES: usize = 256;

/// The system's allocator, with large blocks kept.
struct CachingAllocator;

/// A kept block.
#[derive(Clone, Copy)]
struct Block {
    start: *mut u8,
    size: usize,
}

struct Kept {
    /// The first `count` are kept, the longest unused first.
    blocks: [Block; PLACES],
    count: usize,
    bytes: usize,
}

// SAFETY: a kept block has no owner; who takes it out becomes its owner.
unsafe impl Send for Kept {}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [Block {
        start: ptr::null_mut(),
        size: 0,
    }; PLACES],
    count: 0,
    bytes: 0,
});

impl Kept {
    /// Takes out the block of this size that was kept last.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let kept = &self.blocks[..self.count];
        let index = kept.iter().rposition(|block| block.size == size)?;
        Some(self.remove(index).start)
    }

    fn remove(&mut self, index: usize) -> Block {
        let block = self.blocks[index];
        self.blocks.copy_within(index + 1..self.count, index);
        self.count -= 1;
        self.bytes -= block.size;
        block
    }

    /// Keeps a block; those kept longest are freed where the limits would be exceeded.
    fn put(&mut self, block: Block) {
        if block.size > LIMIT {
            free(block);
            return;
        }
        while self.count == PLACES || self.bytes + block.size > LIMIT {
            free(self.remove(0));
        }
        self.blocks[self.count] = block;
        self.count += 1;
        self.bytes += block.size;
    }
}

/// Returns all kept blocks to the system, and what its own allocator has kept of smaller ones.
pub fn give_back() {
    {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.count > 0 {
            let last = kept.count - 1;
            free(kept.remove(last));
        }
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether a block of this layout is one of those that are kept.
fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE
        && layout.size() <= isize::MAX as usize / 2
        && layout.align() <= HUGE_PAGE
}

/// What a large block's size is rounded up to: eight sizes between one power of two and the next, so that blocks
/// of nearly one size can replace each other.
fn rounded(size: usize) -> usize {
    size.next_multiple_of(1 << (size.ilog2() - 3))
}

/// The layout in which the system has a large block.
fn system_layout(size: usize) -> Layout {
    let align = if size >= HUGE_PAGE { HUGE_PAGE } else { 4096 };
    // SAFETY: a power of two, and a size that does not overflow (`is_large`).
    unsafe { Layout::from_size_align_unchecked(size, align) }
}

fn free(block: Block) {
    // SAFETY: the block came from the system with this layout, and has no owner any more.
    unsafe { System.dealloc(block.start, system_layout(block.size)) }
}

/// A large block, which may hold what an earlier owner wrote.
fn large(size: usize) -> *mut u8 {
    let kept = KEPT
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(size);
    if let Some(start) = kept {
        return start;
    }
    // SAFETY: the size is not zero.
    let start = unsafe { System.alloc(system_layout(size)) };
    #[cfg(target_os = "linux")]
    if !start.is_null() && size >= HUGE_PAGE {
        // SAFETY: advice on pages of our own; it may be refused, which changes nothing.
        unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
    }
    start
}

// SAFETY: large blocks are at least as large and as aligned as asked for, and are handed out once; everything else
// is the system allocator's.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return large(rounded(layout.size()));
        }
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: the caller's promises.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let start = large(rounded(layout.size()));
        if !start.is_null() {
            // SAFETY: the block is at least this large.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if is_large(layout) {
            let size = rounded(layout.size());
            KEPT.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .put(Block { start, size });
            return;
        }
        // SAFETY: the caller's promises; the block came from the system with this layout.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size does not overflow with the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(new)) {
            // SAFETY: the caller's promises.
            (false, false) => unsafe { System.realloc(start, layout, size) },
            (true, true) if rounded(layout.size()) == rounded(size) => start,
            // SAFETY: a new block, the smaller size of which is copied before the old one is freed.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(start, layout.size().min(size));
                    self.dealloc(start, layout);
                }
                to
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_by_an_eighth_at_most() {
        for size in [LARGE, LARGE + 1, 3 * LARGE - 5, 18_248_704, (1 << 27) - 1] {
            let rounded = rounded(size);
            assert!(rounded >= size && rounded - size <= size / 8, "{size}");
            assert_eq!(super::rounded(rounded), rounded, "{size}");
        }
    }

    #[test]
    fn kept_blocks_are_cleared_where_zeros_are_asked_for_and_given_back() {
        // a size that no other test allocates
        let size = 37 * LARGE + 12_345;
        let layout = Layout::from_size_align(size, 8).expect("a layout");
        for _ in 0..3 {
            // SAFETY: the block is written inside its size, and freed with its layout.
            unsafe {
                let start = ALLOCATOR.alloc_zeroed(layout);
                assert!(!start.is_null() && start.addr().is_multiple_of(HUGE_PAGE));
                assert!((0..size).step_by(4095).all(|i| *start.add(i) == 0));
                start.write_bytes(7, size);
                ALLOCATOR.dealloc(start, layout);
            }
        }
        assert!(KEPT.lock().expect("kept blocks").bytes <= LIMIT);
        give_back();
        let kept = KEPT.lock().expect("kept blocks");
        assert!(
            !kept.blocks[..kept.count]
                .iter()
                .any(|block| block.size == rounded(size))
        );
    }

    #[test]
    fn vectors_grow_and_shrink_through_all_sizes() {
        let mut numbers: Vec<u32> = vec![];
        for i in 0..3_000_000 {
            numbers.push(i);
        }
        numbers.truncate(1000);
        numbers.shrink_to_fit();
        assert!((0..1000).eq(numbers.iter().copied()));
    }
}
