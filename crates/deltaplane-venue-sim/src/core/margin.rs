//! Margin and liquidation.

use deltaplane_types::{Decimal, Side};

use super::account::{Account, HeldPosition};
use super::exchange::{Event, Exchange, MarketState, NewOrder};
use super::order::{
    Cause, ExecutionType, ExpiryReason, Order, OrderKind, PositionSide, Reject, Status, TimeInForce,
};
use super::rules::rate;

impl MarketState {
    /// Maintenance margin of a notional.
    pub fn maintenance(&self, notional: Decimal) -> Decimal {
        let step = self.brackets.iter().find(|step| notional <= step.cap).or(self.brackets.last());
        step.map_or(Decimal::ZERO, |step| (notional * step.rate - step.deduction).max(Decimal::ZERO))
    }

    /// The largest position notional at a leverage.
    pub fn notional_cap(&self, leverage: u32) -> Decimal {
        let fits = self.brackets.iter().rev().find(|step| step.max_leverage >= leverage);
        fits.map_or(Decimal::ZERO, |step| step.cap)
    }
}

impl Exchange {
    /// Margin of an account: initial margin of positions, of open orders, maintenance, unrealized profit.
    pub fn margin(&self, account: &Account) -> (Decimal, Decimal, Decimal, Decimal) {
        let (mut initial, mut open, mut maintenance, mut unrealized) =
            (Decimal::ZERO, Decimal::ZERO, Decimal::ZERO, Decimal::ZERO);
        for (symbol, market) in &self.markets {
            let (position, orders) = self.symbol_margin(account, symbol, market, None);
            initial += position;
            open += orders;
            for side in [PositionSide::Both, PositionSide::Long, PositionSide::Short] {
                let held = account.position(symbol, side);
                maintenance += market.maintenance(held.amount.abs() * market.mark);
                unrealized += held.unrealized(market.mark);
            }
        }
        (initial, open, maintenance, unrealized)
    }

    /// Bid and ask of an asset as margin.
    pub fn asset_rate(&self, asset: &str) -> (Decimal, Decimal) {
        self.asset_rates.get(asset).copied().unwrap_or((Decimal::ONE, Decimal::ONE))
    }

    /// What the wallet is worth as margin: the money alone, or every asset at its bid.
    pub fn collateral(&self, account: &Account) -> Decimal {
        if !account.multi_assets {
            return account.wallet;
        }
        let assets = account.assets.iter().map(|(asset, held)| held * self.asset_rate(asset).0);
        account.wallet * self.asset_rate(self.rules.money).0 + assets.sum::<Decimal>()
    }

    /// What new positions may use.
    pub fn available(&self, account: &Account) -> Decimal {
        let (initial, open, _, unrealized) = self.margin(account);
        (self.collateral(account) + unrealized - initial - open).max(Decimal::ZERO)
    }

    /// Initial margin of a symbol's positions, and what open orders (and `extra`, side and notional) add to it.
    pub fn symbol_margin(
        &self,
        account: &Account,
        symbol: &str,
        market: &MarketState,
        extra: Option<(Side, Decimal)>,
    ) -> (Decimal, Decimal) {
        let leverage = Decimal::from(account.leverage(symbol));
        let sides = [PositionSide::Both, PositionSide::Long, PositionSide::Short];
        let gross: Decimal =
            sides.iter().map(|side| account.position(symbol, *side).amount.abs() * market.mark).sum();
        let net = account.net(symbol) * market.mark;
        let (mut bids, mut asks) = (Decimal::ZERO, Decimal::ZERO);
        let open = self.orders.values().filter(|order| {
            order.status.is_open()
                && order.account == account.id
                && order.symbol == symbol
                && !order.reduce_only
        });
        for order in open {
            let notional = order.open_quantity() * order.price;
            if order.side == Side::Buy { bids += notional } else { asks += notional }
        }
        match extra {
            Some((Side::Buy, notional)) => bids += notional,
            Some((Side::Sell, notional)) => asks += notional,
            None => {}
        }
        let position = gross / leverage;
        let with_orders = (net + bids).abs().max((net - asks).abs()).max(gross) / leverage;
        (position, with_orders - position)
    }

    pub(super) fn check_margin(
        &self,
        holder: &Account,
        market: &MarketState,
        new: &NewOrder,
        limit: Decimal,
    ) -> Result<(), Reject> {
        let leverage = holder.leverage(&new.symbol);
        let signed = if new.side == Side::Buy { new.quantity } else { -new.quantity };
        let after = (holder.net(&new.symbol) + signed).abs() * market.mark;
        let cap = market.notional_cap(leverage);
        let grows = after > holder.net(&new.symbol).abs() * market.mark;
        if grows && after > cap {
            return Err(Reject::new(-2027, "Exceeded the maximum allowable position at current leverage."));
        }
        let assumed = match (new.kind, new.side) {
            (OrderKind::Market, Side::Buy) => limit * rate("1.0005"),
            _ => limit,
        };
        let (position, before) = self.symbol_margin(holder, &new.symbol, market, None);
        let (_, with) =
            self.symbol_margin(holder, &new.symbol, market, Some((new.side, assumed * new.quantity)));
        let side = if new.side == Side::Buy { Decimal::ONE } else { -Decimal::ONE };
        let open_loss = (new.quantity * (side * (market.mark - assumed)).min(Decimal::ZERO)).abs();
        let _ = position;
        let needed = with - before;
        if needed > Decimal::ZERO && needed + open_loss > self.available(holder) {
            return Err(Reject::new(-2019, "Margin is insufficient."));
        }
        Ok(())
    }

    pub(super) fn liquidate(&mut self, now: i64, events: &mut Vec<Event>) {
        let broke: Vec<String> = self
            .accounts
            .values()
            .filter(|account| {
                let (_, _, maintenance, unrealized) = self.margin(account);
                maintenance > Decimal::ZERO && self.collateral(account) + unrealized <= maintenance
            })
            .map(|account| account.id.clone())
            .collect();
        for account in broke {
            let open: Vec<u64> = self
                .orders
                .values()
                .filter(|o| o.status.is_live() && o.account == account)
                .map(|o| o.id)
                .collect();
            for id in open {
                self.waiting.remove(&id);
                self.finish(now, id, Status::Expired, ExpiryReason::Liquidated, events);
            }
            let held: Vec<((String, PositionSide), HeldPosition)> = self
                .accounts
                .get(&account)
                .map(|a| a.positions.clone().into_iter().collect())
                .unwrap_or_default();
            for ((symbol, position_side), position) in held {
                if position.amount.is_zero() {
                    continue;
                }
                let side = if position.amount > Decimal::ZERO { Side::Sell } else { Side::Buy };
                let quantity = position.amount.abs();
                let forced = Forced { side, quantity, cause: Cause::Liquidation };
                self.force(now, &account, (&symbol, position_side), forced, events);
            }
        }
    }

    /// Closes a part of a position at the mark price without asking its owner.
    pub(super) fn force(
        &mut self,
        now: i64,
        account: &str,
        (symbol, position_side): (&str, PositionSide),
        Forced { side, quantity, cause }: Forced,
        events: &mut Vec<Event>,
    ) {
        let Some(price) = self.markets.get(symbol).map(|market| market.mark) else { return };
        self.next_order += 1;
        let id = self.next_order;
        let order = Order {
            id,
            client_id: match cause {
                Cause::Deleveraging => "adl_autoclose".to_owned(),
                _ => format!("autoclose-{now}{id}"),
            },
            account: account.to_owned(),
            symbol: symbol.to_owned(),
            side,
            position_side,
            kind: OrderKind::Limit,
            time_in_force: TimeInForce::Ioc,
            price,
            quantity,
            executed: Decimal::ZERO,
            quote: Decimal::ZERO,
            reduce_only: false,
            good_till: 0,
            trigger: None,
            status: Status::New,
            expiry: ExpiryReason::None,
            created: now,
            updated: now,
        };
        events.push(Event::Order { order: order.clone(), execution: ExecutionType::New });
        self.orders.insert(id, order);
        self.trade(now, id, price, quantity, false, cause, events);
    }

    /// Closes a part of an account's position to cover another trader's loss.
    pub(super) fn deleverage(
        &mut self,
        now: i64,
        account: &str,
        symbol: &str,
        quantity: Decimal,
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        let holder = self.accounts.get(account).ok_or_else(|| Reject::new(-2015, "no such account"))?;
        let found =
            holder.positions.iter().find(|((name, _), held)| name == symbol && !held.amount.is_zero());
        let Some(((_, position_side), held)) = found else {
            return Err(Reject::new(-2024, "Position is not sufficient."));
        };
        let side = if held.amount > Decimal::ZERO { Side::Sell } else { Side::Buy };
        let quantity = quantity.min(held.amount.abs());
        let position_side = *position_side;
        let forced = Forced { side, quantity, cause: Cause::Deleveraging };
        self.force(now, account, (symbol, position_side), forced, events);
        Ok(())
    }
}

/// A trade without an order.
pub(super) struct Forced {
    side: Side,
    quantity: Decimal,
    cause: Cause,
}
