//! What the venue says of orders, and what it proves.

use std::collections::BTreeSet;
use std::time::Duration;

use deltaplane_ports::{
    CancelOutcome, Invalidation, OrderSighting, OutcomeRecord, ReadError, Record, Settlement,
};
use deltaplane_types::{
    AccountId, ClientOrderId, Delta, Evidence, ExecutionReport, Fill, SubmitOutcome, Timestamp,
};

use super::{CLOCK_MARGIN, Effect, MAX_FAILED_PROOFS, Operation, Sought};
use crate::orders::{Look, Resolution, TrackedOrder};

/// How far looks are apart where a venue's rules are not known.
const PROOF_LAG: Duration = Duration::from_secs(10);

impl Operation {
    pub(super) fn record_outcome(&mut self, id: &ClientOrderId, outcome: OutcomeRecord, now: Timestamp) {
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
            OutcomeRecord::Unknown { cause } => format!("unresolved: {cause}"),
        };
        self.note(now, format!("order {id} {text}"));
        self.pending.push(Record::Outcome { client_order_id: id.clone(), outcome, at: now });
    }

    pub(super) fn on_submitted(&mut self, id: &ClientOrderId, outcome: SubmitOutcome, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        if let Some(outcome) = order.on_submitted(outcome, now) {
            self.record_outcome(id, outcome, now);
        }
    }

    pub(super) fn on_report(&mut self, report: &ExecutionReport, evidence: Evidence, now: Timestamp) {
        let id = &report.client_order_id;
        let Some(order) = self.orders.get_mut(id) else { return };
        if let Some(outcome) = order.on_report(report, evidence, now) {
            self.record_outcome(id, outcome, now);
        }
    }

    pub(super) fn on_fill(&mut self, fill: Fill, now: Timestamp) {
        // The venue's order ids are unique in a symbol only; our own id decides if the answer has it.
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

    /// Events of the stream may be lost: look the order up.
    pub(super) fn ask_soon(&mut self, account: &AccountId, now: Timestamp) {
        for order in self.orders.values_mut().filter(|order| order.intent.order.account == *account) {
            if !order.is_settled()
                && matches!(
                    order.resolution,
                    Resolution::Accepted | Resolution::Unknown | Resolution::Ended(_)
                )
            {
                order.next_check = Some(now);
            }
        }
    }

    pub(super) fn on_sighted(
        &mut self,
        id: &ClientOrderId,
        result: Result<OrderSighting, ReadError>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        let rules = self.rules.get(&order.intent.order.account);
        let (slack, lag) = rules.map_or((PROOF_LAG, PROOF_LAG), |rules| (rules.proof_slack, rules.proof_lag));
        match result {
            Ok(OrderSighting::Found(report)) => {
                let ended = matches!(order.resolution, Resolution::Ended(_));
                self.on_report(&report, Evidence::OrderQuery, now);
                if let Some(order) = self.orders.get_mut(id).filter(|order| ended && !order.is_settled()) {
                    order.next_check = Some(now);
                }
            }
            _ if matches!(order.resolution, Resolution::Ended(_)) => order.on_trades_read(now),
            Ok(OrderSighting::NotFound) if order.may_be_hidden() => order.on_not_found(now),
            Ok(OrderSighting::NotFound) if order.was_acknowledged() => {
                order.on_not_found(now);
                if now >= order.provable_at(slack) && order.is_missing(now, lag) {
                    let text = "the venue accepted it and does not show it any more".to_owned();
                    if let Some(outcome) = order.freeze(text) {
                        self.record_outcome(id, outcome, now);
                    }
                }
            }
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

    /// What became of it is asked for, whatever the answer: it may have traded before.
    pub(super) fn on_canceled(&mut self, id: &ClientOrderId, outcome: &CancelOutcome, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.on_canceled(matches!(outcome, CancelOutcome::NotOpen), now);
        let text = match outcome {
            CancelOutcome::Canceled(_) => "canceled".to_owned(),
            CancelOutcome::NotOpen => "does not rest any more".to_owned(),
            CancelOutcome::Refused(refusal) => format!("is not canceled: {refusal}"),
            CancelOutcome::Unknown(cause) => format!("may be canceled or not: {cause}"),
        };
        self.note(now, format!("order {id} {text}"));
    }

    pub(super) fn on_invalidated(&mut self, id: &ClientOrderId, outcome: &Invalidation, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        let text = match outcome {
            Invalidation::UsedUp => "its nonce is used up: it cannot be accepted any more",
            Invalidation::Arrived => "the venue had accepted it",
            Invalidation::Unavailable => "its nonce cannot be used up",
            Invalidation::Unknown(_) => "whether its nonce is used up is not known",
        };
        order.on_invalidated(outcome, now);
        self.note(now, format!("order {id}: {text}"));
    }

    pub(super) fn on_trades(
        &mut self,
        id: &ClientOrderId,
        result: Result<Vec<Fill>, ReadError>,
        now: Timestamp,
    ) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        for fill in result.unwrap_or_default() {
            self.on_fill(fill, now);
        }
        if let Some(order) = self.orders.get_mut(id) {
            order.on_trades_read(now);
        }
    }

    pub(super) fn on_proof(&mut self, id: &ClientOrderId, result: Result<Sought, ReadError>, now: Timestamp) {
        let Some(order) = self.orders.get_mut(id) else { return };
        order.check_in_flight = false;
        if !matches!(order.resolution, Resolution::Unknown | Resolution::InFlight) || order.was_acknowledged()
        {
            // Meanwhile the venue told of it: that decides.
            order.next_check = order.next_check.or((!order.is_settled()).then_some(now));
            return;
        }
        let Ok(Sought { began, sighting, fills, of_others, position, proven_since }) = result else {
            return order.on_not_found(now);
        };
        if let OrderSighting::Found(report) = sighting {
            return self.on_report(&report, Evidence::OrderQuery, now);
        }
        let rules = self.rules.get(&order.intent.order.account);
        let (slack, lag) = rules.map_or((PROOF_LAG, PROOF_LAG), |rules| (rules.proof_slack, rules.proof_lag));
        let closed = order.provable_at(slack).after(CLOCK_MARGIN);
        let has_newer_events = fills.iter().any(|fill| fill.venue_time > closed);
        let look = Look { began, proven_since, has_newer_events };
        let (account, side, since) =
            (order.intent.order.account.clone(), order.intent.order.side, order.sent_at);
        // Another account's trades may have the same numbers.
        let mine = self.orders.values().filter(|order| order.intent.order.account == account);
        let known: BTreeSet<_> = mine.flat_map(TrackedOrder::trades).map(|(id, _)| id).collect();
        let mut unknown: Vec<&Fill> = fills.iter().filter(|fill| !known.contains(&fill.trade_id)).collect();
        unknown.sort_by_key(|fill| fill.venue_time);
        // A trade without a name could be this order's, unless the venue's list of orders says otherwise.
        let could_be = |fill: &Fill| {
            fill.side == side
                && fill.venue_time.after(CLOCK_MARGIN) >= since
                && !of_others.contains(&fill.trade_id)
                && fill.client_order_id.as_ref().is_none_or(|name| name == id)
        };
        let (stray, others): (Vec<&Fill>, Vec<&Fill>) = unknown.into_iter().partition(|fill| could_be(fill));
        let stray = stray.len();
        let moved = self
            .expected_position(&account)
            .is_some_and(|expected| !is_explained(position, expected, &others, self.read_at));
        let Some(order) = self.orders.get_mut(id) else { return };
        if stray == 0 && !moved {
            if !order.on_nothing_found(&look, lag) {
                order.on_not_found(now);
                // What is read may lag behind what happened.
                let pause = order.pause_between_looks(lag);
                order.look_again_at(began.after(pause).max(now.after(Duration::from_millis(50))));
                return;
            }
            let reason = "it cannot be accepted any more, the order is not found, no trade exists and the position is as expected";
            let evidence = if order.is_invalidated() { Evidence::Invalidated } else { Evidence::ExpiryProof };
            let outcome = order.not_accepted(evidence, reason.to_owned());
            self.record_outcome(id, outcome, now);
            return;
        }
        order.proofs_failed += 1;
        order.on_something_found();
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

    /// Takes a person's word for what became of an unresolved order.
    pub(super) fn on_decided(
        &mut self,
        id: &ClientOrderId,
        settlement: Settlement,
        by: String,
        now: Timestamp,
    ) {
        let Some(order) = self.orders.get_mut(id).filter(|order| !order.is_settled()) else { return };
        let outcome = order.on_decided(settlement, by);
        self.record_outcome(id, outcome, now);
    }

    pub(super) fn check_due(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for (id, order) in &mut self.orders {
            if order.check_in_flight || order.is_settled() {
                continue;
            }
            if order.must_be_canceled(now) {
                order.on_canceling(now);
                effects.push(Effect::Cancel(id.clone()));
                continue;
            }
            if order.next_check.is_none_or(|at| at > now) {
                continue;
            }
            order.check_in_flight = true;
            order.next_check = None;
            let rules = self.rules.get(&order.intent.order.account);
            effects.push(
                if matches!(order.resolution, Resolution::Ended(_)) && order.venue_order_id.is_some() {
                    Effect::ReadTrades(id.clone())
                } else if matches!(order.resolution, Resolution::Ended(_)) {
                    // Its trades have the venue's name of the order, which the journal does not keep.
                    Effect::Sight(id.clone())
                } else if order.is_sought() && !order.may_be_hidden() && !order.was_acknowledged() {
                    // It was not found before: the whole look asks for it too.
                    Effect::Prove(id.clone())
                } else if order.wants_invalidation() && rules.is_some_and(|rules| rules.invalidates) {
                    Effect::Invalidate(id.clone())
                } else {
                    Effect::Sight(id.clone())
                },
            );
        }
    }
}

/// Whether trades of others, oldest first, explain a position where it was `expected`, without them, as it was read at
/// `read_at`. The reading has those from before that time in it; around that time the venue's clock leaves open which.
fn is_explained(position: Delta, expected: Delta, others: &[&Fill], read_at: Timestamp) -> bool {
    let mut sum = expected;
    let mut later = others.iter().rev().take_while(|fill| fill.venue_time.after(CLOCK_MARGIN) >= read_at);
    loop {
        let Some(fill) = later.next() else { return sum == position };
        if fill.venue_time.before(CLOCK_MARGIN) < read_at && sum == position {
            return true;
        }
        let Ok(next) = sum.plus(fill.quantity.signed(fill.side)) else { return false };
        sum = next;
    }
}
