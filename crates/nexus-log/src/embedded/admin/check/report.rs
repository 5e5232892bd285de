//! What a check found.

use std::fmt;

use super::super::error::AdminError;
use crate::contract::StorageError;

/// Of more problems than this only the number is kept.
const PROBLEMS_MAX: usize = 100;

/// What is in a store, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events.
    pub events: u64,
    /// Outcomes.
    pub outcomes: u64,
    /// Registry entries.
    pub registry: u64,
    /// Deliveries that wait to be tried again.
    pub parked: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Artifacts.
    pub artifacts: u64,
    /// Bytes of events and outcomes, as retention counts them.
    pub bytes: u64,
    /// Bytes of artifacts.
    pub artifact_bytes: u64,
    /// Index entries for places that retention took: never read, and no problem.
    pub left_over: u64,
    /// The first 100 problems, in the order in which they were found.
    pub problems: Vec<Problem>,
    /// All problems.
    pub problems_total: u64,
}

/// One contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it is: an event, an outcome, an entry of the index, a block, an artifact.
    pub place: String,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_healthy(&self) -> bool {
        self.problems_total == 0
    }

    /// Notes a problem.
    pub(super) fn add(&mut self, place: impl fmt::Display, what: impl fmt::Display) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { place: place.to_string(), what: what.to_string() });
        }
    }

    /// Notes what is damaged; anything else is an error.
    pub(super) fn unreadable(&mut self, place: impl fmt::Display, error: StorageError) -> Result<(), AdminError> {
        match error {
            StorageError::Damaged(why) => {
                self.add(place, why);
                Ok(())
            }
            other => Err(other.into()),
        }
    }
}
