//! Streams of files in a replay: nothing of the host is behind them.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::format_err;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::answers::{Content, Ended};

/// The most bytes of one write, as of wasmtime's own streams of files.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// What was read of a file when it was recorded, for whoever reads it in other pieces. Where the calls are played back one by
/// one, it is not asked.
pub(super) struct Reads {
    pieces: Arc<Vec<Bytes>>,
    /// The piece that is read, and from where in it.
    at: (usize, usize),
    ended: Ended,
}

impl Reads {
    pub(super) fn new((pieces, ended): Content) -> Self {
        Self { pieces, at: (0, 0), ended }
    }
}

impl InputStream for Reads {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let (which, from) = self.at;
        let Some(piece) = self.pieces.get(which) else {
            return Err(match &self.ended {
                Ended::Whole => StreamError::Closed,
                Ended::Broke(why) => StreamError::LastOperationFailed(format_err!("{why}")),
                Ended::Unread => {
                    StreamError::LastOperationFailed(format_err!("the recorded guest did not read further"))
                }
            });
        };
        let to = piece.len().min(from.saturating_add(size));
        self.at = if to == piece.len() { (which + 1, 0) } else { (which, to) };
        Ok(piece.slice(from..to))
    }
}

#[async_trait::async_trait]
impl Pollable for Reads {
    async fn ready(&mut self) {}
}

/// What is written goes nowhere.
pub(super) struct Swallows;

impl OutputStream for Swallows {
    fn write(&mut self, _: Bytes) -> StreamResult<()> {
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait::async_trait]
impl Pollable for Swallows {
    async fn ready(&mut self) {}
}
