//! Preview 1 by the tape: what `poll_oneoff` says. Clocks and random numbers come through the context, as everywhere.

use bytes::Bytes;
use nexus_core::journal::Entry;
use wasmtime::{Caller, Extern, Linker, format_err};
use wasmtime_wasi::p1::wasi_snapshot_preview1;
use wiggle::GuestMemory;

use super::Draw;
use crate::host::{Preview1Host, RANDOM_BYTES_MAX};

const MODULE: &str = "wasi_snapshot_preview1";
/// Of one event, by the specification's layout.
const EVENT_BYTES: usize = 32;
/// The most subscriptions of one call: a guest could claim four thousand million.
const SUBSCRIPTIONS_MAX: u32 = 4096;
/// `errno` of an argument that cannot be.
const INVALID: i32 = 28;
/// Of an address that is not there.
const FAULT: i32 = 21;

/// Puts the taped functions in the place of wasmtime's own. Shadowing must be allowed.
pub(crate) fn link(linker: &mut Linker<Preview1Host>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        move |caller: Caller<'_, Preview1Host>, params: (i32, i32, i32, i32)| Box::new(poll_oneoff(caller, params)),
    )?;
    linker.func_wrap(MODULE, "random_get", random_get)?;
    Ok(())
}

/// A call is an entry, however many numbers it draws; wasmtime's draws them one by one.
fn random_get(mut caller: Caller<'_, Preview1Host>, at: i32, len: i32) -> wasmtime::Result<i32> {
    let len = len.cast_unsigned();
    if u64::from(len) > RANDOM_BYTES_MAX {
        return Ok(INVALID);
    }
    let mut bytes = vec![0; len as usize];
    caller.data().tape.draw(Draw::Secret, &mut bytes);
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(format_err!("missing required memory export"));
    };
    let written = memory.write(&mut caller, at.cast_unsigned() as usize, &bytes);
    Ok(if written.is_ok() { 0 } else { FAULT })
}

async fn poll_oneoff(
    mut caller: Caller<'_, Preview1Host>,
    (subscriptions, events, count, stored): (i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    let of = count.cast_unsigned();
    if of > SUBSCRIPTIONS_MAX {
        return Ok(INVALID);
    }
    let memory = match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => memory,
        _ => return Err(format_err!("missing required memory export")),
    };
    let (at, stored_at) = (events.cast_unsigned() as usize, stored.cast_unsigned() as usize);
    let tape = caller.data().tape.clone();
    let same = |entry: &Entry| match entry {
        Entry::PollOneoff(recorded, written, errno) if *recorded == of => Some((written.clone(), *errno)),
        _ => None,
    };
    if let Some((written, errno)) = tape.played(|| Entry::PollOneoff(of, Bytes::new(), 0), same)? {
        if errno == 0 {
            let happened = (written.len() / EVENT_BYTES) as u32;
            memory.write(&mut caller, at, &written)?;
            memory.write(&mut caller, stored_at, &happened.to_le_bytes())?;
        }
        return Ok(errno);
    }
    // To wait for a time it looks at the clocks, which the guest is not told.
    tape.aside(true);
    let called = {
        let (bytes, host) = memory.data_and_store_mut(&mut caller);
        let mut memory = GuestMemory::Unshared(bytes);
        wasi_snapshot_preview1::poll_oneoff(&mut host.wasi, &mut memory, subscriptions, events, count, stored).await
    };
    tape.aside(false);
    let errno = called.inspect_err(|error| tape.trapped(error))?;
    if tape.is_there() {
        let mut happened = [0; 4];
        let mut written = Vec::new();
        if errno == 0 {
            memory.read(&caller, stored_at, &mut happened)?;
            written.resize(EVENT_BYTES * (u32::from_le_bytes(happened).min(of) as usize), 0);
            memory.read(&caller, at, &mut written)?;
        }
        tape.record(|| Entry::PollOneoff(of, written.into(), errno));
    }
    Ok(errno)
}
