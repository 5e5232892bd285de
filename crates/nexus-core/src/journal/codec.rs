//! A journal as bytes.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | [`FORMAT`] |
//! | 1 | 1 where the rest is compressed (an LZ4 block with its length before it), else 0 |
//! | … | [`Header`], then each [`Entry`], in postcard's wire format |
//! | 8 | XXH3 of all before, little-endian |

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use super::{Entry, Header, Journal, Kept};

/// The layout described here.
const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 2;
const CHECK_BYTES: usize = 8;
/// Below this compression finds little.
const COMPRESSED_FROM: usize = 256;
/// The most that a journal may be read to: a few bytes can claim to be gigabytes. None is written that is larger.
const READ_BYTES_MAX: usize = 17 << 20;
/// The most entries of a journal: one may be a byte, and has many more in memory.
pub const ENTRIES_MAX: usize = 1 << 20;

/// A journal that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// It is not what was written.
    #[error("the journal is damaged: {0}")]
    Bytes(&'static str),
    /// Of a later release.
    #[error(
        "the journal is of format {0}, this release reads up to {FORMAT}; replay it with the release that wrote it"
    )]
    Newer(u8),
}

/// Writes a journal, entry by entry.
#[derive(Debug, Default)]
pub struct Writer {
    entries: Vec<u8>,
    count: usize,
}

impl Writer {
    /// Adds an entry.
    pub fn push(&mut self, entry: &Entry) {
        append(&mut self.entries, entry);
        self.count += 1;
    }

    /// How many there are up to now.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes up to now, before compression.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The whole.
    pub fn finish(self, header: &Header) -> Kept {
        let mut body = Vec::with_capacity(64 + self.entries.len());
        append(&mut body, header);
        body.extend_from_slice(&self.entries);
        let packed = (body.len() >= COMPRESSED_FROM).then(|| lz4_flex::block::compress_prepend_size(&body));
        let (compressed, body) = match packed {
            Some(packed) if packed.len() < body.len() => (1, packed),
            _ => (0, body),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len() + CHECK_BYTES);
        bytes.extend_from_slice(&[FORMAT, compressed]);
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        Kept(bytes.into())
    }
}

fn append<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    let taken = std::mem::take(out);
    // Writing to memory cannot fail, and no entry has a length that is not known beforehand.
    *out = postcard::to_extend(value, taken).unwrap_or_default();
}

/// Reads a journal.
pub fn read(kept: &Kept) -> Result<Journal, Damaged> {
    let bytes = &kept.0[..];
    match bytes.first() {
        Some(&FORMAT) => {}
        Some(&newer) if newer > FORMAT => return Err(Damaged::Newer(newer)),
        _ => return Err(Damaged::Bytes("it does not begin as one")),
    }
    let (body, check) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(Damaged::Bytes("it is cut short"))?;
    if xxh3_64(body) != u64::from_le_bytes(*check) {
        return Err(Damaged::Bytes("its check does not fit: it was cut short or altered"));
    }
    let unpacked;
    let mut rest = match (body.get(1), body.get(HEAD_BYTES..)) {
        (Some(0), Some(rest)) if rest.len() <= READ_BYTES_MAX => rest,
        (Some(1), Some(packed)) => {
            let (size, _) = packed.split_first_chunk::<4>().ok_or(Damaged::Bytes("it is cut short"))?;
            if u32::from_le_bytes(*size) as usize > READ_BYTES_MAX {
                return Err(Damaged::Bytes("it claims to be larger than any"));
            }
            unpacked = lz4_flex::block::decompress_size_prepended(packed)
                .map_err(|_| Damaged::Bytes("what is compressed cannot be read"))?;
            &unpacked[..]
        }
        _ => return Err(Damaged::Bytes("it does not begin as one")),
    };
    let bad = |_| Damaged::Bytes("an entry cannot be read");
    let header;
    (header, rest) = postcard::take_from_bytes(rest).map_err(bad)?;
    let mut journal = Journal { header, entries: Vec::new() };
    while !rest.is_empty() {
        if journal.entries.len() >= ENTRIES_MAX {
            return Err(Damaged::Bytes("it has more entries than any"));
        }
        let entry;
        (entry, rest) = postcard::take_from_bytes(rest).map_err(bad)?;
        journal.entries.push(entry);
    }
    Ok(journal)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Got, Head, Read, Sent};
    use super::*;

    fn some() -> Journal {
        let sent = Sent { method: "GET".into(), url: "http://127.0.0.1:1/a?b".into(), headers: vec![] };
        let head = Head { status: 200, headers: vec![("content-type".into(), Bytes::from_static(b"text/plain"))] };
        Journal {
            header: Header { seed: Some([7; 32]), config: [1; 16], engine: 9, ..Header::default() },
            entries: vec![
                Entry::Wall(1_800_000_000_000_000_000),
                Entry::Wall(-5),
                Entry::Monotonic(70),
                Entry::Random(16),
                Entry::Poll(3, vec![0, 2]),
                Entry::Request(Box::new(sent), None),
                Entry::Response(0, Got::Head(Box::new(head))),
                Entry::Body(0, Read::Bytes(Bytes::from(vec![b'x'; 5000]))),
                Entry::Body(0, Read::Closed),
            ],
        }
    }

    fn kept(journal: &Journal) -> Kept {
        let mut writer = Writer::default();
        journal.entries.iter().for_each(|entry| writer.push(entry));
        writer.finish(&journal.header)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let journal = some();
        let bytes = kept(&journal);
        assert_eq!(read(&bytes), Ok(journal));
        assert!(bytes.0.len() < 400, "5,000 times the same byte compress: {}", bytes.0.len());
        let empty =
            Journal { header: Header { config: [1; 16], engine: u64::MAX, ..Header::default() }, entries: vec![] };
        assert_eq!(read(&kept(&empty)), Ok(empty.clone()));
        assert!(kept(&empty).0.len() <= 64, "{}", kept(&empty).0.len());
    }

    #[test]
    fn a_few_bytes_cannot_claim_to_be_gigabytes() {
        let header = Header::default();
        let bomb = |body: Vec<u8>| {
            let mut bytes = [&[FORMAT, 1][..], &lz4_flex::block::compress_prepend_size(&body)].concat();
            bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
            Kept(bytes.into())
        };
        let mut entries = postcard::to_stdvec(&header).expect("bytes");
        // Each byte is an entry.
        let block = postcard::to_stdvec(&Entry::Block).expect("a byte");
        assert_eq!(block.len(), 1);
        entries.resize(entries.len() + ENTRIES_MAX + 1, block[0]);
        assert_eq!(read(&bomb(entries)), Err(Damaged::Bytes("it has more entries than any")));
        let huge = vec![block[0]; READ_BYTES_MAX + 1];
        assert_eq!(read(&bomb(huge)), Err(Damaged::Bytes("it claims to be larger than any")));
    }

    #[test]
    fn what_is_cut_altered_or_newer_is_said_to_be() {
        let whole = kept(&some());
        for end in 0..whole.0.len() {
            assert!(matches!(read(&Kept(whole.0.slice(..end))), Err(Damaged::Bytes(_))), "cut at {end}");
        }
        for at in 1..whole.0.len() {
            let mut bytes = whole.0.to_vec();
            bytes[at] ^= 0x40;
            assert!(read(&Kept(bytes.into())).is_err(), "altered at {at}");
        }
        let mut newer = whole.0.to_vec();
        newer[0] = 2;
        assert_eq!(read(&Kept(newer.into())), Err(Damaged::Newer(2)));
        // A check that fits what is no journal.
        for body in [&[1_u8, 1, 0xff, 0xff, 0xff, 0xff, 0][..], &[1, 0, 0xff, 0xff], &[1, 2, 0], &[1]] {
            let bytes = [body, &xxh3_64(body).to_le_bytes()].concat();
            assert!(read(&Kept(bytes.into())).is_err(), "{body:?}");
        }
    }
}
