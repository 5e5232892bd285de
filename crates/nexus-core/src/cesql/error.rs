//! What can go wrong: when parsing, and when evaluating (section 3.3).

use super::value::Type;

/// A text that is no expression. The specification's `ParseError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {why}")]
pub struct ParseError {
    /// How many bytes of the text stand before the bad part.
    pub offset: usize,
    /// What is wrong there.
    pub why: String,
}

impl ParseError {
    pub(super) fn new(offset: usize, why: impl Into<String>) -> Self {
        Self { offset, why: why.into() }
    }
}

/// An error of an evaluation; each variant is one of the specification's kinds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Arithmetic without a result.
    #[error("{0}")]
    Math(&'static str),
    /// A value that cannot be taken for one of another type.
    #[error("{value:?} is not of type {to}")]
    Cast {
        /// The value as text, cut after some characters.
        value: String,
        /// What it should have been.
        to: Type,
    },
    /// The event does not have the attribute.
    #[error("the event has no attribute `{0}`")]
    MissingAttribute(String),
    /// No function has this name and takes so many arguments.
    #[error("there is no function {name} that takes {arguments} arguments")]
    MissingFunction {
        /// The name, in capitals.
        name: String,
        /// How many arguments it was called with.
        arguments: usize,
    },
    /// A function was called with what it has no answer to.
    #[error("{function}: {why}")]
    FunctionEvaluation {
        /// The function.
        function: &'static str,
        /// What is wrong with its arguments.
        why: &'static str,
    },
    /// Anything else: here, a bound was reached.
    #[error("{0}")]
    Generic(&'static str),
}
