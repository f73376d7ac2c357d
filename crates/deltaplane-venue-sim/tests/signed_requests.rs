//! Requests and signatures that others made: accepted as they are, refused with anything changed.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use deltaplane_types::Decimal;
use deltaplane_venue_sim::config::{AccountConfig, AgentConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::{Dialect, Market, Running, SimClock, SimOptions, Switches, start};
use serde_json::{Value, json};
use support::{Plain, code, flipped, send};

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

async fn exchange(
    dialect: Dialect,
    account: AccountConfig,
    at: i64,
    options: fn(&mut SimOptions),
) -> Running {
    let config = ExchangeConfig::with_accounts(dialect, vec![account]);
    let clock = SimClock::Frozen(Arc::new(AtomicI64::new(at)));
    let market = Market::Synthetic { seed: 1, venue: 1, mark: Some(Decimal::from(95_000)) };
    let mut all = SimOptions::new(dialect, config, clock, market);
    all.speed_bump = std::time::Duration::ZERO;
    options(&mut all);
    let any = "127.0.0.1:0".parse().unwrap();
    start(all, any, Some(any)).await.unwrap()
}

fn form(method: &str) -> &'static str {
    if method == "GET" { "" } else { "Content-Type: application/x-www-form-urlencoded\r\n" }
}

// Aster

fn aster_account(user: &str, signer: &str) -> AccountConfig {
    let agents = if user.eq_ignore_ascii_case(signer) { vec![] } else { vec![AgentConfig::new(signer)] };
    AccountConfig { address: user.to_owned(), agents, ..AccountConfig::new("a", "testkey", "testsecret") }
}

/// Whether an answer says that the request was let in, whatever the order's own rules say then.
fn let_in(status: u16, body: &str) -> bool {
    !matches!(code(body), Some(-1000 | -1021 | -1022 | -2014 | -2015 | -4225 | -4226 | -5050))
        && status != 404
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aster_takes_what_public_clients_send_and_nothing_else() {
    let data = read(include_str!("data/golden_aster.json"));
    let at = data["frozen_clock_ms"].as_i64().unwrap();
    let (user, signer) = (text(&data["keys"], "user"), text(&data["keys"], "signer"));
    for vector in data["vectors"].as_array().unwrap() {
        let name = format!("{} {}", text(vector, "client"), text(vector, "op"));
        let all = format!("{}&{}", text(vector, "query"), text(vector, "body"));
        let sent_user = all.split('&').find_map(|pair| pair.strip_prefix("user=")).unwrap();
        // ccxt signs with the wallet itself; one of its requests and the other client use an agent.
        let account = if sent_user.eq_ignore_ascii_case(signer) {
            aster_account(signer, signer)
        } else {
            aster_account(user, signer)
        };
        let start = || exchange(Dialect::Aster, account.clone(), at, |_| {});
        let request = |from: &str, to: &str| {
            let changed = |part: &str| part.replace(from, to);
            let (query, body) = (changed(text(vector, "query")), changed(text(vector, "body")));
            let path = text(vector, "path");
            (if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }, body)
        };
        let ask = async |running: &Running, from: &str, to: &str| {
            let (target, body) = request(from, to);
            let method = text(vector, "method");
            send(running, &Plain { method, target: &target, headers: form(method), body: &body }).await
        };
        let running = start().await;
        let signature = text(vector, "signature");
        let (status, answer) = ask(&running, signature, &flipped(signature)).await;
        assert_eq!((status, code(&answer)), (400, Some(-1000)), "{name}: {answer}");
        let (_, answer) = ask(&running, "nonce=17500", "nonce=17501").await;
        assert_eq!(code(&answer), Some(-1000), "{name}: a changed nonce: {answer}");
        let (_, answer) = ask(&running, "user=0x", "xuser=0x").await;
        assert_eq!(code(&answer), Some(-1000), "{name}: a changed field: {answer}");
        let (status, answer) = ask(&running, "", "").await;
        if text(vector, "op") == "err_bad_key" {
            assert_eq!((status, code(&answer)), (400, Some(-1000)), "{answer}");
            continue;
        }
        assert!(let_in(status, &answer), "{name}: {status} {answer}");
        match text(vector, "op") {
            "err_min_notional" => assert_eq!(code(&answer), Some(-4164)),
            "err_margin" => assert_eq!(code(&answer), Some(-2019)),
            "create_limit_order_no_tif" => assert_eq!(code(&answer), Some(-1102)),
            "reduce_only_close" => assert_eq!(code(&answer), Some(-2022)),
            op if op.starts_with("create_") => assert_eq!(status, 200, "{name}: {answer}"),
            _ => {}
        }
        let (_, answer) = ask(&running, "", "").await;
        assert_eq!(code(&answer), Some(-4226), "{name}: the same nonce again");
        for off in [-61_000, 61_000] {
            let running = exchange(Dialect::Aster, account.clone(), at + off, |_| {}).await;
            let (_, answer) = ask(&running, "", "").await;
            assert_eq!(code(&answer), Some(-4225), "{name}: a clock off by {off} ms");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aster_verifies_every_published_and_computed_signature() {
    let data = read(include_str!("data/vectors_aster.json"));
    let mut tried = 0;
    for vector in data["vectors"].as_array().unwrap() {
        let name = text(vector, "name");
        let signature = text(vector, "expected_signature");
        let mut query = text(vector, "string_to_sign").to_owned();
        let (mut path, mut method) = (text(vector, "path"), text(vector, "method"));
        let mut account =
            aster_account("0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e", text(vector, "signer_address"));
        let nonce_ms = |query: &str| -> i64 {
            let nonce = query.split('&').find_map(|pair| pair.strip_prefix("nonce=")).unwrap();
            nonce.parse::<i64>().unwrap() / 1_000
        };
        let at;
        let (mut body, mut headers) = (String::new(), String::new());
        match text(vector, "scheme") {
            "v1-hmac-sha256" => {
                let params = format!("{}{}", text(vector, "query"), text(vector, "body"));
                let all = if params.is_empty() { query.clone() } else { params };
                let stamp = all.split(['&', '=']).skip_while(|part| *part != "timestamp").nth(1).unwrap();
                at = stamp.parse().unwrap();
                account = AccountConfig::new("a", text(vector, "api_key"), text(vector, "secret"));
                headers = format!("X-MBX-APIKEY: {}\r\n", text(vector, "api_key"));
                if !text(vector, "body").is_empty() {
                    query = text(vector, "query").to_owned();
                    body = format!("{}&signature={signature}", text(vector, "body"));
                }
            }
            "v3-legacy-abi" => {
                at = text(vector, "nonce").parse::<i64>().unwrap() / 1_000;
                (method, path) = ("POST", "/fapi/v3/order");
                let pairs = vector["params"].as_array().unwrap().iter();
                let pairs: Vec<String> = pairs
                    .map(|pair| format!("{}={}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
                    .collect();
                let own = ["nonce", "user", "signer"].map(|key| format!("{key}={}", text(vector, key)));
                query = format!("{}&{}", pairs.join("&"), own.join("&"));
            }
            "v3-eip712-typed-action" => {
                let pairs = vector["params"].as_array().unwrap().iter();
                let pairs: Vec<String> = pairs
                    .map(|pair| format!("{}={}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
                    .collect();
                query = pairs.join("&");
                account = aster_account(text(vector, "signer_address"), text(vector, "signer_address"));
                at = nonce_ms(&query);
            }
            _ if name == "v3_register_and_approve_agent" => continue, // not an endpoint of a trading account
            _ => {
                if query.contains("user=0x2c7536") {
                    account = aster_account(text(vector, "signer_address"), text(vector, "signer_address"));
                }
                if text(vector, "encoding") == "raw" {
                    // Signed as it reads, sent encoded.
                    let pair = query.split('&').next().unwrap().to_owned();
                    let encoded =
                        pair.replace('[', "%5B").replace(']', "%5D").replace('{', "%7B").replace('}', "%7D");
                    query = query.replace(&pair, &encoded.replace('\'', "%27"));
                }
                at = nonce_ms(&query);
            }
        }
        let chain = vector["chain_id"].as_u64().unwrap_or(1_666);
        let options: fn(&mut SimOptions) = match chain {
            714 => |all| all.chain_id = 714,
            _ => |all| {
                all.switches = Switches {
                    accepts_decoded_signatures: true,
                    accepts_legacy_signatures: true,
                    ..Switches::default()
                };
            },
        };
        let running = exchange(Dialect::Aster, account, at, options).await;
        let ask = async |signature: &str| {
            let (query, body) = if body.is_empty() {
                (format!("{query}&signature={signature}"), String::new())
            } else {
                (
                    query.clone(),
                    format!("{}&signature={signature}", body.rsplit_once("&signature=").unwrap().0),
                )
            };
            let target = format!("{path}?{query}");
            send(&running, &Plain { method, target: &target, headers: &headers, body: &body }).await
        };
        // A changed byte in the middle changes who signed, or what.
        let middle = signature.len() / 2;
        let other = if signature.as_bytes()[middle] == b'0' { "1" } else { "0" };
        let changed = format!("{}{other}{}", &signature[..middle], &signature[middle + 1..]);
        let (_, answer) = ask(&changed).await;
        assert!(matches!(code(&answer), Some(-1000 | -1022)), "{name}: {answer}");
        let (status, answer) = ask(signature).await;
        assert!(let_in(status, &answer), "{name}: {status} {answer}");
        tried += 1;
    }
    assert_eq!(tried, 27);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aster_keeps_out_strangers_expired_agents_and_accounts_without_a_deposit() {
    let data = read(include_str!("data/golden_aster.json"));
    let at = data["frozen_clock_ms"].as_i64().unwrap();
    let vectors = data["vectors"].as_array().unwrap();
    let vector = vectors.iter().find(|v| text(v, "op") == "create_market_order").unwrap();
    let (user, signer) = (text(&data["keys"], "user"), text(&data["keys"], "signer"));
    let ask = async |account: AccountConfig| {
        let running = exchange(Dialect::Aster, account, at, |_| {}).await;
        let target = match text(vector, "query") {
            "" => text(vector, "path").to_owned(),
            query => format!("{}?{query}", text(vector, "path")),
        };
        let plain =
            Plain { method: "POST", target: &target, headers: form("POST"), body: text(vector, "body") };
        code(&send(&running, &plain).await.1)
    };
    let with = |agent: AgentConfig| AccountConfig { agents: vec![agent], ..aster_account(user, "0x01") };
    assert_eq!(ask(with(AgentConfig::new(signer))).await, None, "bound and allowed");
    assert_eq!(ask(with(AgentConfig::new("0x1111111111111111111111111111111111111111"))).await, Some(-1000));
    assert_eq!(ask(with(AgentConfig { expires: at - 1, ..AgentConfig::new(signer) })).await, Some(-2015));
    assert_eq!(ask(with(AgentConfig { can_trade: false, ..AgentConfig::new(signer) })).await, Some(-2015));
    let of_another =
        AccountConfig { address: format!("0x{}", "22".repeat(20)), ..with(AgentConfig::new(signer)) };
    assert_eq!(ask(of_another).await, Some(-1000), "the agent belongs to another wallet");
    let poor = AccountConfig { deposited: false, ..with(AgentConfig::new(signer)) };
    assert_eq!(ask(poor).await, Some(-5050));
}

// Pacifica

fn pacifica_account(address: &str, agent: &str) -> AccountConfig {
    AccountConfig {
        address: address.to_owned(),
        agents: vec![AgentConfig::new(agent)],
        wallet: Exact(Decimal::from(50_000)),
        ..AccountConfig::new("a", "", "")
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

async fn post(running: &Running, path: &str, body: &Value) -> (u16, String) {
    let body = body.to_string();
    send(running, &Plain { method: "POST", target: path, headers: JSON, body: &body }).await
}

fn is_signature_failure(answer: &str) -> bool {
    [
        "Verification failed",
        "Invalid signature",
        "Invalid message",
        "Invalid public key",
        "Agent not authorized",
    ]
    .iter()
    .any(|known| answer.contains(known))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pacifica_takes_what_public_clients_send_and_nothing_else() {
    let data = read(include_str!("data/golden_pacifica.json"));
    let at = data["frozen_clock_ms"].as_i64().unwrap();
    let account = pacifica_account(text(&data["keys"], "account"), text(&data["keys"], "agent"));
    let running = exchange(Dialect::Pacifica, account.clone(), at, |all| all.credit_factor = 10).await;
    for vector in data["vectors"].as_array().unwrap() {
        let name = text(vector, "op");
        let path = text(vector, "path");
        let body = read(text(vector, "body"));
        let changed = |name: &str, value: Value| {
            let mut body = body.clone();
            body[name] = value;
            body
        };
        let refused = async |body: Value, what: &str| {
            let (status, answer) = post(&running, path, &body).await;
            assert!(status == 400 && is_signature_failure(&answer), "{name}: {what}: {status} {answer}");
        };
        refused(changed("signature", flipped(text(&body, "signature")).into()), "signature").await;
        refused(changed("timestamp", json!(at + 1)), "time").await;
        refused(changed("surprise", json!("x")), "a field that was not signed").await;
        let stranger = "6ApptFeyWw4VbhFYpcTaTRyJMgnEUGTVTGwCw7MsiERK";
        refused(changed("account", stranger.into()), "account").await;
        let (status, answer) = post(&running, path, &body).await;
        assert!(!is_signature_failure(&answer), "{name}: {status} {answer}");
        match name {
            "err_min_notional" => assert!(answer.contains("invalid_amount"), "{answer}"),
            "err_margin" => assert!(status == 422 && answer.contains("Insufficient balance"), "{answer}"),
            op if op.contains("market_order") && !path.contains("builder") => {
                assert_eq!(status, 200, "{name}: {answer}");
            }
            _ => {}
        }
        let late = exchange(Dialect::Pacifica, account.clone(), at + 60_000, |_| {}).await;
        let (status, answer) = post(&late, path, &body).await;
        assert!(status == 400 && answer.contains("Invalid message"), "{name}: expired: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pacifica_verifies_every_computed_signature() {
    let data = read(include_str!("data/vectors_pacifica.json"));
    let key = |name: &str| text(&data["keys"][name], "public_key_base58").to_owned();
    let (main, agent) = (key("main"), key("agent"));
    let at = data["vectors"][0]["timestamp"].as_i64().unwrap();
    let start = |of: &str| {
        exchange(Dialect::Pacifica, pacifica_account(of, &agent), at, |all| all.credit_factor = 10)
    };
    let vectors = data["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 33);
    for vector in vectors {
        // Some of them bind and unbind keys: each meets an exchange of its own.
        let running = start(text(&vector["body"], "account")).await;
        let (name, path) = (text(vector, "name"), text(&vector["http"], "path"));
        let mut body = vector["body"].clone();
        let (status, answer) = post(&running, path, &body).await;
        assert!(status != 404 && !is_signature_failure(&answer), "{name}: {status} {answer}");
        body["signature"] = flipped(text(&body, "signature")).into();
        let (_, answer) = post(&running, path, &body).await;
        assert!(is_signature_failure(&answer), "{name}: {answer}");
    }
    let running = start(&main).await;
    let create = &data["subaccount_create"];
    let (status, answer) = post(&running, text(&create["http"], "path"), &create["body"]).await;
    assert_eq!(status, 200, "{answer}");
    let hardware = &data["hardware"]["body"];
    let (status, answer) = post(&running, "/api/v1/orders/create", hardware).await;
    assert!(!is_signature_failure(&answer), "{status} {answer}");
    let running = start(&main).await;
    let (status, answer) = post(&running, "/api/v1/orders/batch", &data["batch"]["body"]).await;
    let results = read(&answer)["data"]["results"].clone();
    assert_eq!((status, results.as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    for vector in data["negative"].as_array().unwrap() {
        let at = vector["server_time_ms"].as_i64().unwrap_or(at);
        let running = exchange(Dialect::Pacifica, pacifica_account(&main, &agent), at, |_| {}).await;
        let (status, answer) = post(&running, "/api/v1/orders/create", &vector["body"]).await;
        assert!(status == 400 && is_signature_failure(&answer), "{}: {answer}", text(vector, "name"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pacifica_refuses_a_get_with_a_body_and_unbound_agents() {
    let data = read(include_str!("data/vectors_pacifica.json"));
    let main = text(&data["keys"]["main"], "public_key_base58");
    let at = data["vectors"][0]["timestamp"].as_i64().unwrap();
    let unbound = AccountConfig { agents: vec![], ..pacifica_account(main, "") };
    let running = exchange(Dialect::Pacifica, unbound, at, |_| {}).await;
    let by_agent = &data["vectors"][1]["body"];
    let (status, answer) = post(&running, "/api/v1/orders/create", by_agent).await;
    assert!(status == 400 && answer.contains("Agent not authorized for account"), "{answer}");
    let headers = "Content-Length: 0\r\n";
    let plain = Plain { method: "GET", target: "/api/v1/info", headers, body: "" };
    assert_eq!(send(&running, &plain).await.0, 403, "the content network refuses it");
}
