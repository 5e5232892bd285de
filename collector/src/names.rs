//! Names of system calls.

use std::borrow::Cow;

use nexus_ebpf_common::SYSCALL_OTHER;
use syscalls::Sysno;

/// The name of a system call as the kernel's table and strace have it; `syscall_N` for a number that has none yet.
pub fn syscall_name(nr: u32) -> Cow<'static, str> {
    match Sysno::new(nr as usize) {
        Some(known) => Cow::Borrowed(known.name()),
        None => Cow::Owned(format!("syscall_{nr}")),
    }
}

/// The same for a number out of a slot, where all numbers beyond the table share the last place.
pub(crate) fn slot_syscall_name(nr: u16) -> Cow<'static, str> {
    if u32::from(nr) == SYSCALL_OTHER { Cow::Borrowed("other") } else { syscall_name(u32::from(nr)) }
}
