//! What is refused, and how it is said.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use nexus_collector::{
    ABI_SYMBOL, ABI_VERSION, Account, ObjectError, Owner, Probes, ProbesConfig, ProbesError, Sampled, object,
    probe_status,
};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

/// The object with another number for its ABI version.
fn object_of_version(version: u32) -> Vec<u8> {
    let mut bytes = object().to_vec();
    let at = {
        let elf = ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(ABI_SYMBOL)).unwrap();
        let section = elf.section_by_index(symbol.section_index().unwrap()).unwrap();
        usize::try_from(section.file_range().unwrap().0 + symbol.address()).unwrap()
    };
    bytes[at..at + 4].copy_from_slice(&version.to_le_bytes());
    bytes
}

#[test]
fn another_abi_version_is_refused() {
    let other = object_of_version(ABI_VERSION + 1);
    let error = Probes::load_object(&other, &ProbesConfig::default()).unwrap_err();
    let ProbesError::Object(error) = error else { panic!("{error}") };
    assert_eq!(error, ObjectError::Version { found: ABI_VERSION + 1, expected: ABI_VERSION });
    // The same version is the same object.
    assert_eq!(object_of_version(ABI_VERSION), object());
}

#[test]
fn garbage_is_refused() {
    for garbage in [&b""[..], b"\x7fELF", &object()[..1000], &[0xff; 5000]] {
        let error = Probes::load_object(garbage, &ProbesConfig::default()).unwrap_err();
        assert!(matches!(error, ProbesError::Object(_)), "{error}");
    }
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    for (threads_max, observed_tasks_max) in [(0, 1), (4097, 1), (1, 0), (1, u32::MAX)] {
        let config = ProbesConfig { threads_max, observed_tasks_max, ..ProbesConfig::default() };
        let error = Probes::load(&config).unwrap_err();
        assert!(matches!(error, ProbesError::Config { .. }), "{error}");
    }
}

#[test]
fn the_status_agrees_with_what_loads() {
    let status = probe_status();
    for (feature, result) in &status {
        eprintln!("{feature}: {result:?}");
    }
    let loads = support::probes(&ProbesConfig::for_observe()).is_some();
    assert_eq!(status.last().unwrap().1.is_ok(), loads);
    assert_eq!(status.iter().all(|(_, result)| result.is_ok()), loads);
}

#[test]
fn samples_that_find_no_room_are_counted_and_the_next_ones_come() {
    let Some(probes) = support::probes(&ProbesConfig { observe: false, ..ProbesConfig::default() }) else {
        return;
    };
    let mut profile = probes.profile(Sampled::Clock { hz: 1000 }).unwrap().unwrap();
    let burn = |time: Duration| {
        let account = Account::of(&probes.source(), Instant::now(), Owner { tag: 1, ..Owner::default() });
        account.enter(|| {
            let began = Instant::now();
            while began.elapsed() < time {
                std::hint::spin_loop();
            }
        });
    };
    // The ring has room for some six hundred, and nobody takes them out.
    let full = || probes.failures().unwrap().get("samples_full").copied().unwrap_or(0);
    let began = Instant::now();
    while full() == 0 {
        burn(Duration::from_millis(100));
        assert!(began.elapsed() < Duration::from_secs(60), "the ring is never full");
    }
    let mut taken = 0;
    profile.drain(|_| taken += 1).unwrap();
    assert!(taken > 100, "{taken} samples");
    burn(Duration::from_millis(200));
    let mut later = 0;
    profile.drain(|_| later += 1).unwrap();
    assert!(later > 0, "none after it was emptied");
}
