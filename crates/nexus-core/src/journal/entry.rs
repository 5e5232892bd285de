//! What is recorded.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One call of the host, as the guest saw its answer.
///
/// The order of the variants is part of the format: a new one comes last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// The wall clock: nanoseconds since the reading before, the first since 1970. A clock may be set back.
    Wall(i64),
    /// The monotonic clock: nanoseconds since the reading before, the first since the invocation began.
    Monotonic(u64),
    /// So many bytes of random numbers; which ones follows from the seed.
    Random(u64),
    /// The same of those that need not be secret.
    InsecureRandom(u64),
    /// Of so many things that were waited for, these were ready, by their place in the list.
    Poll(u32, Vec<u32>),
    /// Whether one thing was ready.
    Ready(bool),
    /// One thing was waited for until it was ready.
    Block,
    /// An outgoing request, and why it was refused at once, if it was.
    Request(Box<Sent>, Option<HttpFailure>),
    /// The answer to the request of this number, as far as it was there.
    Response(u32, Got),
    /// Bytes of the body of the answer to the request of this number.
    Body(u32, Read),
    /// So many bytes of that body were left out by the guest, or why not.
    Skipped(u32, Result<u64, Read>),
    /// The trailers of some answer; written by releases that did not say of which.
    Trailers(Got),
    /// How much may be written to a body.
    MayWrite(Whose, Wrote),
    /// What was written to a body: how many bytes, a hash of them, their beginning where it is of a request; and what came of it.
    Write(Whose, u32, u64, Bytes, Wrote),
    /// What came of a flush of a body.
    Flush(Whose, Wrote),
    /// The words of an error.
    ErrorText(String),
    /// The code of an error.
    ErrorCode(Option<HttpFailure>),
    /// Of a preview-1 module: what `poll_oneoff` wrote for so many subscriptions, and its result.
    PollOneoff(u32, Bytes, i32),
    /// A call of the host that ended the guest, and how.
    Trapped(String),
    /// What was asked about a file or a folder, and the answer or the name of the error.
    File(String, Result<FileAnswer, String>),
    /// Bytes of the stream of a file of this number.
    FileRead(u32, Read),
    /// So many bytes of that stream were left out by the guest, or why not.
    FileSkipped(u32, Result<u64, Read>),
    /// The error of a stream as one of files, if it is one.
    FileError(Option<String>),
    /// The trailers of the answer to the request of this number.
    TrailersOf(u32, Got),
}

/// What was answered about a file or a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileAnswer {
    /// It was done.
    Done,
    /// A file or a folder, open, or the list of a folder's names.
    Opened,
    /// A stream of a file: the how many-th of this guest's.
    Stream(u32),
    /// Some of its bytes, and whether its end was reached.
    Bytes(Bytes, bool),
    /// So many bytes.
    Count(u64),
    /// Flags, as bits in the order of WASI.
    Flags(u8),
    /// What kind of thing it is, by its place in WASI.
    Kind(u8),
    /// What there is to know about it.
    Stat(Box<FileStat>),
    /// A path.
    Path(String),
    /// Whether two are the same.
    Same(bool),
    /// A hash, in two halves.
    Hash(u64, u64),
    /// The next name of a folder, with its kind; none: the end.
    Name(Option<(u8, String)>),
    /// The folders that the guest sees, by their names.
    Folders(Vec<String>),
}

/// What there is to know about a file or a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What kind of thing it is, by its place in WASI.
    pub kind: u8,
    /// Names that it has.
    pub links: u64,
    /// Bytes.
    pub size: u64,
    /// When it was last read, written, and changed: seconds since 1970, and nanoseconds.
    pub times: [Option<(u64, u32)>; 3],
}

/// Whose body is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// Of an outgoing request.
    Request,
    /// Of the function's own response.
    Response,
    /// Not a body: the stream of a file of this number.
    File(u32),
}

/// An outgoing request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The method.
    pub method: String,
    /// The whole URL.
    pub url: String,
    /// The headers that the guest set; values of those that are to be kept out are [`REDACTED`].
    pub headers: Vec<(String, Bytes)>,
}

/// What stands where a value was kept out of the journal.
pub const REDACTED: &str = "[redacted]";

/// What the guest got of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Got {
    /// It was not there yet.
    NotYet,
    /// It had been taken before.
    Taken,
    /// Its head, or trailers.
    Head(Box<Head>),
    /// There were no trailers.
    Nothing,
    /// It failed.
    Failed(HttpFailure),
}

/// A status and headers; trailers have no status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The status; 0 for trailers.
    pub status: u16,
    /// The headers, in their order.
    pub headers: Vec<(String, Bytes)>,
}

/// What a guest read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Read {
    /// These bytes; none: none were there yet.
    Bytes(Bytes),
    /// The end.
    Closed,
    /// It broke off, with these words.
    Failed(String),
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wrote {
    /// So many bytes, where it is a number of bytes; else 0.
    Done(u64),
    /// Nobody reads any more.
    Closed,
    /// It broke off, with these words.
    Failed(String),
}

/// An error code of `wasi:http`: its name, and what it carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpFailure {
    /// The name of the variant.
    pub name: String,
    /// Its text, if it has one.
    pub text: Option<String>,
    /// Its number, if it has one.
    pub number: Option<u64>,
}

impl fmt::Display for HttpFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(text) = &self.text {
            write!(f, ": {text}")?;
        }
        match self.number {
            Some(number) => write!(f, " ({number})"),
            None => Ok(()),
        }
    }
}
