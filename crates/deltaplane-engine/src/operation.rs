//! The state machine of an operation: `(state, event, now) → (state, effects)`.
//!
//! No clock, no network, no journal inside. The shell feeds it what happened and does what it says, so the
//! same machine runs under the server, in tests and in simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use deltaplane_math::Interval;
use deltaplane_ports::{
    Failure, FenceOutcome, IntentRecord, JournalError, OperationKind, OperationReport, OperationState,
    OrderSighting, OutcomeRecord, ReadError, Record, TimelineEntry, VenueRules,
};
use deltaplane_risk::{Approved, PricedFill, execution_quality};
use deltaplane_types::{
    AccountId, ClientOrderId, Code, Decimal, Delta, Evidence, ExecutionReport, Fill, OperationId,
    OrderIntent, Plan, Price, Refusal, RefusalReason, SubmitOutcome, TimeInForce, Timestamp, TradeId,
    UnknownCause,
};

use crate::config::EngineConfig;
use crate::control::{self, Anchor, Goal, Round, Spec, Verdict};
use crate::orders::{Fate, TrackedOrder};
use crate::report::failure;
use crate::snapshot::Snapshot;

/// Rounds of planning in one operation.
const MAX_ROUNDS: u32 = 20;
/// Rounds in a row that trade nothing before an operation gives up.
const MAX_IDLE_ROUNDS: u32 = 2;
/// Failed proofs of absence before an order is frozen.
const MAX_FAILED_PROOFS: u32 = 3;
/// Readings of positions that our own trades do not explain, before they count as somebody else's doing.
const MAX_REREADS: u32 = 8;
/// How long each of them waits for a slow venue.
const REREAD_PAUSE: Duration = Duration::from_millis(250);
/// The venue's clock may differ from ours by this much.
const CLOCK_MARGIN: Duration = Duration::from_secs(5);
/// How long a fresh book is waited for between rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(120);

/// An order of an earlier run with what the journal says became of it.
pub type KnownOrder = (IntentRecord, Option<OutcomeRecord>);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// Accounts and prices were read.
    Read(Result<Snapshot, Box<Failure>>),
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
    /// The attempt to take an order's place at the venue was answered.
    Fenced(ClientOrderId, FenceOutcome),
    /// The three questions of an absence proof were answered: order, trades since, position.
    Proof(ClientOrderId, Result<(OrderSighting, Vec<Fill>, Delta), ReadError>),
    /// Time passed.
    Tick,
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Effect {
    /// Read accounts and prices, after a pause; with `anew` every account is asked again.
    Read {
        /// Whether known states do not count.
        anew: bool,
        /// How long to wait first.
        after: Duration,
    },
    /// Make these orders durable, and with them these records, in one append.
    Reserve(Vec<Draft>, Vec<Record>),
    /// Send these durable orders at once.
    Send(Vec<ClientOrderId>),
    /// Ask for an order.
    Sight(ClientOrderId),
    /// Take an order's place at the venue, so that it cannot be carried out any more.
    Fence(ClientOrderId),
    /// Read the trades since an order was sent.
    ReadTrades(ClientOrderId),
    /// Ask the three questions of an absence proof.
    Prove(ClientOrderId),
    /// Append these records; nothing waits for it.
    Record(Vec<Record>),
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
    /// What the operation had traded when the plan was made.
    traded_before: Delta,
}

/// One operation.
pub struct Operation {
    id: OperationId,
    kind: OperationKind,
    spec: Spec,
    config: EngineConfig,
    rules: BTreeMap<AccountId, VenueRules>,
    started_at: Timestamp,
    ends_at: Timestamp,
    phase: Phase,
    anchor: Option<Anchor>,
    first_plan: Option<Arc<Plan>>,
    running: Option<Running>,
    orders: BTreeMap<ClientOrderId, TrackedOrder>,
    order_ids: Vec<ClientOrderId>,
    excluded: BTreeSet<AccountId>,
    /// Positions at the newest snapshot and what our orders had traded by then.
    positions: BTreeMap<AccountId, (Delta, Delta)>,
    /// The same of operations that ended a moment ago, until the first reading has shown it.
    traded_before: BTreeMap<AccountId, (Delta, Delta)>,
    /// Net delta of the newest snapshot and what our orders had traded by then.
    base: (Delta, Delta),
    rereads: u32,
    net: Delta,
    rounds: u32,
    idle_rounds: u32,
    adjustment_needed: bool,
    reason: Option<String>,
    failure: Option<Box<Failure>>,
    state: OperationState,
    answered: bool,
    ended_at: Option<Timestamp>,
    max_transient: Delta,
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
        key: Option<String>,
    ) -> (Self, Vec<Effect>) {
        let accepted = Record::OperationAccepted {
            operation: id.clone(),
            kind: kind.prefix().to_owned(),
            symbol: spec.symbol.clone(),
            accounts: spec.accounts.clone(),
            key,
            at: now,
        };
        let mut operation = Self::empty(id, kind, spec, config, rules, now, now.after(timeout));
        operation.pending.push(accepted);
        operation.note(now, "requested");
        (operation, vec![Effect::Read { anew: false, after: Duration::ZERO }])
    }

    /// An operation that settles orders whose fate the end of a process left open.
    pub fn recover(
        id: OperationId,
        spec: Spec,
        config: EngineConfig,
        rules: BTreeMap<AccountId, VenueRules>,
        now: Timestamp,
        (intents, fills): (Vec<KnownOrder>, Vec<(ClientOrderId, Fill)>),
    ) -> (Self, Vec<Effect>) {
        let end = now.after(Duration::from_secs(365 * 24 * 3_600));
        let mut operation = Self::empty(id, OperationKind::Recovery, spec, config, rules, now, end);
        operation.phase = Phase::Watching;
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
            let order = operation.track(intent, None, sent);
            match outcome {
                Some(outcome @ (OutcomeRecord::Ended { .. } | OutcomeRecord::NotAccepted { .. })) => {
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
        Self {
            id,
            kind,
            spec,
            config,
            rules,
            started_at,
            ends_at,
            phase: Phase::Reading,
            anchor: None,
            first_plan: None,
            running: None,
            orders: BTreeMap::new(),
            order_ids: Vec::new(),
            excluded: BTreeSet::new(),
            positions: BTreeMap::new(),
            traded_before: BTreeMap::new(),
            base: (Delta::ZERO, Delta::ZERO),
            rereads: 0,
            net: Delta::ZERO,
            rounds: 0,
            idle_rounds: 0,
            adjustment_needed: false,
            reason: None,
            failure: None,
            state: OperationState::Running,
            answered: false,
            ended_at: None,
            max_transient: Delta::ZERO,
            pending: Vec::new(),
            timeline: Vec::new(),
        }
    }

    /// Its name.
    pub const fn id(&self) -> &OperationId {
        &self.id
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
        let checks = open.filter_map(|order| order.next_check);
        let end = (!self.answered && self.phase != Phase::Finished).then_some(self.ends_at);
        checks.chain(end).min()
    }

    /// The trades of each order, by the order's account.
    pub(crate) fn trades(&self) -> impl Iterator<Item = (&AccountId, Vec<TradeId>)> {
        self.orders.values().map(|order| (&order.intent.order.account, order.trade_ids()))
    }

    /// The order with this name.
    pub fn order_intent(&self, id: &ClientOrderId) -> Option<&IntentRecord> {
        self.orders.get(id).map(|order| &order.intent)
    }

    /// When an order was sent.
    pub fn sent_at(&self, id: &ClientOrderId) -> Option<Timestamp> {
        self.orders.get(id).map(|order| order.sent_at)
    }

    fn note(&mut self, at: Timestamp, text: impl Into<String>) {
        self.timeline.push(TimelineEntry { at, text: text.into() });
    }

    fn track(&mut self, intent: IntentRecord, mid: Option<Price>, now: Timestamp) -> ClientOrderId {
        let id = intent.client_order_id.clone();
        self.order_ids.push(id.clone());
        self.orders.insert(id.clone(), TrackedOrder::new(intent, mid, now));
        id
    }

    /// Moves on.
    pub fn step(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.phase == Phase::Finished {
            return effects;
        }
        match event {
            Event::Read(result) => self.on_read(result, now, &mut effects),
            Event::Reserved(result) => self.on_reserved(result, now, &mut effects),
            Event::Submitted(id, outcome) => self.on_submitted(&id, outcome, now),
            Event::Report(report) => self.on_report(&report, Evidence::StreamEvent, now),
            Event::Fill(fill) => self.on_fill(fill, now),
            Event::StreamChanged(account) => self.ask_soon(&account, now),
            Event::Sighted(id, result) => self.on_sighted(&id, result, now, &mut effects),
            Event::Fenced(id, outcome) => self.on_fenced(&id, &outcome, now),
            Event::TradesRead(id, result) => self.on_trades(&id, result, now),
            Event::Proof(id, result) => self.on_proof(&id, result, now),
            Event::Tick => {}
        }
        self.observe_exposure();
        self.advance(now, &mut effects);
        effects
    }

    fn on_read(&mut self, result: Result<Snapshot, Box<Failure>>, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.phase != Phase::Reading {
            return;
        }
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            Err(failure) => return self.fail(failure, now, effects),
        };
        if self.orders.values().any(|order| order.fate == Fate::Frozen) {
            return self.halt(now, effects);
        }
        let (unexplained, unseen) = (self.unexplained(&snapshot), self.unseen(&snapshot));
        if unexplained.is_some() || unseen.is_some() {
            // A venue may show a position later than the trade: planning on it would hedge twice.
            if self.rereads < MAX_REREADS && now < self.ends_at {
                self.rereads += 1;
                effects.push(Effect::Read { anew: true, after: REREAD_PAUSE });
                return;
            }
            if let Some(failed) = unseen {
                return self.fail(failed, now, effects);
            }
            if let Some(text) = unexplained {
                self.note(now, text);
            }
        }
        self.rereads = 0;
        self.traded_before.clear();
        if self.anchor.is_none() {
            match control::anchor(&self.spec, &snapshot, &self.config) {
                Ok(anchor) => {
                    self.net = anchor.net;
                    self.max_transient = anchor.net.minus(anchor.target).map_or(anchor.net, Delta::abs);
                    self.anchor = Some(anchor);
                }
                Err(failure) => return self.fail(failure, now, effects),
            }
        }
        let traded = self.traded();
        self.positions = snapshot
            .accounts
            .iter()
            .map(|(id, facts)| (id.clone(), (facts.account.position(&self.spec.symbol), self.traded_by(id))))
            .collect();
        let Some(anchor) = &self.anchor else { return };
        let round = Round {
            spec: &self.spec,
            snapshot: &snapshot,
            anchor: Some(anchor),
            traded,
            excluded: &self.excluded,
            config: &self.config,
        };
        match control::decide(&round, anchor) {
            Verdict::Done { reason, net } => {
                (self.net, self.base) = (net, (net, traded));
                self.note(now, reason.clone());
                self.reason = Some(reason);
                self.finish(now, effects);
            }
            Verdict::Refused { failure, plan, net } => {
                (self.net, self.base) = (net, (net, traded));
                self.adjustment_needed = true;
                self.first_plan = self.first_plan.take().or_else(|| plan.map(|plan| Arc::new(*plan)));
                self.fail(failure, now, effects);
            }
            Verdict::Go { approved, net } => {
                (self.net, self.base) = (net, (net, traded));
                self.begin(&approved, traded, now, effects);
            }
        }
    }

    /// A position that our own trades do not explain: somebody else traded, and the plan is made from the truth.
    fn unexplained(&self, snapshot: &Snapshot) -> Option<String> {
        let mut found = Vec::new();
        for (id, (position, traded_then)) in &self.positions {
            let now = snapshot.accounts.get(id)?.account.position(&self.spec.symbol);
            let ours = self.traded_by(id).minus(*traded_then).ok()?;
            let expected = position.plus(ours).ok()?;
            if expected != now {
                found.push(format!("{id} holds {now} where our trades explain {expected}"));
            }
        }
        (!found.is_empty()).then(|| format!("external activity: {}", found.join("; ")))
    }

    /// A position that lacks exactly what we traded: the venue shows it late, and a plan would trade it again.
    fn unseen(&self, snapshot: &Snapshot) -> Option<Box<Failure>> {
        let late: Vec<String> = self
            .traded_since_read()
            .into_iter()
            .chain(self.traded_before.clone())
            .filter(|(id, (position, _))| {
                let facts = snapshot.accounts.get(id);
                facts.is_some_and(|facts| facts.account.position(&self.spec.symbol) == *position)
            })
            .map(|(id, (position, traded))| format!("{id} shows {position} without the {traded} traded"))
            .collect();
        let text = format!("the venue does not show our trades yet: {}", late.join("; "));
        (!late.is_empty()).then(|| {
            failure(Code::HedgeFailed, text, "repeat the request; if this comes again, look at the venue")
        })
    }

    /// Says what a position was before an operation that ended a moment ago, and what that one traded.
    pub(crate) fn expect(&mut self, account: AccountId, traded: (Delta, Delta)) {
        self.traded_before.insert(account, traded);
    }

    /// Positions as they were read last, with what was traded since.
    pub(crate) fn traded_since_read(&self) -> Vec<(AccountId, (Delta, Delta))> {
        let read = self.positions.iter().filter_map(|(id, (position, traded_then))| {
            let traded = self.traded_by(id).minus(*traded_then).ok()?;
            (!traded.is_zero()).then(|| (id.clone(), (*position, traded)))
        });
        read.collect()
    }

    fn begin(&mut self, approved: &Approved, traded: Delta, now: Timestamp, effects: &mut Vec<Effect>) {
        let plan = approved.plan().clone();
        self.rounds += 1;
        self.adjustment_needed = true;
        let legs: Vec<String> = plan
            .legs
            .iter()
            .map(|leg| format!("{} {} {} up to {}", leg.account, leg.side, leg.quantity, leg.price_cap))
            .collect();
        self.note(now, format!("planned {}: {}", plan.id, legs.join("; ")));
        self.pending.push(Record::Planned {
            operation: self.id.clone(),
            plan: plan.id.clone(),
            text: legs.join("; "),
            at: now,
        });
        if self.first_plan.is_none() {
            self.first_plan = Some(plan.clone());
        }
        self.running = Some(Running { plan, slice: 0, out: Vec::new(), traded_before: traded });
        self.reserve_slice(now, effects);
    }

    fn reserve_slice(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(running) = &self.running else { return };
        let Some(slice) = running.plan.slices.get(running.slice) else { return };
        let drafts = slice
            .orders
            .iter()
            .filter_map(|order| {
                let leg = running.plan.legs.get(order.leg)?;
                let window = self.rules.get(&leg.account)?.validity_window;
                Some(Draft {
                    leg: order.leg,
                    order: OrderIntent {
                        account: leg.account.clone(),
                        symbol: self.spec.symbol.clone(),
                        side: leg.side,
                        quantity: order.quantity,
                        limit_price: leg.price_cap,
                        reduce_only: leg.reduce_only,
                        time_in_force: TimeInForce::ImmediateOrCancel,
                        deadline: now.after(window),
                    },
                })
            })
            .collect();
        self.phase = Phase::Reserving;
        effects.push(Effect::Reserve(drafts, std::mem::take(&mut self.pending)));
    }

    fn on_reserved(
        &mut self,
        result: Result<Vec<IntentRecord>, JournalError>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        if self.phase != Phase::Reserving {
            return;
        }
        let intents = match result {
            Ok(intents) => intents,
            Err(error) => {
                let remedy = "nothing was sent; free the disk or repair the journal, then restart the server";
                return self.fail(failure(Code::Internal, error.to_string(), remedy), now, effects);
            }
        };
        let mids = self.anchor.as_ref().map(|anchor| anchor.arrival_mids.clone()).unwrap_or_default();
        let mut out = Vec::with_capacity(intents.len());
        for intent in intents {
            let mid = mids.get(&intent.order.account).copied();
            let order = &intent.order;
            let text = format!(
                "order {} durable, sent: {} {} {} at {} or better",
                intent.client_order_id, order.account, order.side, order.quantity, order.limit_price
            );
            self.note(now, text);
            out.push(self.track(intent, mid, now));
        }
        self.phase = Phase::Watching;
        if let Some(running) = &mut self.running {
            running.out.clone_from(&out);
        }
        let frozen = self.orders.values().any(|order| order.fate == Fate::Frozen);
        if now >= self.ends_at || frozen {
            // The journal took longer than the operation had: nothing is sent on an old decision.
            for id in &out {
                let text = "the world changed while the journal was written".to_owned();
                let refusal = Refusal { reason: RefusalReason::KeptBack, code: None, text };
                self.on_submitted(id, SubmitOutcome::NotAccepted(refusal), now);
            }
            return;
        }
        effects.push(Effect::Send(out));
    }

    fn record_outcome(&mut self, id: &ClientOrderId, outcome: OutcomeRecord, now: Timestamp) {
        let text = match &outcome {
            OutcomeRecord::Accepted { evidence } => {
                format!("accepted ({})", evidence.kind())
            }
            OutcomeRecord::Ended { status, filled, evidence } => {
                format!("ended {status:?} with {filled} traded ({})", evidence.kind()).to_lowercase()
            }
            OutcomeRecord::NotAccepted { evidence, reason } => {
                format!("not accepted ({}): {reason}", evidence.kind())
            }
            OutcomeRecord::Unknown { cause } => format!("in doubt: {cause}"),
        };
        self.note(now, format!("order {id} {text}"));
        self.pending.push(Record::Outcome { client_order_id: id.clone(), outcome, at: now });
    }

    fn on_submitted(&mut self, id: &ClientOrderId, outcome: SubmitOutcome, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        if let Some(outcome) = order.on_submitted(outcome, now) {
            self.record_outcome(id, outcome, now);
        }
    }

    fn on_report(&mut self, report: &ExecutionReport, evidence: Evidence, now: Timestamp) {
        let id = &report.client_order_id;
        let Some(order) = self.orders.get_mut(id) else { return };
        if let Some(outcome) = order.on_report(report, evidence, now) {
            self.record_outcome(id, outcome, now);
        }
    }

    fn on_fill(&mut self, fill: Fill, now: Timestamp) {
        // The venue's order ids are unique in a symbol only; our own id decides where it is told.
        let ours = self.orders.iter().find(|(id, order)| {
            order.intent.order.account == fill.account
                && order.intent.order.symbol == fill.symbol
                && match &fill.client_order_id {
                    Some(told) => told == *id,
                    None => order.venue_order_id.as_ref() == Some(&fill.venue_order_id),
                }
        });
        let Some(id) = ours.map(|(id, _)| id.clone()) else { return };
        let text = format!("order {id} traded {} at {}", fill.quantity, fill.price);
        let Some(order) = self.orders.get_mut(&id) else { return };
        let (new, changed) = order.on_fill(fill.clone());
        if new {
            self.note(now, text);
            self.pending.push(Record::Fill { client_order_id: id.clone(), fill });
        }
        if let Some(outcome) = changed {
            self.record_outcome(&id, outcome, now);
        }
    }

    /// The stream may have told what nobody heard: ask.
    fn ask_soon(&mut self, account: &AccountId, now: Timestamp) {
        for order in self.orders.values_mut().filter(|order| order.intent.order.account == *account) {
            if !order.is_settled() && matches!(order.fate, Fate::Accepted | Fate::Unknown | Fate::Ended(_)) {
                order.next_check = Some(now);
            }
        }
    }

    fn on_sighted(
        &mut self,
        id: &ClientOrderId,
        result: Result<OrderSighting, ReadError>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        let slack = self
            .rules
            .get(&order.intent.order.account)
            .map_or(Duration::from_secs(10), |rules| rules.proof_slack);
        match result {
            Ok(OrderSighting::Found(report)) => self.on_report(&report, Evidence::OrderQuery, now),
            Ok(OrderSighting::NotFound) if now >= order.provable_at(slack) => {
                order.check_in_flight = true;
                effects.push(Effect::Prove(id.clone()));
            }
            Ok(OrderSighting::NotFound) => {
                let provable = order.provable_at(slack);
                order.on_not_found(now);
                // The next question is not later than the first moment at which it can decide.
                order.next_check =
                    order.next_check.map(|next| if now < provable { next.min(provable) } else { next });
            }
            Err(_) => order.on_not_found(now),
        }
    }

    fn on_fenced(&mut self, id: &ClientOrderId, outcome: &FenceOutcome, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        let text = match outcome {
            FenceOutcome::Burned => "its place at the venue is taken: it cannot be carried out any more",
            FenceOutcome::Arrived => "the venue had taken it in",
            FenceOutcome::Unavailable => "its place at the venue cannot be taken",
            FenceOutcome::Unknown(_) => "whether its place at the venue is taken is not known",
        };
        order.on_fenced(outcome, now);
        self.note(now, format!("order {id}: {text}"));
    }

    fn on_trades(&mut self, id: &ClientOrderId, result: Result<Vec<Fill>, ReadError>, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        for fill in result.unwrap_or_default() {
            self.on_fill(fill, now);
        }
        if let Some(order) = self.orders.get_mut(id) {
            order.on_trades_read(now);
        }
    }

    fn on_proof(
        &mut self,
        id: &ClientOrderId,
        result: Result<(OrderSighting, Vec<Fill>, Delta), ReadError>,
        now: Timestamp,
    ) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        if !matches!(order.fate, Fate::Unknown | Fate::InFlight | Fate::Accepted) {
            return;
        }
        let Ok((sighting, fills, position)) = result else { return order.on_not_found(now) };
        if let OrderSighting::Found(report) = sighting {
            return self.on_report(&report, Evidence::OrderQuery, now);
        }
        let (account, side, since) =
            (order.intent.order.account.clone(), order.intent.order.side, order.sent_at);
        let stray: Vec<&Fill> = fills
            .iter()
            .filter(|fill| fill.side == side && fill.venue_time.after(CLOCK_MARGIN) >= since)
            .filter(|fill| !self.orders.values().any(|order| order.has_trade(&fill.trade_id)))
            .collect();
        let expected = self.positions.get(&account).and_then(|(position, traded_then)| {
            position.plus(self.traded_by(&account).minus(*traded_then).ok()?).ok()
        });
        let moved = expected.is_some_and(|expected| expected != position);
        let stray = stray.len();
        let Some(order) = self.orders.get_mut(id) else { return };
        if stray == 0 && !moved {
            let reason = "it cannot be taken in any more, the order is not found, no trade exists and the position is as expected";
            let evidence = if order.is_burned() { Evidence::Fence } else { Evidence::ExpiryProof };
            let outcome = order.not_accepted(evidence, reason.to_owned());
            self.record_outcome(id, outcome, now);
            return;
        }
        order.proofs_failed += 1;
        order.on_not_found(now);
        if order.proofs_failed >= MAX_FAILED_PROOFS {
            let text = format!(
                "the order is not found, but {stray} trades and a position of {position} are not explained"
            );
            if let Some(outcome) = order.freeze(text) {
                self.record_outcome(id, outcome, now);
            }
        }
    }

    /// What all orders traded, signed.
    fn traded(&self) -> Delta {
        self.orders
            .values()
            .map(TrackedOrder::traded)
            .fold(Delta::ZERO, |sum, delta| sum.plus(delta).unwrap_or(sum))
    }

    fn traded_by(&self, account: &AccountId) -> Delta {
        self.orders
            .values()
            .filter(|order| order.intent.order.account == *account)
            .map(TrackedOrder::traded)
            .fold(Delta::ZERO, |sum, delta| sum.plus(delta).unwrap_or(sum))
    }

    /// Net delta of the newest snapshot with what our orders traded since.
    fn net_now(&self) -> Option<Delta> {
        self.anchor.as_ref()?;
        let (net, traded_then) = self.base;
        net.plus(self.traded().minus(traded_then).ok()?).ok()
    }

    /// All that the net delta of the named accounts can be.
    fn interval(&self) -> Option<Interval> {
        let confirmed = self.net_now()?;
        let (mut buys, mut sells) = (Delta::ZERO, Delta::ZERO);
        for order in self.orders.values() {
            let doubtful = order.doubtful().signed(order.intent.order.side);
            if doubtful.is_negative() {
                sells = sells.plus(doubtful.abs()).ok()?;
            } else {
                buys = buys.plus(doubtful).ok()?;
            }
        }
        Interval::around(confirmed, buys, sells).ok()
    }

    fn observe_exposure(&mut self) {
        if let (Some(interval), Some(anchor)) = (self.interval(), &self.anchor)
            && let Ok(worst) = interval.worst(anchor.target)
        {
            self.max_transient = self.max_transient.max(worst);
        }
    }

    fn in_doubt(&self) -> bool {
        self.orders.values().any(|order| !order.is_settled())
    }

    /// Does what the state asks for now.
    fn advance(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Finished {
            return;
        }
        self.check_due(now, effects);
        if self.phase == Phase::Watching {
            if self.orders.values().any(|order| order.fate == Fate::Frozen)
                && self.orders.values().all(|order| order.is_settled() || order.fate == Fate::Frozen)
            {
                return self.halt(now, effects);
            }
            if !self.in_doubt() {
                self.end_slice(now, effects);
            }
        }
        if !self.answered && self.phase != Phase::Finished && now >= self.ends_at {
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

    fn check_due(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for (id, order) in &mut self.orders {
            if order.check_in_flight || order.next_check.is_none_or(|at| at > now) || order.is_settled() {
                continue;
            }
            order.check_in_flight = true;
            order.next_check = None;
            let rules = self.rules.get(&order.intent.order.account);
            effects.push(if matches!(order.fate, Fate::Ended(_)) {
                Effect::ReadTrades(id.clone())
            } else if order.wants_fence() && rules.is_some_and(|rules| rules.fences) {
                Effect::Fence(id.clone())
            } else {
                Effect::Sight(id.clone())
            });
        }
    }

    /// Every order of the slice is settled: go on, plan again, or end.
    fn end_slice(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(mut running) = self.running.take() else { return self.finish(now, effects) };
        if let Some(net) = self.net_now() {
            self.net = net;
        }
        let whole =
            running.out.iter().all(|id| self.orders.get(id).is_some_and(TrackedOrder::is_filled_whole));
        for id in &running.out {
            let Some(order) = self.orders.get(id) else { continue };
            let Some(refusal) = &order.refusal else { continue };
            // The same order would be refused again; what may pass on its own may be tried again.
            let passing = matches!(
                refusal.reason,
                RefusalReason::RateLimited
                    | RefusalReason::Overloaded
                    | RefusalReason::Clock
                    | RefusalReason::NotSent
            );
            if !passing || self.idle_rounds > 0 {
                self.excluded.insert(order.intent.order.account.clone());
            }
        }
        if now >= self.ends_at {
            return self.time_out(now, effects);
        }
        if whole && running.slice + 1 < running.plan.slices.len() {
            running.slice += 1;
            running.out.clear();
            self.running = Some(running);
            return self.reserve_slice(now, effects);
        }
        if whole && running.plan.obstacles.is_empty() {
            self.reason = Some(format!("hedged: net delta is {}", self.net));
            return self.finish(now, effects);
        }
        let idle = self.traded() == running.traded_before;
        self.idle_rounds = if idle { self.idle_rounds + 1 } else { 0 };
        if self.idle_rounds >= MAX_IDLE_ROUNDS || self.rounds >= MAX_ROUNDS {
            self.reason = Some(format!("no progress after {} rounds", self.rounds));
            return self.finish(now, effects);
        }
        self.note(now, "not all was traded: planning the rest again");
        self.phase = Phase::Reading;
        effects.push(Effect::Read { anew: true, after: ROUND_PAUSE });
    }

    fn time_out(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let took = now.since(self.started_at).as_millis();
        let doubtful: Vec<String> = self
            .orders
            .iter()
            .filter(|(_, order)| !order.is_settled())
            .map(|(id, _)| id.to_string())
            .collect();
        let text = if doubtful.is_empty() {
            format!("the timeout passed after {took} ms")
        } else {
            format!("the timeout passed after {took} ms with {} orders in doubt", doubtful.len())
        };
        let remedy = format!("do not repeat the request; look up GET /api/v1/operations/{}", self.id);
        let mut failed = failure(Code::Timeout, text, remedy);
        if !doubtful.is_empty() {
            failed.details.insert("inDoubt".to_owned(), doubtful.clone());
        }
        self.failure = Some(failed);
        self.note(now, "the timeout passed");
        if doubtful.is_empty() && self.phase != Phase::Reserving {
            return self.finish(now, effects);
        }
        self.answered = true;
        effects.push(Effect::Answer);
    }

    fn halt(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let frozen: Vec<String> = self
            .orders
            .iter()
            .filter(|(_, order)| order.fate == Fate::Frozen)
            .map(|(id, _)| id.to_string())
            .collect();
        let text = format!("the fate of {} orders cannot be proven: {}", frozen.len(), frozen.join(", "));
        tracing::error!(operation = %self.id, "{text}");
        let remedy =
            "check the orders at the venue; their accounts stay closed for this symbol until it is settled";
        self.failure = Some(failure(Code::Timeout, text, remedy));
        self.state = OperationState::Frozen;
        self.close(now, "frozen", effects);
    }

    fn fail(&mut self, failed: Box<Failure>, now: Timestamp, effects: &mut Vec<Effect>) {
        self.note(now, failed.error.clone());
        self.failure = Some(failed);
        self.finish(now, effects);
    }

    /// Judges what was done against what was asked, and ends.
    fn finish(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.failure.is_none() {
            self.failure = self.judge();
        }
        let traded = self.orders.values().any(|order| !order.filled().is_zero());
        self.state = match (&self.failure, traded) {
            _ if self.kind == OperationKind::Recovery => OperationState::Interrupted,
            (None, _) => OperationState::Succeeded,
            (Some(_), true) => OperationState::Partial,
            (Some(_), false) => OperationState::Failed,
        };
        let state = match self.state {
            OperationState::Succeeded => "succeeded",
            OperationState::Partial => "partial",
            OperationState::Interrupted => "interrupted",
            _ => "failed",
        };
        self.close(now, state, effects);
    }

    fn close(&mut self, now: Timestamp, state: &str, effects: &mut Vec<Effect>) {
        self.phase = Phase::Finished;
        self.ended_at = Some(now);
        self.running = None;
        let summary = match (&self.failure, &self.reason) {
            (Some(failed), _) => format!("{}: {}", failed.code.number(), failed.error),
            (None, Some(reason)) => reason.clone(),
            (None, None) => String::new(),
        };
        self.note(now, format!("{state}: {summary}"));
        self.pending.push(Record::OperationClosed {
            operation: self.id.clone(),
            state: state.to_owned(),
            summary,
            at: now,
        });
        effects.push(Effect::Finish(std::mem::take(&mut self.pending)));
    }

    /// Whether the end is what was asked for: a refused leg comes before a deviation.
    fn judge(&self) -> Option<Box<Failure>> {
        let anchor = self.anchor.as_ref()?;
        let missed = match &self.spec.goal {
            Goal::Settle => return None,
            Goal::Delta { target, max_deviation, .. } => {
                let ratio = deltaplane_math::deviation_ratio(self.net, *target, anchor.reference).ok()?;
                let left = self.net.minus(*target).ok()?.abs();
                let dust = left.notional_at(anchor.price).ok()? <= self.config.dust_limit;
                let only_dust = dust && self.reason.as_ref().is_some_and(|reason| reason.starts_with("dust"));
                if ratio <= *max_deviation || only_dust {
                    return None;
                }
                let shown = ratio.value().round_dp(6).normalize();
                format!(
                    "net delta ended {left} from the target, a ratio of {shown}, beyond maxDeviation {max_deviation}"
                )
            }
            Goal::Hedge { .. } => {
                let wanted = anchor.target.minus(anchor.net).ok()?;
                let left = wanted.minus(self.traded()).ok()?.abs();
                if left.is_zero() || self.reason.as_ref().is_some_and(|reason| reason.starts_with("hedged")) {
                    return None;
                }
                format!("{left} of {} was not hedged", wanted.abs())
            }
        };
        let refused: Vec<String> = self
            .orders
            .values()
            .filter_map(|order| Some(format!("{}: {}", order.intent.order.account, order.refusal.as_ref()?)))
            .collect();
        if refused.is_empty() {
            let why = self.reason.clone().unwrap_or_default();
            let text = if why.is_empty() { missed } else { format!("{missed} ({why})") };
            return Some(failure(
                Code::DeltaBeyondLimit,
                text,
                "raise maxSlippage, name more accounts, or try again later",
            ));
        }
        let text = format!("{missed}; refused legs: {}", refused.join("; "));
        let mut failed =
            failure(Code::HedgeFailed, text, "check margin and permissions of the accounts that refused");
        failed.details.insert("refusedLegs".to_owned(), refused);
        Some(failed)
    }

    /// All that is known now.
    pub fn report(&self, now: Timestamp) -> OperationReport {
        let anchor = self.anchor.as_ref();
        let rate = |account: &AccountId| {
            anchor.and_then(|anchor| anchor.quote_rates.get(account)).copied().unwrap_or(Decimal::ONE)
        };
        let fills: Vec<PricedFill> = self
            .orders
            .values()
            .flat_map(|order| order.priced_fills(rate(&order.intent.order.account)))
            .collect();
        let quality = execution_quality(&fills).unwrap_or_default();
        let initial = anchor.map_or(Delta::ZERO, |anchor| anchor.net);
        let target = match &self.spec.goal {
            Goal::Delta { target, .. } => *target,
            _ => anchor.map_or(Delta::ZERO, |anchor| anchor.target),
        };
        let net = if self.phase == Phase::Finished { self.net } else { self.net_now().unwrap_or(self.net) };
        let ratio =
            anchor.and_then(|anchor| deltaplane_math::deviation_ratio(net, target, anchor.reference).ok());
        OperationReport {
            id: self.id.clone(),
            kind: self.kind,
            state: self.state,
            symbol: self.spec.symbol.clone(),
            accounts: self.spec.accounts.clone(),
            dry_run: false,
            started_at: self.started_at,
            execution_time: self.ended_at.unwrap_or(now).since(self.started_at),
            target,
            initial_delta: initial,
            final_delta: net,
            deviation: net.minus(target).map_or(net, Delta::abs),
            deviation_ratio: ratio,
            reference_exposure: anchor.map(|anchor| anchor.reference),
            adjustment_needed: self.adjustment_needed,
            reason: self.reason.clone(),
            plan: self.first_plan.as_deref().cloned(),
            orders: self.order_ids.iter().filter_map(|id| self.orders.get(id)?.report().ok()).collect(),
            slippage: quality.slippage,
            total_cost: quality.total_cost,
            total_fees: quality.total_fees,
            execution_cost: quality.execution_cost,
            max_transient_delta: self.max_transient,
            warnings: anchor.map(|anchor| anchor.warnings.clone()).unwrap_or_default(),
            net_delta_all: anchor.and_then(|anchor| anchor.net_all),
            failure: self.failure.as_deref().cloned(),
            timeline: self.timeline.clone(),
        }
    }

    /// What a dry run answers: the first round's decision, with nothing sent.
    pub fn dry_report(mut self, result: Result<Snapshot, Box<Failure>>, now: Timestamp) -> OperationReport {
        let mut effects = Vec::new();
        self.on_read(result, now, &mut effects);
        if self.phase == Phase::Reserving {
            self.net = self.first_plan.as_ref().map_or(self.net, |plan| plan.planned_final);
            self.reason = Some("dry run: nothing was sent".to_owned());
            self.state = OperationState::Succeeded;
            self.ended_at = Some(now);
            self.phase = Phase::Finished;
        }
        let mut report = self.report(now);
        report.dry_run = true;
        report
    }
}
