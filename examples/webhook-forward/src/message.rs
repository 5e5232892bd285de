//! From what comes in to what a chat shows. Nothing here knows that it runs in WebAssembly.

use serde_json::{Value, json};

/// The most fields that a message shows: a chat is not a database.
const FIELDS_MAX: usize = 10;

/// The message for an event of a type.
pub fn from_event(kind: &str, data: &Value) -> Value {
    match kind {
        "order.accepted" => order_accepted(data),
        _ => anything(&format!("Event {kind}"), data),
    }
}

/// The message for the payload of a webhook. A push is told by what it holds, so that it is known without GitHub's header too.
pub fn from_webhook(payload: &Value) -> Value {
    if payload["ref"].is_string() && payload["commits"].is_array() {
        push(payload)
    } else {
        anything("Webhook received", payload)
    }
}

fn order_accepted(data: &Value) -> Value {
    let order_id = data["order_id"].as_str().unwrap_or("without an id");
    let customer = data["customer"].as_str().unwrap_or("an unnamed customer");
    let total = data["total_cents"].as_i64().map_or_else(|| "unknown".to_owned(), amount);
    json!({
        "text": format!("Order {order_id} over {total} was accepted"),
        "fields": [field("Customer", customer), field("Total", &total)],
    })
}

fn push(payload: &Value) -> Value {
    let branch = payload["ref"].as_str().unwrap_or_default().trim_start_matches("refs/heads/");
    let repository = payload["repository"]["full_name"].as_str().unwrap_or("a repository");
    let pusher = payload["pusher"]["name"].as_str().unwrap_or("Somebody");
    let commits = payload["commits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let noun = if commits.len() == 1 { "commit" } else { "commits" };
    let fields: Vec<Value> = commits
        .iter()
        .take(FIELDS_MAX)
        .map(|commit| {
            let id: String = commit["id"].as_str().unwrap_or_default().chars().take(7).collect();
            let message = commit["message"].as_str().unwrap_or_default();
            field(&id, message.lines().next().unwrap_or_default())
        })
        .collect();
    json!({
        "text": format!("{pusher} pushed {} {noun} to {branch} of {repository}", commits.len()),
        "fields": fields,
    })
}

/// A message about data of which nothing is known: its own plain members, as they are.
fn anything(text: &str, data: &Value) -> Value {
    let fields: Vec<Value> = data
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| match value {
            Value::String(text) => Some(field(name, text)),
            Value::Number(_) | Value::Bool(_) => Some(field(name, &value.to_string())),
            _ => None,
        })
        .take(FIELDS_MAX)
        .collect();
    json!({ "text": text, "fields": fields })
}

fn field(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn amount(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    format!("{sign}{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order() {
        let message =
            from_event("order.accepted", &json!({ "order_id": "o-1", "customer": "ada", "total_cents": 5205 }));
        assert_eq!(message["text"], "Order o-1 over 52.05 was accepted");
        assert_eq!(message["fields"][0], json!({ "name": "Customer", "value": "ada" }));
    }

    #[test]
    fn a_push() {
        let payload = serde_json::from_str(include_str!("../push.json")).expect("the sample is JSON");
        let message = from_webhook(&payload);
        assert_eq!(message["text"], "ada pushed 2 commits to main of example/shop");
        assert_eq!(message["fields"][0], json!({ "name": "4c1e0b7", "value": "Count mugs, not boxes" }));
    }

    #[test]
    fn something_else() {
        let message = from_webhook(&json!({ "zen": "Keep it simple", "hook_id": 7, "hook": {} }));
        assert_eq!(message["text"], "Webhook received");
        assert_eq!(message["fields"].as_array().map(Vec::len), Some(2));
    }
}
