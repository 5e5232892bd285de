//! Lines of source of a guest's code, where it was built with them: out of the DWARF in its own modules.
//!
//! Addresses in that DWARF count from the module's code section (the WebAssembly tool conventions, "DWARF for WebAssembly").

use std::collections::HashMap;
use std::ops::Range;

use addr2line::Context;
use addr2line::gimli::{self, EndianSlice, LittleEndian};
use rustc_demangle::demangle;
use wasmparser::{Encoding, Parser, Payload};

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// Bytes of debug information that are read of one component. What is beyond has no lines.
const DWARF_BYTES_MAX: usize = 512 << 20;

/// Frames of one address: what is inlined into what. Far more than compilers do.
const INLINED_MAX: usize = 64;

/// The modules of a component that have lines.
#[derive(Default)]
pub struct Lines<'a> {
    modules: Vec<Module<'a>>,
}

struct Module<'a> {
    /// Where its code section lies in the component.
    code: Range<u64>,
    context: Context<Reader<'a>>,
}

/// One function at one place, inlined or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name, if it is told.
    pub name: Option<String>,
    /// The source file.
    pub file: String,
    /// The line in it; 0 if unknown.
    pub line: u32,
}

/// A module while its sections are read.
#[derive(Default)]
struct Sections<'a> {
    code: Option<Range<u64>>,
    debug: HashMap<&'a str, &'a [u8]>,
}

impl<'a> Lines<'a> {
    /// Of a component, or of a module. What cannot be read has no lines: guests are built by anything.
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut lines = Self::default();
        let mut open: Vec<Option<Sections<'a>>> = Vec::new();
        let mut left = DWARF_BYTES_MAX;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload {
                Ok(Payload::Version { encoding, .. }) => {
                    open.push((encoding == Encoding::Module).then(Sections::default));
                }
                Ok(Payload::CodeSectionStart { range, .. }) => {
                    if let Some(Some(module)) = open.last_mut() {
                        module.code = Some(range.start as u64..range.end as u64);
                    }
                }
                Ok(Payload::CustomSection(section)) if section.name().starts_with(".debug_") => {
                    if let Some(Some(module)) = open.last_mut()
                        && let Some(rest) = left.checked_sub(section.data().len())
                    {
                        left = rest;
                        module.debug.insert(section.name(), section.data());
                    }
                }
                Ok(Payload::End(_)) => {
                    let ended = open.pop().flatten();
                    lines.modules.extend(ended.and_then(Sections::into_module));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a component's sections cannot be read to their end");
                    break;
                }
            }
        }
        lines
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// What lies at an offset of the component, the innermost of what is inlined there first. Empty where nothing is known.
    pub fn find(&self, offset: u64) -> Vec<Place> {
        let Some(module) = self.modules.iter().find(|module| module.code.contains(&offset)) else { return Vec::new() };
        let mut places = Vec::new();
        let Ok(mut frames) = module.context.find_frames(offset - module.code.start).skip_all_loads() else {
            return places;
        };
        while let Ok(Some(frame)) = frames.next()
            && places.len() < INLINED_MAX
        {
            let Some(location) = frame.location else { continue };
            let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
            places.push(Place {
                name: name.map(|name| format!("{:#}", demangle(name.as_ref()))),
                file: location.file.unwrap_or_default().to_owned(),
                line: location.line.unwrap_or(0),
            });
        }
        places
    }
}

impl<'a> Sections<'a> {
    fn into_module(self) -> Option<Module<'a>> {
        let code = self.code?;
        if !self.debug.contains_key(".debug_line") {
            return None;
        }
        let section = |id: gimli::SectionId| -> Result<Reader<'a>, gimli::Error> {
            let bytes = self.debug.get(id.name()).copied().unwrap_or_default();
            Ok(EndianSlice::new(bytes, LittleEndian))
        };
        match gimli::Dwarf::load(section).and_then(Context::from_dwarf) {
            Ok(context) => Some(Module { code, context }),
            Err(error) => {
                tracing::debug!(%error, "a module's lines cannot be read");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_module_has_no_lines() {
        let header = [b'\0', b'a', b's', b'm', 1, 0, 0, 0];
        let mut cut = header.to_vec();
        // A code section that says it is longer than the file.
        cut.extend([10, 0xff, 0xff, 0x03, 1]);
        for bytes in [&b""[..], b"no module", &header, &cut] {
            let lines = Lines::new(bytes);
            assert!(lines.is_empty() && lines.find(0).is_empty(), "{bytes:?}");
        }
    }
}
