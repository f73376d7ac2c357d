//! The main job under flow: a server with policies on, trades of another program on every account, and the exchanges' own
//! truth as the judge.
//!
//! `cargo run -p deltaplane-tests --bin soak -- --minutes 3 --every 3`; see README.md beside this file. The server is the
//! binary beside this one, or the one that `--server` names. The last line is the summary; the exit code says whether
//! every bound was kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deltaplane_tests::WallClock;
use deltaplane_tests::live::{KEY, write_config};
use deltaplane_tests::venues::{
    AGENT_ADDRESS, AGENT_SECRET, SOLANA_ACCOUNT, SOLANA_AGENT, SOLANA_AGENT_SECRET, WALLET,
};
use deltaplane_types::{Decimal, Side, parse_exact};
use deltaplane_venue_sim::config::{AccountConfig, AgentConfig, Exact, ExchangeConfig, SymbolConfig};
use deltaplane_venue_sim::core::{Command, NewOrder};
use deltaplane_venue_sim::{Dialect, Market, Running, SimClock, SimOptions};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

type Error = Box<dyn std::error::Error>;

/// Net delta may be this far from neutral, as a fraction of the larger side.
const TOLERANCE: &str = "0.02";
/// How often the truth is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is run, and what must hold.
#[derive(Debug)]
struct Plan {
    server: PathBuf,
    minutes: f64,
    every: f64,
    dry_runs: f64,
    latency: u64,
    symbols: usize,
    policies: usize,
    seed: u64,
    dead_key: bool,
    /// The largest share of the time outside.
    max_outside: f64,
    /// Bounds of the median and the 95th percentile of the time to neutral, seconds.
    max_median: f64,
    max_slow: f64,
}

impl Plan {
    fn read(arguments: impl Iterator<Item = String>) -> Result<Self, Error> {
        let here = std::env::current_exe()?.with_file_name("deltaplane-server");
        let mut plan = Self {
            server: here,
            minutes: 3.0,
            every: 3.0,
            dry_runs: 0.0,
            latency: 0,
            symbols: 1,
            policies: 1,
            seed: 5,
            dead_key: false,
            max_outside: 0.05,
            max_median: 1.0,
            max_slow: 2.0,
        };
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            if name == "--dead-key" {
                plan.dead_key = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            let bad = |error: &dyn std::fmt::Display| format!("{name} {value:?}: {error}");
            let number = || value.parse::<f64>().map_err(|error| bad(&error));
            let whole = || value.parse::<u64>().map_err(|error| bad(&error));
            match name.as_str() {
                "--server" => plan.server = PathBuf::from(&value),
                "--minutes" => plan.minutes = number()?,
                "--every" => plan.every = number()?,
                "--dry-runs" => plan.dry_runs = number()?,
                "--latency" => plan.latency = whole()?,
                "--symbols" => plan.symbols = usize::try_from(whole()?)?,
                "--policies" => plan.policies = usize::try_from(whole()?)?,
                "--seed" => plan.seed = whole()?,
                "--max-outside" => plan.max_outside = number()?,
                "--max-median" => plan.max_median = number()?,
                "--max-slow" => plan.max_slow = number()?,
                _ => return Err(format!("{name} is no option of this program").into()),
            }
        }
        if !plan.server.is_file() {
            let build = "cargo build -p deltaplane-server";
            return Err(format!("{}: no such file; {build}", plan.server.display()).into());
        }
        Ok(plan)
    }

    /// The canonical names of the coins: bitcoin alone, or so many made-up ones.
    fn coins(&self) -> Vec<String> {
        if self.symbols == 1 {
            return vec!["BTC".to_owned()];
        }
        (0..self.symbols).map(|index| format!("C{index:02}")).collect()
    }
}

fn exact(text: &str) -> Exact {
    Exact(parse_exact(text).expect("a decimal"))
}

/// One of the three exchanges.
struct Place {
    dialect: Dialect,
    account: &'static str,
    /// Coins held at the start, as a multiple of a unit.
    held: &'static str,
}

const PLACES: [Place; 3] = [
    Place { dialect: Dialect::Pacifica, account: "pacifica-main", held: "0.5" },
    Place { dialect: Dialect::Aster, account: "aster-hedge", held: "-0.25" },
    Place { dialect: Dialect::Binance, account: "binance-backup", held: "0" },
];

fn contract(dialect: Dialect, coin: &str) -> String {
    if dialect == Dialect::Pacifica { coin.to_owned() } else { format!("{coin}USDT") }
}

/// The bitcoin contract of a dialect under other names.
fn symbols(dialect: Dialect, coins: &[String]) -> Vec<SymbolConfig> {
    let usual = dialect.default_symbols();
    if coins == ["BTC"] {
        return usual;
    }
    let like = usual.into_iter().next().expect("bitcoin is listed");
    let named =
        |coin: &String| SymbolConfig { name: contract(dialect, coin), base: coin.clone(), ..like.clone() };
    coins.iter().map(named).collect()
}

async fn start_exchange(place: &Place, plan: &Plan) -> Result<Running, Error> {
    let coins = plan.coins();
    let (address, agents) = match place.dialect {
        Dialect::Binance => (String::new(), Vec::new()),
        Dialect::Aster => (WALLET.to_owned(), vec![AgentConfig::new(AGENT_ADDRESS)]),
        Dialect::Pacifica => (SOLANA_ACCOUNT.to_owned(), vec![AgentConfig::new(SOLANA_AGENT)]),
    };
    let keys = if place.dialect == Dialect::Binance { ("soakkey", "soaksecret") } else { ("", "") };
    let held = coins.iter().map(|coin| (contract(place.dialect, coin), exact(place.held)));
    let account = AccountConfig {
        address,
        agents,
        wallet: exact(if coins.len() == 1 { "100000" } else { "10000000" }),
        positions: held.collect(),
        ..AccountConfig::new(place.account, keys.0, keys.1)
    };
    let config = ExchangeConfig {
        odd_rows: Vec::new(),
        symbols: symbols(place.dialect, &coins),
        accounts: vec![account],
        asset_rates: BTreeMap::new(),
    };
    let clock = SimClock::Running(Arc::new(WallClock));
    let venue = match place.dialect {
        Dialect::Pacifica => 1,
        Dialect::Aster => 2,
        Dialect::Binance => 3,
    };
    let options = SimOptions {
        latency: Duration::from_millis(plan.latency),
        ..SimOptions::new(place.dialect, config, clock, Market::Synthetic { seed: 7, venue, mark: None })
    };
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    Ok(deltaplane_venue_sim::start(options, any, None).await?)
}

fn configuration(exchanges: &[Running], primary: &str) -> String {
    let mut text = format!(
        "mode = \"live\"\nprimary_symbol = \"{primary}\"\n[limits]\nmax_order_notional = \"200000\"\nmax_position_notional = \"2000000\"\n"
    );
    for (place, running) in PLACES.iter().zip(exchanges) {
        let (kind, account) = (place.dialect.name(), place.account);
        let keys = match place.dialect {
            Dialect::Binance => "api_key_env = \"SOAK_KEY\"\nsecret_env = \"SOAK_SECRET\"".to_owned(),
            Dialect::Aster => format!("address = \"{WALLET}\"\nprivate_key_env = \"SOAK_AGENT\""),
            Dialect::Pacifica => format!("address = \"{SOLANA_ACCOUNT}\"\nprivate_key_env = \"SOAK_SOLANA\""),
        };
        let _ = write!(
            text,
            "[[exchange]]\nid = \"{kind}\"\nkind = \"{kind}\"\nrest_url = \"{}\"\nstream_url = \"{}\"\n\
             [[account]]\nid = \"{account}\"\nexchange = \"{kind}\"\n{keys}\n",
            running.rest(),
            running.ws()
        );
    }
    text
}

/// The server. Dropping it kills it.
struct Server {
    process: Child,
    address: String,
    client: reqwest::Client,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    async fn start(plan: &Plan, text: &str) -> Result<Self, Error> {
        let folder = tempfile::tempdir()?;
        write_config(folder.path(), text);
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let process = Process::new(plan.server.canonicalize()?)
            .args(["--listen", &address, "--data-dir", "data", "--config", "live.toml", "--live"])
            .envs([
                ("DELTAPLANE_API_KEY_FILE", "api.key"),
                ("SOAK_KEY", "soakkey"),
                ("SOAK_SECRET", "soaksecret"),
            ])
            .envs([("SOAK_AGENT", AGENT_SECRET), ("SOAK_SOLANA", SOLANA_AGENT_SECRET)])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log"))?)
            .spawn()?;
        let client = reqwest::Client::builder().no_proxy().build()?;
        let server = Self { process, address, client, folder };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(60) {
            if let Ok((200, ready)) = server.call("GET", "/readyz", &Value::Null).await
                && ready["accounts"]
                    .as_array()
                    .is_some_and(|all| all.iter().all(|one| one["source"] == "stream"))
            {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(format!("not ready: {}", std::fs::read_to_string(server.folder.path().join("log"))?).into())
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value), Error> {
        let url = format!("http://{}{path}", self.address);
        let mut request = self.client.request(method.parse()?, url).bearer_auth(KEY);
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((status, serde_json::from_str(&answer.text().await?)?))
    }

    /// Resident memory in MiB, open descriptors, lines of the log.
    fn vitals(&self) -> (u64, usize, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.process.id()));
        let status = std::fs::read_to_string(proc.join("status")).unwrap_or_default();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        let kib: u64 = kib.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        let descriptors = std::fs::read_dir(proc.join("fd")).map_or(0, Iterator::count);
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        (kib / 1_024, descriptors, log.lines().count())
    }
}

/// What is watched of one coin.
#[derive(Default)]
struct Watched {
    outside: f64,
    time: f64,
    /// When a trade of others moved it, until it is neutral again.
    pending: Option<Instant>,
    waits: Vec<f64>,
}

fn as_f64(value: Decimal) -> f64 {
    value.to_string().parse().unwrap_or(f64::NAN)
}

/// How far a coin is from neutral, as a fraction of its larger side, by the exchanges' own books.
fn deviation(exchanges: &[Running], coin: &str) -> f64 {
    let held = PLACES.iter().zip(exchanges).map(|(place, running)| {
        let name = contract(place.dialect, coin);
        running
            .sim()
            .with(|exchange| exchange.accounts.values().map(|account| account.net(&name)).sum::<Decimal>())
    });
    let held: Vec<f64> = held.map(as_f64).collect();
    let net: f64 = held.iter().sum();
    let long: f64 = held.iter().filter(|amount| **amount > 0.0).sum();
    let short: f64 = -held.iter().filter(|amount| **amount < 0.0).sum::<f64>();
    // The reference is worth 100 USD at least.
    net.abs() / long.max(short).max(100.0 / 66_000.0)
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (sorted.len() as f64 * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// A trade of another program on an account.
fn foreign_trade(running: &Running, place: &Place, coin: &str, random: &mut ChaCha8Rng) {
    let side = if random.random_bool(0.5) { Side::Buy } else { Side::Sell };
    let quantity = Decimal::new(random.random_range(5..80), 3);
    let order = NewOrder::market(&contract(place.dialect, coin), side, quantity);
    // What the book does not hold is nobody's trade.
    let _ = running.sim().apply(Command::Place { account: place.account.to_owned(), order });
}

async fn soak(plan: &Plan) -> Result<bool, Error> {
    let mut exchanges = Vec::new();
    for place in &PLACES {
        exchanges.push(start_exchange(place, plan).await?);
    }
    let exchanges = Arc::new(exchanges);
    let coins = plan.coins();
    let hedged: Vec<String> = coins.iter().take(plan.policies).cloned().collect();
    let server = Server::start(plan, &configuration(&exchanges, &format!("{}-USD", coins[0]))).await?;
    let accounts: Vec<&str> = PLACES.iter().map(|place| place.account).collect();
    for coin in &hedged {
        let policy = json!({
            "accounts": accounts, "targetDelta": 0, "tolerancePercent": TOLERANCE, "maxDeviation": 0.1, "after": 0,
            "enabled": true,
        });
        let (status, answer) = server.call("PUT", &format!("/api/v1/policies/{coin}-USD"), &policy).await?;
        if status != 200 {
            return Err(format!("{coin}: {status} {answer}").into());
        }
    }
    let began = Instant::now();
    while hedged.iter().any(|coin| deviation(&exchanges, coin) > 0.02) {
        if began.elapsed() > Duration::from_secs(60) {
            return Err("the positions at the start were not hedged within a minute".into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let refused = Arc::new(AtomicU64::new(0));
    let mut random = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut watched: BTreeMap<&String, Watched> =
        hedged.iter().map(|coin| (coin, Watched::default())).collect();
    let (mut trades, mut next_trade, mut last) = (0_u64, Instant::now(), Instant::now());
    let began = Instant::now();
    let (mut told, mut next_dry, mut dead_key) = (began, began, None);
    let mut early: Option<(u64, usize)> = None;
    let mut dry_runs = tokio::task::JoinSet::new();
    let server = Arc::new(server);
    while began.elapsed().as_secs_f64() < plan.minutes * 60.0 {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = Instant::now();
        let passed = (now - last).as_secs_f64();
        last = now;
        for (coin, watched) in &mut watched {
            watched.time += passed;
            if deviation(&exchanges, coin) > 0.02 {
                watched.outside += passed;
            } else if let Some(since) = watched.pending.take() {
                watched.waits.push((now - since).as_secs_f64());
            }
        }
        if now >= next_trade {
            next_trade = now + Duration::from_secs_f64(plan.every);
            // With a dead key the trades are on the other accounts.
            let places = if plan.dead_key { 0..2 } else { 0..3 };
            let index = random.random_range(places);
            let coin = &hedged[random.random_range(0..hedged.len())];
            foreign_trade(&exchanges[index], &PLACES[index], coin, &mut random);
            trades += 1;
            if deviation(&exchanges, coin) > 0.02
                && let Some(watched) = watched.get_mut(coin)
            {
                watched.pending.get_or_insert(now);
            }
        }
        if plan.dead_key && dead_key.is_none() && began.elapsed() > Duration::from_secs(20) {
            dead_key = Some(now);
            exchanges[2].sim().kill_listen_keys();
        }
        if plan.dry_runs > 0.0 && now >= next_dry {
            next_dry = now + Duration::from_secs_f64(60.0 / plan.dry_runs);
            let (server, refused, coin) = (server.clone(), refused.clone(), hedged[0].clone());
            let body = json!({
                "targetDelta": 0, "accounts": accounts, "maxDeviation": 0.1, "symbol": format!("{coin}-USD"), "dryRun": true,
            });
            dry_runs.spawn(async move {
                let answer = server.call("POST", "/api/v1/delta/control", &body).await;
                if !matches!(&answer, Ok((200, answer)) if answer["success"] == true) {
                    refused.fetch_add(1, Ordering::SeqCst);
                    println!("dry run refused: {answer:?}");
                }
            });
            while dry_runs.try_join_next().is_some() {}
        }
        if now - told >= Duration::from_secs(60) {
            told = now;
            let vitals = server.vitals();
            if began.elapsed() >= Duration::from_secs(300) {
                early.get_or_insert((vitals.0, vitals.1));
            }
            println!("{}", line(&server, &watched, trades, began.elapsed(), &refused).await?);
        }
    }
    let summary = line(&server, &watched, trades, began.elapsed(), &refused).await?;
    println!("{}", json!({"summary": summary}));
    Ok(judge(plan, &server, &summary, early))
}

async fn line(
    server: &Server,
    watched: &BTreeMap<&String, Watched>,
    trades: u64,
    passed: Duration,
    refused: &AtomicU64,
) -> Result<Value, Error> {
    let (_, answer) = server.call("GET", "/api/v1/operations?limit=1000", &Value::Null).await?;
    let mut outcomes = BTreeMap::<String, u64>::new();
    for operation in answer["operations"].as_array().into_iter().flatten() {
        let state = operation["state"].as_str().unwrap_or("?");
        let code = operation["code"].as_u64();
        let outcome = code.map_or(state.to_owned(), |code| format!("{state} {code}"));
        let is_new = !outcomes.contains_key(&outcome);
        if is_new && state == "failed" {
            eprintln!("the first operation that ended as {outcome}: {operation}");
        }
        *outcomes.entry(outcome).or_default() += 1;
    }
    let outside: f64 = watched.values().map(|watched| watched.outside).sum();
    let time: f64 = watched.values().map(|watched| watched.time).sum();
    let mut waits: Vec<f64> = watched.values().flat_map(|watched| watched.waits.iter().copied()).collect();
    waits.sort_by(f64::total_cmp);
    let (_, status) = server.call("GET", "/api/v1/system/status", &Value::Null).await?;
    let budgets: BTreeMap<&str, String> = status["budgets"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|budget| {
            (budget["venue"].as_str().unwrap_or("?"), format!("{}/{}", budget["used"], budget["limit"]))
        })
        .collect();
    let (rss, descriptors, lines) = server.vitals();
    let minutes = passed.as_secs_f64() / 60.0;
    let rounded = |value: f64| format!("{value:.3}").parse::<f64>().unwrap_or(value);
    #[expect(clippy::cast_precision_loss, reason = "lines of a log")]
    let lines_a_minute = lines as f64 / minutes;
    Ok(json!({
        "minute": rounded(minutes), "outside": rounded(outside / time.max(1e-9)), "trades": trades,
        "to_neutral_s": {"median": rounded(percentile(&waits, 0.5)), "p95": rounded(percentile(&waits, 0.95)),
                         "most": rounded(waits.last().copied().unwrap_or(0.0)), "count": waits.len()},
        "operations": outcomes, "dry_runs_refused": refused.load(Ordering::SeqCst), "budgets": budgets,
        "log_lines_a_minute": rounded(lines_a_minute), "rss_mb": rss, "descriptors": descriptors,
    }))
}

/// Whether every bound was kept; tells each that was not.
fn judge(plan: &Plan, server: &Server, summary: &Value, early: Option<(u64, usize)>) -> bool {
    let mut broken = Vec::new();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::MAX);
    let mut most = |what: &str, value: f64, bound: f64| {
        if value > bound {
            broken.push(format!("{what} is {value}, not at most {bound}"));
        }
    };
    most("share of the time outside the tolerance", number(&summary["outside"]), plan.max_outside);
    most("median time to neutral, s,", number(&summary["to_neutral_s"]["median"]), plan.max_median);
    most(
        "95th percentile of the time to neutral, s,",
        number(&summary["to_neutral_s"]["p95"]),
        plan.max_slow,
    );
    most("dry runs refused", number(&summary["dry_runs_refused"]), 0.0);
    most("log lines a minute", number(&summary["log_lines_a_minute"]), 100.0);
    for (outcome, count) in summary["operations"].as_object().into_iter().flatten() {
        if outcome.contains("3002") {
            broken.push(format!("{count} operations were refused with 3002"));
        }
    }
    let (rss, descriptors, _) = server.vitals();
    if let Some((rss_then, descriptors_then)) = early {
        if rss > rss_then + rss_then / 4 + 8 {
            broken.push(format!("memory grew from {rss_then} to {rss} MiB after the fifth minute"));
        }
        if descriptors > descriptors_then + 8 {
            broken.push(format!("descriptors grew from {descriptors_then} to {descriptors}"));
        }
    }
    for text in &broken {
        println!("BROKEN {text}");
    }
    if !broken.is_empty() {
        let log = std::fs::read_to_string(Path::new(server.folder.path()).join("log")).unwrap_or_default();
        let newest: Vec<&str> = log.lines().rev().take(30).collect();
        println!("{}", newest.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    broken.is_empty()
}

#[tokio::main]
async fn main() -> ExitCode {
    let plan = match Plan::read(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::from(2);
        }
    };
    match soak(&plan).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}
