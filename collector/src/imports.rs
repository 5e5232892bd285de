//! Names of a guest's imports, each known by a small number.

use std::collections::HashMap;
use std::sync::{LazyLock, RwLock};

use crate::mark;

/// A number of a name. 0: none.
pub(crate) type Import = u16;

/// What is done for no import.
pub(crate) const NO_IMPORT: Import = 0;

/// Different names. More are not told apart from none.
const NAMES_MAX: usize = 4096;

static NAMES: LazyLock<RwLock<Names>> = LazyLock::new(RwLock::default);

#[derive(Default)]
struct Names {
    numbers: HashMap<&'static str, Import>,
    names: Vec<&'static str>,
}

/// An import of guests by its name, as `wasi:clocks/monotonic-clock.now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportId(pub(crate) Import);

impl ImportId {
    /// The import of this name. The first time that a name is named it costs an allocation that is kept for good: names are
    /// those of the host's interfaces, never a guest's own.
    pub fn of(name: &str) -> Self {
        let known = |names: &Names| names.numbers.get(name).copied();
        if let Some(number) = NAMES.read().ok().and_then(|names| known(&names)) {
            return Self(number);
        }
        let Ok(mut names) = NAMES.write() else { return Self(NO_IMPORT) };
        if let Some(number) = known(&names) {
            return Self(number);
        }
        if names.names.len() >= NAMES_MAX {
            return Self(NO_IMPORT);
        }
        let kept: &'static str = Box::leak(name.to_owned().into_boxed_str());
        names.names.push(kept);
        let number = names.names.len() as Import;
        names.numbers.insert(kept, number);
        Self(number)
    }

    /// Its number, never 0 unless too many were named; [`ImportId::numbered`] is the way back.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The import of a number.
    pub fn numbered(number: u16) -> Self {
        Self(number)
    }

    /// From now on the current thread's mark works for this import; returns for which it did before. To be undone by entering
    /// that one. Nothing happens on a thread that is not marked.
    pub fn enter(self) -> Self {
        Self(mark::switch_import(self.0))
    }
}

/// The name of a number.
pub(crate) fn name_of(import: Import) -> Option<&'static str> {
    let at = usize::from(import).checked_sub(1)?;
    NAMES.read().ok()?.names.get(at).copied()
}
