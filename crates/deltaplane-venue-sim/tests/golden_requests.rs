//! Requests that independent clients really send, byte for byte, with the clock frozen at their time.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use deltaplane_types::Decimal;
use deltaplane_venue_sim::config::{AccountConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::{Market, Running, SimClock, SimOptions, start};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn exchange(data: &Value) -> Running {
    let account = AccountConfig {
        id: "golden".to_owned(),
        api_key: data["key"]["api_key"].as_str().unwrap().to_owned(),
        secret: data["key"]["secret"].as_str().unwrap().to_owned(),
        wallet: Exact(Decimal::from(100_000)),
        hedge_mode: false,
        leverage: 10,
        can_trade: true,
        positions: std::collections::BTreeMap::new(),
    };
    let mut config = ExchangeConfig::with_accounts(vec![account]);
    config.symbols[0].start_price = Exact(Decimal::from(95_000));
    let at = data["frozen_clock_ms"].as_i64().unwrap();
    let options = SimOptions {
        config,
        clock: SimClock::Frozen(Arc::new(AtomicI64::new(at))),
        market: Market::Synthetic { seed: 1, venue: 1, mark: Some(Decimal::from(95_000)) },
        latency: Duration::ZERO,
    };
    start(options, "127.0.0.1:0".parse().unwrap(), None).await.unwrap()
}

/// Sends the bytes of a recorded request; gives status and body.
async fn send(running: &Running, key: &str, vector: &Value, query: &str, body: &str) -> (u16, String) {
    let address = running.rest().replace("http://", "");
    let text = |name: &str| vector[name].as_str().unwrap_or_default().to_owned();
    let target = if query.is_empty() { text("path") } else { format!("{}?{query}", text("path")) };
    let content_type = match vector["content_type"].as_str() {
        Some(content_type) => format!("Content-Type: {content_type}\r\n"),
        None => String::new(),
    };
    let request = format!(
        "{} {target} HTTP/1.1\r\nHost: {address}\r\nX-MBX-APIKEY: {key}\r\n{content_type}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        text("method"),
        body.len()
    );
    let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let status = answer[9..12].parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn code(body: &str) -> Option<i64> {
    serde_json::from_str::<Value>(body).ok()?["code"].as_i64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_requests_pass_key_time_and_signature_and_altered_ones_do_not() {
    let data: Value = serde_json::from_str(include_str!("data/golden_binance.json")).unwrap();
    let running = exchange(&data).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let key = data["key"]["api_key"].as_str().unwrap();
    let vectors = data["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 40);
    let mut placed = 0;
    for vector in vectors {
        let text = |name: &str| vector[name].as_str().unwrap();
        let name = format!("{} {}", text("client"), text("op"));
        let (query, body, signature) = (text("query"), text("body"), text("signature"));
        // One bit of the signature, of the signed text and of the key.
        let last = signature.chars().last().unwrap();
        let flipped = format!("{}{}", &signature[..signature.len() - 1], if last == '0' { '1' } else { '0' });
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
