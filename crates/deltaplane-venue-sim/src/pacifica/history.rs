//! The past of a market and of an account's equity.

use deltaplane_types::Decimal;
use serde_json::{Value, json};

use super::errors::Refused;
use super::render;
use super::rest::{Query, need};
use crate::core::Candle;
use crate::sim::Sim;

const MINUTE: i64 = 60_000;

/// Intervals of candles by name.
const INTERVALS: [(&str, i64); 13] = [
    ("1m", MINUTE),
    ("3m", 3 * MINUTE),
    ("5m", 5 * MINUTE),
    ("15m", 15 * MINUTE),
    ("30m", 30 * MINUTE),
    ("1h", 60 * MINUTE),
    ("2h", 120 * MINUTE),
    ("4h", 240 * MINUTE),
    ("8h", 480 * MINUTE),
    ("12h", 720 * MINUTE),
    ("1d", 1_440 * MINUTE),
    ("1w", 10_080 * MINUTE),
    ("1M", 43_200 * MINUTE),
];

/// Candles that one answer holds at most.
const MOST_CANDLES: usize = 4_000;

fn integer(query: &Query, name: &str) -> Result<Option<i64>, Refused> {
    let text = query.get(name);
    text.map(|text| text.parse().map_err(|_| Refused::new(400, format!("invalid `{name}`")))).transpose()
}

/// Candles of trades, or of the mark price, which have no volume. Intervals without a trade are missing; an unknown symbol
/// has none.
pub(super) fn candles(sim: &Sim, query: &Query, of_mark: bool) -> Result<Vec<Value>, Refused> {
    let (symbol, name) = (need(query, "symbol")?, need(query, "interval")?);
    need(query, "start_time")?;
    let interval = INTERVALS.iter().find(|(known, _)| *known == name).map(|(_, millis)| *millis);
    let interval = interval.ok_or_else(|| Refused::new(400, "invalid `interval`"))?;
    let (start, end) = (integer(query, "start_time")?, integer(query, "end_time")?);
    let limit =
        integer(query, "limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MOST_CANDLES);
    let all = sim.with(|exchange| exchange.markets.get(symbol).map(|market| market.candles.by(interval)));
    let row = |candle: &Candle| {
        let [open, high, low, close] = candle.prices.map(render::dec);
        let volume = if of_mark { Decimal::ZERO } else { candle.volume.0 };
        json!({
            "t": candle.open_time, "T": candle.open_time + interval, "s": symbol, "i": name, "o": open, "c": close,
            "h": high, "l": low, "v": render::dec(volume), "n": if of_mark { 0 } else { candle.trades },
        })
    };
    let wanted = all.iter().flatten().filter(|candle| {
        let traded = of_mark || candle.trades > 0;
        traded
            && start.is_none_or(|start| candle.open_time >= start)
            && end.is_none_or(|end| candle.open_time <= end)
    });
    Ok(wanted.take(limit.min(MOST_CANDLES)).map(row).collect())
}

/// The newest hundred public trades of a symbol, newest first: of each trade the side that took.
pub(super) fn public_trades(sim: &Sim, query: &Query) -> Result<Vec<Value>, Refused> {
    let symbol = need(query, "symbol")?;
    Ok(sim.with(|exchange| {
        let taken = exchange.trades.iter().rev().filter(|trade| trade.symbol == symbol && !trade.maker);
        taken.take(100).map(render::public_trade).collect()
    }))
}

/// The account's equity now: the past is not kept here.
pub(super) fn portfolio(sim: &Sim, query: &Query) -> Result<Vec<Value>, Refused> {
    let range = need(query, "time_range")?;
    if !["1d", "7d", "14d", "30d", "all"].contains(&range) {
        return Err(Refused::new(400, "invalid `time_range`"));
    }
    let now = sim.now();
    let equity = super::rest::of_account(sim, query, |exchange, holder| {
        render::account(exchange, holder, now)["account_equity"].clone()
    })?;
    Ok(vec![json!({"account_equity": equity, "pnl": "0", "timestamp": now})])
}
