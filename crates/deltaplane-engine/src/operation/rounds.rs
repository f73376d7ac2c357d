//! Rounds: from a reading to a plan, from a plan to durable orders, and what comes after a slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaplane_ports::{Failure, IntentRecord, JournalError, Pacing, PlannedLeg, Record};
use deltaplane_risk::Approved;
use deltaplane_types::{
    AccountId, Code, Delta, Leg, OrderIntent, Plan, Price, Refusal, RefusalReason, Side, SubmitOutcome,
    TimeInForce, Timestamp,
};

use super::{
    Draft, Effect, MAX_IDLE_ROUNDS, MAX_REREADS, MAX_ROUNDS, Operation, Phase, ROUND_PAUSE, Running, Shrink,
    TAKES_WITHIN,
};
use crate::accounts::RecentTrades;
use crate::control::{self, Ending, Goal, Round, RoundDecision};
use crate::orders::{Resolution, TrackedOrder};
use crate::report::failure;
use crate::snapshot::Snapshot;

/// What to do where the price moved beyond its cap.
pub(super) const ASK_AGAIN: &str = "request it again: the caps then follow the newest prices";

impl Operation {
    pub(super) fn on_read(
        &mut self,
        result: Result<Snapshot, Box<Failure>>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        if self.phase == Phase::Watching && self.shrink == Shrink::Reading {
            return self.on_shrink_read(result, now, effects);
        }
        if self.phase != Phase::Reading {
            return;
        }
        let snapshot = match result {
            Ok(snapshot) => snapshot,
            // One leg may be unhedged: the venues are asked again as long as there is time.
            Err(_) if self.has_two_open_sides() && !self.is_over(now) => {
                self.note(now, "an account cannot be read: asking again");
                return self.read_again(effects);
            }
            Err(failure) => {
                if self.unwind_instead(now, effects) {
                    return;
                }
                if self.unwinding && self.rereads < MAX_REREADS {
                    self.rereads += 1;
                    return self.read_again(effects);
                }
                return self.fail(failure, now, effects);
            }
        };
        let streamed = snapshot.accounts.iter().filter(|(_, facts)| facts.is_exact);
        self.streamed = streamed.map(|(id, _)| id.clone()).collect();
        if let Some(unresolved) = snapshot.unresolved {
            // What another operation does not know freezes the symbol for a while.
            let thaws = unresolved.since.after(self.config.unresolved_hold);
            if now < thaws && (!self.is_over(now) || self.unwinding) {
                let wait = thaws.since(now).max(ROUND_PAUSE);
                self.note(now, "waiting: an order of another operation is unresolved");
                return self.read(wait, effects);
            }
        }
        let (unexplained, unseen) = (self.unexplained(&snapshot), self.unseen(&snapshot));
        if !unexplained.is_empty() || unseen.is_some() {
            // A venue may show a position later than the trade: planning on it would hedge twice. Each new
            // difference gets its time.
            if self.last_unexplained != unexplained {
                self.rereads = 0;
                self.last_unexplained.clone_from(&unexplained);
            }
            if self.rereads < MAX_REREADS && (!self.is_over(now) || self.unwinding) {
                self.rereads += 1;
                return self.read_again(effects);
            }
            if let Some(failed) = unseen {
                return self.fail(failed, now, effects);
            }
            for (account, expected, found) in unexplained {
                self.note(
                    now,
                    format!("external activity: {account} holds {found}, our trades explain {expected}"),
                );
                // Before the first round the comparison of every reading finds it.
                if self.positions.contains_key(&account) {
                    effects.push(Effect::ExternalActivity {
                        account,
                        expected,
                        found,
                        as_of: snapshot.as_of,
                    });
                }
            }
        }
        self.rereads = 0;
        self.last_unexplained.clear();
        self.traded_before.clear();
        if self.baseline.is_none() {
            match control::baseline(&self.spec, &snapshot, &self.config) {
                Ok(mut baseline) => {
                    if let Some(remembered) = &self.spec.options.remembered {
                        baseline.changes.clone_from(&remembered.changes);
                    }
                    self.net = baseline.net;
                    self.max_transient = baseline.net.minus(baseline.target).map_or(baseline.net, Delta::abs);
                    self.baseline = Some(baseline);
                }
                Err(failure) => return self.fail(failure, now, effects),
            }
        }
        let traded = self.traded();
        self.read_at = snapshot.as_of;
        // An account that is left out now holds what it did.
        let read: Vec<_> = snapshot
            .accounts
            .iter()
            .map(|(id, facts)| (id.clone(), (facts.account.position(&self.spec.symbol), self.traded_by(id))))
            .collect();
        self.positions.extend(read);
        self.external = snapshot.accounts.iter().map(|(id, facts)| (id.clone(), facts.external)).collect();
        self.forgive_what_changed(&snapshot, now);
        self.touch = snapshot
            .accounts
            .iter()
            .filter_map(|(id, facts)| {
                let (bid, ask) = (facts.market.bids.first()?, facts.market.asks.first()?);
                Some((id.clone(), (bid.price, ask.price)))
            })
            .collect();
        let traded_by = self.traded_by_account();
        let Some(baseline) = &self.baseline else { return };
        let round = Round {
            spec: &self.spec,
            snapshot: &snapshot,
            baseline: Some(baseline),
            traded,
            traded_by: &traded_by,
            unwinding: self.unwinding,
            clip: self.clip,
            excluded: &self.excluded,
            config: &self.config,
        };
        let decision = match &self.spec.options.remembered {
            Some(remembered) if self.first_plan.is_none() => {
                control::decide_remembered(&round, baseline, remembered)
            }
            _ => control::decide(&round, baseline),
        };
        self.changes_left = control::changes_left(&round).unwrap_or_default();
        let net = decision.net();
        (self.net, self.base) = (net, (net, traded));
        let decision = self.told_of_the_caps(decision);
        match decision {
            RoundDecision::Complete { ending, reason, .. } => {
                self.note(now, reason.clone());
                if self.has_more_clips() && !ending.is_stuck() {
                    return self.next_clip(now, effects);
                }
                (self.ending, self.reason) = (Some(ending), Some(reason));
                self.finish(now, effects);
            }
            RoundDecision::Reject { failure, ending, plan, .. } => {
                self.adjustment_needed = true;
                self.first_plan = self.first_plan.take().or_else(|| plan.map(|plan| Arc::new(*plan)));
                if self.unwind_instead(now, effects) {
                    let refused = self.orders.values().any(|order| order.refusal.is_some());
                    if failure.code != Code::DeltaBeyondLimit || !refused {
                        self.failure.get_or_insert(failure);
                    }
                    return;
                }
                if failure.code == Code::DeltaBeyondLimit && self.orders.values().any(|o| o.refusal.is_some())
                {
                    // A rejected order says more than that no account is left to trade.
                    (self.ending, self.reason) = (Some(ending), Some(failure.error.clone()));
                    return self.finish(now, effects);
                }
                self.fail(failure, now, effects);
            }
            // What was looked at is sent, and nothing beside it.
            RoundDecision::Execute { unwinds: false, .. } if self.has_carried_out_a_plan() => {
                if self.unwind_instead(now, effects) {
                    return;
                }
                self.ending = Some(Ending::Stuck);
                self.reason = Some("the plan of planId traded in part: nothing beside it is sent".to_owned());
                self.finish(now, effects);
            }
            RoundDecision::Execute { approved, unwinds, .. } => {
                self.unwinding |= unwinds;
                self.begin(&approved, now, effects);
            }
        }
    }

    /// Whether the legs of a remembered plan went out.
    fn has_carried_out_a_plan(&self) -> bool {
        self.spec.options.remembered.is_some() && self.first_plan.is_some() && !self.unwinding
    }

    /// What is said where nothing more can be traded as the price moved beyond its cap, in place of what the plan says.
    fn told_of_the_caps(&self, decision: RoundDecision) -> RoundDecision {
        let Some(beyond) = self.market_beyond_caps() else { return decision };
        match decision {
            RoundDecision::Complete { ending, net, .. } if ending.is_stuck() => {
                let reason = format!("the price moved beyond its cap: {beyond}");
                RoundDecision::Complete { ending: Ending::Stuck, reason, net }
            }
            RoundDecision::Reject { failure: refused, ending, plan, net }
                if refused.code == Code::DeltaBeyondLimit =>
            {
                let text = format!("{}: the price moved beyond its cap: {beyond}", refused.error);
                let refused = Failure { error: text, solution: ASK_AGAIN.to_owned(), ..*refused };
                RoundDecision::Reject { failure: Box::new(refused), ending, plan, net }
            }
            other => other,
        }
    }

    /// Where the best prices of all its accounts are beyond their price caps after orders went out: the market moved away,
    /// and the caps stay. None in the first round, where the caps follow from those prices.
    pub(super) fn market_beyond_caps(&self) -> Option<String> {
        let is_one_sided = !self.orders.is_empty() && !self.spec.goal.is_two_sided();
        let baseline = self.baseline.as_ref().filter(|_| is_one_sided)?;
        let left = match self.spec.goal {
            // A hedge trades its amount, whatever others do to net delta.
            Goal::Hedge { .. } => {
                baseline.target.minus(baseline.net).and_then(|all| all.minus(self.traded()))
            }
            _ => baseline.target.minus(self.net),
        };
        let side = left.ok().filter(|left| !left.is_zero())?.side();
        let mut beyond = Vec::new();
        for (id, (bid, ask)) in self.touch.iter().filter(|(id, _)| !self.excluded.contains(*id)) {
            let mid = baseline.arrival_mids.get(id)?;
            let tick = self.instruments.get(id)?.tick_size;
            let cap = deltaplane_math::price_cap(*mid, side, self.spec.max_slippage, tick).ok()?;
            let (price, is_beyond) = match side {
                Side::Buy => (ask, *ask > cap),
                Side::Sell => (bid, *bid < cap),
            };
            if !is_beyond {
                return None;
            }
            beyond.push(format!("{id} trades at {price}, beyond the cap {cap}"));
        }
        (!beyond.is_empty()).then(|| beyond.join(", "))
    }

    /// A venue that rejected an order by rules that have changed since may accept one under the new rules.
    fn forgive_what_changed(&mut self, snapshot: &Snapshot, now: Timestamp) {
        for (id, facts) in &snapshot.accounts {
            let known = self.instruments.insert(id.clone(), facts.instrument.clone());
            let changed = known.is_some_and(|known| !known.same_order_rules(&facts.instrument));
            if changed && self.excluded.remove(id) {
                self.note(now, format!("the rules of {id} changed since it refused: it is asked again"));
            }
        }
    }

    /// Whether it trades both ways and traded.
    fn has_two_open_sides(&self) -> bool {
        self.spec.goal.is_two_sided() && !self.turnover().is_zero()
    }

    /// Where a two-sided operation ends before both sides are where they should be, what it opened and has no
    /// counterpart is closed again first. Gives whether there is such a round to come.
    pub(super) fn unwind_instead(&mut self, now: Timestamp, effects: &mut Vec<Effect>) -> bool {
        if self.unwinding || !self.has_two_open_sides() {
            return false;
        }
        self.note(now, "stopping: closing what was opened without a counterpart");
        (self.unwinding, self.rounds, self.idle_rounds, self.rereads) = (true, 0, 0, 0);
        // A venue that rejected an opening order may well accept one that only reduces.
        self.excluded.clear();
        self.phase = Phase::Reading;
        self.read(ROUND_PAUSE, effects);
        true
    }

    /// A position that our own trades do not explain is external activity, and the plan is made from the position.
    fn unexplained(&self, snapshot: &Snapshot) -> Vec<(AccountId, Delta, Delta)> {
        let mut found = Vec::new();
        for (id, facts) in &snapshot.accounts {
            let now = facts.account.position(&self.spec.symbol);
            // In the first round what the operation before traded a moment ago counts: others may have traded too,
            // so that what is shown late is not exactly what was before.
            let before = || {
                let recent = self.traded_before.get(id).filter(|_| !facts.is_exact)?;
                recent.after.plus(facts.external.minus(recent.external).ok()?).ok()
            };
            let expected = self.expected_with_others(id, facts.external).or_else(before);
            if let Some(expected) = expected.filter(|expected| *expected != now) {
                found.push((id.clone(), expected, now));
            }
        }
        found
    }

    /// What its accounts hold by all that it knows, but for those that others may trade meanwhile.
    pub(super) fn known_positions(&self) -> BTreeMap<AccountId, Delta> {
        let accounts = self.positions.keys().filter(|id| !self.released.contains(*id));
        accounts.filter_map(|id| Some((id.clone(), self.expected_position(id)?))).collect()
    }

    /// The position that was read last with our own trades since; none where none was read.
    pub(super) fn expected_position(&self, account: &AccountId) -> Option<Delta> {
        let (position, traded_then) = self.positions.get(account)?;
        position.plus(self.traded_by(account).minus(*traded_then).ok()?).ok()
    }

    /// The same with what trades of others moved since then, as far as the stream told; `external` is their sum since the
    /// engine started.
    fn expected_with_others(&self, account: &AccountId, external: Delta) -> Option<Delta> {
        let moved = external.minus(self.external.get(account).copied().unwrap_or_default()).ok()?;
        self.expected_position(account)?.plus(moved).ok()
    }

    /// A position that lacks exactly what we traded: the venue shows it late, and a plan would trade it again.
    pub(super) fn unseen(&self, snapshot: &Snapshot) -> Option<Box<Failure>> {
        let late: Vec<String> = snapshot
            .accounts
            .iter()
            .filter_map(|(id, facts)| {
                let shown = facts.account.position(&self.spec.symbol);
                // What others traded since then is taken off: the rest is what we left, with or without our trades.
                let ours = |since: Delta| shown.minus(facts.external.minus(since).ok()?).ok();
                let external = self.external.get(id).copied().unwrap_or_default();
                let here = self.positions.get(id).filter(|(position, _)| ours(external) == Some(*position));
                let here = here.and_then(|_| self.expected_with_others(id, facts.external));
                let is_late = |recent: &&RecentTrades| {
                    !facts.is_exact && ours(recent.external).is_some_and(|ours| recent.before.contains(&ours))
                };
                let before = self.traded_before.get(id).filter(is_late);
                let with_others = |recent: &RecentTrades| {
                    recent.after.plus(facts.external.minus(recent.external).ok()?).ok()
                };
                let known = here.or_else(|| before.and_then(with_others))?;
                (known != shown).then(|| format!("{id} shows {shown} and by our trades holds {known}"))
            })
            .collect();
        let text = format!("the venue does not show our trades yet: {}", late.join("; "));
        (!late.is_empty()).then(|| {
            failure(Code::HedgeFailed, text, "repeat the request; if this comes again, look at the venue")
        })
    }

    /// Says what operations that ended a moment ago made of an account's position.
    pub(crate) fn expect(&mut self, account: AccountId, recent: RecentTrades) {
        self.traded_before.insert(account, recent);
    }

    /// What this operation made of its accounts' positions, order by order.
    pub(crate) fn recent_trades(&self) -> Vec<(AccountId, RecentTrades)> {
        let of = |account: &AccountId| {
            let after = self.expected_position(account)?;
            let mut position = after.minus(self.traded_by(account)).ok()?;
            let mut before = Vec::new();
            let orders = self.order_ids.iter().filter_map(|id| self.orders.get(id));
            for order in orders.filter(|order| order.intent.order.account == *account) {
                before.push(position);
                position = position.plus(order.traded()).ok()?;
            }
            before.dedup();
            let external = self.external.get(account).copied().unwrap_or_default();
            (!before.is_empty()).then(|| (account.clone(), RecentTrades { before, after, external }))
        };
        self.positions.keys().filter_map(of).collect()
    }

    pub(super) fn begin(&mut self, approved: &Approved, now: Timestamp, effects: &mut Vec<Effect>) {
        let plan = approved.plan().clone();
        self.rounds += 1;
        self.adjustment_needed = true;
        self.record_plan(&plan, now);
        if self.spec.options.remembered.is_some() {
            // An account without a leg in the remembered plan takes no part in the rest of it either.
            let has_leg = |id: &&AccountId| plan.legs.iter().any(|leg| leg.account == **id);
            self.excluded.extend(self.spec.accounts.iter().filter(|id| !has_leg(id)).cloned());
        }
        if self.first_plan.is_none() {
            self.first_plan = Some(plan.clone());
        }
        self.running = Some(Running {
            plan,
            slice: 0,
            out: Vec::new(),
            turnover_before: self.turnover(),
            is_stale: false,
        });
        self.reserve_slice(now, effects);
    }

    /// Notes a plan, and keeps it for the journal: it becomes durable with its first orders.
    pub(super) fn record_plan(&mut self, plan: &Plan, now: Timestamp) {
        self.worst_case = self.worst_case.max(Some(plan.worst_case_delta));
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
            positions: self.positions.clone(),
            read_at: self.read_at,
            at: now,
        });
    }

    /// Whether a later part of a hedge follows.
    pub(super) fn has_more_clips(&self) -> bool {
        matches!(self.spec.goal, Goal::Hedge { .. })
            && self.clip.saturating_add(1) < self.spec.options.pacing.clips
    }

    /// Waits, and goes on with the next part.
    fn next_clip(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        self.clip = self.clip.saturating_add(1);
        (self.rounds, self.idle_rounds, self.rests_until) = (0, 0, None);
        self.rests_first = self.spec.options.pacing.rest_for.is_some();
        // What kept an account out of one part may be over in the next.
        self.excluded.clear();
        let Pacing { clips, interval, .. } = self.spec.options.pacing;
        self.note(now, format!("part {} of {clips} begins in {} ms", self.clip + 1, interval.as_millis()));
        self.phase = Phase::Reading;
        self.read(interval.max(ROUND_PAUSE), effects);
    }

    /// Where an order of a leg rests: at the best price of its own side, within the leg's cap. None where it takes.
    fn resting_price(&self, leg: &Leg, now: Timestamp) -> Option<Price> {
        let is_over = self.rests_until.is_some_and(|until| now >= until);
        if !self.rests_first || is_over || self.unwinding || self.shrink == Shrink::Reserving {
            return None;
        }
        let (bid, ask) = self.touch.get(&leg.account)?;
        Some(match leg.side {
            Side::Buy => leg.price_cap.min(*bid),
            Side::Sell => leg.price_cap.max(*ask),
        })
    }

    fn reserve_slice(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(running) = &self.running else { return };
        let (plan, slice) = (running.plan.clone(), running.slice);
        self.reserve(&plan, slice, now, effects);
    }

    /// Asks for the orders of a slice to be made durable.
    pub(super) fn reserve(&mut self, plan: &Plan, slice: usize, now: Timestamp, effects: &mut Vec<Effect>) {
        let Some(slice) = plan.slices.get(slice) else { return };
        let drafts = slice
            .orders
            .iter()
            .filter_map(|order| {
                let leg = plan.legs.get(order.leg)?;
                let window = self.rules.get(&leg.account)?.validity_window;
                let (limit_price, time_in_force) = match self.resting_price(leg, now) {
                    Some(price) => (price, TimeInForce::PostOnly),
                    None => (leg.price_cap, TimeInForce::ImmediateOrCancel),
                };
                Some(Draft {
                    leg: order.leg,
                    order: OrderIntent {
                        account: leg.account.clone(),
                        symbol: self.spec.symbol.clone(),
                        side: leg.side,
                        quantity: order.quantity,
                        limit_price,
                        reduce_only: leg.reduce_only,
                        time_in_force,
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
                let remedy = match error {
                    JournalError::DiskFull => {
                        "nothing was sent; free space on the disk: the server then goes on by itself"
                    }
                    JournalError::Failed(_) => {
                        "nothing was sent; repair the journal, then restart the server"
                    }
                };
                return self.fail(failure(Code::Internal, error.to_string(), remedy), now, effects);
            }
        };
        let mids = self.baseline.as_ref().map(|baseline| baseline.arrival_mids.clone()).unwrap_or_default();
        let mut out = Vec::with_capacity(intents.len());
        for intent in intents {
            let mid = mids.get(&intent.order.account).copied();
            let order = &intent.order;
            let rest_for =
                self.spec.options.pacing.rest_for.filter(|_| order.time_in_force == TimeInForce::PostOnly);
            let how = match rest_for {
                Some(rest) => format!("to rest for {} ms", rest.as_millis()),
                None => "or better".to_owned(),
            };
            let text = format!(
                "order {} durable, sent: {} {} {} at {} {how}",
                intent.client_order_id, order.account, order.side, order.quantity, order.limit_price
            );
            self.note(now, text);
            let id = self.track(intent, mid, now);
            if let (Some(rest), Some(order)) = (rest_for, self.orders.get_mut(&id)) {
                // One rest for all orders of a part, which ends early enough for what takes after it.
                let until = now.after(rest).min(self.ends_at.before(TAKES_WITHIN)).max(now);
                order.cancel_at = Some(*self.rests_until.get_or_insert(until));
            }
            out.push(id);
        }
        self.phase = Phase::Watching;
        let shrinking = std::mem::replace(&mut self.shrink, Shrink::Idle) == Shrink::Reserving;
        if let Some(running) = &mut self.running {
            if shrinking {
                running.is_stale = true;
            } else {
                running.out.clone_from(&out);
            }
        }
        let frozen = self.orders.values().any(|order| order.resolution == Resolution::Frozen);
        if (self.is_over(now) && !self.unwinding) || frozen {
            // The journal took longer than the operation had: nothing is sent on an old decision.
            for id in &out {
                let text = "prices or positions changed while the journal was written".to_owned();
                let refusal = Refusal::kept_back(text);
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
        if self.is_halted {
            return self.finish(now, effects);
        }
        let whole = !running.is_stale
            && running.out.iter().all(|id| self.orders.get(id).is_some_and(TrackedOrder::is_filled_whole));
        for id in &running.out {
            let Some(order) = self.orders.get(id) else { continue };
            let Some(refusal) = order.refusal.as_ref().filter(|_| !order.was_to_rest()) else { continue };
            // The same order would be refused again; what may pass on its own may be tried again.
            let passing = matches!(
                refusal.reason,
                RefusalReason::RateLimited
                    | RefusalReason::Withheld(_)
                    | RefusalReason::Overloaded
                    | RefusalReason::Clock
                    | RefusalReason::NotSent
                    | RefusalReason::ProxyFailed
            );
            if !passing || self.idle_rounds > 0 {
                self.excluded.insert(order.intent.order.account.clone());
            }
        }
        let is_last = whole && running.slice + 1 >= running.plan.slices.len() && !self.has_more_clips();
        let is_reached = is_last && running.plan.obstacles.is_empty() && !self.spec.goal.is_two_sided();
        if self.is_over(now) && !self.unwinding && !is_reached {
            if self.unwind_instead(now, effects) {
                return;
            }
            return self.time_out(now, effects);
        }
        if whole && running.slice + 1 < running.plan.slices.len() {
            running.slice += 1;
            running.out.clear();
            self.running = Some(running);
            return self.reserve_slice(now, effects);
        }
        // Two sides are looked at once more: what closes again what was opened is no success.
        if whole && running.plan.obstacles.is_empty() && self.has_more_clips() {
            return self.next_clip(now, effects);
        }
        if is_reached {
            self.ending = Some(Ending::Reached);
            self.reason = Some(format!("all that was planned is traded: net delta is {}", self.net));
            return self.finish(now, effects);
        }
        if std::mem::take(&mut self.rests_first) {
            self.note(now, "the unfilled rest of the resting order takes now");
            self.phase = Phase::Reading;
            return self.read(ROUND_PAUSE, effects);
        }
        let idle = self.turnover() == running.turnover_before;
        self.idle_rounds = if idle { self.idle_rounds + 1 } else { 0 };
        if self.idle_rounds >= MAX_IDLE_ROUNDS || self.rounds >= MAX_ROUNDS {
            if self.unwind_instead(now, effects) {
                return;
            }
            self.ending = Some(Ending::BeyondCap);
            self.reason = Some(format!("no progress after {} rounds", self.rounds));
            return self.finish(now, effects);
        }
        let whole = whole && running.plan.obstacles.is_empty();
        self.note(
            now,
            if whole { "slice filled: checking both legs" } else { "partly filled: planning the rest again" },
        );
        self.phase = Phase::Reading;
        self.read(ROUND_PAUSE, effects);
    }
}
