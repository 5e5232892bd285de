//! An account as attributes of a span.

use nexus_core::kernel::{KernelAccount, SyscallStats};
use opentelemetry::KeyValue;

/// What an account says, by the names that dashboards and people know. What is unknown is absent.
pub fn kernel_attributes(kernel: &KernelAccount) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new("nexus.kernel.mode", kernel.mode.as_str())];
    let mut number = |name: &'static str, value: Option<u64>| {
        if let Some(value) = value {
            attributes.push(KeyValue::new(name, value as i64));
        }
    };
    number("nexus.kernel.lost", kernel.lost);
    let totals = kernel.syscall_totals();
    number("nexus.kernel.syscalls.count", totals.map(|t| t.count));
    number("nexus.kernel.syscalls.errors", totals.map(|t| t.errors));
    number("nexus.kernel.syscalls.time_ns", totals.map(|t| t.total_ns));
    number("nexus.time.on_cpu_ns", kernel.on_cpu_ns);
    number("nexus.time.guest_ns", kernel.guest_ns);
    number("nexus.time.run_queue_ns", kernel.run_queue_ns);
    number("nexus.time.off_cpu_ns", kernel.off_cpu_ns);
    number("nexus.time.system_ns", kernel.system_ns);
    number("nexus.time.page_fault_off_cpu_ns", kernel.page_fault_off_cpu_ns);
    number("nexus.time.io_wait_ns", kernel.io_wait_ns);
    number("nexus.kernel.io_waits", kernel.io_waits);
    number("nexus.time.waiting_ns", kernel.waiting_ns);
    number("nexus.kernel.page_faults.minor", kernel.page_faults.map(|f| f.minor));
    number("nexus.kernel.page_faults.major", kernel.page_faults.map(|f| f.major));
    number("nexus.kernel.context_switches", kernel.context_switches);
    number("nexus.kernel.migrations", kernel.migrations);
    if let Some(residual) = kernel.residual_ns {
        attributes.push(KeyValue::new("nexus.time.residual_ns", residual));
    }
    if let Some(complete) = kernel.complete {
        attributes.push(KeyValue::new("nexus.kernel.complete", complete));
    }
    if let Some(reason) = &kernel.reason {
        attributes.push(KeyValue::new("nexus.kernel.reason", reason.clone().into_owned()));
    }
    for (name, stats) in kernel.syscalls.iter().flatten() {
        let key = |what: &str| format!("nexus.kernel.syscall.{name}.{what}");
        attributes.push(KeyValue::new(key("count"), stats.count as i64));
        attributes.push(KeyValue::new(key("time_ns"), stats.total_ns as i64));
        attributes.push(KeyValue::new(key("max_ns"), stats.max_ns as i64));
        if let Some(off_cpu_ns) = stats.off_cpu_ns.filter(|ns| *ns > 0) {
            attributes.push(KeyValue::new(key("off_cpu_ns"), off_cpu_ns as i64));
        }
        if stats.errors > 0 {
            attributes.push(KeyValue::new(key("errors"), stats.errors as i64));
        }
    }
    for (import, calls) in kernel.imports.iter().flatten() {
        let key = |what: &str| format!("nexus.kernel.import.{import}.{what}");
        let sum = |of: fn(&SyscallStats) -> u64| calls.values().map(of).sum::<u64>() as i64;
        attributes.push(KeyValue::new(key("count"), sum(|stats| stats.count)));
        attributes.push(KeyValue::new(key("time_ns"), sum(|stats| stats.total_ns)));
    }
    attributes
}
