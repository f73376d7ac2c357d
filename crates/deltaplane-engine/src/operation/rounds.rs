//! Rounds: from a reading to a plan, from a plan to durable orders, and what comes after a slice.

use std::sync::Arc;

use deltaplane_ports::{Failure, IntentRecord, JournalError, PlannedLeg, Record};
use deltaplane_risk::Approved;
use deltaplane_types::{
    AccountId, Code, Delta, OrderIntent, Refusal, RefusalReason, SubmitOutcome, TimeInForce, Timestamp,
};

use super::{
    Draft, Effect, MAX_IDLE_ROUNDS, MAX_REREADS, MAX_ROUNDS, Operation, Phase, REREAD_PAUSE, ROUND_PAUSE,
    Running,
};
use crate::control::{self, Round, Verdict};
use crate::orders::{Fate, TrackedOrder};
use crate::report::failure;
use crate::snapshot::Snapshot;

impl Operation {
    pub(super) fn on_read(
        &mut self,
        result: Result<Snapshot, Box<Failure>>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
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
    pub(super) fn unexplained(&self, snapshot: &Snapshot) -> Option<String> {
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
    pub(super) fn unseen(&self, snapshot: &Snapshot) -> Option<Box<Failure>> {
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

    pub(super) fn begin(
        &mut self,
        approved: &Approved,
        traded: Delta,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
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
            target: plan.target,
            net: plan.initial,
            worst: plan.worst_case_delta,
            legs: plan
                .legs
                .iter()
                .map(|leg| PlannedLeg {
                    account: leg.account.clone(),
                    side: leg.side,
                    quantity: leg.quantity,
                })
                .collect(),
            positions: self.positions.iter().map(|(id, (position, _))| (id.clone(), *position)).collect(),
            at: now,
        });
        if self.first_plan.is_none() {
            self.first_plan = Some(plan.clone());
        }
        self.running = Some(Running { plan, slice: 0, out: Vec::new(), traded_before: traded });
        self.reserve_slice(now, effects);
    }

    pub(super) fn reserve_slice(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
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

    pub(super) fn on_reserved(
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

    /// Every order of the slice is settled: go on, plan again, or end.
    pub(super) fn end_slice(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
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
}
