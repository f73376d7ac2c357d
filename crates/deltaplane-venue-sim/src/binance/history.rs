//! What happened on a market, for everybody: candles, trades, open interest.

use serde_json::{Value, json};

use super::params::Params;
use super::rest::symbol;
use crate::core::{Candle, Reject, Trade};
use crate::sim::Sim;
use deltaplane_types::{Decimal, Side};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Intervals of candles by name. Of a month nothing begins as early as that here: it counts 30 days.
const INTERVALS: [(&str, i64); 15] = [
    ("1m", MINUTE),
    ("3m", 3 * MINUTE),
    ("5m", 5 * MINUTE),
    ("15m", 15 * MINUTE),
    ("30m", 30 * MINUTE),
    ("1h", HOUR),
    ("2h", 2 * HOUR),
    ("4h", 4 * HOUR),
    ("6h", 6 * HOUR),
    ("8h", 8 * HOUR),
    ("12h", 12 * HOUR),
    ("1d", DAY),
    ("3d", 3 * DAY),
    ("1w", 7 * DAY),
    ("1M", 30 * DAY),
];

/// The candles that a request asks for: from a start the first ones, else the newest.
fn candles(sim: &Sim, params: &Params) -> Result<(Vec<Candle>, i64), Reject> {
    let wanted = params.need("interval")?;
    let interval = INTERVALS.iter().find(|(name, _)| *name == wanted).map(|(_, millis)| *millis);
    let interval = interval.ok_or_else(|| Reject::new(-1120, "Invalid interval."))?;
    let limit = params.limit(500, 1_500)?;
    let (start, end) = (params.integer("startTime")?, params.integer("endTime")?);
    let mut all = sim.with(|exchange| {
        let symbol = symbol(exchange, params)?;
        Ok::<_, Reject>(exchange.markets[symbol].candles.by(interval))
    })?;
    all.retain(|candle| start.is_none_or(|start| candle.open_time >= start));
    all.retain(|candle| end.is_none_or(|end| candle.open_time <= end));
    let surplus = all.len().saturating_sub(limit);
    if start.is_some() {
        all.truncate(limit);
    } else {
        all.drain(..surplus);
    }
    Ok((all, interval))
}

pub(crate) fn klines(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let (candles, interval) = candles(sim, params)?;
    let row = |candle: &Candle| {
        let [open, high, low, close] = candle.prices.map(|price| price.to_string());
        json!([
            candle.open_time,
            open,
            high,
            low,
            close,
            candle.volume.0.to_string(),
            candle.open_time + interval - 1,
            candle.volume.1.to_string(),
            candle.trades,
            candle.bought.0.to_string(),
            candle.bought.1.to_string(),
            "0",
        ])
    };
    Ok(candles.iter().map(row).collect())
}

pub(crate) fn premium_klines(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let (candles, interval) = candles(sim, params)?;
    let row = |candle: &Candle| {
        let premium = candle.premium.round_dp(8).to_string();
        let close_time = candle.open_time + interval - 1;
        json!([candle.open_time, premium, premium, premium, premium, "0", close_time, "0", 12, "0", "0", "0"])
    };
    Ok(candles.iter().map(row).collect())
}

/// Trades of a symbol, each once: both sides of a trade between accounts have a row of their own, of which the one that
/// took counts.
fn public(sim: &Sim, params: &Params) -> Result<Vec<Trade>, Reject> {
    sim.with(|exchange| {
        let symbol = symbol(exchange, params)?;
        Ok(exchange.trades.iter().filter(|trade| trade.symbol == symbol && !trade.maker).cloned().collect())
    })
}

fn id(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn trade_row(trade: &Trade) -> Value {
    json!({
        "id": trade.id, "price": trade.price.to_string(), "qty": trade.quantity.to_string(),
        "quoteQty": (trade.price * trade.quantity).to_string(), "time": trade.time,
        "isBuyerMaker": trade.side == Side::Sell,
    })
}

/// The newest trades.
pub(crate) fn trades(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let (all, limit) = (public(sim, params)?, params.limit(500, 1_000)?);
    Ok(all[all.len().saturating_sub(limit)..].iter().map(trade_row).collect())
}

/// Trades from an id on, else the newest.
pub(crate) fn historical_trades(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let (all, limit) = (public(sim, params)?, params.limit(100, 1_000)?);
    let Some(from) = params.integer("fromId")? else {
        return Ok(all[all.len().saturating_sub(limit)..].iter().map(trade_row).collect());
    };
    Ok(all.iter().filter(|trade| id(trade.id) >= from).take(limit).map(trade_row).collect())
}

/// Trades of one taker at one price and time as one; here each has a row of its own.
pub(crate) fn agg_trades(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let (mut all, limit) = (public(sim, params)?, params.limit(500, 1_000)?);
    let (from, start, end) =
        (params.integer("fromId")?, params.integer("startTime")?, params.integer("endTime")?);
    all.retain(|trade| from.is_none_or(|from| id(trade.id) >= from));
    all.retain(|trade| start.is_none_or(|start| trade.time >= start));
    all.retain(|trade| end.is_none_or(|end| trade.time <= end));
    if from.is_none() && start.is_none() {
        all.drain(..all.len().saturating_sub(limit));
    }
    let row = |trade: &Trade| {
        json!({
            "a": trade.id, "p": trade.price.to_string(), "q": trade.quantity.to_string(), "f": trade.id,
            "l": trade.id, "T": trade.time, "m": trade.side == Side::Sell,
        })
    };
    Ok(all.iter().take(limit).map(row).collect())
}

/// What all longs hold.
pub(crate) fn open_interest(sim: &Sim, _: &str, params: &Params) -> Result<Value, Reject> {
    let now = sim.now();
    sim.with(|exchange| {
        let symbol = symbol(exchange, params)?;
        let held = exchange.accounts.values().flat_map(|account| &account.positions);
        let longs = held.filter(|((of, _), position)| of == symbol && position.amount > Decimal::ZERO);
        let sum: Decimal = longs.map(|(_, position)| position.amount).sum();
        Ok(json!({"symbol": symbol, "openInterest": sum.to_string(), "time": now}))
    })
}
