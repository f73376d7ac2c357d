//! Trades of orders whose operation ended without them: the exchange told of them too late.
//!
//! Proof of absence and the end of an order rest on what an exchange tells. Where it tells something else afterwards, the
//! operation is corrected, its symbol only reduces until a person looked, and what was traded counts from then on.

use deltaplane_ports::{Correction, OperationReport, OperationState, Record, ScopedTrading, TradingOrder};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Delta, Evidence, Fill, OrderState, OrderStatus, Symbol,
    Timestamp, TradingScope, TradingState,
};

use crate::accounts::AccountMonitor;
use crate::alerts::Condition;
use crate::runner::Shared;

/// Corrects the report of an operation that ended by a trade that it did not know, with which the position is `position`;
/// none where the trade is not of one of its orders, or is in what that order traded.
fn corrected(
    report: &mut OperationReport,
    fill: &Fill,
    position: Delta,
    (as_of, now): (Timestamp, Timestamp),
) -> Option<Correction> {
    if matches!(report.state, OperationState::Running | OperationState::Frozen) {
        // It will hear of the trade itself.
        return None;
    }
    let name = fill.client_order_id.as_ref()?;
    let order = report.orders.iter_mut().find(|order| order.client_order_id == *name)?;
    // A sum that no trade tells has this one in it.
    if order.trades.contains(&fill.trade_id) || !order.untold.is_zero() {
        return None;
    }
    let filled = order.filled.plus(fill.quantity).ok().filter(|filled| *filled <= order.quantity)?;
    let correction = Correction {
        operation: report.id.clone(),
        client_order_id: name.clone(),
        account: fill.account.clone(),
        symbol: fill.symbol.clone(),
        was: (order.state, order.filled),
        now: (if filled == order.quantity { OrderState::Filled } else { OrderState::Expired }, filled),
        change: fill.quantity.signed(fill.side),
        position,
        as_of,
        trade: fill.trade_id.clone(),
        traded_at: fill.venue_time,
        at: now,
    };
    (order.state, order.filled) = correction.now;
    order.trades.push(fill.trade_id.clone());
    order.evidence = Some(Evidence::LateTrade.kind().to_owned());
    order.venue_order_id.get_or_insert_with(|| fill.venue_order_id.to_string());
    report.corrections.push(correction.clone());
    Some(correction)
}

fn condition(correction: &Correction) -> Condition {
    let Correction { operation, client_order_id, account, symbol, was, now, .. } = correction;
    Condition {
        kind: AlertKind::Execution,
        topic: AlertTopic::OrderReopened,
        severity: AlertSeverity::Critical,
        account: Some(account.clone()),
        symbol: Some(symbol.clone()),
        message: format!(
            "order {client_order_id} of operation {operation} ended as {} with {} traded, and {account} shows a later trade: {} traded in all. {symbol} is REDUCE_ONLY. Check the position, then PUT /api/v1/trading-state RUNNING for {symbol}.",
            was.0, was.1, now.1
        ),
    }
}

/// Takes trades of orders of ours into operations that ended, as far as they explain that a position is `found` and not
/// `expected`; gives what they explain.
pub(crate) async fn reopen(
    shared: &Shared,
    (monitor, symbol): (&AccountMonitor, &Symbol),
    (expected, found): (Delta, Delta),
    as_of: Timestamp,
    ours: Vec<Fill>,
) -> Delta {
    let now = shared.reader.clock.now();
    let (mut explained, mut records, mut newest) = (Delta::ZERO, Vec::new(), None);
    for fill in ours {
        let change = fill.quantity.signed(fill.side);
        let left = found.minus(expected).and_then(|moved| moved.minus(explained)).unwrap_or_default();
        if change.side() != left.side() || change.abs() > left.abs() {
            continue;
        }
        let Ok(sum) = explained.plus(change) else { continue };
        let Ok(position) = expected.plus(sum) else { continue };
        let correct = |report: &mut OperationReport| corrected(report, &fill, position, (as_of, now));
        let Some(correction) = shared.reports.correct(&fill, correct) else { continue };
        explained = sum;
        monitor.explain(symbol, [fill.trade_id.clone()]);
        records.extend(shared.alerts.happened(condition(&correction), now));
        records.extend(records_of(&correction, fill));
        newest = Some(correction);
    }
    if let Some(correction) = newest {
        // Before the first await: the caller may end meanwhile.
        shared.ledger.add(&monitor.id, symbol, explained);
        restrict(shared, &monitor.id, &correction, records).await;
    }
    explained
}

/// What the journal keeps of a correction.
fn records_of(correction: &Correction, fill: Fill) -> [Record; 3] {
    let (client_order_id, filled) = (correction.client_order_id.clone(), correction.now.1);
    let status =
        if correction.now.0 == OrderState::Filled { OrderStatus::Filled } else { OrderStatus::Expired };
    let outcome = deltaplane_ports::OutcomeRecord::Ended { status, filled, evidence: Evidence::LateTrade };
    [
        Record::Corrected(correction.clone()),
        Record::Fill { client_order_id: client_order_id.clone(), fill },
        Record::Outcome { client_order_id, outcome, at: correction.at },
    ]
}

/// The symbol only reduces until a person looked.
async fn restrict(shared: &Shared, account: &AccountId, correction: &Correction, records: Vec<Record>) {
    let Correction { client_order_id, operation, symbol, at, .. } = correction;
    tracing::error!(%account, order = %client_order_id, %operation, %symbol, "an order that had ended traded");
    let reason = format!("order {client_order_id} of operation {operation} traded after its end");
    let change = |order: &mut TradingOrder| {
        let scoped = order.scoped.entry(TradingScope::Symbol(symbol.clone())).or_insert_with(|| {
            ScopedTrading { state: TradingState::ReduceOnly, reason: reason.clone(), at: *at }
        });
        scoped.state = scoped.state.max(TradingState::ReduceOnly);
    };
    // It holds in any case; a failure stops all sending by itself.
    let _ = shared.reader.trading.change(&shared.execution.recorder, change, records).await;
}
