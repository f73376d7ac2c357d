//! What an operation knows: exposure, and the report.

use std::collections::BTreeMap;

use deltaplane_math::Interval;
use deltaplane_ports::{Failure, OperationReport, OperationState, USD};
use deltaplane_risk::{PricedFill, execution_quality};
use deltaplane_types::{AccountId, Code, Decimal, Delta, Plan, Quantity, Timestamp};

use super::{Operation, Phase};
use crate::control::{Goal, Remembered};
use crate::orders::TrackedOrder;
use crate::snapshot::Snapshot;

impl Operation {
    /// What all orders traded, signed.
    pub(super) fn traded(&self) -> Delta {
        self.orders
            .values()
            .map(TrackedOrder::traded)
            .fold(Delta::ZERO, |sum, delta| sum.plus(delta).unwrap_or(sum))
    }

    pub(super) fn traded_by(&self, account: &AccountId) -> Delta {
        self.orders
            .values()
            .filter(|order| order.intent.order.account == *account)
            .map(TrackedOrder::traded)
            .fold(Delta::ZERO, |sum, delta| sum.plus(delta).unwrap_or(sum))
    }

    /// What all orders traded, bought and sold together.
    pub(super) fn turnover(&self) -> Quantity {
        let filled = self.orders.values().map(TrackedOrder::filled);
        filled.fold(Quantity::ZERO, |sum, quantity| sum.plus(quantity).unwrap_or(sum))
    }

    pub(super) fn traded_by_account(&self) -> BTreeMap<AccountId, Delta> {
        self.spec.accounts.iter().map(|id| (id.clone(), self.traded_by(id))).collect()
    }

    /// Net delta of the newest snapshot with what our orders traded since.
    pub(super) fn net_now(&self) -> Option<Delta> {
        self.baseline.as_ref()?;
        let (net, traded_then) = self.base;
        net.plus(self.traded().minus(traded_then).ok()?).ok()
    }

    /// All that the net delta of the named accounts can be.
    pub(super) fn interval(&self) -> Option<Interval> {
        let confirmed = self.net_now()?;
        let (mut buys, mut sells) = (Delta::ZERO, Delta::ZERO);
        for order in self.orders.values() {
            let unresolved = order.unresolved().signed(order.intent.order.side);
            if unresolved.is_negative() {
                sells = sells.plus(unresolved.abs()).ok()?;
            } else {
                buys = buys.plus(unresolved).ok()?;
            }
        }
        Interval::around(confirmed, buys, sells).ok()
    }

    pub(super) fn observe_exposure(&mut self) {
        if let (Some(interval), Some(baseline)) = (self.interval(), &self.baseline)
            && let Ok(worst) = interval.worst(baseline.target)
        {
            self.max_transient = self.max_transient.max(worst);
        }
    }

    pub(super) fn has_unresolved(&self) -> bool {
        self.orders.values().any(|order| !order.is_settled())
    }

    /// All that is known now.
    pub fn report(&self, now: Timestamp) -> OperationReport {
        let baseline = self.baseline.as_ref();
        let rate = |account: &AccountId| {
            baseline.and_then(|baseline| baseline.quote_rates.get(account)).copied().unwrap_or(Decimal::ONE)
        };
        let fills: Vec<PricedFill> = self
            .orders
            .values()
            .flat_map(|order| order.priced_fills(rate(&order.intent.order.account)))
            .collect();
        let quality = execution_quality(&fills).ok();
        let are_mids_known = self.orders.values().all(TrackedOrder::has_arrival_mid);
        let slippage = quality.filter(|_| are_mids_known);
        let target = match &self.spec.goal {
            Goal::Delta { target, .. } => Some(*target),
            _ => baseline.map(|baseline| baseline.target),
        };
        let net_now = || self.net_now().unwrap_or(self.net);
        let net = baseline.map(|_| if self.phase == Phase::Finished { self.net } else { net_now() });
        let ratio = baseline.zip(net).zip(target).and_then(|((baseline, net), target)| {
            deltaplane_math::deviation_ratio(net, target, baseline.reference).ok()
        });
        let mut fees_by_asset = BTreeMap::new();
        for order in self.orders.values() {
            let instrument = self.instruments.get(&order.intent.order.account);
            order.add_fees(instrument.map_or(USD, |instrument| &instrument.quote), &mut fees_by_asset);
        }
        let order_report = |id| {
            let order: &TrackedOrder = self.orders.get(id)?;
            order.report(rate(&order.intent.order.account)).ok()
        };
        OperationReport {
            id: self.id.clone(),
            kind: self.served,
            state: self.state,
            symbol: self.spec.symbol.clone(),
            accounts: self.spec.accounts.clone(),
            requester: self.requester.clone(),
            dry_run: false,
            started_at: self.started_at,
            execution_time: self.ended_at.unwrap_or(now).since(self.started_at),
            target,
            initial_delta: baseline.map(|baseline| baseline.net),
            final_delta: net,
            deviation: net.zip(target).and_then(|(net, target)| net.minus(target).ok()).map(Delta::abs),
            last_known: None,
            deviation_ratio: ratio,
            reference_exposure: baseline.map(|baseline| baseline.reference),
            adjustment_needed: self.adjustment_needed,
            reason: self.reason.clone(),
            plan: self.first_plan.as_deref().cloned(),
            plan_id: None,
            remembered_plan: self.refused_plan().cloned(),
            orders: self.order_ids.iter().filter_map(order_report).collect(),
            corrections: Vec::new(),
            slippage: slippage.map(|quality| quality.slippage),
            slippage_cost: slippage.map(|quality| quality.slippage_cost),
            total_cost: quality.unwrap_or_default().total_cost,
            total_fees: quality.and_then(|quality| quality.total_fees),
            fees_by_asset,
            execution_cost: slippage.and_then(|quality| quality.execution_cost),
            max_transient_delta: baseline.map(|_| self.max_transient),
            warnings: baseline.map(|baseline| baseline.warnings.clone()).unwrap_or_default(),
            state_age: baseline.map(|baseline| baseline.state_age),
            net_delta_all: baseline.and_then(|baseline| baseline.net_all),
            worst_case: self.worst_case,
            exposed: self.spec.options.exposed.clone(),
            rebalance: baseline.and_then(|baseline| baseline.rebalance.clone()),
            interval: self.interval().map(|interval| (interval.low, interval.high)),
            failure: self.failure.as_deref().cloned(),
            preempted_by: self.stopped_by,
            timeline: self.timeline.clone(),
        }
    }

    /// The plan that was asked for, where it cannot be carried out any more.
    fn refused_plan(&self) -> Option<&Plan> {
        let is_refused = self.failure.as_ref().is_some_and(|failure| failure.code == Code::PlanChanged);
        self.spec.options.remembered.as_ref().filter(|_| is_refused).map(|remembered| &remembered.plan)
    }

    /// What a rebalance that was planned does not reach, where that is so.
    fn rebalance_is_short(&self) -> Option<String> {
        let view = self.baseline.as_ref()?.rebalance.as_ref()?;
        let obstacles = self.first_plan.iter().flat_map(|plan| &plan.obstacles);
        let mut parts: Vec<String> =
            obstacles.map(|o| format!("{} takes only a part: {}", o.account, o.reason)).collect();
        parts.extend(view.reason.clone());
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// What a dry run answers: the first round's decision, with nothing sent, and what it takes to carry that out later.
    pub fn dry_report(
        mut self,
        result: Result<Snapshot, Box<Failure>>,
        now: Timestamp,
    ) -> (OperationReport, Option<Remembered>) {
        let mut effects = Vec::new();
        self.on_read(result, now, &mut effects);
        if self.phase == Phase::Reserving {
            self.net = self.first_plan.as_ref().map_or(self.net, |plan| plan.planned_final);
            let beside = self.rebalance_is_short().map(|what| format!("; {what}")).unwrap_or_default();
            self.reason = Some(format!("dry run: nothing was sent{beside}"));
            self.state = OperationState::Succeeded;
            self.ended_at = Some(now);
            self.phase = Phase::Finished;
        }
        let mut report = self.report(now);
        report.dry_run = true;
        let plan = report.plan.clone().filter(|plan| report.failure.is_none() && !plan.legs.is_empty());
        let remembered = plan.map(|plan| Remembered {
            plan,
            positions: self.positions.iter().map(|(id, (position, _))| (id.clone(), *position)).collect(),
            changes: self.baseline.map(|baseline| baseline.changes).unwrap_or_default(),
        });
        (report, remembered)
    }
}
