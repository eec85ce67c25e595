//! A global allocator for programs that run the models. It caches large freed blocks and reuses them.
//!
//! Every tensor operation allocates its output. System allocators return blocks of many megabytes to the kernel at
//! once, and later get them back as fresh pages. The page faults and the clearing of these pages took a third of the
//! time of a detection. The cache is bounded (1 GiB), and [`release_cached`] empties it when the server is idle.
//!
//! The binary uses it. A program that uses the library may do the same:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: groundling::memory::CachingAllocator = groundling::memory::CachingAllocator;
//! ```

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Minimum size of a cached block in bytes (1 MiB).
const MIN_CACHED_BYTES: usize = 1 << 20;

/// Maximum size of the cache in bytes.
const MAX_CACHED_BYTES: usize = 1 << 30;

/// Size of a huge page in bytes. Blocks of at least this size are aligned to it, so that Linux can back them with huge
/// pages.
const HUGE_PAGE: usize = 2 << 20;

/// Maximum number of cached blocks.
const MAX_BLOCKS: usize = 256;

/// The system allocator with a cache for large blocks.
#[derive(Debug)]
pub struct CachingAllocator;

/// A cached block.
#[derive(Clone, Copy)]
struct Block {
    start: *mut u8,
    size: usize,
}

struct BlockCache {
    /// The first `count` entries are valid, ordered from the least to the most recently freed.
    blocks: [Block; MAX_BLOCKS],
    count: usize,
    bytes: usize,
}

// SAFETY: a cached block has no other owner; the code that removes it from the cache becomes its owner.
unsafe impl Send for BlockCache {}

static CACHE: Mutex<BlockCache> = Mutex::new(BlockCache {
    blocks: [Block {
        start: ptr::null_mut(),
        size: 0,
    }; MAX_BLOCKS],
    count: 0,
    bytes: 0,
});

impl BlockCache {
    /// Removes and returns the most recently freed block of exactly this size.
    fn take(&mut self, size: usize) -> Option<*mut u8> {
        let blocks = &self.blocks[..self.count];
        let index = blocks.iter().rposition(|block| block.size == size)?;
        Some(self.remove(index).start)
    }

    fn remove(&mut self, index: usize) -> Block {
        let block = self.blocks[index];
        self.blocks.copy_within(index + 1..self.count, index);
        self.count -= 1;
        self.bytes -= block.size;
        block
    }

    /// Adds a block to the cache. If a limit would be exceeded, the blocks that were cached the longest time ago are
    /// freed first.
    fn put(&mut self, block: Block) {
        if block.size > MAX_CACHED_BYTES {
            free(block);
            return;
        }
        while self.count == MAX_BLOCKS || self.bytes + block.size > MAX_CACHED_BYTES {
            free(self.remove(0));
        }
        self.blocks[self.count] = block;
        self.count += 1;
        self.bytes += block.size;
    }
}

/// Returns all cached blocks to the system, and with glibc also the free memory that its own allocator holds.
pub fn release_cached() {
    {
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        while cache.count > 0 {
            let last = cache.count - 1;
            free(cache.remove(last));
        }
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `malloc_trim` may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Whether blocks of this layout are cached.
fn is_large(layout: Layout) -> bool {
    layout.size() >= MIN_CACHED_BYTES
        && layout.size() <= isize::MAX as usize / 2
        && layout.align() <= HUGE_PAGE
}

/// Rounds the size of a large block up. There are eight sizes between one power of two and the next, so that blocks of
/// similar sizes can replace each other.
fn rounded_size(size: usize) -> usize {
    size.next_multiple_of(1 << (size.ilog2() - 3))
}

/// The layout with which a large block is allocated from the system.
fn system_layout(size: usize) -> Layout {
    let align = if size >= HUGE_PAGE { HUGE_PAGE } else { 4096 };
    // SAFETY: the alignment is a power of two, and the size does not overflow (`is_large`).
    unsafe { Layout::from_size_align_unchecked(size, align) }
}

fn free(block: Block) {
    // SAFETY: the block was allocated with this layout, and has no owner any more.
    unsafe { System.dealloc(block.start, system_layout(block.size)) }
}

/// Allocates a large block. It is not cleared: it may contain data of an earlier owner.
fn alloc_large(size: usize) -> *mut u8 {
    let cached = CACHE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(size);
    if let Some(start) = cached {
        return start;
    }
    // SAFETY: the size is not zero: it is at least `MIN_CACHED_BYTES`.
    let start = unsafe { System.alloc(system_layout(size)) };
    #[cfg(target_os = "linux")]
    if !start.is_null() && size >= HUGE_PAGE {
        // SAFETY: the advice concerns only pages of this block. The kernel may ignore it without an effect on
        // correctness.
        unsafe { libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE) };
    }
    start
}

// SAFETY: large blocks have at least the requested size and alignment, and each has one owner at a time; all other
// blocks are passed to the system allocator.
unsafe impl GlobalAlloc for CachingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return alloc_large(rounded_size(layout.size()));
        }
        // SAFETY: the caller upholds the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_large(layout) {
            // SAFETY: the caller upholds the contract of `alloc_zeroed`.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let start = alloc_large(rounded_size(layout.size()));
        if !start.is_null() {
            // SAFETY: the block has at least this size.
            unsafe { start.write_bytes(0, layout.size()) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if is_large(layout) {
            let size = rounded_size(layout.size());
            CACHE
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .put(Block { start, size });
            return;
        }
        // SAFETY: the caller upholds the contract of `dealloc`; the block was allocated by the system with this layout.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that the size does not overflow when it is rounded up to the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (is_large(layout), is_large(new)) {
            // SAFETY: the caller upholds the contract of `realloc`.
            (false, false) => unsafe { System.realloc(start, layout, size) },
            (true, true) if rounded_size(layout.size()) == rounded_size(size) => start,
            // SAFETY: the new block does not overlap the old one, and only the smaller of the two sizes is copied
            // before the old block is freed.
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
        for size in [
            MIN_CACHED_BYTES,
            MIN_CACHED_BYTES + 1,
            3 * MIN_CACHED_BYTES - 5,
            18_248_704,
            (1 << 27) - 1,
        ] {
            let rounded = rounded_size(size);
            assert!(rounded >= size && rounded - size <= size / 8, "{size}");
            assert_eq!(rounded_size(rounded), rounded, "{size}");
        }
    }

    #[test]
    fn alloc_zeroed_clears_cached_blocks_and_release_cached_frees_them() {
        // a size that no other test allocates
        let size = 37 * MIN_CACHED_BYTES + 12_345;
        let layout = Layout::from_size_align(size, 8).expect("a valid layout");
        for _ in 0..3 {
            // SAFETY: only bytes inside the block are written, and it is freed with its layout.
            unsafe {
                let start = CachingAllocator.alloc_zeroed(layout);
                assert!(!start.is_null() && start.addr().is_multiple_of(HUGE_PAGE));
                assert!((0..size).step_by(4095).all(|i| *start.add(i) == 0));
                start.write_bytes(7, size);
                CachingAllocator.dealloc(start, layout);
            }
        }
        assert!(CACHE.lock().expect("the lock of the cache").bytes <= MAX_CACHED_BYTES);
        release_cached();
        let cache = CACHE.lock().expect("the lock of the cache");
        assert!(
            !cache.blocks[..cache.count]
                .iter()
                .any(|block| block.size == rounded_size(size))
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
