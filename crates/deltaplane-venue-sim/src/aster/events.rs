//! User events, where they differ from Binance's.

use serde_json::Value;

use crate::binance::algo;
use crate::core::{Event, Exchange, ExecutionType, Status};

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
            if let Event::Order { order: told, execution } = event
                && let Some(trigger) = &told.trigger
            {
                let waits = told.status == Status::Waiting || matches!(execution, ExecutionType::Triggered);
                if waits {
                    order.insert("o".to_owned(), algo::type_name(told).into());
                }
                order.insert("ot".to_owned(), algo::type_name(told).into());
                order.insert("sp".to_owned(), trigger.price.to_string().into());
                order.insert("cp".to_owned(), trigger.closes_position.into());
                order.insert("wt".to_owned(), algo::working_type(trigger).into());
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
