//! Every wire decoder reads or refuses what it gets; nothing panics.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_venue_fapi::{BookSync, fold_frame, wire};
use proptest::prelude::*;

/// Answers of the venue's own documentation, to be damaged.
const SAMPLES: [&str; 8] = [
    r#"{"stream":"btcusdt@depth","data":{"e":"depthUpdate","E":1795312345101,"T":1795312345097,"s":"BTCUSDT","U":8123456790,"u":8123456850,"pu":8123456789,"b":[["60999.90","4.110"]],"a":[["61000.00","0.000"]]}}"#,
    r#"{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":8123456789,"E":1795312345001,"T":1795312344999,"s":"BTCUSDT","b":"60999.90","B":"4.210","a":"61000.00","A":"1.003"}}"#,
    r#"{"lastUpdateId":5,"E":1,"T":1,"bids":[["60999.90","4.110"]],"asks":[["61000.00","1.000"]]}"#,
    r#"{"orderId":22542179,"symbol":"BTCUSDT","status":"PARTIALLY_FILLED","clientOrderId":"dn-7f3a","price":"61000.00","avgPrice":"61000.00000","origQty":"0.010","executedQty":"0.004","updateTime":1795312345690}"#,
    r#"{"symbol":"BTCUSDT","positionSide":"BOTH","positionAmt":"-0.250","entryPrice":"61200.0","liquidationPrice":"98211.12"}"#,
    r#"[{"symbol":"BTCUSDT","brackets":[{"bracket":1,"initialLeverage":125,"notionalCap":300000,"notionalFloor":0,"maintMarginRatio":0.004,"cum":0.0}]}]"#,
    r#"{"id":501234567,"orderId":22542179,"side":"BUY","price":"61000.00","qty":"0.004","commission":"0.04880000","time":1795312345688}"#,
    r#"{"filterType":"LOT_SIZE","minQty":"0.001","maxQty":"1000","stepSize":"0.001"}"#,
];

fn decode_all(text: &str) {
    let mut book = BookSync::default();
    if let Ok(snapshot) = wire::depth_snapshot(text) {
        book.on_snapshot(&snapshot);
    }
    let _ = fold_frame(&mut book, text);
    let _ = book.top(50);
    let _ = serde_json::from_str::<wire::OrderAnswer>(text);
    let _ = serde_json::from_str::<wire::Account>(text);
    let _ = serde_json::from_str::<wire::PositionRisk>(text);
    let _ = serde_json::from_str::<Vec<wire::LeverageBracket>>(text);
    let _ = serde_json::from_str::<wire::UserTrade>(text);
    let _ = serde_json::from_str::<wire::OrderTradeUpdate>(text);
    let _ = serde_json::from_str::<wire::AccountUpdate>(text);
    let _ = serde_json::from_str::<wire::Filter>(text);
    let _ = serde_json::from_str::<wire::ExchangeInfo>(text);
}

#[test]
fn documented_samples_are_read() {
    assert!(fold_frame(&mut BookSync::default(), SAMPLES[0]).unwrap().is_some());
    assert!(fold_frame(&mut BookSync::default(), SAMPLES[1]).unwrap().is_some());
    assert!(wire::depth_snapshot(SAMPLES[2]).is_ok());
    let order: wire::OrderAnswer = serde_json::from_str(SAMPLES[3]).unwrap();
    assert_eq!(order.executed_qty.0.to_string(), "0.004");
    assert!(serde_json::from_str::<wire::PositionRisk>(SAMPLES[4]).is_ok());
    let brackets: Vec<wire::LeverageBracket> = serde_json::from_str(SAMPLES[5]).unwrap();
    assert_eq!(brackets[0].brackets[0].maint_margin_ratio.0.to_string(), "0.004");
    assert!(serde_json::from_str::<wire::UserTrade>(SAMPLES[6]).is_ok());
    assert!(serde_json::from_str::<wire::Filter>(SAMPLES[7]).is_ok());
}

/// Zero, an empty string and a missing field are three cases.
#[test]
fn a_missing_number_stays_missing() {
    let order = |average: &str| {
        let text = format!(
            r#"{{"orderId":1,"clientOrderId":"a","status":"NEW","executedQty":"0"{average},"updateTime":1}}"#
        );
        let read = serde_json::from_str::<wire::OrderAnswer>(&text);
        read.map(|order| order.avg_price.map(|price| price.0.is_zero()))
    };
    assert_eq!(order("").unwrap(), None);
    assert_eq!(order(r#","avgPrice":"0.0""#).unwrap(), Some(true));
    assert!(order(r#","avgPrice":"""#).is_err());
}

proptest! {
    #[test]
    fn damaged_messages_are_read_or_refused(
        which in 0..SAMPLES.len(), at in 0_usize..400, with in any::<char>(), cut in any::<bool>()
    ) {
        let mut chars: Vec<char> = SAMPLES[which].chars().collect();
        let at = at % chars.len();
        if cut { chars.truncate(at) } else { chars[at] = with }
        decode_all(&chars.into_iter().collect::<String>());
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        decode_all(&text);
    }
}
