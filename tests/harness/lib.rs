//! Whole servers and exchanges for the tests beside this folder.

pub mod live;
pub mod proxy;
pub mod recording;
pub mod venues;
mod waiting;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deltaplane_engine::{AccountParts, Engine, EngineConfig, EngineParts, Holdings, IdKey, Limits};
use deltaplane_net::{Egress, HttpClient, HttpClientConfig, HttpTransport};
use deltaplane_ports::{
    Clock, ControlPlane as _, DeltaControl, IdSource, Journal, OperationReport, Policy, PriceFeed, Record,
    RequestMeta, SymbolMap,
};
use deltaplane_testkit::{MemoryJournal, delta, ratio};
use deltaplane_types::{AccountId, Decimal, Symbol, Timestamp, parse_exact};
use deltaplane_venue_binance::{BinanceConfig, HmacKey};
use deltaplane_venue_sim::config::{AccountConfig, Exact, ExchangeConfig, KeyConfig};
use deltaplane_venue_sim::{Dialect, Market, Running, SimClock, SimOptions};

pub use waiting::{found, rounds, until, until_within};

/// The real clock: exchanges and engine run on real sockets here.
pub struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "the real clock is made here, once")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Names that count up, over engines too.
#[derive(Default)]
pub struct Names;

impl IdSource for Names {
    fn unique(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        format!("{:06}", NEXT.fetch_add(1, Ordering::SeqCst))
    }
}

/// One account on an exchange of its own.
pub struct Place {
    /// The account.
    pub name: &'static str,
    /// Its BTC at the start.
    pub position: &'static str,
    /// USDT in its wallet.
    pub wallet: &'static str,
    /// Other assets in its wallet.
    pub balances: &'static [(&'static str, &'static str)],
    /// The price of BNB where fees are paid in it.
    pub fee_burn: Option<&'static str>,
    /// Whether longs and shorts are held apart.
    pub hedge_mode: bool,
    /// Whether its key may trade.
    pub can_trade: bool,
    /// Another place whose key belongs to this account too.
    pub second_key: Option<&'static str>,
    /// Delay of its exchange on each way.
    pub latency: Duration,
}

impl Place {
    /// An account with 100,000 USDT on a prompt exchange.
    pub const fn new(name: &'static str, position: &'static str) -> Self {
        Self {
            name,
            position,
            wallet: "100000",
            balances: &[],
            fee_burn: None,
            hedge_mode: false,
            can_trade: true,
            second_key: None,
            latency: Duration::ZERO,
        }
    }
}

/// Exchanges with the engine that trades on them, over real sockets.
pub struct World {
    /// The exchanges, in the order of the places.
    pub exchanges: Vec<Running>,
    /// The engine.
    pub engine: Engine,
    /// Its accounts.
    pub accounts: Vec<AccountId>,
}

pub(crate) fn exact(text: &str) -> Exact {
    Exact(parse_exact(text).expect("a decimal"))
}

/// The symbol of all tests.
pub fn btc() -> Symbol {
    "BTC-USD".parse().expect("a symbol")
}

/// A policy for the symbol of all tests that acts at once and never shrinks both sides.
pub fn prompt_policy(accounts: Vec<AccountId>) -> Policy {
    let timeout = Duration::from_secs(10);
    Policy { after: Duration::ZERO, deleverage: None, timeout, ..Policy::new(btc(), accounts) }
}

/// Starts one exchange with one account.
pub async fn exchange(place: &Place, market: Market) -> Running {
    exchange_with(place, market, Vec::new()).await
}

/// The same with more accounts than the engine's.
pub async fn exchange_with(place: &Place, market: Market, mut accounts: Vec<AccountConfig>) -> Running {
    let key_of = |name: &str| (format!("{}key", name.replace('-', "")), format!("{name}secret"));
    let (key, secret) = key_of(place.name);
    let second = place.second_key.map(key_of);
    let account = AccountConfig {
        more_keys: second.map(|(api_key, secret)| KeyConfig { api_key, secret }).into_iter().collect(),
        wallet: exact(place.wallet),
        balances: place.balances.iter().map(|(asset, n)| ((*asset).to_owned(), exact(n))).collect(),
        fee_burn: place.fee_burn.map(exact),
        hedge_mode: place.hedge_mode,
        can_trade: place.can_trade,
        positions: BTreeMap::from([("BTCUSDT".to_owned(), exact(place.position))]),
        ..AccountConfig::new(place.name, &key, &secret)
    };
    accounts.push(account);
    let config = ExchangeConfig::with_accounts(Dialect::Binance, accounts);
    let clock = SimClock::Running(Arc::new(WallClock));
    let options = SimOptions {
        latency: place.latency,
        // Tests look at the exact state; those of lagging reads set a lag.
        read_lag: Duration::ZERO..=Duration::ZERO,
        ..SimOptions::new(Dialect::Binance, config, clock, market)
    };
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    deltaplane_venue_sim::start(options, any, Some(any)).await.expect("loopback ports are free")
}

/// Starts an exchange with a synthetic market for every place.
pub async fn exchanges(places: &[Place]) -> Vec<Running> {
    let mut exchanges = Vec::new();
    for (venue, place) in (1..).zip(places) {
        exchanges.push(exchange(place, Market::Synthetic { seed: 11, venue, mark: None }).await);
    }
    exchanges
}

/// The accounts of places.
pub fn names(places: &[Place]) -> Vec<AccountId> {
    places.iter().map(|place| place.name.parse().expect("an account id")).collect()
}

/// Starts an engine over exchanges that run, through the real connectors.
pub async fn engine(places: &[Place], exchanges: &[Running], journal: Arc<dyn Journal>) -> Engine {
    engine_with(places, exchanges, journal, Holdings::default()).await
}

/// The same with holdings beside the positions.
pub async fn engine_with(
    places: &[Place],
    exchanges: &[Running],
    journal: Arc<dyn Journal>,
    holdings: Holdings,
) -> Engine {
    let config = EngineConfig { holdings, ..config() };
    let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
    engine_through(places, exchanges, &urls, journal, config).await
}

/// How engines behave in tests.
pub fn config() -> EngineConfig {
    let config = EngineConfig::new(btc(), IdKey::new(b"a key of the tests"));
    EngineConfig {
        limits: Limits { max_orders_per_minute: 100_000, ..config.limits },
        // Longer than a proof takes with the short windows here: what shrinks unresolved has tests of its own.
        unresolved_hold: Duration::from_secs(4),
        ..config
    }
}

/// Starts an engine that reaches REST at these addresses.
pub async fn engine_through(
    places: &[Place],
    exchanges: &[Running],
    rest_urls: &[String],
    journal: Arc<dyn Journal>,
    config: EngineConfig,
) -> Engine {
    engine_naming(places, exchanges, rest_urls, (journal, Arc::new(Names)), config).await
}

/// The same with operations named by a source of the test's own.
pub async fn engine_naming(
    places: &[Place],
    exchanges: &[Running],
    rest_urls: &[String],
    (journal, ids): (Arc<dyn Journal>, Arc<dyn IdSource>),
    config: EngineConfig,
) -> Engine {
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let mut feeds: Vec<Arc<dyn PriceFeed>> = Vec::new();
    let mut accounts = Vec::new();
    for ((place, running), rest_url) in places.iter().zip(exchanges).zip(rest_urls) {
        let binance = BinanceConfig {
            account: place.name.parse().expect("an account id"),
            venue: place.name.parse().expect("a venue id"),
            feed: place.name.parse().expect("a feed id"),
            rest_url: rest_url.clone(),
            stream_url: running.ws(),
            weight: BinanceConfig::weight_budget(),
            symbols: SymbolMap::new(deltaplane_venue_binance::NAMES),
            receive_window: Duration::from_millis(1_500),
            proof_slack: Duration::from_millis(500),
            proof_lag: Duration::from_millis(500),
            request_timeout: Duration::from_millis(1_000),
            egress: Egress::direct(),
            tables: None,
        };
        let client = || -> Arc<dyn HttpTransport> {
            let config = HttpClientConfig { allow_plain: true, ..HttpClientConfig::default() };
            Arc::new(HttpClient::new(&config).expect("a client without TLS roots"))
        };
        feeds.push(Arc::new(deltaplane_venue_binance::start_feed(
            &binance,
            &[btc()],
            client(),
            clock.clone(),
        )));
        let key = format!("{}key", place.name.replace('-', ""));
        let key = HmacKey::new(key.into(), &format!("{}secret", place.name).into());
        let venue = deltaplane_venue_binance::start_account(binance, key, client(), clock.clone());
        accounts.push(AccountParts {
            id: place.name.parse().expect("an account id"),
            venue: place.name.parse().expect("a venue id"),
            exchange: "binance".to_owned(),
            reader: venue.clone(),
            gateway: venue,
            feed: place.name.parse().expect("a feed id"),
        });
    }
    let parts = EngineParts {
        config,
        accounts,
        feeds,
        proxy_pools: Vec::new(),
        budgets: Vec::new(),
        journal,
        history: Arc::new(deltaplane_engine::MemoryHistory::default()),
        clock,
        ids,
    };
    Engine::start(parts).await.expect("a journal in memory")
}

/// The kinds of the operations that began, in order.
pub fn kinds(journal: &MemoryJournal) -> Vec<String> {
    let kind = |record: Record| match record {
        Record::OperationAccepted { kind, .. } => Some(kind),
        _ => None,
    };
    journal.records().into_iter().filter_map(kind).collect()
}

/// Waits until an engine takes operations, its first books are there, and every account was looked at before trading.
pub async fn ready(engine: &Engine) {
    until_within(Duration::from_secs(30), "ready", async || {
        let view = engine.system().await;
        let accounts = engine.accounts().await;
        let is_unknown = |why: &String| {
            ["not reconciled", "has not run yet", "check failed"].iter().any(|text| why.contains(text))
        };
        let are_checked = !accounts.iter().filter_map(|account| account.blocked.as_ref()).any(is_unknown);
        view.ready && are_checked && view.market.iter().all(|feed| feed.mid.is_some())
    })
    .await;
}

impl World {
    /// Starts exchanges with synthetic markets and an engine over them.
    pub async fn start(places: Vec<Place>, journal: Arc<dyn Journal>) -> Self {
        Self::start_with(places, journal, config()).await
    }

    /// The same with an engine that behaves like this.
    pub async fn start_with(places: Vec<Place>, journal: Arc<dyn Journal>, config: EngineConfig) -> Self {
        let exchanges = exchanges(&places).await;
        let urls: Vec<String> = exchanges.iter().map(Running::rest).collect();
        let engine = engine_through(&places, &exchanges, &urls, journal, config).await;
        ready(&engine).await;
        // Until then accounts are read, which spends what a test may count.
        until("the accounts' streams are proven", async || {
            engine.accounts().await.iter().all(|account| account.is_streamed)
        })
        .await;
        let accounts = names(&places);
        Self { exchanges, engine, accounts }
    }

    /// A request that brings net delta to zero.
    pub fn to_flat(&self) -> DeltaControl {
        DeltaControl {
            target: delta("0"),
            accounts: self.accounts.clone(),
            max_deviation: ratio("0.1"),
            symbol: btc(),
            tolerance: ratio("0.01"),
            dry_run: false,
            max_slippage: ratio("0.005"),
            timeout: Duration::from_secs(20),
            hedge_to: deltaplane_ports::HedgeTo::Target,
            on_shortfall: deltaplane_ports::OnShortfall::Refuse,
            subset: false,
            meta: RequestMeta::default(),
        }
    }

    /// Runs a request to its report.
    pub async fn control(&self, request: DeltaControl) -> OperationReport {
        let started = self.engine.control_delta(request).await.expect("the operation begins");
        started.report.await.expect("the engine runs")
    }

    /// Net delta as the exchanges themselves know it.
    pub fn true_net(&self) -> Decimal {
        self.exchanges
            .iter()
            .map(|running| {
                running.sim().with(|exchange| {
                    exchange.accounts.values().map(|account| account.net("BTCUSDT")).sum::<Decimal>()
                })
            })
            .sum()
    }

    /// Orders that reached an exchange.
    pub fn orders_at(&self, index: usize) -> usize {
        self.exchanges[index].sim().with(|exchange| exchange.orders.len())
    }
}
