//! A journal as people read it.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Entry, FileAnswer, Got, Journal, Read, Whose, Wrote};

/// Bytes of a body that are shown.
const SHOWN_BYTES_MAX: usize = 512;

/// One call of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallView {
    /// Which one, counted from 0.
    pub call: usize,
    /// Its import.
    pub import: &'static str,
    /// What was asked.
    pub asked: String,
    /// What was answered.
    pub answer: String,
}

/// All calls of a journal, in their order.
pub fn calls(journal: &Journal) -> Vec<CallView> {
    let (mut wall, mut monotonic) = (0_i64, 0_u64);
    let mut requests = 0;
    let view = |(call, entry): (usize, &Entry)| {
        let (asked, answer) = match entry {
            Entry::Wall(since) => {
                wall = wall.wrapping_add(*since);
                (String::new(), time(wall))
            }
            Entry::Monotonic(since) => {
                monotonic = monotonic.wrapping_add(*since);
                (String::new(), format!("{monotonic} ns"))
            }
            Entry::Request(..) => {
                requests += 1;
                let (asked, answer) = parts(entry);
                (format!("{asked} (request {})", requests - 1), answer)
            }
            other => parts(other),
        };
        CallView { call, import: entry.import(), asked, answer }
    };
    journal.entries.iter().enumerate().map(view).collect()
}

fn time(nanoseconds: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).map_or_else(|_| format!("{nanoseconds} ns"), |t| t.to_string())
}

impl Entry {
    /// The import that was called, for all of its kind.
    pub fn import(&self) -> &'static str {
        match self {
            Self::Wall(_) => "wasi:clocks/wall-clock.now",
            Self::Monotonic(_) => "wasi:clocks/monotonic-clock.now",
            Self::Random(_) => "wasi:random/random",
            Self::InsecureRandom(_) => "wasi:random/insecure",
            Self::Poll(..) => "wasi:io/poll.poll",
            Self::Ready(_) => "wasi:io/poll.pollable.ready",
            Self::Block => "wasi:io/poll.pollable.block",
            Self::Request(..) => "wasi:http/outgoing-handler.handle",
            Self::Response(..) => "wasi:http/types.future-incoming-response.get",
            Self::Body(..) => "wasi:io/streams.input-stream.read",
            Self::Skipped(..) => "wasi:io/streams.input-stream.skip",
            Self::Trailers(_) | Self::TrailersOf(..) => "wasi:http/types.future-trailers.get",
            Self::MayWrite(..) => "wasi:io/streams.output-stream.check-write",
            Self::Write(..) => "wasi:io/streams.output-stream.write",
            Self::Flush(..) => "wasi:io/streams.output-stream.flush",
            Self::ErrorText(_) => "wasi:io/error.to-debug-string",
            Self::ErrorCode(_) => "wasi:http/types.http-error-code",
            Self::PollOneoff(..) => "wasi_snapshot_preview1.poll_oneoff",
            Self::Trapped(_) => "a call that ended the guest",
            Self::File(..) => "wasi:filesystem/types",
            Self::FileRead(..) => "wasi:io/streams.input-stream.read",
            Self::FileSkipped(..) => "wasi:io/streams.input-stream.skip",
            Self::FileError(_) => "wasi:filesystem/types.filesystem-error-code",
        }
    }

    /// The call and what was asked, without the answer: by this two calls are compared, and told to people.
    pub fn call(&self) -> String {
        let asked = parts(self).0;
        if asked.is_empty() { self.import().to_owned() } else { format!("{} {asked}", self.import()) }
    }
}

fn parts(entry: &Entry) -> (String, String) {
    match entry {
        Entry::Wall(since) => (String::new(), format!("{since} ns later")),
        Entry::Monotonic(since) => (String::new(), format!("{since} ns later")),
        Entry::Random(bytes) | Entry::InsecureRandom(bytes) => (format!("{bytes} bytes"), String::new()),
        Entry::Poll(of, ready) => (format!("of {of}"), format!("ready: {ready:?}")),
        Entry::Ready(ready) => (String::new(), ready.to_string()),
        Entry::Block | Entry::ErrorCode(None) => (String::new(), String::new()),
        Entry::Request(sent, refused) => {
            let mut asked = format!("{} {}", sent.method, sent.url);
            for (name, value) in &sent.headers {
                // Writing to a string cannot fail.
                let _ = write!(asked, " [{name}: {}]", shown(value));
            }
            (asked, refused.as_ref().map_or_else(String::new, ToString::to_string))
        }
        Entry::Response(of, got) => (format!("of request {of}"), self::got(got)),
        Entry::Body(of, read) => (format!("of the answer to request {of}"), self::read(read)),
        Entry::Skipped(of, Ok(bytes)) => (format!("of the answer to request {of}"), format!("{bytes} bytes")),
        Entry::Skipped(of, Err(end)) => (format!("of the answer to request {of}"), self::read(end)),
        Entry::Trailers(got) => (String::new(), self::got(got)),
        Entry::TrailersOf(of, got) => (format!("of the answer to request {of}"), self::got(got)),
        Entry::File(asked, Ok(answer)) => (asked.clone(), file_answer(answer)),
        Entry::File(asked, Err(error)) => (asked.clone(), error.clone()),
        Entry::FileRead(of, read) => (format!("of file stream {of}"), self::read(read)),
        Entry::FileSkipped(of, Ok(bytes)) => (format!("of file stream {of}"), format!("{bytes} bytes")),
        Entry::FileSkipped(of, Err(end)) => (format!("of file stream {of}"), self::read(end)),
        Entry::FileError(error) => (String::new(), error.clone().unwrap_or_else(|| "none".into())),
        Entry::MayWrite(whose, wrote) => (body_of(*whose).into_owned(), self::wrote(wrote)),
        Entry::Write(whose, bytes, hash, beginning, wrote) => {
            let mut asked = format!("{bytes} bytes ({hash:016x}) to {}", body_of(*whose));
            if !beginning.is_empty() {
                let _ = write!(asked, ": {}", shown(beginning));
            }
            (asked, self::wrote(wrote))
        }
        Entry::Flush(whose, wrote) => (body_of(*whose).into_owned(), self::wrote(wrote)),
        Entry::ErrorText(text) | Entry::Trapped(text) => (String::new(), text.clone()),
        Entry::ErrorCode(Some(code)) => (String::new(), code.to_string()),
        Entry::PollOneoff(of, _, errno) => (format!("of {of}"), format!("errno {errno}")),
    }
}

fn body_of(whose: Whose) -> Cow<'static, str> {
    match whose {
        Whose::Request => "the body of a request".into(),
        Whose::Response => "the body of the response".into(),
        Whose::File(of) => format!("file stream {of}").into(),
    }
}

fn file_answer(answer: &FileAnswer) -> String {
    match answer {
        FileAnswer::Done | FileAnswer::Opened => "done".into(),
        FileAnswer::Stream(of) => format!("file stream {of}"),
        FileAnswer::Bytes(bytes, ended) => {
            let end = if *ended { ", the end" } else { "" };
            format!("{} bytes: {}{end}", bytes.len(), shown(bytes))
        }
        FileAnswer::Count(bytes) => format!("{bytes} bytes"),
        FileAnswer::Flags(bits) => format!("{bits:#b}"),
        FileAnswer::Kind(kind) => kind_of(*kind).into(),
        FileAnswer::Stat(stat) => format!("{}, {} bytes", kind_of(stat.kind), stat.size),
        FileAnswer::Path(path) => path.clone(),
        FileAnswer::Same(same) => same.to_string(),
        FileAnswer::Hash(lower, upper) => format!("{upper:016x}{lower:016x}"),
        FileAnswer::Name(Some((kind, name))) => format!("{name} ({})", kind_of(*kind)),
        FileAnswer::Name(None) => "the end".into(),
        FileAnswer::Folders(names) => names.join(", "),
    }
}

/// By the order of `descriptor-type` in `wasi:filesystem`.
fn kind_of(kind: u8) -> &'static str {
    const KINDS: [&str; 8] =
        ["unknown", "block device", "character device", "folder", "FIFO", "symbolic link", "file", "socket"];
    KINDS.get(usize::from(kind)).copied().unwrap_or("unknown")
}

fn got(got: &Got) -> String {
    match got {
        Got::NotYet => "not there yet".into(),
        Got::Taken => "taken before".into(),
        Got::Nothing => "none".into(),
        Got::Failed(failure) => failure.to_string(),
        Got::Head(head) => {
            let mut text = if head.status == 0 { String::new() } else { head.status.to_string() };
            for (name, value) in &head.headers {
                let _ = write!(text, " [{name}: {}]", shown(value));
            }
            text
        }
    }
}

fn read(read: &Read) -> String {
    match read {
        Read::Bytes(bytes) => format!("{} bytes: {}", bytes.len(), shown(bytes)),
        Read::Closed => "the end".into(),
        Read::Failed(why) => why.clone(),
    }
}

fn wrote(wrote: &Wrote) -> String {
    match wrote {
        Wrote::Done(0) => String::new(),
        Wrote::Done(bytes) => format!("{bytes} bytes"),
        Wrote::Closed => "nobody reads any more".into(),
        Wrote::Failed(why) => why.clone(),
    }
}

/// Bytes as text, cut short, with nothing in it that a terminal would obey.
fn shown(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let mut text: String =
        String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if cut.len() < bytes.len() {
        text.push('…');
    }
    text
}
