//! `wasi:random` by the tape: a call is an entry, however many numbers it draws.

use wasmtime::component::Linker;
use wasmtime::{StoreContextMut, format_err};

use super::Draw;
use super::io::define;
use crate::host::{Host, RANDOM_BYTES_MAX};

/// Puts these functions in the place of wasmtime's own. Shadowing must be allowed.
pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut random = linker.instance("wasi:random/random@0.2.12")?;
    define!(random, "wasi:random/random", "get-random-bytes", |host: &mut Host, (len,): (u64,)| {
        drawn(host, Draw::Secret, len)
    });
    define!(random, "wasi:random/random", "get-random-u64", |host: &mut Host, (): ()| number(host, Draw::Secret));
    let mut insecure = linker.instance("wasi:random/insecure@0.2.12")?;
    define!(insecure, "wasi:random/insecure", "get-insecure-random-bytes", |host: &mut Host, (len,): (u64,)| {
        drawn(host, Draw::Insecure, len)
    });
    define!(insecure, "wasi:random/insecure", "get-insecure-random-u64", |host: &mut Host, (): ()| {
        number(host, Draw::Insecure)
    });
    let mut seed = linker.instance("wasi:random/insecure-seed@0.2.12")?;
    define!(seed, "wasi:random/insecure-seed", "insecure-seed", |host: &mut Host, (): ()| {
        Ok(((draw(host, Draw::Insecure), draw(host, Draw::Insecure)),))
    });
    Ok(())
}

fn drawn(host: &mut Host, which: Draw, len: u64) -> wasmtime::Result<(Vec<u8>,)> {
    if len > RANDOM_BYTES_MAX {
        return Err(format_err!("{len} random bytes at once; {RANDOM_BYTES_MAX} can be had"));
    }
    let mut bytes = vec![0; len as usize];
    host.tape.draw(which, &mut bytes);
    Ok((bytes,))
}

fn number(host: &mut Host, which: Draw) -> wasmtime::Result<(u64,)> {
    Ok((draw(host, which),))
}

fn draw(host: &mut Host, which: Draw) -> u64 {
    let mut bytes = [0; 8];
    host.tape.draw(which, &mut bytes);
    u64::from_le_bytes(bytes)
}
