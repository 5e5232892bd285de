//! `wasi:io` by the tape: what was ready, what was read, how much could be written.

use bytes::Bytes;
use nexus_core::journal::{Entry, Read, Whose, Wrote};
use wasmtime::component::{Linker, Resource};
use wasmtime::{StoreContextMut, format_err};
use wasmtime_wasi::p2::bindings::io::poll::{self, HostPollable as _};
use wasmtime_wasi::p2::bindings::io::streams::{self, HostInputStream as _, HostOutputStream as _};
use wasmtime_wasi::p2::bindings::io::{error, streams::Host as _};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, StreamError, StreamResult};
use xxhash_rust::xxh3::xxh3_64;

use super::HIDDEN;
use super::http::Source;
use crate::host::Host;

/// Of what is written to the body of a request, so much is kept for people to read.
const BEGINNING_BYTES_MAX: usize = 1024;

type Answered<T> = wasmtime::Result<(Result<T, streams::StreamError>,)>;

/// A span as wasmtime's own bindings open one around every import, by which the kernel's account knows what a thread works for.
macro_rules! import {
    ($module:literal, $function:literal) => {
        tracing::span!(tracing::Level::TRACE, "wit-bindgen import", module = $module, function = $function)
    };
}
pub(super) use import;

/// An import that does not wait.
macro_rules! define {
    ($instance:expr, $module:literal, $function:literal, $body:expr) => {
        $instance.func_wrap($function, move |mut store: StoreContextMut<'_, Host>, params| {
            let _working = $crate::tape::io::import!($module, $function).entered();
            let answer = $body(store.data_mut(), params);
            answer.inspect_err(|error| store.data().tape.trapped(error))
        })?
    };
}
pub(super) use define;

/// An import that waits.
macro_rules! define_async {
    ($instance:expr, $module:literal, $function:literal, $body:expr) => {
        $instance.func_wrap_async($function, move |mut store: StoreContextMut<'_, Host>, params| {
            let span = $crate::tape::io::import!($module, $function);
            let working = async move {
                let answer = $body(store.data_mut(), params).await;
                answer.inspect_err(|error| store.data().tape.trapped(error))
            };
            Box::new(tracing::Instrument::instrument(working, span))
        })?
    };
}

pub(super) use define_async;

/// Puts these functions in the place of wasmtime's own. Shadowing must be allowed.
pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut poll = linker.instance("wasi:io/poll@0.2.12")?;
    define_async!(poll, "wasi:io/poll", "poll", poll_all);
    define_async!(poll, "wasi:io/poll", "[method]pollable.block", block);
    define_async!(poll, "wasi:io/poll", "[method]pollable.ready", ready);

    let mut streams = linker.instance("wasi:io/streams@0.2.12")?;
    define!(streams, "wasi:io/streams", "[method]input-stream.read", read);
    define_async!(streams, "wasi:io/streams", "[method]input-stream.blocking-read", blocking_read);
    define!(streams, "wasi:io/streams", "[method]input-stream.skip", skip);
    define_async!(streams, "wasi:io/streams", "[method]input-stream.blocking-skip", blocking_skip);
    define!(streams, "wasi:io/streams", "[method]output-stream.check-write", check_write);
    define!(streams, "wasi:io/streams", "[method]output-stream.write", write);
    define_async!(
        streams,
        "wasi:io/streams",
        "[method]output-stream.blocking-write-and-flush",
        blocking_write_and_flush
    );
    define!(streams, "wasi:io/streams", "[method]output-stream.flush", flush);
    define_async!(streams, "wasi:io/streams", "[method]output-stream.blocking-flush", blocking_flush);
    define!(streams, "wasi:io/streams", "[method]output-stream.write-zeroes", write_zeroes);
    define_async!(
        streams,
        "wasi:io/streams",
        "[method]output-stream.blocking-write-zeroes-and-flush",
        blocking_write_zeroes_and_flush
    );
    define!(streams, "wasi:io/streams", "[method]output-stream.splice", splice);
    define_async!(streams, "wasi:io/streams", "[method]output-stream.blocking-splice", blocking_splice);

    let mut errors = linker.instance("wasi:io/error@0.2.12")?;
    define!(errors, "wasi:io/error", "[method]error.to-debug-string", to_debug_string);

    Ok(())
}

async fn poll_all(host: &mut Host, (pollables,): (Vec<Resource<DynPollable>>,)) -> wasmtime::Result<(Vec<u32>,)> {
    let of = pollables.len() as u32;
    let same = |entry: &Entry| match entry {
        Entry::Poll(recorded, ready) if *recorded == of => Some(ready.clone()),
        _ => None,
    };
    if let Some(ready) = host.tape.played(|| Entry::Poll(of, Vec::new()), same)? {
        return Ok((ready,));
    }
    let ready = poll::Host::poll(&mut host.table, pollables).await?;
    host.tape.record(|| Entry::Poll(of, ready.clone()));
    Ok((ready,))
}

async fn block(host: &mut Host, (pollable,): (Resource<DynPollable>,)) -> wasmtime::Result<()> {
    let same = |entry: &Entry| matches!(entry, Entry::Block).then_some(());
    if host.tape.played(|| Entry::Block, same)?.is_some() {
        return Ok(());
    }
    host.table.block(pollable).await?;
    host.tape.record(|| Entry::Block);
    Ok(())
}

async fn ready(host: &mut Host, (pollable,): (Resource<DynPollable>,)) -> wasmtime::Result<(bool,)> {
    let same = |entry: &Entry| if let Entry::Ready(ready) = entry { Some(*ready) } else { None };
    if let Some(ready) = host.tape.played(|| Entry::Ready(false), same)? {
        return Ok((ready,));
    }
    let ready = host.table.ready(pollable).await?;
    host.tape.record(|| Entry::Ready(ready));
    Ok((ready,))
}

/// Takes a call on a stream down, unless it ends the guest: then that is taken down when it does.
fn take_down<T>(host: &Host, result: &StreamResult<T>, entry: impl FnOnce() -> Entry) {
    if !matches!(result, Err(StreamError::Trap(_))) {
        host.tape.record(entry);
    }
}

/// What was read as the journal has it.
fn taken_down(result: &StreamResult<Vec<u8>>) -> Read {
    match result {
        Ok(bytes) => Read::Bytes(Bytes::copy_from_slice(bytes)),
        Err(error) => end(error),
    }
}

fn end(error: &StreamError) -> Read {
    match error {
        StreamError::Closed => Read::Closed,
        StreamError::LastOperationFailed(error) | StreamError::Trap(error) => Read::Failed(format!("{error:?}")),
    }
}

fn again(read: Read) -> StreamResult<Vec<u8>> {
    match read {
        Read::Bytes(bytes) => Ok(bytes.into()),
        Read::Closed => Err(StreamError::Closed),
        Read::Failed(why) => Err(StreamError::LastOperationFailed(format_err!("{why}"))),
    }
}

fn answered<T>(host: &mut Host, result: StreamResult<T>) -> Answered<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(host.table.convert_stream_error(error)?),)),
    }
}

/// What the tape has of a read; `None`: it is not played back.
fn played_read(host: &Host, of: Source, len: u64) -> wasmtime::Result<Option<Read>> {
    let fits = |read: &Read| !matches!(read, Read::Bytes(bytes) if bytes.len() as u64 > len);
    let same = |entry: &Entry| match (entry, of) {
        (Entry::Body(recorded, read), Source::Answer(of)) | (Entry::FileRead(recorded, read), Source::File(of))
            if *recorded == of && fits(read) =>
        {
            Some(read.clone())
        }
        _ => None,
    };
    host.tape.played(|| of.read(Read::Closed), same)
}

fn read_bytes(host: &mut Host, stream: Resource<DynInputStream>, len: u64) -> wasmtime::Result<StreamResult<Vec<u8>>> {
    let Some(of) = host.places.source_at(stream.rep()) else { return Ok(host.table.read(stream, len)) };
    if let Some(read) = played_read(host, of, len)? {
        return Ok(again(read));
    }
    let result = host.table.read(stream, len);
    take_down(host, &result, || of.read(taken_down(&result)));
    Ok(result)
}

async fn read_bytes_blocking(
    host: &mut Host,
    stream: Resource<DynInputStream>,
    len: u64,
) -> wasmtime::Result<StreamResult<Vec<u8>>> {
    let Some(of) = host.places.source_at(stream.rep()) else {
        return Ok(host.table.blocking_read(stream, len).await);
    };
    if let Some(read) = played_read(host, of, len)? {
        return Ok(again(read));
    }
    let result = host.table.blocking_read(stream, len).await;
    take_down(host, &result, || of.read(taken_down(&result)));
    Ok(result)
}

fn read(host: &mut Host, (stream, len): (Resource<DynInputStream>, u64)) -> Answered<Vec<u8>> {
    let result = read_bytes(host, stream, len)?;
    answered(host, result)
}

async fn blocking_read(host: &mut Host, (stream, len): (Resource<DynInputStream>, u64)) -> Answered<Vec<u8>> {
    let result = read_bytes_blocking(host, stream, len).await?;
    answered(host, result)
}

/// What the tape has of a skip; `None`: it is not played back.
fn played_skip(host: &Host, of: Source) -> wasmtime::Result<Option<StreamResult<u64>>> {
    let same = |entry: &Entry| match (entry, of) {
        (Entry::Skipped(recorded, skipped), Source::Answer(of))
        | (Entry::FileSkipped(recorded, skipped), Source::File(of))
            if *recorded == of =>
        {
            Some(skipped.clone())
        }
        _ => None,
    };
    let skipped = host.tape.played(|| of.skipped(Ok(0)), same)?;
    Ok(skipped.map(|skipped| skipped.map_err(|end| again(end).err().unwrap_or(StreamError::Closed))))
}

fn skip(host: &mut Host, (stream, len): (Resource<DynInputStream>, u64)) -> Answered<u64> {
    let Some(of) = host.places.source_at(stream.rep()) else {
        let result = host.table.skip(stream, len);
        return answered(host, result);
    };
    if let Some(skipped) = played_skip(host, of)? {
        return answered(host, skipped);
    }
    let result = host.table.skip(stream, len);
    take_down(host, &result, || of.skipped(result.as_ref().map(|n| *n).map_err(end)));
    answered(host, result)
}

async fn blocking_skip(host: &mut Host, (stream, len): (Resource<DynInputStream>, u64)) -> Answered<u64> {
    let Some(of) = host.places.source_at(stream.rep()) else {
        let result = host.table.blocking_skip(stream, len).await;
        return answered(host, result);
    };
    if let Some(skipped) = played_skip(host, of)? {
        return answered(host, skipped);
    }
    let result = host.table.blocking_skip(stream, len).await;
    take_down(host, &result, || of.skipped(result.as_ref().map(|n| *n).map_err(end)));
    answered(host, result)
}

fn wrote<T>(result: &StreamResult<T>, bytes: impl FnOnce(&T) -> u64) -> Wrote {
    match result {
        Ok(done) => Wrote::Done(bytes(done)),
        Err(error) => match end(error) {
            Read::Failed(why) => Wrote::Failed(why),
            Read::Closed | Read::Bytes(_) => Wrote::Closed,
        },
    }
}

fn written(wrote: Wrote) -> StreamResult<u64> {
    match wrote {
        Wrote::Done(bytes) => Ok(bytes),
        Wrote::Closed => Err(StreamError::Closed),
        Wrote::Failed(why) => Err(StreamError::LastOperationFailed(format_err!("{why}"))),
    }
}

/// How much may be written.
fn permitted(host: &mut Host, stream: Resource<DynOutputStream>) -> wasmtime::Result<StreamResult<u64>> {
    let Some(whose) = host.places.body_at(stream.rep()) else { return Ok(host.table.check_write(stream)) };
    let same = |entry: &Entry| match entry {
        Entry::MayWrite(recorded, wrote) if *recorded == whose => Some(wrote.clone()),
        _ => None,
    };
    if let Some(recorded) = host.tape.played(|| Entry::MayWrite(whose, Wrote::Closed), same)? {
        return Ok(written(recorded));
    }
    let result = host.table.check_write(stream);
    take_down(host, &result, || Entry::MayWrite(whose, wrote(&result, |bytes| *bytes)));
    Ok(result)
}

fn check_write(host: &mut Host, (stream,): (Resource<DynOutputStream>,)) -> Answered<u64> {
    let result = permitted(host, stream)?;
    answered(host, result)
}

/// A write as the journal has it, but for what came of it.
fn writing(whose: Whose, bytes: &[u8]) -> impl FnOnce(Wrote) -> Entry + use<> {
    let beginning = match whose {
        Whose::Request => Bytes::copy_from_slice(&bytes[..bytes.len().min(BEGINNING_BYTES_MAX)]),
        // It is in the outcome, or in the file.
        Whose::Response | Whose::File(_) => Bytes::new(),
    };
    let (len, hash) = (bytes.len() as u32, xxh3_64(bytes));
    move |wrote| Entry::Write(whose, len, hash, beginning, wrote)
}

/// What the tape has of a write. What is written goes on its way nevertheless: it is held there, and is what the function gives
/// back.
fn played_write(
    host: &mut Host,
    stream: &Resource<DynOutputStream>,
    whose: Whose,
    bytes: &[u8],
) -> wasmtime::Result<Option<StreamResult<u64>>> {
    let (len, hash) = (bytes.len() as u32, xxh3_64(bytes));
    let same = |entry: &Entry| match entry {
        Entry::Write(w, l, h, _, wrote) if (*w, *l) == (whose, len) && (*h == hash || *h == HIDDEN) => {
            Some(wrote.clone())
        }
        _ => None,
    };
    let Some(recorded) = host.tape.played(|| writing(whose, bytes)(Wrote::Done(0)), same)? else { return Ok(None) };
    // One that failed for being more than was announced was counted nevertheless.
    if !matches!(recorded, Wrote::Closed) {
        let stream = Resource::new_borrow(stream.rep());
        // Whether somebody takes it in time was decided when it was recorded.
        drop(host.table.write(stream, bytes.to_vec()));
        host.places.drain();
    }
    Ok(Some(written(recorded)))
}

fn write_bytes(
    host: &mut Host,
    stream: Resource<DynOutputStream>,
    bytes: Vec<u8>,
) -> wasmtime::Result<StreamResult<()>> {
    let Some(whose) = host.places.body_at(stream.rep()) else { return Ok(host.table.write(stream, bytes)) };
    if let Some(recorded) = played_write(host, &stream, whose, &bytes)? {
        return Ok(recorded.map(drop));
    }
    let entry = host.tape.is_there().then(|| writing(whose, &bytes));
    let result = host.table.write(stream, bytes);
    if let Some(entry) = entry {
        take_down(host, &result, || entry(wrote(&result, |()| 0)));
    }
    Ok(result)
}

/// What a guest writes at once is bounded, by the specification; what it splices is not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Write,
    Splice,
}

async fn written_at_last(
    host: &mut Host,
    stream: Resource<DynOutputStream>,
    bytes: Vec<u8>,
    bound: Bound,
) -> wasmtime::Result<StreamResult<()>> {
    if bound == Bound::Write {
        return Ok(host.table.blocking_write_and_flush(stream, bytes).await);
    }
    Ok(host.table.get_mut(&stream)?.blocking_write_and_flush(bytes.into()).await)
}

async fn write_bytes_blocking(
    host: &mut Host,
    stream: Resource<DynOutputStream>,
    bytes: Vec<u8>,
    bound: Bound,
) -> wasmtime::Result<StreamResult<()>> {
    let Some(whose) = host.places.body_at(stream.rep()) else {
        return written_at_last(host, stream, bytes, bound).await;
    };
    if let Some(recorded) = played_write(host, &stream, whose, &bytes)? {
        return Ok(recorded.map(drop));
    }
    let entry = host.tape.is_there().then(|| writing(whose, &bytes));
    let result = written_at_last(host, stream, bytes, bound).await?;
    if let Some(entry) = entry {
        take_down(host, &result, || entry(wrote(&result, |()| 0)));
    }
    Ok(result)
}

fn write(host: &mut Host, (stream, bytes): (Resource<DynOutputStream>, Vec<u8>)) -> Answered<()> {
    let result = write_bytes(host, stream, bytes)?;
    answered(host, result)
}

async fn blocking_write_and_flush(
    host: &mut Host,
    (stream, bytes): (Resource<DynOutputStream>, Vec<u8>),
) -> Answered<()> {
    let result = write_bytes_blocking(host, stream, bytes, Bound::Write).await?;
    answered(host, result)
}

fn played_flush(host: &Host, whose: Whose) -> wasmtime::Result<Option<StreamResult<()>>> {
    let same = |entry: &Entry| match entry {
        Entry::Flush(recorded, wrote) if *recorded == whose => Some(wrote.clone()),
        _ => None,
    };
    let recorded = host.tape.played(|| Entry::Flush(whose, Wrote::Done(0)), same)?;
    Ok(recorded.map(|recorded| written(recorded).map(drop)))
}

fn flush(host: &mut Host, (stream,): (Resource<DynOutputStream>,)) -> Answered<()> {
    let whose = host.places.body_at(stream.rep());
    if let Some(whose) = whose
        && let Some(recorded) = played_flush(host, whose)?
    {
        return answered(host, recorded);
    }
    let result = host.table.flush(stream);
    if let Some(whose) = whose {
        take_down(host, &result, || Entry::Flush(whose, wrote(&result, |()| 0)));
    }
    answered(host, result)
}

async fn blocking_flush(host: &mut Host, (stream,): (Resource<DynOutputStream>,)) -> Answered<()> {
    let whose = host.places.body_at(stream.rep());
    if let Some(whose) = whose
        && let Some(recorded) = played_flush(host, whose)?
    {
        return answered(host, recorded);
    }
    let result = host.table.blocking_flush(stream).await;
    if let Some(whose) = whose {
        take_down(host, &result, || Entry::Flush(whose, wrote(&result, |()| 0)));
    }
    answered(host, result)
}

/// The most bytes of one blocking write: wasmtime's own bound, by the specification.
const BLOCKING_BYTES_MAX: u64 = 4096;

fn write_zeroes(host: &mut Host, (stream, len): (Resource<DynOutputStream>, u64)) -> Answered<()> {
    if host.places.body_at(stream.rep()).is_none() {
        let result = host.table.write_zeroes(stream, len);
        return answered(host, result);
    }
    // More than may be written at all: refused before so many are made.
    let budget = host.places.write_budget as u64;
    if len > budget {
        return Err(format_err!("cannot write more zeroes than `check_write` allows"));
    }
    let result = write_bytes(host, stream, vec![0; len as usize])?;
    answered(host, result)
}

async fn blocking_write_zeroes_and_flush(
    host: &mut Host,
    (stream, len): (Resource<DynOutputStream>, u64),
) -> Answered<()> {
    if len > BLOCKING_BYTES_MAX || host.places.body_at(stream.rep()).is_none() {
        let result = host.table.blocking_write_zeroes_and_flush(stream, len).await;
        return answered(host, result);
    }
    let result = write_bytes_blocking(host, stream, vec![0; len as usize], Bound::Write).await?;
    answered(host, result)
}

/// As the specification has it: what may be written, then a read, then a write.
fn splice(
    host: &mut Host,
    (to, from, len): (Resource<DynOutputStream>, Resource<DynInputStream>, u64),
) -> Answered<u64> {
    let permitted = match permitted(host, Resource::new_borrow(to.rep()))? {
        Ok(permitted) => permitted,
        Err(error) => return answered(host, Err(error)),
    };
    let len = len.min(permitted);
    if len == 0 {
        return Ok((Ok(0),));
    }
    let bytes = match read_bytes(host, from, len)? {
        Ok(bytes) => bytes,
        Err(error) => return answered(host, Err(error)),
    };
    let len = bytes.len() as u64;
    if len == 0 {
        return Ok((Ok(0),));
    }
    let result = write_bytes(host, to, bytes)?;
    answered(host, result.map(|()| len))
}

async fn blocking_splice(
    host: &mut Host,
    (to, from, len): (Resource<DynOutputStream>, Resource<DynInputStream>, u64),
) -> Answered<u64> {
    let permitted = match permitted_at_last(host, Resource::new_borrow(to.rep())).await? {
        Ok(permitted) => permitted,
        Err(error) => return answered(host, Err(error)),
    };
    let len = len.min(permitted);
    if len == 0 {
        return Ok((Ok(0),));
    }
    let bytes = match read_bytes_blocking(host, from, len).await? {
        Ok(bytes) => bytes,
        Err(error) => return answered(host, Err(error)),
    };
    let len = bytes.len() as u64;
    if len == 0 {
        return Ok((Ok(0),));
    }
    let result = write_bytes_blocking(host, to, bytes, Bound::Splice).await?;
    answered(host, result.map(|()| len))
}

/// How much may be written, once something may.
async fn permitted_at_last(host: &mut Host, stream: Resource<DynOutputStream>) -> wasmtime::Result<StreamResult<u64>> {
    let whose = host.places.body_at(stream.rep());
    if let Some(whose) = whose {
        let same = |entry: &Entry| match entry {
            Entry::MayWrite(recorded, wrote) if *recorded == whose => Some(wrote.clone()),
            _ => None,
        };
        if let Some(recorded) = host.tape.played(|| Entry::MayWrite(whose, Wrote::Closed), same)? {
            return Ok(written(recorded));
        }
    }
    let result = host.table.get_mut(&stream)?.write_ready().await.map(|bytes| bytes as u64);
    if let Some(whose) = whose {
        take_down(host, &result, || Entry::MayWrite(whose, wrote(&result, |bytes| *bytes)));
    }
    Ok(result)
}

fn to_debug_string(host: &mut Host, (error,): (Resource<streams::Error>,)) -> wasmtime::Result<(String,)> {
    let same = |entry: &Entry| if let Entry::ErrorText(text) = entry { Some(text.clone()) } else { None };
    if let Some(text) = host.tape.played(|| Entry::ErrorText(String::new()), same)? {
        return Ok((text,));
    }
    let text = error::HostError::to_debug_string(&mut host.table, error)?;
    host.tape.record(|| Entry::ErrorText(text.clone()));
    Ok((text,))
}
