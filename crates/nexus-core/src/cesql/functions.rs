//! The built-in functions (section 3.5, and the casts of section 3.7).

use std::borrow::Cow;
use std::ops::{Range, RangeInclusive};

use super::error::Error;
use super::eval::{Fault, Outcome};
use super::value::{Type, Value};
use super::work::Work;

/// A function: its name and number of arguments find it. No two have both in common.
#[derive(Debug)]
pub(super) struct Function {
    name: &'static str,
    arguments: RangeInclusive<usize>,
    pub(super) returns: Type,
    run: for<'a> fn(&mut Arguments<'a, '_>) -> Outcome<'a>,
}

static FUNCTIONS: [Function; 15] = [
    Function { name: "INT", arguments: 1..=1, returns: Type::Integer, run: int },
    Function { name: "BOOL", arguments: 1..=1, returns: Type::Boolean, run: bool },
    Function { name: "STRING", arguments: 1..=1, returns: Type::String, run: string },
    Function { name: "IS_INT", arguments: 1..=1, returns: Type::Boolean, run: is_int },
    Function { name: "IS_BOOL", arguments: 1..=1, returns: Type::Boolean, run: is_bool },
    Function { name: "LENGTH", arguments: 1..=1, returns: Type::Integer, run: length },
    Function { name: "CONCAT", arguments: 0..=usize::MAX, returns: Type::String, run: concat },
    Function { name: "CONCAT_WS", arguments: 1..=usize::MAX, returns: Type::String, run: concat_ws },
    Function { name: "LOWER", arguments: 1..=1, returns: Type::String, run: lower },
    Function { name: "UPPER", arguments: 1..=1, returns: Type::String, run: upper },
    Function { name: "TRIM", arguments: 1..=1, returns: Type::String, run: trim },
    Function { name: "LEFT", arguments: 2..=2, returns: Type::String, run: left },
    Function { name: "RIGHT", arguments: 2..=2, returns: Type::String, run: right },
    Function { name: "SUBSTRING", arguments: 2..=3, returns: Type::String, run: substring },
    Function { name: "ABS", arguments: 1..=1, returns: Type::Integer, run: abs },
];

/// The function of this name, in capitals, that takes so many arguments.
pub(super) fn find(name: &str, arguments: usize) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|f| f.name == name && f.arguments.contains(&arguments))
}

impl Function {
    /// Calls it with as many arguments as it takes.
    pub(super) fn call<'a>(&self, arguments: Vec<Value<'a>>, work: &mut Work) -> Outcome<'a> {
        (self.run)(&mut Arguments { left: arguments.into_iter(), work })
    }
}

/// The arguments that a function has not taken yet. What it takes is cast to the type that it asks for.
struct Arguments<'a, 'w> {
    left: std::vec::IntoIter<Value<'a>>,
    work: &'w mut Work,
}

impl<'a> Arguments<'a, '_> {
    fn any(&mut self) -> Result<Value<'a>, Error> {
        self.left.next().ok_or(Error::Generic("a function asks for more arguments than it takes"))
    }

    fn integer(&mut self) -> Result<i32, Error> {
        self.any()?.integer(self.work)
    }

    fn text(&mut self) -> Result<Cow<'a, str>, Error> {
        let text = self.any()?.into_text();
        self.work.spend(text.len())?;
        Ok(text)
    }

    /// All that are left, with something between each two.
    fn join(&mut self, between: &str) -> Outcome<'a> {
        let mut joined = String::new();
        let mut first = true;
        while self.left.len() > 0 {
            let text = self.text()?;
            let between = if first { "" } else { between };
            let more = between.len() + text.len();
            self.work.room(joined.len() + more, more)?;
            joined.extend([between, &text]);
            first = false;
        }
        Ok(Value::String(joined.into()))
    }
}

fn int<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    Ok(Value::Integer(arguments.integer()?))
}

fn bool<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    Ok(Value::Boolean(arguments.any()?.boolean()?))
}

fn string<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    Ok(Value::String(arguments.text()?))
}

fn is_int<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    is_cast(arguments.integer().map(|_| ()))
}

fn is_bool<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    is_cast(arguments.any()?.boolean().map(|_| ()))
}

/// Whether a cast went well. Other errors are nothing that one asks for.
fn is_cast<'a>(result: Result<(), Error>) -> Outcome<'a> {
    match result {
        Ok(()) => Ok(Value::Boolean(true)),
        Err(Error::Cast { .. }) => Ok(Value::Boolean(false)),
        Err(other) => Err(other.into()),
    }
}

fn length<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let length = arguments.text()?.chars().count();
    Ok(Value::Integer(i32::try_from(length).map_err(|_| Error::Generic("a string is too long to be counted"))?))
}

fn concat<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    arguments.join("")
}

fn concat_ws<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let between = arguments.text()?;
    arguments.join(&between)
}

fn lower<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let lower = arguments.text()?.to_lowercase();
    arguments.work.room(lower.len(), lower.len())?;
    Ok(Value::String(lower.into()))
}

fn upper<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let upper = arguments.text()?.to_uppercase();
    arguments.work.room(upper.len(), upper.len())?;
    Ok(Value::String(upper.into()))
}

fn trim<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let text = arguments.text()?;
    let start = text.len() - text.trim_start().len();
    let end = start + text.trim().len();
    Ok(slice(text, start..end))
}

fn left<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let (text, count) = (arguments.text()?, arguments.integer()?);
    let Ok(count) = usize::try_from(count) else { return Err(negative("LEFT", text)) };
    let end = bytes_of(&text, count);
    Ok(slice(text, 0..end))
}

fn right<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let (text, count) = (arguments.text()?, arguments.integer()?);
    let Ok(count) = usize::try_from(count) else { return Err(negative("RIGHT", text)) };
    let start = bytes_of(&text, text.chars().count().saturating_sub(count));
    let end = text.len();
    Ok(slice(text, start..end))
}

fn substring<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    let (text, position) = (arguments.text()?, i64::from(arguments.integer()?));
    let wanted = if arguments.left.len() > 0 { arguments.integer()? } else { i32::MAX };
    let fault = |why| Err(Error::FunctionEvaluation { function: "SUBSTRING", why }.into());
    let Ok(wanted) = usize::try_from(wanted) else { return fault("the length is negative") };
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let skipped = match position {
        0 => return Ok(Type::String.zero()),
        1.. => position - 1,
        _ => length + position,
    };
    if position > length || skipped < 0 {
        return fault("the position is outside the string");
    }
    let start = bytes_of(&text, usize::try_from(skipped).unwrap_or(usize::MAX));
    let end = start + bytes_of(&text[start..], wanted);
    Ok(slice(text, start..end))
}

fn abs<'a>(arguments: &mut Arguments<'a, '_>) -> Outcome<'a> {
    match arguments.integer()?.checked_abs() {
        Some(number) => Ok(Value::Integer(number)),
        None => Err(Fault::with(Value::Integer(i32::MAX), Error::Math("ABS: the result does not fit 32 bits"))),
    }
}

fn negative<'a>(function: &'static str, text: Cow<'a, str>) -> Fault<'a> {
    Fault::with(
        Value::String(text),
        Error::FunctionEvaluation { function, why: "the number of characters is negative" },
    )
}

/// How many bytes the first characters take, or all that there are.
fn bytes_of(text: &str, characters: usize) -> usize {
    text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at)
}

fn slice(text: Cow<'_, str>, range: Range<usize>) -> Value<'_> {
    Value::String(match text {
        Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
        Cow::Owned(text) => Cow::Owned(text[range].to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_takes_all_its_arguments_and_gives_what_it_says() {
        for function in &FUNCTIONS {
            let (least, most) = (*function.arguments.start(), *function.arguments.end());
            for count in least..=most.min(least + 3) {
                let mut work = Work::new();
                let mut arguments = Arguments { left: vec![Value::Integer(1); count].into_iter(), work: &mut work };
                let Ok(value) = (function.run)(&mut arguments) else { panic!("{}: {count}", function.name) };
                assert_eq!(value.ty(), function.returns, "{}", function.name);
                assert_eq!(arguments.left.len(), 0, "{}", function.name);
            }
        }
    }

    #[test]
    fn functions_are_found_by_name_and_number_of_arguments() {
        assert!(find("ABS", 1).is_some());
        assert!(find("ABS", 2).is_none());
        assert!(find("CONCAT", 0).is_some());
        assert!(find("CONCAT_WS", 0).is_none());
        assert!(find("SUBSTRING", 4).is_none());
        assert!(find("IS_STRING", 1).is_none());
    }
}
