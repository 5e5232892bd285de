//! The smallest function of the world `wasi:http`: it answers every request with 200 and `hello`.
//!
//! The benchmark runs these very bytes in Nexus and in `wasmtime serve`, so that the ratio of the two is a ratio of hosts and
//! not of guests. Hence no standard library and an allocator that only ever moves forward.
#![no_std]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = ok(response.body());
        ResponseOutparam::set(out, Ok(response));
        let stream = ok(body.write());
        ok(stream.blocking_write_and_flush(b"hello"));
        drop(stream);
        ok(OutgoingBody::finish(body, None));
    }
}

/// Unwraps without the formatting code that `unwrap` would bring along.
fn ok<T, E>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(_) => core::arch::wasm32::unreachable(),
    }
}

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
