//! The exchange with what a dialect needs around it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deltaplane_ports::Clock;
use deltaplane_types::Decimal;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::aster::registry::Registry;
use crate::binance::limits::Limits;
use crate::binance::listen_key::ListenKeys;
use crate::config::ExchangeConfig;
use crate::core::{Command, Event, Exchange, Reject};
use crate::dialect::{Dialect, StreamRules, Switches};
use crate::fault::{Fault, Faults, UserEvent};
use crate::lag::{self, Lag};
use crate::market::Market;
use crate::pacifica::credits::Credits;
use crate::pacifica::keys::Bindings;

/// The exchange's clock: a shared one, or one that stands still.
#[derive(Clone)]
pub enum SimClock {
    /// Follows a clock.
    Running(Arc<dyn Clock>),
    /// Follows a clock that is off by some milliseconds.
    Skewed(Arc<dyn Clock>, i64),
    /// Stands at a time, which a test may move.
    Frozen(Arc<AtomicI64>),
}

impl SimClock {
    /// Milliseconds since the epoch.
    pub fn now(&self) -> i64 {
        match self {
            Self::Running(clock) => clock.now().as_millis(),
            Self::Skewed(clock, by) => clock.now().as_millis() + by,
            Self::Frozen(at) => at.load(Ordering::Relaxed),
        }
    }
}

/// By how much reads lag where nothing else is said.
const READ_LAG: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(300);

/// How an exchange is run.
pub struct SimOptions {
    /// Whose protocol it speaks.
    pub dialect: Dialect,
    /// Its instruments and accounts.
    pub config: ExchangeConfig,
    /// Its clock.
    pub clock: SimClock,
    /// Where its prices come from.
    pub market: Market,
    /// Time between a request's arrival and its handling, again before its answer, and before a user event is sent.
    pub latency: Duration,
    /// By how much reads lag behind the matching: drawn for each read.
    pub read_lag: RangeInclusive<Duration>,
    /// How long Pacifica holds an order back that may take.
    pub speed_bump: Duration,
    /// What no published source settles.
    pub switches: Switches,
    /// Times and counts of its streams.
    pub streams: StreamRules,
    /// The chain id of Aster's signatures.
    pub chain_id: u64,
    /// Multiplies Pacifica's credits.
    pub credit_factor: u64,
    /// What happens when.
    pub script: Vec<crate::script::ScriptStep>,
}

impl SimOptions {
    /// A prompt exchange with the dialect's usual times.
    pub fn new(dialect: Dialect, config: ExchangeConfig, clock: SimClock, market: Market) -> Self {
        Self {
            dialect,
            config,
            clock,
            market,
            latency: Duration::ZERO,
            read_lag: READ_LAG,
            speed_bump: Duration::from_millis(200),
            switches: Switches::default(),
            streams: dialect.stream_rules(),
            chain_id: 1_666,
            credit_factor: 1,
            script: Vec::new(),
        }
    }
}

/// A market frame as subscribers get it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The venue's symbol, lower case.
    pub symbol: Arc<str>,
    /// The stream's kind: `depth`, `bookTicker`, `aggTrade`, `trade`, `markPrice`.
    pub channel: &'static str,
    /// The event's JSON.
    pub json: Arc<str>,
}

/// A user event as the account's streams get it.
#[derive(Clone, Debug)]
pub(crate) struct UserFrame {
    pub(crate) account: Arc<str>,
    pub(crate) kind: &'static str,
    pub(crate) json: Arc<str>,
    /// When it reaches the other side.
    pub(crate) arrives_at: Instant,
}

/// A running exchange.
pub struct Sim {
    pub(crate) dialect: Dialect,
    pub(crate) exchange: Mutex<Exchange>,
    pub(crate) clock: SimClock,
    /// How far the clock was set off since, milliseconds.
    pub(crate) skew: AtomicI64,
    /// Accounts whose keys were revoked.
    pub(crate) revoked: Mutex<BTreeSet<String>>,
    /// Account and secret by API key.
    pub(crate) keys: BTreeMap<String, (String, String)>,
    pub(crate) frames: broadcast::Sender<Frame>,
    pub(crate) users: broadcast::Sender<UserFrame>,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) listen_keys: Mutex<ListenKeys>,
    /// Aster's wallets, agents and nonces.
    pub(crate) registry: Mutex<Registry>,
    /// Pacifica's agents.
    pub(crate) bindings: Mutex<Bindings>,
    pub(crate) credits: Mutex<Credits>,
    /// Pacifica's counter of everything that happens.
    pub(crate) last_id: AtomicU64,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) lag: Mutex<Lag>,
    /// Raised to close every stream.
    pub(crate) stream_closer: watch::Sender<u64>,
    pub(crate) latency: Duration,
    pub(crate) speed_bump: Duration,
    pub(crate) switches: Switches,
    pub(crate) streams: StreamRules,
    /// Prices set from outside, by symbol: they stay until set again.
    pub(crate) fixed_prices: Mutex<BTreeMap<String, Decimal>>,
}

/// Locks, also after another holder panicked: the exchange's state is only ever changed in whole steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sim {
    pub(crate) fn new(options: &SimOptions) -> Arc<Self> {
        let config = &options.config;
        let keys = config
            .accounts
            .iter()
            .flat_map(|account| {
                let first = (&account.api_key, &account.secret);
                let more = account.more_keys.iter().map(|key| (&key.api_key, &key.secret));
                std::iter::once(first)
                    .chain(more)
                    .filter(|(key, _)| !key.is_empty())
                    .map(|(key, secret)| (key.clone(), (account.id.clone(), secret.clone())))
            })
            .collect();
        let mut rules = options.dialect.rules();
        rules.post_only_expires &= !options.switches.post_only_refused;
        Arc::new(Self {
            dialect: options.dialect,
            exchange: Mutex::new(Exchange::new(config, rules, options.clock.now())),
            clock: options.clock.clone(),
            skew: AtomicI64::new(0),
            revoked: Mutex::default(),
            keys,
            frames: broadcast::channel(8_192).0,
            users: broadcast::channel(8_192).0,
            limits: Mutex::new(Limits::default()),
            listen_keys: Mutex::new(ListenKeys::default()),
            registry: Mutex::new(Registry::new(&config.accounts, options.chain_id)),
            bindings: Mutex::new(Bindings::new(&config.accounts)),
            credits: Mutex::new(Credits::new(options.credit_factor)),
            last_id: AtomicU64::new(4_294_967_296),
            faults: Mutex::new(Faults::default()),
            lag: Mutex::new(Lag::new(options.read_lag.clone())),
            stream_closer: watch::channel(0).0,
            latency: options.latency,
            speed_bump: options.speed_bump,
            switches: options.switches,
            streams: options.streams,
            fixed_prices: Mutex::new(BTreeMap::new()),
        })
    }

    /// Milliseconds since the epoch by the exchange's clock.
    pub fn now(&self) -> i64 {
        self.clock.now() + self.skew.load(Ordering::Relaxed)
    }

    /// Whether an account's keys were revoked.
    pub(crate) fn is_revoked(&self, account: &str) -> bool {
        lock(&self.revoked).contains(account)
    }

    /// Moves the exchange on and tells the streams.
    ///
    /// # Errors
    ///
    /// The exchange's refusal; nothing changed then.
    pub fn apply(&self, command: Command) -> Result<Vec<Event>, Reject> {
        let now = self.now();
        let mut exchange = lock(&self.exchange);
        if lock(&self.lag).is_empty() {
            // What was before the first change.
            self.note_state(i64::MIN / 2, &exchange);
        }
        let events = exchange.handle(now, command)?;
        // Told under the lock, so that streams see events in the order in which they happened.
        let mut ordered: Vec<&Event> = events.iter().collect();
        if self.dialect == Dialect::Pacifica {
            // A set of positions shows what all trades of this moment made of them: it has the newest number.
            ordered.sort_by_key(|event| matches!(event, Event::Account { .. }));
        }
        for event in ordered {
            let told = match self.dialect {
                Dialect::Binance => crate::binance::events::render(&exchange, event, now),
                Dialect::Aster => crate::aster::events::render(&exchange, event, now),
                Dialect::Pacifica => crate::pacifica::events::render(self, &exchange, event, now),
            };
            for (account, kind, json) in told {
                self.tell(&account, kind, &json);
            }
        }
        if !events.is_empty() {
            self.note_state(now, &exchange);
        }
        Ok(events)
    }

    fn note_state(&self, now: i64, exchange: &Exchange) {
        let number = self.last_id.load(Ordering::Relaxed);
        lock(&self.lag).changed(now, number, &exchange.accounts);
    }

    /// Runs a handler that reads: what it sees may be a little old.
    pub(crate) fn reading<T>(&self, handler: impl FnOnce() -> T) -> T {
        let now = self.now();
        let view = {
            let exchange = lock(&self.exchange);
            lock(&self.lag).view(now, &exchange)
        };
        lag::reading(view, handler)
    }

    /// The counter of events that a reading sees.
    pub(crate) fn read_number(&self) -> u64 {
        lag::past_number().unwrap_or_else(|| self.last_id.load(Ordering::Relaxed))
    }

    /// Sets by how much reads lag.
    pub fn set_read_lag(&self, range: RangeInclusive<Duration>) {
        lock(&self.lag).set(range);
    }

    /// Lets every listen key die now without a word: streams stay open and tell no more, and no key can be extended.
    pub fn kill_listen_keys(&self) {
        lock(&self.listen_keys).kill_all();
    }

    fn tell(&self, account: &str, kind: &'static str, json: &str) {
        let arrives_at = Instant::now() + self.latency;
        let frame = UserFrame { account: account.into(), kind, json: json.into(), arrives_at };
        // Without a subscriber it is dropped.
        if let Some(odd) = lock(&self.faults).before_user_event() {
            let _ = self.users.send(UserFrame { json: odd.into(), ..frame.clone() });
        }
        let event = lock(&self.faults).on_user_event(kind);
        match event {
            UserEvent::Sent(copies) => {
                for _ in 0..copies {
                    let _ = self.users.send(frame.clone());
                }
            }
            UserEvent::Late(wait) => {
                let users = self.users.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let _ = users.send(frame);
                });
            }
        }
    }

    /// Reads the state.
    pub fn with<T>(&self, read: impl FnOnce(&Exchange) -> T) -> T {
        match lag::read_past(read) {
            Ok(result) => result,
            Err(read) => read(&lock(&self.exchange)),
        }
    }

    /// Changes the state beside the commands: settings that no event tells.
    pub(crate) fn with_mut<T>(&self, change: impl FnOnce(&mut Exchange) -> T) -> T {
        change(&mut lock(&self.exchange))
    }

    /// Switches a fault on.
    pub fn inject(&self, fault: Fault) {
        lock(&self.faults).add(fault, &self.stream_closer);
    }

    /// Lets every listen key run out now: streams stay open and tell no more.
    pub fn expire_listen_keys(&self) {
        lock(&self.listen_keys).expire_all();
    }

    /// Faults that did not strike as often as they were asked to.
    pub fn faults_left(&self) -> usize {
        lock(&self.faults).left()
    }

    /// Switches every fault off.
    pub fn clear_faults(&self) {
        lock(&self.faults).clear();
    }

    /// Charges every account the funding of the next settlement now, however far off it is.
    pub fn settle_funding(&self) {
        let now = self.now();
        self.with_mut(|exchange| {
            for market in exchange.markets.values_mut() {
                market.next_funding = now;
            }
        });
        // A tick cannot be refused.
        let _ = self.apply(Command::Tick);
    }
}
