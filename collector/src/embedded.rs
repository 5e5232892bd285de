//! The probes' object, which is part of this program, and what it says of itself.

use nexus_ebpf_common::{ABI_SYMBOL, ABI_VERSION};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::error::ObjectError;

/// Gives the bytes the alignment that reading them in place needs.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../probes/nexus.bpf.o"));

/// The object that this version of the collector was built with.
pub fn object() -> &'static [u8] {
    &OBJECT.0
}

/// Fails unless `object` speaks the ABI of this program.
pub fn check_abi(object: &[u8]) -> Result<(), ObjectError> {
    let found = abi_version(object)?;
    if found != ABI_VERSION {
        return Err(ObjectError::Version { found, expected: ABI_VERSION });
    }
    Ok(())
}

fn abi_version(object: &[u8]) -> Result<u32, ObjectError> {
    let malformed = |error: object::Error| ObjectError::Malformed(error.to_string());
    let elf = ElfFile64::<object::Endianness>::parse(object).map_err(malformed)?;
    if elf.architecture() != object::Architecture::Bpf {
        return Err(ObjectError::Malformed("it is for another machine".into()));
    }
    let symbol =
        elf.symbols().find(|symbol| symbol.name() == Ok(ABI_SYMBOL)).ok_or(ObjectError::NoVersion(ABI_SYMBOL))?;
    let index = symbol.section_index().ok_or(ObjectError::NoVersion(ABI_SYMBOL))?;
    let section = elf.section_by_index(index).map_err(malformed)?;
    let bytes = section.data_range(symbol.address(), 4).map_err(malformed)?;
    let bytes = bytes.and_then(|bytes| bytes.first_chunk::<4>()).ok_or(ObjectError::NoVersion(ABI_SYMBOL))?;
    Ok(if elf.is_little_endian() { u32::from_le_bytes(*bytes) } else { u32::from_be_bytes(*bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_is_ours() {
        assert_eq!(check_abi(object()), Ok(()));
        assert_eq!(object().as_ptr().align_offset(8), 0);
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(check_abi(b""), Err(ObjectError::Malformed(_))));
        assert!(matches!(check_abi(&[0x7f; 4096]), Err(ObjectError::Malformed(_))));
        for len in (0..object().len()).step_by(997) {
            assert!(check_abi(&object()[..len]).is_err(), "cut at {len}");
        }
    }
}
