//! Any frame or body is read or refused; nothing panics.
#![no_main]

use deltaplane_venue_pacifica::{TopOfBook, wire};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = wire::Failure::read(text.as_bytes());
    let _ = wire::answer::<wire::Account>(text.as_bytes());
    let _ = wire::answer::<Vec<wire::PastTrade>>(text.as_bytes());
    let Ok(frame) = serde_json::from_str::<wire::Frame<'_>>(text) else { return };
    let Some(data) = frame.data else { return };
    let _ = serde_json::from_str::<Vec<wire::OrderUpdate>>(data.get());
    let _ = serde_json::from_str::<Vec<wire::TradeUpdate>>(data.get());
    let _ = serde_json::from_str::<Vec<wire::PositionUpdate>>(data.get());
    let mut top = TopOfBook::default();
    if let Ok(book) = serde_json::from_str(data.get()) {
        top.on_book(book);
    }
    if let Ok(best) = serde_json::from_str(data.get()) {
        top.on_best(best);
    }
    let _ = top.venue_time();
});
