//! Request weight and order counts, in fixed windows.

use std::collections::BTreeMap;

use crate::core::Reject;

/// Weight per minute and address.
pub(crate) const WEIGHT_PER_MINUTE: u64 = 2_400;
/// Orders per minute and account.
pub(crate) const ORDERS_PER_MINUTE: u64 = 1_200;
/// Orders per ten seconds and account.
pub(crate) const ORDERS_PER_TEN_SECONDS: u64 = 300;

#[derive(Clone, Copy, Default)]
struct Window {
    start: i64,
    used: u64,
}

impl Window {
    fn add(&mut self, now: i64, length: i64, count: u64) -> u64 {
        let start = now.div_euclid(length) * length;
        if self.start != start {
            *self = Self { start, used: 0 };
        }
        self.used += count;
        self.used
    }
}

#[derive(Default)]
pub(crate) struct Limits {
    weight: Window,
    orders: BTreeMap<String, (Window, Window)>,
}

impl Limits {
    /// Counts a request; gives the used weight, and a refusal where it is too much.
    pub(crate) fn weigh(&mut self, now: i64, weight: u64) -> (u64, Option<Reject>) {
        let used = self.weight.add(now, 60_000, weight);
        let text = format!(
            "Too many requests; current limit is {WEIGHT_PER_MINUTE} requests per minute. Please use the websocket for live updates to avoid polling the API."
        );
        (used, (used > WEIGHT_PER_MINUTE).then(|| Reject::new(-1003, text)))
    }

    /// Counts orders of an account; gives the counts of ten seconds and of a minute.
    pub(crate) fn count_orders(
        &mut self,
        now: i64,
        account: &str,
        orders: u64,
    ) -> ((u64, u64), Option<Reject>) {
        let (short, long) = self.orders.entry(account.to_owned()).or_default();
        let counts = (short.add(now, 10_000, orders), long.add(now, 60_000, 1));
        let reject = if counts.0 > ORDERS_PER_TEN_SECONDS {
            Some(format!("{ORDERS_PER_TEN_SECONDS} orders per TEN_SECONDS"))
        } else if counts.1 > ORDERS_PER_MINUTE {
            Some(format!("{ORDERS_PER_MINUTE} orders per MINUTE"))
        } else {
            None
        };
        (
            counts,
            reject.map(|limit| Reject::new(-1015, format!("Too many new orders; current limit is {limit}."))),
        )
    }
}
