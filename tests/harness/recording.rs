//! Recordings: the one that `DELTAPLANE_RECORDING` names, else a small one made here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use deltaplane_types::Decimal;
use deltaplane_venue_fapi::{BookSync, fold_frame, wire};
use deltaplane_venue_sim::Recording;

/// The recording that tests replay; made in `folder` where none is named.
pub fn recording(folder: &Path) -> PathBuf {
    match std::env::var_os("DELTAPLANE_RECORDING").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => {
            let path = folder.join("synthetic.txt");
            std::fs::write(&path, synthetic(4_000)).expect("the test's folder can be written");
            path
        }
    }
}

/// Whether the recording is the small one.
pub fn is_synthetic() -> bool {
    std::env::var_os("DELTAPLANE_RECORDING").is_none_or(|path| path.is_empty())
}

/// The middle of the best bid and ask at every so many nanoseconds of a recording, from its first snapshot on.
pub fn mids(path: &Path, every_ns: i64) -> Vec<Decimal> {
    let (mut book, mut mids, mut due) = (BookSync::default(), Vec::new(), None);
    for frame in Recording::open(path).expect("a recording") {
        let frame = frame.expect("a frame");
        let Some(stream) = &frame.stream else {
            let snapshot: wire::DepthSnapshot = serde_json::from_str(&frame.data).expect("a snapshot");
            book.on_snapshot(&snapshot);
            continue;
        };
        fold_frame(&mut book, &format!(r#"{{"stream":"{stream}","data":{}}}"#, frame.data)).expect("a frame");
        if due.is_some_and(|due| frame.received_ns < due) {
            continue;
        }
        let (bids, asks) = book.levels();
        if let (Some(bid), Some(ask)) = (bids.first(), asks.first()) {
            mids.push((bid.price.value() + ask.price.value()) / Decimal::TWO);
            due = Some(due.unwrap_or(frame.received_ns) + every_ns);
        }
    }
    mids
}

/// Frames of a walking book, ten milliseconds apart, with the snapshot a little after the beginning.
pub fn synthetic(frames: u64) -> String {
    let mut text = String::new();
    let (mut state, mut mid, mut id) = (88_172_645_463_325_252_u64, 618_000_i64, 1_000_u64);
    let mut random = move |most: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % most
    };
    let price = |ticks: i64| format!("{}.{}0", ticks / 10, ticks % 10);
    for frame in 0..frames {
        let at = 1_723_161_255_000_000_000 + frame * 10_000_000;
        if frame == 20 {
            let side = |direction: i64| {
                let level = |step: i64| format!("[\"{}\",\"5.000\"]", price(mid + direction * step));
                (1..=200).map(level).collect::<Vec<_>>().join(",")
            };
            let (bids, asks) = (side(-1), side(1));
            let _ =
                writeln!(text, r#"{at} {{"lastUpdateId":{id},"E":1,"T":1,"bids":[{bids}],"asks":[{asks}]}}"#);
            continue;
        }
        mid += i64::try_from(random(5)).unwrap_or(0) - 2;
        let (previous, first) = (id, id + 1);
        id += 3;
        let millis = at / 1_000_000;
        // The best levels move with the middle; what lies on the wrong side of it goes.
        let gone = |direction: i64| {
            let level = |step: i64| format!("[\"{}\",\"0.000\"]", price(mid + direction * step));
            (0..4).map(level).collect::<Vec<_>>().join(",")
        };
        let new = |direction: i64, random: &mut dyn FnMut(u64) -> u64| {
            let level =
                |step: i64| format!("[\"{}\",\"{}.000\"]", price(mid + direction * step), 1 + random(9));
            (1..=3).map(level).collect::<Vec<_>>().join(",")
        };
        let (bids, asks) = (new(-1, &mut random), new(1, &mut random));
        let _ = writeln!(
            text,
            r#"{at} {{"stream":"btcusdt@depth@0ms","data":{{"e":"depthUpdate","E":{millis},"T":{millis},"s":"BTCUSDT","U":{first},"u":{id},"pu":{previous},"b":[{},{bids}],"a":[{},{asks}]}}}}"#,
            gone(1),
            gone(-1),
        );
    }
    text
}
