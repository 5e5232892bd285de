//! Names of addresses: a guest's from its name section, and from its DWARF where it has any; the host's from this program, the kernel's from its own table.

use std::collections::HashMap;

use nexus_engine::{Code, Loaded};

use super::lines::Lines;

/// The kernel's symbols. Without privilege all its addresses are 0.
const KALLSYMS: &str = "/proc/kallsyms";

/// Whose code a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The function's.
    Guest,
    /// Nexus's, and its libraries'.
    Host,
    /// The kernel's.
    Kernel,
}

/// One frame with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function; the address where it has no name.
    pub name: String,
    /// The source file, where it is known.
    pub file: Option<String>,
    /// The line in it; 0 if unknown.
    pub line: u32,
    /// Whose code it is.
    pub part: Part,
}

/// The code of one version of a function.
#[derive(Default)]
pub struct GuestCode<'a> {
    /// Its functions, by address.
    functions: Vec<Code>,
    /// From which offset of the component the code is that begins at an address; by address. Empty where that is of no use.
    offsets: Vec<(u64, Option<u32>)>,
    lines: Lines<'a>,
}

impl<'a> GuestCode<'a> {
    /// As it is loaded, and the bytes that it was compiled from.
    pub fn new(loaded: &Loaded, bytes: &'a [u8]) -> Self {
        let lines = Lines::new(bytes);
        let offsets = if lines.is_empty() { Vec::new() } else { loaded.offsets() };
        Self { functions: loaded.code(), offsets, lines }
    }

    /// The frames of an address; `None` if it is not in this code.
    pub fn frames(&self, address: u64) -> Option<Vec<Frame>> {
        let at = self.functions.partition_point(|code| code.start <= address).checked_sub(1)?;
        let code = self.functions.get(at).filter(|code| address < code.end)?;
        let name = format!("{:#}", rustc_demangle::demangle(&code.name));
        let at = self.offsets.partition_point(|(start, _)| *start <= address).checked_sub(1);
        let places = match at.and_then(|at| self.offsets[at].1) {
            Some(offset) => self.lines.find(u64::from(offset)),
            None => Vec::new(),
        };
        let Some(outermost) = places.len().checked_sub(1) else {
            return Some(vec![Frame { name, file: None, line: 0, part: Part::Guest }]);
        };
        let frame = |(depth, place): (usize, super::lines::Place)| {
            // The name section knows the function itself; only what is inlined has its name from the DWARF.
            let name = if depth == outermost { name.clone() } else { place.name.unwrap_or_else(|| name.clone()) };
            Frame { name, file: Some(place.file), line: place.line, part: Part::Guest }
        };
        Some(places.into_iter().enumerate().map(frame).collect())
    }
}

/// Everything that has a name. Looking up is cached: the same addresses come again and again.
pub struct Symbols {
    user: HashMap<u64, Vec<Frame>>,
    kernel: Vec<(u64, String)>,
}

impl Symbols {
    /// Without any guest's.
    pub fn new() -> Self {
        let kernel = std::fs::read_to_string(KALLSYMS).map(|text| kernel_symbols(&text)).unwrap_or_default();
        Self { user: HashMap::new(), kernel }
    }

    /// From now on, an address is this.
    pub fn set(&mut self, address: u64, frames: Vec<Frame>) {
        self.user.insert(address, frames);
    }

    /// What an address of the process is, the innermost of what is inlined there first.
    pub fn user(&mut self, address: u64) -> Vec<Frame> {
        self.user.entry(address).or_insert_with(|| host_frames(address)).clone()
    }

    /// What an address of the kernel is.
    pub fn kernel(&self, address: u64) -> Vec<Frame> {
        let at = self.kernel.partition_point(|(start, _)| *start <= address);
        let name = match at.checked_sub(1).map(|at| &self.kernel[at]) {
            Some((_, name)) => format!("{name} [kernel]"),
            // A collector keeps the kernel's addresses to itself.
            None if address == 0 => "[kernel]".into(),
            None => format!("{address:#x} [kernel]"),
        };
        vec![Frame { name, file: None, line: 0, part: Part::Kernel }]
    }
}

fn host_frames(address: u64) -> Vec<Frame> {
    let mut frames = Vec::new();
    // It takes every address for one that a call returns to, and looks before it.
    backtrace::resolve((address + 1) as *mut std::ffi::c_void, |symbol| {
        let Some(name) = symbol.name() else { return };
        frames.push(Frame {
            // Without the hash at its end.
            name: without_generics(&format!("{name:#}")),
            file: symbol.filename().map(|f| f.display().to_string()),
            line: symbol.lineno().unwrap_or(0),
            part: Part::Host,
        });
    });
    if frames.is_empty() {
        frames.push(Frame { name: format!("{address:#x}"), file: None, line: 0, part: Part::Host });
    }
    frames
}

/// A name without what its generics stand for, which can be thousands of characters: `f<A<B>>` is `f<…>`. The type and the
/// trait of `<T as Trait>::f` stay.
fn without_generics(name: &str) -> String {
    let kept = u32::from(name.starts_with('<'));
    let mut short = String::with_capacity(name.len());
    let (mut depth, mut last) = (0, ' ');
    for c in name.chars() {
        // The arrow of a function's type closes nothing.
        let closes = c == '>' && last != '-';
        if closes && depth > 0 {
            depth -= 1;
        }
        if depth <= kept && !(closes && depth == kept && kept == 0 && short.ends_with('<')) {
            short.push(c);
        }
        if c == '<' {
            depth += 1;
            if depth == kept + 1 {
                short.push('…');
            }
        }
        last = c;
    }
    short
}

/// Lines of `address type name [module]`, sorted by address. Empty where the kernel hides its addresses.
fn kernel_symbols(text: &str) -> Vec<(u64, String)> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        let name = words.next()?;
        (address != 0 && matches!(kind, "t" | "T" | "w" | "W")).then(|| (address, name.to_owned()))
    };
    let mut symbols: Vec<_> = text.lines().filter_map(parse).collect();
    symbols.sort();
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short() {
        let check = |name: &str, expected: &str| assert_eq!(without_generics(name), expected);
        check("a::b", "a::b");
        check("f<A>", "f<…>");
        check("f<A<B>, fn(C) -> D<E>>::g<H>", "f<…>::g<…>");
        check("<T as Trait>::f", "<T as Trait>::f");
        check("<T<U> as Trait<V<W>>>::f<X>", "<T<…> as Trait<…>>::f<X>");
        check("wasm function 7", "wasm function 7");
    }

    #[test]
    fn addresses_get_the_names_of_what_they_are_in() {
        let code = |start: u64, end: u64, name: &str| Code { start, end, name: name.into() };
        let functions = vec![code(100, 150, "_ZN5probe7endless17h0123456789abcdefE"), code(200, 210, "b")];
        let guest = GuestCode { functions, ..GuestCode::default() };
        let mut symbols = Symbols::new();
        for address in [99, 100, 149, 150, 199, 209, 210] {
            if let Some(frames) = guest.frames(address) {
                symbols.set(address, frames);
            }
        }
        symbols.kernel =
            kernel_symbols("0000000000000064 T one\n00000000000000c8 t two\tmodule\n0000000000000001 D data\n");
        let user = |symbols: &mut Symbols, address| symbols.user(address)[0].clone();
        assert_eq!(
            (user(&mut symbols, 100).name, user(&mut symbols, 149).name),
            ("probe::endless".into(), "probe::endless".into())
        );
        assert_eq!(user(&mut symbols, 209).name, "b");
        for outside in [150, 199, 210] {
            let frame = user(&mut symbols, outside);
            assert_eq!((frame.name, frame.part), (format!("{outside:#x}"), Part::Host));
        }
        let kernel = |address| symbols.kernel(address)[0].name.clone();
        assert_eq!(
            (kernel(100), kernel(199), kernel(200)),
            ("one [kernel]".into(), "one [kernel]".into(), "two [kernel]".into())
        );
        assert_eq!(kernel(99), "0x63 [kernel]");
        // This program knows its own functions.
        let own = host_frames(host_frames as *const () as u64);
        assert!(own[0].name.ends_with("host_frames"), "{own:?}");
    }
}
