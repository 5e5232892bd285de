//! What a guest writes: log lines, and a command's result.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use nexus_core::outcome::{LogLine, LogStream};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// The longest line that is kept, in bytes; the rest of it becomes the next line.
const LINE_BYTES_MAX: usize = 8 << 10;
/// The most lines that are kept of one invocation: an empty one has no bytes, but is not free.
const LINES_MAX: usize = 4096;
/// How much a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Called with each line as it is written.
pub type OnLine = Arc<dyn Fn(&LogLine) + Send + Sync>;

/// The lines of one invocation, of both streams, up to a bound.
pub(crate) struct Lines {
    started: Instant,
    bytes_left: usize,
    lines: Vec<LogLine>,
    dropped: u64,
    on_line: Option<OnLine>,
}

impl Lines {
    pub fn new(started: Instant, bytes_max: usize, on_line: Option<OnLine>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { started, bytes_left: bytes_max, lines: Vec::new(), dropped: 0, on_line }))
    }

    fn push(&mut self, stream: LogStream, line: &[u8]) {
        if line.len() > self.bytes_left || self.lines.len() >= LINES_MAX {
            self.dropped += 1;
            return;
        }
        self.bytes_left -= line.len();
        let line = LogLine {
            stream,
            offset_ns: self.started.elapsed().as_nanos() as u64,
            line: String::from_utf8_lossy(line).into_owned(),
        };
        if let Some(on_line) = &self.on_line {
            on_line(&line);
        }
        self.lines.push(line);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// The lines, and how many found no room.
    pub fn take(&mut self) -> (Vec<LogLine>, u64) {
        (std::mem::take(&mut self.lines), std::mem::take(&mut self.dropped))
    }
}

/// One stream of the guest: split into lines, or kept as its result.
#[derive(Clone)]
pub(crate) struct Sink {
    inner: Arc<Mutex<SinkInner>>,
}

enum SinkInner {
    Lines { stream: LogStream, partial: Vec<u8>, lines: Arc<Mutex<Lines>> },
    Result { bytes: Vec<u8>, bytes_max: usize, over: bool },
}

impl Sink {
    /// A stream whose lines are logged.
    pub fn lines(stream: LogStream, lines: Arc<Mutex<Lines>>) -> Self {
        Self { inner: Arc::new(Mutex::new(SinkInner::Lines { stream, partial: Vec::new(), lines })) }
    }

    /// A stream that is the command's result.
    pub fn result(bytes_max: usize) -> Self {
        Self { inner: Arc::new(Mutex::new(SinkInner::Result { bytes: Vec::new(), bytes_max, over: false })) }
    }

    /// Logs what is left of a last line without an end.
    pub fn finish(&self) {
        if let SinkInner::Lines { stream, partial, lines } = &mut *self.inner.lock()
            && !partial.is_empty()
        {
            lines.lock().push(*stream, &std::mem::take(partial));
        }
    }

    /// The result, or `None` if it was more than the bound.
    pub fn take_result(&self) -> Option<Bytes> {
        match &mut *self.inner.lock() {
            SinkInner::Result { bytes, over: false, .. } => Some(std::mem::take(bytes).into()),
            SinkInner::Result { .. } | SinkInner::Lines { .. } => None,
        }
    }

    /// Takes what the guest wrote; `false` if it was more than the bound.
    fn take(&self, written: &[u8]) -> bool {
        match &mut *self.inner.lock() {
            SinkInner::Lines { stream, partial, lines } => {
                for piece in written.split_inclusive(|b| *b == b'\n') {
                    let (text, ended) = match piece.strip_suffix(b"\n") {
                        Some(text) => (text, true),
                        None => (piece, false),
                    };
                    for part in text.chunks(LINE_BYTES_MAX) {
                        if partial.len() + part.len() > LINE_BYTES_MAX {
                            lines.lock().push(*stream, &std::mem::take(partial));
                        }
                        partial.extend_from_slice(part);
                    }
                    if ended {
                        let line = std::mem::take(partial);
                        lines.lock().push(*stream, line.strip_suffix(b"\r").unwrap_or(&line));
                    }
                }
                true
            }
            SinkInner::Result { bytes, bytes_max, over } => {
                if bytes.len() + written.len() > *bytes_max {
                    *over = true;
                    return false;
                }
                bytes.extend_from_slice(written);
                true
            }
        }
    }
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if self.take(&bytes) {
            return Ok(());
        }
        Err(StreamError::Trap(wasmtime::Error::msg("the result is larger than its bound")))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait::async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.take(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::FileTooLarge, "the result is larger than its bound")))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(writes: &[&[u8]], bytes_max: usize) -> (Vec<String>, u64) {
        let lines = Lines::new(Instant::now(), bytes_max, None);
        let sink = Sink::lines(LogStream::Stderr, lines.clone());
        for write in writes {
            assert!(sink.take(write));
        }
        sink.finish();
        let (lines, dropped) = lines.lock().take();
        (lines.into_iter().map(|l| l.line).collect(), dropped)
    }

    #[test]
    fn lines_are_split_wherever_the_writes_are() {
        assert_eq!(lines_of(&[b"a\nb", b"c\r\n\nd"], 1000).0, ["a", "bc", "", "d"]);
        assert_eq!(lines_of(&[b"\xff\n"], 1000).0, ["\u{fffd}"]);
    }

    #[test]
    fn lines_are_bounded_in_length_and_sum() {
        let long = vec![b'x'; LINE_BYTES_MAX * 2 + 1];
        let (lines, _) = lines_of(&[&long], 1 << 20);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, LINE_BYTES_MAX, 1]);
        assert_eq!(lines_of(&[b"123456\n123456\n1\n"], 8), (vec!["123456".into(), "1".into()], 1));
        let empty = vec![b'\n'; LINES_MAX + 3];
        let (lines, dropped) = lines_of(&[&empty], 1000);
        assert_eq!((lines.len(), dropped), (LINES_MAX, 3));
    }

    #[test]
    fn a_result_over_its_bound_is_none() {
        let sink = Sink::result(4);
        assert!(sink.take(b"1234"));
        assert!(!sink.take(b"5"));
        assert_eq!(sink.take_result(), None);
    }
}
