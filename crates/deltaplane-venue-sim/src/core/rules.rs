//! What an order must keep to be taken in, and in what the exchanges' engines differ.

use deltaplane_types::Decimal;
use deltaplane_types::Side;

use super::exchange::{Exchange, MarketState, NewOrder};
use super::order::{Order, OrderKind, PositionSide, Reject, TimeInForce};
use crate::config::SymbolConfig;

/// Open orders per symbol and account.
const MAX_OPEN_ORDERS: usize = 200;

/// One maintenance step of a margin table.
#[derive(Clone, Copy, Debug)]
pub struct Bracket {
    /// Up to this notional.
    pub cap: Decimal,
    /// Maintenance margin rate.
    pub rate: Decimal,
    /// What is taken off.
    pub deduction: Decimal,
    /// The highest leverage.
    pub max_leverage: u32,
}

/// How maintenance margin grows with a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarginTable {
    /// In steps of the notional.
    Stepped,
    /// Half of the initial margin at the market's highest leverage.
    HalfOfInitial,
}

/// When a client id may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientIds {
    /// As soon as its order ended.
    UniqueAmongOpen,
    /// Never.
    UniqueForever,
}

/// What an exchange's engine does in its own way.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a habit of its own")]
pub struct Rules {
    /// What wallets are in.
    pub money: &'static str,
    /// Fee rate of an order that takes.
    pub taker_rate: Decimal,
    /// Fee rate of an order that rests.
    pub maker_rate: Decimal,
    /// The margin table.
    pub margin: MarginTable,
    /// A buy above mark times this is refused.
    pub band_up: Decimal,
    /// A sell below mark times this is refused.
    pub band_down: Decimal,
    /// When a client id may be used again.
    pub client_ids: ClientIds,
    /// Whether a reduce-only order larger than the position is refused; else it is cut.
    pub refuses_reduce_only_excess: bool,
    /// Whether a post-only order that would take is taken in and expires; else it is refused.
    pub post_only_expires: bool,
    /// Whether a conditional order that its price would set off at once is refused.
    pub refuses_immediate_triggers: bool,
    /// Whether conditional orders are kept apart from orders until they are set off.
    pub conditionals_apart: bool,
    /// The id of the first order.
    pub first_order_id: u64,
}

impl Rules {
    /// Binance's.
    pub fn binance() -> Self {
        Self {
            money: "USDT",
            taker_rate: rate("0.0005"),
            maker_rate: rate("0.0002"),
            margin: MarginTable::Stepped,
            band_up: rate("1.05"),
            band_down: rate("0.95"),
            client_ids: ClientIds::UniqueAmongOpen,
            refuses_reduce_only_excess: false,
            post_only_expires: false,
            refuses_immediate_triggers: true,
            conditionals_apart: true,
            first_order_id: 1_000,
        }
    }

    /// Aster's.
    pub fn aster() -> Self {
        Self {
            taker_rate: rate("0.0004"),
            maker_rate: rate("0.0001"),
            post_only_expires: true,
            conditionals_apart: false,
            first_order_id: 17_338_699_000,
            ..Self::binance()
        }
    }

    /// Pacifica's. Bids far below the mark are taken; the constants are a comment's of its own tools.
    pub fn pacifica() -> Self {
        Self {
            money: "USDC",
            taker_rate: rate("0.0004"),
            maker_rate: rate("0.00015"),
            margin: MarginTable::HalfOfInitial,
            band_up: rate("1.3"),
            band_down: rate("0.7"),
            client_ids: ClientIds::UniqueForever,
            refuses_reduce_only_excess: true,
            post_only_expires: true,
            refuses_immediate_triggers: false,
            conditionals_apart: false,
            first_order_id: 28_416_222_000,
        }
    }

    /// The margin table of a market.
    pub(super) fn brackets(&self, max_leverage: u32) -> Vec<Bracket> {
        let step = |cap: i64, maintenance: &str, deduction: i64, max_leverage| Bracket {
            cap: Decimal::from(cap),
            rate: rate(maintenance),
            deduction: Decimal::from(deduction),
            max_leverage,
        };
        match self.margin {
            MarginTable::Stepped => vec![
                step(300_000, "0.004", 0, 125),
                step(800_000, "0.005", 300, 100),
                step(3_000_000, "0.0065", 1_500, 75),
                step(12_000_000, "0.01", 12_000, 50),
                step(70_000_000, "0.02", 132_000, 25),
            ],
            MarginTable::HalfOfInitial => vec![Bracket {
                cap: Decimal::from(1_000_000_000),
                rate: Decimal::ONE / Decimal::from(max_leverage.max(1)) / Decimal::TWO,
                deduction: Decimal::ZERO,
                max_leverage,
            }],
        }
    }
}

impl Exchange {
    /// The venue's rules, in the order in which it answers.
    pub(super) fn check(&self, account: &str, new: &NewOrder) -> Result<(), Reject> {
        let market = self.market_of(&new.symbol)?;
        let holder = self
            .accounts
            .get(account)
            .ok_or_else(|| Reject::new(-2015, "Invalid API-key, IP, or permissions for action."))?;
        if holder.hedge_mode == (new.position_side == PositionSide::Both) {
            return Err(Reject::new(-4061, "Order's position side does not match user's setting."));
        }
        if holder.hedge_mode && new.reduce_only {
            return Err(Reject::new(-1106, "Parameter 'reduceonly' sent when not required."));
        }
        if new.client_id.as_ref().is_some_and(|id| self.is_taken(account, &new.symbol, id)) {
            return Err(Reject::new(-4116, "ClientOrderId is duplicated."));
        }
        let config = &market.config;
        if let Some(trigger) = &new.trigger {
            return self.check_condition(holder, market, new, trigger);
        }
        check_quantity(config, new)?;
        let limit = if new.kind == OrderKind::Market { market.mark } else { new.price };
        if new.kind == OrderKind::Limit {
            self.check_price(config, market.mark, new)?;
        }
        if !new.reduce_only && !closes(new) && limit * new.quantity < config.min_notional.0 {
            let least = config.min_notional.0.normalize();
            let text =
                format!("Order's notional must be no smaller than {least} (unless you choose reduce only).");
            return Err(Reject::new(-4164, text));
        }
        let held = holder.position(&new.symbol, new.position_side).amount;
        let shrinks = !held.is_zero() && (held > Decimal::ZERO) == (new.side == Side::Sell);
        if (new.reduce_only || closes(new)) && !shrinks {
            return Err(Reject::new(-2022, "ReduceOnly Order is rejected."));
        }
        let too_much = new.quantity > held.abs();
        if too_much && (closes(new) || new.reduce_only && self.rules.refuses_reduce_only_excess) {
            return Err(Reject::new(-2022, "ReduceOnly Order is rejected."));
        }
        let open = self
            .orders
            .values()
            .filter(|o| o.status.is_open() && o.account == account && o.symbol == new.symbol);
        if open.count() >= MAX_OPEN_ORDERS {
            return Err(Reject::new(-2025, "Reach max open order limit."));
        }
        if !new.reduce_only && !closes(new) {
            self.check_margin(holder, market, new, limit)?;
        }
        let crosses = market
            .book
            .best_against(new.side)
            .is_some_and(|(price, _)| acceptable(new.side, new.price, price));
        if new.time_in_force == TimeInForce::Gtx && crosses && !self.rules.post_only_expires {
            let text = "Due to the order could not be executed as maker, the Post Only order will be rejected. The order will not be recorded in the order history";
            return Err(Reject::new(-5022, text));
        }
        if new.time_in_force == TimeInForce::Fok && self.fillable(account, new, market) < new.quantity {
            let text = "Due to the order could not be filled immediately, the FOK order has been rejected. The order will not be recorded in the order history";
            return Err(Reject::new(-5021, text));
        }
        Ok(())
    }

    pub(super) fn fillable(&self, account: &str, new: &NewOrder, market: &MarketState) -> Decimal {
        let external: Decimal = market
            .book
            .against(new.side)
            .take_while(|(price, _)| acceptable(new.side, new.price, *price))
            .map(|(_, quantity)| quantity)
            .sum();
        let resting: Decimal = self
            .orders
            .values()
            .filter(|o| {
                o.status.is_open() && o.symbol == new.symbol && o.side != new.side && o.account != account
            })
            .filter(|o| acceptable(new.side, new.price, o.price))
            .map(Order::open_quantity)
            .sum();
        external + resting
    }

    /// Whether a client id cannot be used again.
    fn is_taken(&self, account: &str, symbol: &str, client_id: &str) -> bool {
        match self.rules.client_ids {
            ClientIds::UniqueAmongOpen => self.open_by_client_id(account, symbol, client_id).is_some(),
            ClientIds::UniqueForever => {
                self.orders.values().any(|order| order.account == account && order.client_id == client_id)
            }
        }
    }

    /// The open order of an account with a client id.
    pub fn open_by_client_id(&self, account: &str, symbol: &str, client_id: &str) -> Option<&Order> {
        self.orders.values().rev().find(|order| {
            order.status.is_live()
                && order.account == account
                && order.symbol == symbol
                && order.client_id == client_id
        })
    }

    pub(super) fn check_price(
        &self,
        config: &SymbolConfig,
        mark: Decimal,
        new: &NewOrder,
    ) -> Result<(), Reject> {
        if new.price <= Decimal::ZERO {
            return Err(Reject::new(-4001, "Price less than 0."));
        }
        if new.price > Decimal::from(4_529_764) {
            return Err(Reject::new(-4002, "Price greater than max price."));
        }
        if new.price.normalize().scale() > config.tick_size.0.normalize().scale() {
            return Err(Reject::new(-1111, "Precision is over the maximum defined for this asset."));
        }
        if !(new.price % config.tick_size.0).is_zero() {
            return Err(Reject::new(-4014, "Price not increased by tick size."));
        }
        let (high, low) = (mark * self.rules.band_up, mark * self.rules.band_down);
        if new.side == Side::Buy && new.price > high {
            return Err(Reject::new(
                -4016,
                format!("Limit price can't be higher than {}.", high.normalize()),
            ));
        }
        if new.side == Side::Sell && new.price < low {
            return Err(Reject::new(-4024, format!("Limit price can't be lower than {}.", low.normalize())));
        }
        Ok(())
    }
}

pub(super) fn check_quantity(config: &SymbolConfig, new: &NewOrder) -> Result<(), Reject> {
    let most =
        if new.kind == OrderKind::Market { config.market_max_quantity.0 } else { config.max_quantity() };
    if new.quantity <= Decimal::ZERO {
        return Err(Reject::new(-4003, "Quantity less than or equal to zero."));
    }
    if new.quantity < config.min_quantity.0 {
        return Err(Reject::new(-4004, "Quantity less than min quantity."));
    }
    if new.quantity > most {
        return Err(Reject::new(-4005, "Quantity greater than max quantity."));
    }
    if new.quantity.normalize().scale() > config.step_size.0.normalize().scale() {
        return Err(Reject::new(-1111, "Precision is over the maximum defined for this asset."));
    }
    if !(new.quantity % config.step_size.0).is_zero() {
        return Err(Reject::new(-4023, "Qty not increased by step size."));
    }
    Ok(())
}

/// Whether an order of hedge mode closes.
pub(super) fn closes(new: &NewOrder) -> bool {
    matches!(
        (new.position_side, new.side),
        (PositionSide::Long, Side::Sell) | (PositionSide::Short, Side::Buy)
    )
}

/// Whether a price is no worse than the limit of an order.
pub(super) fn acceptable(side: Side, limit: Decimal, price: Decimal) -> bool {
    match side {
        Side::Buy => price <= limit,
        Side::Sell => price >= limit,
    }
}

/// Whether an order of this side would rather trade at `a`.
pub(super) fn better(side: Side, a: Decimal, b: Decimal) -> bool {
    match side {
        Side::Buy => a < b,
        Side::Sell => a > b,
    }
}

pub(super) fn rate(text: &str) -> Decimal {
    deltaplane_types::parse_exact(text).unwrap_or_default()
}
