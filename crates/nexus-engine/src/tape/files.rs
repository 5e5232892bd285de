//! `wasi:filesystem` by the tape: all that a guest asks about files and folders, and what it is told.
//!
//! A replay has no folders: what stands for a file there is a name, and nothing of the host is behind it. Calls are told apart
//! by their words, in which a file is called by its path; so another version of the function may ask for the same in another
//! order.

use std::collections::HashMap;

use nexus_core::journal::{Entry, FileAnswer};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, DescriptorFlags, DirectoryEntryStream, ErrorCode, Host as _, HostDescriptor, HostDirectoryEntryStream,
    NewTimestamp, OpenFlags, PathFlags,
};
use xxhash_rust::xxh3::xxh3_64;

use super::io::{define, define_async};
use super::told::{Told, error_name, error_of};
use super::words;
use crate::host::Host;

/// What stands for a file or a folder in a replay.
pub(super) struct StandIn;

/// Which of the host's things are which files. As with [`super::http::Places`], numbers are given out again.
#[derive(Default)]
pub(crate) struct Files {
    /// Whether the function sees any folder.
    mounted: bool,
    /// The paths of what is open.
    pub(super) paths: HashMap<u32, String>,
    /// Streams that were made.
    pub(super) streams: u32,
}

impl Files {
    pub(crate) fn new(mounted: bool) -> Self {
        Self { mounted, ..Self::default() }
    }

    fn path(&self, rep: u32) -> &str {
        self.paths.get(&rep).map_or("?", String::as_str)
    }

    fn below(&self, folder: u32, path: &str) -> String {
        format!("{}/{path}", self.path(folder).trim_end_matches('/'))
    }
}

type Answered<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// A method about what is open, and what else is asked with it.
macro_rules! of_open {
    ($types:expr, $name:literal, $method:ident($($arg:ident: $ty:ty),*), $($asked:tt)*) => {
        define_async!(
            $types,
            "wasi:filesystem/types",
            $name,
            async |host: &mut Host, (fd, $($arg,)*): (Resource<Descriptor>, $($ty,)*)| {
                let at = ask(host, fd.rep(), None, $name, || format!($($asked)*));
                if let Some(told) = told(host, at.as_ref())? {
                    return Ok((told,));
                }
                let result = HostDescriptor::$method(&mut host.filesystem(), fd, $($arg,)*).await;
                take_down(host, at, result)
            }
        )
    };
}

/// The same of one that does not wait.
macro_rules! of_open_now {
    ($types:expr, $name:literal, $method:ident($($arg:ident: $ty:ty),*), $($asked:tt)*) => {
        define!($types, "wasi:filesystem/types", $name, |host: &mut Host, (fd, $($arg,)*): (Resource<Descriptor>, $($ty,)*)| {
            let at = ask(host, fd.rep(), None, $name, || format!($($asked)*));
            if let Some(told) = told(host, at.as_ref())? {
                return Ok((told,));
            }
            let result = HostDescriptor::$method(&mut host.filesystem(), fd, $($arg,)*);
            take_down(host, at, result)
        })
    };
}

/// A method about a path below an open folder.
macro_rules! of_path {
    ($types:expr, $name:literal, $method:ident($($before:ident: $before_ty:ty,)* @path $(, $after:ident: $after_ty:ty)*), $($asked:tt)*) => {
        define_async!(
            $types,
            "wasi:filesystem/types",
            $name,
            async |host: &mut Host, (fd, $($before,)* path, $($after,)*): (Resource<Descriptor>, $($before_ty,)* String, $($after_ty,)*)| {
                let at = ask(host, fd.rep(), Some(&path), $name, || format!($($asked)*));
                if let Some(told) = told(host, at.as_ref())? {
                    return Ok((told,));
                }
                let result =
                    HostDescriptor::$method(&mut host.filesystem(), fd, $($before,)* path, $($after,)*).await;
                take_down(host, at, result)
            }
        )
    };
}

/// Puts these functions in the place of wasmtime's own. Shadowing must be allowed.
pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut folders = linker.instance("wasi:filesystem/preopens@0.2.12")?;
    define!(folders, "wasi:filesystem/preopens", "get-directories", get_directories);

    let mut types = linker.instance("wasi:filesystem/types@0.2.12")?;
    types.resource("descriptor", ResourceType::host::<Descriptor>(), |mut store, rep| {
        store.data_mut().files.paths.remove(&rep);
        drop_it(&mut store, rep, |host, rep| HostDescriptor::drop(&mut host.filesystem(), Resource::new_own(rep)))
    })?;
    types.resource("directory-entry-stream", ResourceType::host::<DirectoryEntryStream>(), |mut store, rep| {
        store.data_mut().files.paths.remove(&rep);
        drop_it(&mut store, rep, |host, rep| {
            HostDirectoryEntryStream::drop(&mut host.filesystem(), Resource::new_own(rep))
        })
    })?;

    of_open_now!(types, "[method]descriptor.read-via-stream", read_via_stream(offset: u64), "from {offset}");
    of_open_now!(types, "[method]descriptor.write-via-stream", write_via_stream(offset: u64), "from {offset}");
    of_open_now!(types, "[method]descriptor.append-via-stream", append_via_stream(), "");
    of_open!(types, "[method]descriptor.advise", advise(offset: u64, len: u64, advice: Advice), "{len} from {offset}: {}", words::advice(advice));
    of_open!(types, "[method]descriptor.sync-data", sync_data(), "");
    of_open!(types, "[method]descriptor.get-flags", get_flags(), "");
    of_open!(types, "[method]descriptor.get-type", get_type(), "");
    of_open!(types, "[method]descriptor.set-size", set_size(size: u64), "{size}");
    of_open!(types, "[method]descriptor.set-times", set_times(read: NewTimestamp, written: NewTimestamp), "{}, {}", words::time(&read), words::time(&written));
    of_open!(types, "[method]descriptor.read", read(len: u64, offset: u64), "{len} from {offset}");
    define_async!(types, "wasi:filesystem/types", "[method]descriptor.write", write);
    of_open!(types, "[method]descriptor.read-directory", read_directory(), "");
    of_open!(types, "[method]descriptor.sync", sync(), "");
    of_path!(types, "[method]descriptor.create-directory-at", create_directory_at(@path), "");
    of_open!(types, "[method]descriptor.stat", stat(), "");
    of_path!(types, "[method]descriptor.stat-at", stat_at(how: PathFlags, @path), "{}", words::how(how));
    of_path!(
        types,
        "[method]descriptor.set-times-at",
        set_times_at(how: PathFlags, @path, read: NewTimestamp, written: NewTimestamp),
        "{}, {}, {}", words::how(how), words::time(&read), words::time(&written)
    );
    define_async!(types, "wasi:filesystem/types", "[method]descriptor.link-at", link_at);
    of_path!(
        types,
        "[method]descriptor.open-at",
        open_at(how: PathFlags, @path, open: OpenFlags, flags: DescriptorFlags),
        "{} {}", words::how(how), words::open(open, flags)
    );
    of_path!(types, "[method]descriptor.readlink-at", readlink_at(@path), "");
    of_path!(types, "[method]descriptor.remove-directory-at", remove_directory_at(@path), "");
    define_async!(types, "wasi:filesystem/types", "[method]descriptor.rename-at", rename_at);
    of_path!(types, "[method]descriptor.symlink-at", symlink_at(target: String, @path), "to {target}");
    of_path!(types, "[method]descriptor.unlink-file-at", unlink_file_at(@path), "");
    define_async!(types, "wasi:filesystem/types", "[method]descriptor.is-same-object", is_same_object);
    of_open!(types, "[method]descriptor.metadata-hash", metadata_hash(), "");
    of_path!(types, "[method]descriptor.metadata-hash-at", metadata_hash_at(how: PathFlags, @path), "{}", words::how(how));
    define_async!(
        types,
        "wasi:filesystem/types",
        "[method]directory-entry-stream.read-directory-entry",
        read_directory_entry
    );
    define!(types, "wasi:filesystem/types", "filesystem-error-code", filesystem_error_code);
    Ok(())
}

fn drop_it(
    store: &mut StoreContextMut<'_, Host>,
    rep: u32,
    real: impl FnOnce(&mut Host, u32) -> wasmtime::Result<()>,
) -> wasmtime::Result<()> {
    let host = store.data_mut();
    if host.tape.is_replay() {
        host.table.delete::<StandIn>(Resource::new_own(rep))?;
        return Ok(());
    }
    real(host, rep)
}

/// What is asked, and about which path.
pub(super) struct Asked {
    words: String,
    path: String,
}

/// What is asked, where somebody listens.
fn ask(host: &Host, fd: u32, path: Option<&str>, name: &str, more: impl FnOnce() -> String) -> Option<Asked> {
    host.tape.is_there().then(|| {
        let path = match path {
            Some(path) => host.files.below(fd, path),
            None => host.files.path(fd).to_owned(),
        };
        let (verb, more) = (name.rsplit('.').next().unwrap_or(name), more());
        let words = if more.is_empty() { format!("{verb} {path}") } else { format!("{verb} {path} {more}") };
        Asked { words, path }
    })
}

/// What the journal says to that. `None`: it is not asked.
fn told<T: Told>(host: &mut Host, asked: Option<&Asked>) -> wasmtime::Result<Option<Result<T, ErrorCode>>> {
    let Some(Asked { words, path }) = asked else { return Ok(None) };
    let same = |entry: &Entry| match entry {
        Entry::File(recorded, answer) if recorded == words => Some(answer.clone()),
        _ => None,
    };
    let played = host.tape.played(|| Entry::File(words.clone(), Ok(FileAnswer::Done)), same)?;
    let answer = match played {
        Some(answer) => answer,
        None => match host.tape.answers(|answers| answers.file(words)) {
            Some(answer) => answer,
            None => return Ok(None),
        },
    };
    match answer {
        Ok(answer) => T::again(host, answer, path).map(|value| Some(Ok(value))),
        Err(error) => Ok(Some(Err(error_of(&error)?))),
    }
}

/// Takes down what came of it.
fn take_down<T: Told>(host: &mut Host, asked: Option<Asked>, result: FsResult<T>) -> Answered<T> {
    let result = match result {
        Ok(value) => Ok(value),
        Err(error) => Err(host.filesystem().convert_error_code(error)?),
    };
    if let Some(Asked { words, path }) = asked {
        let answer = match &result {
            Ok(value) => Ok(value.answer(host, &path)),
            Err(error) => Err(error_name(*error).to_owned()),
        };
        host.tape.record(|| Entry::File(words, answer));
    }
    Ok((result,))
}

type Folders = Vec<(Resource<Descriptor>, String)>;

fn get_directories(host: &mut Host, (): ()) -> wasmtime::Result<(Folders,)> {
    // That there are none follows from the configuration.
    let asked = host.files.mounted.then(|| ask(host, u32::MAX, None, "get-directories", String::new)).flatten();
    if let Some(told) = told::<Folders>(host, asked.as_ref())? {
        return Ok((told.unwrap_or_default(),));
    }
    let folders = preopens::Host::get_directories(&mut host.filesystem())?;
    let (folders,) = take_down(host, asked, Ok(folders))?;
    Ok((folders.unwrap_or_default(),))
}

async fn write(host: &mut Host, (fd, bytes, offset): (Resource<Descriptor>, Vec<u8>, u64)) -> Answered<u64> {
    let asked = ask(host, fd.rep(), None, "write", || {
        format!("{} bytes ({:016x}) from {offset}", bytes.len(), xxh3_64(&bytes))
    });
    if let Some(told) = told(host, asked.as_ref())? {
        return Ok((told,));
    }
    let result = HostDescriptor::write(&mut host.filesystem(), fd, bytes, offset).await;
    take_down(host, asked, result)
}

async fn link_at(
    host: &mut Host,
    (fd, how, from, other, to): (Resource<Descriptor>, PathFlags, String, Resource<Descriptor>, String),
) -> Answered<()> {
    let asked = ask(host, fd.rep(), Some(&from), "link-at", || {
        format!("as {}, {}", host.files.below(other.rep(), &to), words::how(how))
    });
    if let Some(told) = told(host, asked.as_ref())? {
        return Ok((told,));
    }
    let result = HostDescriptor::link_at(&mut host.filesystem(), fd, how, from, other, to).await;
    take_down(host, asked, result)
}

async fn rename_at(
    host: &mut Host,
    (fd, from, other, to): (Resource<Descriptor>, String, Resource<Descriptor>, String),
) -> Answered<()> {
    let asked = ask(host, fd.rep(), Some(&from), "rename-at", || format!("to {}", host.files.below(other.rep(), &to)));
    if let Some(told) = told(host, asked.as_ref())? {
        return Ok((told,));
    }
    let result = HostDescriptor::rename_at(&mut host.filesystem(), fd, from, other, to).await;
    take_down(host, asked, result)
}

async fn is_same_object(
    host: &mut Host,
    (fd, other): (Resource<Descriptor>, Resource<Descriptor>),
) -> wasmtime::Result<(bool,)> {
    let asked = ask(host, fd.rep(), None, "is-same-object", || format!("as {}", host.files.path(other.rep())));
    if let Some(told) = told::<bool>(host, asked.as_ref())? {
        return Ok((told.unwrap_or_default(),));
    }
    let same = HostDescriptor::is_same_object(&mut host.filesystem(), fd, other).await?;
    let (same,) = take_down(host, asked, Ok(same))?;
    Ok((same.unwrap_or_default(),))
}

async fn read_directory_entry(
    host: &mut Host,
    (stream,): (Resource<DirectoryEntryStream>,),
) -> Answered<Option<wasmtime_wasi::p2::bindings::filesystem::types::DirectoryEntry>> {
    let asked = ask(host, stream.rep(), None, "read-directory-entry", String::new);
    if let Some(told) = told(host, asked.as_ref())? {
        return Ok((told,));
    }
    let result = HostDirectoryEntryStream::read_directory_entry(&mut host.filesystem(), stream).await;
    take_down(host, asked, result)
}

fn filesystem_error_code(
    host: &mut Host,
    (error,): (Resource<StreamFailure>,),
) -> wasmtime::Result<(Option<ErrorCode>,)> {
    let pick = |entry: &Entry| if let Entry::FileError(name) = entry { Some(name.clone()) } else { None };
    if let Some(recorded) = host.tape.played(|| Entry::FileError(None), pick)? {
        return Ok((recorded.as_deref().map(error_of).transpose()?,));
    }
    let code = host.filesystem().filesystem_error_code(error)?;
    host.tape.record(|| Entry::FileError(code.map(|code| error_name(code).to_owned())));
    Ok((code,))
}

/// The error that a stream broke off with.
type StreamFailure = wasmtime::Error;
