//! Any frame is folded or refused; nothing panics.
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
});
