//! Values of JSON that are kept out of a journal.

/// What is kept out of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redact {
    /// Headers, in lower case.
    pub headers: Vec<String>,
    /// Members of JSON in bodies.
    pub fields: Vec<String>,
}

/// Bytes of a member's name that are looked at.
const NAME_BYTES_MAX: usize = 256;

/// Replaces the values of JSON members of these names, wherever they are, piece by piece as a body comes: each byte of a string by
/// `*`, each digit of a number by `1`. What is left is JSON of the same length, so that a guest reads it in the same pieces.
///
/// Names are compared as they are written; one that is written with escapes (`"p\u0061ss"`) is another. JSON within a string of JSON,
/// what is compressed, and what is no JSON is left as it is. A string that goes over the end of a line is none: there it begins anew.
#[derive(Clone, Debug, Default)]
pub struct Mask {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The string that was read last, as far as it may be a name.
    name: Vec<u8>,
    /// That string is one of the names.
    named: bool,
    /// How deep the member is whose value is replaced.
    within: Option<usize>,
    /// It is not known where in the body this is.
    lost: bool,
}

impl Mask {
    /// Goes on with the next piece.
    pub fn apply(&mut self, names: &[String], bytes: &mut [u8]) {
        for byte in bytes {
            if self.lost {
                *byte = b'*';
            } else if self.in_string && *byte == b'\n' {
                *self = Self::default();
            } else if self.in_string {
                self.string(names, byte);
            } else {
                self.outside(byte);
            }
        }
    }

    /// Some of the body is left out: from here on all of it is replaced.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    fn string(&mut self, names: &[String], byte: &mut u8) {
        let ends = *byte == b'"' && !self.escaped;
        self.escaped = *byte == b'\\' && !self.escaped;
        if ends {
            self.in_string = false;
            self.named = self.within.is_none() && names.iter().any(|name| name.as_bytes() == self.name);
        } else if self.within.is_some() {
            *byte = b'*';
        } else if self.name.len() <= NAME_BYTES_MAX {
            self.name.push(*byte);
        }
    }

    fn outside(&mut self, byte: &mut u8) {
        match *byte {
            b'"' => {
                self.in_string = true;
                self.name.clear();
            }
            b':' if self.named => {
                self.within = Some(self.depth);
                self.named = false;
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.named = false;
            }
            b'}' | b']' => {
                // The member's value, a number say, ends with the object that it is in.
                if self.within == Some(self.depth) {
                    self.within = None;
                }
                self.depth = self.depth.saturating_sub(1);
                self.named = false;
            }
            b',' => {
                if self.within == Some(self.depth) {
                    self.within = None;
                }
                self.named = false;
            }
            b'0'..=b'9' if self.within.is_some() => *byte = b'1',
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str, piece: usize) -> String {
        let names = ["password".to_owned(), "card".to_owned(), "näme".to_owned()];
        let (mut mask, mut bytes) = (Mask::default(), text.as_bytes().to_vec());
        bytes.chunks_mut(piece).for_each(|piece| mask.apply(&names, piece));
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn what_is_behind_a_gap_is_replaced_whole() {
        let names = ["card".to_owned()];
        let (mut mask, mut before, mut after) = (Mask::default(), *b"{\"a\":1", *b"42}");
        mask.apply(&names, &mut before);
        mask.lose();
        mask.apply(&names, &mut after);
        assert_eq!((&before, &after), (b"{\"a\":1", b"***"));
    }

    #[test]
    fn values_of_these_names_are_replaced_and_nothing_else() {
        for (text, expected) in [
            (r#"{"password":"hush","user":"me"}"#, r#"{"password":"****","user":"me"}"#),
            (r#"{"password" : "h\"u\\","x":1}"#, r#"{"password" : "******","x":1}"#),
            (r#"{"card":{"no":42,"cvc":"999"},"no":42}"#, r#"{"card":{"**":11,"***":"***"},"no":42}"#),
            (
                r#"[{"card":-12.5e3},{"card":[1,"a",{"b":2}],"c":3}]"#,
                r#"[{"card":-11.1e1},{"card":[1,"*",{"*":1}],"c":3}]"#,
            ),
            (r#"{"a":{"password":null},"b":7}"#, r#"{"a":{"password":null},"b":7}"#),
            (r#"{"a":"password","b":"card"}"#, r#"{"a":"password","b":"card"}"#),
            (r#"["password",{"passwords":"x"}]"#, r#"["password",{"passwords":"x"}]"#),
            (r#"{"näme":"ü"}"#, r#"{"näme":"**"}"#),
            (r#"{"password":"a"}{"x":"b"}"#, r#"{"password":"*"}{"x":"b"}"#),
            ("password=hush", "password=hush"),
            ("}}}]]] \"", "}}}]]] \""),
            ("data: it\"s\n{\"card\":\"x\"}", "data: it\"s\n{\"card\":\"*\"}"),
        ] {
            for piece in 1..=text.len() {
                assert_eq!(masked(text, piece), expected, "in pieces of {piece}");
            }
        }
    }
}
