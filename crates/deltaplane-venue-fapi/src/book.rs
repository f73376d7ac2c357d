//! The local order book: snapshot, buffered events, and the `pu` check of the futures rule.
//!
//! Binance, "How to manage a local order book correctly" (USDⓈ-M): drop events with `u` below the snapshot's
//! id; the first one applied must have `U ≤ id ≤ u`; from then on each `pu` must equal the `u` before.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use deltaplane_types::{Level, Price, Quantity};

use crate::wire::{BookTicker, DepthSnapshot, DepthUpdate};

/// How many events are kept while the snapshot is on its way.
const MAX_BUFFERED: usize = 5_000;

/// What an event did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BookStep {
    /// The book is newer.
    Applied,
    /// Kept until the snapshot comes, or too old to matter.
    Waiting,
    /// The chain is broken: the book is empty until a new snapshot.
    Gap,
}

/// A book in step with the venue's, or waiting to be.
#[derive(Debug, Default)]
pub struct BookSync {
    bids: BTreeMap<Price, Quantity>,
    asks: BTreeMap<Price, Quantity>,
    /// Id of the newest update in the book; none while a snapshot is needed.
    last_id: Option<u64>,
    /// Whether an event was applied since the snapshot.
    chained: bool,
    buffered: VecDeque<DepthUpdate>,
    ticker: Option<BookTicker>,
}

impl BookSync {
    /// Whether a snapshot is needed.
    pub const fn needs_snapshot(&self) -> bool {
        self.last_id.is_none()
    }

    /// Id of the newest update.
    pub const fn last_id(&self) -> Option<u64> {
        self.last_id
    }

    /// Takes a snapshot and the events that waited for it.
    pub fn on_snapshot(&mut self, snapshot: &DepthSnapshot) -> BookStep {
        self.bids.clear();
        self.asks.clear();
        set(&mut self.bids, &snapshot.bids);
        set(&mut self.asks, &snapshot.asks);
        self.last_id = Some(snapshot.last_update_id);
        self.chained = false;
        let mut step = BookStep::Waiting;
        for event in std::mem::take(&mut self.buffered) {
            step = self.on_depth(event);
            if step == BookStep::Gap {
                return step;
            }
        }
        step
    }

    /// Takes an event.
    pub fn on_depth(&mut self, event: DepthUpdate) -> BookStep {
        let Some(last) = self.last_id else {
            if self.buffered.len() == MAX_BUFFERED {
                self.buffered.pop_front();
            }
            self.buffered.push_back(event);
            return BookStep::Waiting;
        };
        if !self.chained && event.last_id < last {
            return BookStep::Waiting;
        }
        // A snapshot that ends exactly where an event began is in step too: the next `pu` names it.
        let joins = !self.chained && event.first_id <= last && last <= event.last_id;
        let fits = event.pu == last || joins;
        if !fits {
            self.reset();
            self.buffered.push_back(event);
            return BookStep::Gap;
        }
        set(&mut self.bids, &event.bids);
        set(&mut self.asks, &event.asks);
        self.last_id = Some(event.last_id);
        self.chained = true;
        BookStep::Applied
    }

    /// Takes a best bid and ask, which come sooner than the book's own events.
    pub fn on_ticker(&mut self, ticker: BookTicker) {
        if self.ticker.is_none_or(|known| known.update_id < ticker.update_id) {
            self.ticker = Some(ticker);
        }
    }

    /// Forgets the book: the connection broke or the chain did.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Every bid and ask of the book itself, best first.
    pub fn levels(&self) -> (Vec<Level>, Vec<Level>) {
        let level = |(price, quantity): (&Price, &Quantity)| Level { price: *price, quantity: *quantity };
        (self.bids.iter().rev().map(level).collect(), self.asks.iter().map(level).collect())
    }

    /// The best `depth` bids and asks, with a newer best bid and ask put in place.
    pub fn top(&self, depth: usize) -> (Vec<Level>, Vec<Level>) {
        let newer = self.ticker.filter(|ticker| self.last_id.is_some_and(|last| ticker.update_id > last));
        let best = |price: crate::wire::Text, quantity: crate::wire::Text| {
            Some(Level {
                price: Price::try_new(price.0).ok()?,
                quantity: Quantity::try_new(quantity.0).ok()?,
            })
        };
        let (mut bids, mut asks) = (Vec::with_capacity(depth), Vec::with_capacity(depth));
        let bid = newer.and_then(|ticker| best(ticker.bid_price, ticker.bid_quantity));
        let ask = newer.and_then(|ticker| best(ticker.ask_price, ticker.ask_quantity));
        bids.extend(bid);
        asks.extend(ask);
        let level = |(price, quantity): (&Price, &Quantity)| Level { price: *price, quantity: *quantity };
        let below =
            self.bids.iter().rev().skip_while(|(price, _)| bid.is_some_and(|bid| **price >= bid.price));
        bids.extend(below.map(level).take(depth - bids.len()));
        let above = self.asks.iter().skip_while(|(price, _)| ask.is_some_and(|ask| **price <= ask.price));
        asks.extend(above.map(level).take(depth - asks.len()));
        (bids, asks)
    }
}

fn set(levels: &mut BTreeMap<Price, Quantity>, changes: &[(crate::wire::Text, crate::wire::Text)]) {
    for (price, quantity) in changes {
        // A price that is not above zero, or a quantity below it, is nothing that anyone can trade at.
        let (Ok(price), Ok(quantity)) = (Price::try_new(price.0), Quantity::try_new(quantity.0)) else {
            continue;
        };
        if quantity.is_zero() {
            levels.remove(&price);
        } else {
            levels.insert(price, quantity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> DepthUpdate {
        serde_json::from_str(json).unwrap()
    }

    fn depth(first: u64, last: u64, pu: u64, bid: &str) -> DepthUpdate {
        event(&format!(r#"{{"T":1,"U":{first},"u":{last},"pu":{pu},"b":[["{bid}","1"]],"a":[]}}"#))
    }

    fn snapshot(id: u64) -> DepthSnapshot {
        serde_json::from_str(&format!(
            r#"{{"lastUpdateId":{id},"T":1,"bids":[["100","2"]],"asks":[["101","2"]]}}"#
        ))
        .unwrap()
    }

    fn bids(book: &BookSync) -> Vec<String> {
        book.levels().0.iter().map(|level| format!("{}@{}", level.quantity, level.price)).collect()
    }

    #[test]
    fn events_before_the_snapshot_are_dropped_or_joined() {
        let mut book = BookSync::default();
        assert_eq!(book.on_depth(depth(1, 5, 0, "98")), BookStep::Waiting);
        assert_eq!(book.on_depth(depth(6, 12, 5, "99")), BookStep::Waiting);
        assert_eq!(book.on_snapshot(&snapshot(10)), BookStep::Applied);
        assert_eq!(bids(&book), ["2@100", "1@99"]);
        assert_eq!(book.on_depth(depth(13, 20, 12, "97")), BookStep::Applied);
        assert_eq!(book.last_id(), Some(20));
    }

    #[test]
    fn a_snapshot_between_two_events_is_in_step() {
        let mut book = BookSync::default();
        book.on_snapshot(&snapshot(10));
        assert_eq!(book.on_depth(depth(11, 12, 10, "99")), BookStep::Applied);
        let mut book = BookSync::default();
        book.on_snapshot(&snapshot(10));
        assert_eq!(book.on_depth(depth(12, 13, 11, "99")), BookStep::Gap);
    }

    #[test]
    fn a_broken_chain_asks_for_a_snapshot() {
        let mut book = BookSync::default();
        book.on_snapshot(&snapshot(10));
        assert_eq!(book.on_depth(depth(8, 12, 7, "99")), BookStep::Applied);
        assert_eq!(book.on_depth(depth(14, 15, 13, "98")), BookStep::Gap);
        assert!(book.needs_snapshot() && book.levels().0.is_empty());
        assert_eq!(book.on_snapshot(&snapshot(14)), BookStep::Applied);
    }

    #[test]
    fn a_snapshot_older_than_the_stream_is_not_enough() {
        let mut book = BookSync::default();
        book.on_depth(depth(20, 25, 19, "99"));
        assert_eq!(book.on_snapshot(&snapshot(10)), BookStep::Gap);
        assert!(book.needs_snapshot());
    }

    #[test]
    fn a_newer_ticker_replaces_the_top() {
        let mut book = BookSync::default();
        book.on_snapshot(&snapshot(10));
        let ticker = |id: u64| -> BookTicker {
            serde_json::from_str(&format!(r#"{{"u":{id},"T":1,"b":"99.5","B":"7","a":"102","A":"8"}}"#))
                .unwrap()
        };
        book.on_ticker(ticker(9));
        assert_eq!(book.top(5).0[0].price.to_string(), "100");
        book.on_ticker(ticker(11));
        let (bids, asks) = book.top(5);
        assert_eq!(
            (bids.len(), bids[0].price.to_string(), asks.len(), asks[0].price.to_string()),
            (1, "99.5".into(), 1, "102".into())
        );
    }
}
