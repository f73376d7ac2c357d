//! How an operation ends, and what it says of that.

use std::collections::BTreeSet;
use std::time::Duration;

use deltaplane_ports::{Failure, OperationKind, OperationState, Record};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, ClientOrderId, Code, Delta, RefusalReason, Timestamp,
};

use super::rounds::ASK_AGAIN;
use super::{Effect, Operation, Phase};
use crate::alerts::Condition;
use crate::control::{Ending, Goal};
use crate::orders::{Resolution, TrackedOrder};
use crate::report::failure;

/// Alerts on orders that end when all orders are settled.
const TOPICS: [AlertTopic; 2] = [AlertTopic::FrozenOrder, AlertTopic::OrderUnresolved];

/// What is said of an operation that the end of the process cut off.
pub(crate) fn interrupted() -> Box<Failure> {
    failure(
        Code::Timeout,
        "the process ended while the operation was at work; its orders were settled afterwards",
        "look at its orders, then send a new request with a new Idempotency-Key for what is left",
    )
}

impl Operation {
    pub(super) fn time_out(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let took = now.since(self.started_at).as_millis();
        let unresolved: Vec<String> = self
            .orders
            .iter()
            .filter(|(_, order)| !order.is_settled())
            .map(|(id, _)| id.to_string())
            .collect();
        let text = if unresolved.is_empty() {
            format!("the timeout passed after {took} ms")
        } else {
            format!("the timeout passed after {took} ms with {} unresolved orders", unresolved.len())
        };
        let remedy = format!("do not repeat the request; look up GET /api/v1/operations/{}", self.id);
        let mut failed = match self.preempted_by {
            Some(by) if now < self.ends_at => {
                self.stopped_by = Some(by);
                let text = format!("stopped after {took} ms: preempted by {}", by.cause());
                let remedy = format!(
                    "look up GET /api/v1/operations/{} when that is done, and request the rest again",
                    self.id
                );
                let mut failed = failure(Code::Conflict, text, remedy);
                failed.details.insert("preemptedBy".to_owned(), vec![by.to_string()]);
                failed
            }
            _ => {
                self.note(now, "the timeout passed");
                failure(Code::Timeout, text, remedy)
            }
        };
        if !unresolved.is_empty() {
            failed.details.insert("unresolvedOrders".to_owned(), unresolved.clone());
        }
        self.failure = Some(failed);
        if unresolved.is_empty() && self.phase != Phase::Reserving && !self.unwinding {
            return self.finish(now, effects);
        }
        self.answered = true;
        effects.push(Effect::Answer);
    }

    /// What is left can only be decided by a person: answers, and waits with its position locks closed.
    pub(super) fn halt(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.is_halted, true) {
            return;
        }
        let frozen: Vec<(&ClientOrderId, &AccountId)> = self
            .orders
            .iter()
            .filter(|(_, order)| order.resolution == Resolution::Frozen)
            .map(|(id, order)| (id, &order.intent.order.account))
            .collect();
        let names: Vec<String> = frozen.iter().map(|(id, _)| id.to_string()).collect();
        let account = frozen.first().map(|(_, account)| (*account).clone());
        let text = format!("the final state of {} orders cannot be shown: {}", names.len(), names.join(", "));
        let remedy = format!(
            "look for the orders at the exchange, then POST /api/v1/operations/{}/resolve; until then their accounts stay closed for this symbol",
            self.id
        );
        effects.push(Effect::Raise(Condition {
            kind: AlertKind::Execution,
            topic: AlertTopic::FrozenOrder,
            severity: AlertSeverity::Critical,
            account,
            symbol: Some(self.spec.symbol.clone()),
            message: format!("{text}; {remedy}"),
        }));
        self.raised.insert(AlertTopic::FrozenOrder);
        let mut failed = failure(Code::Timeout, text.clone(), remedy);
        failed.details.insert("unresolvedOrders".to_owned(), names);
        self.failure = Some(failed);
        self.stopped_by = None;
        self.state = OperationState::Frozen;
        self.note(now, text);
        if !self.answered {
            self.answered = true;
            effects.push(Effect::Answer);
        }
    }

    pub(super) fn fail(&mut self, failed: Box<Failure>, now: Timestamp, effects: &mut Vec<Effect>) {
        self.note(now, failed.error.clone());
        // What came first says why it ends.
        self.failure.get_or_insert(failed);
        self.finish(now, effects);
    }

    /// How far net delta is from the target of a two-sided operation, where that is further than when it began; none
    /// where that is no more than dust.
    fn unmatched(&self) -> Option<Delta> {
        let (away, before, price) = match (&self.baseline, self.began_at) {
            (Some(baseline), _) if self.spec.goal.is_two_sided() => {
                let distance = |net: Delta| net.minus(baseline.target).ok();
                (distance(self.net)?, distance(baseline.net)?, baseline.price)
            }
            (None, Some(before)) => {
                let price = self.orders.values().map(|order| order.intent.order.limit_price).max()?;
                (before.plus(self.traded()).ok()?, before, price)
            }
            _ => return None,
        };
        let worth = away.abs().notional_at(price).ok()?;
        // What went past the target is unhedged too, however far it was before.
        let past = !before.is_zero() && away.side() != before.side();
        ((away.abs() > before.abs() || past) && worth > self.config.dust_limit).then_some(away)
    }

    /// Whether every account that holds the symbol is in, and net delta is at its target but for dust.
    fn is_whole_book_on_target(&self) -> bool {
        let (Some(baseline), Goal::Delta { subset: false, .. } | Goal::Flatten) =
            (&self.baseline, &self.spec.goal)
        else {
            return false;
        };
        let away = self.net.minus(baseline.target).map(Delta::abs);
        let worth = away.and_then(|away| away.notional_at(baseline.price));
        baseline.net_all.is_none() && worth.is_ok_and(|worth| worth <= self.config.dust_limit)
    }

    /// A leg is unhedged and cannot be closed again: raises an alert at once.
    fn tell_unmatched(&self, effects: &mut Vec<Effect>) {
        let Some(unmatched) = self.unmatched() else { return };
        effects.push(Effect::Raise(Condition {
            kind: AlertKind::Execution,
            topic: AlertTopic::LegUnhedged,
            severity: AlertSeverity::Critical,
            account: None,
            symbol: Some(self.spec.symbol.clone()),
            message: format!(
                "{}: operation {} traded one leg and the other one could not follow. Net delta is {unmatched} away from its target. Hedge with POST /api/v1/delta/control: every account that holds the symbol, tolerancePercent 0.",
                self.spec.symbol, self.id
            ),
        }));
    }

    /// Raises an alert on a flatten that left positions, or a hedge that the price left incomplete.
    fn tell_what_is_left(&self, traded: bool, effects: &mut Vec<Effect>) {
        let topic = match self.spec.goal {
            Goal::Flatten => AlertTopic::FlattenIncomplete,
            Goal::Delta { .. } | Goal::Hedge { .. } => AlertTopic::PriceBeyondCap,
            Goal::Shift { .. } | Goal::Utilization(_) | Goal::Settle => return,
        };
        let Some(failed) = &self.failure else {
            effects.push(Effect::Resolve(topic));
            if topic == AlertTopic::FlattenIncomplete {
                effects.push(Effect::Resolve(AlertTopic::PriceBeyondCap));
            }
            return;
        };
        let beyond_cap = self.ending == Some(Ending::BeyondCap);
        let (severity, message) = match topic {
            AlertTopic::FlattenIncomplete => (
                AlertSeverity::Warn,
                format!(
                    "flatten {} left positions open: {}. Next: {}.",
                    self.id, failed.error, failed.solution
                ),
            ),
            _ if self.market_beyond_caps().is_some() && failed.code == Code::DeltaBeyondLimit => (
                AlertSeverity::Critical,
                format!(
                    "hedge {} is incomplete because the price moved beyond its caps: {}. Next: {}.",
                    self.id, failed.error, failed.solution
                ),
            ),
            _ if traded && beyond_cap && failed.code == Code::DeltaBeyondLimit => (
                AlertSeverity::Critical,
                format!(
                    "hedge {} is incomplete: the order books have no more within its price caps: {}. Request it again, or raise maxSlippage.",
                    self.id, failed.error
                ),
            ),
            _ => return,
        };
        let symbol = Some(self.spec.symbol.clone());
        let kind = AlertKind::Execution;
        effects.push(Effect::Raise(Condition { kind, topic, severity, account: None, symbol, message }));
    }

    /// Judges what was done against what was asked, and ends.
    pub(super) fn finish(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if self.failure.is_none() {
            self.failure = self.judge();
        }
        if self.failure.is_none() && self.kind == OperationKind::Recovery {
            self.failure = Some(interrupted());
        }
        if self.failure.is_none() && self.is_whole_book_on_target() {
            // Whatever stood alone does so no more.
            effects.push(Effect::Resolve(AlertTopic::LegUnhedged));
            effects.push(Effect::Resolve(AlertTopic::LossResponse));
        }
        self.tell_unmatched(effects);
        let traded = self.orders.values().any(|order| !order.filled().is_zero());
        self.tell_what_is_left(traded, effects);
        self.state = match (&self.failure, traded) {
            _ if self.kind == OperationKind::Recovery => OperationState::Interrupted,
            (None, _) => OperationState::Succeeded,
            (Some(_), true) => OperationState::Partial,
            (Some(_), false) => OperationState::Failed,
        };
        self.close(now, self.state, effects);
    }

    pub(super) fn close(&mut self, now: Timestamp, state: OperationState, effects: &mut Vec<Effect>) {
        if self.kind == OperationKind::Recovery {
            // What the run before told people of these orders is over too.
            self.raised.extend(TOPICS);
        }
        for topic in std::mem::take(&mut self.raised) {
            effects.push(Effect::Resolve(topic));
        }
        self.phase = Phase::Finished;
        self.ended_at = Some(now);
        self.running = None;
        let summary = match (&self.failure, &self.reason) {
            (Some(failed), _) => failed.error.clone(),
            (None, Some(reason)) => reason.clone(),
            (None, None) => String::new(),
        };
        let code = self.failure.as_ref().map(|failed| failed.code);
        let number = code.map(|code| format!("{}: ", code.number())).unwrap_or_default();
        self.note(now, format!("{state}: {number}{summary}"));
        self.pending.push(Record::OperationClosed {
            operation: self.id.clone(),
            state,
            code,
            preempted_by: self.stopped_by,
            summary,
            positions: self.known_positions(),
            read_at: self.read_at,
            at: now,
        });
        effects.push(Effect::Finish(std::mem::take(&mut self.pending)));
    }

    /// Whether the end is what was asked for: a refused leg comes before a deviation.
    pub(super) fn judge(&self) -> Option<Box<Failure>> {
        let baseline = self.baseline.as_ref()?;
        let missed = match &self.spec.goal {
            Goal::Settle => return None,
            Goal::Delta { target, max_deviation, .. } => {
                let ratio = deltaplane_math::deviation_ratio(self.net, *target, baseline.reference).ok()?;
                let left = self.net.minus(*target).ok()?.abs();
                let dust = left.notional_at(baseline.price).ok()? <= self.config.dust_limit;
                if ratio <= *max_deviation || (dust && self.ending == Some(Ending::Dust)) {
                    return None;
                }
                let shown = ratio.value().round_dp(6).normalize();
                format!(
                    "net delta ended {left} from the target, a ratio of {shown}, beyond maxDeviation {max_deviation}"
                )
            }
            Goal::Hedge { .. } => {
                let wanted = baseline.target.minus(baseline.net).ok()?;
                let left = wanted.minus(self.traded()).ok()?.abs();
                if left.is_zero() || matches!(self.ending, Some(Ending::Reached | Ending::Dust)) {
                    return None;
                }
                format!("{left} of {} was not hedged", wanted.abs())
            }
            Goal::Flatten | Goal::Shift { .. } | Goal::Utilization(_) => {
                if matches!(self.ending, Some(Ending::Reached | Ending::Dust)) {
                    return None;
                }
                let left: Vec<String> = self
                    .changes_left
                    .iter()
                    .map(|(id, change)| format!("{} of {id}", change.abs()))
                    .collect();
                let what = if self.kind == OperationKind::Flatten { "closed" } else { "moved" };
                let alone = self
                    .unmatched()
                    .map(|unmatched| format!("; {unmatched} has no counterpart any more"))
                    .unwrap_or_default();
                format!("not {what}: {}{alone}", left.join(", "))
            }
        };
        // That an order may not rest is no reason: what takes comes after it.
        let taking: Vec<&TrackedOrder> = self.orders.values().filter(|order| !order.was_to_rest()).collect();
        let refused: Vec<String> = taking
            .iter()
            .filter_map(|order| Some(format!("{}: {}", order.intent.order.account, order.refusal.as_ref()?)))
            .collect();
        if refused.is_empty() {
            let why = self.reason.clone().unwrap_or_default();
            let text = if why.is_empty() { missed } else { format!("{missed} ({why})") };
            let usual = "raise maxSlippage, name more accounts, or try again later";
            return Some(failure(
                Code::DeltaBeyondLimit,
                text,
                if self.market_beyond_caps().is_some() { ASK_AGAIN } else { usual },
            ));
        }
        let text = format!("{missed}; refused legs: {}", refused.join("; "));
        let reasons =
            || taking.iter().filter_map(|order| order.refusal.as_ref()).map(|refusal| refusal.reason);
        // Where only a budget is spent, it is known when there is room again.
        let waits = reasons().map(|reason| match reason {
            RefusalReason::Withheld(wait) => Some(wait),
            RefusalReason::RateLimited => Some(Duration::from_secs(1)),
            _ => None,
        });
        let retry_after = waits.collect::<Option<Vec<_>>>().and_then(|waits| waits.into_iter().max());
        // A client that comes again by itself after a 429 must not trade twice.
        let untouched = self.turnover().is_zero();
        let mut failed = if untouched && retry_after.is_some() {
            let remedy = "wait until the venue takes orders again, or name accounts that use another proxy or exchange";
            failure(Code::TooManyRequests, text, remedy)
        } else if untouched && reasons().all(|reason| reason == RefusalReason::ProxyFailed) {
            failure(
                Code::ProxyFailed,
                text,
                "check the accounts' proxies, or name accounts that use another proxy or exchange",
            )
        } else {
            let told: BTreeSet<&str> =
                taking.iter().filter_map(|order| order.refusal.as_ref()?.remedy).collect();
            let told = told.into_iter().collect::<Vec<_>>().join("; ");
            let general = "check margin and permissions of the accounts that refused";
            failure(Code::HedgeFailed, text, if told.is_empty() { general } else { &told })
        };
        failed.retry_after = retry_after;
        failed.details.insert("refusedLegs".to_owned(), refused);
        Some(failed)
    }
}
