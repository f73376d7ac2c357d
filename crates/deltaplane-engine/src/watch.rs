//! What goes on beside requests: every reading of an account is compared with what we know.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use deltaplane_ports::{Priority, ReadError, Record, TradingOrder};
use deltaplane_types::{AlertKind, AlertSeverity, AlertTopic, Symbol, Timestamp, TradingState};

use crate::account_fold::Mismatch;
use crate::accounts::AccountMonitor;
use crate::alerts::Condition;
use crate::engine::Core;
use crate::reconcile::{self, Compared};

/// The name of the loop that lets alerts go.
pub(crate) const ALERTS: &str = "alerts";

/// Orders that the journal lost are looked for from this long before its last word on.
const TAIL_OVERLAP_MS: i64 = 600_000;

/// A difference is compared again after this time, where nothing else happens.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);
/// From so many mismatches in [`MISMATCH_WITHIN`] on they are CRITICAL; the alert stands until that time is over.
const MISMATCHES: usize = 3;
const MISMATCH_WITHIN: Duration = Duration::from_secs(3_600);

/// Tells of differences between stream and readings that lasted: the readings count.
async fn report_mismatches(core: &Arc<Core>, monitor: &AccountMonitor) {
    for Mismatch { symbol, folded, read, at } in monitor.take_mismatches() {
        let count = monitor.count_mismatch(at, MISMATCH_WITHIN);
        tracing::warn!(
            account = %monitor.id, %symbol, stream = %folded, rest = %read, count,
            "the account's stream differs from two reads of the account: the reads count"
        );
        let severity = if count >= MISMATCHES { AlertSeverity::Critical } else { AlertSeverity::Warn };
        let condition = Condition {
            kind: AlertKind::System,
            topic: AlertTopic::StateMismatch,
            severity,
            account: Some(monitor.id.clone()),
            symbol: Some(symbol.clone()),
            message: format!(
                "{}: its stream shows a position of {folded} {symbol}, two reads show {read} (difference {count} of this hour). The reads count. Check the connection to the exchange.",
                monitor.id
            ),
        };
        core.shared.raise(condition).await;
    }
}

/// Compares an account with what we know, whenever it was read, until dropped.
pub(crate) async fn keep_reconciled(core: Arc<Core>, monitor: Arc<AccountMonitor>) {
    let mut readings = monitor.readings();
    let mut tail_checked = false;
    loop {
        readings.mark_unchanged();
        let mut agrees = true;
        if let Some(snapshot) = monitor.newest() {
            tail_checked = tail_checked || check_tail(&core, &monitor).await;
            if tail_checked {
                agrees = compare(&core, &monitor, &snapshot).await;
                if agrees && !monitor.is_reconciled() {
                    monitor.set_reconciled();
                    tracing::info!(account = %monitor.id, "reconciled");
                } else if !agrees {
                    // Where the stream is not proven the next reading is due soon.
                    monitor.mark_changed();
                }
            }
        }
        report_mismatches(&core, &monitor).await;
        if tail_checked {
            // A difference that stays is looked at again without a new event.
            let wait = if agrees { Duration::from_secs(3_600) } else { COMPARE_AGAIN };
            if tokio::time::timeout(wait, readings.changed()).await == Ok(false) {
                return;
            }
        } else {
            // The venue could not be asked: not before a while again.
            let _ = tokio::time::timeout(Duration::from_secs(1), readings.changed()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Compares every symbol of an account; gives whether all agree.
async fn compare(
    core: &Arc<Core>,
    monitor: &AccountMonitor,
    snapshot: &deltaplane_types::AccountSnapshot,
) -> bool {
    let shared = &core.shared;
    let mut symbols: BTreeSet<Symbol> = snapshot.positions.keys().cloned().collect();
    symbols.extend(shared.ledger.symbols(&monitor.id));
    symbols.insert(shared.reader.config.primary_symbol.clone());
    let mut agree = true;
    for symbol in symbols {
        if core.position_locks.is_held(&symbol, &monitor.id) {
            // An operation is at work there and looks for itself.
            continue;
        }
        let shown = snapshot.position(&symbol);
        let as_of = monitor.confirmed_at().unwrap_or(snapshot.as_of);
        let position_key = (&monitor.id, &symbol);
        let read_at = monitor.reading().filter(|reading| reading.position(&symbol) == shown);
        // Events over a state that may lack others are no position to begin with.
        if shared.ledger.position(&monitor.id, &symbol).is_none() && read_at.is_none() && !monitor.is_live() {
            agree = false;
            continue;
        }
        match shared.ledger.compare(position_key, shown, as_of, read_at.map(|reading| reading.as_of)) {
            Compared::Agrees => {}
            Compared::Unread => {
                agree = false;
                monitor.audit_soon();
            }
            Compared::Differs => {
                let expected = shared.ledger.position(&monitor.id, &symbol).unwrap_or(shown);
                match reconcile::explain_by_stream(shared, position_key, (expected, shown), as_of).await {
                    Some(moved) => shared.losses.moved(&moved),
                    None => agree = false,
                }
            }
            Compared::Broken { expected, since } => {
                match reconcile::explain(shared, position_key, (expected, shown), (since, as_of)).await {
                    Ok(moved) => shared.losses.moved(&moved),
                    Err(error) => {
                        agree = false;
                        tracing::warn!(account = %monitor.id, %symbol, %error, "the trades behind a position change cannot be read");
                    }
                }
            }
        }
    }
    agree
}

/// Looks for orders of ours that the venue knows and the journal does not: its end was lost, or it is an older copy.
/// Gives whether the venue could be asked.
async fn check_tail(core: &Arc<Core>, monitor: &AccountMonitor) -> bool {
    let shared = &core.shared;
    let config = &shared.reader.config;
    let Some(gateway) = shared.execution.gateways.get(&monitor.id) else { return true };
    let since = Timestamp::from_millis(core.known.last_at.as_millis().saturating_sub(TAIL_OVERLAP_MS).max(0));
    let mut symbols: BTreeSet<Symbol> = shared.ledger.symbols(&monitor.id).into_iter().collect();
    symbols.insert(config.primary_symbol.clone());
    let mut newest = None;
    for symbol in symbols {
        match gateway.fetch_order_names(&symbol, since, Priority::Resolve).await {
            // What the venue does not list has no orders.
            Err(ReadError::UnknownSymbol(_)) => {}
            Err(error) => {
                tracing::warn!(account = %monitor.id, %error, "its orders cannot be read: it stays out of trading");
                return false;
            }
            Ok(names) => {
                let ours = names.iter().filter_map(|name| config.id_key.read(name.client_order_id.as_ref()?));
                let lost = ours.filter(|parts| {
                    parts.instance == config.instance && parts.sequence >= core.known.next_sequence
                });
                newest = newest.max(lost.map(|parts| parts.sequence).max());
            }
        }
    }
    let Some(newest) = newest else { return true };
    let now = shared.reader.clock.now();
    let text = format!(
        "{} shows our order number {newest} and the journal ends before number {}: its end was lost, or it is an older copy",
        monitor.id, core.known.next_sequence
    );
    shared.execution.next_sequence.fetch_max(newest.saturating_add(1), std::sync::atomic::Ordering::SeqCst);
    let state = if config.accept_lost_tail { TradingState::ReduceOnly } else { TradingState::Halted };
    let change = |order: &mut TradingOrder| {
        order.state = order.state.max(state);
        (order.reason, order.at) = (text.clone(), now);
    };
    let mut records = Vec::new();
    if config.accept_lost_tail {
        let (epoch, next_sequence) = (shared.execution.epoch, newest.saturating_add(1));
        records.push(Record::RunStarted { epoch, next_sequence, at: now });
    }
    // It holds in any case; a failure stops all sending by itself.
    let _ = shared.reader.trading.change(&shared.execution.recorder, change, records).await;
    let remedy =
        "restore the newest journal, or start once with --accept-quarantine and check every position";
    shared
        .raise(Condition {
            kind: AlertKind::System,
            topic: AlertTopic::Journal,
            severity: AlertSeverity::Critical,
            account: None,
            symbol: None,
            message: format!("{text}; {remedy}"),
        })
        .await;
    true
}

/// Lets alerts go whose condition is long over.
pub(crate) async fn keep_alerts(core: Arc<Core>) {
    loop {
        core.shared.services.beat(ALERTS, &*core.shared.reader.clock);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let now = core.shared.reader.clock.now();
        let mut records = reconcile::let_alerts_go(&core.shared, now);
        let is_over = |alert: &deltaplane_ports::Alert| now.since(alert.seen_at) >= MISMATCH_WITHIN;
        records.extend(core.shared.alerts.resolve(AlertTopic::StateMismatch, now, is_over));
        let _ = core.shared.execution.recorder.append(records).await;
    }
}
