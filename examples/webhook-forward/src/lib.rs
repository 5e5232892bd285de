//! `webhook-forward`: turns an event or a webhook into a chat message and posts it to the URL in `FORWARD_URL`.
//!
//! A function of the standard world `wasi:http`: it runs unchanged in any host of that world. An event arrives as a POST in
//! CloudEvents binary mode, and is answered with the event `notification.sent` in the same mode; a plain request is answered with what
//! the receiver said. What a message looks like is in [`message`].

mod http;
mod message;

use serde_json::{Value, json};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

wasip2::http::proxy::export!(WebhookForward);

struct WebhookForward;

const JSON: (&str, &str) = ("content-type", "application/json");

impl wasip2::exports::http::incoming_handler::Guest for WebhookForward {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let cause = http::header(&request, "ce-id").zip(http::header(&request, "ce-type"));
        match forward(&request, cause.as_ref().map(|(_, kind)| kind.as_str())) {
            Ok(report) => {
                let body = report.to_string();
                match cause {
                    // The id follows from the event that caused it: a second attempt emits the same event again, not another.
                    Some((id, _)) => {
                        let headers = [
                            ("ce-specversion", "1.0"),
                            ("ce-id", &format!("{id}-sent")),
                            ("ce-source", "/webhook-forward"),
                            ("ce-type", "notification.sent"),
                            JSON,
                        ];
                        http::respond(out, 200, &headers, body.as_bytes());
                    }
                    None => http::respond(out, 200, &[JSON], body.as_bytes()),
                }
            }
            Err((status, error)) => {
                eprintln!("not forwarded: {error}");
                http::respond(out, status, &[JSON], json!({ "error": error }).to_string().as_bytes());
            }
        }
    }
}

/// Does the work, and reports what was sent and what came back. An error is a status and what went wrong: 400 is not worth another
/// attempt, 500 and 502 are.
fn forward(request: &IncomingRequest, event_kind: Option<&str>) -> Result<Value, (u16, String)> {
    let url = std::env::var("FORWARD_URL").map_err(|_| (500, "FORWARD_URL is not set".to_owned()))?;
    let body = http::read_request(request).map_err(|e| (400, format!("the request can't be read: {e}")))?;
    let data: Value = serde_json::from_slice(&body).map_err(|e| (400, format!("the body is not JSON: {e}")))?;
    let message = match event_kind {
        Some(kind) => message::from_event(kind, &data),
        None => message::from_webhook(&data),
    };

    let answer = http::post_json(&url, message.to_string().as_bytes())
        .map_err(|e| (502, format!("the receiver could not be reached: {e}")))?;
    let said = String::from_utf8_lossy(&answer.body);
    if !(200..300).contains(&answer.status) {
        return Err((502, format!("the receiver answered {}: {said}", answer.status)));
    }
    eprintln!("forwarded: {}", message["text"].as_str().unwrap_or_default());
    Ok(json!({ "message": message, "status": answer.status, "answer": said }))
}
