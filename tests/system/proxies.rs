//! Accounts behind real proxy servers: tinyproxy (HTTP) and microsocks (SOCKS 5), which must be installed.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use deltaplane_tests::live::{self, Server};
use deltaplane_tests::{Place, exchanges, until_within};
use deltaplane_venue_sim::Running;
use serde_json::{Value, json};

const WORD: &str = "open-sesame-1234";
/// A proxy is given up after some looks, seconds apart.
const LONG: Duration = Duration::from_secs(40);

fn places() -> Vec<Place> {
    vec![Place::new("http", "0.5"), Place::new("socks", "-0.25"), Place::new("direct", "0")]
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A proxy server that runs. Dropping it ends it.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(command: &mut Command) -> Daemon {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Daemon(child.expect("apt-get install tinyproxy microsocks"))
}

/// HTTP, with CONNECT to any port.
fn tinyproxy(folder: &Path, port: u16) -> Daemon {
    let file = folder.join("tinyproxy.conf");
    let text = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 100\nAllow 127.0.0.1\nBasicAuth me {WORD}\nLogFile \"{}\"\nLogLevel Connect\n",
        folder.join("tinyproxy.log").display()
    );
    std::fs::write(&file, text).unwrap();
    run(Command::new("tinyproxy").arg("-d").arg("-c").arg(file))
}

fn microsocks(port: u16) -> Daemon {
    run(Command::new("microsocks").args(["-i", "127.0.0.1", "-p", &port.to_string(), "-u", "me", "-P", WORD]))
}

async fn alert(server: &Server, account: &str) -> Option<String> {
    let alerts = server.get("/api/v1/risk/alerts").await;
    let found = alerts
        .as_array()
        .unwrap()
        .iter()
        .find(|alert| alert["type"] == "proxy-alert" && alert["accountId"] == account);
    found.map(|alert| alert["severity"].as_str().unwrap().to_owned())
}

async fn hedge(server: &Server, account: &str, side: &str) -> Value {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let body = json!({
        "hedgeAmount": 0.01, "hedgeStrategy": "delta-neutral", "targetAccounts": [account],
        "symbol": "BTC-USD", "side": side,
    });
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    server
        .post_with("/api/v1/hedge/execute", &[("Idempotency-Key", &format!("hedge-{number}"))], &body)
        .await
        .unwrap()
}

fn configure(folder: &Path, exchanges: &[Running], [http, socks, backup]: [u16; 3]) {
    let mut text =
        "mode = \"live\"\n[limits]\nmax_order_notional = \"100000\"\nmax_position_notional = \"1000000\"\n"
            .to_owned();
    for (id, scheme, port) in
        [("tiny", "http", http), ("first", "socks5", socks), ("backup", "socks5", backup)]
    {
        write!(
            text,
            "[[proxy]]\nid = \"{id}\"\nurl = \"{scheme}://127.0.0.1:{port}\"\nuser_password_env = \"PROXY\"\n"
        )
        .unwrap();
    }
    for (place, running) in places().iter().zip(exchanges) {
        let (name, rest, ws) = (place.name, running.rest(), running.ws());
        // One pool for a whole exchange, one for an account alone.
        let (of_exchange, of_account) = match name {
            "http" => ("proxies = [\"tiny\"]\n", ""),
            "socks" => ("", "proxies = [\"first\", \"backup\"]\nproxy_failover = true\n"),
            _ => ("", ""),
        };
        write!(
            text,
            "[[exchange]]\nid = \"{name}\"\nkind = \"binance\"\nrest_url = \"{rest}\"\nstream_url = \"{ws}\"\n{of_exchange}\
             [[account]]\nid = \"{name}\"\nexchange = \"{name}\"\napi_key_env = \"KEY_{name}\"\nsecret_env = \"SECRET_{name}\"\n{of_account}"
        )
        .unwrap();
    }
    live::write_config(folder, &text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs tinyproxy and microsocks"]
async fn f22_accounts_trade_through_proxies_and_a_dead_proxy_raises_an_alert_and_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let exchanges = exchanges(&places()).await;
    let ports = [free_port(), free_port(), free_port()];
    let tiny = tinyproxy(folder, ports[0]);
    let (first, _backup) = (microsocks(ports[1]), microsocks(ports[2]));
    configure(folder, &exchanges, ports);
    let names = places().into_iter().map(|place| place.name);
    let secrets = names
        .flat_map(|name| {
            [
                (format!("KEY_{name}"), format!("{name}key")),
                (format!("SECRET_{name}"), format!("{name}secret")),
            ]
        })
        .chain([("PROXY".to_owned(), format!("me:{WORD}"))]);
    let server = Server::start(env!("CARGO_BIN_EXE_deltaplane-server"), folder, secrets).await;
    let body = json!({
        "targetDelta": 0, "accounts": ["http", "socks", "direct"], "maxDeviation": 0.1, "symbol": "BTC-USD",
    });
    let answer = server.post("/api/v1/delta/control", &body).await.unwrap();
    assert_eq!(answer["success"], true, "{answer}");
    for account in ["http", "socks"] {
        let answer = hedge(&server, account, "sell").await;
        assert_eq!(answer["success"], true, "{answer}");
    }
    // Streams go through CONNECT, requests without TLS through the proxy itself.
    let log = std::fs::read_to_string(folder.join("tinyproxy.log")).unwrap();
    assert!(log.contains("CONNECT 127.0.0.1:") && log.contains("POST http://127.0.0.1:"), "{log}");
    let system = server.get("/api/v1/system/status").await;
    let named =
        |name: &str| system["services"].as_array().unwrap().iter().find(|s| s["name"] == name).cloned();
    for proxy in ["proxy:tiny", "proxy:first", "proxy:backup"] {
        assert_eq!(named(proxy).unwrap()["status"], "running", "{system}");
    }
    // The account that may take another proxy goes on; an alert is raised.
    drop(first);
    until_within(LONG, "the backup is taken", async || {
        let answer = hedge(&server, "socks", "buy").await;
        answer["success"] == true && alert(&server, "socks").await.as_deref() == Some("WARN")
    })
    .await;
    // The account that has one proxy only is out of trading, and says why.
    drop(tiny);
    until_within(LONG, "the alert is raised", async || {
        alert(&server, "http").await.as_deref() == Some("CRITICAL")
    })
    .await;
    let answer = hedge(&server, "http", "sell").await;
    assert_eq!((&answer["success"], &answer["code"]), (&false.into(), &2002.into()), "{answer}");
    let sync = server.post("/api/v1/account/sync", &json!({"accounts": ["http", "direct"]})).await.unwrap();
    assert_eq!((&sync["success"], &sync["failedAccounts"]), (&false.into(), &json!(["http"])), "{sync}");
    assert!(sync["errors"][0].as_str().unwrap().starts_with("http: 2002: "), "{sync}");
    let answer = hedge(&server, "direct", "sell").await;
    assert_eq!(answer["success"], true, "{answer}");
    // Back again, it is used again, without a restart.
    let _tiny = tinyproxy(folder, ports[0]);
    until_within(LONG, "it works again", async || alert(&server, "http").await.is_none()).await;
    until_within(LONG, "it trades again", async || hedge(&server, "http", "sell").await["success"] == true)
        .await;
    // Passwords of proxies stay secret.
    let logs: String = std::fs::read_dir(folder.join("data/logs"))
        .unwrap()
        .filter_map(|file| std::fs::read_to_string(file.unwrap().path()).ok())
        .collect();
    assert!(logs.contains("the proxy fails"), "{logs}");
    for text in [&logs, &server.get("/api/v1/system/status").await.to_string()] {
        assert!(!text.contains(WORD));
    }
}
