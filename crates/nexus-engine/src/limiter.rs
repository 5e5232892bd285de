//! The bounds on a guest's memory and tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wasmtime::ResourceLimiter;

/// The most table elements that a guest may have, over what its component declares.
const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Lets memory grow up to a bound, and remembers when it said no.
pub(crate) struct Limiter {
    memory_bytes_max: usize,
    memory: Memory,
    /// The growth that was let through last.
    last: usize,
    /// The bytes, for whoever looks from beside.
    shown: Arc<AtomicUsize>,
}

/// What became of a guest's linear memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// It asked for more than it may have: then a trap that follows is for want of memory.
    pub refused: bool,
    /// Bytes of all its memories together, as they were at the end: they never shrink.
    pub bytes: usize,
}

impl Limiter {
    /// Shows the bytes in `shown` too.
    pub fn new(memory_mb: u32, shown: Arc<AtomicUsize>) -> Self {
        Self { memory_bytes_max: (memory_mb as usize) << 20, memory: Memory::default(), last: 0, shown }
    }

    /// What became of the memory up to now.
    pub fn memory(&self) -> Memory {
        self.memory
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.last = 0;
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        if desired > self.memory_bytes_max {
            self.memory.refused = true;
            return Ok(false);
        }
        self.last = desired.saturating_sub(current);
        self.memory.bytes += self.last;
        self.shown.store(self.memory.bytes, Ordering::Relaxed);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.bytes -= std::mem::take(&mut self.last);
        self.shown.store(self.memory.bytes, Ordering::Relaxed);
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|max| desired <= max))
    }
}
