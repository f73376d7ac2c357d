//! The world outside the engine: venues with their books, the network between, the disk, and time.
//!
//! Everything here survives a crash of the engine's process. What was on its way to a venue still arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deltaplane_ports::{AccountEvent, Clock, OpenOrder, Record};
use deltaplane_types::{
    AccountId, ClientOrderId, Decimal, ExecutionReport, Fill, FillCause, MarketView, OrderAck, OrderIntent,
    OrderStatus, Price, Quantity, Refusal, RefusalReason, Side, SubmitOutcome, Symbol, Timestamp,
    UnknownCause,
};
use deltaplane_venue_sim::Dialect;
use deltaplane_venue_sim::config::{AccountConfig, Exact, ExchangeConfig};
use deltaplane_venue_sim::core::{
    Cause, Command, Event, Exchange, ExecutionType, NewOrder, Order, OrderKind, Rules, Status, TimeInForce,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, broadcast, oneshot};

use crate::limits::{Kind, Limits};
use crate::oracle::Oracle;

/// The one market of this world.
pub(crate) const MARKET: &str = "BTCUSDT";
/// When a world begins, milliseconds since the epoch.
pub(crate) const ORIGIN_MS: i64 = 1_750_000_000_000;
/// How long a request is waited for.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_000);
/// A venue shows an order and a trade at most this long after it happened.
pub(crate) const SHOWN_LATE_MS: i64 = 900;
/// A venue shows a position at most this long after it moved.
pub(crate) const POSITION_LATE_MS: i64 = 3_000;
/// A stream that tells nothing any more counts as proven for so long.
pub(crate) const PROOF_MS: i64 = 1_500;
const PRICES_EVERY_MS: i64 = 250;

pub(crate) fn btc() -> Symbol {
    "BTC-USD".parse().expect("a symbol")
}

/// How hostile a world is: chances in a thousand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chances {
    pub(crate) not_sent: u32,
    pub(crate) request_lost: u32,
    pub(crate) answer_lost: u32,
    pub(crate) late: u32,
    pub(crate) uncertain: u32,
    pub(crate) refused: u32,
    pub(crate) read_fails: u32,
    pub(crate) shown_late: u32,
    pub(crate) event_lost: u32,
    pub(crate) key_dead: u32,
    /// A stream that connects tells nothing.
    pub(crate) says_nothing: u32,
    /// Other programs at the address use a part of what the venue takes in a window.
    pub(crate) others: u32,
    pub(crate) event_twice: u32,
    pub(crate) event_late: u32,
    pub(crate) slow_disk: u32,
}

impl Chances {
    pub(crate) const CALM: Self = Self {
        not_sent: 0,
        request_lost: 0,
        answer_lost: 0,
        late: 0,
        uncertain: 0,
        refused: 0,
        read_fails: 0,
        shown_late: 0,
        event_lost: 0,
        key_dead: 0,
        says_nothing: 0,
        others: 0,
        event_twice: 0,
        event_late: 0,
        slow_disk: 0,
    };
    pub(crate) const LOSSY: Self = Self {
        not_sent: 20,
        request_lost: 40,
        answer_lost: 60,
        late: 30,
        uncertain: 30,
        refused: 30,
        read_fails: 40,
        shown_late: 150,
        event_lost: 80,
        key_dead: 20,
        says_nothing: 150,
        others: 150,
        event_twice: 80,
        event_late: 150,
        slow_disk: 20,
    };
    pub(crate) const HOSTILE: Self = Self {
        not_sent: 50,
        request_lost: 120,
        answer_lost: 150,
        late: 100,
        uncertain: 100,
        refused: 80,
        read_fails: 150,
        shown_late: 400,
        event_lost: 300,
        key_dead: 60,
        says_nothing: 300,
        others: 400,
        event_twice: 200,
        event_late: 300,
        slow_disk: 80,
    };
}

/// Time of one life of the engine's process.
pub(crate) struct LifeClock {
    pub(crate) origin_ms: i64,
    pub(crate) start: tokio::time::Instant,
}

impl Clock for LifeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.origin_ms).after(self.start.elapsed())
    }
}

/// One venue with the one account on it.
pub(crate) struct Venue {
    pub(crate) exchange: Exchange,
    pub(crate) invalidates: bool,
    pub(crate) events: broadcast::Sender<AccountEvent>,
    pub(crate) down_until: i64,
    pub(crate) feed_stale_until: i64,
    /// When an order, by its name, begins to show.
    pub(crate) shown_at: BTreeMap<String, i64>,
    /// When a trade begins to show.
    pub(crate) trade_shown_at: BTreeMap<u64, i64>,
    /// Its events have numbers of their own; else their times order them.
    pub(crate) numbered: bool,
    number: u64,
    /// Its stream is cut until then.
    pub(crate) cut_until: i64,
    /// Its stream is open and tells nothing from the first to the second: its key is dead.
    pub(crate) deaf: (i64, i64),
    /// The requests that it takes.
    pub(crate) limits: Limits,
    /// What was held since a time.
    pub(crate) history: Vec<Held>,
    /// Orders whose place was taken before they arrived.
    pub(crate) burned: BTreeSet<String>,
    pub(crate) arrived: BTreeSet<String>,
    pub(crate) view: Option<Arc<MarketView>>,
    mid_offset: i64,
}

/// A position, and its place in the venue's order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) at: i64,
    pub(crate) delta: Decimal,
    pub(crate) order: u64,
}

/// What the venue's answer to a placement becomes on its way back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WayBack {
    Comes,
    Lost,
    /// The venue answers that it does not know.
    Uncertain,
}

pub(crate) enum Due {
    Prices,
    Arrives {
        account: AccountId,
        id: ClientOrderId,
        intent: OrderIntent,
        answer: oneshot::Sender<SubmitOutcome>,
        way_back: WayBack,
    },
    Told(AccountId, AccountEvent),
    Foreign(AccountId, Side, Decimal),
    Deleveraged(AccountId, Decimal),
    Down(AccountId, i64),
    StreamCut(AccountId),
    FeedStale(AccountId, i64),
    FaultsEnd,
}

pub(crate) struct State {
    pub(crate) rng: ChaCha8Rng,
    pub(crate) chances: Chances,
    pub(crate) venues: BTreeMap<AccountId, Venue>,
    queue: BTreeMap<(i64, u64), Due>,
    counter: u64,
    pub(crate) log: Vec<String>,
    /// What is on the disk.
    pub(crate) journal: Vec<Record>,
    /// What was handed to the disk and is not there yet, oldest first.
    writing: Vec<(u64, Vec<Record>)>,
    /// The process is dead: nothing that it still does counts.
    pub(crate) is_dead: bool,
    crash_at_step: Option<u64>,
    pub(crate) steps: u64,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) oracle: Oracle,
    clock: Option<Arc<LifeClock>>,
    mid: i64,
}

/// The world, shared by everything that is in it.
pub(crate) struct World {
    state: Mutex<State>,
    wake: Notify,
    /// Told when the process dies.
    pub(crate) died: Notify,
}

fn dec(value: i64, scale: u32) -> Decimal {
    Decimal::from_i128_with_scale(value.into(), scale)
}

impl World {
    /// A world with these accounts, each on a venue of its own with its position in thousandths of a bitcoin.
    pub(crate) fn new(seed: u64, accounts: &[(AccountId, i64)], chances: Chances) -> Arc<Self> {
        let mut venues = BTreeMap::new();
        for (index, (account, position)) in accounts.iter().enumerate() {
            let config = AccountConfig {
                wallet: Exact(dec(1_000_000, 0)),
                positions: BTreeMap::from([(MARKET.to_owned(), Exact(dec(*position, 3)))]),
                ..AccountConfig::new(account.as_str(), "", "")
            };
            let config = ExchangeConfig::with_accounts(Dialect::Binance, vec![config]);
            let exchange = Exchange::new(&config, Rules::binance(), ORIGIN_MS);
            let venue = Venue {
                exchange,
                // Every third one can take an order's place, as Aster can.
                invalidates: index % 3 == 1,
                events: broadcast::channel(4_096).0,
                down_until: 0,
                feed_stale_until: 0,
                shown_at: BTreeMap::new(),
                trade_shown_at: BTreeMap::new(),
                numbered: index % 2 == 0,
                number: 1,
                cut_until: 0,
                deaf: (0, 0),
                limits: Limits::new([Kind::Binance, Kind::Aster, Kind::Pacifica][index % 3]),
                history: vec![Held { at: 0, delta: dec(*position, 3), order: 1 }],
                burned: BTreeSet::new(),
                arrived: BTreeSet::new(),
                view: None,
                mid_offset: i64::try_from(index).unwrap_or(0) * 3,
            };
            venues.insert(account.clone(), venue);
        }
        let world = Self {
            state: Mutex::new(State {
                rng: ChaCha8Rng::seed_from_u64(seed),
                chances,
                venues,
                queue: BTreeMap::new(),
                counter: 0,
                log: Vec::new(),
                journal: Vec::new(),
                writing: Vec::new(),
                is_dead: false,
                crash_at_step: None,
                steps: 0,
                faults: BTreeMap::new(),
                oracle: Oracle::default(),
                clock: None,
                mid: 660_000,
            }),
            wake: Notify::new(),
            died: Notify::new(),
        };
        {
            let mut state = world.lock();
            state.publish_prices(ORIGIN_MS);
            state.schedule(ORIGIN_MS + PRICES_EVERY_MS, Due::Prices);
        }
        Arc::new(world)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a life of the process; what fell due while it was dead happens first.
    pub(crate) fn begin_life(&self, clock: Arc<LifeClock>, crash_at_step: Option<u64>) {
        let mut state = self.lock();
        let now = clock.now().as_millis();
        // The clock of a runtime that is gone shows the wall's time.
        state.clock = Some(clock);
        state.run_due(now);
        for venue in state.venues.values_mut() {
            venue.events = broadcast::channel(4_096).0;
            venue.limits.process_starts();
        }
        state.is_dead = false;
        state.crash_at_step = crash_at_step;
        state.note("the process starts");
    }

    /// The process dies: of what was handed to the disk, some of the oldest is there.
    pub(crate) fn die(&self) {
        let mut state = self.lock();
        state.is_dead = true;
        let handed = u32::try_from(state.writing.len()).unwrap_or(u32::MAX);
        let kept = if handed == 0 { 0 } else { state.rng.random_range(0..=handed) };
        let writing = std::mem::take(&mut state.writing);
        for (_, records) in writing.into_iter().take(kept as usize) {
            state.make_durable(records);
        }
        state.note("the process dies");
    }

    /// A step of the process: the place where it may die. Gives whether it is alive after it.
    pub(crate) fn step(&self) -> bool {
        let died = {
            let mut state = self.lock();
            if state.is_dead {
                return false;
            }
            state.steps += 1;
            state.crash_at_step.is_some_and(|at| state.steps >= at)
        };
        if died {
            self.die();
            self.died.notify_one();
        }
        !died
    }

    /// Holds up whatever a dead process still does.
    pub(crate) async fn alive(&self) {
        if !self.step() {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn schedule(&self, at_ms: i64, due: Due) {
        self.lock().schedule(at_ms, due);
        self.wake.notify_one();
    }

    /// Lets happen what falls due, until dropped.
    pub(crate) async fn drive(self: Arc<Self>) {
        loop {
            let (now, next) = {
                let mut state = self.lock();
                let now = state.now();
                state.run_due(now);
                (now, state.queue.keys().next().map(|(at, _)| *at))
            };
            let wait = next.map_or(1_000, |at| (at - now).max(1));
            tokio::select! {
                biased;
                () = self.wake.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(u64::try_from(wait).unwrap_or(1))) => {}
            }
        }
    }

    /// Hands records to the disk; gives when they will be there.
    pub(crate) fn begin_write(&self, records: Vec<Record>) -> (u64, Duration) {
        let mut state = self.lock();
        state.counter += 1;
        let token = state.counter;
        state.writing.push((token, records));
        let chances = state.chances;
        let slow = state.chance("slow disk", chances.slow_disk);
        let millis = if slow { state.rng.random_range(200..6_000) } else { state.rng.random_range(1..4) };
        (token, Duration::from_millis(millis))
    }

    /// Records are on the disk, with all that was handed to it before.
    pub(crate) fn end_write(&self, token: u64) {
        let mut state = self.lock();
        let (done, left) = std::mem::take(&mut state.writing).into_iter().partition(|(at, _)| *at <= token);
        state.writing = left;
        let done: Vec<(u64, Vec<Record>)> = done;
        for (_, records) in done {
            state.make_durable(records);
        }
    }
}

impl State {
    pub(crate) fn now(&self) -> i64 {
        self.clock.as_ref().map_or(ORIGIN_MS, |clock| clock.now().as_millis())
    }

    pub(crate) fn note(&mut self, text: impl AsRef<str>) {
        let at = self.now() - ORIGIN_MS;
        self.log.push(format!("{at:>7} {}", text.as_ref()));
    }

    /// Draws a chance in a thousand, and counts it where it comes.
    pub(crate) fn chance(&mut self, what: &'static str, in_thousand: u32) -> bool {
        let comes = in_thousand > 0 && self.rng.random_range(0..1_000) < in_thousand;
        if comes {
            *self.faults.entry(what).or_default() += 1;
        }
        comes
    }

    fn schedule(&mut self, at_ms: i64, due: Due) {
        self.counter += 1;
        self.queue.insert((at_ms, self.counter), due);
    }

    fn make_durable(&mut self, records: Vec<Record>) {
        let now = self.now();
        for record in records {
            self.oracle.on_record(&record, now, &self.venues);
            if let Record::External(activity) = &record {
                self.note(format!(
                    "outside: {} {} {} to {}",
                    activity.account, activity.cause, activity.change, activity.position
                ));
            }
            if std::env::var_os("SIM_RECORDS").is_some() {
                self.note(format!("durable: {record:?}"));
            }
            self.journal.push(record);
        }
    }

    fn run_due(&mut self, now: i64) {
        while let Some((&(at, number), _)) = self.queue.iter().next() {
            if at > now {
                return;
            }
            let Some(due) = self.queue.remove(&(at, number)) else { return };
            self.happen(at, due);
        }
    }

    fn happen(&mut self, now: i64, due: Due) {
        match due {
            Due::Prices => {
                self.publish_prices(now);
                self.schedule(now + PRICES_EVERY_MS, Due::Prices);
            }
            Due::Arrives { account, id, intent, answer, way_back } => {
                let outcome = self.arrive(now, &account, &id, &intent);
                let outcome = match way_back {
                    WayBack::Comes => outcome,
                    WayBack::Lost => return,
                    WayBack::Uncertain => {
                        SubmitOutcome::Unknown(UnknownCause::VenueUncertain("503".to_owned()))
                    }
                };
                // The caller may be dead.
                let _ = answer.send(outcome);
            }
            Due::Told(account, event) => {
                let is_mute = event == AccountEvent::Connected
                    && self.chance("stream says nothing", self.chances.says_nothing);
                if is_mute {
                    // It is open and was never proven, until it is given up.
                    let until = now + self.rng.random_range(500..6_000);
                    if let Some(venue) = self.venues.get_mut(&account) {
                        venue.deaf = (now - PROOF_MS, until);
                    }
                    self.schedule(until, Due::Told(account.clone(), AccountEvent::Disconnected));
                    self.schedule(until, Due::Told(account.clone(), AccountEvent::Connected));
                }
                if let Some(venue) = self.venues.get(&account) {
                    let _ = venue.events.send(event);
                }
            }
            Due::Foreign(account, side, quantity) => {
                let order = NewOrder::market(MARKET, side, quantity);
                *self.faults.entry("foreign trade").or_default() += 1;
                self.note(format!("external: {side} {quantity} on {account}"));
                // An order that cannot be filled is no trade.
                let _ = self.command(now, &account, Command::Place { account: account.to_string(), order });
            }
            Due::Deleveraged(account, quantity) => {
                *self.faults.entry("deleveraging").or_default() += 1;
                self.note(format!("the venue deleverages {quantity} on {account}"));
                let command =
                    Command::Deleverage { account: account.to_string(), symbol: MARKET.to_owned(), quantity };
                // Nothing to deleverage is no misfortune.
                let _ = self.command(now, &account, command);
            }
            Due::Down(account, until) => {
                *self.faults.entry("venue down").or_default() += 1;
                self.note(format!("{account} goes down"));
                if let Some(venue) = self.venues.get_mut(&account) {
                    venue.down_until = until;
                    let _ = venue.events.send(AccountEvent::Disconnected);
                }
                self.schedule(until, Due::Told(account, AccountEvent::Connected));
            }
            Due::StreamCut(account) => {
                *self.faults.entry("stream cut").or_default() += 1;
                for event in [AccountEvent::Disconnected, AccountEvent::Connected] {
                    self.happen(now, Due::Told(account.clone(), event));
                }
            }
            Due::FeedStale(account, until) => {
                *self.faults.entry("feed stale").or_default() += 1;
                if let Some(venue) = self.venues.get_mut(&account) {
                    venue.feed_stale_until = until;
                }
            }
            Due::FaultsEnd => {
                self.chances = Chances::CALM;
                for venue in self.venues.values_mut() {
                    (venue.down_until, venue.feed_stale_until) = (0, 0);
                    venue.limits.others_leave();
                }
                self.note("faults end");
            }
        }
    }

    /// An order reaches its venue, or what is left of it.
    fn arrive(
        &mut self,
        now: i64,
        account: &AccountId,
        id: &ClientOrderId,
        intent: &OrderIntent,
    ) -> SubmitOutcome {
        let definite = |reason, text: &str| {
            SubmitOutcome::NotAccepted(Refusal { reason, code: None, text: text.to_owned(), remedy: None })
        };
        let Some(venue) = self.venues.get_mut(account) else {
            return definite(RefusalReason::Rejected, "no such account");
        };
        if now < venue.down_until {
            return SubmitOutcome::Unknown(UnknownCause::VenueUncertain("503".to_owned()));
        }
        if venue.burned.contains(id.as_str()) {
            return definite(RefusalReason::Clock, "its place was taken");
        }
        if now > intent.deadline.as_millis() {
            return definite(RefusalReason::Clock, "outside the window");
        }
        if !venue.arrived.insert(id.to_string()) {
            self.oracle.violation(format!("I2: {id} reached the venue twice"));
        }
        if self.oracle.calls_absent(id) {
            self.oracle.violation(format!("I8: {id} was called never placed and arrives"));
        }
        let order = NewOrder {
            kind: OrderKind::Limit,
            time_in_force: match intent.time_in_force {
                deltaplane_types::TimeInForce::ImmediateOrCancel => TimeInForce::Ioc,
                deltaplane_types::TimeInForce::GoodTilCanceled => TimeInForce::Gtc,
                deltaplane_types::TimeInForce::PostOnly => TimeInForce::Gtx,
            },
            price: intent.limit_price.value(),
            reduce_only: intent.reduce_only,
            client_id: Some(id.to_string()),
            ..NewOrder::market(MARKET, intent.side, intent.quantity.value())
        };
        let late = self.chance("order shown late", self.chances.shown_late);
        let shown = now + if late { self.rng.random_range(1..SHOWN_LATE_MS) } else { 0 };
        if let Some(venue) = self.venues.get_mut(account) {
            venue.shown_at.insert(id.to_string(), shown);
        }
        match self.command(now, account, Command::Place { account: account.to_string(), order }) {
            Err(reject) => {
                let reason =
                    if reject.code == -2022 { RefusalReason::ReduceOnly } else { RefusalReason::Rejected };
                SubmitOutcome::NotAccepted(Refusal {
                    reason,
                    code: Some(reject.code.into()),
                    text: reject.message,
                    remedy: None,
                })
            }
            Ok(()) => {
                let found = self.venues.get(account).and_then(|venue| order_of(&venue.exchange, id));
                // A venue may answer before it matched.
                let early = self.rng.random_bool(0.3);
                match found.map(report_of) {
                    Some(report) => SubmitOutcome::Acknowledged(OrderAck {
                        venue_order_id: report.venue_order_id,
                        status: if early { OrderStatus::Open } else { report.status },
                        filled: if early { Quantity::ZERO } else { report.filled },
                    }),
                    None => SubmitOutcome::Unknown(UnknownCause::Unreadable),
                }
            }
        }
    }

    /// Moves a venue on and tells its streams.
    pub(crate) fn command(
        &mut self,
        now: i64,
        account: &AccountId,
        command: Command,
    ) -> Result<(), deltaplane_venue_sim::core::Reject> {
        let Some(venue) = self.venues.get_mut(account) else { return Ok(()) };
        let before = venue.exchange.trades.len();
        let events = venue.exchange.handle(now, command)?;
        let position = venue.exchange.accounts.values().map(|holder| holder.net(MARKET)).sum();
        let moved = venue.history.last().map(|held| held.delta) != Some(position);
        if moved {
            venue.number += 1;
            let order = if venue.numbered { venue.number } else { u64::try_from(now).unwrap_or(0) };
            venue.history.push(Held { at: now, delta: position, order });
        }
        let place = venue.history.last().map_or(0, |held| held.order);
        let fresh: Vec<u64> = venue.exchange.trades[before..].iter().map(|trade| trade.id).collect();
        for trade in fresh {
            let late = self.chance("trade shown late", self.chances.shown_late);
            let shown = now + if late { self.rng.random_range(1..SHOWN_LATE_MS) } else { 0 };
            if let Some(venue) = self.venues.get_mut(account) {
                venue.trade_shown_at.insert(trade, shown);
            }
        }
        for event in events {
            let Event::Order { order, execution } = event else { continue };
            let mut told = Vec::new();
            if let ExecutionType::Trade(trade) | ExecutionType::Calculated(trade) = execution {
                told.push(AccountEvent::Fill(fill_of(account, &trade, Some(&order.client_id)), place));
            }
            told.push(AccountEvent::Open(left_of(&order)));
            told.push(AccountEvent::Report(report_of(&order)));
            for event in told {
                self.tell(now, account, event);
            }
        }
        if moved {
            let event = AccountEvent::Position {
                symbol: btc(),
                delta: deltaplane_types::Delta::new(position),
                entry_price: None,
                unrealized: None,
                order: place,
                venue_time: Timestamp::from_millis(now),
            };
            self.tell(now, account, event);
        }
        self.oracle.on_positions(now, &self.venues, self.mid);
        Ok(())
    }

    fn tell(&mut self, now: i64, account: &AccountId, event: AccountEvent) {
        let is_cut =
            self.venues.get(account).is_some_and(|venue| now < venue.cut_until || now < venue.deaf.1);
        if is_cut {
            return;
        }
        if self.chance("key dead", self.chances.key_dead) {
            // Nothing ends: from here on it tells nothing, until it connects again.
            let until = now + self.rng.random_range(500..6_000);
            if let Some(venue) = self.venues.get_mut(account) {
                venue.deaf = (now, until);
            }
            self.schedule(until, Due::Told(account.clone(), AccountEvent::Disconnected));
            self.schedule(until, Due::Told(account.clone(), AccountEvent::Connected));
            return;
        }
        if self.chance("event lost", self.chances.event_lost) {
            // A connection loses nothing in its middle: it ends, and with it what was on its way.
            let until = now + self.rng.random_range(100..2_500);
            if let Some(venue) = self.venues.get_mut(account) {
                venue.cut_until = until;
                let _ = venue.events.send(AccountEvent::Disconnected);
            }
            self.schedule(until, Due::Told(account.clone(), AccountEvent::Connected));
            return;
        }
        let copies = if self.chance("event twice", self.chances.event_twice) { 2 } else { 1 };
        for _ in 0..copies {
            let late = self.chance("event late", self.chances.event_late);
            let delay = if late { self.rng.random_range(50..4_000) } else { self.rng.random_range(1..20) };
            self.schedule(now + delay, Due::Told(account.clone(), event.clone()));
        }
    }

    fn publish_prices(&mut self, now: i64) {
        self.mid += self.rng.random_range(-20..=20);
        let accounts: Vec<AccountId> = self.venues.keys().cloned().collect();
        for account in accounts {
            let wobble = self.rng.random_range(-5..=5);
            let sizes: Vec<i64> = (0..12).map(|_| self.rng.random_range(20..400)).collect();
            let mid = self.mid;
            let Some(venue) = self.venues.get_mut(&account) else { continue };
            let middle = mid + venue.mid_offset + wobble;
            let side = |direction: i64, sizes: &[i64]| -> Vec<(Decimal, Decimal)> {
                (1_i64..)
                    .zip(sizes)
                    .map(|(step, size)| (dec(middle + direction * step * 4, 1), dec(*size, 3)))
                    .collect()
            };
            let (bids, asks) = (side(-1, &sizes[..6]), side(1, &sizes[6..]));
            let command = Command::Market {
                symbol: MARKET.to_owned(),
                bids: bids.clone(),
                asks: asks.clone(),
                update_id: 1,
                reset: true,
                mark: Some(dec(middle, 1)),
            };
            let stale = now < venue.feed_stale_until || now < venue.down_until;
            let _ = self.command(now, &account, command);
            if let Some(venue) = self.venues.get_mut(&account).filter(|_| !stale) {
                venue.view = crate::venue::view(&account, &bids, &asks, middle, now).map(Arc::new);
            }
        }
    }

    /// The net of all accounts, as the venues know it.
    pub(crate) fn true_net(&self) -> Decimal {
        self.venues.values().map(Venue::position).sum()
    }
}

impl Venue {
    pub(crate) fn position(&self) -> Decimal {
        self.exchange.accounts.values().map(|holder| holder.net(MARKET)).sum()
    }

    /// The position as it was at a time.
    pub(crate) fn held_at(&self, at: i64) -> Held {
        let nothing = Held { at: 0, delta: Decimal::ZERO, order: 0 };
        self.history.iter().rev().find(|held| held.at <= at).copied().unwrap_or(nothing)
    }
}

/// What is left of an order.
pub(crate) fn left_of(order: &Order) -> OpenOrder {
    let left = if order.status.is_open() { order.quantity - order.executed } else { Decimal::ZERO };
    OpenOrder {
        symbol: btc(),
        venue_order_id: order.id.to_string().parse().expect("digits"),
        side: order.side,
        left: Quantity::try_new(left).expect("not below zero"),
        reduce_only: order.reduce_only,
    }
}

pub(crate) fn order_of<'a>(exchange: &'a Exchange, id: &ClientOrderId) -> Option<&'a Order> {
    exchange.orders.values().rev().find(|order| order.client_id == id.as_str())
}

pub(crate) fn report_of(order: &Order) -> ExecutionReport {
    ExecutionReport {
        client_order_id: order.client_id.parse().expect("a legal name"),
        venue_order_id: order.id.to_string().parse().expect("digits"),
        status: match order.status {
            Status::Waiting | Status::New => OrderStatus::Open,
            Status::PartiallyFilled => OrderStatus::PartiallyFilled,
            Status::Filled => OrderStatus::Filled,
            Status::Canceled => OrderStatus::Canceled,
            Status::Expired | Status::ExpiredInMatch => OrderStatus::Expired,
        },
        filled: Quantity::try_new(order.executed).expect("not below zero"),
        average_price: Price::try_new(order.average_price()).ok(),
        venue_time: Timestamp::from_millis(order.updated),
    }
}

pub(crate) fn fill_of(
    account: &AccountId,
    trade: &deltaplane_venue_sim::core::Trade,
    name: Option<&str>,
) -> Fill {
    Fill {
        account: account.clone(),
        symbol: btc(),
        trade_id: trade.id.to_string().parse().expect("digits"),
        venue_order_id: trade.order_id.to_string().parse().expect("digits"),
        client_order_id: name.and_then(|name| name.parse().ok()),
        side: trade.side,
        quantity: Quantity::try_new(trade.quantity).expect("not below zero"),
        price: Price::try_new(trade.price).expect("above zero"),
        fee: deltaplane_types::Fee::in_quote_currency(trade.fee),
        cause: match trade.cause {
            Cause::Order => FillCause::Order,
            Cause::Liquidation => FillCause::Liquidation,
            Cause::Deleveraging => FillCause::Deleveraging,
        },
        venue_time: Timestamp::from_millis(trade.time),
    }
}
