//! Preview 1 by the tape: what `poll_oneoff` says. Clocks and random numbers come through the context, as everywhere.

use bytes::Bytes;
use nexus_core::journal::Entry;
use wasmtime::{Caller, Extern, Func, Linker, format_err};

use crate::host::Preview1Host;

const MODULE: &str = "wasi_snapshot_preview1";
/// Of one event, by the specification's layout.
const EVENT_BYTES: usize = 32;
/// The most subscriptions of one call: a guest could claim four thousand million.
const SUBSCRIPTIONS_MAX: u32 = 4096;
/// `errno` of an argument that cannot be.
const INVALID: i32 = 28;

/// Puts the taped function in the place of wasmtime's own, which is called through `real`. Shadowing must be allowed.
pub(crate) fn link(linker: &mut Linker<Preview1Host>, real: Linker<Preview1Host>) -> wasmtime::Result<()> {
    let real = std::sync::Arc::new(real);
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        move |caller: Caller<'_, Preview1Host>, params: (i32, i32, i32, i32)| {
            Box::new(poll_oneoff(real.clone(), caller, params))
        },
    )?;
    Ok(())
}

async fn poll_oneoff(
    real: std::sync::Arc<Linker<Preview1Host>>,
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
    let function: Func = match real.get(&mut caller, MODULE, "poll_oneoff") {
        Ok(Extern::Func(function)) => function,
        Ok(_) | Err(_) => return Err(format_err!("there is no poll_oneoff")),
    };
    let function = function.typed::<(i32, i32, i32, i32), i32>(&caller)?;
    let errno = function.call_async(&mut caller, (subscriptions, events, count, stored)).await?;
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
