//! The exchange with what a dialect needs around it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deltaplane_ports::Clock;
use deltaplane_types::Decimal;
use tokio::sync::{broadcast, watch};

use crate::binance::limits::Limits;
use crate::binance::listen_key::ListenKeys;
use crate::config::ExchangeConfig;
use crate::core::{Command, Event, Exchange, Reject};
use crate::fault::{Fault, Faults};
use crate::market::Market;

/// The exchange's clock: somebody else's, or one that stands still.
#[derive(Clone)]
pub enum SimClock {
    /// Follows a clock.
    Running(Arc<dyn Clock>),
    /// Stands at a time, which a test may move.
    Frozen(Arc<AtomicI64>),
}

impl SimClock {
    /// Milliseconds since the epoch.
    pub fn now(&self) -> i64 {
        match self {
            Self::Running(clock) => clock.now().as_millis(),
            Self::Frozen(at) => at.load(Ordering::Relaxed),
        }
    }
}

/// How an exchange is run.
pub struct SimOptions {
    /// Its instruments and accounts.
    pub config: ExchangeConfig,
    /// Its clock.
    pub clock: SimClock,
    /// Where its prices come from.
    pub market: Market,
    /// Time between a request's arrival and its handling, and again before its answer.
    pub latency: std::time::Duration,
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
}

/// A running exchange.
pub struct Sim {
    pub(crate) exchange: Mutex<Exchange>,
    pub(crate) clock: SimClock,
    /// Account and secret by API key.
    pub(crate) keys: BTreeMap<String, (String, String)>,
    pub(crate) frames: broadcast::Sender<Frame>,
    pub(crate) users: broadcast::Sender<UserFrame>,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) listen_keys: Mutex<ListenKeys>,
    pub(crate) faults: Mutex<Faults>,
    /// Raised to close every stream.
    pub(crate) stream_closer: watch::Sender<u64>,
    pub(crate) latency: std::time::Duration,
    /// Prices set from outside, by symbol: they stay until set again.
    pub(crate) fixed_prices: Mutex<BTreeMap<String, Decimal>>,
}

/// Locks, also after another holder panicked: the exchange's state is only ever changed in whole steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sim {
    pub(crate) fn new(config: &ExchangeConfig, clock: SimClock, latency: std::time::Duration) -> Arc<Self> {
        let keys = config
            .accounts
            .iter()
            .map(|account| (account.api_key.clone(), (account.id.clone(), account.secret.clone())))
            .collect();
        Arc::new(Self {
            exchange: Mutex::new(Exchange::new(config, clock.now())),
            clock,
            keys,
            frames: broadcast::channel(8_192).0,
            users: broadcast::channel(8_192).0,
            limits: Mutex::new(Limits::default()),
            listen_keys: Mutex::new(ListenKeys::default()),
            faults: Mutex::new(Faults::default()),
            stream_closer: watch::channel(0).0,
            latency,
            fixed_prices: Mutex::new(BTreeMap::new()),
        })
    }

    /// Milliseconds since the epoch by the exchange's clock.
    pub fn now(&self) -> i64 {
        self.clock.now()
    }

    /// Moves the exchange on and tells the streams.
    ///
    /// # Errors
    ///
    /// The exchange's refusal; nothing changed then.
    pub fn apply(&self, command: Command) -> Result<Vec<Event>, Reject> {
        let now = self.now();
        let mut exchange = lock(&self.exchange);
        let events = exchange.handle(now, command)?;
        // Told under the lock, so that streams see events in the order in which they happened.
        for event in &events {
            for (account, kind, json) in crate::binance::events::render(&exchange, event, now) {
                self.tell(&account, kind, &json);
            }
        }
        Ok(events)
    }

    fn tell(&self, account: &str, kind: &'static str, json: &str) {
        let copies = lock(&self.faults).copies_of_user_event(kind);
        for _ in 0..copies {
            let frame = UserFrame { account: account.into(), kind, json: json.into() };
            // Without a subscriber nobody misses it.
            let _ = self.users.send(frame);
        }
    }

    /// Reads the state.
    pub fn with<T>(&self, read: impl FnOnce(&Exchange) -> T) -> T {
        read(&lock(&self.exchange))
    }

    /// Changes the state beside the commands: settings that no event tells.
    pub(crate) fn with_mut<T>(&self, change: impl FnOnce(&mut Exchange) -> T) -> T {
        change(&mut lock(&self.exchange))
    }

    /// Switches a fault on.
    pub fn inject(&self, fault: Fault) {
        lock(&self.faults).add(fault, &self.stream_closer);
    }
}
