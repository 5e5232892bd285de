//! The bounds on a guest's memory and tables.

use wasmtime::ResourceLimiter;

/// The most table elements that a guest may have, over what its component declares.
const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Lets memory grow up to a bound, and remembers when it said no.
pub(crate) struct Limiter {
    memory_bytes_max: usize,
    refused: bool,
    high_water: usize,
}

impl Limiter {
    pub fn new(memory_mb: u32) -> Self {
        Self { memory_bytes_max: (memory_mb as usize) << 20, refused: false, high_water: 0 }
    }

    /// Whether the guest asked for more than it may have: then a trap that follows is for want of memory.
    pub fn refused(&self) -> bool {
        self.refused
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        if desired > self.memory_bytes_max {
            self.refused = true;
            return Ok(false);
        }
        self.high_water = self.high_water.max(desired);
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX && maximum.is_none_or(|max| desired <= max))
    }
}
