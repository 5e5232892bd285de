//! What works here, and how to get the rest: for `nexus doctor`.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use aya::maps::{Array, MapData};

use crate::btf;
use crate::error::ProbesError;
use crate::loaded::{in_first_pid_namespace, read_btf};
use crate::probes::{Probes, ProbesConfig};

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Every feature that kernel data needs, with what stands in its way and how to get it.
///
/// The last lines are what the probes themselves say: they are loaded and attached for a moment, self-test included.
pub fn probe_status() -> Vec<(&'static str, Result<(), String>)> {
    let mut status = vec![
        ("kernel version", check_kernel_version()),
        ("capabilities CAP_BPF and CAP_PERFMON", check_capabilities()),
        ("BTF of the kernel", check_btf().map_err(|error| error.to_string())),
        ("bpf() system call", check_bpf().map_err(|error| error.to_string())),
        ("thread ids (PID namespace)", check_thread_ids()),
    ];
    match Probes::load(&ProbesConfig::for_observe()) {
        Ok(probes) => {
            status.push(("probes load, attach and count", Ok(())));
            status.extend(probes.families().map(|(name, found)| (name, found.map_err(Cow::into_owned))));
        }
        Err(error) => status.push(("probes load, attach and count", Err(error.to_string()))),
    }
    status
}

/// The same, where a collector loads the probes: whether it does so for this process.
pub fn collector_status(socket: &Path) -> Vec<(&'static str, Result<(), String>)> {
    match Probes::connect(socket, &ProbesConfig { threads_max: 1, ..ProbesConfig::default() }) {
        Ok(probes) => {
            let mut status = vec![("collector", Ok(()))];
            status.extend(probes.families().map(|(name, found)| (name, found.map_err(Cow::into_owned))));
            status
        }
        Err(error) => vec![("collector", Err(error.to_string()))],
    }
}

/// Major and minor version of the running kernel; zeros if it does not tell.
pub(crate) fn kernel_version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn check_kernel_version() -> Result<(), String> {
    let (major, minor) = kernel_version();
    if (major, minor) >= (5, 17) {
        return Ok(());
    }
    Err(format!("Linux {major}.{minor} is older than 5.17, from which on the probes are known to load"))
}

fn check_capabilities() -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1 || effective >> CAP_SYS_ADMIN & 1 == 1;
    if has(CAP_BPF) && has(CAP_PERFMON) {
        return Ok(());
    }
    Err("this process lacks them: run as root, or `setcap cap_bpf,cap_perfmon+ep` on the program".into())
}

fn check_btf() -> Result<(), ProbesError> {
    btf::field_offset(&read_btf()?, "task_struct", "pid")?;
    Ok(())
}

fn check_bpf() -> Result<(), ProbesError> {
    Array::<MapData, u32>::create(1, 0).map_err(|error| ProbesError::from_map("create a map", error))?;
    Ok(())
}

fn check_thread_ids() -> Result<(), String> {
    if in_first_pid_namespace() || kernel_version() >= (5, 10) {
        return Ok(());
    }
    Err("this process is in a PID namespace of its own, whose ids only Linux 5.10 and newer translate: run it in the host's".into())
}
