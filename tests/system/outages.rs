//! Every answer while one thing after another is out: a number that is not known is null and no zero.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_tests::until_within;
use serde_json::{Value, json};

use crate::paper::{PaperExchange, Server};

/// Paths that may well come to zero: counts and times of what goes on.
const COUNTS: [&str; 9] = [
    "operationsLastMinute",
    "activeAccounts",
    "latency",
    "executionTime",
    "stateAge",
    "memoryUsage",
    "cpuUsage",
    "syncTime",
    "age",
];

const BODY: &str = r#"{"targetDelta": 0.0, "accounts": ["pacifica-main", "aster-hedge", "binance-backup"], "maxDeviation": 0.1, "symbol": "BTC-USD", "dryRun": true}"#;

/// All numbers of an answer by their paths. Elements of lists are named by what they are about.
fn numbers(value: &Value, path: String, found: &mut BTreeMap<String, f64>) {
    match value {
        Value::Number(number) => drop(found.insert(path, number.as_f64().unwrap())),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let named = ["accountId", "symbol", "feed", "id", "name", "venue"];
                let name = named.iter().find_map(|name| item[*name].as_str().map(str::to_owned));
                numbers(item, format!("{path}[{}]", name.unwrap_or_else(|| index.to_string())), found);
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                numbers(item, format!("{path}.{name}"), found);
            }
        }
        _ => {}
    }
}

async fn answers(server: &Server) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for path in [
        "/api/v1/portfolio",
        "/api/v1/accounts",
        "/api/v1/funding",
        "/api/v1/market/feeds",
        "/api/v1/risk/metrics/pacifica-main",
        "/api/v1/risk/metrics/aster-hedge",
        "/api/v1/risk/metrics/binance-backup",
    ] {
        numbers(&server.get(path).await.1, path.to_owned(), &mut found);
    }
    for (path, body) in [
        ("/api/v1/delta/control", BODY.to_owned()),
        ("/api/v1/hedge/execute", hedge()),
        (
            "/api/v1/delta/flatten",
            json!({"symbol": "BTC-USD", "accounts": all(), "dryRun": true}).to_string(),
        ),
        ("/api/v1/utilization/rebalance", rebalance()),
        ("/api/v1/account/sync", json!({"accounts": all(), "timeout": 1_000}).to_string()),
        ("/api/v1/risk/stress", "{}".to_owned()),
    ] {
        numbers(&server.post(path, &[], body).await.1, path.to_owned(), &mut found);
    }
    found
}

fn all() -> [&'static str; 3] {
    ["pacifica-main", "aster-hedge", "binance-backup"]
}

fn hedge() -> String {
    let body = json!({"symbol": "BTC-USD", "targetAccounts": all(), "hedgeAmount": 0.1, "hedgeStrategy": "delta-neutral", "dryRun": true});
    body.to_string()
}

fn rebalance() -> String {
    json!({"targetUtilization": 0.3, "accounts": all(), "symbol": "BTC-USD", "dryRun": true}).to_string()
}

/// Has an exchange refuse every request and say nothing on its streams.
async fn put_out(server: &Server, exchange: &PaperExchange, is_out: bool) {
    let url = format!("{}/faults", exchange.control);
    if !is_out {
        assert!(server.client.delete(url).send().await.unwrap().status().is_success());
        return;
    }
    let refuse = json!({"kind": "refuse", "status": 500, "body": "{}", "times": 1_000_000_000_u64});
    let mute = json!({"kind": "muteStreams", "times": 1_000_000_000_u64});
    for fault in [refuse, mute, json!({"kind": "closeStreams"})] {
        let answer = server.client.post(&url).json(&fault).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
}

/// No number that was not zero is zero now.
fn check(kind: &str, healthy: &BTreeMap<String, f64>, out: &BTreeMap<String, f64>) {
    let is_count = |path: &str| COUNTS.iter().any(|name| path.ends_with(name));
    let is_new = |path: &String| healthy.get(path).is_some_and(|before| *before != 0.0);
    let zeros = out.iter().filter(|(path, value)| **value == 0.0 && is_new(path) && !is_count(path));
    let zeros: Vec<&String> = zeros.map(|(path, _)| path).collect();
    assert!(zeros.is_empty(), "{kind} is out: {zeros:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_tells_a_zero_for_what_is_not_known_while_one_exchange_is_out() {
    let folder = tempfile::tempdir().unwrap();
    let (server, exchanges) = Server::start_printing(folder.path()).await;
    let healthy = answers(&server).await;
    assert!(healthy.len() > 150, "{} numbers", healthy.len());
    for (kind, exchange) in &exchanges {
        put_out(&server, exchange, true).await;
        until_within(Duration::from_secs(60), "it is noticed", async || {
            let (_, ready) = server.get("/api/v1/system/status").await;
            ready["accounts"].as_array().unwrap().iter().any(|account| account["source"] != "stream")
        })
        .await;
        check(kind, &healthy, &answers(&server).await);
        // And once nothing of it counts any more.
        until_within(Duration::from_secs(90), "nothing can be planned", async || {
            server.post("/api/v1/delta/control", &[], BODY).await.0 >= 400
        })
        .await;
        check(kind, &healthy, &answers(&server).await);
        put_out(&server, exchange, false).await;
        until_within(Duration::from_secs(60), "all are back", async || {
            let (_, ready) = server.get("/api/v1/system/status").await;
            ready["accounts"].as_array().unwrap().iter().all(|account| account["source"] == "stream")
                && server.post("/api/v1/delta/control", &[], BODY).await.0 == 200
        })
        .await;
    }
}
