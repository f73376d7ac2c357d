//! User events, where they differ from Binance's.

use serde_json::Value;

use crate::core::{Event, Exchange};

/// The events that one change tells: account, type, JSON.
pub(crate) fn render(exchange: &Exchange, event: &Event, now: i64) -> Vec<(String, &'static str, String)> {
    let told = crate::binance::events::values(exchange, event, now);
    // There is no short form of a trade here.
    let kept = told.into_iter().filter(|(_, kind, _)| *kind != "TRADE_LITE");
    kept.map(|(account, kind, mut json)| {
        if let Some(order) = json.get_mut("o").and_then(Value::as_object_mut) {
            for name in ["V", "pm", "gtd", "er"] {
                order.remove(name);
            }
            order.insert("h".to_owned(), format!("0x{:064x}", order["i"].as_u64().unwrap_or(0)).into());
            order.insert("st".to_owned(), "".into());
        }
        if let Some(rows) = json.pointer_mut("/a/P").and_then(Value::as_array_mut) {
            for row in rows.iter_mut().filter_map(Value::as_object_mut) {
                row.remove("bep");
                row.insert("ma".to_owned(), "USDT".into());
            }
        }
        (account, kind, json.to_string())
    })
    .collect()
}
