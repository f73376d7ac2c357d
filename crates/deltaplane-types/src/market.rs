//! What a venue's price stream shows.

use std::sync::Arc;

use crate::{FeedId, Price, Quantity, Ratio, Timestamp};
use rust_decimal::Decimal;

/// One price of an order book and the quantity that rests there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The price.
    pub price: Price,
    /// What rests there, base units.
    pub quantity: Quantity,
}

/// One venue's market in one symbol at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketView {
    /// The stream it came from.
    pub feed: FeedId,
    /// What its prices are in: `USDT`.
    pub quote: Arc<str>,
    /// Bids, best (highest) first.
    pub bids: Arc<[Level]>,
    /// Asks, best (lowest) first.
    pub asks: Arc<[Level]>,
    /// The venue's mark price, by which it computes margin.
    pub mark: Option<Price>,
    /// When that reached us, by our clock.
    pub mark_at: Option<Timestamp>,
    /// The venue's index price: a second source beside its own book.
    pub index: Option<Price>,
    /// The funding rate of the current interval; positive means that longs pay.
    pub funding_rate: Option<Ratio>,
    /// When it is charged.
    pub next_funding: Option<Timestamp>,
    /// The venue's time of the newest book event.
    pub venue_time: Timestamp,
    /// When that event reached us, by our clock.
    pub received_at: Timestamp,
}

impl MarketView {
    /// The middle between best bid and best ask, where both exist and are not crossed.
    pub fn mid(&self) -> Option<Price> {
        let bid = self.bids.first()?.price.value();
        let ask = self.asks.first()?.price.value();
        if bid >= ask {
            return None;
        }
        let sum = bid.checked_add(ask)?;
        Price::try_new(sum.checked_div(Decimal::TWO)?).ok()
    }
}
