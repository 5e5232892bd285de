//! Expressions as the rest of the program sees them.

use std::fmt;
use std::str::FromStr;

use super::error::{Error, ParseError};
use super::eval::Evaluator;
use super::parser::parse;
use super::tree::Expr;
use super::value::Value;

/// The longest text of an expression, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// What an expression is evaluated on: the context attributes of one event, extensions too.
pub trait Attributes {
    /// The attribute of this name, which is in lower case. `None`: the event does not have it.
    ///
    /// What is neither text nor a number nor truth, as a time, is given as text (section 3.2).
    fn get(&self, name: &str) -> Option<Value<'_>>;
}

/// A parsed expression. Two are equal if their texts are.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    root: Expr,
    missing_function: Option<ParseError>,
}

/// What came of an evaluation. Beside an error there is a value still, as the language is total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation<'a> {
    /// The value.
    pub value: Value<'a>,
    /// The first error, which ended the evaluation.
    pub error: Option<Error>,
}

impl Expression {
    /// Reads an expression. A call of a function that is not there is no reason to refuse it; see
    /// [`Self::missing_function`].
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(ParseError::new(TEXT_BYTES_MAX, format!("an expression has at most {TEXT_BYTES_MAX} bytes")));
        }
        let parsed = parse(text)?;
        Ok(Self { text: text.to_owned(), root: parsed.root, missing_function: parsed.missing_function })
    }

    /// The first call of a function that does not exist, or not with so many arguments. To evaluate it is an error.
    pub fn missing_function(&self) -> Option<&ParseError> {
        self.missing_function.as_ref()
    }

    /// The value for one event.
    pub fn evaluate<'a>(&'a self, attributes: &'a dyn Attributes) -> Evaluation<'a> {
        match Evaluator::new(attributes).value(&self.root) {
            Ok(value) => Evaluation { value, error: None },
            Err(fault) => {
                let value = fault.value.unwrap_or_else(|| self.root.returns().zero());
                Evaluation { value, error: Some(fault.error) }
            }
        }
    }

    /// Whether the event passes this expression as a filter: its value is `true`, and there was no error (section 1.2).
    pub fn matches(&self, attributes: &dyn Attributes) -> bool {
        let evaluation = self.evaluate(attributes);
        evaluation.error.is_none() && evaluation.value == Value::Boolean(true)
    }
}

/// The text that was parsed, as it was.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Expression {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cesql::{NESTING_MAX, Type};

    struct Sample;

    impl Attributes for Sample {
        fn get(&self, name: &str) -> Option<Value<'_>> {
            match name {
                "id" => Some("5".into()),
                "n" => Some(Value::Integer(7)),
                "truth" => Some(Value::Boolean(true)),
                "zeros" => Some(Value::String("0".repeat(4096).into())),
                "long" => Some(Value::String("ä".repeat(2048).into())),
                _ => None,
            }
        }
    }

    fn evaluation(text: &str) -> (Value<'static>, Option<Error>) {
        let expression = Expression::parse(text).expect(text);
        let Evaluation { value, error } = expression.evaluate(&Sample);
        let value = match value {
            Value::String(text) => Value::String(text.into_owned().into()),
            Value::Integer(number) => Value::Integer(number),
            Value::Boolean(truth) => Value::Boolean(truth),
        };
        (value, error)
    }

    #[track_caller]
    fn gives(text: &str, value: impl Into<Value<'static>>) {
        assert_eq!(evaluation(text), (value.into(), None), "{text}");
    }

    #[track_caller]
    fn fails(text: &str, value: impl Into<Value<'static>>, error: Error) {
        assert_eq!(evaluation(text), (value.into(), Some(error)), "{text}");
    }

    fn missing(name: &str) -> Error {
        Error::MissingAttribute(name.to_owned())
    }

    fn cast(value: &str, to: Type) -> Error {
        Error::Cast { value: value.to_owned(), to }
    }

    #[test]
    fn operators() {
        gives("n % -4 + -n % 4", 0);
        gives("-7 / 2", -3);
        gives("-2147483648 % -1", 0);
        gives("id = 5 AND id = '5'", true);
        gives("'true' = true", true);
        gives("true = 'true'", true);
        gives("2 = true", true);
        gives("true = 2", false);
        gives("truth XOR id = '5'", false);
        gives("n XOR 0", true);
        gives("'b' IN (1 = 1, 'b')", true);
        gives("n NOT IN ('1', 8)", true);
        gives("n NOT LIKE '_'", false);
        gives("EXISTS n AND NOT EXISTS none", true);
        gives("EXISTS ID AND Id = '5'", true);
        gives("NOT 10", false);
    }

    #[test]
    fn functions() {
        gives("length('äöü')", 3);
        gives("CONCAT('ä', 1, true)", "ä1true");
        gives("CONCAT_WS(0, 1, '', 2)", "1002");
        gives("UPPER('straße') = 'STRASSE'", true);
        gives("LOWER('ÄÖ')", "äö");
        gives("TRIM('\u{2003} a\t b\n\u{a0}')", "a\t b");
        gives("TRIM(' \u{0}\u{200b} ')", "\u{0}\u{200b}");
        gives("TRIM('   ')", "");
        gives("LEFT('äöü', 2)", "äö");
        gives("RIGHT('äöü', 2)", "öü");
        gives("RIGHT('äöü', 0)", "");
        gives("LEFT(CONCAT('ab', 'cd'), 3)", "abc");
        gives("SUBSTRING('äöü', 2)", "öü");
        gives("SUBSTRING('äöü', -2, 1)", "ö");
        gives("SUBSTRING('äöü', 3, 2147483647)", "ü");
        gives("SUBSTRING('äöü', -3, 0)", "");
        gives("SUBSTRING('', 0)", "");
        gives("IS_INT('+5') AND IS_INT(true) AND NOT IS_INT('5a')", true);
        gives("IS_BOOL('FALSE') AND IS_BOOL(2) AND NOT IS_BOOL('yes')", true);
        gives("ABS('-3')", 3);
    }

    #[test]
    fn errors_and_the_values_beside_them() {
        let overflow = Error::Math("the result does not fit 32 bits");
        for text in ["2147483647 + 1", "-2147483648 - 1", "65536 * 65536", "-2147483648 / -1", "-(-2147483648)"] {
            fails(text, 0, overflow.clone());
        }
        fails("1 / 0 + missing", 0, Error::Math("division by zero"));
        fails("missing + 1 / 0", 0, missing("missing"));
        fails("'a' + 1", 0, cast("a", Type::Integer));
        fails("'a' = 1", false, cast("a", Type::Integer));
        fails("'a' != 1", false, cast("a", Type::Integer));
        fails("1 NOT IN (1, 'a')", false, cast("a", Type::Integer));
        fails("'a' AND true", false, cast("a", Type::Boolean));
        fails("missing", false, missing("missing"));
        fails("LENGTH(missing)", 0, missing("missing"));
        fails("CONCAT('a', missing)", "", missing("missing"));
        fails("missing NOT LIKE '%'", false, missing("missing"));
        fails("1 IN (1, missing)", false, missing("missing"));
        fails("NOT (missing = 1)", false, missing("missing"));
        fails("missing = 1 OR true", false, missing("missing"));
        fails("f(missing)", false, Error::MissingFunction { name: "F".into(), arguments: 1 });
        fails("LENGTH()", false, Error::MissingFunction { name: "LENGTH".into(), arguments: 0 });
        let negative = |function| Error::FunctionEvaluation { function, why: "the number of characters is negative" };
        fails("(LEFT(id, -1))", "5", negative("LEFT"));
        fails("CONCAT(RIGHT('a', -1), 'b')", "", negative("RIGHT"));
        let substring = |why| Error::FunctionEvaluation { function: "SUBSTRING", why };
        fails("SUBSTRING('abc', 4)", "", substring("the position is outside the string"));
        fails("SUBSTRING('abc', -2147483648)", "", substring("the position is outside the string"));
        fails("SUBSTRING('abc', 1, -1)", "", substring("the length is negative"));
        fails("-ABS(-2147483648)", 0, Error::Math("ABS: the result does not fit 32 bits"));
    }

    #[test]
    fn what_is_not_reached_is_no_error() {
        gives("false AND missing", false);
        gives("true OR f()", true);
        gives("EXISTS missing AND missing = 1", false);
        gives("NOT EXISTS missing OR missing = 1", true);
    }

    #[test]
    fn a_filter_passes_on_true_alone() {
        let check = |text: &str, expected: bool| {
            assert_eq!(Expression::parse(text).expect(text).matches(&Sample), expected, "{text}");
        };
        check("true", true);
        check("truth", true);
        check("1", false);
        check("'true'", false);
        check("NOT missing", false);
        check("missing != 1", false);
    }

    #[test]
    fn strings_and_work_are_bounded() {
        let all = |count: usize| vec!["long"; count].join(",");
        gives(&format!("LENGTH(CONCAT({}))", all(16)), 32_768);
        fails(&format!("CONCAT({})", all(17)), "", Error::Generic("a string is longer than 64 KiB"));
        // 4 KiB between each two of many nothings.
        fails(
            &format!("CONCAT_WS(long, {})", vec!["''"; 100].join(",")),
            "",
            Error::Generic("a string is longer than 64 KiB"),
        );
        let too_much = Error::Generic("the expression takes too much work");
        fails(&vec!["LENGTH(UPPER(long))"; 40].join("+"), 0, too_much.clone());
        fails(&vec!["zeros"; 100].join("+"), 0, too_much.clone());
        fails(&vec!["IS_INT(zeros)"; 70].join(" AND "), false, too_much.clone());
        fails(&format!("long LIKE '%{}b'", "ä".repeat(1_000)), false, too_much);
    }

    #[test]
    fn the_text_is_bounded_and_kept() {
        let longest = format!("'{}'", "a".repeat(TEXT_BYTES_MAX - 2));
        assert_eq!(Expression::parse(&longest).expect("longest").to_string(), longest);
        let error = Expression::parse(&format!("{longest} ")).expect_err("longer");
        assert_eq!(error.offset, TEXT_BYTES_MAX);
        let text = " a\n= 'é\\'' ";
        assert_eq!(text.parse::<Expression>().expect(text).to_string(), text);
    }

    /// The worst that the bounds let through, on a stack that is much smaller than that of any thread of ours.
    #[test]
    fn no_expression_overflows_the_stack() {
        let texts: Vec<String> =
            [("(", ")"), ("-", ""), ("NOT ", ""), ("LOWER(", ")"), ("1*1+1=1 OR 1*1+1=1+1*(", ")")]
                .into_iter()
                .map(|(open, close)| format!("{}1{}", open.repeat(NESTING_MAX), close.repeat(NESTING_MAX)))
                .chain([("1", "+1"), ("n", " LIKE''"), ("-1", "--1")].map(|(first, more)| {
                    format!("{first}{}", more.repeat((TEXT_BYTES_MAX - first.len()) / more.len()))
                }))
                .collect();
        let worst = move || {
            for text in &texts {
                let expression = Expression::parse(text).expect(text);
                let copy = expression.clone();
                let _ = (expression.evaluate(&Sample), format!("{copy:?}"));
            }
        };
        std::thread::Builder::new().stack_size(256 * 1024).spawn(worst).expect("thread").join().expect("no overflow");
    }
}
