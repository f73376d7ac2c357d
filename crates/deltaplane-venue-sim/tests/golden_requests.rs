//! Requests that independent clients really send, byte for byte, with the clock frozen at their time.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use deltaplane_types::Decimal;
use deltaplane_venue_sim::config::{AccountConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::{Dialect, Market, Running, SimClock, SimOptions, start};
use serde_json::Value;
use support::{Plain, code, flipped};

async fn exchange(data: &Value) -> Running {
    let (key, secret) = (data["key"]["api_key"].as_str().unwrap(), data["key"]["secret"].as_str().unwrap());
    let account = AccountConfig::new("golden", key, secret);
    let mut config = ExchangeConfig::with_accounts(Dialect::Binance, vec![account]);
    config.symbols[0].start_price = Exact(Decimal::from(95_000));
    let at = data["frozen_clock_ms"].as_i64().unwrap();
    let clock = SimClock::Frozen(Arc::new(AtomicI64::new(at)));
    let market = Market::Synthetic { seed: 1, venue: 1, mark: Some(Decimal::from(95_000)) };
    let options = SimOptions::new(Dialect::Binance, config, clock, market);
    start(options, "127.0.0.1:0".parse().unwrap(), None).await.unwrap()
}

/// Sends the bytes of a recorded request; gives status and body.
async fn send(running: &Running, key: &str, vector: &Value, query: &str, body: &str) -> (u16, String) {
    let text = |name: &str| vector[name].as_str().unwrap_or_default().to_owned();
    let target = if query.is_empty() { text("path") } else { format!("{}?{query}", text("path")) };
    let headers = match vector["content_type"].as_str() {
        Some(content_type) => format!("X-MBX-APIKEY: {key}\r\nContent-Type: {content_type}\r\n"),
        None => format!("X-MBX-APIKEY: {key}\r\n"),
    };
    let method = text("method");
    support::send(running, &Plain { method: &method, target: &target, headers: &headers, body }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_requests_pass_key_time_and_signature_and_altered_ones_do_not() {
    let data: Value = serde_json::from_str(include_str!("data/golden_binance.json")).unwrap();
    let running = exchange(&data).await;
    let key = data["key"]["api_key"].as_str().unwrap();
    let vectors = data["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 40);
    let mut placed = 0;
    for vector in vectors {
        let text = |name: &str| vector[name].as_str().unwrap();
        let name = format!("{} {}", text("client"), text("op"));
        let (query, body, signature) = (text("query"), text("body"), text("signature"));
        // One bit of the signature, of the signed text and of the key.
        let flipped = flipped(signature);
        let (status, answer) = send(
            &running,
            key,
            vector,
            &query.replace(signature, &flipped),
            &body.replace(signature, &flipped),
        )
        .await;
        assert_eq!((status, code(&answer)), (400, Some(-1022)), "{name}: {answer}");
        let changed = |part: &str| part.replace("timestamp=1750000000000", "timestamp=1750000000001");
        let (_, answer) = send(&running, key, vector, &changed(query), &changed(body)).await;
        assert_eq!(code(&answer), Some(-1022), "{name}: {answer}");
        let (status, answer) = send(&running, &key.replace('d', "e"), vector, query, body).await;
        assert_eq!((status, code(&answer)), (401, Some(-2015)), "{name}: {answer}");
        let (status, answer) = send(&running, key, vector, query, body).await;
        assert!(!matches!(code(&answer), Some(-1021 | -1022 | -1102 | -2014 | -2015)), "{name}: {answer}");
        if vector["path"] == "/fapi/v1/order" && vector["method"] == "POST" {
            placed += 1;
            let expected = match text("op") {
                // A notional below the minimum is the order's own rule.
                "err_min_notional" => Some(-4164),
                _ => None,
            };
            assert_eq!(code(&answer), expected, "{name}: {status} {answer}");
        }
    }
    assert_eq!(placed, 9);
}
