//! Caps: of everything, and tighter ones of single accounts, symbols and operations.

use std::collections::BTreeMap;

use deltaplane_types::{AccountId, Decimal, Notional, Ratio, Symbol};

/// Caps that hold in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest notional of one order, quote.
    pub max_order_notional: Notional,
    /// Largest notional of one account's position in one symbol, quote.
    pub max_position_notional: Notional,
    /// Largest notional that one plan may add to positions, over all its accounts, quote: what a slipped digit hits.
    pub max_operation_notional: Notional,
    /// Largest net delta of one symbol, as its value in quote.
    pub max_net_delta: Notional,
    /// How far from its target a two-sided operation may bring net delta while orders are out, as its value in quote.
    pub max_in_flight_delta: Notional,
    /// How far a price cap may lie from the reference price.
    pub price_collar: Ratio,
    /// Largest notional of all positions of one account together, longs and shorts added up, quote; none has no cap.
    pub max_gross_notional: Option<Notional>,
    /// Largest gross notional of one account over its equity; none has no cap.
    pub max_leverage: Option<Decimal>,
    /// Orders of one account in a minute.
    pub max_orders_per_minute: usize,
}

/// Tighter caps of one account, symbol or operation; none leaves the general one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitOverride {
    /// See [`Limits::max_order_notional`].
    pub max_order_notional: Option<Notional>,
    /// See [`Limits::max_position_notional`].
    pub max_position_notional: Option<Notional>,
    /// See [`Limits::max_operation_notional`].
    pub max_operation_notional: Option<Notional>,
    /// See [`Limits::max_net_delta`].
    pub max_net_delta: Option<Notional>,
    /// See [`Limits::max_in_flight_delta`].
    pub max_in_flight_delta: Option<Notional>,
    /// See [`Limits::price_collar`].
    pub price_collar: Option<Ratio>,
    /// See [`Limits::max_gross_notional`].
    pub max_gross_notional: Option<Notional>,
    /// See [`Limits::max_leverage`].
    pub max_leverage: Option<Decimal>,
    /// See [`Limits::max_orders_per_minute`].
    pub max_orders_per_minute: Option<usize>,
}

impl Default for Limits {
    /// The documented defaults.
    fn default() -> Self {
        let usd = |amount: i64| Notional::new(Decimal::from(amount));
        Self {
            max_order_notional: usd(250_000),
            max_position_notional: usd(1_000_000),
            max_operation_notional: usd(1_000_000),
            max_net_delta: usd(250_000),
            max_in_flight_delta: usd(25_000),
            price_collar: Ratio::new(Decimal::from_i128_with_scale(12, 2)),
            max_gross_notional: None,
            max_leverage: None,
            max_orders_per_minute: 60,
        }
    }
}

fn least<T: Ord + Copy>(general: T, own: Option<T>) -> T {
    own.map_or(general, |own| own.min(general))
}

fn least_of<T: Ord + Copy>(general: Option<T>, own: Option<T>) -> Option<T> {
    match (general, own) {
        (Some(general), Some(own)) => Some(general.min(own)),
        (one, other) => one.or(other),
    }
}

impl Limits {
    /// The stricter of both, cap by cap.
    #[must_use]
    pub fn tightened(self, by: &LimitOverride) -> Self {
        Self {
            max_order_notional: least(self.max_order_notional, by.max_order_notional),
            max_position_notional: least(self.max_position_notional, by.max_position_notional),
            max_operation_notional: least(self.max_operation_notional, by.max_operation_notional),
            max_net_delta: least(self.max_net_delta, by.max_net_delta),
            max_in_flight_delta: least(self.max_in_flight_delta, by.max_in_flight_delta),
            price_collar: least(self.price_collar, by.price_collar),
            max_gross_notional: least_of(self.max_gross_notional, by.max_gross_notional),
            max_leverage: least_of(self.max_leverage, by.max_leverage),
            max_orders_per_minute: least(self.max_orders_per_minute, by.max_orders_per_minute),
        }
    }
}

impl LimitOverride {
    /// The caps with these in place of the general ones, tighter or not.
    #[must_use]
    pub fn in_place_of(&self, general: Limits) -> Limits {
        Limits {
            max_order_notional: self.max_order_notional.unwrap_or(general.max_order_notional),
            max_position_notional: self.max_position_notional.unwrap_or(general.max_position_notional),
            max_operation_notional: self.max_operation_notional.unwrap_or(general.max_operation_notional),
            max_net_delta: self.max_net_delta.unwrap_or(general.max_net_delta),
            max_in_flight_delta: self.max_in_flight_delta.unwrap_or(general.max_in_flight_delta),
            price_collar: self.price_collar.unwrap_or(general.price_collar),
            max_gross_notional: self.max_gross_notional.or(general.max_gross_notional),
            max_leverage: self.max_leverage.or(general.max_leverage),
            max_orders_per_minute: self.max_orders_per_minute.unwrap_or(general.max_orders_per_minute),
        }
    }
}

/// Tighter caps by account and by symbol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Of accounts.
    pub accounts: BTreeMap<AccountId, LimitOverride>,
    /// Of symbols.
    pub symbols: BTreeMap<Symbol, LimitOverride>,
}

impl Overrides {
    /// What holds in a symbol.
    #[must_use]
    pub fn in_symbol(&self, general: Limits, symbol: &Symbol) -> Limits {
        self.symbols.get(symbol).map_or(general, |own| general.tightened(own))
    }

    /// What holds for an account beside that.
    #[must_use]
    pub fn on_account(&self, general: Limits, account: &AccountId) -> Limits {
        self.accounts.get(account).map_or(general, |own| general.tightened(own))
    }
}
