//! From text to tokens (sections 2.2 and 2.3).

use super::error::ParseError;
use super::tree::Operator;

/// One word, literal or sign, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    /// As it is written. Nothing at the end.
    pub(super) text: &'a str,
    /// How many bytes stand before it.
    pub(super) offset: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An attribute's or a function's: letters, digits and `_`.
    Name,
    Digits,
    /// A string, without its quotes and escapes.
    Text(String),
    True,
    False,
    Not,
    Like,
    In,
    Exists,
    /// `+` and `-` too, which may also be signs.
    Operator(Operator),
    Open,
    Close,
    Comma,
    End,
}

/// The tokens of a text, the last of which is its end.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut tokens = Vec::new();
    let mut offset = 0;
    loop {
        let rest = text[offset..].trim_start_matches([' ', '\t', '\r', '\n']);
        offset = text.len() - rest.len();
        let (kind, length) = token(rest, offset)?;
        let end = kind == Kind::End;
        tokens.push(Token { kind, text: &rest[..length], offset });
        if end {
            return Ok(tokens);
        }
        offset += length;
    }
}

/// The token that the text begins with, and its length in bytes.
fn token(text: &str, offset: usize) -> Result<(Kind, usize), ParseError> {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return Ok((Kind::End, 0)) };
    let operator = |operator, length| Ok((Kind::Operator(operator), length));
    match (first, characters.next()) {
        ('!', Some('=')) | ('<', Some('>')) => operator(Operator::NotEqual, 2),
        ('<', Some('=')) => operator(Operator::LessOrEqual, 2),
        ('>', Some('=')) => operator(Operator::GreaterOrEqual, 2),
        ('<', _) => operator(Operator::Less, 1),
        ('>', _) => operator(Operator::Greater, 1),
        ('=', _) => operator(Operator::Equal, 1),
        ('*', _) => operator(Operator::Multiply, 1),
        ('/', _) => operator(Operator::Divide, 1),
        ('%', _) => operator(Operator::Remainder, 1),
        ('+', _) => operator(Operator::Add, 1),
        ('-', _) => operator(Operator::Subtract, 1),
        ('(', _) => Ok((Kind::Open, 1)),
        (')', _) => Ok((Kind::Close, 1)),
        (',', _) => Ok((Kind::Comma, 1)),
        ('\'' | '"', _) => string(text, first, offset),
        ('A'..='Z' | 'a'..='z' | '0'..='9', _) => Ok(word(text)),
        _ => Err(ParseError::new(offset, format!("{first:?} means nothing outside a string"))),
    }
}

/// A keyword in any case, digits, or a name.
fn word(text: &str) -> (Kind, usize) {
    let length = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let word = &text[..length];
    let kind = match word.to_ascii_uppercase().as_str() {
        "AND" => Kind::Operator(Operator::And),
        "OR" => Kind::Operator(Operator::Or),
        "XOR" => Kind::Operator(Operator::Xor),
        "NOT" => Kind::Not,
        "LIKE" => Kind::Like,
        "IN" => Kind::In,
        "EXISTS" => Kind::Exists,
        "TRUE" => Kind::True,
        "FALSE" => Kind::False,
        _ if word.bytes().all(|b| b.is_ascii_digit()) => Kind::Digits,
        _ => Kind::Name,
    };
    (kind, length)
}

fn string(text: &str, quote: char, offset: usize) -> Result<(Kind, usize), ParseError> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => match characters.next() {
                Some((_, escaped)) if escaped == quote => value.push(escaped),
                Some((_, other)) => value.extend([c, other]),
                None => break,
            },
            _ if c == quote => return Ok((Kind::Text(value), at + 1)),
            _ => value.push(c),
        }
    }
    Err(ParseError::new(offset, format!("this string has no {quote} at its end")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        tokens(text).expect(text).into_iter().map(|t| t.kind).collect()
    }

    #[test]
    fn words() {
        assert_eq!(kinds("Not nOt NOT"), [Kind::Not, Kind::Not, Kind::Not, Kind::End]);
        assert_eq!(kinds("inn 12 12a a_b"), [Kind::Name, Kind::Digits, Kind::Name, Kind::Name, Kind::End]);
        assert_eq!(kinds(" \t\r\n"), [Kind::End]);
    }

    #[test]
    fn strings() {
        let check = |text: &str, value: &str| assert_eq!(kinds(text), [Kind::Text(value.to_owned()), Kind::End]);
        check("''", "");
        check(r#"'a"b'"#, r#"a"b"#);
        check(r#"'\'\"'"#, r#"'\""#);
        check(r#""\'\"""#, r#"\'""#);
        check(r"'\%\_\n'", r"\%\_\n");
        check(r"'a\\'", r"a\\");
        check("'é\n\u{0}'", "é\n\u{0}");
    }

    #[test]
    fn what_is_no_token() {
        let check = |text: &str, offset: usize, why: &str| {
            let error = tokens(text).expect_err(text);
            assert_eq!(error.offset, offset, "{text}");
            assert!(error.why.contains(why), "{text}: {error}");
        };
        check("a 'b", 2, "no '");
        check(r"'a\'", 0, "no '");
        check(r"é", 0, "'é'");
        check("a ! b", 2, "'!'");
        check("_a", 0, "'_'");
        check("'é' ; 1", 5, "';'");
    }
}
