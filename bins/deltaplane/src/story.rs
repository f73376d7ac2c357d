//! Records in words.

use std::collections::BTreeMap;

use deltaplane_ports::{AlertChange, OutcomeRecord, Record, StoredRecord};
use deltaplane_types::{AccountId, ClientOrderId, Fee, OperationId, Timestamp};

fn time(at: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(at.as_millis()) {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => at.to_string(),
    }
}

fn outcome_text(outcome: &OutcomeRecord) -> String {
    match outcome {
        OutcomeRecord::Accepted { evidence } => format!("the venue has it (shown by {})", evidence.kind()),
        OutcomeRecord::Ended { status, filled, evidence } => {
            let status = format!("{status:?}").to_lowercase();
            format!("ended {status} with {filled} traded (proven by {})", evidence.kind())
        }
        OutcomeRecord::NotAccepted { evidence, reason } => {
            format!("never placed (proven by {}): {reason}", evidence.kind())
        }
        OutcomeRecord::Unknown { cause } => format!("unresolved: {cause}"),
    }
}

fn fee(fee: &Fee) -> String {
    match &fee.asset {
        Some(asset) => format!("{} {asset}", fee.amount),
        None => fee.amount.to_string(),
    }
}

/// One record in one line.
pub fn line(stored: &StoredRecord) -> String {
    let text = match &stored.record {
        Record::RunStarted { epoch, at, .. } => format!("{} run {epoch} began", time(*at)),
        Record::OperationAccepted { operation, symbol, accounts, at, .. } => {
            let accounts: Vec<String> = accounts.iter().map(ToString::to_string).collect();
            format!("{} {operation} began: {symbol} on {}", time(*at), accounts.join(", "))
        }
        Record::Planned { operation, text, net, target, worst, at, .. } => format!(
            "{} {operation} planned from net delta {net} to {target}, at worst {worst} away: {text}",
            time(*at)
        ),
        Record::Intent(intent) => {
            let order = &intent.order;
            format!(
                "{:23} {} order {} (number {}, run {}): {} {} {} {} at {} or better{}, not after {}",
                "",
                intent.operation,
                intent.client_order_id,
                intent.sequence,
                intent.epoch,
                order.account,
                order.side,
                order.quantity,
                order.symbol,
                order.limit_price,
                if order.reduce_only { ", only to reduce" } else { "" },
                time(order.deadline)
            )
        }
        Record::Outcome { client_order_id, outcome, at } => {
            format!("{} order {client_order_id} {}", time(*at), outcome_text(outcome))
        }
        Record::Fill { client_order_id, fill } => format!(
            "{} order {client_order_id} traded {} at {} for a fee of {} (trade {})",
            time(fill.venue_time),
            fill.quantity,
            fill.price,
            fee(&fill.fee),
            fill.trade_id
        ),
        Record::OperationClosed { operation, state, code, summary, at, .. } => {
            let code = code.map(|code| format!("{}: ", code.number())).unwrap_or_default();
            format!("{} {operation} ended {state}: {code}{summary}", time(*at))
        }
        Record::Corrected(correction) => format!(
            "{} order {} of {} had ended as {} with {} traded, and is {} with {} (trade {} of {})",
            time(correction.at),
            correction.client_order_id,
            correction.operation,
            correction.was.0,
            correction.was.1,
            correction.now.0,
            correction.now.1,
            correction.trade,
            time(correction.traded_at)
        ),
        Record::External(activity) => format!(
            "{} {} of {} {} by {}: the position is {} now",
            time(activity.at),
            activity.account,
            activity.symbol,
            activity.change,
            activity.cause,
            activity.position
        ),
        Record::Trading(order) => {
            let scoped = order.scoped.iter().map(|(scope, scoped)| {
                format!("; {scope} {} since {}: {}", scoped.state, time(scoped.at), scoped.reason)
            });
            format!(
                "{} trading {}: {}; kill switch {}: {}{}",
                time(order.at),
                order.state,
                order.reason,
                if order.kill { "engaged" } else { "clear" },
                order.kill_reason,
                scoped.collect::<String>()
            )
        }
        Record::Policy { symbol, policy, at } => {
            let what = match policy {
                None => "removed".to_owned(),
                Some(policy) if !policy.enabled => "switched off".to_owned(),
                Some(policy) => {
                    let accounts: Vec<&str> = policy.accounts.iter().map(AccountId::as_str).collect();
                    format!("to {} within {} over {}", policy.target, policy.tolerance, accounts.join(", "))
                }
            };
            format!("{} policy of {symbol} {what}", time(*at))
        }
        Record::Alert { alert, change } => {
            let (at, what) = match change {
                AlertChange::Raised => (alert.raised_at, "raised"),
                AlertChange::Acknowledged => {
                    (alert.acknowledged.as_ref().map_or(alert.seen_at, |ack| ack.at), "acknowledged")
                }
                AlertChange::Resolved => (alert.seen_at, "resolved"),
            };
            format!("{} alert {} {} {what}: {}", time(at), alert.severity, alert.id, alert.text())
        }
    };
    format!("{:>8} {text}", stored.position)
}

/// What happened in an operation, when, why, with every order and what proved its outcome; none where there is none.
pub fn story(records: &[StoredRecord], operation: &OperationId) -> Option<String> {
    let mut orders: BTreeMap<ClientOrderId, Option<OutcomeRecord>> = BTreeMap::new();
    let mut lines = Vec::new();
    let mut closed = false;
    for stored in records {
        let mine = match &stored.record {
            Record::OperationAccepted { operation: id, .. } | Record::Planned { operation: id, .. } => {
                id == operation
            }
            Record::Intent(intent) => {
                if intent.operation == *operation {
                    orders.insert(intent.client_order_id.clone(), None);
                }
                intent.operation == *operation
            }
            Record::Outcome { client_order_id, outcome, .. } => {
                let known = orders.get_mut(client_order_id);
                let mine = known.is_some();
                if let Some(known) = known {
                    *known = Some(outcome.clone());
                }
                mine
            }
            Record::Fill { client_order_id, .. } => orders.contains_key(client_order_id),
            Record::OperationClosed { operation: id, .. } => {
                closed |= id == operation;
                id == operation
            }
            // A run that began while the operation was open says that the process had ended.
            Record::RunStarted { .. } => !lines.is_empty() && !closed,
            Record::Corrected(correction) => correction.operation == *operation,
            Record::External(_) | Record::Trading(_) | Record::Policy { .. } | Record::Alert { .. } => false,
        };
        if mine {
            lines.push(line(stored));
        }
    }
    if lines.is_empty() {
        return None;
    }
    let open: Vec<String> = orders
        .iter()
        .filter(|(_, outcome)| {
            !matches!(outcome, Some(OutcomeRecord::Ended { .. } | OutcomeRecord::NotAccepted { .. }))
        })
        .map(|(id, _)| id.to_string())
        .collect();
    lines.push(match (closed, open.is_empty()) {
        (true, _) => "The operation ended, and the outcome of every order is known.".to_owned(),
        (false, true) => "The operation is open: no order of it is unresolved.".to_owned(),
        (false, false) => format!("The operation is open: not known is the outcome of {}.", open.join(", ")),
    });
    Some(lines.join("\n"))
}
