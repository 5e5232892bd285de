//! The little of BTF that the probes need: where in a structure of the running kernel a field is.
//!
//! aya-ebpf has no field relocations, so the offsets are looked up here and passed to the probes as constants.

/// Why a field could not be found.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    /// The data ends early, or is no BTF.
    #[error("the kernel's BTF is damaged at byte {at}")]
    Damaged {
        /// Where.
        at: usize,
    },
    /// A kind of type that did not exist when this was written: everything behind it is unreadable.
    #[error("the kernel's BTF has types of the unknown kind {kind}")]
    UnknownKind {
        /// The number of the kind.
        kind: u32,
    },
    /// There is no such structure, or it has no such field.
    #[error("the kernel's BTF has no field {field} of struct {structure}")]
    NoField {
        /// The structure.
        structure: &'static str,
        /// The field.
        field: &'static str,
    },
}

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const STRUCT_LEN: usize = 12;
const MEMBER_LEN: usize = 12;

/// The offset in bytes of `field` in `structure`, in raw BTF of this machine's byte order.
pub fn field_offset(btf: &[u8], structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
    bit_offset(btf, structure, field).map(|bits| bits / 8)
}

/// The same in bits, for a field of a bit.
pub fn bit_offset(btf: &[u8], structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
    let reader = Reader { data: btf };
    if reader.u16(0)? != MAGIC {
        return Err(BtfError::Damaged { at: 0 });
    }
    let header_len = reader.u32(4)? as usize;
    let types = header_len.saturating_add(reader.u32(8)? as usize);
    let types_end = types.saturating_add(reader.u32(12)? as usize);
    let strings = header_len.saturating_add(reader.u32(16)? as usize);
    let strings_end = strings.saturating_add(reader.u32(20)? as usize);
    if types_end > btf.len() || strings_end > btf.len() {
        return Err(BtfError::Damaged { at: btf.len() });
    }
    let name_is = |offset: u32, name: &str| {
        let start = strings.saturating_add(offset as usize);
        btf.get(start..strings_end)
            .and_then(|rest| rest.strip_prefix(name.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    };

    let mut at = types;
    while at < types_end {
        let info = reader.u32(at + 4)?;
        let (kind, members) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
        let bitfields = info >> 31 == 1;
        let body = at + STRUCT_LEN;
        if kind == KIND_STRUCT && name_is(reader.u32(at)?, structure) {
            for index in 0..members {
                let member = body + index * MEMBER_LEN;
                if name_is(reader.u32(member)?, field) {
                    let offset = reader.u32(member + 8)?;
                    return Ok(if bitfields { offset & 0x00ff_ffff } else { offset });
                }
            }
        }
        at = body + body_len(kind, members).ok_or(BtfError::UnknownKind { kind })?;
    }
    Err(BtfError::NoField { structure, field })
}

/// The bytes behind a type's first twelve.
fn body_len(kind: u32, vlen: usize) -> Option<usize> {
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union.
        KIND_STRUCT | 5 => vlen * MEMBER_LEN,
        // Enumeration, function prototype.
        6 | 13 => vlen * 8,
        // Section, 64-bit enumeration.
        15 | 19 => vlen * 12,
        _ => return None,
    })
}

struct Reader<'a> {
    data: &'a [u8],
}

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], BtfError> {
        let bytes = self.data.get(at..).and_then(|rest| rest.first_chunk::<N>());
        bytes.copied().ok_or(BtfError::Damaged { at })
    }

    fn u16(&self, at: usize) -> Result<u16, BtfError> {
        Ok(u16::from_ne_bytes(self.bytes(at)?))
    }

    fn u32(&self, at: usize) -> Result<u32, BtfError> {
        Ok(u32::from_ne_bytes(self.bytes(at)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with one integer and `struct pair { int a; int b; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0pair\0a\0b\0";
        let mut types: Vec<u32> = vec![1, 1 << 24, 4, 32];
        types.extend([5, (KIND_STRUCT << 24) | 2, 8, 10, 1, 0, 12, 1, 32]);
        let types_len = u32::try_from(types.len() * 4).expect("small");
        let mut out = MAGIC.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for word in [24, 0, types_len, types_len, u32::try_from(strings.len()).expect("small")] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(types.into_iter().flat_map(u32::to_ne_bytes));
        out.extend(strings);
        out
    }

    #[test]
    fn fields_are_found() {
        assert_eq!(field_offset(&sample(), "pair", "a"), Ok(0));
        assert_eq!(field_offset(&sample(), "pair", "b"), Ok(4));
        assert_eq!(field_offset(&sample(), "pair", "c"), Err(BtfError::NoField { structure: "pair", field: "c" }));
        assert!(matches!(field_offset(&sample(), "pai", "a"), Err(BtfError::NoField { .. })));
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let sample = sample();
        for len in 0..sample.len() {
            assert!(field_offset(&sample[..len], "pair", "b").is_err(), "cut at {len}");
        }
        for at in 0..sample.len() {
            let mut damaged = sample.clone();
            damaged[at] ^= 0xff;
            // Whatever it answers, it answers.
            let _ = field_offset(&damaged, "pair", "b");
        }
    }
}
