//! `order-check`: takes an `order.created` event and emits `order.accepted` or `order.rejected`.
//!
//! A function of the narrow world `nexus:function`: the event comes in as JSON, the outcome goes out as JSON. The rules are
//! in [`order`]; this file reads the event, asks them, and says what came of it.

mod order;

use order::{Order, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};

wit_bindgen::generate!({
    path: "../../wit",
    world: "function",
});

struct OrderCheck;

export!(OrderCheck);

/// The members of a CloudEvent that matter here.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    data: Value,
}

impl Guest for OrderCheck {
    fn handle(event: Vec<u8>) -> Result<Vec<u8>, String> {
        let event: Event = serde_json::from_slice(&event).map_err(|e| format!("this is not a CloudEvent: {e}"))?;
        let result = if event.kind == "nexus.http.request" {
            answer_request(&event.data)?
        } else {
            let order = Order::deserialize(&event.data).map_err(|e| format!("the data is not an order: {e}"))?;
            decide(&order)?
        };
        Ok(result.to_string().into_bytes())
    }
}

/// Answers a call of `/fn/order-check` whose body is an order. A body that is not one is the caller's mistake (400), and not a
/// failure of this function.
fn answer_request(request: &Value) -> Result<Value, String> {
    let body = request["body"].as_str().unwrap_or_default();
    match serde_json::from_str::<Order>(body) {
        Ok(order) => decide(&order),
        Err(e) => Ok(json!({ "status": 400, "output": { "error": format!("the body is not an order: {e}") } })),
    }
}

/// The result of the invocation: a summary as its output, and the event that tells the rest of the shop.
fn decide(order: &Order) -> Result<Value, String> {
    let Verdict { total_cents, reasons } = order::check(order, limit_cents()?);
    let accepted = reasons.is_empty();

    let mut data = json!({ "order_id": order.order_id, "customer": order.customer, "total_cents": total_cents });
    let kind = if accepted {
        eprintln!("order {} accepted", order.order_id);
        "order.accepted"
    } else {
        eprintln!("order {} rejected: {}", order.order_id, reasons.join("; "));
        data["reasons"] = json!(reasons);
        "order.rejected"
    };
    Ok(json!({
        "output": {
            "order_id": order.order_id,
            "accepted": accepted,
            "items": order.items.len(),
            "total_cents": total_cents,
            "reasons": reasons,
        },
        "emit": [{ "type": kind, "subject": order.order_id, "data": data }],
    }))
}

/// The limit from the function's configuration. A value that is not a number is an error: falling back to a default would let
/// orders through that somebody meant to stop.
fn limit_cents() -> Result<i64, String> {
    match std::env::var("ORDER_LIMIT_CENTS") {
        Ok(text) => text.parse().map_err(|_| format!("ORDER_LIMIT_CENTS is {text:?}, which is not a number of cents")),
        Err(_) => Ok(1_000_000),
    }
}
