//! `order-check` as it was before somebody sent an order without items: it divides by their number. For the demo and for tests of
//! what a fix does to events that failed.

#[path = "../../../../examples/order-check/src/order.rs"]
mod order;

use order::{Order, Verdict};
use serde::Deserialize;
use serde_json::{Value, json};

wit_bindgen::generate!({
    path: "../../../wit",
    world: "function",
});

struct OrderCheck;

export!(OrderCheck);

#[derive(Deserialize)]
struct Event {
    data: Value,
}

impl Guest for OrderCheck {
    fn handle(event: Vec<u8>) -> Result<Vec<u8>, String> {
        let event: Event = serde_json::from_slice(&event).map_err(|e| format!("this is not a CloudEvent: {e}"))?;
        let order = Order::deserialize(&event.data).map_err(|e| format!("the data is not an order: {e}"))?;
        let Verdict { total_cents, reasons } = order::check(&order, 1_000_000);
        let average_cents = total_cents.unwrap_or(0) / order.items.len() as i64;
        let kind = if reasons.is_empty() { "order.accepted" } else { "order.rejected" };
        eprintln!("order {} {}, {average_cents} cents an item", order.order_id, &kind[6..]);

        let mut data = json!({ "order_id": order.order_id, "customer": order.customer, "total_cents": total_cents });
        if !reasons.is_empty() {
            data["reasons"] = json!(reasons);
        }
        let result = json!({
            "output": {
                "order_id": order.order_id,
                "accepted": reasons.is_empty(),
                "items": order.items.len(),
                "total_cents": total_cents,
                "reasons": reasons,
            },
            "emit": [{ "type": kind, "subject": order.order_id, "data": data }],
        });
        Ok(result.to_string().into_bytes())
    }
}
