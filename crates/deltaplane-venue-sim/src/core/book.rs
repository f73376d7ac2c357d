//! The market's side of the book.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, Side};

/// Price levels of everybody who is not one of our accounts.
#[derive(Clone, Debug, Default)]
pub struct MarketBook {
    /// Bids by price.
    pub bids: BTreeMap<Decimal, Decimal>,
    /// Asks by price.
    pub asks: BTreeMap<Decimal, Decimal>,
    /// Id of the newest update.
    pub update_id: u64,
}

impl MarketBook {
    /// Sets levels; a quantity of zero removes one.
    pub fn apply(&mut self, bids: &[(Decimal, Decimal)], asks: &[(Decimal, Decimal)], update_id: u64) {
        for (levels, changes) in [(&mut self.bids, bids), (&mut self.asks, asks)] {
            for (price, quantity) in changes {
                if quantity.is_zero() {
                    levels.remove(price);
                } else {
                    levels.insert(*price, *quantity);
                }
            }
        }
        self.update_id = update_id;
    }

    /// Replaces everything.
    pub fn reset(&mut self, bids: &[(Decimal, Decimal)], asks: &[(Decimal, Decimal)], update_id: u64) {
        self.bids.clear();
        self.asks.clear();
        self.apply(bids, asks, update_id);
    }

    /// The best bid.
    pub fn best_bid(&self) -> Option<(Decimal, Decimal)> {
        self.bids.iter().next_back().map(|(price, quantity)| (*price, *quantity))
    }

    /// The best ask.
    pub fn best_ask(&self) -> Option<(Decimal, Decimal)> {
        self.asks.iter().next().map(|(price, quantity)| (*price, *quantity))
    }

    /// The middle, where both sides exist.
    pub fn mid(&self) -> Option<Decimal> {
        Some((self.best_bid()?.0 + self.best_ask()?.0) / Decimal::TWO)
    }

    /// The best level that an order of this side would trade with.
    pub fn best_against(&self, side: Side) -> Option<(Decimal, Decimal)> {
        match side {
            Side::Buy => self.best_ask(),
            Side::Sell => self.best_bid(),
        }
    }

    /// The levels that an order of this side would trade with, best first.
    pub fn against(&self, side: Side) -> Box<dyn Iterator<Item = (Decimal, Decimal)> + '_> {
        match side {
            Side::Buy => Box::new(self.asks.iter().map(|(p, q)| (*p, *q))),
            Side::Sell => Box::new(self.bids.iter().rev().map(|(p, q)| (*p, *q))),
        }
    }

    /// Takes quantity off a level that an order of this side traded with.
    pub fn consume(&mut self, side: Side, price: Decimal, quantity: Decimal) {
        let levels = if side == Side::Buy { &mut self.asks } else { &mut self.bids };
        if let Some(rest) = levels.get_mut(&price) {
            *rest -= quantity;
            if *rest <= Decimal::ZERO {
                levels.remove(&price);
            }
        }
    }
}
