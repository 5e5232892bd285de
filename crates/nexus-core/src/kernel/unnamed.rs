//! An account as arrays of its fields, in their order: a quarter of its size as objects. It is read from either, so logs of
//! both kinds are read; what a later release has behind the last field is passed over, as unknown members of an object are.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeTuple};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{KernelAccount, KernelMode, PageFaults, SyscallStats, Syscalls};

/// Reads a struct from an object, or from an array that may be longer than it is.
pub(crate) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    struct Either<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or an array")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
            let read = T::deserialize(SeqAccessDeserializer::new(&mut seq))?;
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(read)
        }
    }

    from.deserialize_any(Either(PhantomData))
}

/// The same for one system call's numbers, within the account.
#[derive(Deserialize)]
struct Stats {
    count: u64,
    errors: u64,
    total_ns: u64,
    max_ns: u64,
    #[serde(default)]
    off_cpu_ns: Option<u64>,
    #[serde(default)]
    run_queue_ns: Option<u64>,
}

impl<'de> Deserialize<'de> for SyscallStats {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Stats { count, errors, total_ns, max_ns, off_cpu_ns, run_queue_ns } = deserialize(from)?;
        Ok(Self { count, errors, total_ns, max_ns, off_cpu_ns, run_queue_ns, faster: None })
    }
}

/// For `serialize_with`.
pub(crate) fn serialize<S: Serializer>(account: &KernelAccount, to: S) -> Result<S::Ok, S::Error> {
    let KernelAccount {
        mode,
        reason,
        complete,
        lost,
        syscalls,
        imports,
        on_cpu_ns,
        guest_ns,
        system_ns,
        run_queue_ns,
        off_cpu_ns,
        page_fault_off_cpu_ns,
        io_wait_ns,
        io_waits,
        waiting_ns,
        residual_ns,
        page_faults,
        context_switches,
        migrations,
    } = account;
    if *mode == KernelMode::Off && *account == (KernelAccount { reason: reason.clone(), ..KernelAccount::default() }) {
        return (mode, reason).serialize(to);
    }
    let mut array = to.serialize_tuple(19)?;
    array.serialize_element(mode)?;
    array.serialize_element(reason)?;
    array.serialize_element(complete)?;
    array.serialize_element(lost)?;
    array.serialize_element(&syscalls.as_ref().map(Calls))?;
    array.serialize_element(&imports.as_ref().map(Imports))?;
    for number in [
        on_cpu_ns,
        guest_ns,
        system_ns,
        run_queue_ns,
        off_cpu_ns,
        page_fault_off_cpu_ns,
        io_wait_ns,
        io_waits,
        waiting_ns,
    ] {
        array.serialize_element(number)?;
    }
    array.serialize_element(residual_ns)?;
    array.serialize_element(&page_faults.map(|PageFaults { minor, major }| (minor, major)))?;
    array.serialize_element(context_switches)?;
    array.serialize_element(migrations)?;
    array.end()
}

struct Calls<'a>(&'a Syscalls);

impl Serialize for Calls<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, stats) in self.0 {
            let SyscallStats { count, errors, total_ns, max_ns, off_cpu_ns, run_queue_ns, faster: _ } = stats;
            map.serialize_entry(name, &(count, errors, total_ns, max_ns, off_cpu_ns, run_queue_ns))?;
        }
        map.end()
    }
}

struct Imports<'a>(&'a std::collections::BTreeMap<std::borrow::Cow<'static, str>, Syscalls>);

impl Serialize for Imports<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, calls)| (name, Calls(calls))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Kept {
        #[serde(with = "super")]
        kernel: KernelAccount,
    }

    fn account() -> KernelAccount {
        let stats = |n| SyscallStats {
            count: n,
            errors: 1,
            total_ns: 20,
            max_ns: 10,
            off_cpu_ns: Some(3),
            ..SyscallStats::default()
        };
        let calls = Syscalls::from([("read".into(), stats(7)), ("write".into(), stats(8))]);
        KernelAccount {
            mode: KernelMode::Full,
            reason: Some("page faults: no".into()),
            complete: Some(true),
            lost: Some(0),
            imports: Some([("wasi:io/streams.[method]input-stream.read".into(), calls.clone())].into()),
            syscalls: Some(calls),
            on_cpu_ns: Some(1),
            guest_ns: Some(2),
            system_ns: Some(3),
            run_queue_ns: Some(4),
            off_cpu_ns: Some(5),
            page_fault_off_cpu_ns: Some(6),
            io_wait_ns: Some(7),
            io_waits: Some(8),
            waiting_ns: Some(9),
            residual_ns: Some(-10),
            page_faults: Some(PageFaults { minor: 11, major: 12 }),
            context_switches: Some(13),
            migrations: Some(14),
        }
    }

    #[test]
    fn an_account_is_read_back_from_arrays_and_from_objects() {
        let off = KernelAccount::off("asked to be off");
        let counts =
            KernelAccount { mode: KernelMode::Counts, syscalls: Some(Syscalls::new()), ..KernelAccount::default() };
        for kernel in [account(), off, KernelAccount::default(), counts] {
            let named = format!(r#"{{"kernel":{}}}"#, serde_json::to_string(&kernel).expect("JSON"));
            let kept = Kept { kernel };
            let unnamed = serde_json::to_string(&kept).expect("JSON");
            for json in [&named, &unnamed] {
                assert_eq!(serde_json::from_str::<Kept>(json).expect(json), kept);
            }
        }
    }

    /// What a log says must be read for ever: the order of the fields is a format.
    #[test]
    fn the_order_of_the_fields_stays() {
        let json = serde_json::to_string(&Kept { kernel: account() }).expect("JSON");
        assert_eq!(
            json,
            r#"{"kernel":["full","page faults: no",true,0,{"read":[7,1,20,10,3,null],"write":[8,1,20,10,3,null]},"#
                .to_owned()
                + r#"{"wasi:io/streams.[method]input-stream.read":{"read":[7,1,20,10,3,null],"write":[8,1,20,10,3,null]}},"#
                + r#"1,2,3,4,5,6,7,8,9,-10,[11,12],13,14]}"#
        );
    }

    #[test]
    fn what_a_later_release_adds_is_passed_over() {
        let later = r#"{"kernel":["counts",null,true,0,{"read":[7,1,20,10,null,null,"new"]},{},null,null,null,null,null,null,null,
            null,null,null,[1,2],3,4,{"new":[1]},5]}"#;
        let kept: Kept = serde_json::from_str(later).expect("an account");
        assert_eq!((kept.kernel.mode, kept.kernel.migrations), (KernelMode::Counts, Some(4)));
        assert_eq!(kept.kernel.syscalls.map(|calls| calls["read"].count), Some(7));
    }
}
