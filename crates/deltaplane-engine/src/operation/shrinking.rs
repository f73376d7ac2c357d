//! While orders are unresolved: nothing goes out for a while, then other accounts make the worst case smaller.
//!
//! A unresolved quantity is never hedged as if it were certain. What is traded elsewhere is computed from all that
//! the net delta can be, and only if the largest possible distance from the target strictly falls.

use deltaplane_ports::Failure;
use deltaplane_types::{AlertKind, AlertSeverity, AlertTopic, Timestamp};

use super::{Effect, Operation, Phase, Shrink};
use crate::alerts::Condition;
use crate::control::{self, Round};
use crate::orders::{Resolution, TrackedOrder};
use crate::snapshot::Snapshot;
use crate::unresolved_orders::UnresolvedOrder;

/// An order that is unresolved for longer than this past the moment at which its absence could be proven raises an alert.
const TOLD_AFTER: std::time::Duration = std::time::Duration::from_secs(10);

impl Operation {
    fn unresolved_orders(&self) -> impl Iterator<Item = &TrackedOrder> {
        // What rests as it was meant to is no unresolved order.
        self.orders.values().filter(|order| !order.unresolved().is_zero() && !order.is_resting())
    }

    /// When the worst case should be made smaller elsewhere; none where that is not the time for it.
    pub(super) fn shrink_at(&self) -> Option<Timestamp> {
        let idle = self.phase == Phase::Watching && self.shrink == Shrink::Idle;
        if !idle || !self.config.shrink_while_unresolved || self.answered || self.is_halted {
            return None;
        }
        // An order that just went out is no unresolved order yet: all that is open must be old.
        let newest = self.unresolved_orders().map(TrackedOrder::open_since).max()?;
        (self.shrunk_from != self.interval()).then(|| newest.after(self.config.unresolved_hold))
    }

    pub(super) fn on_shrink_read(
        &mut self,
        result: Result<Snapshot, Box<Failure>>,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        self.shrink = Shrink::Idle;
        // Thought of once for each state of the unresolved order, whatever comes of it.
        self.shrunk_from = self.interval();
        let (Ok(snapshot), Some(interval), Some(baseline)) = (result, self.interval(), &self.baseline) else {
            return;
        };
        let mut excluded = self.excluded.clone();
        let open = self.orders.values().filter(|order| !order.is_settled());
        excluded.extend(open.map(|order| order.intent.order.account.clone()));
        // A venue that shows another position than we know is late, or there is external activity.
        excluded.extend(snapshot.accounts.iter().filter_map(|(id, facts)| {
            let known = self.expected_position(id)?;
            (known != facts.account.position(&self.spec.symbol)).then(|| id.clone())
        }));
        let traded_by = self.traded_by_account();
        let round = Round {
            spec: &self.spec,
            snapshot: &snapshot,
            baseline: Some(baseline),
            traded: self.traded(),
            traded_by: &traded_by,
            unwinding: false,
            clip: self.clip,
            excluded: &excluded,
            config: &self.config,
        };
        let Some(approved) = control::decide_shrink(&round, baseline, &interval) else { return };
        let plan = approved.plan().clone();
        self.note(
            now,
            format!(
                "an order is unresolved: net delta is between {} and {}; trading {} elsewhere makes the worst case smaller",
                interval.low, interval.high, plan.reached
            ),
        );
        self.record_plan(&plan, now);
        self.shrink = Shrink::Reserving;
        self.reserve(&plan, 0, now, effects);
    }

    /// What this operation does not know, for the others.
    pub(crate) fn unresolved(&self) -> Option<UnresolvedOrder> {
        let unknown = self
            .unresolved_orders()
            .filter(|order| matches!(order.resolution, Resolution::Unknown | Resolution::Frozen));
        let (mut since, mut buys, mut sells) =
            (None, deltaplane_types::Delta::ZERO, deltaplane_types::Delta::ZERO);
        for order in unknown {
            since = since.max(Some(order.open_since()));
            let open = order.unresolved().signed(order.intent.order.side);
            if open.is_negative() {
                sells = sells.plus(open.abs()).unwrap_or(sells);
            } else {
                buys = buys.plus(open).unwrap_or(buys);
            }
        }
        since.map(|since| UnresolvedOrder { since, buys, sells })
    }

    /// Tells people of an unresolved order that lasts, and that it is over.
    pub(super) fn tell_unresolved(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        let slack = |order: &TrackedOrder| {
            self.rules.get(&order.intent.order.account).map(|rules| rules.proof_slack).unwrap_or_default()
        };
        let long = self.unresolved_orders().find(|order| {
            let due = order.intent.order.deadline.max(order.open_since());
            now >= due.after(slack(order)).after(TOLD_AFTER)
        });
        match long {
            Some(order) if !self.raised.contains(&AlertTopic::OrderUnresolved) => {
                let condition = Condition {
                    kind: AlertKind::Execution,
                    topic: AlertTopic::OrderUnresolved,
                    severity: AlertSeverity::Critical,
                    account: Some(order.intent.order.account.clone()),
                    symbol: Some(self.spec.symbol.clone()),
                    message: format!(
                        "order {} of operation {} has an unknown outcome. It is looked up again and again. Check the exchange; if it never existed there, POST /api/v1/operations/{}/resolve.",
                        order.intent.client_order_id, self.id, self.id
                    ),
                };
                self.raised.insert(AlertTopic::OrderUnresolved);
                effects.push(Effect::Raise(condition));
            }
            Some(_) => {}
            None => {
                if self.raised.remove(&AlertTopic::OrderUnresolved) {
                    effects.push(Effect::Resolve(AlertTopic::OrderUnresolved));
                }
            }
        }
    }
}
