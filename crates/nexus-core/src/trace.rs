//! W3C trace context: <https://www.w3.org/TR/trace-context/>.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::InvalidId;

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// A new random one, never all zeros.
            pub fn generate() -> Self {
                loop {
                    let bytes: [u8; $bytes] = rand::random();
                    if bytes != [0; $bytes] {
                        return Self(bytes);
                    }
                }
            }

            /// From its bytes; all zeros is no id.
            pub fn from_bytes(bytes: [u8; $bytes]) -> Option<Self> {
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }

            /// Its bytes, in the order in which they are written.
            pub fn to_bytes(self) -> [u8; $bytes] {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(s: &str) -> Result<Self, InvalidId> {
                let invalid = |why| InvalidId { what: $what, value: s.chars().take(80).collect(), why };
                let mut bytes = [0; $bytes];
                if s.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(s, &mut bytes).is_err() {
                    return Err(invalid(concat!("is not ", stringify!($bytes), " bytes in lower-case hexadecimal")));
                }
                Self::from_bytes(bytes).ok_or_else(|| invalid("is all zeros"))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(s: String) -> Result<Self, InvalidId> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = [0; $bytes * 2];
                hex::encode_to_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
                f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hex_id!(
    /// One trace: 16 bytes.
    TraceId, 16, "trace id"
);
hex_id!(
    /// One span of a trace: 8 bytes.
    SpanId, 8, "span id"
);

impl SpanId {
    /// A span id that follows from another and a name: the same each time it is asked for.
    ///
    /// So the spans of an event can be rebuilt from the log, and are those that were exported.
    pub fn derive(parent: &[u8], name: &str) -> Self {
        use sha2::{Digest as _, Sha256};
        let hash = Sha256::new().chain_update(parent).chain_update([0]).chain_update(name).finalize();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash[..8]);
        // All zeros is no id; one bit makes it one, and is as good as any other.
        if bytes == [0; 8] {
            bytes[7] = 1;
        }
        Self(bytes)
    }
}

/// Where in which trace something happens: the content of a `traceparent` header, and `tracestate` as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that is the parent of what comes next.
    pub span_id: SpanId,
    /// Whether the trace's starter asked for it to be recorded.
    pub sampled: bool,
    /// Other vendors' part, passed on unread. At most 512 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// Reads a `traceparent` header. Later versions than 00 are read as the standard says: by their first four fields.
    pub fn parse(traceparent: &str) -> Result<Self, InvalidId> {
        let invalid = |why| InvalidId { what: "traceparent", value: traceparent.chars().take(80).collect(), why };
        let mut parts = traceparent.trim().split('-');
        let (Some(version), Some(trace), Some(span), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("must be version-trace-span-flags"));
        };
        let byte = |text: &str| -> Option<u8> {
            let mut byte = [0];
            if text.bytes().any(|b| b.is_ascii_uppercase()) {
                return None;
            }
            hex::decode_to_slice(text, &mut byte).ok()?;
            Some(byte[0])
        };
        let version = byte(version).filter(|v| *v != 0xff).ok_or_else(|| invalid("has a bad version"))?;
        if version == 0 && parts.next().is_some() {
            return Err(invalid("of version 00 must have four parts"));
        }
        Ok(Self {
            trace_id: trace.parse().map_err(|_| invalid("has a bad trace id"))?,
            span_id: span.parse().map_err(|_| invalid("has a bad span id"))?,
            sampled: byte(flags).ok_or_else(|| invalid("has bad flags"))? & 1 == 1,
            tracestate: None,
        })
    }

    /// The `traceparent` header.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-0{}", self.trace_id, self.span_id, u8::from(self.sampled))
    }

    /// The same trace, seen from another span.
    pub fn at(&self, span_id: SpanId) -> Self {
        Self { span_id, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_round_trips() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceContext::parse(text).expect(text).traceparent(), text);
    }

    #[test]
    fn a_later_version_is_read_by_its_first_four_fields() {
        let text = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes-later";
        assert!(TraceContext::parse(text).expect(text).sampled);
    }

    #[test]
    fn malformed_traceparents_are_refused() {
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert!(TraceContext::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn derived_span_ids_are_stable_and_differ_by_name() {
        assert_eq!(SpanId::derive(b"x", "append"), SpanId::derive(b"x", "append"));
        assert_ne!(SpanId::derive(b"x", "append"), SpanId::derive(b"x", "deliver"));
    }
}
