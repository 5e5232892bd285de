//! CloudEvents 1.0, with the payload kept to the byte.
//!
//! The attributes are parsed and checked once, at the edge. The payload is never parsed: a webhook's signature or a
//! number with 30 digits is still right after years in the log (docs/decisions/0002-cloudevents.md).

mod draft;

pub use draft::Draft;

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The longest attribute value that is taken, in bytes. The standard asks for no bound; a log does.
pub const ATTRIBUTE_BYTES_MAX: usize = 4096;
/// The extension attribute with the time before which an event is not delivered: RFC 3339, text.
pub const NOT_BEFORE: &str = "nexusnotbefore";
/// The most extension attributes an event may have.
pub const EXTENSIONS_MAX: usize = 64;

/// Why something is no CloudEvent; names the attribute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// A required attribute is not there.
    #[error("attribute `{0}` is missing")]
    Missing(&'static str),
    /// A value is not allowed for its attribute.
    #[error("attribute `{name}` {why}")]
    Attribute {
        /// The attribute.
        name: String,
        /// What is wrong with its value.
        why: String,
    },
    /// The payload does not fit what is said of it.
    #[error("`data` {0}")]
    Data(String),
    /// Not the JSON that was expected.
    #[error("not a CloudEvent in the JSON format: {0}")]
    Json(String),
}

/// An event's payload, as it came.
#[derive(Clone, Debug)]
pub enum Data {
    /// JSON text, byte for byte.
    Json(Box<RawValue>),
    /// Text that is not JSON.
    Text(String),
    /// Any bytes.
    Binary(Bytes),
}

impl Data {
    /// The payload as it goes over a wire in binary mode.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(json) => json.get().as_bytes(),
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// From a body and its content type: JSON where it says so (and is), text where it is text, else bytes.
    pub fn from_body(body: Bytes, content_type: Option<&str>) -> Result<Self, InvalidEvent> {
        if is_json(content_type) {
            let json = serde_json::from_slice::<Box<RawValue>>(&body)
                .map_err(|e| InvalidEvent::Data(format!("is not the JSON that its content type says: {e}")))?;
            return Ok(Self::Json(json));
        }
        if content_type.is_some_and(|t| t.trim_start().starts_with("text/"))
            && let Ok(text) = std::str::from_utf8(&body)
        {
            return Ok(Self::Text(text.to_owned()));
        }
        Ok(Self::Binary(body))
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.as_bytes() == other.as_bytes()
    }
}

/// Whether a content type is JSON. No content type means JSON, as the standard says.
pub fn is_json(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else { return true };
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media.ends_with("/json") || media.ends_with("+json")
}

/// Encodes an attribute's value for an HTTP header, as the HTTP protocol binding says (section 3.1.3.2).
pub fn percent_encode(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    let mut buffer = [0; 4];
    for c in value.chars() {
        if matches!(c, '!'..='~') && !matches!(c, '"' | '%') {
            encoded.push(c);
        } else {
            for byte in c.encode_utf8(&mut buffer).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    encoded
}

/// Decodes an attribute's value from an HTTP header. What is not an encoding stays as it is; what is not UTF-8 then is
/// replaced.
pub fn percent_decode(value: &str) -> String {
    let bytes = value.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let mut byte = [0];
        if bytes[at] == b'%' && at + 2 < bytes.len() && hex::decode_to_slice(&bytes[at + 1..at + 3], &mut byte).is_ok()
        {
            decoded.push(byte[0]);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The value of an extension attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ExtensionValue {
    /// Truth.
    Boolean(bool),
    /// A 32-bit number, as the standard bounds it.
    Integer(i32),
    /// Text; URIs, times and bytes travel as text too.
    String(String),
}

impl fmt::Display for ExtensionValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(b) => b.fmt(f),
            Self::Integer(i) => i.fmt(f),
            Self::String(s) => s.fmt(f),
        }
    }
}

/// A CloudEvent 1.0. Serialised, it is the standard's JSON event format.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Names the event within its source.
    pub id: String,
    /// Where it comes from: a URI reference.
    pub source: String,
    /// What happened.
    pub ty: String,
    /// What it happened to.
    pub subject: Option<String>,
    /// When it happened (RFC 3339), as it came.
    pub time: Option<String>,
    /// The payload's media type.
    pub datacontenttype: Option<String>,
    /// The payload's schema: a URI.
    pub dataschema: Option<String>,
    /// Extension attributes, by name.
    pub extensions: BTreeMap<String, ExtensionValue>,
    /// The payload.
    pub data: Option<Data>,
}

impl Event {
    /// An event with the required attributes and nothing else.
    pub fn new(id: impl Into<String>, source: impl Into<String>, ty: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            source: source.into(),
            ty: ty.into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: BTreeMap::new(),
            data: None,
        }
    }

    /// Reads one event in the JSON format.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidEvent> {
        serde_json::from_slice::<Draft>(json).map_err(|e| InvalidEvent::Json(e.to_string()))?.finish()
    }

    /// The event in the JSON format.
    pub fn to_json(&self) -> Vec<u8> {
        // Writing to memory, with string keys throughout: there is nothing that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// An attribute's value as text, standard or extension, by its name; for filters.
    pub fn attribute(&self, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        use std::borrow::Cow;
        match name {
            "specversion" => Some("1.0".into()),
            "id" => Some(self.id.as_str().into()),
            "source" => Some(self.source.as_str().into()),
            "type" => Some(self.ty.as_str().into()),
            "subject" => self.subject.as_deref().map(Cow::Borrowed),
            "time" => self.time.as_deref().map(Cow::Borrowed),
            "datacontenttype" => self.datacontenttype.as_deref().map(Cow::Borrowed),
            "dataschema" => self.dataschema.as_deref().map(Cow::Borrowed),
            _ => self.extensions.get(name).map(|v| match v {
                ExtensionValue::String(text) => Cow::Borrowed(text.as_str()),
                other => Cow::Owned(other.to_string()),
            }),
        }
    }

    /// An extension attribute that is text.
    pub fn extension_str(&self, name: &str) -> Option<&str> {
        match self.extensions.get(name)? {
            ExtensionValue::String(s) => Some(s),
            _ => None,
        }
    }

    /// The time before which the event is not to be delivered, by its extension [`NOT_BEFORE`].
    pub fn not_before(&self) -> Option<jiff::Timestamp> {
        self.extension_str(NOT_BEFORE)?.parse().ok()
    }

    /// Sets an attribute by its name from text, as in a `ce-…` header; extension values stay text.
    pub fn set_attribute(&mut self, name: &str, value: &str) -> Result<(), InvalidEvent> {
        let value = value.to_owned();
        match name {
            "id" => self.id = value,
            "source" => self.source = value,
            "type" => self.ty = value,
            "subject" => self.subject = Some(value),
            "time" => self.time = Some(value),
            "datacontenttype" => self.datacontenttype = Some(value),
            "dataschema" => self.dataschema = Some(value),
            "specversion" => {}
            _ => {
                self.extensions.insert(name.to_owned(), ExtensionValue::String(value));
            }
        }
        Ok(())
    }

    /// Checks every attribute against the standard and our bounds. Parsing has done so already.
    pub fn validate(&self) -> Result<(), InvalidEvent> {
        for (name, value) in [("id", &self.id), ("source", &self.source), ("type", &self.ty)] {
            if value.is_empty() {
                return Err(attribute(name, "is empty"));
            }
        }
        let required = [("id", Some(&self.id)), ("source", Some(&self.source)), ("type", Some(&self.ty))];
        let optional = [
            ("subject", self.subject.as_ref()),
            ("time", self.time.as_ref()),
            ("datacontenttype", self.datacontenttype.as_ref()),
            ("dataschema", self.dataschema.as_ref()),
        ];
        for (name, value) in required.into_iter().chain(optional) {
            if let Some(value) = value {
                check_text(name, value)?;
            }
        }
        if !is_uri_text(&self.source) {
            return Err(attribute("source", "is not a URI reference"));
        }
        if let Some(time) = &self.time
            && time.parse::<jiff::Timestamp>().is_err()
        {
            return Err(attribute("time", "is not an RFC 3339 time"));
        }
        if self.extensions.contains_key(NOT_BEFORE) && self.not_before().is_none() {
            return Err(attribute(NOT_BEFORE, "is not an RFC 3339 time"));
        }
        for (name, value) in [("subject", &self.subject), ("dataschema", &self.dataschema)] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(attribute(name, "is empty"));
            }
        }
        if let Some(schema) = &self.dataschema
            && !is_uri_text(schema)
        {
            return Err(attribute("dataschema", "is not a URI"));
        }
        if let Some(content_type) = &self.datacontenttype
            && !is_media_type(content_type)
        {
            return Err(attribute("datacontenttype", "is not a media type, as `application/json` is"));
        }
        if self.extensions.len() > EXTENSIONS_MAX {
            return Err(attribute("extensions", &format!("are more than {EXTENSIONS_MAX}")));
        }
        for (name, value) in &self.extensions {
            check_extension_name(name)?;
            if let ExtensionValue::String(s) = value {
                check_text(name, s)?;
            }
        }
        Ok(())
    }
}

/// RFC 3986 leaves out of a URI reference what would break a header or a log line.
fn is_uri_text(text: &str) -> bool {
    !text.chars().any(|c| c.is_whitespace() || matches!(c, '<' | '>' | '"' | '`' | '\\' | '{' | '}'))
}

/// `type/subtype`, each a token (RFC 9110, sections 5.6.2 and 8.3.1); what follows a `;` is the sender's affair.
fn is_media_type(text: &str) -> bool {
    let token =
        |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    let media = text.split(';').next().unwrap_or_default().trim();
    media.split_once('/').is_some_and(|(kind, sub)| token(kind) && token(sub))
}

fn attribute(name: &str, why: &str) -> InvalidEvent {
    InvalidEvent::Attribute { name: name.chars().take(80).collect(), why: why.to_owned() }
}

fn check_text(name: &str, value: &str) -> Result<(), InvalidEvent> {
    if value.len() > ATTRIBUTE_BYTES_MAX {
        return Err(attribute(name, &format!("is longer than {ATTRIBUTE_BYTES_MAX} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(attribute(name, "has a control character"));
    }
    Ok(())
}

fn check_extension_name(name: &str) -> Result<(), InvalidEvent> {
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(attribute(name, "is not a name of an attribute (1 to 64 of a-z and 0-9)"));
    }
    Ok(())
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("source", &self.source)?;
        map.serialize_entry("type", &self.ty)?;
        for (name, value) in [
            ("subject", &self.subject),
            ("time", &self.time),
            ("datacontenttype", &self.datacontenttype),
            ("dataschema", &self.dataschema),
        ] {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &self.extensions {
            map.serialize_entry(name, value)?;
        }
        match &self.data {
            Some(Data::Json(json)) => map.serialize_entry("data", json)?,
            Some(Data::Text(text)) => map.serialize_entry("data", text)?,
            Some(Data::Binary(bytes)) => map.serialize_entry("data_base64", &BASE64.encode(bytes))?,
            None => {}
        }
        map.end()
    }
}

/// Reads back what was written: [`Event::validate`] is not asked, so that a rule that became stricter later never makes
/// a record unreadable. What comes from outside is read by [`Event::from_json`].
impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Draft::deserialize(deserializer)?.build().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(json: &str) -> Result<Event, InvalidEvent> {
        Event::from_json(json.as_bytes())
    }

    #[test]
    fn the_payload_is_kept_to_the_byte() {
        let json =
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b":1.0, "a":12345678901234567890123}}"#;
        let event = parse(json).expect(json);
        assert_eq!(event.data.as_ref().expect("data").as_bytes(), br#"{"b":1.0, "a":12345678901234567890123}"#);
        assert_eq!(parse(std::str::from_utf8(&event.to_json()).expect("text")).expect("again"), event);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |json: &str, expected: &str| {
            let error = parse(json).expect_err(json).to_string();
            assert!(error.contains(expected), "{json}: {error}");
        };
        check(r#"{"id":"1","source":"/s","type":"t"}"#, "`specversion` is missing");
        check(r#"{"specversion":"0.3","id":"1","source":"/s","type":"t"}"#, "`specversion`");
        check(r#"{"specversion":"1.0","source":"/s","type":"t"}"#, "`id` is missing");
        check(r#"{"specversion":"1.0","id":"","source":"/s","type":"t"}"#, "`id` is empty");
        check(r#"{"specversion":"1.0","id":7,"source":"/s","type":"t"}"#, "`id` is not a string");
        check(r#"{"specversion":"1.0","id":"1","source":"a b","type":"t"}"#, "`source`");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"noon"}"#, "`time`");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","Up":"x"}"#, "`Up`");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","ext":{}}"#, "`ext`");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","n":4294967296}"#, "`n`");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1,"data_base64":"AA=="}"#, "`data`");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"*"}"#, "base64");
        check(r#"{"specversion":"1.0","id":"1","id":"2","source":"/s","type":"t"}"#, "twice");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","dataschema":""}"#, "`dataschema` is empty");
        check(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","dataschema":"a b"}"#, "`dataschema`");
        for not_media in ["", "json", "a/", "/b", "a b/c", "text/pl ain", "a/b/c", ";a=b"] {
            let json =
                format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":{not_media:?}}}"#);
            check(&json, "`datacontenttype` is not a media type");
        }
        check("[]", "JSON");
        check("", "JSON");
    }

    #[test]
    fn what_was_written_is_read_whatever_the_rules_are_now() {
        let json = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"any text"}"#;
        parse(json).expect_err("from outside");
        let event: Event = serde_json::from_str(json).expect("from the log");
        assert_eq!(event.datacontenttype.as_deref(), Some("any text"));
    }

    #[test]
    fn payloads_by_content_type() {
        let check = |content_type: &str, data: &str, expected: Data| {
            let json = format!(
                r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":{content_type:?},{data}}}"#
            );
            assert_eq!(parse(&json).expect(&json).data, Some(expected), "{json}");
        };
        let raw = |s: &str| RawValue::from_string(s.to_owned()).expect("json");
        check("application/json", r#""data":"x""#, Data::Json(raw(r#""x""#)));
        check("application/vnd.acme+json; charset=utf-8", r#""data":[1]"#, Data::Json(raw("[1]")));
        check("text/plain", r#""data":"x""#, Data::Text("x".into()));
        check("image/png", r#""data_base64":"AAE=""#, Data::Binary(Bytes::from_static(&[0, 1])));
    }

    proptest! {
        #[test]
        fn header_values_round_trip(value in "\\PC{0,40}") {
            let encoded = percent_encode(&value);
            prop_assert!(encoded.bytes().all(|b| (0x21..=0x7e).contains(&b)));
            prop_assert_eq!(percent_decode(&encoded), value);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Event::from_json(&bytes);
        }

        #[test]
        fn events_round_trip(
            id in "[!-~]{1,40}", source in "/[a-z0-9/]{0,40}", ty in "[a-z.]{1,40}",
            ext in proptest::collection::btree_map("[a-z0-9]{1,10}x", "[ -~]{0,20}", 0..5),
            data in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..60)),
        ) {
            let mut event = Event::new(id, source, ty);
            event.extensions = ext.into_iter().map(|(k, v)| (k, ExtensionValue::String(v))).collect();
            if let Some(bytes) = data {
                event.datacontenttype = Some("application/octet-stream".into());
                event.data = Some(Data::Binary(bytes.into()));
            }
            prop_assert_eq!(Event::from_json(&event.to_json()).expect("own JSON"), event);
        }
    }
}
