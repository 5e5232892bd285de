//! Streams of files in a replay: nothing of the host is behind them.

use std::collections::VecDeque;

use bytes::Bytes;
use wasmtime::format_err;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::answers::Ended;

/// The most bytes of one write, as of wasmtime's own streams of files.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// What was read of a file when it was recorded, for whoever reads it in other pieces. Where the calls are played back one by
/// one, it is not asked.
pub(super) struct Reads {
    pieces: VecDeque<Bytes>,
    ended: Ended,
}

impl Reads {
    pub(super) fn new((pieces, ended): (Vec<Bytes>, Ended)) -> Self {
        Self { pieces: pieces.into(), ended }
    }
}

impl InputStream for Reads {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        let Some(first) = self.pieces.front_mut() else {
            return Err(match &self.ended {
                Ended::Whole => StreamError::Closed,
                Ended::Broke(why) => StreamError::LastOperationFailed(format_err!("{why}")),
                Ended::Unread => {
                    StreamError::LastOperationFailed(format_err!("the recorded guest did not read further"))
                }
            });
        };
        let piece = first.split_to(first.len().min(size));
        if first.is_empty() {
            self.pieces.pop_front();
        }
        Ok(piece)
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
