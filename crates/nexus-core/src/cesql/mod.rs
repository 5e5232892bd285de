//! CESQL, the CloudEvents SQL expression language 1.0: `type LIKE 'com.example.%' AND INT(attempt) < 3`.
//!
//! Source: the CloudEvents repository, `cesql/spec.md` (1.0.0); the sections that comments name are its sections. This
//! module knows nothing of the rest of Nexus: an event is whatever implements [`Attributes`].
//!
//! **Errors.** Every evaluation gives a value, and perhaps an error. It is in the specification's *fail fast mode*
//! (section 4.1), which section 1.2 asks of filters: the first error ends it. The operator or function where it arose
//! has the value that its definition says (`ABS(-2147483648)` is 2147483647, `1 / 0` is 0); every operator and function
//! around it has the zero value of its type. A filter matches on `true` without an error, and on nothing else.
//!
//! **What the specification leaves open**, and what is done here:
//! - `AND`, `OR` and `XOR` are of one precedence and group from the left, as section 3.6 says, so `a OR b AND c` is
//!   `(a OR b) AND c`. (The ANTLR grammar beside the specification, which its text does not refer to, groups them from
//!   the right. Parentheses mean the same everywhere.)
//! - `NOT` binds tighter than `LIKE`, `IN` and `=`: `NOT a = b` is `(NOT a) = b` (section 3.6).
//! - A sign that touches digits where an operand may stand is a part of the literal; elsewhere it is an operator, so
//!   `4-1` is 3.
//! - Sums, differences, products and quotients outside 32 bits, and `-(-2147483648)`, are 0 with a `MathError`.
//! - Names of attributes and functions are read in any case (the kit has `EXISTS SOURCE`). Keywords and numbers are no
//!   names, also where an attribute is so called.
//! - In a string only its own quote is escaped, by `\`; a `\` before anything else stays, and takes that character
//!   along (`'a\\'` is `a\\`). A doubled quote is refused.
//! - `x IN (…)` evaluates every element, as the set has no order: an error in any of them is an error.
//! - `x != y` and `x NOT IN (…)` are false, not true, where the comparison has an error.
//! - Where the conformance kit says otherwise than the text, the text holds: `NOT 10` is false (section 3.7).
//! - White space is the space, the tab, and the ends of lines.
//! - `INT`, `BOOL` and `STRING` are functions, since the text and the conformance kit use them; `IS_INT(x)` and
//!   `IS_BOOL(x)`, which drafts had, tell whether `INT(x)` and `BOOL(x)` would have no error.
//!
//! **Bounds**, since expressions come from outside: [`TEXT_BYTES_MAX`] and [`NESTING_MAX`] when parsing,
//! [`STRING_BYTES_MAX`] and [`WORK_MAX`] when evaluating. No input makes the stack, the memory or the time of an
//! evaluation grow beyond what they allow.

mod error;
mod eval;
mod expression;
mod functions;
mod lexer;
mod like;
mod parser;
#[cfg(test)]
mod properties;
mod tree;
mod value;
mod work;

pub use error::{Error, ParseError};
pub use expression::{Attributes, Evaluation, Expression, TEXT_BYTES_MAX};
pub use parser::NESTING_MAX;
pub use value::{Type, Value};
pub use work::{STRING_BYTES_MAX, WORK_MAX};
