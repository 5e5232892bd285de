//! What a guest is told about files, as a journal has it, and back.

use nexus_core::journal::{FileAnswer, FileStat, Whose};
use wasmtime::component::Resource;
use wasmtime::format_err;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, DirectoryEntryStream, ErrorCode, MetadataHashValue,
};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};

use super::files::StandIn;
use super::http::Source;
use super::stand_in::{Reads, Swallows};
use crate::host::Host;

/// An answer to a guest.
pub(super) trait Told: Sized {
    /// As the journal has it. What it opens is noted to be at `path`.
    fn answer(&self, host: &mut Host, path: &str) -> FileAnswer;

    /// From the journal. An error ends the guest: no such answer can have been recorded there.
    fn again(host: &mut Host, answer: FileAnswer, path: &str) -> wasmtime::Result<Self>;
}

fn strange<T>(answer: &FileAnswer) -> wasmtime::Result<T> {
    Err(format_err!("the journal has an answer that does not fit what was asked: {answer:?}"))
}

/// Both ways, for what is plainly the one or the other.
macro_rules! plain {
    ($ty:ty, $value:ident => $answer:expr, $pattern:pat => $again:expr) => {
        impl Told for $ty {
            fn answer(&self, _: &mut Host, _: &str) -> FileAnswer {
                let $value = self;
                $answer
            }

            fn again(_: &mut Host, answer: FileAnswer, _: &str) -> wasmtime::Result<Self> {
                match answer {
                    $pattern => Ok($again),
                    other => strange(&other),
                }
            }
        }
    };
}

plain!((), _done => FileAnswer::Done, FileAnswer::Done => ());
plain!(u64, bytes => FileAnswer::Count(*bytes), FileAnswer::Count(bytes) => bytes);
plain!(bool, same => FileAnswer::Same(*same), FileAnswer::Same(same) => same);
plain!(String, path => FileAnswer::Path(path.clone()), FileAnswer::Path(path) => path);
plain!(
    (Vec<u8>, bool),
    read => FileAnswer::Bytes(bytes::Bytes::copy_from_slice(&read.0), read.1),
    FileAnswer::Bytes(bytes, ended) => (bytes.into(), ended)
);
plain!(
    MetadataHashValue,
    hash => FileAnswer::Hash(hash.lower, hash.upper),
    FileAnswer::Hash(lower, upper) => Self { lower, upper }
);
plain!(DescriptorFlags, flags => FileAnswer::Flags(bits(*flags)), FileAnswer::Flags(bits) => flags_of(bits));
plain!(DescriptorType, kind => FileAnswer::Kind(kind_number(*kind)), FileAnswer::Kind(kind) => kind_of(kind));
plain!(
    Option<DirectoryEntry>,
    entry => FileAnswer::Name(entry.as_ref().map(|entry| (kind_number(entry.type_), entry.name.clone()))),
    FileAnswer::Name(name) => name.map(|(kind, name)| DirectoryEntry { type_: kind_of(kind), name })
);
plain!(
    DescriptorStat,
    stat => FileAnswer::Stat(Box::new(FileStat {
        kind: kind_number(stat.type_),
        links: stat.link_count,
        size: stat.size,
        times: [stat.data_access_timestamp, stat.data_modification_timestamp, stat.status_change_timestamp]
            .map(|time| time.map(|time| (time.seconds, time.nanoseconds))),
    })),
    FileAnswer::Stat(stat) => {
        let [read, written, changed] =
            stat.times.map(|time| time.map(|(seconds, nanoseconds)| Datetime { seconds, nanoseconds }));
        Self {
            type_: kind_of(stat.kind),
            link_count: stat.links,
            size: stat.size,
            data_access_timestamp: read,
            data_modification_timestamp: written,
            status_change_timestamp: changed,
        }
    }
);

impl Told for Resource<Descriptor> {
    fn answer(&self, host: &mut Host, path: &str) -> FileAnswer {
        host.files.paths.insert(self.rep(), path.to_owned());
        FileAnswer::Opened
    }

    fn again(host: &mut Host, answer: FileAnswer, path: &str) -> wasmtime::Result<Self> {
        match answer {
            FileAnswer::Opened => Ok(Self::new_own(stand_in(host, path)?)),
            other => strange(&other),
        }
    }
}

impl Told for Resource<DirectoryEntryStream> {
    fn answer(&self, host: &mut Host, path: &str) -> FileAnswer {
        host.files.paths.insert(self.rep(), path.to_owned());
        FileAnswer::Opened
    }

    fn again(host: &mut Host, answer: FileAnswer, path: &str) -> wasmtime::Result<Self> {
        match answer {
            FileAnswer::Opened => Ok(Self::new_own(stand_in(host, path)?)),
            other => strange(&other),
        }
    }
}

fn stand_in(host: &mut Host, path: &str) -> wasmtime::Result<u32> {
    let rep = host.table.push(StandIn)?.rep();
    host.files.paths.insert(rep, path.to_owned());
    Ok(rep)
}

impl Told for Resource<DynInputStream> {
    fn answer(&self, host: &mut Host, _: &str) -> FileAnswer {
        let number = host.files.streams;
        host.files.streams += 1;
        host.places.reads(self.rep(), Source::File(number));
        FileAnswer::Stream(number)
    }

    fn again(host: &mut Host, answer: FileAnswer, _: &str) -> wasmtime::Result<Self> {
        let FileAnswer::Stream(number) = answer else { return strange(&answer) };
        let content = host.tape.answers(|answers| answers.read(number)).unwrap_or_default();
        let stream = host.table.push::<DynInputStream>(Box::new(Reads::new(content)))?;
        host.places.reads(stream.rep(), Source::File(number));
        Ok(stream)
    }
}

impl Told for Resource<DynOutputStream> {
    fn answer(&self, host: &mut Host, _: &str) -> FileAnswer {
        let number = host.files.streams;
        host.files.streams += 1;
        host.places.writes(self.rep(), Whose::File(number));
        FileAnswer::Stream(number)
    }

    fn again(host: &mut Host, answer: FileAnswer, _: &str) -> wasmtime::Result<Self> {
        let FileAnswer::Stream(number) = answer else { return strange(&answer) };
        let stream = host.table.push::<DynOutputStream>(Box::new(Swallows))?;
        host.places.writes(stream.rep(), Whose::File(number));
        Ok(stream)
    }
}

impl Told for Vec<(Resource<Descriptor>, String)> {
    fn answer(&self, host: &mut Host, _: &str) -> FileAnswer {
        for (folder, name) in self {
            host.files.paths.insert(folder.rep(), name.clone());
        }
        FileAnswer::Folders(self.iter().map(|(_, name)| name.clone()).collect())
    }

    fn again(host: &mut Host, answer: FileAnswer, _: &str) -> wasmtime::Result<Self> {
        let FileAnswer::Folders(names) = answer else { return strange(&answer) };
        names.into_iter().map(|name| Ok((Resource::new_own(stand_in(host, &name)?), name))).collect()
    }
}

const FLAGS: [DescriptorFlags; 6] = [
    DescriptorFlags::READ,
    DescriptorFlags::WRITE,
    DescriptorFlags::FILE_INTEGRITY_SYNC,
    DescriptorFlags::DATA_INTEGRITY_SYNC,
    DescriptorFlags::REQUESTED_WRITE_SYNC,
    DescriptorFlags::MUTATE_DIRECTORY,
];

fn bits(flags: DescriptorFlags) -> u8 {
    FLAGS.iter().enumerate().filter(|(_, flag)| flags.contains(**flag)).map(|(bit, _)| 1 << bit).sum()
}

fn flags_of(bits: u8) -> DescriptorFlags {
    let set = FLAGS.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
    set.fold(DescriptorFlags::empty(), |all, (_, flag)| all | *flag)
}

/// In the order of WASI.
const KINDS: [DescriptorType; 8] = [
    DescriptorType::Unknown,
    DescriptorType::BlockDevice,
    DescriptorType::CharacterDevice,
    DescriptorType::Directory,
    DescriptorType::Fifo,
    DescriptorType::SymbolicLink,
    DescriptorType::RegularFile,
    DescriptorType::Socket,
];

fn kind_number(kind: DescriptorType) -> u8 {
    KINDS.iter().position(|known| *known == kind).unwrap_or_default() as u8
}

fn kind_of(number: u8) -> DescriptorType {
    KINDS.get(usize::from(number)).copied().unwrap_or(DescriptorType::Unknown)
}

macro_rules! errors {
    ($($code:ident $name:literal)*) => {
        /// By its name in WASI.
        pub(super) fn error_name(code: ErrorCode) -> &'static str {
            match code {
                $(ErrorCode::$code => $name,)*
            }
        }

        /// An error's, from the journal.
        pub(super) fn error_of(name: &str) -> wasmtime::Result<ErrorCode> {
            match name {
                $($name => Ok(ErrorCode::$code),)*
                _ => Err(format_err!("the journal has an error of files that there is not: {name}")),
            }
        }
    };
}

errors! {
    Access "access"
    WouldBlock "would-block"
    Already "already"
    BadDescriptor "bad-descriptor"
    Busy "busy"
    Deadlock "deadlock"
    Quota "quota"
    Exist "exist"
    FileTooLarge "file-too-large"
    IllegalByteSequence "illegal-byte-sequence"
    InProgress "in-progress"
    Interrupted "interrupted"
    Invalid "invalid"
    Io "io"
    IsDirectory "is-directory"
    Loop "loop"
    TooManyLinks "too-many-links"
    MessageSize "message-size"
    NameTooLong "name-too-long"
    NoDevice "no-device"
    NoEntry "no-entry"
    NoLock "no-lock"
    InsufficientMemory "insufficient-memory"
    InsufficientSpace "insufficient-space"
    NotDirectory "not-directory"
    NotEmpty "not-empty"
    NotRecoverable "not-recoverable"
    Unsupported "unsupported"
    NoTty "no-tty"
    NoSuchDevice "no-such-device"
    Overflow "overflow"
    NotPermitted "not-permitted"
    Pipe "pipe"
    ReadOnly "read-only"
    InvalidSeek "invalid-seek"
    TextFileBusy "text-file-busy"
    CrossDevice "cross-device"
}
