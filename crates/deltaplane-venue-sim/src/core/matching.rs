//! How orders trade with the market's book and with each other.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, Side};

use super::exchange::{Event, Exchange};
use super::order::{
    Cause, ExecutionType, ExpiryReason, Order, OrderKind, PositionSide, Status, TimeInForce, Trade,
};
use super::rules::{acceptable, better};

impl Exchange {
    /// Trades an order against what is there.
    pub(super) fn take(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        // A level is met once: in a replay the book is not altered, so what this order took is counted here.
        let mut met: BTreeMap<Decimal, Decimal> = BTreeMap::new();
        for _ in 0..10_000 {
            let Some(order) = self.orders.get(&id).cloned() else { return };
            if !order.status.is_open() {
                return;
            }
            let wanted = self.reducible(&order).min(order.open_quantity());
            if wanted <= Decimal::ZERO {
                self.finish(now, id, Status::Expired, ExpiryReason::ReduceOnly, events);
                return;
            }
            let limit = Some(order.price).filter(|price| !price.is_zero());
            let fits = |price: Decimal| limit.is_none_or(|limit| acceptable(order.side, limit, price));
            let Some(market) = self.markets.get(&order.symbol) else { return };
            let external = market
                .book
                .against(order.side)
                .map(|(price, quantity)| {
                    let taken = if market.consumes {
                        Decimal::ZERO
                    } else {
                        met.get(&price).copied().unwrap_or_default()
                    };
                    (price, quantity - taken)
                })
                .find(|(_, quantity)| *quantity > Decimal::ZERO)
                .filter(|(price, _)| fits(*price));
            let resting = self.best_resting(&order).filter(|(price, _)| fits(*price));
            let external_first = match (external, resting) {
                (Some((a, _)), Some((b, _))) => a == b || !better(order.side, b, a),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return,
            };
            if external_first {
                let Some((price, quantity)) = external else { return };
                let quantity = quantity.min(wanted);
                *met.entry(price).or_default() += quantity;
                if let Some(market) = self.markets.get_mut(&order.symbol)
                    && market.consumes
                {
                    market.book.consume(order.side, price, quantity);
                }
                self.fill(now, id, price, quantity, false, events);
                continue;
            }
            let Some((price, maker)) = resting else { return };
            if self.orders.get(&maker).is_some_and(|other| other.account == order.account) {
                self.finish(now, maker, Status::ExpiredInMatch, ExpiryReason::SelfTrade, events);
                continue;
            }
            let quantity = self
                .orders
                .get(&maker)
                .map_or(Decimal::ZERO, |other| self.reducible(other).min(other.open_quantity()).min(wanted));
            if quantity <= Decimal::ZERO {
                self.finish(now, maker, Status::Expired, ExpiryReason::ReduceOnly, events);
                continue;
            }
            self.fill(now, maker, price, quantity, true, events);
            self.fill(now, id, price, quantity, false, events);
        }
    }

    /// Whether an order would trade at once with the market's book or with another account's order.
    pub(super) fn would_take(&self, order: &Order) -> bool {
        let fits = |price| acceptable(order.side, order.price, price);
        let book = self.markets.get(&order.symbol).and_then(|m| m.book.best_against(order.side));
        book.is_some_and(|(price, _)| fits(price))
            || self.best_resting(order).is_some_and(|(price, _)| fits(price))
    }

    /// The best resting order that this one would trade with: best price, then oldest.
    pub(super) fn best_resting(&self, order: &Order) -> Option<(Decimal, u64)> {
        self.orders
            .values()
            .filter(|o| {
                o.status.is_open() && o.symbol == order.symbol && o.side != order.side && o.id != order.id
            })
            .map(|o| (o.price, o.id))
            .reduce(|best, next| if better(order.side, next.0, best.0) { next } else { best })
    }

    /// How much a reduce-only order may trade; without bound for others.
    pub(super) fn reducible(&self, order: &Order) -> Decimal {
        let closing = order.reduce_only
            || matches!(
                (order.position_side, order.side),
                (PositionSide::Long, Side::Sell) | (PositionSide::Short, Side::Buy)
            );
        if !closing {
            return Decimal::MAX;
        }
        let held = self
            .accounts
            .get(&order.account)
            .map_or(Decimal::ZERO, |a| a.position(&order.symbol, order.position_side).amount);
        let shrinks = (held > Decimal::ZERO) == (order.side == Side::Sell);
        if shrinks { held.abs() } else { Decimal::ZERO }
    }

    pub(super) fn fill(
        &mut self,
        now: i64,
        id: u64,
        price: Decimal,
        quantity: Decimal,
        maker: bool,
        events: &mut Vec<Event>,
    ) {
        let left = self.orders.get(&id).map(|order| order.quantity - order.executed);
        let surplus =
            if maker || left != Some(quantity) { Decimal::ZERO } else { std::mem::take(&mut self.surplus) };
        self.trade(now, id, price, quantity + surplus, maker, Cause::Order, events);
    }

    #[expect(clippy::too_many_arguments, reason = "one trade has this many facts")]
    pub(super) fn trade(
        &mut self,
        now: i64,
        id: u64,
        price: Decimal,
        quantity: Decimal,
        maker: bool,
        cause: Cause,
        events: &mut Vec<Event>,
    ) {
        self.next_trade += 1;
        let trade_id = self.next_trade;
        let Some(order) = self.orders.get_mut(&id) else { return };
        order.executed += quantity;
        order.quote += price * quantity;
        order.updated = now;
        order.status =
            if order.open_quantity() <= Decimal::ZERO { Status::Filled } else { Status::PartiallyFilled };
        let order = order.clone();
        let Some(account) = self.accounts.get_mut(&order.account) else { return };
        let key = (order.symbol.clone(), order.position_side);
        let held = account.positions.entry(key).or_default();
        let realized = held.trade(order.side, quantity, price, now);
        let held = *held;
        let fee = price * quantity * if maker { self.rules.maker_rate } else { self.rules.taker_rate };
        account.wallet += realized;
        let (fee, fee_asset) = account.pay(fee);
        let wallet = account.wallet;
        if let Some(market) = self.markets.get_mut(&order.symbol) {
            market.last = price;
            if !maker {
                market.candles.trade(now, (price, quantity), order.side);
            }
        }
        let trade = Trade {
            id: trade_id,
            order_id: id,
            account: order.account.clone(),
            symbol: order.symbol.clone(),
            side: order.side,
            position_side: order.position_side,
            price,
            quantity,
            fee,
            fee_asset,
            realized,
            maker,
            cause,
            time: now,
        };
        self.trades.push(trade.clone());
        let execution = if cause == Cause::Liquidation {
            ExecutionType::Calculated(trade)
        } else {
            ExecutionType::Trade(trade)
        };
        events.push(Event::Order { order: order.clone(), execution });
        events.push(Event::Account {
            account: order.account,
            reason: "ORDER",
            wallet,
            balance_change: Decimal::ZERO,
            positions: vec![(order.symbol, order.position_side, held)],
        });
    }

    pub(super) fn finish(
        &mut self,
        now: i64,
        id: u64,
        status: Status,
        expiry: ExpiryReason,
        events: &mut Vec<Event>,
    ) {
        let Some(order) = self.orders.get_mut(&id) else { return };
        order.status = status;
        order.expiry = expiry;
        order.updated = now;
        let execution =
            if status == Status::Canceled { ExecutionType::Canceled } else { ExecutionType::Expired };
        events.push(Event::Order { order: order.clone(), execution });
    }

    /// Ends what may not rest.
    pub(super) fn end_rest(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        let Some(order) = self.orders.get(&id) else { return };
        if !order.status.is_open() {
            return;
        }
        if order.kind == OrderKind::Market {
            self.finish(now, id, Status::Expired, ExpiryReason::MarketRest, events);
        } else if matches!(order.time_in_force, TimeInForce::Ioc | TimeInForce::Fok) {
            self.finish(now, id, Status::Expired, ExpiryReason::ImmediateRest, events);
        }
    }

    /// The market came to a resting order: it fills at its own price, as far as the crossing quantity goes.
    pub(super) fn fill_resting(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        let Some(order) = self.orders.get(&id).cloned() else { return };
        let Some(market) = self.markets.get_mut(&order.symbol) else { return };
        let levels: Vec<(Decimal, Decimal)> = market
            .book
            .against(order.side)
            .take_while(|(price, _)| acceptable(order.side, order.price, *price))
            .collect();
        let consumes = market.consumes;
        for (price, quantity) in levels {
            let Some(order) = self.orders.get(&id).cloned().filter(|order| order.status.is_open()) else {
                return;
            };
            let quantity = quantity.min(order.open_quantity()).min(self.reducible(&order));
            if quantity <= Decimal::ZERO {
                self.finish(now, id, Status::Expired, ExpiryReason::ReduceOnly, events);
                return;
            }
            if consumes && let Some(market) = self.markets.get_mut(&order.symbol) {
                market.book.consume(order.side, price, quantity);
            }
            self.fill(now, id, order.price, quantity, true, events);
        }
    }
}
