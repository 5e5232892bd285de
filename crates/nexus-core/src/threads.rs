//! Threads of the runtime, by the part that they work for, so that what they make the kernel do is that part's.

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

/// The part whose threads run tasks: requests, deliveries, files.
pub const TASKS: &str = "tasks";
/// The part that writes the log.
pub const LOG: &str = "log";
/// The part that lets guests know how time goes by.
pub const EPOCH: &str = "epoch";

static HOOK: OnceLock<fn(&'static str)> = OnceLock::new();

thread_local! {
    static PART: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// From now on, threads of [`spawn`] call this with their part when they start, and at each [`checkpoint`]. The first call
/// counts.
pub fn on_start(hook: fn(&'static str)) {
    // One process has one set of probes.
    let _ = HOOK.set(hook);
}

/// Starts a thread of a part. Its name is `nexus-PART`. Fails where the system has no room for one.
pub fn spawn<T: Send + 'static>(
    part: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(format!("nexus-{part}")).spawn(move || {
        PART.set(Some(part));
        checkpoint();
        work()
    })
}

/// To be called now and then by threads that live long: whoever watches threads may have come, or come anew, since they began.
pub fn checkpoint() {
    if let (Some(hook), Some(part)) = (HOOK.get(), PART.get()) {
        hook(part);
    }
}
