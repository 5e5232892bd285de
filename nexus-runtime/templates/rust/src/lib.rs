//! `{{name}}`: greets whoever a `greeting.requested` event names, and emits `greeting.sent`.
//!
//! The event comes in as one CloudEvent in JSON, and the result goes out as JSON; wit/nexus-function.wit says what may be in it.

use serde_json::{Value, json};

wit_bindgen::generate!({
    path: "wit",
    world: "function",
});

struct Function;

export!(Function);

impl Guest for Function {
    fn handle(event: Vec<u8>) -> Result<Vec<u8>, String> {
        let event: Value =
            serde_json::from_slice(&event).map_err(|e| format!("not an event: {e}"))?;
        let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned());

        // A line on standard error is a line in the function's log, and is shown with the event's trace.
        eprintln!("greeting for an event of type {}", event["type"]);
        Ok(respond(&event, &greeting).to_string().into_bytes())
    }
}

/// What the function makes of an event. A plain function of its arguments: easy to test, and the same at every replay.
fn respond(event: &Value, greeting: &str) -> Value {
    // A request to /fn/{{name}} is an event too. Its body is in the data.
    let name = if event["type"] == "nexus.http.request" {
        event["data"]["body"].as_str()
    } else {
        event["data"]["name"].as_str()
    };
    let text = format!(
        "{greeting}, {}!",
        name.filter(|name| !name.is_empty()).unwrap_or("world")
    );
    json!({
        "output": { "text": text },
        "emit": [{ "type": "greeting.sent", "data": { "text": text } }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_greeted() {
        let event = json!({ "type": "greeting.requested", "data": { "name": "Ada" } });
        let result = respond(&event, "Hello");
        assert_eq!(result["output"]["text"], "Hello, Ada!");
        assert_eq!(result["emit"][0]["type"], "greeting.sent");
    }

    #[test]
    fn a_request_without_a_body_is_too() {
        let event =
            json!({ "type": "nexus.http.request", "data": { "method": "GET", "path": "/" } });
        assert_eq!(
            respond(&event, "Good day")["output"]["text"],
            "Good day, world!"
        );
    }
}
