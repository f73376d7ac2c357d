//! The server binary as a user meets it: paper mode, the curl session, bad input, restart, kill.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use deltaplane_tests::{found, until, until_within};
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::paper::{Server, command, free_port};

const CONTROL: &str = r#"{"targetDelta": 0.0, "accounts": ["pacifica-main", "aster-hedge", "binance-backup"], "maxDeviation": 0.1, "symbol": "BTC-USD"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_curl_session_works_and_its_answer_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path()).await;
    let (status, system) = server.get("/api/v1/system/status").await;
    assert_eq!((status, &system["status"], &system["activeAccounts"]), (200, &"running".into(), &3.into()));
    let sync = r#"{"accounts": ["pacifica-main", "aster-hedge"], "includePositions": true}"#;
    let (status, synced) = server.post("/api/v1/account/sync", &[], sync).await;
    assert_eq!((status, &synced["success"]), (200, &true.into()));
    assert_eq!(synced["accountStates"][0]["netPosition"].to_string(), "0.5");
    assert_eq!(synced["accountStates"][1]["netPosition"].to_string(), "-0.25");
    let dry = CONTROL.replace("\"symbol\"", "\"dryRun\": true, \"symbol\"");
    let (status, planned) = server.post("/api/v1/delta/control", &[], dry).await;
    assert_eq!((status, planned["finalDelta"].to_string().as_str()), (200, "0"));
    let key = [("idempotency-key", "first-try")];
    let (status, done) = server.post("/api/v1/delta/control", &key, CONTROL).await;
    assert_eq!(status, 200, "{done}");
    assert_eq!(
        (done["initialDelta"].to_string().as_str(), done["finalDelta"].to_string().as_str()),
        ("0.25", "0")
    );
    let (_, again) = server.post("/api/v1/delta/control", &key, CONTROL).await;
    assert_eq!(again, done, "the same key gives the same answer");
    let (status, other) = server.post("/api/v1/delta/control", &key, CONTROL.replace("0.1", "0.2")).await;
    assert_eq!((status, &other["code"]), (422, &1000.into()));
    let (_, calm) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    assert_eq!((&calm["adjustmentNeeded"], &calm["totalAdjustments"]), (&false.into(), &0.into()));
    let id = done["operationId"].as_str().unwrap().to_owned();
    let (_, portfolio) = server.get("/api/v1/portfolio").await;
    assert_eq!(portfolio["symbols"][0]["netDelta"].to_string(), "0");
    let (_, accounts) = server.get("/api/v1/accounts").await;
    assert_eq!(accounts["accounts"].as_array().unwrap().len(), 3);
    // SIGKILL, then another process on the same folder.
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let server = Server::start(folder.path()).await;
    let (status, known) = server.get(&format!("/api/v1/operations/{id}")).await;
    assert_eq!((status, &known["state"]), (200, &"succeeded".into()));
    assert_eq!(known["orders"][0]["filled"].to_string(), "0.25");
    let (_, again) = server.post("/api/v1/delta/control", &key, CONTROL).await;
    assert_eq!(again, done, "the kept answer survives the process");
}

/// The session that the user wrote down, word for word: only the address is another one.
const USER_SESSION: &str = include_str!("../scripts/user_session.sh");

/// Runs a part of the session and gives every answer. The loop in it would never end: its third pause ends the shell.
fn run_session(server: &Server, part: &str) -> Vec<Value> {
    let script = format!(
        "set -e\n\
         curl() {{ command curl --silent --show-error \"${{@//localhost:3000/{}}}\"; printf '\\n'; }}\n\
         turns=0\n\
         sleep() {{ turns=$((turns + 1)); if [ \"$turns\" -ge 3 ]; then exit 0; fi; }}\n\
         {part}",
        server.address
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash and curl are installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    answers.map(|answer| answer.unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs bash and curl"]
async fn the_session_that_the_user_wrote_down_works_word_for_word() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (steps, rest) = USER_SESSION.split_once("# 持续监控风险警报").unwrap();
    let (watch, rebalance) = rest.split_once("# 定期利用率再平衡").unwrap();

    let answers = run_session(&server, steps);
    let [system, synced, metrics, control, alerts] = answers.try_into().unwrap();
    assert_eq!((&system["status"], &system["activeAccounts"]), (&"running".into(), &3.into()), "{system}");
    assert_eq!(synced["success"], true, "{synced}");
    assert_eq!(synced["syncedAccounts"].as_array().map(Vec::len), Some(2), "{synced}");
    assert_eq!(synced["accountStates"][0]["netPosition"].to_string(), "0.5", "{synced}");
    for field in ["deltaDeviation", "utilizationRate", "leverageRatio", "marginRatio", "maxDrawdown"] {
        assert!(metrics[field].as_f64().is_some_and(|value| value >= 0.0), "{field}: {metrics}");
    }
    assert_eq!((&control["success"], control["initialDelta"].to_string().as_str()), (&true.into(), "0.25"));
    assert_eq!(control["finalDelta"].to_string(), "0", "{control}");
    assert!(alerts.is_array(), "{alerts}");

    let answers = run_session(&server, watch);
    assert_eq!(answers.len(), 3, "{answers:?}");
    for alerts in &answers {
        let of_severity = |alert: &Value| alert["severity"] == "CRITICAL";
        assert!(alerts.as_array().is_some_and(|alerts| alerts.iter().all(of_severity)), "{alerts}");
    }

    let answers = run_session(&server, rebalance);
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0]["success"], true, "{}", answers[0]);
    // Whatever was shifted, net delta stayed.
    let (_, portfolio) = server.get("/api/v1/portfolio").await;
    assert_eq!(portfolio["symbols"][0]["netDelta"].to_string(), "0", "{portfolio}");
}

/// Kill switch, trading state, alerts and decisions, as a person at a terminal uses them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_holds_over_a_kill_until_a_restart_is_requested() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path()).await;
    let kill = "/api/v1/system/kill-switch";
    let (status, answer) = server.post(kill, &[], r#"{"engaged": true, "reason": "a fire"}"#).await;
    assert_eq!((status, &answer["success"], &answer["durable"]), (200, &true.into(), &true.into()));
    assert_eq!(answer["tradingState"]["killSwitch"], true);
    let add = CONTROL.replace("0.0", "0.9").replace("0.1", "0.01");
    let (status, refused) = server.post("/api/v1/delta/control", &[], add.clone()).await;
    assert_eq!((status, &refused["code"]), (409, &1004.into()), "{refused}");
    let (_, alerts) = server.get("/api/v1/risk/alerts?severity=CRITICAL").await;
    assert_eq!(alerts[0]["data"]["topic"], "kill-switch", "{alerts}");
    // SIGKILL, then another process on the same folder.
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, system) = server.get("/api/v1/system/status").await;
    assert_eq!(system["tradingState"]["killSwitch"], true, "{system}");
    assert_eq!(server.get("/api/v1/risk/alerts").await.1[0]["data"]["topic"], "kill-switch");
    // What reduces is let through: 0.25 too long goes.
    let (status, done) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    assert_eq!((status, done["finalDelta"].to_string().as_str()), (200, "0"), "{done}");
    let (status, answer) = server.post(kill, &[], r#"{"engaged": false, "reason": "out"}"#).await;
    assert_eq!((status, &answer["tradingState"]["killSwitch"]), (200, &false.into()));
    assert_eq!(server.get("/api/v1/risk/alerts").await.1, serde_json::json!([]));
    let halted = r#"{"scope": "global", "state": "HALTED", "reason": "lunch"}"#;
    let state = server.client.put(server.url("/api/v1/trading-state"));
    let answer = state.header(CONTENT_TYPE, "application/json").body(halted).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let (status, refused) = server.post("/api/v1/delta/control", &[], add).await;
    assert_eq!((status, &refused["code"]), (409, &1004.into()), "{refused}");
    assert_eq!(server.get("/api/v1/reconciliation").await, (200, serde_json::json!({"activity": []})));
    // Nonsense is named, field by field, and changes nothing.
    let resolve = "/api/v1/operations/unknown/resolve";
    for (path, body, code, named) in [
        (kill, r#"{"engaged": "yes"}"#, 1000, vec!["/engaged", "/reason"]),
        (kill, r#"{"reason": " "}"#, 1000, vec!["/engaged", "/reason"]),
        (resolve, r#"{"outcome": "ended", "reason": "x"}"#, 1000, vec!["/clientOrderId", "/filled"]),
        (resolve, r#"{"clientOrderId": "a", "outcome": "lost", "reason": "x"}"#, 1000, vec!["/outcome"]),
        (
            resolve,
            r#"{"clientOrderId": "a", "outcome": "notPlaced", "filled": 1, "reason": "x"}"#,
            1000,
            vec!["/filled"],
        ),
        (resolve, r#"{"clientOrderId": "a", "outcome": "notPlaced", "reason": "x"}"#, 1008, vec![]),
    ] {
        let (_, answer) = server.post(path, &[], body).await;
        assert_eq!(answer["code"], code, "{body}: {answer}");
        let pointers: Vec<&str> =
            answer["errors"].as_array().into_iter().flatten().filter_map(|e| e["pointer"].as_str()).collect();
        assert!(named.iter().all(|pointer| pointers.contains(pointer)), "{body}: {answer}");
    }
    let (_, system) = server.get("/api/v1/system/status").await;
    assert_eq!(system["tradingState"]["state"], "HALTED");
    // One account and one symbol alone.
    let say = async |body: &str| {
        let state = server.client.put(server.url("/api/v1/trading-state"));
        let answer =
            state.header(CONTENT_TYPE, "application/json").body(body.to_owned()).send().await.unwrap();
        serde_json::from_str::<Value>(&answer.text().await.unwrap()).unwrap()
    };
    let account = r#"{"scope": "account", "id": "aster-hedge", "state": "REDUCE_ONLY", "reason": "drained"}"#;
    say(account).await;
    let answer = say(r#"{"scope": "symbol", "id": "ETH-USD", "state": "PAUSED", "reason": "thin"}"#).await;
    let scoped = &answer["tradingState"]["scoped"];
    assert_eq!(
        (&scoped[0]["id"], &scoped[0]["state"], &scoped[1]["scope"], &scoped[1]["reason"]),
        (&"aster-hedge".into(), &"REDUCE_ONLY".into(), &"symbol".into(), &"thin".into()),
        "{answer}"
    );
    let answer = say(&account.replace("REDUCE_ONLY", "RUNNING")).await;
    assert_eq!(answer["tradingState"]["scoped"].as_array().unwrap().len(), 1, "{answer}");
    for (body, code, named) in [
        (account.replace("aster-hedge", "unknown"), 1001, ""),
        (account.replace("aster-hedge", "No Body"), 1000, "/id"),
        (account.replace("account\"", "symbol\""), 1000, "/id"),
        (account.replace("account\"", "global\""), 1000, "/id"),
        (account.replace("account\"", "exchange\""), 1000, "/scope"),
        (account.replace("\"id\": \"aster-hedge\", ", ""), 1000, "/id"),
    ] {
        let answer = say(&body).await;
        assert_eq!(answer["code"], code, "{body}: {answer}");
        assert!(named.is_empty() || answer["errors"].to_string().contains(named), "{body}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daily_pnl_is_answered_as_json_and_as_csv() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (status, pnl) = server.get("/api/v1/pnl?symbol=BTC-USD").await;
    assert_eq!(status, 200, "{pnl}");
    assert!(pnl["days"].is_array() && pnl["total"]["funding"].is_number(), "{pnl}");
    let groups = pnl["groups"].as_array().unwrap();
    assert!(groups.iter().all(|group| group["symbol"] == "BTC-USD" && group["accounts"].is_array()), "{pnl}");
    let csv = server.client.get(server.url("/api/v1/pnl?format=csv")).send().await.unwrap();
    assert_eq!(csv.headers()[CONTENT_TYPE], "text/csv; charset=utf-8");
    let text = csv.text().await.unwrap();
    let groups = server.client.get(server.url("/api/v1/pnl?format=csv&by=group")).send().await.unwrap();
    let groups = groups.text().await.unwrap();
    assert!(groups.starts_with("date,symbol,inPolicy,accounts,funding,fees,"), "{groups}");
    assert!(
        text.starts_with("date,symbol,accountId,funding,fees,basis,residualDelta,total,realized,asset\r\n"),
        "{text}"
    );
    for (query, named) in [
        ("symbol=btc", "symbol"),
        ("format=xml", "format"),
        ("since=-1", "since"),
        ("day=1", "day"),
        ("by=group", "by"),
        ("format=csv&by=day", "by"),
    ] {
        let (status, answer) = server.get(&format!("/api/v1/pnl?{query}")).await;
        assert_eq!((status, &answer["code"]), (400, &1000.into()), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(named), "{answer}");
    }
    let (status, answer) = server.get("/api/v1/pnl?since=253402300799999").await;
    assert_eq!((status, answer["days"].as_array().unwrap().len()), (200, 0), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_a_clear_error_and_send_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let replaced = |from: &str, to: &str| CONTROL.replace(from, to).into_bytes();
    let cases: Vec<(Vec<u8>, u16, u16, &str)> = vec![
        (replaced("\"maxDeviation\"", "\"maxdeviation\""), 400, 1000, "did you mean maxDeviation?"),
        (replaced("0.1", "1.5"), 400, 1000, "/maxDeviation 1.5 is out of range"),
        (replaced("0.1", "-0.1"), 400, 1000, "/maxDeviation -0.1 is out of range"),
        (replaced("0.1", "1e400"), 400, 1000, "/maxDeviation 1e400 is too large"),
        (replaced("0.1", "\"NaN\""), 400, 1000, "is not a decimal number"),
        (
            replaced("0.0", "1234567890123456789012345678901234567890"),
            400,
            1000,
            "more than 28 significant digits",
        ),
        (
            replaced("\"symbol\"", "\"maxSlippage\": 0.2, \"symbol\""),
            400,
            1000,
            "/maxSlippage 0.2 is out of range",
        ),
        (replaced("\"symbol\"", "\"timeout\": 99, \"symbol\""), 400, 1000, "/timeout 99 is out of range"),
        (replaced("\"symbol\"", "\"timeout\": 0, \"symbol\""), 400, 1000, "/timeout 0 is out of range"),
        (
            replaced("\"symbol\"", "\"timeout\": 604800000, \"symbol\""),
            400,
            1000,
            "/timeout 604800000 is out of range",
        ),
        (replaced("\"symbol\"", "\"tolerancePercent\": 0.2, \"symbol\""), 400, 1000, "is above maxDeviation"),
        (replaced("\"symbol\"", "\"dryRun\": \"true\", \"symbol\""), 400, 1000, "/dryRun is a string"),
        (replaced("\"symbol\"", "\"hedgeTo\": \"bend\", \"symbol\""), 400, 1000, "did you mean band?"),
        (replaced("BTC-USD", "btc"), 400, 1000, "is not a symbol"),
        (replaced("BTC-USD", "NOPE-USD"), 400, 1000, "has no instrument for NOPE-USD"),
        (replaced("binance-backup", "unknown-one"), 404, 1001, "unknown-one"),
        (replaced("binance-backup", "../../etc"), 404, 1001, "../../etc"),
        (replaced("binance-backup", "pacifica-main"), 400, 1000, "named twice"),
        (
            replaced("[\"pacifica-main\", \"aster-hedge\", \"binance-backup\"]", "[]"),
            400,
            1000,
            "has 0 elements",
        ),
        (CONTROL.as_bytes()[..40].to_vec(), 400, 1000, "not a JSON object"),
        (b"\xff\xfe{}".to_vec(), 400, 1000, "not UTF-8"),
        (
            format!("{{\"accounts\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000)).into_bytes(),
            400,
            1000,
            "/accounts",
        ),
    ];
    for (body, status, code, text) in cases {
        let shown = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        let (found, answer) = server.post("/api/v1/delta/control", &[], body).await;
        assert_eq!(
            (found, &answer["code"], &answer["success"]),
            (status, &code.into(), &false.into()),
            "{shown}: {answer}"
        );
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(text), "{shown}: {error}");
        assert!(!answer["solution"].as_str().unwrap().is_empty(), "{shown}");
    }
    // -0 is zero, which is the target of this book.
    let (status, _) =
        server.post("/api/v1/delta/control", &[], replaced("0.0", "-0, \"dryRun\": true")).await;
    assert_eq!(status, 200);
    let plain = server.client.post(server.url("/api/v1/delta/control")).body(CONTROL).send().await.unwrap();
    assert_eq!(plain.status(), 415);
    let wrong = server.client.get(server.url("/api/v1/delta/control")).send().await.unwrap();
    assert_eq!(wrong.status(), 405);
    let (status, missing) = server.get("/api/v1/operations/nothing").await;
    assert_eq!((status, &missing["code"]), (404, &1008.into()));
    let (status, missing) = server.get("/api/v1/nowhere").await;
    assert_eq!((status, &missing["code"]), (404, &1008.into()));
    for (body, text) in [
        (
            r#"{"symbol":"BTC-USD","targetAccounts":["pacifica-main"],"hedgeAmount":0,"hedgeStrategy":"delta-neutral"}"#,
            "/hedgeAmount 0",
        ),
        (
            r#"{"symbol":"BTC-USD","targetAccounts":["pacifica-main"],"hedgeAmount":1,"hedgeStrategy":"neutral"}"#,
            "/hedgeStrategy",
        ),
        (
            r#"{"symbol":"BTC-USD","targetAccounts":["pacifica-main"],"hedgeAmount":1,"hedgeStrategy":"delta-neutral","side":"up"}"#,
            "/side",
        ),
    ] {
        let (status, answer) = server.post("/api/v1/hedge/execute", &[], body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(text), "{answer}");
    }
    let (_, operations) = server.get("/api/v1/operations").await;
    let sent: u64 =
        operations["operations"].as_array().unwrap().iter().map(|o| o["orders"].as_u64().unwrap()).sum();
    assert_eq!(sent, 0, "{operations}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_connections_are_cut_off_and_harm_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let large = vec![b' '; 20 * 1024 * 1024];
    let answer = server
        .client
        .post(server.url("/api/v1/delta/control"))
        .header(CONTENT_TYPE, "application/json")
        .body(large)
        .send()
        .await;
    // The server answers before it read everything; the client may see the answer or the closed connection.
    if let Ok(answer) = answer {
        assert_eq!(answer.status(), 413);
    }
    let mut slow = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").await.unwrap();
    let mut text = Vec::new();
    tokio::time::timeout(Duration::from_secs(8), slow.read_to_end(&mut text))
        .await
        .expect("half a header is cut off")
        .unwrap();
    let foreign = server
        .client
        .get(server.url("/api/v1/accounts"))
        .header("host", "evil.example")
        .send()
        .await
        .unwrap();
    assert_eq!(foreign.status(), 403);
    let page = server
        .client
        .get(server.url("/api/v1/accounts"))
        .header("origin", "https://evil.example")
        .send()
        .await
        .unwrap();
    assert_eq!(page.status(), 403);
    assert_eq!(server.get("/healthz").await.0, 200);
}

/// More clients than there are places keep their connections open, as pollers and dashboards do: the next client is
/// answered, and the control listener knows nothing of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_kept_open_block_no_other_client() {
    let folder = tempfile::tempdir().unwrap();
    let control = format!("127.0.0.1:{}", free_port());
    let server = Server::start_with(folder.path(), &["--control-listen", &control], &[]).await;
    let mut kept = Vec::new();
    for _ in 0..1_100 {
        let mut socket = tokio::net::TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = [0; 512];
        let length = socket.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{}", kept.len());
        kept.push(socket);
    }
    assert_eq!(server.get("/healthz").await.0, 200);
    let ask = |method: reqwest::Method, path: &str, body: &'static str| {
        let request = server.client.request(method, format!("http://{control}{path}"));
        request.header(CONTENT_TYPE, "application/json").body(body).send()
    };
    assert_eq!(ask(reqwest::Method::GET, "/readyz", "").await.unwrap().status(), 200);
    let engaged = r#"{"engaged": true, "reason": "too many clients"}"#;
    let answer = ask(reqwest::Method::POST, "/api/v1/system/kill-switch", engaged).await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    let (_, status) = server.get("/api/v1/system/status").await;
    assert_eq!(status["tradingState"]["killSwitchReason"], "too many clients", "{status}");
    let answer = ask(reqwest::Method::GET, "/api/v1/portfolio", "").await.unwrap();
    assert_eq!(answer.status(), 404, "it serves what protects, and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_async_request_is_accepted_and_can_be_looked_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (status, accepted) =
        server.post("/api/v1/delta/control", &[("prefer", "respond-async")], CONTROL).await;
    assert_eq!(status, 202, "{accepted}");
    let path = format!("/api/v1/operations/{}", accepted["operationId"].as_str().unwrap());
    let ended = found("it ended", async || {
        let (_, operation) = server.get(&path).await;
        (operation["state"] == "succeeded").then_some(operation)
    })
    .await;
    assert_eq!(ended["finalDelta"].to_string(), "0");
    // The same request again: accepted with the same place to look.
    let ask = || {
        let request = server.client.post(server.url("/api/v1/delta/control")).body(CONTROL);
        let request = request.header(CONTENT_TYPE, "application/json").header("prefer", "respond-async");
        request.header("idempotency-key", "async-1").send()
    };
    let place = |answer: &reqwest::Response| answer.headers()["location"].to_str().unwrap().to_owned();
    let first = ask().await.unwrap();
    let again = ask().await.unwrap();
    assert_eq!((first.status().as_u16(), again.status().as_u16()), (202, 202));
    assert_eq!(place(&first), place(&again));
    let broken = server.client.get(server.url("/api/v1/operations/%ff")).send().await.unwrap();
    assert_eq!(broken.status(), 400);
    assert_eq!(broken.headers()[CONTENT_TYPE], "application/problem+json");
}

/// What the process says when it cannot start.
fn refused(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = command(folder)
        .args(arguments)
        .envs(environment.iter().copied())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{arguments:?} started");
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_errors_name_the_cause_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let write = |name: &str, text: &str| {
        std::fs::write(path.join(name), text).unwrap();
    };
    let any = ["--listen", "127.0.0.1:0"];
    let with = |config: &'static str| [any[0], any[1], "--config", config];
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert!(refused(path, &["--listen", &address], &[]).contains("cannot listen on"));
    assert!(refused(path, &["--listen", "0.0.0.0:0"], &[]).contains("is not a loopback address"));
    let text = refused(path, &["--listen", "127.0.0.1:0", "--control-listen", "0.0.0.0:0"], &[]);
    assert!(text.contains("--control-listen: 0.0.0.0:0 is not a loopback address"), "{text}");
    let text = refused(path, &["--listen", "127.0.0.1:0", "--control-listen", &address], &[]);
    assert!(text.contains("or choose another with --control-listen"), "{text}");
    assert!(refused(path, &with("missing.toml"), &[]).contains("cannot read missing.toml"));
    write("typo.toml", "\nmoode = \"paper\"\n");
    let text = refused(path, &with("typo.toml"), &[]);
    assert!(text.contains("typo.toml") && text.contains("line 2") && text.contains("moode"), "{text}");
    write("file", "");
    assert!(
        refused(path, &["--listen", "127.0.0.1:0", "--data-dir", "file"], &[])
            .contains("cannot use the data folder")
    );
    let observe = "mode = \"observe\"\n[[exchange]]\nid = \"b\"\nkind = \"binance\"\nrest_url = \"http://127.0.0.1:9\"\nstream_url = \"ws://127.0.0.1:9\"\n[[account]]\nid = \"a\"\nexchange = \"b\"\napi_key_env = \"K\"\nsecret_env = \"S\"\n";
    write("observe.toml", observe);
    let text = refused(path, &with("observe.toml"), &[]);
    assert!(text.contains("line 10") && text.contains("environment variable K is not set"), "{text}");
    let keys = [("K", "canary-key"), ("S", "canary-secret")];
    let text = refused(path, &with("observe.toml"), &keys);
    assert!(text.contains("DELTAPLANE_API_KEY_FILE"), "{text}");
    write("api.key", "admin.short");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path.join("api.key"), std::fs::Permissions::from_mode(0o604)).unwrap();
        let text =
            refused(path, &with("observe.toml"), &[keys[0], keys[1], ("DELTAPLANE_API_KEY_FILE", "api.key")]);
        assert!(text.contains("can be read by everybody"), "{text}");
        std::fs::set_permissions(path.join("api.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text =
        refused(path, &with("observe.toml"), &[keys[0], keys[1], ("DELTAPLANE_API_KEY_FILE", "api.key")]);
    assert!(text.contains("at least 32 characters") && !text.contains("canary"), "{text}");
    let live = observe.replace("observe", "live").replace(
        "[[exchange]]",
        "[limits]\nmax_order_notional = \"1\"\nmax_position_notional = \"1\"\n[[exchange]]",
    );
    write("live.toml", &live);
    assert!(refused(path, &with("live.toml"), &keys).contains("--live"));
    let _server = Server::start(path).await;
    let text = refused(path, &["--listen", "127.0.0.1:0", "--data-dir", "data"], &[]);
    assert!(text.contains("another process uses the journal"), "{text}");
}

/// A venue that is not there: the server starts, says so, and sends nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn observe_mode_needs_its_key_and_never_sends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let config = "mode = \"observe\"\n[[exchange]]\nid = \"b\"\nkind = \"binance\"\nrest_url = \"http://127.0.0.1:9\"\nstream_url = \"ws://127.0.0.1:9\"\n[[account]]\nid = \"a\"\nexchange = \"b\"\napi_key_env = \"K\"\nsecret_env = \"S\"\n";
    std::fs::write(path.join("observe.toml"), config).unwrap();
    let key = format!("admin.{}", "k".repeat(43));
    std::fs::write(path.join("api.key"), &key).unwrap();
    #[cfg(unix)]
    std::fs::set_permissions(path.join("api.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let process = command(path)
        .args(["--listen", &address, "--config", "observe.toml"])
        .envs([("K", "x"), ("S", "y"), ("DELTAPLANE_API_KEY_FILE", "api.key")])
        .spawn()
        .unwrap();
    let server = Server { process, address, client: reqwest::Client::builder().no_proxy().build().unwrap() };
    until("it answers", async || server.client.get(server.url("/healthz")).send().await.is_ok()).await;
    let (status, ready) = server.get("/readyz").await;
    assert_eq!((status, &ready["code"]), (503, &1007.into()));
    let (status, answer) = server.get("/api/v1/accounts").await;
    assert_eq!((status, &answer["code"]), (401, &3001.into()));
    let bearer = format!("Bearer {key}");
    let body = r#"{"targetDelta": 0, "accounts": ["a"], "maxDeviation": 0.1, "symbol": "BTC-USD"}"#;
    let (status, answer) = server.post("/api/v1/delta/control", &[("authorization", &bearer)], body).await;
    assert_eq!((status, &answer["code"]), (403, &3001.into()), "{answer}");
    let sync = r#"{"accounts": ["a"], "timeout": 500}"#;
    let (status, answer) = server.post("/api/v1/account/sync", &[("authorization", &bearer)], sync).await;
    assert_eq!(
        (status, &answer["success"], &answer["failedAccounts"][0]),
        (200, &false.into(), &"a".into()),
        "{answer}"
    );
}

/// The numbered steps of the documented session, one after the other, with the bodies as they stand there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_session_runs_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let text = |value: &Value| value.to_string();
    let (status, system) = server.get("/api/v1/system/status").await;
    assert_eq!((status, &system["status"]), (200, &"running".into()));
    let sync = r#"{"accounts": ["pacifica-main", "aster-hedge"], "includePositions": true}"#;
    assert_eq!(server.post("/api/v1/account/sync", &[], sync).await.1["success"], true);
    let (status, risk) = server.get("/api/v1/risk/metrics/pacifica-main").await;
    assert_eq!((status, &risk["accountId"]), (200, &"pacifica-main".into()), "{risk}");
    let number = |name: &str| risk[name].to_string().parse::<f64>().unwrap();
    // 0.5 BTC on what the paper account has: notional over equity, a tenth of it initial margin.
    let notional = risk["positions"][0]["notional"].to_string().parse::<f64>().unwrap();
    assert!((number("leverageRatio") - notional / number("equity")).abs() < 1e-9, "{risk}");
    assert!(number("utilizationRate") > 0.0 && number("utilizationRate") < 1.0, "{risk}");
    assert!(number("marginRatio") < number("utilizationRate") && number("maxDrawdown") >= 0.0, "{risk}");
    assert_eq!(text(&risk["deltaDeviation"]), "0.5", "0.25 of the 0.5 on the long side");
    assert_eq!(
        text(&risk["liquidationDistance"]),
        "null",
        "a long of a third of the equity is never liquidated"
    );
    let (_, short) = server.get("/api/v1/risk/metrics/aster-hedge").await;
    let of = |value: &Value| value.to_string().parse::<f64>().unwrap();
    let (price, mark) =
        (of(&short["positions"][0]["liquidationPrice"]), of(&short["positions"][0]["markPrice"]));
    assert!((price / mark - 1.0 - of(&short["liquidationDistance"])).abs() < 1e-6, "{short}");
    let control = r#"{"targetDelta": 0.0, "accounts": ["pacifica-main", "aster-hedge"], "maxDeviation": 0.1, "symbol": "BTC-USD"}"#;
    // The third account holds nothing, so that two may be named.
    let (status, done) = server.post("/api/v1/delta/control", &[], control).await;
    assert_eq!((status, text(&done["finalDelta"]).as_str()), (200, "0"), "{done}");
    assert_eq!(server.get("/api/v1/risk/alerts").await, (200, serde_json::json!([])));
    assert_eq!(server.get("/api/v1/risk/alerts?severity=CRITICAL").await.0, 200);
    let rebalance = r#"{"targetUtilization": 0.75, "accounts": ["pacifica-main", "aster-hedge", "binance-backup"], "symbol": "BTC-USD", "tolerancePercent": 0.1}"#;
    let (status, calm) = server.post("/api/v1/utilization/rebalance", &[], rebalance).await;
    assert_eq!(
        (status, &calm["success"], &calm["rebalanceNeeded"]),
        (200, &true.into(), &true.into()),
        "{calm}"
    );
    assert!(calm["reason"].as_str().unwrap().contains("no account is above its tolerance"), "{calm}");
    assert_eq!(calm["rebalanceActions"].as_array().unwrap().len(), 3);
    assert!(calm["rebalanceActions"].as_array().unwrap().iter().all(|line| line["action"] == "maintain"));
    // A low target: what is above it goes to where there is room, and the net delta stays.
    let low =
        rebalance.replace("0.75", "0.005").replace("\"symbol\"", "\"allowGrossIncrease\": false, \"symbol\"");
    let (status, moved) = server.post("/api/v1/utilization/rebalance", &[], low).await;
    assert_eq!((status, &moved["success"]), (200, &true.into()), "{moved}");
    assert_eq!(text(&moved["initialDelta"]), text(&moved["finalDelta"]), "{moved}");
    assert!(moved["hedgeResults"]["executedOrders"].as_array().unwrap().len() >= 2, "{moved}");
    let flat = r#"{"symbol": "BTC-USD", "accounts": ["pacifica-main", "aster-hedge", "binance-backup"]}"#;
    let (status, closed) = server.post("/api/v1/delta/flatten", &[], flat).await;
    assert_eq!((status, &closed["success"]), (200, &true.into()), "{closed}");
    let (_, portfolio) = server.get("/api/v1/portfolio").await;
    assert_eq!(text(&portfolio["symbols"][0]["longExposure"]), "0", "{portfolio}");
    // Nonsense is named, field by field.
    for (path, body, pointers) in [
        (
            "/api/v1/utilization/rebalance",
            r#"{"targetUtilization": 1.5, "accounts": [], "symbol": "BTC-USD", "maxRebalanceAmount": 0}"#,
            vec!["/targetUtilization", "/accounts", "/maxRebalanceAmount"],
        ),
        (
            "/api/v1/delta/flatten",
            r#"{"symbol": "btc", "targetDelta": 0}"#,
            vec!["/symbol", "/accounts", "/targetDelta"],
        ),
    ] {
        let (status, answer) = server.post(path, &[], body).await;
        let found: Vec<&str> =
            answer["errors"].as_array().into_iter().flatten().filter_map(|e| e["pointer"].as_str()).collect();
        assert_eq!(status, 400, "{answer}");
        assert!(pointers.iter().all(|pointer| found.contains(pointer)), "{body}: {answer}");
    }
    for unknown in ["unknown", "..%2f..%2fetc", "%00"] {
        let (status, answer) = server.get(&format!("/api/v1/risk/metrics/{unknown}")).await;
        assert_eq!((status, &answer["code"]), (404, &1001.into()), "{unknown}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_files_tell_of_operations_and_warnings() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_with(folder.path(), &[], &[("DELTAPLANE_LOG", "info")]).await;
    let (_, done) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    let id = done["operationId"].as_str().unwrap().to_owned();
    let engage = r#"{"engaged": true, "reason": "a look at the log"}"#;
    assert_eq!(server.post("/api/v1/system/kill-switch", &[], engage).await.0, 200);
    let lines = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(folder.path().join("data/logs").join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or(Value::Null)).collect()
    };
    let ended = |line: &Value| line["fields"]["operation"] == id.as_str();
    until("the operation is in the log", async || lines("system.log").iter().any(ended)).await;
    let alert = |line: &Value| line["fields"]["message"].as_str().unwrap_or("").contains("a look at the log");
    until("the alert is in the log of errors", async || lines("error.log").iter().any(alert)).await;
    assert!(lines("error.log").iter().all(|line| line["level"] != "INFO"));
}

/// The services stop and start again while the facade answers; what was said before holds on.
/// Journal, history and logs hold positions and trades: other users of the machine read none of them, whatever the umask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_data_folder_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    drop(Server::start(folder.path()).await);
    // As versions before made it with most umasks.
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let _server = Server::start(folder.path()).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let (mut folders, mut files) = (vec![data], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    let names: Vec<_> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert!(names.contains(&"journal.sqlite") && names.contains(&"history.sqlite"), "{names:?}");
    let open: Vec<_> = files.iter().filter(|path| mode(path) & 0o077 != 0).collect();
    assert_eq!(open, Vec::<&std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_stop_and_start_again_while_the_facade_answers() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let policy = r#"{"accounts": ["pacifica-main", "aster-hedge", "binance-backup"], "enabled": false}"#;
    let (status, set) = server.put("/api/v1/policies/BTC-USD", policy).await;
    assert_eq!((status, &set["status"]), (200, &"off".into()), "{set}");
    let (status, done) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    assert_eq!(status, 200, "{done}");
    let id = done["operationId"].as_str().unwrap().to_owned();
    // An alert is raised meanwhile.
    let go = r#"{"targetFeed": "binance", "reason": "a look around"}"#;
    assert_eq!(server.post("/api/v1/market/failover", &[], go).await.0, 200);
    let alert = server.get("/api/v1/risk/alerts").await.1[0]["id"].as_str().unwrap().to_owned();
    // A body is not needed; one that says something is a mistake.
    for (body, status) in [("{\"now\": true}", 400), ("{\"now\"", 400)] {
        let refused = server.post("/api/v1/system/stop", &[], body).await;
        assert_eq!((refused.0, &refused.1["code"]), (status, &1000.into()), "{refused:?}");
    }
    let stopped = server.post("/api/v1/system/stop", &[], "").await;
    assert_eq!(stopped, (200, serde_json::json!({"success": true, "status": "stopped"})));
    assert_eq!(server.post("/api/v1/system/stop", &[], "").await.1["status"], "stopped", "twice is once");
    let (status, system) = server.get("/api/v1/system/status").await;
    assert_eq!((status, &system["status"], &system["ready"]), (200, &"stopped".into(), &false.into()));
    assert!(system["services"].as_array().unwrap().iter().all(|service| service["status"] == "stopped"));
    assert_eq!(server.get("/readyz").await.0, 503);
    assert_eq!(server.get("/healthz").await.0, 200);
    let (status, refused) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    assert_eq!((status, &refused["code"]), (503, &1007.into()), "{refused}");
    assert!(refused["solution"].as_str().unwrap().contains("/api/v1/system/restart"), "{refused}");
    let engage = r#"{"engaged": true, "reason": "nothing runs"}"#;
    assert_eq!(server.post("/api/v1/system/kill-switch", &[], engage).await.0, 503);
    let (status, refused) = server.get("/api/v1/funding").await;
    assert_eq!((status, &refused["code"]), (503, &1007.into()), "no false zero: {refused}");
    // The alert still stands, and its id must exist to be acknowledged.
    assert_eq!(server.get("/api/v1/risk/alerts").await.1[0]["id"], alert.as_str());
    let ack = format!("/api/v1/risk/alerts/{alert}/ack");
    assert_eq!(server.post(&ack, &[], r#"{"note": "late"}"#).await.0, 503);
    // What was seen last can still be read.
    assert_eq!(server.get(&format!("/api/v1/operations/{id}")).await.1["state"], "succeeded");
    assert_eq!(server.get("/api/v1/accounts").await.1["accounts"].as_array().unwrap().len(), 3);
    for round in 0..2 {
        let started = server.post("/api/v1/system/restart", &[], "").await;
        assert_eq!(started, (200, serde_json::json!({"success": true, "status": "running"})), "{round}");
        // A venue's budget that the starts before spent is there again after a minute.
        until_within(Duration::from_secs(70), "ready", async || server.get("/readyz").await.0 == 200).await;
    }
    let (_, policies) = server.get("/api/v1/policies").await;
    assert_eq!(policies["policies"][0]["symbol"], "BTC-USD", "{policies}");
    let all = [server.get("/api/v1/risk/alerts").await.1, server.get("/api/v1/risk/alerts/history").await.1];
    let known = all.iter().flat_map(|list| list.as_array().unwrap()).any(|told| told["id"] == alert.as_str());
    assert!(known, "it survives two restarts, standing or over: {all:?}");
    // Three starts within a minute leave room in every exchange's budget.
    let (status, calm) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    assert_eq!((status, &calm["adjustmentNeeded"]), (200, &false.into()), "{calm}");
    assert_eq!(server.get(&format!("/api/v1/operations/{id}")).await.1["state"], "succeeded");
}

/// Margin in use is above the equity, a quotient of 29 digits: what was written of it is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_in_margin_trouble_is_found_so_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (server, exchanges) = Server::start_printing(folder.path()).await;
    let control = &exchanges["aster"].control;
    let set = server
        .client
        .put(format!("{control}/accounts/aster-hedge/balances/USDT"))
        .json(&serde_json::json!({"wallet": "300"}))
        .send()
        .await
        .unwrap();
    assert!(set.status().is_success(), "{}", set.text().await.unwrap());
    let of_aster = async |server: &Server| {
        let (_, alerts) = server.get("/api/v1/risk/alerts?severity=CRITICAL").await;
        let all = alerts.as_array().unwrap().clone();
        all.into_iter()
            .find(|alert| alert["accountId"] == "aster-hedge" && alert["data"]["utilizationRate"].is_number())
    };
    let before = found("the alert", async || of_aster(&server).await).await;
    let told =
        server.client.get(server.url("/api/v1/risk/alerts")).send().await.unwrap().text().await.unwrap();
    let ratio = told.split("\"utilizationRate\":").nth(1).unwrap().split(['}', ',']).next().unwrap();
    assert!(('1'..'8').contains(&ratio.chars().next().unwrap()) && ratio.len() > 20, "{told}");
    until("two states are kept", async || {
        let (status, history) = server.get("/api/v1/risk/history/aster-hedge").await;
        assert_eq!(status, 200, "{history}");
        history.as_array().unwrap().len() > 1
    })
    .await;
    drop(server);
    let server = Server::start(folder.path()).await;
    let (_, alerts) = server.get("/api/v1/risk/alerts").await;
    let (_, over) = server.get("/api/v1/risk/alerts/history").await;
    let all = [alerts, over];
    let known = all.iter().flat_map(|list| list.as_array().unwrap()).any(|told| told["id"] == before["id"]);
    assert!(known, "{all:?}");
}

/// Feeds, history, alerts and policies as a person at a terminal uses them, and what is wrong with a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn monitoring_endpoints_answer_and_reject_bad_input() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (status, feeds) = server.get("/api/v1/market/feeds").await;
    assert_eq!((status, feeds["feeds"].as_array().unwrap().len()), (200, 3), "{feeds}");
    assert_eq!(feeds["lastFailover"], 0);
    let active = feeds["activeFeed"].as_str().unwrap().to_owned();
    let other =
        feeds["feeds"].as_array().unwrap().iter().find(|feed| feed["feedId"] != active.as_str()).unwrap();
    let other = other["feedId"].as_str().unwrap().to_owned();
    let go = format!(r#"{{"targetFeed": "{other}", "reason": "maintenance"}}"#);
    let (status, switched) = server.post("/api/v1/market/failover", &[], go.clone()).await;
    assert_eq!(
        (status, &switched["feedId"], &switched["success"]),
        (200, &other.as_str().into(), &true.into())
    );
    let (_, feeds) = server.get("/api/v1/market/feeds").await;
    assert_eq!(feeds["activeFeed"], other.as_str());
    assert!(feeds["lastFailover"].as_i64().unwrap() > 0);
    let (_, alerts) = server.get("/api/v1/risk/alerts?severity=INFO").await;
    assert_eq!(alerts[0]["type"], "failover-alert", "{alerts}");
    let ack = format!("/api/v1/risk/alerts/{}/ack", alerts[0]["id"].as_str().unwrap());
    let (status, seen) = server.post(&ack, &[], r#"{"note": "it was me"}"#).await;
    assert_eq!((status, &seen["acknowledged"]["note"]), (200, &"it was me".into()), "{seen}");
    let (status, twice) = server.post(&ack, &[], r#"{"note": "again"}"#).await;
    assert_eq!((status, &twice["acknowledged"]["note"]), (200, &"it was me".into()), "{twice}");
    let (status, refused) = server.get("/api/v1/pnl?since=5&until=1").await;
    assert_eq!((status, &refused["code"]), (400, &1000.into()), "{refused}");
    for wrong in ["unknown", "BAD%20ID"] {
        let (status, refused) = server.get(&format!("/api/v1/risk/alerts?accountId={wrong}")).await;
        assert_eq!((status, &refused["code"]), (404, &1001.into()), "{refused}");
    }
    let history = found("two states are kept", async || {
        let (_, history) = server.get("/api/v1/risk/history/pacifica-main?limit=2").await;
        (history.as_array().unwrap().len() == 2).then_some(history)
    })
    .await;
    assert!(history[0]["timestamp"].as_i64() > history[1]["timestamp"].as_i64(), "{history}");
    assert_eq!(history[0]["accountId"], "pacifica-main");
    assert_eq!(
        server.get("/api/v1/risk/history/pacifica-main?since=4000000000000").await,
        (200, serde_json::json!([]))
    );
    assert_eq!(server.get("/api/v1/risk/alerts/history").await, (200, serde_json::json!([])));
    let of = |value: &Value| value.to_string().parse::<f64>().unwrap();
    let (status, stressed) = server
        .post("/api/v1/risk/stress", &[], r#"{"symbol": "BTC-USD", "moves": ["-0.1", 0.1, -0.99]}"#)
        .await;
    assert_eq!((status, stressed["netDelta"].to_string().as_str()), (200, "0.25"), "{stressed}");
    let by_account = |list: &Value, id: &str| {
        list.as_array().unwrap().iter().find(|line| line["accountId"] == id).unwrap().clone()
    };
    let equity =
        |index: usize, id: &str| of(&by_account(&stressed["moves"][index]["accounts"], id)["equity"]);
    // A fifth of the price on 0.5 long and 0.25 short.
    let (long, short) = (
        equity(1, "pacifica-main") - equity(0, "pacifica-main"),
        equity(1, "aster-hedge") - equity(0, "aster-hedge"),
    );
    assert!((long / -short - 2.0).abs() < 0.01, "{long} {short}");
    let (_, risk) = server.get("/api/v1/risk/metrics/pacifica-main").await;
    let mark = of(&risk["positions"][0]["markPrice"]);
    assert!((long / (0.5 * mark * 0.2) - 1.0).abs() < 0.01, "{long} at {mark}");
    assert!((equity(0, "binance-backup") - equity(1, "binance-backup")).abs() < 1e-9, "{stressed}");
    // The short is liquidated at the same price as before; after a tenth up that is nearer.
    let (_, short) = server.get("/api/v1/risk/metrics/aster-hedge").await;
    let now = of(&short["liquidationDistance"]);
    let then = of(&by_account(&stressed["moves"][1]["accounts"], "aster-hedge")["liquidationDistance"]);
    assert!(((1.0 + now) / 1.1 - 1.0 - then).abs() < 0.01 * then, "{now} and then {then}");
    let loss = by_account(&stressed["losses"], "pacifica-main");
    assert_eq!(loss["netDeltaIfLegFails"].to_string(), "-0.25");
    assert_eq!(loss["untradableIfVenueFails"].to_string(), "0.5");
    let (status, funding) = server.get("/api/v1/funding").await;
    assert_eq!((status, funding["funding"].as_array().unwrap().len()), (200, 3), "{funding}");
    let mut day = 0.0;
    for line in funding["funding"].as_array().unwrap() {
        let hours = of(&line["intervalHours"]);
        assert!((of(&line["ratePerHour"]) * hours - of(&line["rate"])).abs() < 1e-12, "{line}");
        assert!((of(&line["carryPerDay"]) - of(&line["nextPayment"]) * 24.0 / hours).abs() < 1e-6, "{line}");
        let expected = -of(&line["position"]) * mark * of(&line["rate"]);
        assert!((of(&line["nextPayment"]) - expected).abs() <= expected.abs() * 0.01, "{line}");
        day += of(&line["carryPerDay"]);
    }
    assert!((of(&funding["carryPerDay"]) - day).abs() < 1e-6, "{funding}");
    let policy = r#"{"accounts": ["pacifica-main", "aster-hedge", "binance-backup"], "after": 0, "tolerancePercent": "0.02", "rebalance": {"every": 3600000, "targetUtilization": 0.5}}"#;
    let (status, set) = server.put("/api/v1/policies/BTC-USD", policy).await;
    assert_eq!((status, &set["enabled"]), (200, &true.into()), "{set}");
    assert_eq!(set["deleverage"], serde_json::json!({"trigger": 0.08, "until": 0.15}));
    // The paper accounts are 0.25 BTC net long: no request is needed.
    until("net delta is 0", async || server.get("/api/v1/portfolio").await.1["symbols"][0]["netDelta"] == 0)
        .await;
    let (_, view) = server.get("/api/v1/policies/BTC-USD").await;
    let id = view["lastOperationId"].as_str().unwrap();
    assert!(id.starts_with("policy-"), "{view}");
    assert_eq!(server.get(&format!("/api/v1/operations/{id}")).await.1["kind"], "policy");
    let two = r#"["pacifica-main", "aster-hedge"]"#;
    for (body, status, code, part) in [
        (r#"{"accounts": ["pacifica-main"]}"#.to_owned(), 400, 1000, "/accounts names one account"),
        (r#"{"accounts": ["pacifica-main", "unknown"]}"#.to_owned(), 404, 1001, "not configured: unknown"),
        (
            format!(r#"{{"accounts": {two}, "tolerancePercent": 0.3, "maxDeviation": 0.2}}"#),
            400,
            1000,
            "/tolerancePercent 0.3 is above maxDeviation 0.2",
        ),
        (
            format!(r#"{{"accounts": {two}, "targetDelta": 1000}}"#),
            400,
            1000,
            "targetDelta 1000 is worth more than max_net_delta",
        ),
        (
            format!(r#"{{"accounts": {two}, "deleverage": {{"trigger": 0.2, "until": 0.1}}}}"#),
            400,
            1000,
            "/deleverage/until 0.1 is not above trigger 0.2",
        ),
        (
            format!(r#"{{"accounts": {two}, "deleverage": {{"triger": 0.2}}}}"#),
            400,
            1000,
            "/deleverage/triger is not a known field; did you mean trigger?",
        ),
        (
            format!(r#"{{"accounts": {two}, "rebalance": {{"targetUtilization": 0.5}}}}"#),
            400,
            1000,
            "/rebalance/every is missing",
        ),
        (format!(r#"{{"accounts": {two}, "rebalance": 7}}"#), 400, 1000, "/rebalance"),
        (format!(r#"{{"accounts": {two}, "after": -1}}"#), 400, 1000, "/after -1 is out of range"),
    ] {
        let (found, answer) = server.put("/api/v1/policies/BTC-USD", body.clone()).await;
        let error = answer["error"].as_str().unwrap();
        assert_eq!((found, &answer["code"]), (status, &code.into()), "{body}: {answer}");
        assert!(error.contains(part), "{body}: {error}");
    }
    let (_, kept) = server.get("/api/v1/policies/BTC-USD").await;
    assert_eq!(
        (&kept["accounts"], &kept["tolerancePercent"]),
        (&view["accounts"], &view["tolerancePercent"])
    );
    assert_eq!(server.get("/api/v1/policies/ETH-USD").await.0, 404);
    assert_eq!(server.get("/api/v1/policies/nonsense").await.0, 400);
    for (path, status, code) in [
        ("/api/v1/risk/history/unknown", 404, 1001),
        ("/api/v1/risk/history/pacifica-main?limit=0", 400, 1000),
        ("/api/v1/risk/history/pacifica-main?limit=1001", 400, 1000),
        ("/api/v1/risk/history/pacifica-main?since=yesterday", 400, 1000),
        ("/api/v1/risk/history/pacifica-main?since=9&until=8", 400, 1000),
        ("/api/v1/risk/history/pacifica-main?interval=0", 400, 1000),
        ("/api/v1/risk/history/pacifica-main?from=1", 400, 1000),
        ("/api/v1/risk/alerts/history?limit=x", 400, 1000),
    ] {
        let (found, answer) = server.get(path).await;
        assert_eq!((found, &answer["code"]), (status, &code.into()), "{path}: {answer}");
    }
    for (path, body, status, code) in [
        ("/api/v1/market/failover", r#"{"targetFeed": "nowhere"}"#, 404, 1008),
        ("/api/v1/market/failover", r#"{"targetFeed": "not a name!"}"#, 400, 1000),
        ("/api/v1/market/failover", "{}", 400, 1000),
        ("/api/v1/risk/stress", r#"{"symbol": "BTC-USD", "moves": [-1]}"#, 400, 1000),
        ("/api/v1/risk/stress", r#"{"symbol": "BTC-USD", "moves": []}"#, 400, 1000),
        ("/api/v1/risk/stress", r#"{"symbol": "BTC-USD", "moves": "many"}"#, 400, 1000),
        ("/api/v1/risk/alerts/none/ack", r#"{"note": "x"}"#, 404, 1008),
        ("/api/v1/risk/alerts/none/ack", r#"{"note": ""}"#, 400, 1000),
    ] {
        let (found, answer) = server.post(path, &[], body).await;
        assert_eq!((found, &answer["code"]), (status, &code.into()), "{path} {body}: {answer}");
    }
}
