//! What must hold at every step, checked against the venues' own books and the durable journal.

use std::collections::{BTreeMap, BTreeSet};

use deltaplane_ports::{
    AlertChange, ExternalActivity, ExternalCause, IntentRecord, OutcomeRecord, PlannedLeg, Record,
};
use deltaplane_types::{
    AccountId, ClientOrderId, Decimal, Delta, Evidence, OperationId, OrderIntent, OrderStatus, Quantity,
    TradeId,
};

use crate::world::{State, Venue, order_of};

/// A proof of absence by time alone needs this long after an order's deadline.
const PROOF_SLACK_MS: i64 = 1_000;

/// What is known of the journal, and what was found wrong.
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) violations: Vec<String>,
    pub(crate) intents: BTreeMap<ClientOrderId, IntentRecord>,
    sends: BTreeMap<ClientOrderId, u32>,
    pub(crate) outcomes: BTreeMap<ClientOrderId, OutcomeRecord>,
    fills: BTreeSet<(AccountId, TradeId)>,
    filled: BTreeMap<ClientOrderId, Decimal>,
    legs: BTreeMap<OperationId, Vec<(PlannedLeg, Decimal)>>,
    pub(crate) accepted: BTreeSet<OperationId>,
    pub(crate) closed: BTreeMap<OperationId, String>,
    epoch: u16,
    sequences: BTreeSet<u64>,
    pub(crate) alerts: BTreeMap<String, String>,
    /// Since when nothing that adds may go out.
    pub(crate) killed_since: Option<i64>,
    /// What the engine did that it seldom does: proof that the tests reach it.
    pub(crate) seldom: BTreeMap<String, u64>,
    shrunk: BTreeSet<OperationId>,
    /// Whether others trade on the accounts too.
    pub(crate) outsiders: bool,
    /// How far net delta was from the target of an operation's first plan.
    began: BTreeMap<OperationId, Decimal>,
    /// Operations whose exposure is added up.
    pub(crate) measured: Vec<Measured>,
}

/// How far an operation's accounts were from its target, over time.
pub(crate) struct Measured {
    pub(crate) accounts: Vec<AccountId>,
    pub(crate) target: Decimal,
    pub(crate) ended: bool,
    last: Option<(i64, Decimal)>,
    /// Dollars times milliseconds.
    pub(crate) dollar_ms: Decimal,
}

impl Measured {
    pub(crate) fn new(accounts: Vec<AccountId>, target: Delta) -> Self {
        Self { accounts, target: target.value(), ended: false, last: None, dollar_ms: Decimal::ZERO }
    }
}

/// Whether nothing more comes of an order, by what the journal says.
pub(crate) fn is_terminal(outcome: Option<&OutcomeRecord>) -> bool {
    matches!(outcome, Some(OutcomeRecord::Ended { .. } | OutcomeRecord::NotAccepted { .. }))
}

impl Oracle {
    pub(crate) fn violation(&mut self, text: String) {
        // Seen again and again, it is one.
        if !self.violations.contains(&text) {
            self.violations.push(text);
        }
    }

    pub(crate) fn on_record(&mut self, record: &Record, now: i64, venues: &BTreeMap<AccountId, Venue>) {
        match record {
            Record::RunStarted { epoch, .. } => {
                if *epoch <= self.epoch {
                    self.violation(format!("I13: epoch {epoch} after {}", self.epoch));
                }
                self.epoch = *epoch;
            }
            Record::OperationAccepted { operation, .. } => {
                if !self.accepted.insert(operation.clone()) {
                    self.violation(format!("I19: {operation} began twice"));
                }
            }
            Record::Planned { operation, legs, net, target, .. } => {
                self.began.entry(operation.clone()).or_insert(net.value() - target.value());
                let legs = legs.iter().map(|leg| (leg.clone(), leg.quantity.value())).collect();
                self.legs.insert(operation.clone(), legs);
            }
            Record::Intent(intent) => self.on_intent(intent),
            Record::Outcome { client_order_id, outcome, .. } => {
                self.on_outcome(client_order_id, outcome, now, venues);
            }
            Record::Fill { client_order_id, fill } => {
                if !self.fills.insert((fill.account.clone(), fill.trade_id.clone())) {
                    self.violation(format!(
                        "I9: trade {} of {} is booked twice",
                        fill.trade_id, fill.account
                    ));
                }
                *self.filled.entry(client_order_id.clone()).or_default() += fill.quantity.value();
            }
            Record::OperationClosed { operation, state, .. } => {
                if let Some(before) = self.closed.insert(operation.clone(), state.to_string()) {
                    self.violation(format!("I19: {operation} ended as {before} and again as {state}"));
                }
                let open: Vec<String> = self
                    .intents
                    .values()
                    .filter(|intent| intent.operation == *operation)
                    .filter(|intent| !is_terminal(self.outcomes.get(&intent.client_order_id)))
                    .map(|intent| intent.client_order_id.to_string())
                    .collect();
                if !open.is_empty() {
                    self.violation(format!("I8: {operation} ended while {open:?} were open"));
                }
                let ours = self.intents.values().filter(|intent| intent.operation == *operation);
                let rests = |intent: &&IntentRecord| {
                    let venue = venues.get(&intent.order.account);
                    let order = venue.and_then(|venue| order_of(&venue.exchange, &intent.client_order_id));
                    order.is_some_and(|order| order.status.is_open())
                };
                let resting: Vec<String> =
                    ours.filter(rests).map(|intent| intent.client_order_id.to_string()).collect();
                if !resting.is_empty() {
                    self.violation(format!("I8: {operation} ended while {resting:?} rested"));
                }
                self.check_both_sides(operation, venues);
            }
            Record::Alert { alert, change } => match change {
                AlertChange::Raised | AlertChange::Acknowledged => {
                    if self.alerts.insert(alert.id.clone(), alert.topic.to_string()).is_none() {
                        *self.seldom.entry(format!("alert {}", alert.topic)).or_default() += 1;
                    }
                }
                AlertChange::Resolved => drop(self.alerts.remove(&alert.id)),
            },
            Record::External(activity) => {
                self.check_outside(activity, venues);
                *self.seldom.entry(format!("outside {}", activity.cause)).or_default() += 1;
            }
            Record::Corrected(correction) => {
                let id = &correction.client_order_id;
                self.violation(format!("I8: {id} traded after its operation ended: its end was not true"));
            }
            Record::Trading(_) | Record::Policy { .. } => {}
        }
    }

    /// A two-sided operation ends no further from its target than it began, or raises an alert.
    fn check_both_sides(&mut self, operation: &OperationId, venues: &BTreeMap<AccountId, Venue>) {
        let Some(began) = self.began.get(operation).copied() else { return };
        let kind = operation.as_str().split('-').next().unwrap_or_default();
        if !["flatten", "rebalance"].contains(&kind) || self.outsiders {
            return;
        }
        let orders = self.intents.values().filter(|intent| intent.operation == *operation);
        let (mut away, mut price, mut sides) = (began, Decimal::MAX, BTreeSet::new());
        for intent in orders {
            let venue = venues.get(&intent.order.account);
            let order = venue.and_then(|venue| order_of(&venue.exchange, &intent.client_order_id));
            let executed = order.map_or(Decimal::ZERO, |order| order.executed);
            sides.insert(intent.order.side);
            away += Quantity::try_new(executed).unwrap_or_default().signed(intent.order.side).value();
            price = price.min(intent.order.limit_price.value());
        }
        if sides.len() == 2 {
            *self.seldom.entry(format!("{kind} of both sides")).or_default() += 1;
        }
        // Dust is up to 200 USD; prices move a little.
        let past = away * began < Decimal::ZERO;
        if (away.abs() > began.abs() || past) && away.abs() * price > Decimal::from(210) {
            *self.seldom.entry("one side stood alone".to_owned()).or_default() += 1;
            if !self.alerts.values().any(|topic| topic == "leg-unhedged") {
                self.violation(format!("I7: {operation} left {away} unhedged without an alert"));
            }
        }
    }

    /// Every move of this world is a trade: what others did is named after their trades, and only after theirs.
    fn check_outside(&mut self, activity: &ExternalActivity, venues: &BTreeMap<AccountId, Venue>) {
        if activity.cause == ExternalCause::Correction {
            let ExternalActivity { account, change, position, .. } = activity;
            self.violation(format!("outside: {change} of {account} to {position} is called a correction"));
        }
        let Some(venue) = venues.get(&activity.account) else { return };
        for trade in &activity.trades {
            let found = venue.exchange.trades.iter().find(|known| known.id.to_string() == trade.as_str());
            let ours = found
                .and_then(|trade| venue.exchange.orders.get(&trade.order_id))
                .and_then(|order| order.client_id.parse().ok())
                .is_some_and(|name: ClientOrderId| self.intents.contains_key(&name));
            if ours || found.is_none() {
                self.violation(format!("outside: trade {trade} of {} is ours or none", activity.account));
            }
        }
    }

    fn on_intent(&mut self, intent: &IntentRecord) {
        if intent.epoch != self.epoch {
            self.violation(format!(
                "I13: intent {} of epoch {} in {}",
                intent.sequence, intent.epoch, self.epoch
            ));
        }
        if !self.sequences.insert(intent.sequence) {
            self.violation(format!("I15: number {} was given twice", intent.sequence));
        }
        let left = self.legs.get_mut(&intent.operation).and_then(|legs| legs.get_mut(intent.leg));
        match left {
            Some((leg, left)) if leg.account == intent.order.account && leg.side == intent.order.side => {
                *left -= intent.order.quantity.value();
                if *left < Decimal::ZERO {
                    let text = format!("I4: the orders of leg {} pass what was planned", intent.leg);
                    self.violation(text);
                }
            }
            _ => self.violation(format!("I4: no durable plan asks for {}", intent.client_order_id)),
        }
        self.intents.insert(intent.client_order_id.clone(), intent.clone());
    }

    fn on_outcome(
        &mut self,
        id: &ClientOrderId,
        outcome: &OutcomeRecord,
        now: i64,
        venues: &BTreeMap<AccountId, Venue>,
    ) {
        let before = self.outcomes.get(id).cloned();
        if is_terminal(before.as_ref()) && is_terminal(Some(outcome)) && before.as_ref() != Some(outcome) {
            let by_person = matches!(
                outcome,
                OutcomeRecord::Ended { evidence: Evidence::Person(_), .. }
                    | OutcomeRecord::NotAccepted { evidence: Evidence::Person(_), .. }
            );
            if !by_person {
                self.violation(format!("I8: {id} ended as {before:?} and again as {outcome:?}"));
            }
        }
        let Some(intent) = self.intents.get(id).cloned() else {
            return self.violation(format!("I1: an outcome of {id}, which has no intent"));
        };
        if let OutcomeRecord::NotAccepted { evidence: Evidence::ExpiryProof, .. } = outcome
            && now < intent.order.deadline.as_millis() + PROOF_SLACK_MS
        {
            self.violation(format!("I8: {id} counts as never placed before its window and slack had passed"));
        }
        if let OutcomeRecord::Ended { evidence, .. } | OutcomeRecord::NotAccepted { evidence, .. } = outcome {
            *self.seldom.entry(format!("end by {}", evidence.kind())).or_default() += 1;
        }
        self.check_against_truth(id, &intent, outcome, venues);
        self.outcomes.insert(id.clone(), outcome.clone());
    }

    fn check_against_truth(
        &mut self,
        id: &ClientOrderId,
        intent: &IntentRecord,
        outcome: &OutcomeRecord,
        venues: &BTreeMap<AccountId, Venue>,
    ) {
        let Some(venue) = venues.get(&intent.order.account) else { return };
        let truth = order_of(&venue.exchange, id);
        match outcome {
            OutcomeRecord::Ended { status, filled, .. } => {
                let executed = truth.map_or(Decimal::ZERO, |order| order.executed);
                let open = truth.is_some_and(|order| order.status.is_open());
                if executed != filled.value() || open || (*status == OrderStatus::Filled && truth.is_none()) {
                    self.violation(format!(
                        "I6: {id} is booked as ended with {filled}, the venue has {executed} (open: {open})"
                    ));
                }
            }
            OutcomeRecord::NotAccepted { .. } => {
                if let Some(order) = truth.filter(|order| !order.executed.is_zero()) {
                    let executed = order.executed;
                    self.violation(format!("I6: {id} is booked as never placed, the venue has {executed}"));
                }
            }
            OutcomeRecord::Accepted { .. } | OutcomeRecord::Unknown { .. } => {}
        }
    }

    /// What the journal says of every order once more: truth may not have moved since.
    pub(crate) fn check_all(&mut self, venues: &BTreeMap<AccountId, Venue>) {
        for (id, intent) in self.intents.clone() {
            if let Some(outcome) = self.outcomes.get(&id).cloned() {
                self.check_against_truth(&id, &intent, &outcome, venues);
                if let OutcomeRecord::Ended { filled, evidence, .. } = &outcome
                    && !matches!(evidence, Evidence::Person(_))
                    && self.closed.contains_key(&intent.operation)
                {
                    let booked = self.filled.get(&id).copied().unwrap_or_default();
                    if booked != filled.value() {
                        self.violation(format!(
                            "I5: {id} ended with {filled}, its booked trades are {booked}"
                        ));
                    }
                }
            }
        }
    }

    /// An operation made the worst case smaller on other accounts while an order was unresolved.
    pub(crate) fn shrank(&mut self, operation: &OperationId) {
        if self.shrunk.insert(operation.clone()) {
            *self.seldom.entry("shrunk unresolved".to_owned()).or_default() += 1;
        }
    }

    /// Whether the journal calls an order never placed.
    pub(crate) fn calls_absent(&self, id: &ClientOrderId) -> bool {
        matches!(self.outcomes.get(id), Some(OutcomeRecord::NotAccepted { .. }))
    }

    pub(crate) fn on_positions(&mut self, now: i64, venues: &BTreeMap<AccountId, Venue>, mid: i64) {
        let price = Decimal::from_i128_with_scale(mid.into(), 1);
        for measured in self.measured.iter_mut().filter(|measured| !measured.ended) {
            let net: Decimal =
                measured.accounts.iter().filter_map(|id| venues.get(id)).map(Venue::position).sum();
            let away = (net - measured.target).abs() * price;
            if let Some((since, before)) = measured.last {
                measured.dollar_ms += before * Decimal::from(now - since);
            }
            measured.last = Some((now, away));
        }
    }
}

impl State {
    /// An order is about to leave the process.
    pub(crate) fn check_send(&mut self, id: &ClientOrderId, order: &OrderIntent, now: i64) {
        let oracle = &mut self.oracle;
        let sends = oracle.sends.entry(id.clone()).or_default();
        *sends += 1;
        if *sends > 1 {
            let text = format!("I2: {id} is sent {sends} times");
            oracle.violation(text);
        }
        let Some(intent) = oracle.intents.get(id).cloned() else {
            return oracle.violation(format!("I1: {id} is sent and no durable intent names it"));
        };
        if intent.order != *order {
            oracle.violation(format!("I1: {id} is sent as another order than the durable one"));
        }
        let position_key: Vec<String> = oracle
            .intents
            .values()
            .filter(|other| other.client_order_id != *id && other.order.account == order.account)
            .filter(|other| !is_terminal(oracle.outcomes.get(&other.client_order_id)))
            // Reserved and not yet sent is not out: one slice holds at most one order of an account.
            .filter(|other| oracle.sends.contains_key(&other.client_order_id) || other.epoch != intent.epoch)
            .map(|other| other.client_order_id.to_string())
            .collect();
        if !position_key.is_empty() {
            oracle.violation(format!(
                "I3, I10: {id} is sent while {position_key:?} are open on {}",
                order.account
            ));
        }
        if oracle.killed_since.is_some_and(|since| now > since) && !order.reduce_only {
            oracle.violation(format!("I10: {id} adds exposure and is sent after the kill switch"));
        }
        if now >= order.deadline.as_millis() {
            oracle.violation(format!("I10: {id} is sent after its deadline"));
        }
        let Some(venue) = self.venues.get(&order.account) else { return };
        let Some(view) = &venue.view else {
            return self.oracle.violation(format!("I12: {id} is sent without a price"));
        };
        // A plan's price is at most 3 s old, and its order waits at most its window for the disk.
        let oldest = now - 3_000 - (order.deadline.as_millis() - now).max(3_000) - 6_000;
        if view.received_at.as_millis() < oldest {
            self.oracle.violation(format!("I12: {id} is sent on a price of {}", view.received_at));
        }
        let mid = view.mid().map(deltaplane_types::Price::value).unwrap_or_default();
        let room = mid * Decimal::from_i128_with_scale(15, 3);
        if (order.limit_price.value() - mid).abs() > room {
            self.oracle.violation(format!("I12: {id} at {} is far from the mid {mid}", order.limit_price));
        }
    }
}
