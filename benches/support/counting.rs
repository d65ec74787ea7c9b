//! An allocator that counts allocations.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Delegates to mimalloc, the binary's allocator.
pub(crate) struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its signature; this one only counts and passes on")]
// SAFETY: every call is passed on to mimalloc as it is, under the promises that the caller gave.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { mimalloc::MiMalloc.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        grown(new_size);
        unsafe { mimalloc::MiMalloc.realloc(ptr, layout, new_size) }
    }
}

fn grown(size: usize) {
    let held = HELD.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(held, Ordering::Relaxed);
    // While a thread ends, there is nothing left to count.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

/// The memory use of some work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// Number of allocations of this thread.
    pub(crate) allocations: u64,
    /// Peak memory of all threads above their memory before, in bytes.
    pub(crate) peak: usize,
}

/// Runs `work` and returns its memory use.
pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let asked = ASKED.with(Cell::get);
    let done = work();
    let allocations = ASKED.with(Cell::get) - asked;
    (done, Taken { allocations, peak: PEAK.load(Ordering::Relaxed).saturating_sub(before) })
}
