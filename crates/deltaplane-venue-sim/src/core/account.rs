//! Wallets, positions and margin.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, Side};

use super::order::PositionSide;

/// What an account holds of one symbol and side.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeldPosition {
    /// Signed base units.
    pub amount: Decimal,
    /// Average entry price.
    pub entry: Decimal,
    /// Profit realized so far, before fees.
    pub realized: Decimal,
    /// When it last changed.
    pub updated: i64,
}

impl HeldPosition {
    /// Profit at a mark price.
    pub fn unrealized(&self, mark: Decimal) -> Decimal {
        self.amount * (mark - self.entry)
    }

    /// Applies a trade and gives the realized profit.
    pub fn trade(&mut self, side: Side, quantity: Decimal, price: Decimal, now: i64) -> Decimal {
        let signed = if side == Side::Buy { quantity } else { -quantity };
        self.updated = now;
        let extends = self.amount.is_zero() || (self.amount > Decimal::ZERO) == (signed > Decimal::ZERO);
        if extends {
            let total = self.amount + signed;
            self.entry = (self.amount * self.entry + signed * price) / total;
            self.amount = total;
            return Decimal::ZERO;
        }
        let closed = quantity.min(self.amount.abs());
        let direction = if self.amount > Decimal::ZERO { Decimal::ONE } else { -Decimal::ONE };
        let realized = direction * closed * (price - self.entry);
        self.realized += realized;
        self.amount += signed;
        if self.amount.is_zero() {
            self.entry = Decimal::ZERO;
        } else if quantity > closed {
            self.entry = price;
        }
        realized
    }
}

/// One account.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name on the control port.
    pub id: String,
    /// USDT in its wallet.
    pub wallet: Decimal,
    /// Other assets in its wallet: margin only where all assets are.
    pub assets: BTreeMap<String, Decimal>,
    /// Whether longs and shorts are held apart.
    pub hedge_mode: bool,
    /// Whether all its assets are margin, at their rates.
    pub multi_assets: bool,
    /// The price of BNB where fees are paid in it.
    pub fee_burn: Option<Decimal>,
    /// Whether the key may trade.
    pub can_trade: bool,
    /// Leverage by symbol; absent means the default.
    pub leverage: BTreeMap<String, u32>,
    /// Leverage of symbols without their own.
    pub default_leverage: BTreeMap<String, u32>,
    /// Symbols set to isolated margin.
    pub isolated: BTreeMap<String, bool>,
    /// Positions.
    pub positions: BTreeMap<(String, PositionSide), HeldPosition>,
}

impl Account {
    /// Pays a fee; gives what was paid and in which asset.
    pub(super) fn pay(&mut self, fee: Decimal) -> (Decimal, &'static str) {
        if let Some(price) = self.fee_burn {
            let burnt = (fee * Decimal::new(9, 1) / price).round_dp(8);
            if let Some(held) = self.assets.get_mut("BNB").filter(|held| **held >= burnt) {
                *held -= burnt;
                return (burnt, "BNB");
            }
        }
        self.wallet -= fee;
        (fee, "USDT")
    }

    /// Every asset in the wallet.
    pub fn all_balances(&self) -> BTreeMap<String, Decimal> {
        let mut all = self.assets.clone();
        all.insert("USDT".to_owned(), self.wallet);
        all
    }

    /// Leverage of a symbol.
    pub fn leverage(&self, symbol: &str) -> u32 {
        self.leverage.get(symbol).or_else(|| self.default_leverage.get(symbol)).copied().unwrap_or(1)
    }

    /// What a position holds of its own where its margin is isolated: the initial margin at its entry. None where it
    /// shares the account's. Only told: such an account is liquidated here as if it were shared.
    pub fn isolated_margin(&self, symbol: &str, held: &HeldPosition) -> Option<Decimal> {
        let is_isolated = self.isolated.get(symbol).copied().unwrap_or(false);
        is_isolated.then(|| held.amount.abs() * held.entry / Decimal::from(self.leverage(symbol)))
    }

    /// A position, flat where none is held.
    pub fn position(&self, symbol: &str, side: PositionSide) -> HeldPosition {
        self.positions.get(&(symbol.to_owned(), side)).copied().unwrap_or_default()
    }

    /// Net of all sides of a symbol.
    pub fn net(&self, symbol: &str) -> Decimal {
        self.positions.iter().filter(|((name, _), _)| name == symbol).map(|(_, held)| held.amount).sum()
    }
}
