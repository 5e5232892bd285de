//! The file of a backup, byte by byte. Nothing of the database library's files is in it, so that it can be restored
//! by a later release that keeps a store otherwise. Numbers are big-endian.
//!
//! | part     | bytes | what it is                                                                               |
//! |----------|------:|------------------------------------------------------------------------------------------|
//! | header   |     8 | `nexusbak`                                                                               |
//! |          |     4 | the format: 1                                                                            |
//! |          |     8 | XXH3-64 of the twelve bytes before                                                       |
//! | a record |     8 | XXH3-64 of all of its bytes that follow, with its number as the seed; the first has 0    |
//! |          |     4 | the length of what follows, at most 65 MiB                                               |
//! |          |     1 | its kind                                                                                 |
//! |          |       | its content                                                                              |
//!
//! The seed makes a record that is missing, doubled or in another place as noticeable as one that is changed.
//!
//! | kind | record   | content                                                                                     |
//! |------|----------|---------------------------------------------------------------------------------------------|
//! | `h`  | head     | seconds (8) and nanoseconds (4) of its making; next place, next number of an outcome, first |
//! |      |          | place that is kept, place up to which all is delivered, last registry revision (8 each)     |
//! | `r`  | registry | revision (8), length of the key (2), key, value                                             |
//! | `p`  | parked   | place (8), attempt (4), seconds (8) and nanoseconds (4) of the next try, function           |
//! | `d`  | dead     | place (8), attempt (4), seconds (8) and nanoseconds (4) of its end, function               |
//! | `e`  | event    | place (8), JSON of the record                                                               |
//! | `o`  | outcome  | place of its event (8), its number (8), JSON of the outcome                                 |
//! | `a`  | artifact | SHA-256 (32), length (8); its bytes follow                                                  |
//! | `b`  | bytes    | the next of the artifact's bytes, at most 1 MiB                                             |
//! | `z`  | end      | how many registry entries, parked deliveries, dead letters, events, outcomes and artifacts |
//! |      |          | (8 each); XXH3-128 of every byte of the file before this record (16)                        |
//!
//! Records come in the order of this table; events and outcomes in the order of places, each outcome behind its
//! event. There is one head, and one end, behind which nothing follows. An outcome whose event is gone is allowed: a
//! replay that ends after retention took the event leaves one.

use jiff::Timestamp;
use nexus_core::ids::{FunctionName, Seq};

use crate::contract::{DeadLetter, Parked};
use crate::embedded::codec::{self, instant};
use crate::embedded::state::Counters;

pub(super) const MAGIC: &[u8; 8] = b"nexusbak";
/// The format described here.
pub(super) const FORMAT: u32 = 1;
pub(super) const HEADER_BYTES: usize = 20;
/// Checksum and length.
pub(super) const FRAME_BYTES: usize = 12;
/// The most bytes of a record: an event or outcome has at most 64 MiB.
pub(super) const RECORD_BYTES_MAX: usize = 65 << 20;
/// The most bytes of an artifact in one record.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// How many of each there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) registry: u64,
    pub(super) parked: u64,
    pub(super) dead: u64,
    pub(super) events: u64,
    pub(super) outcomes: u64,
    pub(super) artifacts: u64,
}

impl Counts {
    /// Counts one more.
    pub(super) fn add(&mut self, entry: &Entry<'_>) {
        match entry {
            Entry::Registry { .. } => self.registry += 1,
            Entry::Parked(_) => self.parked += 1,
            Entry::Dead(_) => self.dead += 1,
            Entry::Event { .. } => self.events += 1,
            Entry::Outcome { .. } => self.outcomes += 1,
            Entry::Artifact { .. } => self.artifacts += 1,
            Entry::Head { .. } | Entry::Bytes(_) | Entry::End { .. } => {}
        }
    }
}

/// A record's content.
#[derive(Debug, PartialEq)]
pub(super) enum Entry<'a> {
    Head { made_at: Timestamp, counters: Counters },
    Registry { revision: u64, key: &'a str, value: &'a [u8] },
    Parked(Parked),
    Dead(DeadLetter),
    Event { seq: Seq, json: &'a [u8] },
    Outcome { seq: Seq, n: u64, json: &'a [u8] },
    Artifact { digest: [u8; 32], bytes: u64 },
    Bytes(&'a [u8]),
    End { counts: Counts, total: u128 },
}

impl<'a> Entry<'a> {
    /// Appends kind and content.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let numbers = |out: &mut Vec<u8>, numbers: &[u64]| {
            numbers.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
        };
        let time = |out: &mut Vec<u8>, at: Timestamp| {
            let (second, nanosecond) = instant(at);
            out.extend_from_slice(&second.to_be_bytes());
            out.extend_from_slice(&nanosecond.to_be_bytes());
        };
        let delivery = |out: &mut Vec<u8>, seq: Seq, function: &FunctionName, attempt: u32, at: Timestamp| {
            numbers(out, &[seq.0]);
            out.extend_from_slice(&attempt.to_be_bytes());
            time(out, at);
            out.extend_from_slice(function.as_str().as_bytes());
        };
        match self {
            Self::Head { made_at, counters } => {
                out.push(b'h');
                time(out, *made_at);
                let Counters { next_seq, next_outcome, floor, delivered_below, revision } = counters;
                numbers(out, &[next_seq.0, *next_outcome, floor.0, delivered_below.0, *revision]);
            }
            Self::Registry { revision, key, value } => {
                out.push(b'r');
                numbers(out, &[*revision]);
                // The registry bounds keys at 1,024 bytes.
                out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                out.extend_from_slice(key.as_bytes());
                out.extend_from_slice(value);
            }
            Self::Parked(Parked { seq, function, attempt, at }) => {
                out.push(b'p');
                delivery(out, *seq, function, *attempt, *at);
            }
            Self::Dead(DeadLetter { seq, function, attempt, at }) => {
                out.push(b'd');
                delivery(out, *seq, function, *attempt, *at);
            }
            Self::Event { seq, json } => {
                out.push(b'e');
                numbers(out, &[seq.0]);
                out.extend_from_slice(json);
            }
            Self::Outcome { seq, n, json } => {
                out.push(b'o');
                numbers(out, &[seq.0, *n]);
                out.extend_from_slice(json);
            }
            Self::Artifact { digest, bytes } => {
                out.push(b'a');
                out.extend_from_slice(digest);
                numbers(out, &[*bytes]);
            }
            Self::Bytes(bytes) => {
                out.push(b'b');
                out.extend_from_slice(bytes);
            }
            Self::End { counts, total } => {
                out.push(b'z');
                let Counts { registry, parked, dead, events, outcomes, artifacts } = *counts;
                numbers(out, &[registry, parked, dead, events, outcomes, artifacts]);
                out.extend_from_slice(&total.to_be_bytes());
            }
        }
    }

    /// Reads kind and content back; `None`: that is no record of this format.
    pub(super) fn decode(body: &'a [u8]) -> Option<Self> {
        let (kind, content) = body.split_first()?;
        let mut rest = Rest(content);
        let entry = match kind {
            b'h' => {
                let made_at = rest.time()?;
                let counters = Counters {
                    next_seq: Seq(rest.number()?),
                    next_outcome: rest.number()?,
                    floor: Seq(rest.number()?),
                    delivered_below: Seq(rest.number()?),
                    revision: rest.number()?,
                };
                Self::Head { made_at, counters }
            }
            b'r' => {
                let revision = rest.number()?;
                let key_bytes = u16::from_be_bytes(rest.array()?);
                let key = std::str::from_utf8(rest.take(usize::from(key_bytes))?).ok()?;
                Self::Registry { revision, key, value: rest.all() }
            }
            b'p' | b'd' => {
                let (seq, attempt, at) = (Seq(rest.number()?), u32::from_be_bytes(rest.array()?), rest.time()?);
                let function = std::str::from_utf8(rest.all()).ok()?.parse().ok()?;
                match kind {
                    b'p' => Self::Parked(Parked { seq, function, attempt, at }),
                    _ => Self::Dead(DeadLetter { seq, function, attempt, at }),
                }
            }
            b'e' => Self::Event { seq: Seq(rest.number()?), json: rest.all() },
            b'o' => Self::Outcome { seq: Seq(rest.number()?), n: rest.number()?, json: rest.all() },
            b'a' => Self::Artifact { digest: rest.array()?, bytes: rest.number()? },
            b'b' => Self::Bytes(rest.all()),
            b'z' => {
                let counts = Counts {
                    registry: rest.number()?,
                    parked: rest.number()?,
                    dead: rest.number()?,
                    events: rest.number()?,
                    outcomes: rest.number()?,
                    artifacts: rest.number()?,
                };
                Self::End { counts, total: u128::from_be_bytes(rest.array()?) }
            }
            _ => return None,
        };
        rest.0.is_empty().then_some(entry)
    }
}

/// What of a record is not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(part)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        codec::bytes(self.take(N)?, 0).ok()
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn time(&mut self) -> Option<Timestamp> {
        Timestamp::new(i64::from_be_bytes(self.array()?), i32::from_be_bytes(self.array()?)).ok()
    }

    fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
