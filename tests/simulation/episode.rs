//! One episode: a world, a script of what happens in it, and the engine's lives in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_engine::{AccountParts, BreakerSettings, Engine, EngineConfig, EngineParts, IdKey};
use deltaplane_ports::{
    ControlPlane, DeltaControl, Flatten, HedgeExecution, HedgeTo, IdSource, KillSwitch, OnShortfall,
    OperationReport, OperationState, Pacing, PriceFeed, RequestMeta, ResolveOrder, Settlement, TradingChange,
    UtilizationRebalance,
};
use deltaplane_types::{
    AccountId, Decimal, Delta, Notional, Quantity, Ratio, Side, TradingScope, TradingState,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;

use crate::oracle::Measured;
use crate::venue::{SimAccount, SimJournal};
use crate::world::{Chances, Due, LifeClock, ORIGIN_MS, Venue, World, btc, order_of};

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Anything may happen, and nothing wrong may come of it.
    Safety,
    /// Faults stop, and everything must settle in bounded time.
    Liveness,
    /// Nothing goes wrong.
    Calm,
}

/// How long faults rage.
const STORM_MS: i64 = 30_000;
/// The longest validity window of these venues, its slack, looks over six lags with a stream that is proven for three, and
/// half a minute.
const SETTLES_WITHIN_MS: i64 = 20_000 + 1_000 + 60_000 + 30_000 + 30_000;

/// What an episode came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) steps: u64,
    pub(crate) lives: u64,
    pub(crate) sends: usize,
    pub(crate) states: BTreeMap<String, u64>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) violations: Vec<String>,
    pub(crate) log: Vec<String>,
    pub(crate) seldom: BTreeMap<String, u64>,
    pub(crate) operations: u64,
    pub(crate) dollar_seconds: Decimal,
}

#[derive(Clone, Debug)]
enum Action {
    Control {
        target: Decimal,
        accounts: Vec<AccountId>,
        band: bool,
        best_effort: bool,
        timeout: u64,
        dry: bool,
    },
    Hedge {
        accounts: Vec<AccountId>,
        amount: Decimal,
        side: Option<Side>,
        pacing: Pacing,
        timeout: u64,
    },
    Flatten {
        accounts: Vec<AccountId>,
        timeout: u64,
    },
    Rebalance {
        target: Decimal,
        accounts: Vec<AccountId>,
        grow: bool,
        timeout: u64,
    },
    Kill(bool),
    Trading(TradingState),
    /// The process is asked to stop, has so long, ends and is started again.
    Stop(u64),
}

struct Names {
    life: u64,
    next: std::sync::atomic::AtomicU64,
}

impl IdSource for Names {
    fn unique(&self) -> String {
        format!("{}x{:04}", self.life, self.next.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
    }
}

fn thousandths(value: i64) -> Decimal {
    Decimal::from_i128_with_scale(value.into(), 3)
}

fn ratio(value: i64, scale: u32) -> Ratio {
    Ratio::new(Decimal::from_i128_with_scale(value.into(), scale))
}

/// Runs one episode to its end.
pub(crate) fn run(seed: u64, mode: Mode) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5EED);
    let count = rng.random_range(2..=6);
    let accounts: Vec<(AccountId, i64)> = (0..count)
        .map(|index| {
            let name = format!("acc-{index}").parse().expect("an account id");
            (name, rng.random_range(-800..=800))
        })
        .collect();
    let chances = match mode {
        Mode::Calm => Chances::CALM,
        _ if rng.random_bool(0.4) => Chances::HOSTILE,
        _ => Chances::LOSSY,
    };
    let world = World::new(seed, &accounts, chances);
    let names: Vec<AccountId> = accounts.iter().map(|(name, _)| name.clone()).collect();
    let outsiders = mode != Mode::Calm && rng.random_bool(0.4);
    world.lock().oracle.outsiders = outsiders;
    if mode != Mode::Calm {
        schedule_misfortune(&world, &mut rng, &names, outsiders);
    }
    let mut script = script(&mut rng, &names, mode);
    let mut lives = 0;
    let mut origin_ms = ORIGIN_MS;
    let shrink_after_forced_close = rng.random_bool(0.3);
    loop {
        lives += 1;
        let crashes = mode != Mode::Calm && lives <= 4 && rng.random_bool(0.7);
        let crash_at = crashes.then(|| world.lock().steps + rng.random_range(3..350));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let life = Life {
            world: world.clone(),
            accounts: names.clone(),
            number: lives,
            mode,
            shrink_after_forced_close,
            outsiders,
        };
        let (ended, at) = runtime.block_on(life.live(origin_ms, crash_at, &mut script));
        drop(runtime);
        origin_ms = at + rng.random_range(50..4_000);
        if ended {
            break;
        }
    }
    let mut state = world.lock();
    let state = &mut *state;
    state.oracle.check_all(&state.venues);
    let mut outcome = Outcome {
        steps: state.steps,
        lives,
        sends: state.oracle.intents.len(),
        faults: std::mem::take(&mut state.faults),
        violations: std::mem::take(&mut state.oracle.violations),
        seldom: std::mem::take(&mut state.oracle.seldom),
        log: std::mem::take(&mut state.log),
        ..Outcome::default()
    };
    for closed in state.oracle.closed.values() {
        *outcome.states.entry(closed.clone()).or_default() += 1;
    }
    outcome.operations = state.oracle.measured.len() as u64;
    let dollar_ms: Decimal = state.oracle.measured.iter().map(|measured| measured.dollar_ms).sum();
    outcome.dollar_seconds = dollar_ms / Decimal::from(1_000);
    outcome
}

fn schedule_misfortune(world: &World, rng: &mut ChaCha8Rng, names: &[AccountId], outsiders: bool) {
    let any = |rng: &mut ChaCha8Rng| names[rng.random_range(0..names.len())].clone();
    let time = |rng: &mut ChaCha8Rng| ORIGIN_MS + rng.random_range(1_000..STORM_MS);
    for _ in 0..rng.random_range(0..4) {
        let (at, account) = (time(rng), any(rng));
        world.schedule(at, Due::Down(account, at + rng.random_range(200..8_000)));
    }
    for _ in 0..rng.random_range(0..4) {
        let (at, account) = (time(rng), any(rng));
        world.schedule(at, Due::StreamCut(account));
    }
    for _ in 0..rng.random_range(0..3) {
        let (at, account) = (time(rng), any(rng));
        world.schedule(at, Due::FeedStale(account, at + rng.random_range(1_000..8_000)));
    }
    if outsiders {
        for _ in 0..rng.random_range(1..5) {
            let (at, account) = (time(rng), any(rng));
            let side = if rng.random_bool(0.5) { Side::Buy } else { Side::Sell };
            world.schedule(at, Due::Foreign(account, side, thousandths(rng.random_range(1..60))));
        }
        if rng.random_bool(0.4) {
            let (at, account) = (time(rng), any(rng));
            world.schedule(at, Due::Deleveraged(account, thousandths(rng.random_range(1..100))));
        }
    }
    world.schedule(ORIGIN_MS + STORM_MS, Due::FaultsEnd);
}

/// Mostly at once; else in parts, resting first or not.
fn pacing(rng: &mut ChaCha8Rng) -> Pacing {
    if rng.random_bool(0.6) {
        return Pacing::default();
    }
    Pacing {
        clips: rng.random_range(1..4),
        interval: Duration::from_millis(rng.random_range(0..1_500)),
        rest_for: rng.random_bool(0.7).then(|| Duration::from_millis(rng.random_range(200..4_000))),
    }
}

/// What people ask for, oldest last.
fn script(rng: &mut ChaCha8Rng, names: &[AccountId], mode: Mode) -> Vec<(i64, Action)> {
    let mut actions = Vec::new();
    for _ in 0..rng.random_range(4..12) {
        let at = ORIGIN_MS + rng.random_range(1_000..STORM_MS);
        let mut accounts: Vec<AccountId> = names.to_vec();
        if rng.random_bool(0.4) {
            accounts.retain(|_| rng.random_bool(0.6));
        }
        if accounts.is_empty() {
            accounts = names.to_vec();
        }
        let timeout = [300, 2_000, 10_000, 30_000][rng.random_range(0..4)];
        let draw = rng.random_range(0..27);
        let action = match draw {
            0..=10 => Action::Control {
                target: thousandths(if rng.random_bool(0.5) { 0 } else { rng.random_range(-500..=500) }),
                accounts,
                band: rng.random_bool(0.2),
                best_effort: rng.random_bool(0.3),
                timeout,
                dry: rng.random_bool(0.1),
            },
            11..=16 => Action::Hedge {
                accounts,
                amount: thousandths(rng.random_range(1..300)),
                side: rng.random_bool(0.7).then(|| if rng.random_bool(0.5) { Side::Buy } else { Side::Sell }),
                pacing: pacing(rng),
                timeout,
            },
            // The whole book mostly: a part of it that hedges the rest is refused.
            20..=22 => {
                let accounts = if rng.random_bool(0.8) { names.to_vec() } else { accounts };
                Action::Flatten { accounts, timeout }
            }
            // A hundredth of the equity is near what positions use here.
            24..=26 => Action::Rebalance {
                target: thousandths(rng.random_range(0..8)),
                accounts,
                grow: rng.random_bool(0.4),
                timeout,
            },
            23 if mode != Mode::Calm => Action::Stop([0, 200, 10_000][rng.random_range(0..3)]),
            17..=18 if mode != Mode::Calm => Action::Kill(rng.random_bool(0.6)),
            _ if mode != Mode::Calm => {
                let states = [TradingState::Running, TradingState::ReduceOnly, TradingState::Halted];
                Action::Trading(states[rng.random_range(0..3)])
            }
            _ => continue,
        };
        actions.push((at, action));
    }
    actions.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    actions
}

struct Life {
    world: Arc<World>,
    accounts: Vec<AccountId>,
    number: u64,
    mode: Mode,
    shrink_after_forced_close: bool,
    outsiders: bool,
}

impl Life {
    /// Lives until the process dies or the episode ends; gives which, and when.
    async fn live(
        self,
        origin_ms: i64,
        crash_at: Option<u64>,
        script: &mut Vec<(i64, Action)>,
    ) -> (bool, i64) {
        let world = self.world.clone();
        let clock = Arc::new(LifeClock { origin_ms, start: tokio::time::Instant::now() });
        world.begin_life(clock.clone(), crash_at);
        tokio::spawn(world.clone().drive());
        let ended = tokio::select! {
            biased;
            () = world.died.notified() => false,
            ended = self.act(clock, script) => ended,
        };
        let at = world.lock().now();
        world.die();
        (ended, at)
    }

    async fn start(&self, clock: Arc<LifeClock>) -> Arc<Engine> {
        let mut config = EngineConfig::new(btc(), IdKey::new(b"simulation"));
        config.limits.max_orders_per_minute = 1_000;
        // The scripts reject and move positions as often as they like, without an operator.
        config.breakers = BreakerSettings { refusals: None, mismatches: None, slippage: None, loss: None };
        // About a tenth of a BTC: both sides are closed in several slices.
        config.limits.max_in_flight_delta = Notional::new(Decimal::from(5_000));
        config.shrink_after_forced_close = self.shrink_after_forced_close;
        config.allow_resting_without_dead_man_switch = true;
        let mut feeds: Vec<Arc<dyn PriceFeed>> = Vec::new();
        let mut accounts = Vec::new();
        for account in &self.accounts {
            let venue = Arc::new(SimAccount {
                world: self.world.clone(),
                account: account.clone(),
                feed: account.as_str().parse().expect("a feed id"),
                changes: watch::Sender::new(0),
            });
            feeds.push(venue.clone());
            accounts.push(AccountParts {
                id: account.clone(),
                venue: account.as_str().parse().expect("a venue id"),
                exchange: "simulated".to_owned(),
                reader: venue.clone(),
                gateway: venue,
                feed: account.as_str().parse().expect("a feed id"),
            });
        }
        let parts = EngineParts {
            config,
            accounts,
            feeds,
            proxy_pools: Vec::new(),
            budgets: Vec::new(),
            journal: Arc::new(SimJournal(self.world.clone())),
            history: Arc::new(deltaplane_engine::MemoryHistory::default()),
            clock,
            ids: Arc::new(Names { life: self.number, next: 0.into() }),
        };
        Arc::new(Engine::start(parts).await.expect("the journal can be read"))
    }

    /// Gives whether the episode is over; it is not where the process was asked to stop.
    async fn act(&self, clock: Arc<LifeClock>, script: &mut Vec<(i64, Action)>) -> bool {
        let engine = self.start(clock.clone()).await;
        // What was said before the process died and is on the disk holds on.
        let held = engine.system().await.trading;
        {
            let mut state = self.world.lock();
            let now = state.now();
            let restricted = held.kill || held.state != TradingState::Running;
            state.oracle.killed_since = restricted.then_some(now);
        }
        tokio::spawn(watch_reports(self.world.clone(), engine.clone(), self.outsiders));
        let end = ORIGIN_MS + STORM_MS;
        loop {
            let now = self.world.lock().now();
            match script.last() {
                Some((at, _)) if *at <= now => {
                    let (_, action) = script.pop().expect("it is there");
                    if let Action::Stop(within) = action {
                        self.stop(&engine, within).await;
                        return false;
                    }
                    self.perform(&engine, action).await;
                }
                Some((at, _)) => sleep_ms((*at - now).min(200)).await,
                None if now >= end => break,
                None => sleep_ms((end - now).clamp(1, 500)).await,
            }
        }
        self.settle(&engine).await;
        true
    }

    /// An orderly end: nothing new is taken, and it does not take longer than it may.
    async fn stop(&self, engine: &Arc<Engine>, within_ms: u64) {
        self.world.lock().note(format!("asked to stop within {within_ms} ms"));
        let began = tokio::time::Instant::now();
        engine.stop(Duration::from_millis(within_ms)).await;
        let request = DeltaControl::new(btc(), self.accounts.clone(), Delta::ZERO, ratio(1, 1));
        let refused = engine.control_delta(request).await;
        let mut state = self.world.lock();
        if began.elapsed() > Duration::from_millis(within_ms + 100) {
            state.oracle.violation(format!("I22: stopping took {:?} of {within_ms} ms", began.elapsed()));
        }
        if refused.is_ok() {
            state.oracle.violation("I19: an operation began after the stop".to_owned());
        }
        *state.oracle.seldom.entry("stopped in order".to_owned()).or_default() += 1;
    }

    async fn perform(&self, engine: &Arc<Engine>, action: Action) {
        self.world.lock().note(format!("asked: {action:?}"));
        match action {
            Action::Control { target, accounts, band, best_effort, timeout, dry } => {
                let request = DeltaControl {
                    hedge_to: if band { HedgeTo::Band } else { HedgeTo::Target },
                    on_shortfall: if best_effort { OnShortfall::BestEffort } else { OnShortfall::Refuse },
                    subset: true,
                    dry_run: dry,
                    timeout: Duration::from_millis(timeout),
                    ..DeltaControl::new(btc(), accounts.clone(), Delta::new(target), ratio(1, 1))
                };
                let measured = (!dry).then(|| Measured::new(accounts, Delta::new(target)));
                self.launch(engine.clone(), timeout, measured, async |engine: &Engine| {
                    engine.control_delta(request).await
                })
                .await;
            }
            Action::Hedge { accounts, amount, side, pacing, timeout } => {
                let request = HedgeExecution {
                    symbol: btc(),
                    accounts,
                    amount: Quantity::try_new(amount).expect("above zero"),
                    side,
                    strategy: deltaplane_ports::HedgeStrategy::DeltaNeutral,
                    max_slippage: ratio(5, 3),
                    timeout: Duration::from_millis(timeout),
                    pacing,
                    dry_run: false,
                    meta: RequestMeta::default(),
                };
                self.launch(engine.clone(), timeout, None, async |engine: &Engine| {
                    engine.execute_hedge(request).await
                })
                .await;
            }
            Action::Flatten { accounts, timeout } => {
                let request =
                    Flatten { timeout: Duration::from_millis(timeout), ..Flatten::new(btc(), accounts) };
                self.launch(engine.clone(), timeout, None, async |engine: &Engine| {
                    engine.flatten(request).await
                })
                .await;
            }
            Action::Rebalance { target, accounts, grow, timeout } => {
                let request = UtilizationRebalance {
                    target: Ratio::new(target),
                    accounts,
                    symbol: btc(),
                    tolerance: ratio(1, 1),
                    max_amount: None,
                    allow_gross_increase: grow,
                    max_slippage: ratio(5, 3),
                    timeout: Duration::from_millis(timeout),
                    dry_run: false,
                    meta: RequestMeta::default(),
                };
                self.launch(engine.clone(), timeout, None, async |engine: &Engine| {
                    engine.rebalance_utilization(request).await
                })
                .await;
            }
            Action::Stop(_) => {}
            Action::Kill(engaged) => {
                let request =
                    KillSwitch { engaged, reason: "the script".to_owned(), cancel_open_orders: true };
                {
                    // It holds from the moment at which it is asked for, however slow the disk is.
                    let mut state = self.world.lock();
                    let now = state.now();
                    state.oracle.killed_since = engaged.then(|| state.oracle.killed_since.unwrap_or(now));
                }
                let report = engine.kill_switch(request).await.expect("an engine answers");
                let mut state = self.world.lock();
                let now = state.now();
                let restricted = report.trading.kill || report.trading.state != TradingState::Running;
                state.oracle.killed_since = restricted.then(|| state.oracle.killed_since.unwrap_or(now));
            }
            Action::Trading(state) => {
                {
                    let mut world = self.world.lock();
                    let now = world.now();
                    world.oracle.killed_since =
                        (state != TradingState::Running).then(|| world.oracle.killed_since.unwrap_or(now));
                }
                let change =
                    TradingChange { scope: TradingScope::Global, state, reason: "the script".to_owned() };
                if let Ok(order) = engine.set_trading(change).await {
                    let mut world = self.world.lock();
                    let now = world.now();
                    let restricted = order.kill || order.state != TradingState::Running;
                    world.oracle.killed_since = restricted.then(|| world.oracle.killed_since.unwrap_or(now));
                }
            }
        }
    }

    /// Starts an operation and follows it beside what else happens.
    async fn launch(
        &self,
        engine: Arc<Engine>,
        timeout_ms: u64,
        measured: Option<Measured>,
        start: impl AsyncFnOnce(&Engine) -> Result<deltaplane_ports::Started, Box<deltaplane_ports::Failure>>,
    ) {
        let started = match start(&engine).await {
            Ok(started) => started,
            Err(failure) => {
                self.world.lock().note(format!("refused: {}", failure.error));
                return;
            }
        };
        let index = measured.map(|measured| {
            let mut state = self.world.lock();
            state.oracle.measured.push(measured);
            state.oracle.measured.len() - 1
        });
        let world = self.world.clone();
        tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            let report = started.report.await;
            let took = began.elapsed();
            let mut state = world.lock();
            if let Some(measured) = index.and_then(|index| state.oracle.measured.get_mut(index)) {
                measured.ended = true;
            }
            match report {
                // A slow disk keeps the answer back as long as a write takes.
                Ok(report) => {
                    if took > Duration::from_millis(timeout_ms + 15_000) {
                        state.oracle.violation(format!("I22: {} was answered after {took:?}", report.id));
                    }
                    let failure = report.failure.map(|failure| failure.error).unwrap_or_default();
                    state.note(format!("answered: {} {:?} {failure}", report.id, report.state));
                }
                Err(_) => state.note("an operation gave no answer"),
            }
        });
    }

    /// The storm is over.
    async fn settle(&self, engine: &Arc<Engine>) {
        if self.mode == Mode::Safety {
            // Whatever is open stays open; a while longer must not make anything wrong.
            sleep_ms(8_000).await;
            return;
        }
        let request =
            KillSwitch { engaged: false, reason: "it is over".to_owned(), cancel_open_orders: false };
        self.world.lock().oracle.killed_since = None;
        engine.kill_switch(request).await.expect("an engine answers");
        let change = TradingChange {
            scope: TradingScope::Global,
            state: TradingState::Running,
            reason: "it is over".to_owned(),
        };
        let _ = engine.set_trading(change).await;
        // A restarted process begins to ask again.
        let deadline = self.world.lock().now().max(ORIGIN_MS + STORM_MS) + SETTLES_WITHIN_MS;
        loop {
            let open = self.open_orders();
            if open == 0 {
                break;
            }
            self.decide_frozen(engine).await;
            if self.world.lock().now() > deadline {
                for report in engine.operations(50).await {
                    if matches!(
                        report.state,
                        OperationState::Running | OperationState::Frozen | OperationState::Interrupted
                    ) {
                        let told: Vec<String> = report
                            .timeline
                            .iter()
                            .map(|entry| format!("{} {}", entry.at.as_millis() - ORIGIN_MS, entry.text))
                            .collect();
                        let orders: Vec<String> = report
                            .orders
                            .iter()
                            .map(|order| {
                                format!(
                                    "{} {} {} of {} evidence {:?}",
                                    order.client_order_id,
                                    order.state,
                                    order.filled,
                                    order.quantity,
                                    order.evidence
                                )
                            })
                            .collect();
                        self.world
                            .lock()
                            .note(format!("open: {} {:?} {told:#?} {orders:#?}", report.id, report.state));
                    }
                }
                let text = format!("I23: {open} orders are still open long after the faults");
                return self.world.lock().oracle.violation(text);
            }
            sleep_ms(500).await;
        }
        // What others did a moment ago may not show yet.
        sleep_ms(3_500).await;
        // Now the book can be brought to its target, within a bounded time.
        for _ in 0..40 {
            let request = DeltaControl {
                timeout: Duration::from_secs(20),
                ..DeltaControl::new(btc(), self.accounts.clone(), Delta::ZERO, ratio(1, 1))
            };
            let reference = self.larger_side();
            let ended = match engine.control_delta(request).await {
                Ok(started) => started.report.await.ok().is_some_and(|report| report.failure.is_none()),
                Err(failure) => {
                    self.world.lock().note(format!("refused: {}", failure.error));
                    false
                }
            };
            if ended {
                // Within a tenth of the reference, which is at least the largest single side at the start.
                let reference = reference.max(self.larger_side()).max(thousandths(2));
                let mut state = self.world.lock();
                let net = state.true_net();
                if net.abs() > reference * Decimal::from_i128_with_scale(15, 2) + thousandths(1) {
                    state.oracle.violation(format!("I23: success is reported and the net delta is {net}"));
                }
                return;
            }
            sleep_ms(1_000).await;
        }
        let alerts = engine.alerts().await;
        let net = self.world.lock().true_net();
        let text = format!("I23: net delta {net} was not brought to its target; alerts: {alerts:?}");
        self.world.lock().oracle.violation(text);
    }

    /// What the accounts are long or short in all, whichever is more.
    fn larger_side(&self) -> Decimal {
        let state = self.world.lock();
        let held = || state.venues.values().map(Venue::position);
        let long: Decimal = held().map(|position| position.max(Decimal::ZERO)).sum();
        let short: Decimal = held().map(|position| (-position).max(Decimal::ZERO)).sum();
        long.max(short)
    }

    fn open_orders(&self) -> usize {
        let state = self.world.lock();
        let open = state.oracle.accepted.iter().filter(|id| !state.oracle.closed.contains_key(*id));
        open.filter(|id| state.oracle.intents.values().any(|intent| intent.operation == **id)).count()
    }

    /// A person looks at the venue and decides what the engine cannot.
    async fn decide_frozen(&self, engine: &Arc<Engine>) {
        for report in engine.operations(1_000).await {
            if report.state != OperationState::Frozen {
                continue;
            }
            if !engine.alerts().await.iter().any(|alert| alert.topic.as_str() == "frozen-order") {
                let text = format!("I23: {} is frozen and no alert stands", report.id);
                self.world.lock().oracle.violation(text);
            }
            for order in report.orders.iter().filter(|order| order.state.as_str() == "frozen") {
                let truth = {
                    let state = self.world.lock();
                    let venue = &state.venues[&order.account];
                    order_of(&venue.exchange, &order.client_order_id).map(|order| order.executed)
                };
                let settlement = match truth {
                    Some(executed) => {
                        Settlement::Ended { filled: Quantity::try_new(executed).expect("not below zero") }
                    }
                    None => Settlement::NotPlaced,
                };
                let request = ResolveOrder {
                    operation: report.id.clone(),
                    client_order_id: order.client_order_id.clone(),
                    settlement,
                    reason: "seen at the venue".to_owned(),
                };
                if let Err(failure) = engine.resolve_order(request).await {
                    self.world.lock().note(format!("not decided: {}", failure.error));
                }
            }
        }
    }
}

async fn sleep_ms(millis: i64) {
    tokio::time::sleep(Duration::from_millis(u64::try_from(millis).unwrap_or(1).max(1))).await;
}

/// Compares what the engine says of itself with the truth, again and again.
async fn watch_reports(world: Arc<World>, engine: Arc<Engine>, outsiders: bool) {
    loop {
        sleep_ms(100).await;
        for report in engine.operations(20).await {
            check_report(&world, &report, outsiders);
        }
    }
}

fn check_report(world: &World, report: &OperationReport, outsiders: bool) {
    let mut state = world.lock();
    if state.is_dead {
        return;
    }
    if report.timeline.iter().any(|entry| entry.text.contains("makes the worst case smaller")) {
        state.oracle.shrank(&report.id);
    }
    let mut unknown = Decimal::ZERO;
    for order in &report.orders {
        let executed = state
            .venues
            .get(&order.account)
            .and_then(|venue| order_of(&venue.exchange, &order.client_order_id))
            .map_or(Decimal::ZERO, |found| found.executed);
        let settled = matches!(order.state.as_str(), "filled" | "canceled" | "expired" | "notAccepted");
        if order.filled.value() > executed || (settled && order.filled.value() != executed) {
            let text = format!(
                "I6: {} is reported {} with {}, the venue has {executed}",
                order.client_order_id, order.state, order.filled
            );
            state.oracle.violation(text);
        }
        let sign = if order.side == Side::Buy { Decimal::ONE } else { -Decimal::ONE };
        unknown += sign * (executed - order.filled.value());
    }
    if let Some((low, high)) = report.interval.filter(|_| report.state == OperationState::Running) {
        let truth = report.final_delta.unwrap_or_default().value() + unknown;
        if truth < low.value() || truth > high.value() {
            let text = format!("I6: {} reports [{low}, {high}], our orders made it {truth}", report.id);
            state.oracle.violation(text);
        }
    }
    // Without external activity an operation is never further from its target than at its start.
    let began = report.initial_delta.zip(report.target);
    let began = began.and_then(|(net, target)| net.minus(target).ok()).unwrap_or_default().abs();
    let bound = began.max(report.worst_case.unwrap_or_default());
    if let Some(came) = report.max_transient_delta.filter(|came| !outsiders && *came > bound) {
        let text = format!("I7: {} came {came} from its target, its bound is {bound}", report.id);
        state.oracle.violation(text);
    }
}
