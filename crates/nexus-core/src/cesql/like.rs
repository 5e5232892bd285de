//! Patterns of `LIKE` (section 3.4.3).

use super::error::Error;
use super::work::Work;

/// A pattern: `%` is any text, `_` is any character, `\%` and `\_` are those characters themselves.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Exactly(char),
    AnyCharacter,
    AnyText,
}

impl Pattern {
    /// Every text is a pattern.
    pub(super) fn parse(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            pieces.push(match c {
                '\\' => Piece::Exactly(rest.next_if(|next| matches!(next, '%' | '_')).unwrap_or(c)),
                '_' => Piece::AnyCharacter,
                '%' if pieces.last() == Some(&Piece::AnyText) => continue,
                '%' => Piece::AnyText,
                _ => Piece::Exactly(c),
            });
        }
        Self(pieces)
    }

    /// Whether the whole text is as the pattern says.
    ///
    /// Where it goes wrong, only the last `%` takes in one more character: an earlier one need not, as what stands
    /// between the two was found at the first place where it can be. So the steps are at most the product of both
    /// lengths, and each is paid for.
    pub(super) fn matches(&self, text: &str, work: &mut Work) -> Result<bool, Error> {
        let mut rest = text.chars();
        let mut at = 0;
        let mut retry = None;
        loop {
            work.spend(1)?;
            let mut after = rest.clone();
            let fits = match (self.0.get(at), after.next()) {
                (Some(Piece::AnyText), _) if at + 1 == self.0.len() => return Ok(true),
                (Some(Piece::AnyText), _) => {
                    at += 1;
                    retry = Some((at, rest.clone()));
                    continue;
                }
                (None, None) => return Ok(true),
                (Some(Piece::AnyCharacter), Some(_)) => true,
                (Some(Piece::Exactly(wanted)), Some(c)) => *wanted == c,
                (None, Some(_)) | (Some(_), None) => false,
            };
            if fits {
                at += 1;
                rest = after;
                continue;
            }
            let Some((from, taken)) = &mut retry else { return Ok(false) };
            if taken.next().is_none() {
                return Ok(false);
            }
            at = *from;
            rest = taken.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use proptest::prelude::*;

    use super::*;
    use crate::cesql::WORK_MAX;

    impl fmt::Display for Pattern {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|piece| match piece {
                Piece::Exactly(c @ ('%' | '_')) => write!(f, "\\{c}"),
                Piece::Exactly(c) => write!(f, "{c}"),
                Piece::AnyCharacter => f.write_str("_"),
                Piece::AnyText => f.write_str("%"),
            })
        }
    }

    fn matches(text: &str, pattern: &str) -> bool {
        Pattern::parse(pattern).matches(text, &mut Work::new()).expect("within bounds")
    }

    #[test]
    fn patterns() {
        let check = |text: &str, pattern: &str, expected: bool| {
            assert_eq!(matches(text, pattern), expected, "{text:?} LIKE {pattern:?}");
        };
        check("", "", true);
        check("", "%", true);
        check("", "%%", true);
        check("", "_", false);
        check("a", "", false);
        check("äöü", "___", true);
        check("äöü", "_ö%", true);
        check("aBc", "abc", false);
        check("abab", "%ab", true);
        check("ababx", "%ab", false);
        check("aab", "%a_", true);
        check("a%b", r"a\%b", true);
        check("axb", r"a\%b", false);
        check(r"a\b", r"a\b", true);
        check(r"a\%", r"a\\%", true);
        check(r"a\x", r"a\\%", false);
        check(r"a\", r"a\", true);
        check("a\nb", "a%b", true);
    }

    #[test]
    fn a_pattern_that_goes_wrong_often_reaches_the_bound() {
        let text = "a".repeat(40_000);
        let pattern = Pattern::parse(&format!("%{}b", "a".repeat(1_000)));
        let error = pattern.matches(&text, &mut Work::new()).expect_err("40 million steps");
        assert!(matches!(error, Error::Generic(_)), "{error:?}");
        // Many wildcards that all fit cost no more than one walk over the text.
        assert!(matches(&"ab".repeat(WORK_MAX / 8), &format!("{}%b", "%a".repeat(1_000))));
    }

    /// What the specification says, without a thought for time.
    fn model(text: &[char], pattern: &[Piece]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((Piece::AnyText, rest)) => (0..=text.len()).any(|taken| model(&text[taken..], rest)),
            Some((Piece::AnyCharacter, rest)) => !text.is_empty() && model(&text[1..], rest),
            Some((Piece::Exactly(c), rest)) => text.first() == Some(c) && model(&text[1..], rest),
        }
    }

    proptest! {
        #[test]
        fn as_the_model(text in "[ab%_\\\\é]{0,10}", pattern in "[ab%_\\\\é]{0,8}") {
            let pieces = Pattern::parse(&pattern).0;
            let characters: Vec<char> = text.chars().collect();
            prop_assert_eq!(matches(&text, &pattern), model(&characters, &pieces));
        }
    }
}
