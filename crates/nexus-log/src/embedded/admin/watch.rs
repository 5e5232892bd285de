//! How far it is.

use std::ops::ControlFlow;

use super::error::AdminError;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The file is read and its checksums are compared; counted in bytes.
    File,
    /// Events, with what came of them, are read or written; counted in places, in a restore in records.
    Events,
    /// The index is read; counted in entries, of which the total is an estimate.
    Index,
    /// Artifacts are read or written; counted in artifacts.
    Artifacts,
}

impl Phase {
    /// The name, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Events => "events",
            Self::Index => "index",
            Self::Artifacts => "artifacts",
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub phase: Phase,
    /// Done of it.
    pub done: u64,
    /// Of so many.
    pub total: u64,
}

/// Is told now and then how far it is (each thousand entries, each mebibyte of an artifact), and says whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(Step) -> ControlFlow<()>;

/// Entries between two steps.
const EVERY: u64 = 1024;

/// Tells the watch of one phase, not too often.
pub(super) struct Pace<'a> {
    watch: Watch<'a>,
    step: Step,
    ticks: u64,
}

impl<'a> Pace<'a> {
    /// Begins a phase.
    pub(super) fn new(watch: Watch<'a>, phase: Phase, total: u64) -> Result<Self, AdminError> {
        let mut pace = Self { watch, step: Step { phase, done: 0, total }, ticks: 0 };
        pace.tell(0)?;
        Ok(pace)
    }

    /// One more entry; `done`: how far that is.
    pub(super) fn tick(&mut self, done: u64) -> Result<(), AdminError> {
        self.ticks += 1;
        if self.ticks.is_multiple_of(EVERY) { self.tell(done) } else { Ok(()) }
    }

    /// Tells how far it is.
    pub(super) fn tell(&mut self, done: u64) -> Result<(), AdminError> {
        self.step.done = done;
        match (self.watch)(self.step) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(AdminError::Stopped),
        }
    }

    /// One more of these entries, of which each is one.
    pub(super) fn one(&mut self) -> Result<(), AdminError> {
        self.step.done += 1;
        self.tick(self.step.done)
    }
}
