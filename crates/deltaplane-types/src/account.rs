//! Accounts and instruments as a venue knows them.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use crate::{AccountId, Delta, Notional, Price, Quantity, Ratio, Side, Symbol, Timestamp, VenueId};

/// What an account holds of one symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The symbol.
    pub symbol: Symbol,
    /// Signed base units, contract multiplier applied; the net of both sides in hedge mode.
    pub delta: Delta,
    /// The average entry price; none where flat.
    pub entry_price: Option<Price>,
    /// The venue's mark price when it last spoke of the position.
    pub mark_price: Option<Price>,
    /// Profit not yet realized, quote.
    pub unrealized: Notional,
    /// Margin that the position holds, quote.
    pub initial_margin: Notional,
    /// The floor before liquidation, quote.
    pub maintenance_margin: Notional,
    /// The leverage set for the symbol, where the venue tells.
    pub leverage: Option<Decimal>,
    /// The venue's liquidation price, where there is one.
    pub liquidation_price: Option<Price>,
    /// Its own margin without unrealized profit, quote, where it does not share the account's (isolated).
    pub isolated_margin: Option<Notional>,
    /// The venue's time of the last change.
    pub updated_at: Timestamp,
    /// The place of the last change in the venue's own order of what happens to the symbol, where a reading tells it.
    pub order: Option<u64>,
    /// Its long and its short side, in hedge mode where both are held; else empty.
    pub sides: Vec<HeldSide>,
}

/// One side of a symbol that is held both ways in hedge mode. The venue margins and liquidates each by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldSide {
    /// Signed base units.
    pub delta: Delta,
    /// The average entry price, where the venue tells it.
    pub entry_price: Option<Price>,
    /// Profit not yet realized, quote.
    pub unrealized: Notional,
    /// Margin that the side holds, quote.
    pub initial_margin: Notional,
    /// Its floor before liquidation, quote.
    pub maintenance_margin: Notional,
    /// The venue's liquidation price, where there is one.
    pub liquidation_price: Option<Price>,
    /// Its own margin without unrealized profit, quote, where it does not share the account's (isolated).
    pub isolated_margin: Option<Notional>,
}

/// Magnitudes of a long and a short in one symbol that are held apart, base units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// The long.
    pub long: Quantity,
    /// The short.
    pub short: Quantity,
}

impl Sides {
    /// How much an order on a side may take off the opposite one.
    pub const fn reducible(self, side: Side) -> Quantity {
        match side {
            Side::Buy => self.short,
            Side::Sell => self.long,
        }
    }

    /// The long less the short.
    ///
    /// # Errors
    ///
    /// [`ArithmeticError`](crate::ArithmeticError) if the difference cannot be held.
    pub fn net(self) -> Result<Delta, crate::ArithmeticError> {
        self.long.signed(Side::Buy).plus(self.short.signed(Side::Sell))
    }

    /// Both sides after a trade that takes off the opposite side first and opens the other with the rest.
    ///
    /// # Errors
    ///
    /// [`ArithmeticError`](crate::ArithmeticError) if a sum cannot be held.
    pub fn after(self, trade: Delta) -> Result<Self, crate::ArithmeticError> {
        let side = trade.side();
        let (opposite, same) = match side {
            Side::Buy => (self.short, self.long),
            Side::Sell => (self.long, self.short),
        };
        let traded = trade.abs().value();
        let closed = traded.min(opposite.value());
        let of = |value: Decimal| Quantity::try_new(value).map_err(|_| crate::ArithmeticError::Overflow);
        let opened = traded.checked_sub(closed).and_then(|rest| same.value().checked_add(rest));
        let left = opposite.value().checked_sub(closed);
        let (left, grown) = (
            of(left.ok_or(crate::ArithmeticError::Overflow)?)?,
            of(opened.ok_or(crate::ArithmeticError::Overflow)?)?,
        );
        Ok(match side {
            Side::Buy => Self { long: grown, short: left },
            Side::Sell => Self { long: left, short: grown },
        })
    }
}

impl Position {
    /// Its parts as the venue margins them: both sides where they are held apart, else the whole. Each with its sign.
    pub fn parts(&self) -> Vec<Delta> {
        if self.sides.is_empty() {
            return vec![self.delta];
        }
        self.sides.iter().map(|side| side.delta).collect()
    }

    /// The same as positions of their own.
    pub fn split(&self) -> Vec<Self> {
        if self.sides.is_empty() {
            return vec![self.clone()];
        }
        let of = |side: &HeldSide| Self {
            delta: side.delta,
            entry_price: side.entry_price,
            unrealized: side.unrealized,
            initial_margin: side.initial_margin,
            maintenance_margin: side.maintenance_margin,
            liquidation_price: side.liquidation_price,
            isolated_margin: side.isolated_margin,
            sides: Vec::new(),
            ..self.clone()
        };
        self.sides.iter().map(of).collect()
    }

    /// Whether anything is held: equal sides are a position, though their net is zero.
    pub fn is_held(&self) -> bool {
        !self.delta.is_zero() || !self.sides.is_empty()
    }

    /// The magnitudes of both sides, where they are held apart.
    pub fn sides(&self) -> Option<Sides> {
        let of = |side: Side| {
            let held = self.sides.iter().find(|held| held.delta.side() == side)?;
            Quantity::try_new(held.delta.abs().value()).ok()
        };
        Some(Sides { long: of(Side::Buy)?, short: of(Side::Sell)? })
    }

    /// The sum of its parts' magnitudes, base units.
    ///
    /// # Errors
    ///
    /// [`ArithmeticError`](crate::ArithmeticError) if the sum cannot be held.
    pub fn gross(&self) -> Result<Delta, crate::ArithmeticError> {
        self.parts().into_iter().try_fold(Delta::ZERO, |sum, part| sum.plus(part.abs()))
    }
}

/// What an account holds of a contract that has no symbol here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmappedPosition {
    /// The venue's name of the contract; what came of it where the row has no name that can be read.
    pub instrument: String,
    /// The coin that it is about, as far as that can be told: `BTC`.
    pub base: Option<String>,
    /// Signed units of the contract; none where they cannot be read.
    pub quantity: Option<Decimal>,
    /// Its signed notional at the mark price, quote, where the venue tells it.
    pub notional: Option<Notional>,
    /// Why it has no symbol.
    pub reason: String,
}

/// A row of a venue's answer that could not be read and was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    /// The list that it is of: `positions`, `exchangeInfo`.
    pub list: &'static str,
    /// The row as it was written, at most 200 characters.
    pub text: String,
    /// Why it cannot be read.
    pub reason: String,
}

impl UnreadableRow {
    /// The text of a field, as far as the kept part of a JSON row has it.
    pub fn text_of(&self, field: &str) -> Option<&str> {
        let (_, after) = self.text.split_once(&format!("\"{field}\""))?;
        let value = after.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        value.split_once('"').map(|(text, _)| text)
    }
}

/// What was true of an account at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountSnapshot {
    /// The account.
    pub account: AccountId,
    /// Where it trades.
    pub venue: VenueId,
    /// When positions and balances were true, by our clock: when the venue was asked, or when its stream was last
    /// proven to have told everything.
    pub as_of: Timestamp,
    /// When the venue was asked for marks and margins, by our clock.
    pub valued_at: Timestamp,
    /// The place up to which the whole set of positions tells everything, where a reading tells it.
    pub order: Option<u64>,
    /// Wallet balance without unrealized profit, quote.
    pub wallet_balance: Notional,
    /// Sum of unrealized profit, quote.
    pub unrealized: Notional,
    /// What the venue lets new positions use, quote.
    pub available: Notional,
    /// Initial margin in use, quote.
    pub initial_margin: Notional,
    /// Maintenance margin, quote.
    pub maintenance_margin: Notional,
    /// Wallet balance of every asset by the venue's name for it, in units of the asset.
    pub balances: BTreeMap<String, Decimal>,
    /// Positions by symbol; a symbol that is missing is flat.
    pub positions: BTreeMap<Symbol, Position>,
    /// Positions in contracts that have no symbol: they count into no delta.
    pub unmapped: Vec<UnmappedPosition>,
    /// Rows of the venue's answers and tables that were left out.
    pub unreadable: Vec<UnreadableRow>,
    /// Whether longs and shorts of one symbol are held apart.
    pub hedge_mode: bool,
}

impl AccountSnapshot {
    /// The account's position in a symbol, base units; zero where it holds none.
    pub fn position(&self, symbol: &Symbol) -> Delta {
        self.positions.get(symbol).map_or(Delta::ZERO, |position| position.delta)
    }

    /// Whether the account holds anything in a symbol, both sides of hedge mode counted.
    pub fn holds(&self, symbol: &Symbol) -> bool {
        self.positions.get(symbol).is_some_and(Position::is_held)
    }

    /// Both sides of the account's position in a symbol, where they are held apart.
    pub fn sides(&self, symbol: &Symbol) -> Option<Sides> {
        self.positions.get(symbol)?.sides()
    }

    /// Wallet balance plus unrealized profit, as the venue counts it.
    pub fn equity(&self) -> Result<Notional, crate::ArithmeticError> {
        self.wallet_balance.plus(self.unrealized)
    }
}

/// One step of a venue's margin table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarginBracket {
    /// Position notional from which the step holds, quote.
    pub floor: Notional,
    /// Position notional up to which it holds, quote.
    pub cap: Notional,
    /// Maintenance margin rate.
    pub maintenance_rate: Ratio,
    /// What is taken off `notional × rate` so that the steps join, quote.
    pub deduction: Notional,
    /// The highest leverage.
    pub max_leverage: Decimal,
}

/// The price at which a venue values a position for its initial margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarginPrice {
    /// The mark: margin moves with it.
    Mark,
    /// The average entry price.
    Entry,
}

/// A venue's contract in one symbol, with the rules and rates that hold for one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instrument {
    /// The canonical symbol.
    pub symbol: Symbol,
    /// The venue's own name.
    pub venue_symbol: String,
    /// Base units of one contract; quantities here have it applied already.
    pub multiplier: Decimal,
    /// What it is settled in: `USDT`.
    pub quote: String,
    /// The step of quantities, base units.
    pub lot_size: Quantity,
    /// The smallest quantity, base units.
    pub min_quantity: Quantity,
    /// The largest quantity of one order, base units.
    pub max_quantity: Quantity,
    /// The step of prices.
    pub tick_size: Price,
    /// The smallest notional of an order, quote.
    pub min_notional: Notional,
    /// Whether reduce-only orders are free of `min_notional`.
    pub reduce_only_exempt: bool,
    /// A buy above `mark × price_band_up` is refused, where the venue has such a band.
    pub price_band_up: Option<Ratio>,
    /// A sell below `mark × price_band_down` is refused, where the venue has such a band.
    pub price_band_down: Option<Ratio>,
    /// Fee rate of an order that takes.
    pub taker_rate: Ratio,
    /// Fee rate of an order that rests.
    pub maker_rate: Ratio,
    /// The account's leverage for the symbol.
    pub leverage: Decimal,
    /// The margin table, ascending; never empty.
    pub brackets: Vec<MarginBracket>,
    /// Hours between fundings.
    pub funding_interval_hours: u32,
    /// Mean funding rate of a settlement over the last 24 hours, where the venue tells; positive: a long pays.
    pub mean_funding_rate: Option<Ratio>,
    /// Whether the venue takes orders for it now.
    pub tradable: bool,
    /// Whether the venue trades it now; not where it is halted, delisted or being settled.
    pub listed: bool,
    /// When the venue ends the contract, where it said so; none where it goes on.
    pub ends_at: Option<Timestamp>,
    /// The price that initial margin counts from.
    pub initial_margin_from: MarginPrice,
}

impl Instrument {
    /// Whether orders must keep to the same steps, bounds and prices as with the other one.
    pub fn same_order_rules(&self, other: &Self) -> bool {
        let rules = |of: &Self| {
            (of.lot_size, of.min_quantity, of.max_quantity, of.tick_size, of.min_notional, of.multiplier)
        };
        rules(self) == rules(other)
            && (self.price_band_up, self.price_band_down) == (other.price_band_up, other.price_band_down)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_cannot_be_read_may_tell_its_name() {
        let row =
            |text: &str| UnreadableRow { list: "positions", text: text.to_owned(), reason: String::new() };
        let cut = r#"{"positionSide": "BOTH", "symbol" : "BTCUSDT", "positionAmt": nul"#;
        assert_eq!(row(cut).text_of("symbol"), Some("BTCUSDT"));
        for without in [r#"{"symbol": null}"#, r#"{"symbol": "BTC"#, "[]", ""] {
            assert_eq!(row(without).text_of("symbol"), None, "{without}");
        }
    }
}
