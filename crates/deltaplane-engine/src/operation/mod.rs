//! The state machine of an operation: `(state, event, now) → (state, effects)`.
//!
//! No clock, no network, no journal inside. The shell feeds it what happened and does what it says, so the
//! same machine runs under the server, in tests and in simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_math::Interval;
use deltaplane_ports::{
    CancelOutcome, Failure, IntentRecord, Invalidation, JournalError, OperationKind, OperationState,
    OrderSighting, OutcomeRecord, ReadError, Record, Settlement, TimelineEntry, VenueRules,
};
use deltaplane_types::{
    AccountId, AlertTopic, ClientOrderId, Delta, Evidence, ExecutionReport, Fill, Instrument, OperationId,
    OrderIntent, Plan, Preemption, Price, Quantity, Requester, SubmitOutcome, TimeInForce, Timestamp,
    TradeId, UnknownCause,
};

use crate::accounts::RecentTrades;
use crate::alerts::Condition;
use crate::config::EngineConfig;
use crate::control::{Baseline, Ending, Spec};
use crate::orders::{Resolution, TrackedOrder};
use crate::snapshot::Snapshot;

mod ending;
pub(crate) use ending::interrupted;
mod evidence;
mod reporting;
mod rounds;
mod shrinking;
#[cfg(test)]
mod tests;

/// Rounds of planning in one operation.
const MAX_ROUNDS: u32 = 20;
/// Rounds in a row that trade nothing before an operation gives up.
const MAX_IDLE_ROUNDS: u32 = 2;
/// How the reason of an operation begins that ended as nothing traded any more.
/// Failed proofs of absence before an order is frozen.
const MAX_FAILED_PROOFS: u32 = 3;
/// Reads of positions that our own trades do not explain, before they count as external activity.
const MAX_REREADS: u32 = 8;
/// How long each of them waits for the stream, or for a slow venue.
const REREAD_PAUSE: Duration = Duration::from_millis(250);
/// From this one on the venue is asked: its stream did not tell within a second.
const ASK_FROM: u32 = 4;
/// The venue's clock may differ from ours by this much.
const CLOCK_MARGIN: Duration = Duration::from_secs(5);
/// Before an operation's time is over nothing rests any more for so long: what is left is taken then.
const TAKES_WITHIN: Duration = Duration::from_secs(2);
/// How long a fresh book is waited for between rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(120);

/// An order of an earlier run with what the journal says became of it.
pub type KnownOrder = (IntentRecord, Option<OutcomeRecord>);

/// What the journal tells of an operation of an earlier run.
#[derive(Debug, Default)]
pub struct KnownOperation {
    /// Every order.
    pub orders: Vec<KnownOrder>,
    /// Every trade.
    pub fills: Vec<(ClientOrderId, Fill)>,
    /// Positions as the newest plan read them, with what the operation had traded by then.
    pub positions: BTreeMap<AccountId, (Delta, Delta)>,
    /// When it read them.
    pub read_at: Timestamp,
    /// How far net delta was from its target at the start, where the operation traded both ways.
    pub began_at: Option<Delta>,
    /// What kind of request it served.
    pub kind: Option<OperationKind>,
    /// Who asked for it.
    pub requester: Requester,
}

/// What a venue answered when an order was looked for that may not exist.
#[derive(Debug)]
pub struct Sought {
    /// When the first question was sent.
    pub began: Timestamp,
    /// The order, among all orders and among those that are open.
    pub sighting: OrderSighting,
    /// All trades of the account in the symbol since a little before the position was read that its proof begins with, or
    /// since it was sent where that was earlier.
    pub fills: Vec<Fill>,
    /// Those of them whose orders have another name at the venue: they are trades of other orders.
    pub of_others: BTreeSet<TradeId>,
    /// The account's position in the symbol.
    pub position: Delta,
    /// Since when the account's stream is proven without a gap, when all was answered.
    pub proven_since: Option<Timestamp>,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Accounts and prices were read, by this reading.
    Read(u32, Result<Snapshot, Box<Failure>>),
    /// Intents are durable, in the order of the drafts.
    Reserved(Result<Vec<IntentRecord>, JournalError>),
    /// A placement was answered, or not.
    Submitted(ClientOrderId, SubmitOutcome),
    /// The account's stream told of an order.
    Report(ExecutionReport),
    /// The account's stream told of a trade.
    Fill(Fill),
    /// The account's stream broke or came back: ask for what is open.
    StreamChanged(AccountId),
    /// A question for an order was answered.
    Sighted(ClientOrderId, Result<OrderSighting, ReadError>),
    /// Trades since an order were read.
    TradesRead(ClientOrderId, Result<Vec<Fill>, ReadError>),
    /// The cancel of an order that rested was answered, or not. What became of it is asked for in any case.
    Canceled(ClientOrderId, CancelOutcome),
    /// The attempt to take an order's place at the venue was answered.
    Invalidated(ClientOrderId, Invalidation),
    /// A look for an order that may not exist was answered.
    Proof(ClientOrderId, Result<Sought, ReadError>),
    /// A person said what became of an unresolved order: that, and who says so.
    Decided(ClientOrderId, Settlement, String),
    /// Something more urgent needs its accounts, which is this: it ends with its next slice.
    Preempted(Preemption),
    /// Time passed.
    Tick,
}

/// What a reading waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// So long.
    Whole(Duration),
    /// Until the state of an account changes, so long at most.
    Change(Duration),
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Effect {
    /// Take accounts and prices as they are, after a pause.
    Read {
        /// Which reading it is: an older one's answer does not count.
        reading: u32,
        /// Whether the venues are asked even where the accounts' streams are proven.
        from_venue: bool,
        /// What to wait for first.
        pause: Pause,
    },
    /// Make these orders durable, and with them these records, in one append.
    Reserve(Vec<Draft>, Vec<Record>),
    /// Send these durable orders at once.
    Send(Vec<ClientOrderId>),
    /// Ask for an order.
    Sight(ClientOrderId),
    /// Cancel an order that rests.
    Cancel(ClientOrderId),
    /// Take an order's place at the venue, so that it cannot be carried out any more.
    Invalidate(ClientOrderId),
    /// Read the trades since an order was sent.
    ReadTrades(ClientOrderId),
    /// Look for an order that may not exist: ask for it, for open orders, trades and the position.
    Prove(ClientOrderId),
    /// Append these records; nothing waits for it.
    Record(Vec<Record>),
    /// Raise this alert.
    Raise(Condition),
    /// A condition that this operation raised is over.
    Resolve(AlertTopic),
    /// A position moved, and nothing of ours did it: find out what, and record it.
    ExternalActivity {
        /// The account.
        account: AccountId,
        /// What our own trades explain.
        expected: Delta,
        /// What the venue shows.
        found: Delta,
        /// When it was asked.
        as_of: Timestamp,
    },
    /// Answer the caller with what is known; the operation goes on.
    Answer,
    /// Append these records, answer, and end.
    Finish(Vec<Record>),
}

/// An order before it has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Index of the leg.
    pub leg: usize,
    /// The order, without its deadline.
    pub order: OrderIntent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Reading,
    Reserving,
    /// Orders of the current slice are out.
    Watching,
    Finished,
}

struct Running {
    plan: Arc<Plan>,
    /// Index of the slice that is out, or next.
    slice: usize,
    /// Orders of the slice that is out.
    out: Vec<ClientOrderId>,
    /// What the operation had traded in all, bought and sold, when the plan was made.
    turnover_before: Quantity,
    /// Other orders went out beside it: the rest is planned again.
    is_stale: bool,
}

/// How far making the worst case smaller has come, while orders are unresolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shrink {
    /// Nothing is on its way.
    Idle,
    /// Accounts and prices are read for it.
    Reading,
    /// Its orders are being made durable.
    Reserving,
}

/// One operation.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Operation {
    id: OperationId,
    kind: OperationKind,
    /// The kind of request that it serves: another one where it settles what an earlier run left.
    served: OperationKind,
    requester: Requester,
    spec: Spec,
    config: EngineConfig,
    rules: BTreeMap<AccountId, VenueRules>,
    started_at: Timestamp,
    ends_at: Timestamp,
    /// What it is to be stopped for at its next slice.
    preempted_by: Option<Preemption>,
    /// What it was stopped for.
    stopped_by: Option<Preemption>,
    phase: Phase,
    baseline: Option<Baseline>,
    first_plan: Option<Arc<Plan>>,
    running: Option<Running>,
    orders: BTreeMap<ClientOrderId, TrackedOrder>,
    order_ids: Vec<ClientOrderId>,
    excluded: BTreeSet<AccountId>,
    /// The rules that the newest plan kept to.
    instruments: BTreeMap<AccountId, Instrument>,
    /// Positions at the newest snapshot and what our orders had traded by then.
    positions: BTreeMap<AccountId, (Delta, Delta)>,
    /// What trades of others had moved by then, since the engine started.
    external: BTreeMap<AccountId, Delta>,
    /// When positions were read last.
    read_at: Timestamp,
    /// The same of operations that ended a moment ago, until the first reading has shown it.
    traded_before: BTreeMap<AccountId, RecentTrades>,
    /// Net delta of the newest snapshot and what our orders had traded by then.
    base: (Delta, Delta),
    /// How far from its target a two-sided operation of an earlier run was when it began.
    began_at: Option<Delta>,
    /// Trades of each account that the journal of earlier runs has.
    traded_at_start: BTreeMap<AccountId, Delta>,
    rereads: u32,
    /// What no trade of ours explained at the newest reading: account, what was expected, what was shown.
    last_unexplained: Vec<(AccountId, Delta, Delta)>,
    /// The newest reading that was asked for.
    reading: u32,
    shrink: Shrink,
    /// All that net delta could be when shrinking was last thought of: nothing new until that changes.
    shrunk_from: Option<Interval>,
    /// Orders wait for a person's word.
    is_halted: bool,
    raised: BTreeSet<AlertTopic>,
    net: Delta,
    rounds: u32,
    idle_rounds: u32,
    adjustment_needed: bool,
    reason: Option<String>,
    /// How near it came, once nothing more is to be done.
    ending: Option<Ending>,
    failure: Option<Box<Failure>>,
    state: OperationState,
    answered: bool,
    ended_at: Option<Timestamp>,
    max_transient: Delta,
    /// The largest bound of its plans.
    worst_case: Option<Delta>,
    /// Nothing more is wanted but to close again what has no counterpart.
    unwinding: bool,
    /// Which of a hedge's parts is at work, from zero.
    clip: u32,
    /// The next orders rest before anything takes.
    rests_first: bool,
    /// When the orders of the part that is at work are canceled.
    rests_until: Option<Timestamp>,
    /// Accounts whose proven streams told their state at the last reading.
    streamed: BTreeSet<AccountId>,
    /// Accounts whose position locks it gave back: their positions are no longer its own to tell.
    released: BTreeSet<AccountId>,
    /// Best bid and ask of each account's venue at the newest reading.
    touch: BTreeMap<AccountId, (Price, Price)>,
    /// What a two-sided operation could not change, by account, at the newest reading.
    changes_left: Vec<(AccountId, Delta)>,
    pending: Vec<Record>,
    timeline: Vec<TimelineEntry>,
}

impl Operation {
    /// A new operation and what to do first.
    pub fn start(
        id: OperationId,
        kind: OperationKind,
        spec: Spec,
        config: EngineConfig,
        rules: BTreeMap<AccountId, VenueRules>,
        (now, timeout): (Timestamp, Duration),
        (requester, key): (Requester, Option<String>),
    ) -> (Self, Vec<Effect>) {
        let accepted = Record::OperationAccepted {
            operation: id.clone(),
            kind: kind.prefix().to_owned(),
            symbol: spec.symbol.clone(),
            accounts: spec.accounts.clone(),
            requester: requester.clone(),
            key,
            at: now,
        };
        let mut operation = Self::empty(id, kind, spec, config, rules, now, now.after(timeout));
        operation.requester = requester;
        operation.pending.push(accepted);
        operation.note(now, "requested");
        let mut effects = Vec::new();
        operation.read(Duration::ZERO, &mut effects);
        (operation, effects)
    }

    /// An operation that settles orders that the end of a process left unresolved.
    pub fn recover(
        id: OperationId,
        spec: Spec,
        config: EngineConfig,
        rules: BTreeMap<AccountId, VenueRules>,
        now: Timestamp,
        known: KnownOperation,
    ) -> (Self, Vec<Effect>) {
        let KnownOperation { orders: intents, fills, positions, read_at, began_at, kind, requester } = known;
        let end = now.after(Duration::from_secs(365 * 24 * 3_600));
        let mut operation = Self::empty(id, OperationKind::Recovery, spec, config, rules, now, end);
        operation.phase = Phase::Watching;
        operation.requester = requester;
        operation.answered = true;
        operation.reason =
            Some("interrupted by the end of the process; its orders were settled afterwards".to_owned());
        for (intent, outcome) in intents {
            let window = operation
                .rules
                .get(&intent.order.account)
                .map_or(CLOCK_MARGIN, |rules| rules.validity_window);
            // It was sent at some time before its deadline; trades are looked for from there.
            let earliest = window.as_millis().try_into().unwrap_or(i64::MAX);
            let sent = Timestamp::from_millis(intent.order.deadline.as_millis().saturating_sub(earliest));
            let may_rest = intent.order.time_in_force != TimeInForce::ImmediateOrCancel;
            let order = operation.track(intent, None, sent);
            if let Some(order) = operation.orders.get_mut(&order).filter(|_| may_rest) {
                // Its trades are not waited for any more.
                order.cancel_at = Some(now);
            }
            match outcome {
                // What the venue took in once does not count as perhaps sent: it does not end by absence.
                Some(
                    outcome @ (OutcomeRecord::Ended { .. }
                    | OutcomeRecord::NotAccepted { .. }
                    | OutcomeRecord::Accepted { .. }),
                ) => {
                    if let Some(order) = operation.orders.get_mut(&order) {
                        order.restore(&outcome);
                        order.next_check = Some(now);
                    }
                }
                _ => {
                    operation.note(now, format!("order {order} was perhaps sent before the process ended"));
                    operation.on_submitted(&order, SubmitOutcome::Unknown(UnknownCause::Interrupted), now);
                }
            }
        }
        for (order, fill) in fills {
            if let Some(order) = operation.orders.get_mut(&order) {
                let _ = order.on_fill(fill);
            }
        }
        operation.began_at = began_at;
        operation.served = kind.unwrap_or(OperationKind::Recovery);
        (operation.positions, operation.read_at) = (positions, read_at);
        operation.traded_at_start =
            operation.spec.accounts.iter().map(|id| (id.clone(), operation.traded_by(id))).collect();
        let effects = operation.step(Event::Tick, now);
        (operation, effects)
    }

    fn empty(
        id: OperationId,
        kind: OperationKind,
        spec: Spec,
        config: EngineConfig,
        rules: BTreeMap<AccountId, VenueRules>,
        started_at: Timestamp,
        ends_at: Timestamp,
    ) -> Self {
        let rests_first = spec.options.pacing.rest_for.is_some();
        Self {
            id,
            kind,
            served: kind,
            requester: Requester::Recovery,
            spec,
            config,
            rules,
            started_at,
            ends_at,
            preempted_by: None,
            stopped_by: None,
            phase: Phase::Reading,
            baseline: None,
            first_plan: None,
            running: None,
            orders: BTreeMap::new(),
            order_ids: Vec::new(),
            excluded: BTreeSet::new(),
            instruments: BTreeMap::new(),
            positions: BTreeMap::new(),
            external: BTreeMap::new(),
            read_at: Timestamp::default(),
            traded_before: BTreeMap::new(),
            base: (Delta::ZERO, Delta::ZERO),
            began_at: None,
            traded_at_start: BTreeMap::new(),
            rereads: 0,
            last_unexplained: Vec::new(),
            reading: 0,
            shrink: Shrink::Idle,
            shrunk_from: None,
            is_halted: false,
            raised: BTreeSet::new(),
            net: Delta::ZERO,
            rounds: 0,
            idle_rounds: 0,
            adjustment_needed: false,
            reason: None,
            ending: None,
            failure: None,
            state: OperationState::Running,
            answered: false,
            ended_at: None,
            max_transient: Delta::ZERO,
            worst_case: None,
            unwinding: false,
            clip: 0,
            rests_first,
            rests_until: None,
            streamed: BTreeSet::new(),
            released: BTreeSet::new(),
            touch: BTreeMap::new(),
            changes_left: Vec::new(),
            pending: Vec::new(),
            timeline: Vec::new(),
        }
    }

    /// Its name.
    pub const fn id(&self) -> &OperationId {
        &self.id
    }

    /// What it is for.
    pub const fn kind(&self) -> OperationKind {
        self.kind
    }

    /// Whether it takes time by intent.
    pub fn is_slow(&self) -> bool {
        self.spec.options.pacing.is_slow()
    }

    /// What it is about.
    pub const fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether it ended.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// When time itself is the next event.
    pub fn wake_at(&self) -> Option<Timestamp> {
        let open = self.orders.values().filter(|order| !order.check_in_flight && !order.is_settled());
        let checks = open.filter_map(TrackedOrder::wakes_at);
        let end = (!self.answered && self.phase != Phase::Finished).then_some(self.ends_at);
        checks.chain(end).chain(self.shrink_at()).min()
    }

    /// When it began.
    pub const fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// What it traded on each account, but for the trades that the journal knew when this run began.
    pub(crate) fn traded_in_this_run(&self) -> Vec<(AccountId, Delta)> {
        let traded = |id: &AccountId| {
            let before = self.traded_at_start.get(id).copied().unwrap_or_default();
            (id.clone(), self.traded_by(id).minus(before).unwrap_or_default())
        };
        self.spec.accounts.iter().map(traded).collect()
    }

    /// The trades of each order, by the order's account.
    pub(crate) fn trades(&self) -> impl Iterator<Item = (&AccountId, Vec<(TradeId, Delta)>)> {
        self.orders.values().map(|order| (&order.intent.order.account, order.trades()))
    }

    /// The order with this name.
    pub fn order_intent(&self, id: &ClientOrderId) -> Option<&IntentRecord> {
        self.orders.get(id).map(|order| &order.intent)
    }

    /// When an order was sent.
    pub fn sent_at(&self, id: &ClientOrderId) -> Option<Timestamp> {
        self.orders.get(id).map(|order| order.sent_at)
    }

    /// Whether orders wait for a person's word.
    pub const fn is_halted(&self) -> bool {
        self.is_halted
    }

    /// From when on trades tell what became of an order: since it was sent, or since its account's position was read where
    /// that was earlier. What others traded since then moved the position too.
    pub(crate) fn sought_since(&self, id: &ClientOrderId) -> Timestamp {
        let Some(order) = self.orders.get(id) else { return self.started_at };
        let is_read = self.positions.contains_key(&order.intent.order.account);
        if is_read { order.sent_at.min(self.read_at) } else { order.sent_at }
    }

    /// The accounts with orders that are not settled, where settling them is all that is left to do: it needs the position
    /// locks of these alone. None while it may still trade.
    pub(crate) fn accounts_to_settle(&self) -> Option<BTreeSet<AccountId>> {
        if !self.is_halted && self.kind != OperationKind::Recovery {
            return None;
        }
        let open = self.orders.values().filter(|order| !order.is_settled());
        Some(open.map(|order| order.intent.order.account.clone()).collect())
    }

    /// Others may trade these accounts from now on, with all that [`Self::take_records`] gave in the journal.
    pub(crate) fn release(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        self.released.extend(accounts);
    }

    /// What is not in the journal yet.
    pub(crate) fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.pending)
    }

    /// Asks for the accounts' state now; answers to earlier questions do not count any more.
    fn read(&mut self, after: Duration, effects: &mut Vec<Effect>) {
        self.reading = self.reading.wrapping_add(1);
        effects.push(Effect::Read { reading: self.reading, from_venue: false, pause: Pause::Whole(after) });
    }

    /// Asks for the accounts' state once it changes: an event may be on its way. After [`ASK_FROM`] such waits the
    /// venues are asked.
    fn read_again(&mut self, effects: &mut Vec<Effect>) {
        self.reading = self.reading.wrapping_add(1);
        let from_venue = self.rereads >= ASK_FROM;
        effects.push(Effect::Read { reading: self.reading, from_venue, pause: Pause::Change(REREAD_PAUSE) });
    }

    fn note(&mut self, at: Timestamp, text: impl Into<String>) {
        self.timeline.push(TimelineEntry { at, text: text.into() });
    }

    fn track(&mut self, intent: IntentRecord, mid: Option<Price>, now: Timestamp) -> ClientOrderId {
        let id = intent.client_order_id.clone();
        self.order_ids.push(id.clone());
        let is_streamed = self.streamed.contains(&intent.order.account);
        let order = TrackedOrder::new(intent, mid, now);
        self.orders.insert(id.clone(), if is_streamed { order.told_by_stream() } else { order });
        id
    }

    /// Moves on.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.phase == Phase::Finished {
            return effects;
        }
        match event {
            Event::Read(reading, result) if reading == self.reading => {
                self.on_read(result, now, &mut effects);
            }
            Event::Reserved(result) => self.on_reserved(result, now, &mut effects),
            Event::Submitted(id, outcome) => self.on_submitted(&id, outcome, now),
            Event::Report(report) => self.on_report(&report, Evidence::StreamEvent, now),
            Event::Fill(fill) => self.on_fill(fill, now),
            Event::StreamChanged(account) => self.ask_soon(&account, now),
            Event::Sighted(id, result) => self.on_sighted(&id, result, now, &mut effects),
            Event::Canceled(id, outcome) => self.on_canceled(&id, &outcome, now),
            Event::Invalidated(id, outcome) => self.on_invalidated(&id, &outcome, now),
            Event::TradesRead(id, result) => self.on_trades(&id, result, now),
            Event::Proof(id, result) => self.on_proof(&id, result, now),
            Event::Preempted(by) => self.preempt(by, now),
            Event::Decided(id, settlement, by) => self.on_decided(&id, settlement, by, now),
            // The answer to an older reading does not count.
            Event::Read(..) | Event::Tick => {}
        }
        self.observe_exposure();
        self.advance(now, &mut effects);
        effects
    }

    /// Whether nothing new begins any more.
    fn is_over(&self, now: Timestamp) -> bool {
        now >= self.ends_at || self.preempted_by.is_some()
    }

    fn preempt(&mut self, by: Preemption, now: Timestamp) {
        if self.preempted_by.is_none() {
            self.note(now, format!("preempted by {}", by.cause()));
            self.preempted_by = Some(by);
        }
        for order in self
            .orders
            .values_mut()
            .filter(|order| order.is_resting() || order.resolution == Resolution::InFlight)
        {
            order.cancel_at = order.cancel_at.map(|_| now);
        }
    }

    /// Does what the state asks for now.
    fn advance(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Finished {
            return;
        }
        self.check_due(now, effects);
        if self.phase == Phase::Watching {
            let frozen = self.orders.values().any(|order| order.resolution == Resolution::Frozen);
            if frozen
                && self
                    .orders
                    .values()
                    .all(|order| order.is_settled() || order.resolution == Resolution::Frozen)
            {
                self.halt(now, effects);
            }
            if !self.has_unresolved() {
                self.end_slice(now, effects);
            } else if self.shrink_at().is_some_and(|at| now >= at) {
                self.shrink = Shrink::Reading;
                self.read(Duration::ZERO, effects);
            }
        }
        self.tell_unresolved(now, effects);
        // Orders in flight are waited for when it is preempted, not when its time is over.
        let over = now >= self.ends_at || (self.phase == Phase::Reading && self.is_over(now));
        if !self.answered && self.phase != Phase::Finished && over {
            if self.phase == Phase::Reading {
                // Between two rounds a leg may be unhedged.
                self.unwind_instead(now, effects);
            }
            self.time_out(now, effects);
        }
        let urgent = self
            .pending
            .iter()
            .any(|record| matches!(record, Record::Outcome { outcome: OutcomeRecord::Unknown { .. }, .. }));
        if urgent && self.phase != Phase::Finished {
            effects.push(Effect::Record(std::mem::take(&mut self.pending)));
        }
    }
}
