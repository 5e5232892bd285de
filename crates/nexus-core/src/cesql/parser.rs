//! From tokens to a tree (sections 2 and 3.6).

use super::error::{Error, ParseError};
use super::functions;
use super::lexer::{Kind, Token, tokens};
use super::like::Pattern;
use super::tree::{Call, Expr, LEVELS, Level, Operator, Step};
use super::value::Value;

/// How deep parentheses, arguments, sets and prefixes may nest.
pub const NESTING_MAX: usize = 64;

/// A parsed text.
pub(super) struct Parsed {
    pub(super) root: Expr,
    /// The first call that leads nowhere. The text is an expression all the same (section 3.5).
    pub(super) missing_function: Option<ParseError>,
}

/// Parses a text of bounded length.
pub(super) fn parse(text: &str) -> Result<Parsed, ParseError> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, missing_function: None };
    let root = parser.expression(&LEVELS, 0)?;
    if parser.peek().kind != Kind::End {
        return parser.unexpected("an operator or the end");
    }
    Ok(Parsed { root, missing_function: parser.missing_function })
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    missing_function: Option<ParseError>,
}

impl<'a> Parser<'a> {
    /// An operand, and what the operators of these precedences make of it.
    fn expression(&mut self, levels: &[Level], depth: usize) -> Result<Expr, ParseError> {
        let mut left = self.operand(depth)?;
        for (i, level) in levels.iter().enumerate() {
            let mut steps = Vec::new();
            if *level == Level::Test {
                self.tests(depth, &mut steps)?;
            } else {
                while let Some(operator) = self.operator(*level) {
                    steps.push(Step::Binary(operator, self.expression(&levels[..i], depth)?));
                }
            }
            if !steps.is_empty() {
                left = Expr::Chain(Box::new(left), steps);
            }
        }
        Ok(left)
    }

    /// The next token, taken if it is an operator of this precedence.
    fn operator(&mut self, level: Level) -> Option<Operator> {
        match self.peek().kind {
            Kind::Operator(operator) if operator.level() == level => {
                self.at += 1;
                Some(operator)
            }
            _ => None,
        }
    }

    /// Any number of `LIKE`, `NOT LIKE`, `IN` and `NOT IN`.
    fn tests(&mut self, depth: usize, steps: &mut Vec<Step>) -> Result<(), ParseError> {
        loop {
            let negated = self.take(&Kind::Not);
            if self.take(&Kind::Like) {
                let Kind::Text(pattern) = &self.peek().kind else { return self.unexpected("a string, the pattern") };
                steps.push(Step::Like(Pattern::parse(pattern)));
                self.at += 1;
            } else if self.take(&Kind::In) {
                self.expect(&Kind::Open, "`(`")?;
                steps.push(Step::In(self.list(depth)?));
            } else if negated {
                return self.unexpected("LIKE or IN");
            } else {
                return Ok(());
            }
            if negated {
                steps.push(Step::Not);
            }
        }
    }

    /// What stands between binary operators, with its prefixes.
    fn operand(&mut self, depth: usize) -> Result<Expr, ParseError> {
        let token = self.peek().clone();
        match token.kind {
            Kind::Digits => self.integer(token.offset, String::new()),
            Kind::Operator(Operator::Add | Operator::Subtract) if self.is_sign() => {
                self.at += 1;
                self.integer(token.offset, token.text.to_owned())
            }
            Kind::Operator(Operator::Subtract) => {
                self.at += 1;
                Ok(Expr::Negate(Box::new(self.operand(self.deeper(depth)?)?)))
            }
            Kind::Not => {
                self.at += 1;
                Ok(Expr::Not(Box::new(self.operand(self.deeper(depth)?)?)))
            }
            Kind::Text(text) => self.literal(Value::String(text.into())),
            Kind::True => self.literal(Value::Boolean(true)),
            Kind::False => self.literal(Value::Boolean(false)),
            Kind::Exists => {
                self.at += 1;
                self.attribute().map(Expr::Exists)
            }
            Kind::Name if self.tokens.get(self.at + 1).is_some_and(|t| t.kind == Kind::Open) => self.call(depth),
            Kind::Name => self.attribute().map(Expr::Attribute),
            Kind::Open => {
                self.at += 1;
                let inner = self.expression(&LEVELS, self.deeper(depth)?)?;
                self.expect(&Kind::Close, "an operator or `)`")?;
                Ok(inner)
            }
            _ => self.unexpected("an attribute, a literal, a function or `(`"),
        }
    }

    /// Whether this token touches digits that follow it.
    fn is_sign(&self) -> bool {
        let (sign, next) = (self.peek(), self.tokens.get(self.at + 1));
        next.is_some_and(|t| t.kind == Kind::Digits && t.offset == sign.offset + 1)
    }

    fn integer(&mut self, offset: usize, mut text: String) -> Result<Expr, ParseError> {
        text.push_str(self.peek().text);
        match text.parse() {
            Ok(number) => self.literal(Value::Integer(number)),
            Err(_) => Err(ParseError::new(offset, "this number does not fit 32 bits")),
        }
    }

    fn literal(&mut self, value: Value<'static>) -> Result<Expr, ParseError> {
        self.at += 1;
        Ok(Expr::Literal(value))
    }

    fn attribute(&mut self) -> Result<Box<str>, ParseError> {
        let Token { kind: Kind::Name, text, offset } = *self.peek() else {
            return self.unexpected("the name of an attribute");
        };
        if text.contains('_') {
            return Err(ParseError::new(offset, "the name of an attribute has letters and digits alone"));
        }
        self.at += 1;
        Ok(text.to_ascii_lowercase().into())
    }

    fn call(&mut self, depth: usize) -> Result<Expr, ParseError> {
        let (name, offset) = (self.peek().text.to_ascii_uppercase(), self.peek().offset);
        if name.bytes().any(|b| b.is_ascii_digit()) {
            return Err(ParseError::new(offset, "the name of a function has letters and _ alone"));
        }
        self.at += 2;
        let arguments = if self.take(&Kind::Close) { Vec::new() } else { self.list(depth)? };
        let function = functions::find(&name, arguments.len());
        if function.is_none() && self.missing_function.is_none() {
            let error = Error::MissingFunction { name: name.clone(), arguments: arguments.len() };
            self.missing_function = Some(ParseError::new(offset, error.to_string()));
        }
        Ok(Expr::Call(Box::new(Call { name, function, arguments })))
    }

    /// One expression or more, to the closing parenthesis.
    fn list(&mut self, depth: usize) -> Result<Vec<Expr>, ParseError> {
        let deeper = self.deeper(depth)?;
        let mut list = vec![self.expression(&LEVELS, deeper)?];
        while self.take(&Kind::Comma) {
            list.push(self.expression(&LEVELS, deeper)?);
        }
        self.expect(&Kind::Close, "an operator, `,` or `)`")?;
        Ok(list)
    }

    fn deeper(&self, depth: usize) -> Result<usize, ParseError> {
        if depth == NESTING_MAX {
            return Err(ParseError::new(self.peek().offset, format!("nested deeper than {NESTING_MAX}")));
        }
        Ok(depth + 1)
    }

    /// The token that is next. There always is one: the last is the end, and is never passed.
    fn peek(&self) -> &Token<'a> {
        &self.tokens[self.at]
    }

    fn take(&mut self, kind: &Kind) -> bool {
        let found = self.peek().kind == *kind;
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, kind: &Kind, wanted: &str) -> Result<(), ParseError> {
        if self.take(kind) { Ok(()) } else { self.unexpected(wanted) }
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T, ParseError> {
        let token = self.peek();
        let why = match token.kind {
            Kind::End => format!("{wanted} is expected, and the text ends"),
            // Of a long one the beginning is enough.
            _ => format!("{wanted} is expected, not `{}`", token.text.chars().take(40).collect::<String>()),
        };
        Err(ParseError::new(token.offset, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cesql::properties::spelled_out;

    #[test]
    fn precedence() {
        let check =
            |text: &str, expected: &str| assert_eq!(spelled_out(&parse(text).expect(text).root), expected, "{text}");
        check("1 + 2 * 3 - 4 / 5 % 6", "((1 + (2 * 3)) - ((4 / 5) % 6))");
        check("1 - 2 - 3", "((1 - 2) - 3)");
        check("(1 - (2 - 3))", "(1 - (2 - 3))");
        check("a = b + 1 AND c < 2", "((a = (b + 1)) AND (c < 2))");
        check("a < b = c >= d <> e", "((((a < b) = c) >= d) != e)");
        check("a OR b AND c XOR d", "(((a OR b) AND c) XOR d)");
        check("NOT a = b", "((NOT a) = b)");
        check("NOT (a = b)", "(NOT (a = b))");
        check("NOT a LIKE 'x' OR b", "(((NOT a) LIKE 'x') OR b)");
        check("a NOT LIKE 'x' AND NOT b", "((NOT (a LIKE 'x')) AND (NOT b))");
        check("a + 1 IN (1, b OR c) * 2", "(a + ((1 IN (1, (b OR c))) * 2))");
        check("a NOT IN (1) LIKE 'x'", "((NOT (a IN (1))) LIKE 'x')");
        check("NOT EXISTS a AND EXISTS B", "((NOT (EXISTS a)) AND (EXISTS b))");
        check("-a * -b", "((- a) * (- b))");
        check("abs (-1) + f()", "(ABS(-1) + F())");
    }

    #[test]
    fn signs() {
        let check =
            |text: &str, expected: &str| assert_eq!(spelled_out(&parse(text).expect(text).root), expected, "{text}");
        check("-1", "-1");
        check("+1", "1");
        check("--1", "(- -1)");
        check("- 1", "(- 1)");
        check("4-1", "(4 - 1)");
        check("4 +1", "(4 + 1)");
        check("4 - -1", "(4 - -1)");
        check("a-1", "(a - 1)");
        check("-1a", "(- 1a)");
        check("-2147483648", "-2147483648");
        check("0002147483647", "2147483647");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let check = |text: &str, offset: usize, why: &str| {
            let Err(error) = parse(text) else { panic!("{text}: parsed") };
            assert_eq!(error.offset, offset, "{text}: {error}");
            assert!(error.why.contains(why), "{text}: {error}");
        };
        check("", 0, "the text ends");
        check("ABC(", 4, "the text ends");
        check("a = ", 4, "the text ends");
        check("a b", 2, "an operator or the end is expected, not `b`");
        check("'a''b'", 3, "not `'b'`");
        check("(a", 2, "`)`");
        check("a)", 1, "not `)`");
        check("f(a b)", 4, "`,` or `)`");
        check("f(a,)", 4, "an attribute");
        check("a IN ()", 6, "an attribute");
        check("a IN b", 5, "`(`");
        check("a LIKE b", 7, "the pattern");
        check("x LIKE 123", 7, "the pattern");
        check("a NOT b", 6, "LIKE or IN");
        check("EXISTS (a)", 7, "the name of an attribute");
        check("EXISTS in", 7, "the name of an attribute");
        check("EXISTS 1", 7, "the name of an attribute");
        check("a_b = 1", 0, "letters and digits");
        check("1 + f2(a)", 4, "letters and _");
        check("+ 1", 0, "not `+`");
        check("2147483648", 0, "32 bits");
        check("1 = - 2147483648", 6, "32 bits");
        check("-2147483649", 0, "32 bits");
        check("'é' AND AND", 9, "not `AND`");
    }

    #[test]
    fn nesting_is_bounded() {
        let check = |open: &str, close: &str| {
            let nested = |n: usize| format!("{}a{}", open.repeat(n), close.repeat(n));
            parse(&nested(NESTING_MAX)).map(|_| ()).expect(open);
            let Err(error) = parse(&nested(NESTING_MAX + 1)) else { panic!("{open}: parsed") };
            assert!(error.why.contains("deeper"), "{open}: {error}");
        };
        check("(", ")");
        check("-", "");
        check("NOT ", "");
        check("f(", ")");
        check("1 IN (", ")");
        check("1 AND 1 = 1 + 1 * (", ")");
    }

    #[test]
    fn length_is_no_nesting() {
        for (first, more) in [("1", "+1"), ("a", " LIKE ''"), ("a", " IN (1)"), ("a", " OR b"), ("f(1", ",1")] {
            let close = if first.starts_with('f') { ")" } else { "" };
            let text = format!("{first}{}{close}", more.repeat(500));
            assert!(parse(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn the_first_call_that_leads_nowhere() {
        let missing = |text: &str| parse(text).expect(text).missing_function.map(|e| (e.offset, e.why));
        assert_eq!(missing("LENGTH(a) = 1"), None);
        let (offset, why) = missing("lower(a) = lenght(b, c) OR g()").expect("no such function");
        assert_eq!(offset, 11);
        assert!(why.contains("LENGHT") && why.contains('2'), "{why}");
    }
}
