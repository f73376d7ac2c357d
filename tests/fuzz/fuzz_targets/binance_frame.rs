//! Any frame or body of Binance's or Aster's is folded, read or refused; nothing panics.
#![no_main]

use deltaplane_venue_fapi::{BookSync, fold_frame, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut book = BookSync::default();
    if let Ok(snapshot) = wire::depth_snapshot(text) {
        book.on_snapshot(&snapshot);
    }
    let _ = fold_frame(&mut book, text);
    let _ = book.top(50);
    let _ = serde_json::from_str::<wire::ErrorBody<'_>>(text);
    let _ = serde_json::from_str::<wire::OrderAnswer>(text);
    let _ = serde_json::from_str::<wire::Account>(text);
    let _ = serde_json::from_str::<wire::PositionRisk>(text);
    let _ = serde_json::from_str::<wire::UserTrade>(text);
    let _ = serde_json::from_str::<wire::OrderTradeUpdate>(text);
    let _ = serde_json::from_str::<wire::AccountUpdate>(text);
});
