//! Tests that need a privilege say so where it is not there, and fail where it was said to be required.

/// Whether this test can run; prints why not. With `NEXUS_REQUIRE_EBPF=1` a missing privilege is a failure.
pub fn can_watch_the_kernel() -> bool {
    let capable = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            let hex = s.lines().find_map(|l| l.strip_prefix("CapEff:"))?.trim().to_owned();
            u64::from_str_radix(&hex, 16).ok()
        })
        // CAP_PERFMON is 38 and CAP_BPF is 39.
        .is_some_and(|caps| caps >> 38 & 3 == 3);
    if capable {
        return true;
    }
    let reason = "CAP_BPF and CAP_PERFMON are missing";
    assert!(std::env::var_os("NEXUS_REQUIRE_EBPF").is_none(), "NEXUS_REQUIRE_EBPF is set, but {reason}");
    println!("skipped: {reason}");
    false
}

/// Whether this is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Whether this test may mount a file system; prints why not.
pub fn can_mount() -> bool {
    if !is_root() {
        println!("skipped: only root can mount a small file system");
    }
    is_root()
}
