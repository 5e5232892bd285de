//! A closer look at guests than a server can afford: at replays, one at a time.

use std::collections::HashMap;

use parking_lot::Mutex;
use wasmtime::{AsContext, AsContextMut, WasmBacktrace, WasmCoreDump};

/// Different stacks that are told apart.
const STACKS_MAX: usize = 100_000;

/// What is looked at. Nothing, by default: all of it costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closer {
    /// Where guests are, ten thousand times a second; seen at the beginnings of functions and at the turns of loops.
    pub samples: bool,
    /// What a guest was like when it trapped.
    pub core_dumps: bool,
    /// Code is not optimized, and a debugger that looks at this process (gdb, lldb) finds the guests' functions, lines and
    /// variables, as far as their components have debug information in DWARF.
    pub debugger: bool,
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    stacks: Mutex<HashMap<Vec<String>, u64>>,
    core_dump: Mutex<Option<Vec<u8>>>,
}

impl Seen {
    /// Takes down where a guest is.
    pub(crate) fn sample(&self, store: impl AsContext) {
        let backtrace = WasmBacktrace::force_capture(store);
        let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
            Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
            None => format!("wasm function {}", frame.func_index()),
        };
        let mut stack: Vec<String> = backtrace.frames().iter().rev().map(name).collect();
        if stack.is_empty() {
            stack.push("[between the host and the guest]".to_owned());
        }
        let mut stacks = self.stacks.lock();
        if stacks.len() < STACKS_MAX || stacks.contains_key(&stack) {
            *stacks.entry(stack).or_default() += 1;
        }
    }

    /// Keeps the core dump of a guest that trapped, the first one.
    pub(crate) fn trapped(&self, error: &wasmtime::Error, store: impl AsContextMut) {
        let mut kept = self.core_dump.lock();
        if let (Some(dump), true) = (error.downcast_ref::<WasmCoreDump>(), kept.is_none()) {
            *kept = Some(dump.serialize(store, "guest"));
        }
    }
}

impl crate::Engine {
    /// Where guests were seen, outermost function first, and how often. From now on it is counted anew.
    pub fn take_stacks(&self) -> HashMap<Vec<String>, u64> {
        std::mem::take(&mut self.seen.stacks.lock())
    }

    /// The core dump of the first guest that trapped, in WebAssembly's own format (tool-conventions/Coredump.md), if one did.
    pub fn take_core_dump(&self) -> Option<Vec<u8>> {
        self.seen.core_dump.lock().take()
    }
}
