//! Writes the records of a backup.

use std::io::{self, Write};

use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::error::AdminError;
use super::format::{Counts, Entry, FORMAT, FRAME_BYTES, MAGIC, RECORD_BYTES_MAX};
use super::order::Order;
use crate::contract::StorageError;

/// Writes records with their checksums, and counts them. Writes none that would be refused when it is read.
pub(super) struct Writer<W> {
    out: W,
    /// Of everything written.
    total: Xxh3,
    bytes: u64,
    records: u64,
    counts: Counts,
    order: Order,
    frame: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    pub(super) fn new(out: W) -> Result<Self, AdminError> {
        let mut writer = Self {
            out,
            total: Xxh3::new(),
            bytes: 0,
            records: 0,
            counts: Counts::default(),
            order: Order::default(),
            frame: Vec::new(),
        };
        writer.frame.extend_from_slice(MAGIC);
        writer.frame.extend_from_slice(&FORMAT.to_be_bytes());
        let checksum = xxh3_64(&writer.frame);
        writer.frame.extend_from_slice(&checksum.to_be_bytes());
        writer.write()?;
        Ok(writer)
    }

    /// Writes a record.
    pub(super) fn entry(&mut self, entry: &Entry<'_>) -> Result<(), AdminError> {
        self.order.take(entry).map_err(StorageError::Damaged)?;
        self.frame.clear();
        self.frame.resize(FRAME_BYTES, 0);
        entry.encode(&mut self.frame);
        let length = self.frame.len() - FRAME_BYTES;
        if length > RECORD_BYTES_MAX {
            return Err(StorageError::Damaged(format!("a value has {length} bytes, more than any may have")).into());
        }
        self.frame[8..FRAME_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
        let checksum = xxh3_64_with_seed(&self.frame[8..], self.records);
        self.frame[..8].copy_from_slice(&checksum.to_be_bytes());
        self.records += 1;
        self.counts.add(entry);
        self.write()
    }

    /// Writes the end. Returns what it was written to, the counts, and all bytes that were written.
    pub(super) fn finish(mut self) -> Result<(W, Counts, u64), AdminError> {
        let end = Entry::End { counts: self.counts, total: self.total.digest128() };
        self.entry(&end)?;
        self.out.flush().map_err(failed)?;
        Ok((self.out, self.counts, self.bytes))
    }

    fn write(&mut self) -> Result<(), AdminError> {
        self.total.update(&self.frame);
        self.bytes += self.frame.len() as u64;
        self.out.write_all(&self.frame).map_err(failed)
    }
}

fn failed(source: io::Error) -> AdminError {
    AdminError::Io { what: "writing the backup".to_owned(), source }
}
