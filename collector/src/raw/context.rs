//! What other programs can read of this one, by OpenTelemetry's proposals: a thread's trace (OTEP 4947) and the process's resource
//! (OTEP 4719). An eBPF profiler of the whole host so joins its samples to our traces, with nothing to set up.

use std::io;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// The trace and the span that a thread works for. Zeros: none.
pub(crate) type Ids = ([u8; 16], [u8; 8]);

/// Works for nobody in particular.
pub(crate) const NONE: Ids = ([0; 16], [0; 8]);

#[cfg(target_arch = "x86_64")]
mod thread {
    use std::cell::UnsafeCell;

    use super::{Ids, NONE, Ordering, compiler_fence};

    // The thread-local pointer by whose name readers find the record. Rust has no thread-local variable with a name of its own.
    std::arch::global_asm!(
        ".pushsection .tbss.otel_thread_ctx_v1,\"awT\",@nobits",
        ".globl otel_thread_ctx_v1",
        ".type otel_thread_ctx_v1,@object",
        ".size otel_thread_ctx_v1,8",
        ".balign 8",
        "otel_thread_ctx_v1:",
        ".zero 8",
        ".popsection",
    );

    /// The record: 28 bytes, and no attributes behind them.
    #[repr(C)]
    struct Record {
        trace_id: [u8; 16],
        span_id: [u8; 8],
        valid: u8,
        reserved: u8,
        attributes_len: u16,
    }

    const _: () = assert!(size_of::<Record>() == 28);

    thread_local! {
        static RECORD: UnsafeCell<Record> = const {
            UnsafeCell::new(Record { trace_id: NONE.0, span_id: NONE.1, valid: 1, reserved: 0, attributes_len: 0 })
        };
    }

    /// The variable's address.
    #[inline]
    fn pointer() -> *mut *const Record {
        let pointer: *mut *const Record;
        // SAFETY: reads the thread's own base address, which is the word at it, and adds the variable's offset from it, which the
        // linker of a program knows. This is no code of a shared library.
        unsafe {
            std::arch::asm!(
                "mov {0}, qword ptr fs:[0]",
                "lea {0}, [{0} + otel_thread_ctx_v1@TPOFF]",
                out(reg) pointer,
                options(nostack, preserves_flags, pure, readonly)
            );
        }
        pointer
    }

    /// Says whom the thread works for from now on; whom it did before. Readers interrupt the thread, so the compiler's order is
    /// the only one that matters.
    #[inline]
    pub(crate) fn publish(ids: Ids) -> Ids {
        // Fails in the thread's last moments, when it works for nobody.
        let before = RECORD.try_with(|record| {
            let (pointer, record) = (pointer(), record.get());
            // SAFETY: both are this thread's own, and nobody keeps a reference to either; readers are other programs. The record
            // has no destructor, so its memory is the thread's to its end.
            unsafe {
                let before = ((*record).trace_id, (*record).span_id);
                pointer.write_volatile(std::ptr::null());
                compiler_fence(Ordering::SeqCst);
                ((*record).trace_id, (*record).span_id) = ids;
                compiler_fence(Ordering::SeqCst);
                if ids != NONE {
                    pointer.write_volatile(record);
                }
                before
            }
        });
        before.unwrap_or(NONE)
    }

    /// What a reader would see.
    #[cfg(test)]
    pub(super) fn read() -> Option<Ids> {
        // SAFETY: as in `publish`.
        unsafe {
            let record = pointer().read_volatile().as_ref()?;
            assert_eq!((record.valid, record.reserved, record.attributes_len), (1, 0, 0));
            Some((record.trace_id, record.span_id))
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use thread::publish;

/// On other machines nothing is published.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn publish(_ids: Ids) -> Ids {
    NONE
}

/// Publishes the process's context, `opentelemetry.proto.processcontext.v1development.ProcessContext` in protobuf, until the
/// process ends. To be called once.
pub(crate) fn publish_process(payload: &[u8]) -> io::Result<()> {
    const NAME: &str = "OTEL_CTX";
    const HEADER_LEN: usize = 32;
    const VERSION: u32 = 2;
    let too_long = || io::Error::from_raw_os_error(libc::E2BIG);
    let payload_len = u32::try_from(payload.len()).map_err(|_| too_long())?;
    let len = (HEADER_LEN + payload.len()).next_multiple_of(rustix::param::page_size());
    let file = memfd_create(NAME, MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len as u64)?;
    let published = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let published_ns = u64::try_from(published.as_nanos()).map_err(|_| too_long())?;
    // SAFETY: a new mapping at an address of the kernel's choice; it is written within its length, and is never unmapped unless
    // that fails, before anybody knows of it.
    unsafe {
        let (access, kind) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let base = mmap(std::ptr::null_mut(), len, access, kind, &file, 0)?.cast::<u8>();
        // A child would say that it is us.
        if let Err(error) = madvise(base.cast(), len, Advice::LinuxDontFork) {
            munmap(base.cast(), len)?;
            return Err(error.into());
        }
        let at = base.add(HEADER_LEN);
        at.copy_from_nonoverlapping(payload.as_ptr(), payload.len());
        base.add(8).cast::<u32>().write_volatile(VERSION);
        base.add(12).cast::<u32>().write_volatile(payload_len);
        base.add(16).cast::<u64>().write_volatile(published_ns);
        base.add(24).cast::<u64>().write_volatile(at as u64);
        // Whoever sees the signature sees the rest.
        std::sync::atomic::fence(Ordering::SeqCst);
        base.cast::<[u8; 8]>().write_volatile(*b"OTEL_CTX");
        // Kernels without names for mappings refuse; the file's name is found then.
        let name = c"OTEL_CTX";
        libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, base, len, name.as_ptr());
    }
    Ok(())
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::context::within;

    #[test]
    fn a_thread_says_whom_it_works_for_and_only_then() {
        let read = thread::read;
        assert_eq!(read(), None);
        let (outer, inner) = (([1; 16], [2; 8]), ([3; 16], [4; 8]));
        within(outer.0, outer.1, || {
            assert_eq!(read(), Some(outer));
            within(inner.0, inner.1, || assert_eq!(read(), Some(inner)));
            assert_eq!(read(), Some(outer));
            assert_eq!(std::thread::spawn(read).join().expect("no panic"), None);
            let panicked = std::panic::catch_unwind(|| within(inner.0, inner.1, || panic!("out of it")));
            assert!(panicked.is_err());
            assert_eq!(read(), Some(outer));
        });
        assert_eq!(read(), None);
    }
}
