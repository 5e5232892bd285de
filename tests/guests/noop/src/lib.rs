//! The smallest function of the world `nexus:function`: it takes an event and answers with nothing.
//!
//! What an invocation of it costs is what Nexus costs. Hence no standard library, no formatting, and an allocator that
//! only ever moves forward.
#![no_std]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;

wit_bindgen::generate!({
    path: "../../../wit",
    world: "function",
});

struct Noop;

impl Guest for Noop {
    fn handle(_event: Vec<u8>) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
}

export!(Noop);

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

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
