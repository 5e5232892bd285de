//! Two commands of `bpf()` that aya has no wrapper for.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// `bpf_attr` of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// `bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// Runs a raw tracepoint program that reads no argument, once, in the calling thread.
pub(crate) fn run_here(program: impl AsFd) -> io::Result<()> {
    let mut attr = TestRun { prog_fd: program.as_fd().as_raw_fd().cast_unsigned(), ..TestRun::default() };
    // SAFETY: `attr` lives through the call, is as long as it says, and names no buffer.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How often the kernel turned this program away because it was running on that CPU already (`recursion_misses`). Zero on a
/// kernel that does not count it (before 5.12).
pub(crate) fn recursion_misses(program: impl AsFd) -> io::Result<u64> {
    /// Where the number is in `struct bpf_prog_info`, in bytes.
    const OFFSET: usize = 208;
    /// As much of the structure as includes it.
    const LEN: usize = OFFSET + size_of::<u64>();

    let mut info = [0u64; LEN / size_of::<u64>()];
    let mut attr = GetInfo {
        fd: program.as_fd().as_raw_fd().cast_unsigned(),
        info_len: LEN as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: `attr` and `info` live through the call and are as long as they say; the kernel writes within them.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw mut attr, size_of::<GetInfo>()) };
    if ret == 0 { Ok(info[OFFSET / size_of::<u64>()]) } else { Err(io::Error::last_os_error()) }
}
