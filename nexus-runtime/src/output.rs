//! What the log keeps of what a function gave back.

use base64::Engine as _;
use nexus_core::outcome::Output;
use nexus_engine::Answer;

/// The most bytes of an output that are kept; a longer one is cut, and says so.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// The output as it is kept: JSON as JSON, text as text, anything else as base64; `None` if nothing was given back.
pub fn kept(answer: &Answer) -> Option<Output> {
    if answer.body.is_empty() && answer.http_status.is_none() {
        return None;
    }
    let bytes = answer.body.len() as u64;
    let content_type = answer.content_type().map(str::to_owned);
    let mut output = Output {
        http_status: answer.http_status,
        content_type,
        data: None,
        data_base64: None,
        bytes,
        truncated: false,
    };
    if answer.body.is_empty() {
        return Some(output);
    }
    let json = output.content_type.as_deref().is_some_and(|t| nexus_core::event::is_json(Some(t)));
    output.truncated = answer.body.len() > KEPT_BYTES_MAX;
    let head = &answer.body[..answer.body.len().min(KEPT_BYTES_MAX)];
    if json
        && !output.truncated
        && let Ok(value) = serde_json::from_slice(head)
    {
        output.data = Some(value);
        return Some(output);
    }
    // A cut may have gone through the middle of a character.
    let text = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        Err(e) if output.truncated && e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok(),
        Err(_) => None,
    };
    match text {
        Some(text) => output.data = Some(text.into()),
        None => output.data_base64 = Some(base64::engine::general_purpose::STANDARD.encode(head)),
    }
    Some(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(content_type: &str, body: &[u8]) -> Answer {
        let mut answer = Answer { http_status: Some(200), body: body.to_vec().into(), ..Answer::default() };
        answer.headers.insert("content-type", content_type.parse().expect("media type"));
        answer
    }

    #[test]
    fn each_kind_of_output() {
        let check = |content_type: &str, body: &[u8], data: Option<serde_json::Value>, base64: Option<&str>| {
            let output = kept(&answer(content_type, body)).expect("output");
            assert_eq!((output.data, output.data_base64.as_deref()), (data, base64), "{content_type} {body:?}");
            assert_eq!(output.bytes, body.len() as u64);
        };
        check("application/json", b"{\"a\":1}", Some(serde_json::json!({"a": 1})), None);
        check("application/json", b"{broken", Some("{broken".into()), None);
        check("text/plain", b"hello", Some("hello".into()), None);
        check("image/png", &[0xff, 0], None, Some("/wA="));
        assert_eq!(kept(&Answer::default()), None);
    }

    #[test]
    fn a_long_output_is_cut_at_a_character() {
        let output = kept(&answer("text/plain", "ä".repeat(KEPT_BYTES_MAX).as_bytes())).expect("output");
        assert!(output.truncated && output.bytes == 2 * KEPT_BYTES_MAX as u64);
        let output =
            kept(&answer("text/plain", format!("x{}", "ä".repeat(KEPT_BYTES_MAX)).as_bytes())).expect("output");
        assert_eq!(output.data.and_then(|d| d.as_str().map(str::len)), Some(KEPT_BYTES_MAX - 1));
    }
}
