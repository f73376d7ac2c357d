//! Request budgets as the API tells of them, and what goes out when they are spent.

use deltaplane_ports::Clock as _;
use deltaplane_tests::WallClock;
use serde_json::{Value, json};

use crate::paper::Server;

const ALL: [&str; 3] = ["pacifica-main", "aster-hedge", "binance-backup"];

/// What is left of Pacifica's credits, in tenths, as its answer's header says: `"credits";r=940;t=57`.
async fn credits_left(server: &Server, rest: &str) -> u64 {
    let answer = server.client.get(format!("{rest}/api/v1/info")).send().await.unwrap();
    let told = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
    let left = told.split(';').find_map(|part| part.trim().strip_prefix("r="));
    left.unwrap().parse().unwrap()
}

/// Another program at the same address leaves ten credits of a hundred: both legs are closed nevertheless, and on all
/// three exchanges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_are_closed_with_ten_of_pacificas_credits_left() {
    let folder = tempfile::tempdir().unwrap();
    let (server, exchanges) = Server::start_printing(folder.path()).await;
    let rest = &exchanges["pacifica"].rest;
    while credits_left(&server, rest).await > 100 {}
    let request = json!({"symbol": "BTC-USD", "accounts": ALL}).to_string();
    let (status, closed) = server.post("/api/v1/delta/flatten", &[], request).await;
    assert_eq!((status, &closed["success"]), (200, &true.into()), "{closed}");
    for account in ALL {
        let (_, synced) =
            server.post("/api/v1/account/sync", &[], json!({"accounts": [account]}).to_string()).await;
        let state = &synced["accountStates"][0];
        assert_eq!((&state["accountId"], &state["netPosition"]), (&account.into(), &0.into()), "{synced}");
    }
}

/// Fields, units and names of what the API says of budgets, of accounts and of the age of what a dry run read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_tells_how_budgets_and_accounts_stand() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = Server::start_printing(folder.path()).await;
    let (_, system) = server.get("/api/v1/system/status").await;
    let now = WallClock.now().as_millis();
    let mut venues = Vec::new();
    for budget in system["budgets"].as_array().unwrap() {
        let (used, limit) = (budget["used"].as_u64().unwrap(), budget["limit"].as_u64().unwrap());
        assert!(used > 0 && used < limit, "{budget}");
        // A window of a minute ends within the next one.
        let ends = budget["windowEndsAt"].as_i64().unwrap();
        assert!((now - 1_000..=now + 61_000).contains(&ends), "{budget}");
        let by = budget["byPriority"].as_object().unwrap();
        assert_eq!(by.len(), 5, "{budget}");
        assert_eq!(budget["accounts"].as_array().unwrap().len(), 1, "{budget}");
        venues.push((budget["venue"].as_str().unwrap().to_owned(), limit));
    }
    venues.sort();
    // The documented limits: credits times ten, and weights.
    let known = [("aster", 2_400), ("binance", 2_400), ("pacifica", 1_000)];
    assert_eq!(venues, known.map(|(venue, limit)| (venue.to_owned(), limit)));
    let (status, ready) = server.get("/readyz").await;
    let told = |field: &str| -> Vec<Value> {
        ready["accounts"].as_array().unwrap().iter().map(|account| account[field].clone()).collect()
    };
    assert_eq!((status, &ready["status"]), (200, &"ready".into()), "{ready}");
    assert_eq!(told("source"), vec![Value::from("stream"); 3], "{ready}");
    assert_eq!(told("canTrade"), vec![Value::from(true); 3], "{ready}");
    assert_eq!(told("neededByPolicy"), vec![Value::from(false); 3], "{ready}");
    let dry = json!({
        "targetDelta": 0, "accounts": ALL, "maxDeviation": 0.1, "symbol": "BTC-USD", "dryRun": true,
    });
    let (status, dry) = server.post("/api/v1/delta/control", &[], dry.to_string()).await;
    assert_eq!(status, 200, "{dry}");
    let age = dry["stateAge"].as_u64().unwrap();
    assert!(age < 120_000, "audits are a minute apart: {dry}");
}
