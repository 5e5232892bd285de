//! What an order is, and what makes one acceptable. Nothing here knows that it runs in WebAssembly.

use serde::Deserialize;

/// The most of one item that a single order may ask for.
const QUANTITY_MAX: i64 = 100;

/// An order as the shop sends it.
///
/// Quantities and prices are signed here on purpose: an order for -1 mugs is well-formed data about a bad order, to be
/// rejected with a reason, and not a message that cannot be read.
#[derive(Deserialize)]
pub struct Order {
    pub order_id: String,
    pub customer: String,
    pub items: Vec<Item>,
    /// What the shop believes the total to be; checked against the items where it is given.
    pub total_cents: Option<i64>,
}

/// One line of an order.
#[derive(Deserialize)]
pub struct Item {
    pub sku: String,
    pub quantity: i64,
    pub unit_price_cents: i64,
}

/// What became of an order.
pub struct Verdict {
    /// The sum over the items; `None` where it does not fit into 64 bits.
    pub total_cents: Option<i64>,
    /// Why the order is rejected, in the order in which a person would look; empty where it is accepted.
    pub reasons: Vec<String>,
}

/// Checks an order against the rules and a limit on its total.
pub fn check(order: &Order, limit_cents: i64) -> Verdict {
    let mut reasons = Vec::new();
    if order.order_id.trim().is_empty() {
        reasons.push("the order has no id".to_owned());
    }
    if order.customer.trim().is_empty() {
        reasons.push("the order has no customer".to_owned());
    }
    if order.items.is_empty() {
        reasons.push("the order has no items".to_owned());
    }
    for item in &order.items {
        if !(1..=QUANTITY_MAX).contains(&item.quantity) {
            reasons.push(format!("quantity {} of {} is not within 1 to {QUANTITY_MAX}", item.quantity, item.sku));
        }
        if item.unit_price_cents < 0 {
            reasons.push(format!("the price of {} is negative", item.sku));
        }
    }

    let total_cents = order.items.iter().try_fold(0_i64, |sum, item| {
        item.quantity.checked_mul(item.unit_price_cents).and_then(|cents| sum.checked_add(cents))
    });
    match total_cents {
        None => reasons.push("the total does not fit into 64 bits".to_owned()),
        Some(total) => {
            if let Some(stated) = order.total_cents
                && stated != total
            {
                reasons.push(format!("the stated total is {stated} cents, the items add up to {total}"));
            }
            if total > limit_cents {
                reasons.push(format!("the total of {total} cents is over the limit of {limit_cents}"));
            }
        }
    }
    Verdict { total_cents, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(items: &[(i64, i64)], total_cents: Option<i64>) -> Order {
        let items = items
            .iter()
            .map(|&(quantity, unit_price_cents)| Item { sku: "mug".into(), quantity, unit_price_cents })
            .collect();
        Order { order_id: "o-1".into(), customer: "ada".into(), items, total_cents }
    }

    #[track_caller]
    fn expect(order: Order, reasons: &[&str]) {
        assert_eq!(check(&order, 10_000).reasons, reasons);
    }

    #[test]
    fn rules() {
        expect(order(&[(1, 10_000)], Some(10_000)), &[]);
        expect(order(&[(100, 1)], None), &[]);
        expect(order(&[], None), &["the order has no items"]);
        expect(order(&[(0, 5)], None), &["quantity 0 of mug is not within 1 to 100"]);
        expect(order(&[(101, 5)], None), &["quantity 101 of mug is not within 1 to 100"]);
        expect(order(&[(2, 50)], Some(99)), &["the stated total is 99 cents, the items add up to 100"]);
        expect(order(&[(1, 10_001)], None), &["the total of 10001 cents is over the limit of 10000"]);
        expect(order(&[(2, i64::MAX)], None), &["the total does not fit into 64 bits"]);
    }
}
