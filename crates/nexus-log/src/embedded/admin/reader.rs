//! Reads the records of a backup, and believes none of them without its checksum.

use std::io::{ErrorKind, Read};

use jiff::Timestamp;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::error::AdminError;
use super::format::{Counts, Entry, FORMAT, FRAME_BYTES, HEADER_BYTES, MAGIC, RECORD_BYTES_MAX};
use super::order::Order;
use crate::embedded::codec;
use crate::embedded::state::Counters;

/// Reads records in turn.
pub(super) struct Reader<R> {
    input: R,
    /// The file's name, for errors.
    path: String,
    /// Of everything read.
    total: Xxh3,
    /// Where the next record begins.
    at: u64,
    records: u64,
    counts: Counts,
    order: Order,
    frame: Vec<u8>,
}

/// What a record tells beside its content.
pub(super) enum Next<'a> {
    /// A record; never the end.
    Entry(Entry<'a>),
    /// The end, and nothing behind it; all of it was whole.
    End,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub(super) fn new(input: R, path: String) -> Result<Self, AdminError> {
        let mut reader = Self {
            input,
            path,
            total: Xxh3::new(),
            at: 0,
            records: 0,
            counts: Counts::default(),
            order: Order::default(),
            frame: Vec::new(),
        };
        reader.read(HEADER_BYTES)?;
        let header = &reader.frame;
        if !header.starts_with(MAGIC) {
            return Err(reader.not_whole("it does not begin as one"));
        }
        let checksum = u64::from_be_bytes(codec::bytes(header, 12)?);
        if xxh3_64(&header[..12]) != checksum {
            return Err(reader.not_whole("its header was changed"));
        }
        match u32::from_be_bytes(codec::bytes(header, 8)?) {
            FORMAT => {}
            found => return Err(AdminError::NewerFile { path: reader.path, found, known: FORMAT }),
        }
        reader.total.update(&reader.frame);
        reader.at = HEADER_BYTES as u64;
        Ok(reader)
    }

    /// The next record.
    pub(super) fn next(&mut self) -> Result<Next<'_>, AdminError> {
        self.read(FRAME_BYTES)?;
        let checksum = u64::from_be_bytes(codec::bytes(&self.frame, 0)?);
        let length = u32::from_be_bytes(codec::bytes(&self.frame, 8)?) as usize;
        if length > RECORD_BYTES_MAX {
            return Err(self.not_whole("a record is longer than any"));
        }
        self.read_more(length)?;
        if xxh3_64_with_seed(&self.frame[8..], self.records) != checksum {
            return Err(self.not_whole("a record was changed"));
        }
        if self.frame.get(FRAME_BYTES) == Some(&b'z') {
            self.end()?;
            return Ok(Next::End);
        }
        let Some(entry) = Entry::decode(&self.frame[FRAME_BYTES..]) else {
            return Err(self.not_whole("a record is of an unknown kind"));
        };
        if let Err(why) = self.order.take(&entry) {
            return Err(AdminError::NotWhole { path: self.path.clone(), at: self.at, why });
        }
        self.counts.add(&entry);
        self.total.update(&self.frame);
        self.at += self.frame.len() as u64;
        self.records += 1;
        Ok(Next::Entry(entry))
    }

    /// Bytes that were read.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// How many of each were read.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// The head, once it was read.
    pub(super) fn head(&self) -> Option<(Timestamp, Counters)> {
        self.order.head()
    }

    /// An error about the record that is being read.
    pub(super) fn not_whole(&self, why: &str) -> AdminError {
        AdminError::NotWhole { path: self.path.clone(), at: self.at, why: why.to_owned() }
    }

    fn end(&mut self) -> Result<(), AdminError> {
        let Some(Entry::End { counts, total }) = Entry::decode(&self.frame[FRAME_BYTES..]) else {
            return Err(self.not_whole("its end is of an unknown form"));
        };
        if !self.order.may_end() {
            return Err(self.not_whole("it ends too early"));
        }
        if counts != self.counts || total != self.total.digest128() {
            return Err(self.not_whole("its end does not fit what is before it"));
        }
        self.at += self.frame.len() as u64;
        self.frame.clear();
        match self.input.by_ref().take(1).read_to_end(&mut self.frame) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.not_whole("something follows its end")),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn read(&mut self, bytes: usize) -> Result<(), AdminError> {
        self.frame.clear();
        self.read_more(bytes)
    }

    /// Takes only as much memory as there are bytes, whatever a length says.
    fn read_more(&mut self, bytes: usize) -> Result<(), AdminError> {
        match self.input.by_ref().take(bytes as u64).read_to_end(&mut self.frame) {
            Ok(read) if read == bytes => Ok(()),
            Ok(_) => Err(self.not_whole("it is cut short")),
            Err(source) if source.kind() == ErrorKind::UnexpectedEof => Err(self.not_whole("it is cut short")),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn failed(&self, source: std::io::Error) -> AdminError {
        AdminError::Io { what: format!("reading {}", self.path), source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::Writer;
    use super::*;
    use crate::contract::{DeadLetter, Parked};
    use nexus_core::ids::Seq;

    /// One record of each kind, and two of some.
    fn entries(chunk: &[u8]) -> Vec<Entry<'_>> {
        let made_at = Timestamp::new(1_750_000_000, 5).expect("a time");
        let counters =
            Counters { next_seq: Seq(9), next_outcome: 4, floor: Seq(2), delivered_below: Seq(5), revision: 7 };
        let function: nexus_core::ids::FunctionName = "worker".parse().expect("a name");
        vec![
            Entry::Head { made_at, counters },
            Entry::Registry { revision: 7, key: "functions/worker", value: b"{}" },
            Entry::Parked(Parked { seq: Seq(3), function: function.clone(), attempt: 2, at: made_at }),
            Entry::Dead(DeadLetter { seq: Seq(2), function, attempt: 9, at: made_at }),
            Entry::Event { seq: Seq(2), json: b"{\"two\":2}" },
            Entry::Outcome { seq: Seq(2), n: 3, json: b"{}" },
            Entry::Event { seq: Seq(8), json: b"{\"eight\":8}" },
            Entry::Artifact { digest: [7; 32], bytes: 2 * chunk.len() as u64 },
            Entry::Bytes(chunk),
            Entry::Bytes(chunk),
            Entry::Artifact { digest: [8; 32], bytes: 0 },
        ]
    }

    fn written(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).expect("begin");
        for entry in entries {
            writer.entry(entry).expect("write");
        }
        let (file, _, bytes) = writer.finish().expect("finish");
        assert_eq!(bytes, file.len() as u64);
        file
    }

    fn read(file: &[u8]) -> Result<Counts, AdminError> {
        let mut reader = Reader::new(file, "it".to_owned())?;
        while let Next::Entry(_) = reader.next()? {}
        assert_eq!(reader.at(), file.len() as u64);
        Ok(reader.counts())
    }

    #[test]
    fn what_was_written_is_read() {
        let entries = entries(b"bytes");
        let file = written(&entries);
        let mut reader = Reader::new(&*file, "it".to_owned()).expect("a header");
        for entry in &entries {
            let Next::Entry(found) = reader.next().expect("a record") else { panic!("it ends before {entry:?}") };
            assert_eq!(found, *entry);
        }
        assert!(matches!(reader.next(), Ok(Next::End)));
        let counts = Counts { registry: 1, parked: 1, dead: 1, events: 2, outcomes: 1, artifacts: 2 };
        assert_eq!(reader.counts(), counts);
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let file = written(&entries(b"bytes"));
        for at in 0..file.len() {
            let mut changed = file.clone();
            for change in 1..=u8::MAX {
                changed[at] = file[at] ^ change;
                let found = read(&changed);
                assert!(matches!(found, Err(AdminError::NotWhole { .. })), "byte {at} ^ {change}: {found:?}");
            }
            let found = read(&file[..at]);
            assert!(matches!(found, Err(AdminError::NotWhole { .. })), "cut at {at}: {found:?}");
        }
        let longer = [&*file, b"x"].concat();
        assert!(matches!(read(&longer), Err(AdminError::NotWhole { .. })));
    }

    #[test]
    fn records_of_another_backup_or_in_another_order_are_noticed() {
        let file = written(&entries(b"bytes"));
        let other = written(&entries(b"other"));
        // The first bytes of an artifact, from a file of the same form: their own checksum is right.
        let at = file.iter().zip(&other).position(|(a, b)| a != b).expect("they differ");
        let record = at..at + FRAME_BYTES + 1 + 5;
        let mut mixed = file.clone();
        mixed[record.clone()].copy_from_slice(&other[record]);
        assert!(matches!(read(&mixed), Err(AdminError::NotWhole { why, .. }) if why.contains("end")));

        let entries = entries(b"bytes");
        let mut writer = Writer::new(Vec::new()).expect("begin");
        for at in [0, 6] {
            writer.entry(&entries[at]).expect("write");
        }
        // An event before the last, and a second head.
        for at in [4, 0] {
            assert!(writer.entry(&entries[at]).is_err(), "{:?}", entries[at]);
        }
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let mut file = written(&entries(b"bytes"));
        file[8..12].copy_from_slice(&2_u32.to_be_bytes());
        let checksum = xxh3_64(&file[..12]);
        file[12..20].copy_from_slice(&checksum.to_be_bytes());
        assert!(matches!(read(&file), Err(AdminError::NewerFile { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_length_that_is_not_true_takes_no_memory() {
        let mut file = written(&entries(b"bytes"));
        file[HEADER_BYTES + 8..HEADER_BYTES + 12].copy_from_slice(&(RECORD_BYTES_MAX as u32).to_be_bytes());
        let mut reader = Reader::new(&*file, "it".to_owned()).expect("a header");
        assert!(matches!(reader.next(), Err(AdminError::NotWhole { .. })));
        assert!(reader.frame.capacity() < 1 << 20);
    }
}
