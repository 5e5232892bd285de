//! A group of writes as one message of the stream.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | [`VERSION`] |
//! | 16 | the runtime that sent it, and its number there: of the group |
//! | 12 | when, on that runtime's clock: seconds and nanoseconds |
//! | 16 | how far its delivery has come: in which epoch of the members, and below which place |
//! | 1 | 1 where it leaves with this message, else 0 |
//! | 8 | of which log it is: a hash of the name that the log has for itself |
//! | 8 | its window for duplicates, in milliseconds |
//! | 16 | the last message that it had taken in, and a hash of what it knew then: all must have the same |
//! | … | the writes: a tag, then what the tag says; texts and values with their length before them |
//!
//! Numbers are big-endian. Every runtime plans the same writes in the same order on the same state, so what comes of them
//! (places, duplicates, conflicts) is the same everywhere and is not in the message.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use jiff::Timestamp;
use nexus_core::ids::{RuntimeId, Seq};
use tokio::sync::oneshot;

use crate::contract::{Release, Revision, StorageError};
use crate::embedded::codec::{self, Prepared};
use crate::embedded::request::{PreparedCommit, Request};

/// The layout described here. A message of a later one stops whoever does not know it: to skip it would be to have another
/// state than those who do.
pub(crate) const VERSION: u8 = 1;

/// Bytes before the writes.
const HEAD_BYTES: usize = 1 + 16 + 12 + 16 + 1 + 8 + 8 + 16;

const APPEND: u8 = b'e';
const COMMIT: u8 = b'o';
const PUT: u8 = b'p';
const DELETE: u8 = b'd';
const REMOVE: u8 = b'r';
const RELEASE: u8 = b'x';
const PARK: u8 = b'w';

/// Who sent a group, and which it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupId {
    pub(crate) runtime: RuntimeId,
    pub(crate) number: u64,
}

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{:016x}", self.runtime, self.number)
    }
}

/// What is said before the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) id: GroupId,
    pub(crate) now: Timestamp,
    /// The epoch in which the sender looked at its events, and before which place all of them are delivered or parked.
    pub(crate) epoch: u64,
    pub(crate) below: Seq,
    /// The sender leaves.
    pub(crate) leaves: bool,
    /// Of which log it is.
    pub(crate) log: u64,
    /// For how long the same `source` and `id` is a duplicate.
    pub(crate) window: Duration,
    /// The last message that the sender had taken in, and a hash of what it knew then.
    pub(crate) applied: (u64, u64),
}

/// Writes a group. Requests that only ask have no place in it.
pub(crate) fn encode(head: &Head, requests: &[Request]) -> Bytes {
    let size = requests.iter().map(Request::bytes).sum::<usize>();
    let mut out = BytesMut::with_capacity(HEAD_BYTES + size + 64 * requests.len());
    out.put_u8(VERSION);
    out.put_u64(head.id.runtime.0);
    out.put_u64(head.id.number);
    let (second, nanosecond) = codec::instant(head.now);
    out.put_i64(second);
    out.put_i32(nanosecond);
    out.put_u64(head.epoch);
    out.put_u64(head.below.0);
    out.put_u8(u8::from(head.leaves));
    out.put_u64(head.log);
    out.put_u64(u64::try_from(head.window.as_millis()).unwrap_or(u64::MAX));
    out.put_u64(head.applied.0);
    out.put_u64(head.applied.1);
    for request in requests {
        match request {
            Request::Append { batch, .. } => {
                out.put_u8(APPEND);
                events(&mut out, batch);
            }
            Request::Commit { commit, .. } => {
                out.put_u8(COMMIT);
                blob(&mut out, &commit.value);
                events(&mut out, &commit.emitted);
            }
            Request::Put { key, value, expected, .. } => {
                out.put_u8(PUT);
                blob(&mut out, key.as_bytes());
                // No entry has the revision 0.
                out.put_u64(expected.map_or(0, |revision| revision.0));
                blob(&mut out, value);
            }
            Request::Delete { key, expected, .. } => {
                out.put_u8(DELETE);
                blob(&mut out, key.as_bytes());
                out.put_u64(expected.0);
            }
            Request::Remove { removal, .. } => {
                out.put_u8(REMOVE);
                out.put_u64(removal.floor.0);
                out.put_u32(removal.events.len() as u32);
                removal.events.iter().for_each(|event| out.put_u64(event.seq.0));
            }
            Request::Release { letters, how, .. } => {
                out.put_u8(RELEASE);
                out.put_u8(u8::from(*how == Release::Retry));
                out.put_u32(letters.len() as u32);
                for (seq, function) in letters {
                    out.put_u64(seq.0);
                    blob(&mut out, function.as_str().as_bytes());
                }
            }
            Request::Park { parked, .. } => {
                out.put_u8(PARK);
                out.put_u32(parked.len() as u32);
                for parked in parked {
                    let (key, value) = codec::encode_parked(parked);
                    blob(&mut out, &key);
                    blob(&mut out, &value);
                }
            }
            Request::Progress { .. } => {}
        }
    }
    out.freeze()
}

fn blob(out: &mut BytesMut, bytes: &[u8]) {
    // Bounded by what a message may have.
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn events(out: &mut BytesMut, batch: &[Prepared]) {
    out.put_u32(batch.len() as u32);
    batch.iter().for_each(|event| blob(out, &event.value));
}

/// One write of a group. Answers to it go nowhere: whoever asked is elsewhere.
pub(crate) enum Write {
    Request(Request),
    /// Which events go; what else there is to know of them is looked up where they are removed.
    Remove {
        seqs: Vec<Seq>,
        floor: Seq,
    },
}

/// Reads what is said before the writes.
pub(crate) fn decode_head(message: &[u8]) -> Result<Head, StorageError> {
    match message.first() {
        Some(&VERSION) if message.len() >= HEAD_BYTES => {}
        Some(&version) if version > VERSION => {
            return Err(StorageError::Newer { found: u32::from(version), known: u32::from(VERSION) });
        }
        _ => return Err(StorageError::Damaged("a message of the stream is not one of Nexus's".to_owned())),
    }
    let number = |at| Ok::<_, StorageError>(u64::from_be_bytes(codec::bytes(message, at)?));
    let now = Timestamp::new(number(17)?.cast_signed(), i32::from_be_bytes(codec::bytes(message, 25)?));
    Ok(Head {
        id: GroupId { runtime: RuntimeId(number(1)?), number: number(9)? },
        now: now.map_err(|_| StorageError::Damaged("a message of the stream has no time".to_owned()))?,
        epoch: number(29)?,
        below: Seq(number(37)?),
        leaves: message[45] != 0,
        log: number(46)?,
        window: Duration::from_millis(number(54)?),
        applied: (number(62)?, number(70)?),
    })
}

/// Reads the writes of a group.
pub(crate) fn decode(message: &[u8]) -> Result<Vec<Write>, StorageError> {
    let mut reader = Reader(message.get(HEAD_BYTES..).unwrap_or_default());
    let mut writes = Vec::new();
    while !reader.0.is_empty() {
        writes.push(match reader.u8()? {
            APPEND => Write::Request(Request::Append { batch: reader.events()?, answer: nobody() }),
            COMMIT => {
                let value = reader.blob()?;
                let outcome = codec::decode_outcome(value)?;
                let commit = PreparedCommit { outcome: outcome.into(), value: value.into(), emitted: reader.events()? };
                Write::Request(Request::Commit { commit: Box::new(commit), answer: nobody() })
            }
            PUT => {
                let key = reader.text()?;
                let expected = Some(reader.u64()?).filter(|revision| *revision != 0).map(Revision);
                let value = Bytes::copy_from_slice(reader.blob()?);
                Write::Request(Request::Put { key, value, expected, answer: nobody() })
            }
            DELETE => {
                let (key, expected) = (reader.text()?, Revision(reader.u64()?));
                Write::Request(Request::Delete { key, expected, answer: nobody() })
            }
            REMOVE => {
                let floor = Seq(reader.u64()?);
                let count = reader.u32()?;
                let seqs = (0..count).map(|_| reader.u64().map(Seq)).collect::<Result<_, _>>()?;
                Write::Remove { seqs, floor }
            }
            RELEASE => {
                let how = if reader.u8()? == 0 { Release::Drop } else { Release::Retry };
                let count = reader.u32()?;
                let letter = |_| {
                    let seq = Seq(reader.u64()?);
                    let function = reader.text()?.parse();
                    let damaged = |_| StorageError::Damaged("a dead letter in the stream has no function".to_owned());
                    Ok((seq, function.map_err(damaged)?))
                };
                let letters = (0..count).map(letter).collect::<Result<_, StorageError>>()?;
                Write::Request(Request::Release { letters, how, answer: nobody() })
            }
            PARK => {
                let count = reader.u32()?;
                let parked = (0..count).map(|_| codec::decode_parked(reader.blob()?, reader.blob()?));
                let parked = parked.collect::<Result<_, StorageError>>()?;
                Write::Request(Request::Park { parked, answer: nobody() })
            }
            tag => return Err(StorageError::Damaged(format!("a write of the unknown kind {tag} is in the stream"))),
        });
    }
    Ok(writes)
}

fn nobody<T>() -> oneshot::Sender<T> {
    oneshot::channel().0
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], StorageError> {
        let cut = || StorageError::Damaged("a message of the stream is cut short".to_owned());
        let (taken, rest) = self.0.split_at_checked(n).ok_or_else(cut)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, StorageError> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, StorageError> {
        Ok(u32::from_be_bytes(codec::bytes(self.take(4)?, 0)?))
    }

    fn u64(&mut self) -> Result<u64, StorageError> {
        Ok(u64::from_be_bytes(codec::bytes(self.take(8)?, 0)?))
    }

    fn blob(&mut self) -> Result<&'a [u8], StorageError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn text(&mut self) -> Result<String, StorageError> {
        String::from_utf8(self.blob()?.to_vec())
            .map_err(|_| StorageError::Damaged("a key in the stream is no text".to_owned()))
    }

    fn events(&mut self) -> Result<Vec<Prepared>, StorageError> {
        let count = self.u32()?;
        (0..count).map(|_| Prepared::from_value(self.blob()?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use nexus_core::outcome::Disposition;

    use super::*;
    use crate::conformance::{Settings, numbered, outcome, start};
    use crate::contract::Parked;
    use crate::embedded::request::{Removal, Removed};

    fn group() -> (Head, Vec<Request>) {
        let settings = Settings::default();
        let id = GroupId { runtime: RuntimeId(7), number: u64::MAX };
        let head = Head {
            id,
            now: start(),
            epoch: 2,
            below: Seq(3),
            leaves: true,
            log: 5,
            window: Duration::from_secs(6),
            applied: (7, 8),
        };
        let event = |n| Prepared::new(numbered(&settings, n)).expect("an event");
        let outcome = outcome(Seq(1), 1, Disposition::Done);
        let commit = PreparedCommit {
            value: codec::encode_outcome(&outcome).expect("a value"),
            outcome: outcome.into(),
            emitted: vec![event(3)],
        };
        let gone = Removed { seq: Seq(9), envelope: event(9).envelope, bytes: 1, outcomes: Vec::new() };
        let requests = vec![
            Request::Append { batch: vec![event(1), event(2)], answer: nobody() },
            Request::Commit { commit: Box::new(commit), answer: nobody() },
            Request::Put { key: "k".into(), value: "v".into(), expected: None, answer: nobody() },
            Request::Put { key: "ü".into(), value: "".into(), expected: Some(Revision(4)), answer: nobody() },
            Request::Delete { key: "k".into(), expected: Revision(5), answer: nobody() },
            Request::Remove { removal: Removal { events: vec![gone], floor: Seq(8) }, answer: nobody() },
            Request::Release {
                letters: vec![(Seq(1), "f".parse().expect("a name")), (Seq(2), "g".parse().expect("a name"))],
                how: Release::Retry,
                answer: nobody(),
            },
            Request::Park {
                parked: vec![Parked { seq: Seq(2), function: "g".parse().expect("a name"), attempt: 0, at: start() }],
                answer: nobody(),
            },
        ];
        (head, requests)
    }

    #[test]
    fn a_group_comes_back_as_it_was() {
        let (head, requests) = group();
        let message = encode(&head, &requests);
        assert_eq!(decode_head(&message).expect("a head"), head);
        let writes = decode(&message).expect("writes");
        // What is read back, written again, is the same message: but for the removal, which is read as places alone.
        let back: Vec<Request> = writes
            .into_iter()
            .zip(requests)
            .map(|(write, sent)| match write {
                Write::Request(request) => request,
                Write::Remove { seqs, floor } => {
                    assert_eq!((seqs, floor), (vec![Seq(9)], Seq(8)));
                    sent
                }
            })
            .collect();
        assert_eq!(encode(&head, &back), message);
    }

    #[test]
    fn what_is_cut_short_or_strange_is_refused() {
        let (head, requests) = group();
        let message = encode(&head, &requests);
        let whole: Vec<usize> = (0..message.len()).filter(|cut| decode(&message[..*cut]).is_ok()).collect();
        // Only between two writes: up to the head's end there are none.
        assert_eq!(whole.iter().filter(|cut| **cut > HEAD_BYTES).count(), requests.len() - 1, "{whole:?}");
        for cut in 0..HEAD_BYTES {
            assert!(decode_head(&message[..cut]).is_err(), "{cut}");
        }
        let mut newer = message.to_vec();
        newer[0] = VERSION + 1;
        assert!(matches!(decode_head(&newer), Err(StorageError::Newer { found: 2, known: 1 })));
        let mut strange = message.to_vec();
        strange[HEAD_BYTES] = b'?';
        assert!(matches!(decode(&strange), Err(StorageError::Damaged(_))));
        // A count that promises more than there is.
        let mut promising = message[..=HEAD_BYTES].to_vec();
        promising.extend_from_slice(&u32::MAX.to_be_bytes());
        assert!(decode(&promising).is_err());
    }
}
