//! How much one evaluation may do.

use super::error::Error;

/// The longest string that a function makes, in bytes.
pub const STRING_BYTES_MAX: usize = 64 * 1024;
/// The most that one evaluation does: bytes that functions read and write, bytes that are read as numbers, and steps of
/// `LIKE`. A few tests of attributes are some hundreds.
pub const WORK_MAX: usize = 256 * 1024;

/// What is left to be done by one evaluation. Not counted are fetching attributes and comparing texts, which happen
/// no more often than the expression is long.
pub(super) struct Work {
    left: usize,
}

impl Work {
    pub(super) fn new() -> Self {
        Self { left: WORK_MAX }
    }

    /// Takes so much off.
    pub(super) fn spend(&mut self, amount: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(amount).ok_or(Error::Generic("the expression takes too much work"))?;
        Ok(())
    }

    /// Asks for a string of so many bytes, the last of which are to be written now.
    pub(super) fn room(&mut self, bytes: usize, written: usize) -> Result<(), Error> {
        if bytes > STRING_BYTES_MAX {
            return Err(Error::Generic("a string is longer than 64 KiB"));
        }
        self.spend(written)
    }
}
