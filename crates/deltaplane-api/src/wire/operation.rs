//! Operations: the answers to `delta/control` and `hedge/execute`, and what `operations` shows.

use std::collections::BTreeMap;

use deltaplane_ports::{
    Correction, LastKnown, OperationKind, OperationReport, OrderReport, RebalanceLine, RebalanceView,
};
use deltaplane_types::{
    AlternativeKind, Decimal, Delta, Evidence, Leg, Notional, OrderState, Plan, Price, Quantity, Ratio,
};

use super::json::{JsonObject, Number};

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// All that a net delta can be.
pub(crate) fn interval((low, high): (Delta, Delta)) -> JsonObject {
    let mut json = JsonObject::default();
    json.number("low", low.value());
    json.number("high", high.value());
    json
}

/// Orders that changed a position, in the form of `OrderExecution`.
fn executed(report: &OperationReport) -> Vec<JsonObject> {
    report.orders.iter().filter(|order| !order.filled.is_zero()).map(execution).collect()
}

fn execution(order: &OrderReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("orderId", order.venue_order_id.as_deref().unwrap_or(""));
    json.put("accountId", order.account.as_str());
    json.put("symbol", order.symbol.as_str());
    json.number("amount", order.filled.value());
    json.put("side", &order.side.to_string());
    json.number_if("executedPrice", order.average_price.map(Price::value));
    json.number_or_null("fees", order.fees.map(Notional::value));
    json.put("timestamp", &order.at.as_millis());
    json.put("clientOrderId", order.client_order_id.as_str());
    json
}

/// What an order traded after its operation ended.
fn correction(correction: &Correction) -> JsonObject {
    let end = |(state, filled): &(OrderState, Quantity)| {
        let mut json = JsonObject::default();
        json.put("state", state.as_str());
        json.number("filled", filled.value());
        json
    };
    let mut json = JsonObject::default();
    json.put("clientOrderId", correction.client_order_id.as_str());
    json.put("accountId", correction.account.as_str());
    json.put("was", &end(&correction.was));
    json.put("now", &end(&correction.now));
    json.put("evidence", Evidence::LateTrade.kind());
    json.put("tradeId", correction.trade.as_str());
    json.put("tradedAt", &correction.traded_at.as_millis());
    json.put("timestamp", &correction.at.as_millis());
    json
}

/// What all of an operation's orders changed, signed.
fn net_change(report: &OperationReport) -> Decimal {
    report
        .orders
        .iter()
        .map(|order| order.filled.signed(order.side).value())
        .fold(Decimal::ZERO, |sum, change| sum.checked_add(change).unwrap_or(sum))
}

fn hedge_fields(json: &mut JsonObject, report: &OperationReport) {
    json.put("success", &report.failure.is_none());
    json.put("executedOrders", &executed(report));
    json.number("totalCost", report.total_cost.value());
    json.put("executionTime", &millis(report.execution_time));
    json.number("netDeltaChange", net_change(report));
    json.number_or_null("slippage", report.slippage.map(Ratio::value));
    json.number_or_null("totalFees", report.total_fees.map(Notional::value));
    json.number_or_null("executionCost", report.execution_cost.map(Notional::value));
}

/// `DeltaControlResponse`.
pub(crate) fn delta_control(report: &OperationReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("success", &report.failure.is_none());
    json.put("operationId", report.id.as_str());
    json.put("timestamp", &report.started_at.as_millis());
    json.number_or_null("initialDelta", report.initial_delta.map(Delta::value));
    json.number_or_null("finalDelta", report.final_delta.map(Delta::value));
    json.number_or_null("deltaDeviation", report.deviation.map(Delta::value));
    json.put("accountsProcessed", &names(report));
    json.put("totalAdjustments", &report.orders.iter().filter(|order| !order.filled.is_zero()).count());
    json.put("executionTime", &millis(report.execution_time));
    json.put("adjustmentNeeded", &report.adjustment_needed);
    if !report.dry_run && report.adjustment_needed {
        let mut hedge = JsonObject::default();
        hedge_fields(&mut hedge, report);
        json.put("hedgeResults", &hedge);
    }
    shared_fields(&mut json, report);
    json
}

/// `HedgeExecutionResult`.
pub(crate) fn hedge_execution(report: &OperationReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("operationId", report.id.as_str());
    json.put("timestamp", &report.started_at.as_millis());
    hedge_fields(&mut json, report);
    json.number_or_null("initialDelta", report.initial_delta.map(Delta::value));
    json.number_or_null("finalDelta", report.final_delta.map(Delta::value));
    json.put("accountsProcessed", &names(report));
    shared_fields(&mut json, report);
    json
}

/// `UtilizationRebalanceResponse`.
pub(crate) fn utilization_rebalance(report: &OperationReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("success", &report.failure.is_none());
    json.put("operationId", report.id.as_str());
    json.put("timestamp", &report.started_at.as_millis());
    json.put("accountsProcessed", &names(report));
    json.put("executionTime", &millis(report.execution_time));
    if let Some(view) = &report.rebalance {
        json.number("averageUtilization", view.average.value());
        json.number("targetUtilization", view.target.value());
        json.put("rebalanceNeeded", &view.needed);
        json.put(
            "rebalanceActions",
            &view.accounts.iter().map(|line| action(line, view)).collect::<Vec<_>>(),
        );
        let metrics: Vec<JsonObject> = view.accounts.iter().map(|line| metric(line, view)).collect();
        json.put("utilizationMetrics", &metrics);
        let transfers: Vec<JsonObject> = view
            .transfers
            .iter()
            .map(|transfer| {
                let mut json = JsonObject::default();
                json.put("from", transfer.from.as_str());
                json.put("to", transfer.to.as_str());
                json.number("amount", transfer.amount.value());
                json.put("breakEvenDays", &transfer.break_even_days.map(Number));
                json
            })
            .collect();
        json.put("transferSuggestions", &transfers);
    }
    // Where nothing is to be done that costs nothing; where nothing was read the cost is not known.
    let nothing = report.rebalance.as_ref().map(|_| Decimal::ZERO);
    json.number_or_null("estimatedCost", report.plan.as_ref().map(|plan| plan.cost.value()).or(nothing));
    json.number_or_null("initialDelta", report.initial_delta.map(Delta::value));
    json.number_or_null("finalDelta", report.final_delta.map(Delta::value));
    if !report.dry_run && report.adjustment_needed {
        let mut hedge = JsonObject::default();
        hedge_fields(&mut hedge, report);
        json.put("hedgeResults", &hedge);
    }
    shared_fields(&mut json, report);
    json
}

/// `UtilizationAction`, with what it is expected to lead to.
fn action(line: &RebalanceLine, view: &RebalanceView) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("accountId", line.account.as_str());
    json.put(
        "action",
        match line.change.cmp(&Decimal::ZERO) {
            std::cmp::Ordering::Greater => "increase",
            std::cmp::Ordering::Less => "decrease",
            std::cmp::Ordering::Equal => "maintain",
        },
    );
    json.put("currentUtilization", &line.utilization.map(|ratio| Number(ratio.value())));
    json.number("targetUtilization", view.target.value());
    json.number("adjustmentAmount", line.amount.value());
    json.number("amount", line.trade.value());
    for (name, ratio) in [
        ("utilizationAfter", line.utilization_after),
        ("liquidationDistanceBefore", line.liquidation_distance_before),
        ("liquidationDistanceAfter", line.liquidation_distance_after),
    ] {
        json.put(name, &ratio.map(|ratio| Number(ratio.value())));
    }
    json
}

/// `UtilizationMetric`.
fn metric(line: &RebalanceLine, view: &RebalanceView) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("accountId", line.account.as_str());
    json.put("currentUtilization", &line.utilization.map(|ratio| Number(ratio.value())));
    json.number("targetUtilization", view.target.value());
    json.put("deviationPercent", &line.deviation.map(|ratio| Number(ratio.value())));
    json.put("withinTolerance", &line.within);
    json
}

fn names(report: &OperationReport) -> Vec<String> {
    report.accounts.iter().map(ToString::to_string).collect()
}

fn shared_fields(json: &mut JsonObject, report: &OperationReport) {
    json.put("dryRun", &report.dry_run);
    json.put_if("reason", report.reason.as_ref());
    json.number_if("deviationRatio", report.deviation_ratio.map(Ratio::value));
    json.number_if("referenceExposure", report.reference_exposure.map(Delta::value));
    json.number_or_null("maxTransientDelta", report.max_transient_delta.map(Delta::value));
    if let Some(LastKnown { value, at }) = report.last_known {
        let mut known = JsonObject::default();
        known.number("value", value.value());
        known.put("at", &at.as_millis());
        json.put("lastKnown", &known);
    }
    if !report.fees_by_asset.is_empty() {
        let by_asset = report.fees_by_asset.iter().map(|(asset, paid)| (asset, Number(*paid)));
        json.put("feesByAsset", &by_asset.collect::<BTreeMap<_, _>>());
    }
    json.number_if("worstCaseDelta", report.worst_case.map(Delta::value));
    json.put("netDeltaInterval", &report.interval.map(interval));
    if let Some((exchange, exposure)) = &report.exposed {
        json.put("exposedExchange", exchange.as_str());
        json.number("exposure", exposure.value());
    }
    json.number_if("netDeltaAll", report.net_delta_all.map(Delta::value));
    if !report.corrections.is_empty() {
        json.put("corrections", &report.corrections.iter().map(correction).collect::<Vec<_>>());
    }
    if !report.warnings.is_empty() {
        json.put("warnings", &report.warnings);
    }
    let state_age = report.state_age.filter(|_| report.dry_run);
    json.put_if("stateAge", state_age.map(|age| age.as_millis()).as_ref());
    json.put_if("planId", report.plan_id.as_ref());
    let made = report.plan.as_ref().filter(|_| report.dry_run);
    json.put_if("planHash", made.map(|plan| plan.id.as_str()).as_ref());
    json.put_if("plan", report.plan.as_ref().map(plan).as_ref());
    json.put_if("rememberedPlan", report.remembered_plan.as_ref().map(plan).as_ref());
}

const fn kind(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::DeltaControl => "delta-control",
        OperationKind::Hedge => "hedge",
        OperationKind::Flatten => "flatten",
        OperationKind::Rebalance => "rebalance",
        OperationKind::Recovery => "recovery",
        OperationKind::LossResponse => "loss-response",
        OperationKind::Policy => "policy",
        OperationKind::Deleverage => "deleverage",
    }
}

/// The answer of the request that began an operation, made from its report.
pub(crate) fn answer_of(report: &OperationReport) -> JsonObject {
    match report.kind {
        OperationKind::Hedge => hedge_execution(report),
        OperationKind::Rebalance => utilization_rebalance(report),
        OperationKind::DeltaControl
        | OperationKind::Flatten
        | OperationKind::Recovery
        | OperationKind::LossResponse
        | OperationKind::Policy
        | OperationKind::Deleverage => delta_control(report),
    }
}

/// One line of `GET operations`.
pub(crate) fn summary(report: &OperationReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("operationId", report.id.as_str());
    json.put("kind", kind(report.kind));
    json.put("state", report.state.as_str());
    json.put("requestedBy", &report.requester.to_string());
    json.put("symbol", report.symbol.as_str());
    json.put("accounts", &names(report));
    json.put("timestamp", &report.started_at.as_millis());
    json.put("executionTime", &millis(report.execution_time));
    json.number_or_null("initialDelta", report.initial_delta.map(Delta::value));
    json.number_or_null("finalDelta", report.final_delta.map(Delta::value));
    json.put("orders", &report.orders.len());
    json.put_if("reason", report.reason.as_ref());
    if let Some(failure) = &report.failure {
        json.put("code", &failure.code.number());
        json.put("error", &failure.error);
    }
    json
}

/// `GET operations/{id}`: everything.
pub(crate) fn detail(report: &OperationReport) -> JsonObject {
    let mut json = summary(report);
    json.number_or_null("targetDelta", report.target.map(Delta::value));
    json.number_or_null("deltaDeviation", report.deviation.map(Delta::value));
    json.put("adjustmentNeeded", &report.adjustment_needed);
    json.number("totalCost", report.total_cost.value());
    json.number_or_null("totalFees", report.total_fees.map(Notional::value));
    json.number_or_null("executionCost", report.execution_cost.map(Notional::value));
    json.number_or_null("slippage", report.slippage.map(Ratio::value));
    json.put("orders", &report.orders.iter().map(order).collect::<Vec<_>>());
    shared_fields(&mut json, report);
    if let Some(failure) = &report.failure {
        json.put("solution", &failure.solution);
    }
    let timeline: Vec<JsonObject> = report
        .timeline
        .iter()
        .map(|entry| {
            let mut json = JsonObject::default();
            json.put("timestamp", &entry.at.as_millis());
            json.put("text", &entry.text);
            json
        })
        .collect();
    json.put("timeline", &timeline);
    json
}

fn order(order: &OrderReport) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("clientOrderId", order.client_order_id.as_str());
    json.put_if("orderId", order.venue_order_id.as_ref());
    json.put("accountId", order.account.as_str());
    json.put("symbol", order.symbol.as_str());
    json.put("side", &order.side.to_string());
    json.number("amount", order.quantity.value());
    json.number("limitPrice", order.limit_price.value());
    json.put("state", order.state.as_str());
    json.number("filled", order.filled.value());
    json.number_if("executedPrice", order.average_price.map(Price::value));
    json.number_or_null("fees", order.fees.map(Notional::value));
    json.put_if("evidence", order.evidence.as_ref());
    json.put_if("note", order.note.as_ref());
    json.put("timestamp", &order.at.as_millis());
    json
}

fn plan(plan: &Plan) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("planHash", plan.id.as_str());
    json.put("timestamp", &plan.as_of.as_millis());
    json.number("referencePrice", plan.reference_price.value());
    json.number("targetDelta", plan.target.value());
    json.number("initialDelta", plan.initial.value());
    json.number("needed", plan.needed.value());
    json.number("reached", plan.reached.value());
    json.number("finalDelta", plan.planned_final.value());
    json.number("worstCaseDelta", plan.worst_case_delta.value());
    json.number("cost", plan.cost.value());
    json.put("legs", &plan.legs.iter().map(leg).collect::<Vec<_>>());
    let slices: Vec<Vec<JsonObject>> = plan
        .slices
        .iter()
        .map(|slice| {
            let orders = slice.orders.iter();
            orders
                .map(|order| {
                    let mut json = JsonObject::default();
                    json.put("leg", &order.leg);
                    json.number("amount", order.quantity.value());
                    json
                })
                .collect()
        })
        .collect();
    json.put("slices", &slices);
    let obstacles: Vec<JsonObject> = plan
        .obstacles
        .iter()
        .map(|obstacle| {
            let mut json = JsonObject::default();
            json.put("accountId", obstacle.account.as_str());
            json.put("reason", &obstacle.reason);
            json
        })
        .collect();
    json.put("obstacles", &obstacles);
    let alternatives: Vec<JsonObject> = plan
        .alternatives
        .iter()
        .map(|alternative| {
            let mut json = JsonObject::default();
            json.put("accountId", alternative.account.as_str());
            json.put(
                "kind",
                match alternative.kind {
                    AlternativeKind::Alone => "alone",
                    AlternativeKind::Without => "without",
                },
            );
            json.number("quantity", alternative.quantity.value());
            json.number("cost", alternative.cost.value());
            json.put("reason", &alternative.reason);
            json
        })
        .collect();
    json.put("alternatives", &alternatives);
    json
}

fn leg(leg: &Leg) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("accountId", leg.account.as_str());
    json.put("side", &leg.side.to_string());
    json.number("amount", leg.quantity.value());
    json.number("quoteRate", leg.quote_rate.value());
    json.number("priceCap", leg.price_cap.value());
    json.put("reduceOnly", &leg.reduce_only);
    json.number("expectedPrice", leg.expected_price.value().round_dp(12));
    json.number("arrivalMid", leg.arrival_mid.value());
    let mut cost = JsonObject::default();
    cost.number("total", leg.cost.total().map(deltaplane_types::Notional::value).unwrap_or_default());
    for (name, part) in [
        ("spread", leg.cost.spread),
        ("fee", leg.cost.fee),
        ("funding", leg.cost.funding),
        ("exit", leg.cost.exit),
        ("penalty", leg.cost.penalty),
        ("basis", leg.cost.basis),
    ] {
        cost.number(name, part.value());
    }
    json.put("cost", &cost);
    for (name, ratio) in [
        ("utilizationBefore", leg.utilization_before),
        ("utilizationAfter", leg.utilization_after),
        ("liquidationDistanceBefore", leg.liquidation_distance_before),
        ("liquidationDistanceAfter", leg.liquidation_distance_after),
    ] {
        json.put(name, &ratio.map(|ratio| Number(ratio.value())));
    }
    json.put("why", &leg.why);
    json
}
