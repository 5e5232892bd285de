//! A backup that comes from a server.

use std::io::{self, Write};
use std::path::Path;

use super::error::AdminError;
use super::file::{Existing, NewFile};
use super::watch::Watch;
use super::{Summary, restore};

/// A file that is written as the bytes of a backup come in, and has its name when it is whole; dropped before, it is gone.
pub struct Received(NewFile);

impl Received {
    /// Begins the file.
    ///
    /// # Errors
    ///
    /// [`AdminError::Exists`] if it is there and is to be kept, [`AdminError::Io`] if it cannot be written.
    pub fn begin(to_file: &Path, existing: Existing) -> Result<Self, AdminError> {
        NewFile::create(to_file, existing).map(Self)
    }

    /// Reads what came from one end to the other, and names it if it is whole.
    ///
    /// # Errors
    ///
    /// As [`verify`](super::verify) and [`Received::begin`].
    pub fn finish(mut self, watch: Watch<'_>) -> Result<Summary, AdminError> {
        let summary = restore::verify(self.0.written()?, watch)?;
        self.0.finish()?;
        Ok(summary)
    }
}

impl Write for Received {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
