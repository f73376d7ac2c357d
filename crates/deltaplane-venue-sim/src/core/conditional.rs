//! Orders that wait for a price, and the countdown that cancels an account's orders unless it is renewed.

use deltaplane_types::{Decimal, Side};

use super::account::Account;
use super::exchange::{Event, Exchange, MarketState, NewOrder};
use super::order::{ExecutionType, ExpiryReason, Order, Reject, Status, Trigger, TriggerSource};
use super::rules::check_quantity;

/// Waiting orders of an account on a symbol.
const MAX_WAITING: usize = 10;

impl MarketState {
    /// The price that a condition looks at; none on an empty book.
    fn watched(&self, source: TriggerSource) -> Option<Decimal> {
        match source {
            TriggerSource::Mark => Some(self.mark),
            TriggerSource::Last => Some(self.last),
            TriggerSource::Mid => self.book.mid(),
        }
    }
}

impl Trigger {
    /// Whether a price sets the order off: a stop follows the price away from the position, an order that takes
    /// a profit waits for it to come.
    fn is_set_off(&self, side: Side, price: Decimal) -> bool {
        let waits_for_rise = (side == Side::Buy) != self.takes_profit;
        if waits_for_rise { price >= self.price } else { price <= self.price }
    }
}

impl Exchange {
    /// What a conditional order must keep when it is placed; margin counts only when it is set off.
    pub(super) fn check_condition(
        &self,
        holder: &Account,
        market: &MarketState,
        new: &NewOrder,
        trigger: &Trigger,
    ) -> Result<(), Reject> {
        if !trigger.closes_position {
            check_quantity(&market.config, new)?;
        }
        if trigger.price <= Decimal::ZERO || !(trigger.price % market.config.tick_size.0).is_zero() {
            return Err(Reject::new(-4014, "Price not increased by tick size."));
        }
        let now_set_off =
            market.watched(trigger.source).is_some_and(|price| trigger.is_set_off(new.side, price));
        if now_set_off && self.rules.refuses_immediate_triggers && trigger.parent.is_none() {
            return Err(Reject::new(-2021, "Order would immediately trigger."));
        }
        let waiting =
            self.waiting().filter(|order| order.account == holder.id && order.symbol == new.symbol).count();
        if waiting >= MAX_WAITING {
            return Err(Reject::new(-4045, "Reach max stop order limit."));
        }
        Ok(())
    }

    /// Whether an order is kept apart from the others because nothing set it off yet.
    pub fn is_apart(&self, order: &Order) -> bool {
        self.rules.conditionals_apart && order.trigger.as_ref().is_some_and(|trigger| !trigger.fired)
    }

    /// The orders that wait for a price.
    pub fn waiting(&self) -> impl Iterator<Item = &Order> {
        self.waiting.iter().filter_map(|id| self.orders.get(id))
    }

    /// Sets off what the prices set off, until nothing more is.
    pub(super) fn set_off(&mut self, now: i64, events: &mut Vec<Event>) {
        // Each step ends one order's waiting.
        for _ in 0..self.waiting.len() {
            let Some((id, due)) = self.waiting().find_map(|order| Some((order.id, self.decision(order)?)))
            else {
                return;
            };
            self.waiting.remove(&id);
            if due {
                self.start(now, id, events);
            } else {
                self.finish(now, id, Status::Canceled, ExpiryReason::None, events);
            }
        }
    }

    /// Whether a waiting order is set off (`true`) or has lost what it belonged to (`false`).
    fn decision(&self, order: &Order) -> Option<bool> {
        let trigger = order.trigger.as_ref()?;
        if let Some(parent) = trigger.parent.and_then(|id| self.orders.get(&id)) {
            if parent.status.is_live() {
                return None;
            }
            if parent.executed.is_zero() {
                return Some(false);
            }
        }
        let price = self.markets.get(&order.symbol)?.watched(trigger.source)?;
        trigger.is_set_off(order.side, price).then_some(true)
    }

    /// A waiting order becomes a plain one, and is now checked as one.
    fn start(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        let Some(mut order) = self.orders.get(&id).cloned() else { return };
        let closes = order.trigger.as_ref().is_some_and(|trigger| trigger.closes_position);
        if closes {
            let held = |account: &Account| account.position(&order.symbol, order.position_side).amount.abs();
            order.quantity = self.accounts.get(&order.account).map_or(Decimal::ZERO, held);
        }
        let plain = NewOrder {
            symbol: order.symbol.clone(),
            side: order.side,
            position_side: order.position_side,
            kind: order.kind,
            time_in_force: order.time_in_force,
            price: order.price,
            quantity: order.quantity,
            reduce_only: order.reduce_only,
            client_id: None,
            good_till: 0,
            trigger: None,
        };
        order.updated = now;
        if let Some(trigger) = &mut order.trigger {
            trigger.fired = true;
        }
        events.push(Event::Order { order: order.clone(), execution: ExecutionType::Triggered });
        let allowed = self.check(&order.account, &plain);
        order.status = Status::New;
        self.orders.insert(id, order.clone());
        if allowed.is_err() {
            self.finish(now, id, Status::Expired, ExpiryReason::ReduceOnly, events);
            return;
        }
        events.push(Event::Order { order, execution: ExecutionType::New });
        self.take(now, id, events);
        self.end_rest(now, id, events);
    }

    /// Starts, renews or (without a date) stops the countdown of an account on a symbol.
    pub(super) fn count_down(
        &mut self,
        account: String,
        symbol: String,
        until: Option<i64>,
    ) -> Result<(), Reject> {
        self.market_of(&symbol)?;
        match until {
            Some(until) => self.countdowns.insert((account, symbol), until),
            None => self.countdowns.remove(&(account, symbol)),
        };
        Ok(())
    }

    /// Cancels the orders whose countdown ran out.
    pub(super) fn end_countdowns(&mut self, now: i64, events: &mut Vec<Event>) {
        let over: Vec<(String, String)> =
            self.countdowns.iter().filter(|(_, until)| **until <= now).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.countdowns.remove(&key);
            let apart = self.rules.conditionals_apart;
            let hit: Vec<u64> = self
                .orders
                .values()
                .filter(|order| (&order.account, &order.symbol) == (&key.0, &key.1))
                .filter(|order| order.status.is_open() || !apart && order.status == Status::Waiting)
                .map(|order| order.id)
                .collect();
            for id in hit {
                self.waiting.remove(&id);
                self.finish(now, id, Status::Canceled, ExpiryReason::None, events);
            }
        }
    }
}
