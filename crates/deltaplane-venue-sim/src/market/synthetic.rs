//! A seeded market: one course for all exchanges, a spread of each that returns to zero, realistic depth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_types::Decimal;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use crate::core::Command;
use crate::sim::{Frame, Sim, lock};

const TICK: Duration = Duration::from_millis(100);
const LEVELS: i64 = 25;
/// Steps of the course between two prices of the book.
const GAP: i64 = 4;
/// Dollars of one unit of what rests.
const UNIT: i64 = 66;
/// Steps of the course in the price at the start: exchanges with other ticks have the same course.
const STEPS: i64 = 660_000;

struct Course {
    course: ChaCha8Rng,
    own: ChaCha8Rng,
    /// Distance from the start, in steps.
    common: i64,
    /// Distance from the course, in steps.
    spread: i64,
    start: Decimal,
    published: (BTreeMap<Decimal, Decimal>, BTreeMap<Decimal, Decimal>),
    update_id: u64,
    trades: u64,
}

/// A number of the coin, the same on every exchange whatever it lists the coin by.
fn coin(base: &str) -> u64 {
    let name = base.trim_start_matches("1000").trim_start_matches('k');
    name.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

type Levels = Vec<(Decimal, Decimal)>;

pub(super) async fn run(sim: Arc<Sim>, seed: u64, venue: u64, mark: Option<Decimal>) {
    let mut courses: BTreeMap<String, Course> = BTreeMap::new();
    let symbols = sim
        .with(|exchange| exchange.markets.values().map(|market| market.config.clone()).collect::<Vec<_>>());
    for config in &symbols {
        let start = config.start_price.0;
        let mix = coin(&config.base);
        courses.insert(
            config.name.clone(),
            Course {
                course: ChaCha8Rng::seed_from_u64(seed.wrapping_add(mix)),
                own: ChaCha8Rng::seed_from_u64(
                    venue.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed ^ mix),
                ),
                common: 0,
                spread: 0,
                start,
                published: (BTreeMap::new(), BTreeMap::new()),
                update_id: 1_000_000,
                trades: 3_000_000,
            },
        );
    }
    let mut ticker = tokio::time::interval(TICK);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 0_u64.. {
        ticker.tick().await;
        for config in &symbols {
            let Some(course) = courses.get_mut(&config.name) else { continue };
            let fixed = lock(&sim.fixed_prices).get(&config.name).copied().or(mark);
            let tick = config.tick_size.0;
            let (bids, asks) = course.next(tick, config.step_size.0, fixed);
            publish_depth(&sim, &config.name, course, bids, asks, fixed);
            if count.is_multiple_of(10) {
                publish_mark(&sim, &config.name);
            }
        }
        let _ = sim.apply(Command::Tick);
    }
}

impl Course {
    /// The book's levels after one step.
    fn next(&mut self, tick: Decimal, step: Decimal, fixed: Option<Decimal>) -> (Levels, Levels) {
        // The course is drawn in any case, so that it stays the same beside a fixed price.
        self.common +=
            self.course.random_range(-6..=6) - self.common.signum() * i64::from(self.common.abs() > 3_000);
        self.spread = self.spread * 9 / 10 + self.own.random_range(-4..=4);
        let step_size = self.start / Decimal::from(STEPS);
        let moved = self.start + Decimal::from(self.common + self.spread) * step_size;
        let middle = i64::try_from((fixed.unwrap_or(moved) / tick).floor()).unwrap_or(1);
        let gap = i64::try_from((Decimal::from(GAP) * step_size / tick).round()).unwrap_or(GAP).max(1);
        // What rests counts in units of some dollars, whole lots each: a finer lot makes no thinner book.
        let lots = (Decimal::from(UNIT) / self.start / step).floor().max(Decimal::ONE);
        let unit = lots * step;
        let mut side = |direction: i64| -> Levels {
            let mut levels = Vec::new();
            for level in 0..LEVELS {
                let price = middle + direction * (1 + level * gap);
                if price <= 0 {
                    break;
                }
                let most = 400 + level * 120;
                let quantity = unit * Decimal::from(self.own.random_range(60..=most));
                levels.push((Decimal::from(price) * tick, quantity));
            }
            levels
        };
        (side(-1), side(1))
    }
}

fn changes(before: &BTreeMap<Decimal, Decimal>, after: &BTreeMap<Decimal, Decimal>) -> Levels {
    let mut changed: Levels = after
        .iter()
        .filter(|(price, quantity)| before.get(price) != Some(quantity))
        .map(|(p, q)| (*p, *q))
        .collect();
    changed.extend(
        before.keys().filter(|price| !after.contains_key(price)).map(|price| (*price, Decimal::ZERO)),
    );
    changed
}

fn texts(levels: &Levels) -> Vec<[String; 2]> {
    levels.iter().map(|(price, quantity)| [price.to_string(), quantity.to_string()]).collect()
}

fn publish_depth(
    sim: &Sim,
    symbol: &str,
    course: &mut Course,
    bids: Levels,
    asks: Levels,
    mark: Option<Decimal>,
) {
    let now = sim.now();
    let after = (bids.iter().copied().collect(), asks.iter().copied().collect());
    let changed = (changes(&course.published.0, &after.0), changes(&course.published.1, &after.1));
    let previous = course.update_id;
    course.update_id += 1 + changed.0.len() as u64 + changed.1.len() as u64;
    course.published = after;
    let best = (bids.first().copied(), asks.first().copied());
    let command = Command::Market {
        symbol: symbol.to_owned(),
        bids,
        asks,
        update_id: course.update_id,
        reset: true,
        mark,
    };
    // A symbol that the exchange does not have cannot be here.
    let _ = sim.apply(command);
    let id = course.update_id;
    let lower: Arc<str> = symbol.to_lowercase().into();
    let depth = json!({
        "e": "depthUpdate", "E": now, "T": now, "s": symbol, "ps": symbol, "st": 1, "U": previous + 1, "u": id,
        "pu": previous, "b": texts(&changed.0), "a": texts(&changed.1),
    });
    let send = |channel, json: serde_json::Value| {
        let _ = sim.frames.send(Frame { symbol: lower.clone(), channel, json: json.to_string().into() });
    };
    if !lock(&sim.faults).drops_depth() {
        send("depth", depth);
    }
    if let (Some((bid, bid_quantity)), Some((ask, ask_quantity))) = best {
        send(
            "bookTicker",
            json!({
                "e": "bookTicker", "u": id, "E": now, "T": now, "s": symbol, "ps": symbol, "st": 1,
                "b": bid.to_string(), "B": bid_quantity.to_string(), "a": ask.to_string(), "A": ask_quantity.to_string(),
            }),
        );
        course.trades += 1;
        let trade = course.trades;
        send(
            "aggTrade",
            json!({
                "e": "aggTrade", "E": now, "s": symbol, "a": trade, "p": ask.to_string(), "q": "0.010", "nq": "0.010",
                "f": trade, "l": trade, "T": now, "m": false, "st": 1,
            }),
        );
    }
}

pub(super) fn publish_mark(sim: &Sim, symbol: &str) {
    let now = sim.now();
    let Some((mark, index, rate, next)) = sim.with(|exchange| {
        exchange
            .markets
            .get(symbol)
            .map(|market| (market.mark, market.index, market.config.funding_rate.0, market.next_funding))
    }) else {
        return;
    };
    let json = json!({
        "e": "markPriceUpdate", "E": now, "s": symbol, "p": mark.to_string(), "ap": mark.to_string(),
        "i": index.to_string(), "P": mark.to_string(), "r": rate.to_string(), "T": next, "st": 1,
    });
    let _ = sim.frames.send(Frame {
        symbol: symbol.to_lowercase().into(),
        channel: "markPrice",
        json: json.to_string().into(),
    });
}
