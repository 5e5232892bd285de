//! The journal of an invocation: what its guest learned from outside its event, in the order in which the guest learned it.
//!
//! A guest is deterministic. Given the same event, the same configuration and the same answers from its host in the same order, it
//! does the same again; so the answers are all that is kept. What follows from them, or from the event, is not.
//! docs/decisions/0005 says what is recorded where, and why there.

mod codec;
mod entry;
mod mask;
mod view;

pub use codec::{Damaged, ENTRIES_MAX, Writer, read};
pub use entry::{Entry, FileAnswer, FileStat, Got, Head, HttpFailure, REDACTED, Read, Sent, Whose, Wrote};
pub use mask::{Mask, Redact};
pub use view::{CallView, calls};

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::outcome::LogLine;

/// A journal as it is kept: encoded, compressed where that helps. In JSON it is base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept(pub Bytes);

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of journal", self.0.len())
    }
}

impl Serialize for Kept {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        BASE64.decode(&*text).map(|bytes| Self(bytes.into())).map_err(serde::de::Error::custom)
    }
}

/// Why a journal does not hold everything: then the invocation cannot be replayed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Partial {
    /// It had become as large as it may.
    TooLarge,
    /// A module of preview 1 that sees folders of the host; what it read there is not recorded.
    Files,
    /// Storage would not take an outcome as large as this one with its journal.
    NotTaken,
    /// The guest was left behind in a call that blocks.
    LeftBehind,
}

impl fmt::Display for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "it had become as large as it may (`journal.bytes_max`)",
            Self::Files => {
                "the function sees folders of the host, and what it read there is not recorded (of components it is)"
            }
            Self::NotTaken => "storage would not take it: it is too large together with its outcome",
            Self::LeftBehind => "the guest was left behind in a call that blocks",
        })
    }
}

/// What is known of the whole invocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Why something is missing, if it is.
    pub partial: Option<Partial>,
    /// From what all random numbers were drawn, if any were.
    pub seed: Option<[u8; 32]>,
    /// The first half of the digest of the function's configuration: its environment and bounds.
    pub config: [u8; 16],
    /// Of the engine that compiled the code: other machine code may behave otherwise, where one of them has a bug.
    pub engine: u64,
    /// The guest did not come to its own end: it was stopped from without, as when its time was up or when it gave back too much.
    pub cut: bool,
    /// A hash of all that it gave back, also of what the outcome has no room for.
    pub output: u64,
}

/// A journal, read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Journal {
    /// Of the whole.
    pub header: Header,
    /// In the order in which the guest learned them.
    pub entries: Vec<Entry>,
}

/// The first call of the host at which a replay left the recording, or the end of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// Which call, counted from 0.
    pub call: usize,
    /// What was recorded there. `None`: the recording ended before.
    pub expected: Option<String>,
    /// What the guest did instead. `None`: it ended before.
    pub actual: Option<String>,
    /// What the guest had printed by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub printed: Vec<LogLine>,
}
