//! The course of a market by the minute.

use std::collections::VecDeque;

use deltaplane_types::{Decimal, Side};

/// A minute, milliseconds.
const MINUTE: i64 = 60_000;
/// Minutes that are kept.
const KEPT: usize = 3_000;

/// What happened from one time to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candle {
    /// When it begins, milliseconds.
    pub open_time: i64,
    /// The first, highest, lowest and last price.
    pub prices: [Decimal; 4],
    /// The last premium of the mark over the index, as a fraction.
    pub premium: Decimal,
    /// Base units that traded, and their value.
    pub volume: (Decimal, Decimal),
    /// The same of trades whose taker bought.
    pub bought: (Decimal, Decimal),
    /// How many trades there were.
    pub trades: u64,
}

impl Candle {
    fn begin(open_time: i64, price: Decimal) -> Self {
        Self {
            open_time,
            prices: [price; 4],
            premium: Decimal::ZERO,
            volume: (Decimal::ZERO, Decimal::ZERO),
            bought: (Decimal::ZERO, Decimal::ZERO),
            trades: 0,
        }
    }

    fn see(&mut self, price: Decimal) {
        let [_, high, low, last] = &mut self.prices;
        (*high, *low, *last) = ((*high).max(price), (*low).min(price), price);
    }

    /// This one with what came after it.
    fn with(mut self, later: &Self) -> Self {
        let [_, high, low, last] = later.prices;
        self.prices = [self.prices[0], self.prices[1].max(high), self.prices[2].min(low), last];
        self.premium = later.premium;
        let sum = |a: (Decimal, Decimal), b: (Decimal, Decimal)| (a.0 + b.0, a.1 + b.1);
        (self.volume, self.bought) = (sum(self.volume, later.volume), sum(self.bought, later.bought));
        self.trades += later.trades;
        self
    }
}

/// The minutes of one market, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Candles(VecDeque<Candle>);

impl Candles {
    fn at(&mut self, now: i64, price: Decimal) -> Option<&mut Candle> {
        let open_time = now - now.rem_euclid(MINUTE);
        if self.0.back().is_none_or(|candle| candle.open_time < open_time) {
            // A minute begins where the one before ended.
            let first = self.0.back().map_or(price, |before| before.prices[3]);
            self.0.push_back(Candle::begin(open_time, first));
            if self.0.len() > KEPT {
                self.0.pop_front();
            }
        }
        self.0.back_mut()
    }

    /// Takes the price and the premium of a moment.
    pub(super) fn see(&mut self, now: i64, price: Decimal, premium: Decimal) {
        if let Some(candle) = self.at(now, price) {
            candle.see(price);
            candle.premium = premium;
        }
    }

    /// Takes a trade; `taker` is the side that did not rest.
    pub(super) fn trade(&mut self, now: i64, (price, quantity): (Decimal, Decimal), taker: Side) {
        let Some(candle) = self.at(now, price) else { return };
        candle.see(price);
        candle.trades += 1;
        let add = |sum: &mut (Decimal, Decimal)| *sum = (sum.0 + quantity, sum.1 + quantity * price);
        add(&mut candle.volume);
        if taker == Side::Buy {
            add(&mut candle.bought);
        }
    }

    /// Candles of an interval, oldest first.
    pub fn by(&self, interval: i64) -> Vec<Candle> {
        let mut all: Vec<Candle> = Vec::new();
        for minute in &self.0 {
            let open_time = minute.open_time - minute.open_time.rem_euclid(interval);
            match all.last_mut().filter(|candle| candle.open_time == open_time) {
                Some(candle) => *candle = candle.with(minute),
                None => all.push(Candle { open_time, ..*minute }),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dec(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn minutes_become_candles_of_any_interval() {
        let mut candles = Candles::default();
        for (second, price) in [(0, "100"), (30, "103"), (59, "99"), (61, "101")] {
            candles.see(second * 1_000, dec(price), Decimal::ZERO);
        }
        candles.trade(62_000, (dec("104"), dec("2")), Side::Buy);
        candles.trade(63_000, (dec("102"), dec("1")), Side::Sell);
        candles.see(130_000, dec("98"), Decimal::ZERO);
        let minutes = candles.by(60_000);
        let prices: Vec<[Decimal; 4]> = minutes.iter().map(|candle| candle.prices).collect();
        assert_eq!(prices[0], [dec("100"), dec("103"), dec("99"), dec("99")]);
        assert_eq!(
            prices[1],
            [dec("99"), dec("104"), dec("99"), dec("102")],
            "from where the one before ended"
        );
        assert_eq!(prices[2], [dec("102"), dec("102"), dec("98"), dec("98")]);
        let [all] = candles.by(300_000)[..] else { panic!() };
        assert_eq!((all.open_time, all.prices), (0, [dec("100"), dec("104"), dec("98"), dec("98")]));
        assert_eq!((all.volume, all.bought), ((dec("3"), dec("310")), (dec("2"), dec("208"))));
        assert_eq!(all.trades, 2);
    }
}
