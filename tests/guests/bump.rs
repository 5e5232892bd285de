//! The allocator of the guests that do without a standard library, and the one function that the component model asks of it.
//!
//! It is a file and not a crate, so that each of the two guests remains one crate that is built on its own.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;

/// An allocator that never gives anything back, except the last block handed out: an instance lives for one event, or,
/// where a host keeps it for more, each call frees its event before the next one comes.
struct Bump(UnsafeCell<usize>);

// SAFETY: the module is single-threaded; wasm32 without the atomics feature has no threads to share this with.
unsafe impl Sync for Bump {}

const PAGE_BYTES: usize = 64 * 1024;

unsafe extern "C" {
    /// The first address after the module's static data, defined by the linker.
    static __heap_base: u8;
}

// SAFETY: blocks come from above the static data, are aligned as asked, lie inside memory that has been grown, and do not
// overlap, since `next` only goes back to the start of a block that has just been freed.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe {
            let next = self.0.get();
            if *next == 0 {
                *next = &raw const __heap_base as usize;
            }
            let Some(start) = (*next).checked_next_multiple_of(layout.align()) else {
                return core::ptr::null_mut();
            };
            let Some(end) = start.checked_add(layout.size()) else {
                return core::ptr::null_mut();
            };
            let have = core::arch::wasm32::memory_size(0) * PAGE_BYTES;
            if end > have {
                let pages = (end - have).div_ceil(PAGE_BYTES);
                if core::arch::wasm32::memory_grow(0, pages) == usize::MAX {
                    return core::ptr::null_mut();
                }
            }
            *next = end;
            start as *mut u8
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe {
            let next = self.0.get();
            if ptr as usize + layout.size() == *next {
                *next = ptr as usize;
            }
        }
    }
}

#[global_allocator]
static ALLOCATOR: Bump = Bump(UnsafeCell::new(0));

/// What the host calls to place an argument in the guest's memory.
///
/// For preview 1 the bindings bring it along; for preview 2 they leave it to the C library, which would come with an allocator
/// of its own that takes the same memory.
#[cfg(target_env = "p2")]
#[unsafe(no_mangle)]
unsafe extern "C" fn cabi_realloc(old: *mut u8, old_bytes: usize, align: usize, new_bytes: usize) -> *mut u8 {
    if new_bytes == 0 {
        // Never read from or written to, but it has to be aligned.
        return core::ptr::without_provenance_mut(align);
    }
    // SAFETY: `old` came from here, with these sizes and this alignment; the canonical ABI says so.
    let block = unsafe {
        if old_bytes == 0 {
            ALLOCATOR.alloc(Layout::from_size_align_unchecked(new_bytes, align))
        } else {
            ALLOCATOR.realloc(old, Layout::from_size_align_unchecked(old_bytes, align), new_bytes)
        }
    };
    if block.is_null() {
        core::arch::wasm32::unreachable()
    }
    block
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
