//! Events that are not whole yet.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{Data, EXTENSIONS_MAX, Event, ExtensionValue, InvalidEvent, attribute, is_json};

/// An event of which attributes may still be missing: what a function emits, before Nexus fills in the rest.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// `specversion`, if given.
    pub specversion: Option<String>,
    /// Every other attribute that is text, standard or extension, or another scalar.
    pub attributes: BTreeMap<String, ExtensionValue>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

impl Draft {
    /// Sets a text attribute where none was given.
    pub fn default_to(&mut self, name: &str, value: impl FnOnce() -> String) {
        self.attributes.entry(name.to_owned()).or_insert_with(|| ExtensionValue::String(value()));
    }

    /// Everything that was given, in one order: two that have the same are the same draft.
    pub fn words(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let text = |text: &Option<String>| Cow::Owned(text.clone().unwrap_or_default());
        let attributes = self.attributes.iter();
        let attributes = attributes.flat_map(|(name, value)| [Cow::Borrowed(name.as_str()), value.to_string().into()]);
        let data = self.data.as_ref().map_or("", |data| data.get());
        [text(&self.specversion), Cow::Borrowed(data), text(&self.data_base64)].into_iter().chain(attributes)
    }

    /// The event, if everything required is there and right.
    pub fn finish(self) -> Result<Event, InvalidEvent> {
        let event = self.build()?;
        event.validate()?;
        Ok(event)
    }

    pub(super) fn build(self) -> Result<Event, InvalidEvent> {
        match self.specversion.as_deref() {
            Some("1.0") => {}
            Some(other) => {
                let why = format!("is {:?}; only 1.0 is spoken here", other.chars().take(20).collect::<String>());
                return Err(attribute("specversion", &why));
            }
            None => return Err(InvalidEvent::Missing("specversion")),
        }
        let mut extensions = self.attributes;
        let mut take = |name: &'static str| match extensions.remove(name) {
            None => Ok(None),
            Some(ExtensionValue::String(s)) => Ok(Some(s)),
            Some(_) => Err(attribute(name, "is not a string")),
        };
        let mut event = Event {
            id: take("id")?.ok_or(InvalidEvent::Missing("id"))?,
            source: take("source")?.ok_or(InvalidEvent::Missing("source"))?,
            ty: take("type")?.ok_or(InvalidEvent::Missing("type"))?,
            subject: take("subject")?,
            time: take("time")?,
            datacontenttype: take("datacontenttype")?,
            dataschema: take("dataschema")?,
            extensions,
            data: None,
        };
        event.data = match (self.data, self.data_base64) {
            (Some(_), Some(_)) => return Err(InvalidEvent::Data("stands beside `data_base64`; only one may".into())),
            (Some(raw), None) if is_json(event.datacontenttype.as_deref()) => Some(Data::Json(raw)),
            // The JSON format lets a non-JSON payload be a JSON string, which then is the payload's text.
            (Some(raw), None) => match serde_json::from_str::<String>(raw.get()) {
                Ok(text) => Some(Data::Text(text)),
                Err(_) => Some(Data::Json(raw)),
            },
            (None, Some(text)) => {
                let bytes = BASE64
                    .decode(text.as_bytes())
                    .map_err(|e| InvalidEvent::Data(format!("in `data_base64` is not base64: {e}")))?;
                Some(Data::Binary(bytes.into()))
            }
            (None, None) => None,
        };
        Ok(event)
    }
}

impl<'de> Deserialize<'de> for Draft {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DraftVisitor;

        impl<'de> Visitor<'de> for DraftVisitor {
            type Value = Draft;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CloudEvent as a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Draft, A::Error> {
                let mut draft = Draft::default();
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "data" if draft.data.is_some() => return Err(de::Error::duplicate_field("data")),
                        "data" => draft.data = Some(map.next_value()?),
                        "data_base64" if draft.data_base64.is_some() => {
                            return Err(de::Error::duplicate_field("data_base64"));
                        }
                        "data_base64" => draft.data_base64 = map.next_value()?,
                        "specversion" => {
                            draft.specversion = Some(map.next_value::<String>().map_err(|e| {
                                de::Error::custom(format_args!("attribute `specversion` is not a string: {e}"))
                            })?);
                        }
                        _ => {
                            // null means absent (JSON format, section 2.2).
                            let value: Option<serde_json::Value> = map.next_value()?;
                            let Some(value) = value else { continue };
                            let value = scalar(&name, value).map_err(de::Error::custom)?;
                            if draft.attributes.len() > EXTENSIONS_MAX + 8 {
                                return Err(de::Error::custom("too many attributes"));
                            }
                            if draft.attributes.insert(name.clone(), value).is_some() {
                                return Err(de::Error::custom(format_args!("attribute `{name}` appears twice")));
                            }
                        }
                    }
                }
                Ok(draft)
            }
        }

        deserializer.deserialize_map(DraftVisitor)
    }
}

fn scalar(name: &str, value: serde_json::Value) -> Result<ExtensionValue, InvalidEvent> {
    use serde_json::Value;
    match value {
        Value::Bool(b) => Ok(ExtensionValue::Boolean(b)),
        Value::String(s) => Ok(ExtensionValue::String(s)),
        Value::Number(n) => n
            .as_i64()
            .and_then(|i| i32::try_from(i).ok())
            .map(ExtensionValue::Integer)
            .ok_or_else(|| attribute(name, "is a number outside the 32-bit integers that CloudEvents allows")),
        _ => Err(attribute(name, "is neither a string nor a number nor a boolean")),
    }
}
