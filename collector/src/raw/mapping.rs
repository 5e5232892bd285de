//! The mapped slots. They appear as atomics, because another thread may read them at any time.

use std::mem::{offset_of, size_of};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI64, AtomicU16, AtomicU32, AtomicU64};
use std::{io, slice};

use nexus_ebpf_common::{
    Owner, RECORDS_MAX, SYSCALLS_MAX, SchedCounts, SchedState, Slot, SlotHeader, SlowRecord, SyscallStat,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// [`SyscallStat`] as seen from user space.
#[repr(C)]
pub(crate) struct StatCells {
    pub(crate) generation: AtomicU64,
    pub(crate) count: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) total_ns: AtomicU64,
    pub(crate) max_ns: AtomicU64,
    pub(crate) off_cpu_ns: AtomicU64,
    pub(crate) run_queue_ns: AtomicU64,
    pub(crate) slower: AtomicU64,
}

/// [`SchedState`] as seen from user space, which only ever clears it.
#[repr(C)]
pub(crate) struct SchedStateCells {
    pub(crate) out_ts_ns: AtomicU64,
    wake_ts_ns: AtomicU64,
    blocked: AtomicU32,
    cpu: AtomicU32,
}

/// [`SchedCounts`] as seen from user space.
#[repr(C)]
pub(crate) struct SchedCells {
    pub(crate) off_cpu_ns: AtomicU64,
    pub(crate) run_queue_ns: AtomicU64,
    pub(crate) fault_off_cpu_ns: AtomicU64,
    pub(crate) switches: AtomicU64,
    pub(crate) migrations: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) major_faults: AtomicU64,
    pub(crate) io_wait_ns: AtomicU64,
    pub(crate) io_waits: AtomicU64,
}

/// [`SlowRecord`] as seen from user space.
#[repr(C)]
pub(crate) struct RecordCells {
    pub(crate) nr: AtomicU32,
    pub(crate) reserved: AtomicU32,
    pub(crate) ret: AtomicI64,
    pub(crate) start_ns: AtomicU64,
    pub(crate) duration_ns: AtomicU64,
}

/// [`Slot`] as seen from user space, the header's fields first.
#[repr(C)]
pub(crate) struct SlotCells {
    pub(crate) generation: AtomicU64,
    pub(crate) enter_ts_ns: AtomicU64,
    pub(crate) enter_generation: AtomicU64,
    pub(crate) slow_ns: AtomicU64,
    pub(crate) enter_nr: AtomicU32,
    pub(crate) touched_len: AtomicU32,
    pub(crate) records_len: AtomicU32,
    pub(crate) lost: AtomicU32,
    enter_time: [AtomicU64; 2],
    pub(crate) owner: [AtomicU64; 4],
    pub(crate) sched: SchedStateCells,
    pub(crate) counts_generation: AtomicU64,
    pub(crate) counts: SchedCells,
    reserved: [AtomicU64; 7],
    pub(crate) stats: [StatCells; SYSCALLS_MAX],
    pub(crate) touched: [AtomicU16; SYSCALLS_MAX],
    pub(crate) records: [RecordCells; RECORDS_MAX],
}

const _: () = {
    assert!(size_of::<SlotCells>() == size_of::<Slot>());
    assert!(size_of::<StatCells>() == size_of::<SyscallStat>());
    assert!(size_of::<RecordCells>() == size_of::<SlowRecord>());
    assert!(offset_of!(SlotCells, slow_ns) == offset_of!(SlotHeader, slow_ns));
    assert!(offset_of!(SlotCells, enter_nr) == offset_of!(SlotHeader, enter_nr));
    assert!(offset_of!(SlotCells, touched_len) == offset_of!(SlotHeader, touched_len));
    assert!(offset_of!(SlotCells, records_len) == offset_of!(SlotHeader, records_len));
    assert!(offset_of!(SlotCells, lost) == offset_of!(SlotHeader, lost));
    assert!(size_of::<SchedStateCells>() == size_of::<SchedState>());
    assert!(size_of::<SchedCells>() == size_of::<SchedCounts>());
    assert!(size_of::<[AtomicU64; 4]>() == size_of::<Owner>());
    assert!(offset_of!(SlotCells, owner) == offset_of!(SlotHeader, owner));
    assert!(offset_of!(SlotCells, sched) == offset_of!(SlotHeader, sched));
    assert!(offset_of!(SlotCells, counts_generation) == offset_of!(SlotHeader, counts_generation));
    assert!(offset_of!(SlotCells, counts) == offset_of!(SlotHeader, counts));
    assert!(offset_of!(SchedStateCells, cpu) == offset_of!(SchedState, cpu));
    assert!(offset_of!(SchedCells, switches) == offset_of!(SchedCounts, switches));
    assert!(offset_of!(SchedCells, major_faults) == offset_of!(SchedCounts, major_faults));
    assert!(offset_of!(SchedCells, io_waits) == offset_of!(SchedCounts, io_waits));
    assert!(offset_of!(SlotCells, stats) == offset_of!(Slot, stats));
    assert!(offset_of!(SlotCells, touched) == offset_of!(Slot, touched));
    assert!(offset_of!(SlotCells, records) == offset_of!(Slot, records));
    assert!(offset_of!(StatCells, max_ns) == offset_of!(SyscallStat, max_ns));
    assert!(offset_of!(StatCells, run_queue_ns) == offset_of!(SyscallStat, run_queue_ns));
    assert!(offset_of!(StatCells, slower) == offset_of!(SyscallStat, slower));
    assert!(offset_of!(RecordCells, ret) == offset_of!(SlowRecord, ret));
    assert!(offset_of!(RecordCells, duration_ns) == offset_of!(SlowRecord, duration_ns));
};

/// The map `SLOTS`, mapped into this process for as long as this lives.
pub(crate) struct SlotMap {
    base: NonNull<SlotCells>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for SlotMap {}
// SAFETY: all access goes through atomics.
unsafe impl Sync for SlotMap {}

impl SlotMap {
    /// Maps the first `len` values of the array behind `fd`, which must have values of the size of a [`Slot`].
    pub(crate) fn new(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = len as usize;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing that exists.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                len * size_of::<SlotCells>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        Ok(Self { base, len })
    }

    /// The slots.
    pub(crate) fn slots(&self) -> &[SlotCells] {
        // SAFETY: the mapping is of this length, page-aligned, and lives as long as `self`; every bit pattern is an atomic,
        // and atomics may be shared with whoever else writes, here the kernel.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl Drop for SlotMap {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; `slots` lends it for the life of `self` only.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len * size_of::<SlotCells>()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "could not unmap the slots");
        }
    }
}
