//! A day at the market with policies on, over exchanges in process and on virtual time: foreign trades, funding each
//! hour, a price feed that dies, a proxy that fails, an exchange that is away, a position that its venue closes, an
//! account that is liquidated. The same day is lived through by the usual bot, which asks every second and sends what
//! is missing to one account.
//!
//! Prices move as in a recording (`DELTAPLANE_RECORDING`, else a made one), again and again, with a drift, jumps and
//! each exchange's basis around it. Two hours in `cargo test`; `MARKET_DAY_HOURS=24` for the whole day. The report is
//! printed.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_engine::{AccountParts, Engine, EngineConfig, EngineParts, IdKey, MemoryHistory};
use deltaplane_ports::{
    AccountEvent, AccountReader, CancelOutcome, Clock, ControlPlane as _, Earned, FeedStatus, Finding,
    IdSource, Income, Invalidation, OpenOrder, OrderGateway, OrderName, OrderSighting, Pace, PnlQuery,
    Policy, PolicyStatus, PoolStatus, PoolUser, PriceFeed, Priority, ProxyPool, ProxyView, ReadError,
    StreamStatus, TradingChange, VenueAccount, VenueRules,
};
use deltaplane_testkit::{MemoryJournal, ratio};
use deltaplane_tests::recording::{mids, recording};
use deltaplane_tests::{btc, prompt_policy};
use deltaplane_types::{
    AccountSnapshot, ClientOrderId, Decimal, Delta, ExecutionReport, FeedId, Fill, Instrument, MarketView,
    OrderIntent, Refusal, RefusalReason, Side, SubmitOutcome, Symbol, Timestamp, TradingScope, TradingState,
};
use deltaplane_venue_sim::InProcessVenue;
use deltaplane_venue_sim::config::{AccountConfig, ExchangeConfig};
use deltaplane_venue_sim::core::{Command, NewOrder, PositionSide};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{broadcast, watch};

const NAMES: [&str; 3] = ["long", "short", "spare"];
const START: [&str; 3] = ["0.5", "-0.5", "0"];
const FIRST_PRICE: i64 = 66_000;
/// The short side is opened again where it is smaller than this.
const KEPT: &str = "0.3";
/// Deviation ratio that the policy allows.
const TOLERANCE: &str = "0.02";
/// How long net delta may be off before it counts as late, tenths of seconds.
const PROMPT: u64 = 50;
/// When the day's last records were asked for, at the latest.
const LATE: Duration = Duration::from_secs(15 * 60);

/// Funding rates of the three exchanges, each hour: 0.01 % in eight hours and about that.
const RATES: [&str; 3] = ["0.0000125", "0.000015", "0.00001"];

/// Virtual time, and names that come again with the same seed.
struct Time(tokio::time::Instant, AtomicU64);

impl Clock for Time {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000).after(self.0.elapsed())
    }
}

impl IdSource for Time {
    fn unique(&self) -> String {
        format!("{:08}", self.1.fetch_add(1, Ordering::SeqCst))
    }
}

/// What is broken on the way to an exchange.
#[derive(Default)]
struct Broken {
    exchange: AtomicBool,
    proxy: AtomicBool,
    feed: AtomicBool,
    /// Reading is dear: what happens is looked at ten seconds later.
    dear: AtomicBool,
    /// Its margin tables are not told.
    table: AtomicBool,
}

/// An exchange in process behind a way that can break.
struct Way {
    venue: Arc<InProcessVenue>,
    broken: Broken,
}

impl Way {
    fn check(&self) -> Result<(), ReadError> {
        if self.broken.proxy.load(Ordering::SeqCst) {
            return Err(ReadError::Proxy("connection refused".to_owned()));
        }
        if self.broken.exchange.load(Ordering::SeqCst) {
            return Err(ReadError::Unreachable("no answer in time".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl AccountReader for Way {
    async fn fetch_account(&self, priority: Priority) -> Result<AccountSnapshot, ReadError> {
        self.check()?;
        self.venue.fetch_account(priority).await
    }

    async fn fetch_all_open_orders(&self, priority: Priority) -> Result<Vec<OpenOrder>, ReadError> {
        self.check()?;
        self.venue.fetch_all_open_orders(priority).await
    }

    fn known_instrument(&self, symbol: &Symbol) -> Option<Instrument> {
        if self.broken.table.load(Ordering::SeqCst) { None } else { self.venue.known_instrument(symbol) }
    }

    async fn fetch_instrument(&self, symbol: &Symbol, priority: Priority) -> Result<Instrument, ReadError> {
        if self.broken.table.load(Ordering::SeqCst) {
            return Err(ReadError::Unreachable("no answer in time".to_owned()));
        }
        // Kept by a connector for a minute, and here for ever.
        self.venue.fetch_instrument(symbol, priority).await
    }

    async fn fetch_adl_ranks(&self, priority: Priority) -> Result<BTreeMap<Symbol, u8>, ReadError> {
        self.check()?;
        self.venue.fetch_adl_ranks(priority).await
    }

    async fn fetch_income(&self, since: Timestamp, priority: Priority) -> Result<Vec<Income>, ReadError> {
        self.check()?;
        self.venue.fetch_income(since, priority).await
    }

    fn subscribe(&self) -> broadcast::Receiver<AccountEvent> {
        self.venue.subscribe()
    }

    fn venue_clock(&self, ours: Timestamp) -> Option<Timestamp> {
        self.venue.venue_clock(ours)
    }

    fn stream(&self) -> StreamStatus {
        if self.check().is_ok() { self.venue.stream() } else { StreamStatus::default() }
    }

    fn pace(&self) -> Pace {
        if self.broken.dear.load(Ordering::SeqCst) {
            let audit = Duration::from_secs(60);
            return Pace { idle: Duration::from_secs(20), after_event: Duration::from_secs(10), audit };
        }
        self.venue.pace()
    }

    async fn preflight(&self, symbol: &Symbol, priority: Priority) -> Vec<Finding> {
        self.venue.preflight(symbol, priority).await
    }

    fn venue_account(&self) -> Option<VenueAccount> {
        self.venue.venue_account()
    }
}

#[async_trait]
impl OrderGateway for Way {
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent, priority: Priority) -> SubmitOutcome {
        let refused = |reason| {
            let text = "nothing was sent".to_owned();
            SubmitOutcome::NotAccepted(Refusal { reason, code: None, text, remedy: None })
        };
        match self.check() {
            Err(ReadError::Proxy(_)) => refused(RefusalReason::ProxyFailed),
            Err(_) => refused(RefusalReason::NotSent),
            Ok(()) => self.venue.submit(id, intent, priority).await,
        }
    }

    async fn cancel(&self, id: &ClientOrderId, symbol: &Symbol) -> CancelOutcome {
        self.venue.cancel(id, symbol).await
    }

    async fn invalidate(&self, id: &ClientOrderId, symbol: &Symbol) -> Invalidation {
        self.venue.invalidate(id, symbol).await
    }

    async fn fetch_order(
        &self,
        id: &ClientOrderId,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<OrderSighting, ReadError> {
        self.check()?;
        self.venue.fetch_order(id, symbol, since, priority).await
    }

    async fn fetch_fills(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<Fill>, ReadError> {
        self.check()?;
        self.venue.fetch_fills(symbol, since, priority).await
    }

    async fn fetch_order_names(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<OrderName>, ReadError> {
        self.check()?;
        self.venue.fetch_order_names(symbol, since, priority).await
    }

    async fn count_down(&self, symbol: &Symbol, after: Option<Duration>) -> Result<(), ReadError> {
        self.check()?;
        self.venue.count_down(symbol, after).await
    }

    async fn fetch_open_orders(
        &self,
        symbol: &Symbol,
        priority: Priority,
    ) -> Result<Vec<ExecutionReport>, ReadError> {
        self.check()?;
        self.venue.fetch_open_orders(symbol, priority).await
    }

    fn rules(&self) -> VenueRules {
        self.venue.rules()
    }
}

impl PriceFeed for Way {
    fn id(&self) -> &FeedId {
        self.venue.id()
    }

    fn view(&self, symbol: &Symbol) -> Option<Arc<MarketView>> {
        let is_silent = self.broken.feed.load(Ordering::SeqCst) || self.check().is_err();
        if is_silent { None } else { self.venue.view(symbol) }
    }

    fn follow(&self, symbol: &Symbol) {
        self.venue.follow(symbol);
    }

    fn not_followed(&self) -> Vec<Symbol> {
        Vec::new()
    }

    fn status(&self) -> FeedStatus {
        self.venue.status()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.venue.changes()
    }
}

impl ProxyPool for Way {
    fn status(&self) -> PoolStatus {
        let failing = self.broken.proxy.load(Ordering::SeqCst).then(|| "connection refused".to_owned());
        let failures = u64::from(failing.is_some());
        let proxy = ProxyView {
            proxy: "only".to_owned(),
            is_active: true,
            failing,
            failures,
            worked_ago: Some(Duration::ZERO),
        };
        PoolStatus { proxies: vec![proxy], failover: false }
    }
}

/// What a second of the day brings.
struct Script {
    rng: ChaCha8Rng,
    seconds: u64,
    /// What the recorded price does in each tenth of a second, again and again.
    recorded: Vec<Decimal>,
    tenth: usize,
    price: Decimal,
    basis: [Decimal; 3],
}

impl Script {
    fn new(seed: u64, seconds: u64, recorded: &[Decimal]) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            seconds,
            recorded: recorded.to_vec(),
            tenth: 0,
            price: Decimal::from(FIRST_PRICE),
            basis: [Decimal::ZERO; 3],
        }
    }

    /// Whether `second` is within a failure that begins at a part of the day and lasts so long.
    fn within(&self, second: u64, part: u64, lasts: u64) -> bool {
        let begins = self.seconds * part / 100;
        (begins..begins + lasts).contains(&second)
    }

    /// A feed, a proxy or an exchange is away, or was until half a minute ago.
    fn is_declared(&self, second: u64) -> bool {
        [(20, 330), (40, 210), (60, 330), (70, 30), (80, 30)]
            .iter()
            .any(|(part, lasts)| self.within(second, *part, *lasts))
    }

    /// A tenth of a second passes at the market.
    fn tenth(&mut self, ways: &[Arc<Way>]) {
        self.price += self.recorded[self.tenth % self.recorded.len()];
        self.tenth += 1;
        for (way, basis) in ways.iter().zip(&self.basis) {
            way.venue.set_price("BTCUSDT", self.price + *basis);
        }
    }

    fn second(&mut self, second: u64, ways: &[Arc<Way>]) {
        // A part of a basis point a second, and once in a while a jump.
        let jump = self.rng.random_range(0..2_000) == 0;
        let step = self.rng.random_range(-20_i64..=20) * if jump { 70 } else { 1 };
        self.price += Decimal::new(step, 1);
        for basis in &mut self.basis {
            let pull = if basis.is_sign_negative() { 1 } else { -1 };
            *basis += Decimal::new(self.rng.random_range(-10_i64..=10) + pull, 1);
        }
        let deleverages = second == self.seconds * 70 / 100;
        let liquidates = second == self.seconds * 80 / 100;
        // From its liquidation on to the next deposit the short side cannot open anything.
        let is_poor = self.within(second, 80, self.seconds / 10 + 1) && !liquidates;
        if (second.is_multiple_of(600) || deleverages || liquidates) && !is_poor {
            open_again(ways);
        }
        // External activity every three minutes or so.
        if self.rng.random_range(0..180) == 0 {
            let (way, size) = (self.rng.random_range(0..3_usize), self.rng.random_range(20_i64..=200));
            let side = if self.rng.random_range(0..2) == 0 { Side::Buy } else { Side::Sell };
            let order = NewOrder::market("BTCUSDT", side, Decimal::new(size, 3));
            // What there is no margin for does not happen.
            let _ = ways[way].venue.apply(Command::Place { account: NAMES[way].to_owned(), order });
        }
        let away = [self.within(second, 60, 300), false, false];
        let unheard = [false, self.within(second, 20, 300), false];
        let no_proxy = [false, false, self.within(second, 40, 180)];
        for (index, way) in ways.iter().enumerate() {
            way.broken.exchange.store(away[index], Ordering::SeqCst);
            way.broken.feed.store(unheard[index], Ordering::SeqCst);
            way.broken.proxy.store(no_proxy[index], Ordering::SeqCst);
        }
        let (account, symbol) = (NAMES[1].to_owned(), "BTCUSDT".to_owned());
        if deleverages {
            let quantity = (held(ways, 1).abs() / Decimal::TWO).round_dp(3);
            ways[1].venue.apply(Command::Deleverage { account, symbol, quantity }).unwrap();
        } else if liquidates {
            assert!(held(ways, 1).abs() >= KEPT.parse().unwrap(), "there is something to liquidate");
            // All but a dollar is withdrawn, and the exchange closes what that cannot bear.
            let unrealized = ways[1].venue.sim().with(|exchange| {
                let mark = exchange.markets["BTCUSDT"].mark;
                let held = exchange.accounts[NAMES[1]].position("BTCUSDT", PositionSide::Both);
                (mark - held.entry) * held.amount
            });
            let wallet = Decimal::ONE - unrealized;
            ways[1].venue.apply(Command::SetWallet { account, wallet }).unwrap();
            let (bids, asks, reset) = (Vec::new(), Vec::new(), false);
            ways[1]
                .venue
                .apply(Command::Market { symbol, bids, asks, update_id: 2, reset, mark: None })
                .unwrap();
            assert!(held(ways, 1).is_zero(), "it was liquidated");
        } else if second == self.seconds * 90 / 100 {
            let wallet = Decimal::from(100_000);
            ways[1].venue.apply(Command::SetWallet { account, wallet }).unwrap();
        }
    }
}

fn held(ways: &[Arc<Way>], index: usize) -> Decimal {
    ways[index].venue.sim().with(|exchange| exchange.accounts[NAMES[index]].net("BTCUSDT"))
}

/// The owner keeps the portfolio: what hedges closed on its short leg is opened again on both, so that net
/// delta stays what it is. Hedges close rather than open, which costs less.
fn open_again(ways: &[Arc<Way>]) {
    let size = held(ways, 1) - START[1].parse::<Decimal>().unwrap();
    if held(ways, 1) > -KEPT.parse::<Decimal>().unwrap() {
        for (index, side) in [(0, Side::Buy), (1, Side::Sell)] {
            let order = NewOrder::market("BTCUSDT", side, size);
            ways[index].venue.apply(Command::Place { account: NAMES[index].to_owned(), order }).unwrap();
        }
    }
}

/// What the price does in each tenth of a second of a recording. It ends where it began: what it gained is taken
/// back evenly, so that a day of it stays in sight.
fn recorded_moves() -> Vec<Decimal> {
    let folder = tempfile::tempdir().unwrap();
    let mids = mids(&recording(folder.path()), 100_000_000);
    let count = mids.len() - 1;
    let gained = ((mids[count] - mids[0]) / Decimal::from(count)).round_dp(8);
    let moves: Vec<Decimal> = mids.windows(2).map(|pair| pair[1] - pair[0] - gained).collect();
    assert!(moves.iter().any(Decimal::is_sign_negative), "a market that moves");
    moves
}

/// What came of a day.
#[derive(Debug, Default)]
struct Outcome {
    /// |net delta| in dollars, times seconds.
    unhedged: Decimal,
    /// Tenths of seconds in which net delta was off for longer than [`PROMPT`] and nothing was away.
    late: u64,
    worst: Decimal,
    fees: Decimal,
    slippage: Decimal,
    orders: usize,
    /// What the exchanges paid to the accounts, or they to them, each hour.
    funding: Decimal,
}

fn net(ways: &[Arc<Way>]) -> Decimal {
    let held = |(way, name): (&Arc<Way>, &&str)| {
        way.venue.sim().with(|exchange| exchange.accounts[*name].net("BTCUSDT"))
    };
    ways.iter().zip(&NAMES).map(held).sum()
}

fn ways(time: &Arc<Time>) -> Vec<Arc<Way>> {
    let account = |index: usize| -> AccountConfig {
        let file = format!(
            "[[account]]\nid='{}'\napi_key='k'\nsecret='s'\npositions={{BTCUSDT='{}'}}",
            NAMES[index], START[index]
        );
        let dialect = deltaplane_venue_sim::Dialect::Binance;
        ExchangeConfig::from_toml(&file, dialect).unwrap().accounts.remove(0)
    };
    let way = |index| {
        let venue = InProcessVenue::new(account(index), Decimal::from(FIRST_PRICE), time.clone()).unwrap();
        Arc::new(Way { venue, broken: Broken::default() })
    };
    (0..3).map(way).collect()
}

/// The same with funding each hour.
fn funded_ways(time: &Arc<Time>) -> Vec<Arc<Way>> {
    let ways = ways(time);
    for (way, rate) in ways.iter().zip(RATES) {
        set_contract(way, rate, 1, true);
    }
    ways
}

/// All funding of the exchanges' records.
fn funding(ways: &[Arc<Way>]) -> Decimal {
    let of = |way: &Arc<Way>| way.venue.sim().with(|exchange| exchange.funding.iter().map(|row| row.2).sum());
    ways.iter().map(of).fold(Decimal::ZERO, |sum, one: Decimal| sum + one)
}

/// Fees and number of the bot's orders.
fn costs(ways: &[Arc<Way>]) -> (Decimal, usize) {
    let mine = |id: &str| id.starts_with("bot-");
    let of = |way: &Arc<Way>| {
        way.venue.sim().with(|exchange| {
            let orders: Vec<u64> = exchange
                .orders
                .values()
                .filter(|order| mine(&order.client_id))
                .map(|order| order.id)
                .collect();
            let fees = exchange
                .trades
                .iter()
                .filter(|trade| orders.contains(&trade.order_id))
                .map(|trade| trade.fee);
            (fees.sum::<Decimal>(), orders.len())
        })
    };
    ways.iter()
        .map(of)
        .fold((Decimal::ZERO, 0), |(fees, count), (more, orders)| (fees + more, count + orders))
}

/// Counts a tenth of a second.
fn count(outcome: &mut Outcome, off_for: &mut u64, script: &Script, ways: &[Arc<Way>], second: u64) {
    let away = net(ways).abs();
    let dollars = away * script.price;
    outcome.unhedged += dollars / Decimal::TEN;
    outcome.worst = outcome.worst.max(dollars);
    let largest = ways
        .iter()
        .zip(NAMES)
        .map(|(way, name)| way.venue.sim().with(|exchange| exchange.accounts[name].net("BTCUSDT").abs()))
        .max();
    // The reference exposure is at least the largest position: what is off by it is off in any case.
    let off = away > TOLERANCE.parse::<Decimal>().unwrap() * largest.unwrap_or_default() * Decimal::from(3);
    *off_for = if off { *off_for + 1 } else { 0 };
    if *off_for > PROMPT && !script.is_declared(second) {
        outcome.late += 1;
    }
}

/// An engine over the three exchanges.
async fn start(time: Arc<Time>, ways: &[Arc<Way>]) -> Engine {
    let config = EngineConfig::new(btc(), IdKey::new(b"a day"));
    let accounts = ways
        .iter()
        .zip(NAMES)
        .map(|(way, name)| AccountParts {
            id: name.parse().unwrap(),
            venue: name.parse().unwrap(),
            exchange: "in process".to_owned(),
            reader: way.clone(),
            gateway: way.clone(),
            feed: name.parse().unwrap(),
        })
        .collect();
    let proxy_pools = ways
        .iter()
        .zip(NAMES)
        .map(|(way, name)| (PoolUser::Account(name.parse().unwrap()), way.clone() as Arc<dyn ProxyPool>))
        .collect();
    Engine::start(EngineParts {
        config,
        accounts,
        feeds: ways.iter().map(|way| way.clone() as Arc<dyn PriceFeed>).collect(),
        proxy_pools,
        budgets: Vec::new(),
        journal: Arc::new(MemoryJournal::default()),
        history: Arc::new(MemoryHistory::default()),
        clock: time.clone(),
        ids: time,
    })
    .await
    .unwrap()
}

async fn with_deltaplane(seed: u64, seconds: u64, recorded: &[Decimal]) -> (Outcome, String) {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = funded_ways(&time);
    let engine = start(time, &ways).await;
    let accounts = NAMES.iter().map(|name| name.parse().unwrap()).collect();
    // The bot does not wait until a deviation lasts either.
    let (tolerance, after) = (ratio(TOLERANCE), Duration::ZERO);
    let policy = Policy { tolerance, after, ..Policy::new(btc(), accounts) };
    engine.put_policy(policy).await.unwrap();
    let mut script = Script::new(seed, seconds, recorded);
    let (mut outcome, mut off_for) = (Outcome::default(), 0);
    for second in 0..seconds {
        script.second(second, &ways);
        for _ in 0..10 {
            script.tenth(&ways);
            tokio::time::sleep(Duration::from_millis(100)).await;
            count(&mut outcome, &mut off_for, &script, &ways, second);
        }
    }
    let reports = engine.operations(usize::MAX).await;
    outcome.fees = reports.iter().map(|report| report.total_fees.unwrap().value()).sum();
    outcome.orders = reports.iter().map(|report| report.orders.len()).sum();
    outcome.slippage = reports.iter().map(|report| report.slippage_cost.unwrap().value()).sum();
    // The venues' records are asked for now and then.
    tokio::time::sleep(LATE).await;
    outcome.funding = funding(&ways);
    let earned = engine.pnl(PnlQuery::default()).await.unwrap();
    let earned = earned.iter().try_fold(Earned::default(), |sum, line| sum.plus(&line.earned)).unwrap();
    let mut alerts = std::collections::BTreeMap::<String, (u32, u32)>::new();
    for past in engine.past_alerts(usize::MAX).await {
        alerts.entry(past.alert.topic.to_string()).or_default().1 += 1;
    }
    for alert in &*engine.alerts().await {
        alerts.entry(alert.topic.to_string()).or_default().0 += 1;
    }
    let told = format!(
        "operations {}, {earned:?}\nalerts, by topic (still there, over): {alerts:?}",
        engine.system().await.total_operations
    );
    // The feed, the proxy, the exchange that is away, what the exchange closed, and the equity that is spent by then.
    for topic in ["failover", "proxy", "account-stale", "external-activity", "equity"] {
        assert!(alerts.contains_key(topic), "{topic}: {told}");
    }
    assert!(alerts.values().all(|(standing, _)| *standing == 0), "all works again: {told}");
    let told_funding = earned.funding.value();
    assert!(told_funding == outcome.funding && !told_funding.is_zero(), "{told} {outcome:?}");
    // The withdrawal before the liquidation is no loss.
    assert!(!alerts.contains_key("breaker-loss"), "{told}");
    (outcome, told)
}

/// Asks every second and sends what is missing to the first account, as a market order.
async fn with_the_usual_bot(seed: u64, seconds: u64, recorded: &[Decimal]) -> Outcome {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = funded_ways(&time);
    let mut script = Script::new(seed, seconds, recorded);
    let (mut outcome, mut off_for) = (Outcome::default(), 0);
    for second in 0..seconds {
        script.second(second, &ways);
        // Its second differs from that of the traders.
        for _ in 0..5 {
            script.tenth(&ways);
            tokio::time::sleep(Duration::from_millis(100)).await;
            count(&mut outcome, &mut off_for, &script, &ways, second);
        }
        let mut net = Some(Delta::ZERO);
        for way in &ways {
            let held = way.fetch_account(Priority::Sync).await.map(|account| account.position(&btc()));
            net = net.zip(held.ok()).and_then(|(net, held)| net.plus(held).ok());
        }
        let band: Decimal = TOLERANCE.parse::<Decimal>().unwrap() / Decimal::TWO;
        if let Some(net) = net.filter(|net| net.abs().value() > band) {
            let order = NewOrder {
                client_id: Some(format!("bot-{second}")),
                ..NewOrder::market("BTCUSDT", net.negated().side(), net.abs().value())
            };
            if ways[0].check().is_ok() {
                let account = NAMES[0].to_owned();
                let (before, mid) = ways[0]
                    .venue
                    .sim()
                    .with(|exchange| (exchange.trades.len(), exchange.markets["BTCUSDT"].mark));
                ways[0].venue.apply(Command::Place { account, order }).unwrap();
                outcome.slippage += ways[0].venue.sim().with(|exchange| {
                    let cost = |trade: &deltaplane_venue_sim::core::Trade| {
                        (trade.price - mid).abs() * trade.quantity
                    };
                    exchange.trades[before..].iter().map(cost).sum::<Decimal>()
                });
            }
        }
        for _ in 0..5 {
            script.tenth(&ways);
            tokio::time::sleep(Duration::from_millis(100)).await;
            count(&mut outcome, &mut off_for, &script, &ways, second);
        }
    }
    outcome.funding = funding(&ways);
    (outcome.fees, outcome.orders) = costs(&ways);
    outcome
}

#[tokio::test(start_paused = true)]
async fn a_day_with_failures_is_lived_through_and_better_than_by_the_usual_bot() {
    let hours: u64 = std::env::var("MARKET_DAY_HOURS").map_or(2, |text| text.parse().unwrap());
    let seconds = hours * 3_600;
    let recorded = recorded_moves();
    for seed in [1, 2] {
        let (ours, told) = with_deltaplane(seed, seconds, &recorded).await;
        let bot = with_the_usual_bot(seed, seconds, &recorded).await;
        println!("{hours} hours, seed {seed}\ndeltaplane    {ours:?}\nthe usual bot {bot:?}\n{told}");
        assert_eq!(ours.late, 0, "net delta was off without a reason: {ours:?}");
        assert!(ours.unhedged < bot.unhedged, "{ours:?}\n{bot:?}");
    }
}

/// The alerts on a topic that stand, with what they are about.
async fn standing(engine: &Engine, topic: &str) -> Vec<(Option<String>, BTreeMap<String, Decimal>)> {
    let alerts = engine.alerts().await;
    let alerts = alerts.iter().filter(|alert| alert.topic.as_str() == topic);
    alerts.map(|alert| (alert.account.as_ref().map(ToString::to_string), alert.data.clone())).collect()
}

fn set_contract(way: &Way, rate: &str, hours: u32, is_trading: bool) {
    let command = Command::SetContract {
        symbol: "BTCUSDT".to_owned(),
        is_trading: Some(is_trading),
        funding_rate: Some(rate.parse().unwrap()),
        funding_interval_hours: Some(hours),
        delivers_at: None,
    };
    way.venue.apply(command).unwrap();
    way.venue.set_price("BTCUSDT", Decimal::from(FIRST_PRICE));
}

/// Tenths of seconds pass while each exchange's price stands.
async fn pass(ways: &[Arc<Way>], tenths: u32, prices: [i64; 3]) {
    for _ in 0..tenths {
        for (way, price) in ways.iter().zip(prices) {
            way.venue.set_price("BTCUSDT", Decimal::from(price));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Long 0.5 and short 0.5 BTC at 66,000: 33,000 on each side.
#[tokio::test(start_paused = true)]
async fn alerts_on_carry_runway_and_delisting_come_and_go() {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = ways(&time);
    let engine = start(time, &ways).await;
    let pass = async |seconds: u32| pass(&ways, seconds * 10, [FIRST_PRICE; 3]).await;
    for way in &ways {
        set_contract(way, "0.0001", 8, true);
    }
    pass(25).await;
    for topic in ["carry", "runway", "delisting"] {
        assert_eq!(standing(&engine, topic).await, [], "{topic}");
    }
    // The long pays 0.1 % of 33,000 every hour, which is 792 a day; the short goes on earning 9.9 a day.
    set_contract(&ways[0], "0.001", 1, true);
    set_contract(&ways[2], "0.0001", 8, false);
    set_contract(&ways[1], "0.0001", 8, false);
    pass(25).await;
    let funding = engine.funding().await.unwrap();
    let per_day = |name: &str| {
        let line = funding.iter().find(|line| line.account.as_str() == name).unwrap();
        (line.interval_hours, line.per_day.value())
    };
    assert_eq!(per_day("long"), (1, Decimal::from(-792)));
    assert_eq!(per_day("short"), (8, "9.9".parse().unwrap()));
    let paid = standing(&engine, "carry").await;
    assert_eq!(paid.len(), 1, "{paid:?}");
    assert_eq!(paid[0].1["fundingPerDay"], "-782.1".parse::<Decimal>().unwrap());
    // Of two contracts that are being settled one is held.
    let ending: Vec<_> =
        standing(&engine, "delisting").await.into_iter().map(|(account, _)| account).collect();
    assert_eq!(ending, [Some("short".to_owned())]);
    assert_eq!(standing(&engine, "runway").await, [], "100,000 last for months");
    // 1,500 and 33,000 at ten times: less than two days until the margin is not enough.
    let short_of = Command::SetWallet { account: "long".to_owned(), wallet: Decimal::from(1_500) };
    ways[0].venue.apply(short_of).unwrap();
    // An unreadable account does not delay the alerts of the others.
    ways[1].broken.exchange.store(true, Ordering::SeqCst);
    pass(60).await;
    let short_of = standing(&engine, "runway").await;
    assert_eq!(short_of.len(), 1, "{short_of:?}");
    assert_eq!(short_of[0].0.as_deref(), Some("long"));
    assert!(
        short_of[0].1["runwayDays"] < Decimal::TWO && short_of[0].1["topUp"] > Decimal::ZERO,
        "{short_of:?}"
    );
    ways[1].broken.exchange.store(false, Ordering::SeqCst);
    let enough = Command::SetWallet { account: "long".to_owned(), wallet: Decimal::from(100_000) };
    ways[0].venue.apply(enough).unwrap();
    for way in &ways {
        set_contract(way, "0.0001", 8, true);
    }
    pass(60).await;
    for topic in ["carry", "runway", "delisting"] {
        assert_eq!(standing(&engine, topic).await, [], "{topic}");
    }
    // The alert on the end of a contract stands from its announcement on: 2027-01-17, two days after the test's beginning.
    let announced = Command::SetContract {
        symbol: "BTCUSDT".to_owned(),
        is_trading: None,
        funding_rate: None,
        funding_interval_hours: None,
        delivers_at: Some(1_800_000_000_000 + 2 * 24 * 3_600_000),
    };
    ways[0].venue.apply(announced).unwrap();
    pass(25).await;
    let told = engine.alerts().await;
    let told = told.iter().find(|alert| alert.topic.as_str() == "delisting").unwrap();
    assert_eq!(told.account.as_ref().unwrap().as_str(), "long");
    assert!(told.message.contains("at 2027-01-17T08:00:00Z"), "{}", told.message);
}

/// A policy does not wait until the accounts are due to see what others or it itself did: the streams tell.
#[tokio::test(start_paused = true)]
async fn events_are_applied_at_once_where_reads_are_expensive() {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = ways(&time);
    let engine = start(time, &ways).await;
    let accounts = NAMES.iter().map(|name| name.parse().unwrap()).collect();
    engine.put_policy(prompt_policy(accounts)).await.unwrap();
    let tenths_until = async |holds: &mut dyn FnMut(Decimal, PolicyStatus) -> bool| {
        for tenths in 0..600 {
            let status = engine.policies().await[0].status;
            if holds(net(&ways), status) {
                return tenths;
            }
            pass(&ways, 1, [FIRST_PRICE; 3]).await;
        }
        panic!("not within a minute");
    };
    tenths_until(&mut |_, status| status == PolicyStatus::Within).await;
    for way in &ways {
        way.broken.dear.store(true, Ordering::SeqCst);
    }
    // What was due before that is over.
    let mut looks = 0;
    tenths_until(&mut |_, _| {
        looks += 1;
        looks > 300
    })
    .await;
    let order = NewOrder::market("BTCUSDT", Side::Buy, Decimal::new(2, 1));
    ways[0].venue.apply(Command::Place { account: NAMES[0].to_owned(), order }).unwrap();
    let seen = tenths_until(&mut |net, _| net.is_zero()).await;
    assert!(seen <= 5, "{seen} tenths of a second");
    let rests = tenths_until(&mut |_, status| status == PolicyStatus::Within).await;
    assert!(rests <= 10, "{rests} tenths of a second");
}

/// Half a BTC long and half short at 66,000, ten times leverage; a twentieth off at once, while the accounts are due in
/// 20 seconds. What was gained, 0.5 × 3,300, and the margin, 0.5 × 62,700 ÷ 10, are there with the marks.
#[tokio::test(start_paused = true)]
async fn risk_follows_the_marks_and_not_only_the_readings() {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = ways(&time);
    let engine = start(time, &ways).await;
    let pass = async |seconds: u32, price| pass(&ways, seconds * 10, [price; 3]).await;
    for way in &ways {
        way.broken.dear.store(true, Ordering::SeqCst);
    }
    pass(30, FIRST_PRICE).await;
    let risk = async |name: &str| engine.account_risk(&name.parse().unwrap()).await.unwrap();
    let (long, short) = (risk("long").await, risk("short").await);
    pass(2, 62_700).await;
    for (name, before, gained) in [("long", long, -1_650), ("short", short, 1_650)] {
        let after = risk(name).await;
        assert_eq!(after.equity.minus(before.equity).unwrap().value(), Decimal::from(gained), "{name}");
        let used = Decimal::from(3_135) / after.equity.value();
        assert_eq!(after.utilization.unwrap().value().round_dp(20), used.round_dp(20), "{name}");
    }
    let carried = risk("long").await.margin_ratio;
    pass(30, 62_700).await;
    // The exchange's own numbers are the same.
    let read = risk("long").await;
    assert_eq!((read.margin_ratio, carried.is_some()), (carried, true));
}

/// An account that is read without a margin table is not watched: an alert stands until it is.
/// One that was told once goes on with it, and its risk is seen.
#[tokio::test(start_paused = true)]
async fn an_account_that_cannot_be_valued_raises_an_alert() {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = ways(&time);
    ways[1].broken.table.store(true, Ordering::SeqCst);
    let engine = start(time, &ways).await;
    let pass = async |seconds: u32| pass(&ways, seconds * 10, [FIRST_PRICE; 3]).await;
    pass(8).await;
    assert_eq!(standing(&engine, "valuation-unavailable").await, [], "not for a moment's sake");
    pass(8).await;
    let told: Vec<_> =
        standing(&engine, "valuation-unavailable").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(told, [Some("short".to_owned())]);
    ways[1].broken.table.store(false, Ordering::SeqCst);
    pass(3).await;
    assert_eq!(standing(&engine, "valuation-unavailable").await, []);
    ways[1].broken.table.store(true, Ordering::SeqCst);
    // 33,000 at ten times are 3,300 of margin.
    let short_of = Command::SetWallet { account: "short".to_owned(), wallet: Decimal::from(3_400) };
    ways[1].venue.apply(short_of).unwrap();
    pass(20).await;
    assert_eq!(standing(&engine, "valuation-unavailable").await, []);
    let told: Vec<_> = standing(&engine, "utilization").await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(told, [Some("short".to_owned())]);
}

/// Two of three accounts are a book of 10,000 in all. One of their exchanges lets its price fall from 66,000 to 63,000: half
/// a BTC loses 1,500, which is more than a tenth of the book's equity and less than a fiftieth of everybody's.
#[tokio::test(start_paused = true)]
async fn the_loss_breaker_of_a_group_restricts_its_symbol_until_running_is_set() {
    let time = Arc::new(Time(tokio::time::Instant::now(), AtomicU64::new(0)));
    let ways = ways(&time);
    for index in [0, 1] {
        let few = Command::SetWallet { account: NAMES[index].to_owned(), wallet: Decimal::from(5_000) };
        ways[index].venue.apply(few).unwrap();
    }
    let engine = start(time, &ways).await;
    let accounts = ["long", "short"].map(|name| name.parse().unwrap()).to_vec();
    engine.put_policy(prompt_policy(accounts)).await.unwrap();
    let pass = async |seconds: u32, price| pass(&ways, seconds * 10, [price, FIRST_PRICE, FIRST_PRICE]).await;
    pass(30, FIRST_PRICE).await;
    let order = async || engine.system().await.trading;
    let scope = TradingScope::Symbol(btc());
    assert_eq!(order().await.of(&"long".parse().unwrap(), &btc()), TradingState::Running);
    pass(10, 63_000).await;
    let (state, scoped) = (order().await.state, order().await.scoped);
    assert_eq!((state, scoped[&scope].state), (TradingState::Running, TradingState::ReduceOnly));
    assert!(scoped[&scope].reason.contains("the accounts that keep BTC-USD neutral"), "{scoped:?}");
    assert_eq!(standing(&engine, "breaker-loss").await.len(), 1);
    let looked = TradingChange { scope, state: TradingState::Running, reason: "looked".to_owned() };
    engine.set_trading(looked).await.unwrap();
    pass(10, 63_000).await;
    assert_eq!(standing(&engine, "breaker-loss").await, [], "it counts from here on");
    assert!(order().await.scoped.is_empty());
}
