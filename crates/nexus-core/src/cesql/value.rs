//! Values, their types, and the casts between them (sections 3.1 and 3.7).

use std::borrow::Cow;
use std::fmt;

use super::error::Error;
use super::work::Work;

/// How many characters of a value an error repeats.
const SHOWN_CHARS_MAX: usize = 40;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Unicode text.
    String,
    /// A signed number of 32 bits.
    Integer,
    /// Truth.
    Boolean,
}

impl Type {
    /// The value that stands in where there is none.
    pub fn zero(self) -> Value<'static> {
        match self {
            Self::String => Value::String(Cow::Borrowed("")),
            Self::Integer => Value::Integer(0),
            Self::Boolean => Value::Boolean(false),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "String",
            Self::Integer => "Integer",
            Self::Boolean => "Boolean",
        })
    }
}

/// A value, of an attribute or of an expression. Text is borrowed from where it stands as long as nothing changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Unicode text; URIs and times too.
    String(Cow<'a, str>),
    /// A signed number of 32 bits.
    Integer(i32),
    /// Truth.
    Boolean(bool),
}

impl<'a> Value<'a> {
    /// Its type.
    pub fn ty(&self) -> Type {
        match self {
            Self::String(_) => Type::String,
            Self::Integer(_) => Type::Integer,
            Self::Boolean(_) => Type::Boolean,
        }
    }

    /// The same value, its text borrowed.
    pub(super) fn by_ref(&self) -> Value<'_> {
        match self {
            Self::String(text) => Value::String(Cow::Borrowed(text)),
            Self::Integer(number) => Value::Integer(*number),
            Self::Boolean(truth) => Value::Boolean(*truth),
        }
    }

    /// The value as one of the type.
    pub(super) fn cast(self, to: Type, work: &mut Work) -> Result<Self, Error> {
        match to {
            Type::String => Ok(Self::String(self.into_text())),
            Type::Integer => self.integer(work).map(Self::Integer),
            Type::Boolean => self.boolean().map(Self::Boolean),
        }
    }

    /// Cast to a string: numbers in base 10, and `true` or `false`.
    pub(super) fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::String(text) => text,
            Self::Integer(number) => number.to_string().into(),
            Self::Boolean(true) => "true".into(),
            Self::Boolean(false) => "false".into(),
        }
    }

    /// Cast to an integer: an optional sign and digits of base 10, nothing around them. They may be many, with zeros
    /// first, so reading them is work.
    pub(super) fn integer(&self, work: &mut Work) -> Result<i32, Error> {
        match self {
            Self::Integer(number) => Ok(*number),
            Self::Boolean(truth) => Ok(i32::from(*truth)),
            Self::String(text) => {
                work.spend(text.len())?;
                text.parse().map_err(|_| no(text, Type::Integer))
            }
        }
    }

    /// Cast to a boolean: `true` and `false` in any case, and whether a number is not 0.
    pub(super) fn boolean(&self) -> Result<bool, Error> {
        match self {
            Self::Boolean(truth) => Ok(*truth),
            Self::Integer(number) => Ok(*number != 0),
            Self::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Self::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Self::String(text) => Err(no(text, Type::Boolean)),
        }
    }
}

fn no(text: &str, to: Type) -> Error {
    Error::Cast { value: text.chars().take(SHOWN_CHARS_MAX).collect(), to }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(truth) => truth.fmt(f),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(Cow::Borrowed(text))
    }
}

impl From<i32> for Value<'_> {
    fn from(number: i32) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value<'_> {
    fn from(truth: bool) -> Self {
        Self::Boolean(truth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts() {
        let check = |value: Value<'static>, text: &str, integer: Option<i32>, boolean: Option<bool>| {
            assert_eq!(value.clone().into_text(), text, "{value:?}");
            assert_eq!(value.integer(&mut Work::new()).ok(), integer, "{value:?}");
            assert_eq!(value.boolean().ok(), boolean, "{value:?}");
        };
        check(Value::Integer(-7), "-7", Some(-7), Some(true));
        check(Value::Integer(0), "0", Some(0), Some(false));
        check(Value::Boolean(true), "true", Some(1), Some(true));
        check(Value::Boolean(false), "false", Some(0), Some(false));
        check("TRUE".into(), "TRUE", None, Some(true));
        check("faLse".into(), "faLse", None, Some(false));
        check("+007".into(), "+007", Some(7), None);
        check("-2147483648".into(), "-2147483648", Some(i32::MIN), None);
        check("2147483648".into(), "2147483648", None, None);
        for no_number in ["", " 1", "1 ", "1.0", "0x1", "--1", "+", "١"] {
            check(no_number.into(), no_number, None, None);
        }
    }

    #[test]
    fn an_error_repeats_only_the_beginning_of_a_value() {
        let error = Value::String("é".repeat(5_000).into()).integer(&mut Work::new()).expect_err("no number");
        assert_eq!(error, Error::Cast { value: "é".repeat(SHOWN_CHARS_MAX), to: Type::Integer });
    }
}
