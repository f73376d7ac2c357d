//! The server binary in live mode over exchanges that outlive it: killed with orders on their way, again and again.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use deltaplane_tests::live::{self, Server};
use deltaplane_tests::{Place, exchanges};
use deltaplane_venue_sim::{Fault, FaultKind, Running};
use serde_json::json;

fn places() -> Vec<Place> {
    vec![Place::new("long", "0.5"), Place::new("short", "-0.25"), Place::new("spare", "0")]
}

fn configure(folder: &Path, exchanges: &[Running]) {
    let mut text = "mode = \"live\"\n[limits]\nmax_order_notional = \"100000\"\nmax_position_notional = \"1000000\"\nmax_in_flight_delta = \"6650\"\n".to_owned();
    for (place, running) in places().iter().zip(exchanges) {
        let (name, rest, ws) = (place.name, running.rest(), running.ws());
        write!(
            text,
            "[[exchange]]\nid = \"{name}\"\nkind = \"binance\"\nrest_url = \"{rest}\"\nstream_url = \"{ws}\"\nproof_lag_ms = 1000\n\
             [[account]]\nid = \"{name}\"\nexchange = \"{name}\"\napi_key_env = \"KEY_{name}\"\nsecret_env = \"SECRET_{name}\"\n"
        )
        .unwrap();
    }
    live::write_config(folder, &text);
}

async fn server(folder: &Path) -> Server {
    let names = places().into_iter().map(|place| place.name);
    let keys = names.flat_map(|name| {
        [(format!("KEY_{name}"), format!("{name}key")), (format!("SECRET_{name}"), format!("{name}secret"))]
    });
    Server::start(env!("CARGO_BIN_EXE_deltaplane-server"), folder, keys).await
}

fn positions(exchanges: &[Running]) -> Vec<rust_decimal::Decimal> {
    let net = |running: &Running| {
        running.sim().with(|exchange| exchange.accounts.values().map(|a| a.net("BTCUSDT")).sum())
    };
    exchanges.iter().map(net).collect()
}

/// The operator's own check of the journal, by the binary that is built beside the server's.
fn verify(folder: &Path) -> String {
    let operator = Path::new(env!("CARGO_BIN_EXE_deltaplane-server")).with_file_name("deltaplane");
    let output = Command::new(&operator)
        .args(["journal", "verify", "--data-dir"])
        .arg(folder.join("data"))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; cargo build -p deltaplane", operator.display()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f51_f52_a_server_that_is_killed_with_orders_on_their_way_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let exchanges = exchanges(&places()).await;
    configure(folder.path(), &exchanges);
    let accounts = json!(["long", "short", "spare"]);
    for round in 0..5_u32 {
        let server = server(folder.path()).await;
        // Every answer is late or never comes, so that the end finds orders on their way.
        for (index, running) in (0..).zip(&exchanges) {
            let fault = match (round + index) % 3 {
                0 => FaultKind::Delay { millis: 250 },
                1 => FaultKind::AcceptThenSilence,
                _ => FaultKind::Late { millis: 200 },
            };
            running.sim().inject(Fault::new(fault, 1).on("POST", "/fapi/v1/order"));
        }
        // Now this way, now that way, so that there is something to trade each time.
        let target = if round % 2 == 0 { "-0.3" } else { "0.4" };
        let body = json!({
            "targetDelta": target, "accounts": accounts, "maxDeviation": 0.1, "symbol": "BTC-USD",
        });
        let killed_after = Duration::from_millis(40 + u64::from(round) * 70);
        let asked = tokio::time::timeout(killed_after, server.post("/api/v1/delta/control", &body)).await;
        if let Ok(Ok(answer)) = asked {
            assert!(answer["operationId"].is_string(), "{answer}");
        }
        server.kill();
        for running in &exchanges {
            running.sim().clear_faults();
        }
    }
    let server = server(folder.path()).await;
    let body = json!({"targetDelta": 0, "accounts": accounts, "maxDeviation": 0.1, "symbol": "BTC-USD"});
    let answer = server.post("/api/v1/delta/control", &body).await.unwrap();
    assert_eq!(answer["success"], true, "{answer}");
    let held = positions(&exchanges);
    assert_eq!(held.iter().sum::<rust_decimal::Decimal>(), rust_decimal::Decimal::ZERO, "{held:?}");
    // Every order that an exchange knows is one of the journal's, each there once.
    let operations = server.get("/api/v1/operations?limit=100").await;
    let mut journaled = BTreeSet::new();
    for operation in operations["operations"].as_array().unwrap() {
        let id = operation["operationId"].as_str().unwrap();
        let detail = server.get(&format!("/api/v1/operations/{id}")).await;
        assert_ne!(detail["state"], "running", "{detail}");
        for order in detail["orders"].as_array().unwrap() {
            let settled = ["filled", "expired", "canceled", "notAccepted"];
            assert!(settled.contains(&order["state"].as_str().unwrap()), "{order}");
            assert!(journaled.insert(order["clientOrderId"].as_str().unwrap().to_owned()), "{order}");
        }
    }
    let mut at_exchanges = 0;
    for running in &exchanges {
        running.sim().with(|exchange| {
            for order in exchange.orders.values() {
                at_exchanges += 1;
                assert!(journaled.contains(&order.client_id), "{order:?}");
            }
        });
    }
    assert!(at_exchanges >= 5, "{at_exchanges} orders");
    assert_eq!(server.get("/api/v1/reconciliation").await, json!({"activity": []}), "all of it was ours");
    // And the way out, over the same wire.
    let body = json!({"symbol": "BTC-USD", "accounts": accounts});
    let answer = server.post("/api/v1/delta/flatten", &body).await.unwrap();
    assert_eq!(answer["success"], true, "{answer}");
    assert!(positions(&exchanges).iter().all(rust_decimal::Decimal::is_zero), "{:?}", positions(&exchanges));
    server.kill();
    let told = verify(folder.path());
    assert!(told.contains("the chain is whole and every rule is kept"), "{told}");
}
