//! The probes of Nexus, one family a file.
//!
//! Built by `cargo xtask build-ebpf`; the object is committed, so that nobody needs an eBPF toolchain to build or run Nexus.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "maps and the kernel's memory are reached through pointers")]

mod faults;
mod maps;
mod process;
mod report;
mod sample;
mod sched;
mod syscalls;
mod trees;

use aya_ebpf::Global;

/// Read by the collector out of the object, before it loads anything.
#[unsafe(no_mangle)]
static NEXUS_ABI_VERSION: Global<u32> = Global::new(nexus_ebpf_common::ABI_VERSION);

/// The licence that the kernel asks for: the helpers that read its memory are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
