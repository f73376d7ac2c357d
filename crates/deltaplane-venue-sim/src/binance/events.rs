//! User events.

use deltaplane_types::Decimal;
use serde_json::{Value, json};

use super::{algo, render};
use crate::core::{Event, Exchange, ExecutionType};

/// The events that one change tells: account, type, JSON.
pub(crate) fn render(exchange: &Exchange, event: &Event, now: i64) -> Vec<(String, &'static str, String)> {
    let told = values(exchange, event, now);
    told.into_iter().map(|(account, kind, json)| (account, kind, json.to_string())).collect()
}

/// The same before it is written.
pub(crate) fn values(exchange: &Exchange, event: &Event, now: i64) -> Vec<(String, &'static str, Value)> {
    match event {
        Event::Order { order, execution: ExecutionType::Triggered } if !exchange.rules.conditionals_apart => {
            // The stop ends, and a plain order of the same id begins.
            let ended = Event::Order { order: order.clone(), execution: ExecutionType::Expired };
            values(exchange, &ended, now)
        }
        Event::Order { order, execution }
            if exchange.is_apart(order) || matches!(execution, ExecutionType::Triggered) =>
        {
            let told = order.trigger.as_ref().map(|trigger| algo::event(order, trigger, now));
            told.into_iter().map(|json| (order.account.clone(), "ALGO_UPDATE", json)).collect()
        }
        Event::Order { order, execution } => {
            let (kind, trade) = match execution {
                ExecutionType::New | ExecutionType::Triggered => ("NEW", None),
                ExecutionType::Trade(trade) => ("TRADE", Some(trade)),
                ExecutionType::Canceled => ("CANCELED", None),
                ExecutionType::Expired => ("EXPIRED", None),
                ExecutionType::Amendment => ("AMENDMENT", None),
                ExecutionType::Calculated(trade) => ("CALCULATED", Some(trade)),
            };
            let zero = Decimal::ZERO;
            let mut o = json!({
                "s": order.symbol, "c": order.client_id, "S": render::side(order.side),
                "o": if kind == "CALCULATED" { "LIQUIDATION" } else { render::kind(order.kind) },
                "f": render::time_in_force(order.time_in_force), "q": order.quantity.to_string(),
                "p": order.price.to_string(), "ap": order.average_price().round_dp(8).to_string(), "sp": "0", "x": kind,
                "X": render::status(order.status), "i": order.id,
                "l": trade.map_or(zero, |t| t.quantity).to_string(), "z": order.executed.to_string(),
                "L": trade.map_or(zero, |t| t.price).to_string(), "T": order.updated,
                "t": trade.map_or(0, |t| t.id), "b": "0", "a": "0", "m": trade.is_some_and(|t| t.maker),
                "R": order.reduce_only, "wt": "CONTRACT_PRICE", "ot": render::kind(order.kind),
                "ps": render::position_side(order.position_side), "cp": false,
                "rp": trade.map_or(zero, |t| t.realized).to_string(), "pP": false, "si": 0, "ss": 0,
                "V": "EXPIRE_MAKER", "pm": "NONE", "gtd": order.good_till, "er": render::expiry(order.expiry),
            });
            let mut told = Vec::new();
            if let Some(trade) = trade {
                o["n"] = trade.fee.to_string().into();
                o["N"] = trade.fee_asset.into();
                let lite = json!({
                    "e": "TRADE_LITE", "E": now, "T": trade.time, "s": order.symbol, "q": order.quantity.to_string(),
                    "p": order.price.to_string(), "m": trade.maker, "c": order.client_id, "S": render::side(order.side),
                    "L": trade.price.to_string(), "l": trade.quantity.to_string(), "t": trade.id, "i": order.id,
                });
                told.push((order.account.clone(), "TRADE_LITE", lite));
            }
            let update = json!({"e": "ORDER_TRADE_UPDATE", "E": now, "T": order.updated, "o": o});
            told.push((order.account.clone(), "ORDER_TRADE_UPDATE", update));
            told
        }
        Event::Account { account, reason, wallet, balance_change, positions } => {
            let rows: Vec<_> = positions
                .iter()
                .map(|(symbol, side, held)| {
                    let mark = exchange.markets.get(symbol).map_or(held.entry, |market| market.mark);
                    json!({
                        "s": symbol, "pa": held.amount.to_string(), "ep": held.entry.round_dp(8).to_string(),
                        "bep": held.entry.round_dp(8).to_string(), "cr": held.realized.round_dp(8).to_string(),
                        "up": held.unrealized(mark).round_dp(8).to_string(), "mt": "cross", "iw": "0",
                        "ps": render::position_side(*side),
                    })
                })
                .collect();
            let wallet = wallet.round_dp(8).to_string();
            let update = json!({
                "e": "ACCOUNT_UPDATE", "E": now, "T": now,
                "a": {"m": reason, "B": [{"a": "USDT", "wb": wallet, "cw": wallet, "bc": balance_change.round_dp(8).to_string()}], "P": rows},
            });
            vec![(account.clone(), "ACCOUNT_UPDATE", update)]
        }
        Event::Leverage { account, symbol, leverage } => {
            let update =
                json!({"e": "ACCOUNT_CONFIG_UPDATE", "E": now, "T": now, "ac": {"s": symbol, "l": leverage}});
            vec![(account.clone(), "ACCOUNT_CONFIG_UPDATE", update)]
        }
        Event::Funding { .. } => Vec::new(),
    }
}
