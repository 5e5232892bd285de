//! Reading what a function gave back: its output, and the events that it emits.

use bytes::Bytes;
use nexus_core::event::Draft;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::request::Answer;

/// The most events that one invocation may emit.
pub(crate) const EMIT_MAX: usize = 1000;

/// What was given back, apart.
pub(crate) type Given = Result<(Answer, Vec<Draft>), String>;

/// A response to an event: a CloudEvent in any mode is emitted, anything else is output.
pub(crate) fn from_response(answer: Answer) -> Given {
    let media = answer.content_type().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let drafts = match media.as_str() {
        "application/cloudevents+json" => vec![parse::<Draft>(&answer.body, "the response")?],
        "application/cloudevents-batch+json" => parse::<Vec<Draft>>(&answer.body, "the response")?,
        _ if answer.headers.contains_key("ce-specversion") => vec![from_binary(&answer)?],
        _ => return Ok((answer, Vec::new())),
    };
    Ok((Answer::default(), bounded(drafts)?))
}

/// A CloudEvent in HTTP's binary mode.
fn from_binary(answer: &Answer) -> Result<Draft, String> {
    let mut json = serde_json::Map::new();
    for (name, value) in &answer.headers {
        if let Some(attribute) = name.as_str().strip_prefix("ce-") {
            let value = value.to_str().map_err(|_| format!("header {name} of the response is not text"))?;
            json.insert(attribute.to_owned(), nexus_core::event::percent_decode(value).into());
        }
    }
    if let Some(content_type) = answer.content_type() {
        json.insert("datacontenttype".into(), content_type.into());
    }
    if !answer.body.is_empty() {
        use base64::Engine as _;
        if nexus_core::event::is_json(answer.content_type()) {
            json.insert("data".into(), parse(&answer.body, "the response's body")?);
        } else {
            let text = base64::engine::general_purpose::STANDARD.encode(&answer.body);
            json.insert("data_base64".into(), text.into());
        }
    }
    serde_json::from_value(json.into()).map_err(|e| format!("the response is no CloudEvent: {e}"))
}

/// A command's standard output: one event or an array of them is emitted, anything else is output.
pub(crate) fn from_stdout(stdout: Bytes) -> Given {
    #[derive(Deserialize)]
    struct Peek {
        #[serde(default)]
        specversion: Option<serde::de::IgnoredAny>,
    }
    let text = stdout.trim_ascii();
    let drafts = match text.first() {
        Some(b'{') if serde_json::from_slice::<Peek>(text).is_ok_and(|p| p.specversion.is_some()) => {
            vec![parse::<Draft>(text, "standard output")?]
        }
        Some(b'[')
            if serde_json::from_slice::<Vec<Peek>>(text)
                .is_ok_and(|all| !all.is_empty() && all.iter().all(|p| p.specversion.is_some())) =>
        {
            parse::<Vec<Draft>>(text, "standard output")?
        }
        _ => {
            let json = matches!(text.first(), Some(b'{' | b'['))
                && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok();
            let content_type = if json { "application/json" } else { "text/plain; charset=utf-8" };
            let answer = if stdout.is_empty() { Answer::default() } else { Answer::of(content_type, stdout) };
            return Ok((answer, Vec::new()));
        }
    };
    Ok((Answer::default(), bounded(drafts)?))
}

/// The outcome of a `nexus:function`: see `wit/nexus-function.wit`.
pub(crate) fn from_outcome(outcome: Vec<u8>) -> Given {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outcome {
        #[serde(default)]
        output: Option<Box<RawValue>>,
        #[serde(default)]
        output_base64: Option<String>,
        #[serde(default)]
        content_type: Option<String>,
        #[serde(default)]
        status: Option<u16>,
        #[serde(default)]
        emit: Vec<Draft>,
    }
    if outcome.is_empty() {
        return Ok((Answer::default(), Vec::new()));
    }
    // An array would be read as the members in their order.
    if outcome.trim_ascii_start().first() != Some(&b'{') {
        return Err("the outcome is not a JSON object".into());
    }
    let outcome: Outcome = parse(&outcome, "the outcome")?;
    let mut answer = match (outcome.output, outcome.output_base64) {
        (Some(_), Some(_)) => return Err("the outcome has both `output` and `output_base64`".into()),
        (Some(json), None) => {
            // A string that is not said to be JSON is the text itself.
            let as_text = outcome.content_type.as_deref().is_some_and(|t| !nexus_core::event::is_json(Some(t)));
            let bytes = match serde_json::from_str::<String>(json.get()) {
                Ok(text) if as_text => text.into_bytes(),
                _ => json.get().as_bytes().to_vec(),
            };
            Answer::of(outcome.content_type.as_deref().unwrap_or("application/json"), bytes.into())
        }
        (None, Some(text)) => {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(|e| format!("`output_base64` of the outcome is not base64: {e}"))?;
            Answer::of(outcome.content_type.as_deref().unwrap_or("application/octet-stream"), bytes.into())
        }
        (None, None) => Answer::default(),
    };
    if let Some(status) = outcome.status {
        if !(200..600).contains(&status) {
            return Err(format!("`status` of the outcome is {status}; it must be 200 to 599"));
        }
        answer.http_status = Some(status);
    }
    Ok((answer, bounded(outcome.emit)?))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("{what} is not what it must be: {e}"))
}

fn bounded(drafts: Vec<Draft>) -> Result<Vec<Draft>, String> {
    if drafts.len() > EMIT_MAX {
        return Err(format!("{} events were emitted; {EMIT_MAX} is the most", drafts.len()));
    }
    Ok(drafts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_output_is_output_or_events() {
        let check = |stdout: &'static str, emitted: usize, content_type: Option<&str>| {
            let (answer, drafts) = from_stdout(Bytes::from_static(stdout.as_bytes())).expect(stdout);
            assert_eq!((drafts.len(), answer.content_type()), (emitted, content_type), "{stdout}");
        };
        check("", 0, None);
        check("hello\n", 0, Some("text/plain; charset=utf-8"));
        check("{\"a\":1}\n", 0, Some("application/json"));
        check("{not json", 0, Some("text/plain; charset=utf-8"));
        check(r#"{"specversion":"1.0","type":"t"}"#, 1, None);
        check(r#"[{"specversion":"1.0","type":"t"},{"specversion":"1.0","type":"u"}]"#, 2, None);
        check("[]", 0, Some("application/json"));
        check(r#"[{"specversion":"1.0","type":"t"},{}]"#, 0, Some("application/json"));
    }

    #[test]
    fn outcomes() {
        let ok = |json: &str| from_outcome(json.as_bytes().to_vec()).expect(json);
        let (answer, drafts) = ok(r#"{"output":{"a":1},"status":201,"emit":[{"type":"x","data":1}]}"#);
        assert_eq!((&answer.body[..], answer.http_status, drafts.len()), (&br#"{"a":1}"#[..], Some(201), 1));
        assert_eq!(&ok(r#"{"output":"hi","content_type":"text/plain"}"#).0.body[..], b"hi");
        assert_eq!(&ok(r#"{"output_base64":"AAE="}"#).0.body[..], [0, 1]);
        for bad in ["x", "{\"outptu\":1}", r#"{"output":1,"output_base64":"AA=="}"#, r#"{"status":99}"#, "[]"] {
            assert!(from_outcome(bad.as_bytes().to_vec()).is_err(), "{bad}");
        }
    }
}
