//! Our picture of every position against the venue's: at the start and whenever an account was read.
//!
//! What our own trades do not explain is looked up among the venue's trades, named, recorded, told and folded in.
//! Nothing is invented: a difference that no trade explains is recorded as just that.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{ExternalActivity, ExternalCause, OrderGateway, Priority, ReadError, Record};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Delta, Fill, FillCause, Symbol, Timestamp, TradeId,
};

use crate::accounts::AccountMonitor;
use crate::alerts::Condition;
use crate::reopening::reopen;
use crate::runner::Shared;

/// A difference must last this long: venues show trades late.
const SETTLE: Duration = Duration::from_secs(3);
/// Trades are looked for from this long before the last agreement on.
const OVERLAP: Duration = Duration::from_secs(5);
/// Before a move counts as nobody's they are looked for from this long before it on: a position that was shown late may
/// have agreed by chance.
const FURTHER_BACK: Duration = Duration::from_secs(600);
/// A stream that tells nothing any more is noticed within this time: until then a position counts that may be older.
const UNHEARD: Duration = Duration::from_secs(90);
/// An alert about what others did stands for this long after the last sighting.
const OUTSIDE_FOR: Duration = Duration::from_secs(600);
/// Activity that is kept in memory.
const KEPT: usize = 1_000;

/// What a position lock must hold, by all that we know.
#[derive(Clone, Copy, Debug)]
struct PositionKey {
    position: Delta,
    /// Since when it is known: what was traded before is in its first position.
    known_since: Timestamp,
    agreed_at: Timestamp,
    /// A position that differs, and since when it is seen.
    other: Option<(Delta, Timestamp)>,
}

/// What every position lock must hold, and what moved them from outside.
#[derive(Default)]
pub(crate) struct Ledger {
    position_locks: Mutex<BTreeMap<(AccountId, Symbol), PositionKey>>,
    activity: Mutex<Vec<ExternalActivity>>,
}

/// What comparing a position lock with the venue says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// They agree, or the position lock was not known before.
    Agrees,
    /// They differ, and may come to agree.
    Differs,
    /// They have differed for long enough by the account's stream alone: a reading decides.
    Unread,
    /// They have differed for long enough.
    Broken {
        /// What we know.
        expected: Delta,
        /// When it was last so.
        since: Timestamp,
    },
}

impl Ledger {
    fn position_locks<T>(&self, f: impl FnOnce(&mut BTreeMap<(AccountId, Symbol), PositionKey>) -> T) -> T {
        f(&mut self.position_locks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says what a position lock holds by all that we know.
    pub(crate) fn set(&self, account: &AccountId, symbol: &Symbol, position: Delta, at: Timestamp) {
        let position_key = PositionKey { position, known_since: at, agreed_at: at, other: None };
        self.position_locks(|position_locks| {
            position_locks.insert((account.clone(), symbol.clone()), position_key)
        });
    }

    /// Says that a position lock moved: by trades of ours, or by what others did and was named. What is not known yet stays so.
    pub(crate) fn add(&self, account: &AccountId, symbol: &Symbol, change: Delta) {
        self.position_locks(|position_locks| {
            if let Some(position_key) = position_locks.get_mut(&(account.clone(), symbol.clone())) {
                position_key.position = position_key.position.plus(change).unwrap_or(position_key.position);
                position_key.other = None;
            }
        });
    }

    /// What a position lock holds by all that we know.
    pub(crate) fn position(&self, account: &AccountId, symbol: &Symbol) -> Option<Delta> {
        self.position_locks(|position_locks| {
            position_locks.get(&(account.clone(), symbol.clone())).map(|position_key| position_key.position)
        })
    }

    /// When a position lock was last seen to hold what we know.
    pub(crate) fn agreed_at(&self, account: &AccountId, symbol: &Symbol) -> Option<Timestamp> {
        self.position_locks(|position_locks| {
            position_locks.get(&(account.clone(), symbol.clone())).map(|position_key| position_key.agreed_at)
        })
    }

    /// Since when a position lock is known.
    fn known_since(&self, account: &AccountId, symbol: &Symbol) -> Option<Timestamp> {
        self.position_locks(|position_locks| {
            position_locks
                .get(&(account.clone(), symbol.clone()))
                .map(|position_key| position_key.known_since)
        })
    }

    /// The symbols of an account that something is known of.
    pub(crate) fn symbols(&self, account: &AccountId) -> Vec<Symbol> {
        self.position_locks(|position_locks| {
            position_locks.keys().filter(|(of, _)| of == account).map(|(_, symbol)| symbol.clone()).collect()
        })
    }

    /// Compares a position lock with what is shown at `as_of`; `read_at` says when the newest reading was asked for that shows the
    /// same.
    pub(crate) fn compare(
        &self,
        (account, symbol): (&AccountId, &Symbol),
        shown: Delta,
        as_of: Timestamp,
        read_at: Option<Timestamp>,
    ) -> Compared {
        self.position_locks(|position_locks| {
            let fresh = PositionKey { position: shown, known_since: as_of, agreed_at: as_of, other: None };
            let position_key = position_locks.entry((account.clone(), symbol.clone())).or_insert(fresh);
            if position_key.position == shown {
                (position_key.agreed_at, position_key.other) = (as_of, None);
                return Compared::Agrees;
            }
            if as_of <= position_key.agreed_at {
                // Read before the last agreement: it tells nothing new.
                return Compared::Differs;
            }
            match position_key.other {
                Some((other, since)) if other == shown => {
                    if as_of.since(since) < SETTLE {
                        return Compared::Differs;
                    }
                    if read_at.is_none_or(|at| at.since(since) < SETTLE) {
                        return Compared::Unread;
                    }
                    Compared::Broken { expected: position_key.position, since: position_key.agreed_at }
                }
                _ => {
                    position_key.other = Some((shown, as_of));
                    Compared::Differs
                }
            }
        })
    }

    /// Keeps what moved a position.
    pub(crate) fn keep(&self, activity: ExternalActivity) {
        let mut all = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(activity);
        let surplus = all.len().saturating_sub(KEPT);
        all.drain(..surplus);
    }

    /// The newest activity first.
    pub(crate) fn newest(&self, limit: usize) -> Vec<ExternalActivity> {
        let all = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().take(limit).cloned().collect()
    }
}

/// The oldest trades in a row that together make a move: some before them may have been in the position already, and
/// the newest may not show in it yet. All, where none do.
fn that_sum_to(moved: Delta, trades: &[Fill]) -> &[Fill] {
    for start in 0..trades.len() {
        let mut sum = Delta::ZERO;
        for (end, fill) in trades.iter().enumerate().skip(start) {
            sum = sum.plus(fill.quantity.signed(fill.side)).unwrap_or(sum);
            if sum == moved {
                return &trades[start..=end];
            }
        }
    }
    trades
}

/// A cause, what it changed, and its trades.
type Named = (ExternalCause, Delta, Vec<TradeId>);

/// Names what moved a position: the trades that are not ours, by their causes, and the rest that none explains.
pub(crate) fn causes(expected: Delta, found: Delta, external: &[Fill]) -> Vec<Named> {
    let mut named: BTreeMap<ExternalCause, (Delta, Vec<TradeId>)> = BTreeMap::new();
    let mut explained = Delta::ZERO;
    let moved = found.minus(expected).unwrap_or_default();
    for fill in that_sum_to(moved, external) {
        let cause = match fill.cause {
            FillCause::Order => ExternalCause::ForeignTrade,
            FillCause::Liquidation => ExternalCause::Liquidation,
            FillCause::Deleveraging => ExternalCause::Deleveraging,
            FillCause::Settlement => ExternalCause::Settlement,
        };
        let change = fill.quantity.signed(fill.side);
        let (sum, trades) = named.entry(cause).or_default();
        // A sum beyond what can be held stays what it was; the rest then shows as a correction.
        *sum = sum.plus(change).unwrap_or(*sum);
        explained = explained.plus(change).unwrap_or(explained);
        trades.push(fill.trade_id.clone());
    }
    let mut all: Vec<_> =
        named.into_iter().map(|(cause, (change, trades))| (cause, change, trades)).collect();
    let rest = moved.minus(explained).unwrap_or_default();
    if !rest.is_zero() {
        all.push((ExternalCause::Correction, rest, Vec::new()));
    }
    all
}

/// Trades since a time that were not named yet, oldest first as the venue tells them: those of others, and those of orders
/// of ours.
async fn unnamed_since(
    shared: &Shared,
    monitor: &AccountMonitor,
    gateway: &dyn OrderGateway,
    symbol: &Symbol,
    from: Timestamp,
) -> Result<(Vec<Fill>, Vec<Fill>), ReadError> {
    let trades = gateway.fetch_fills(symbol, from, Priority::Resolve).await?;
    // Each trade is named once.
    let mut external = monitor.without_explained(trades);
    if external.iter().any(|fill| fill.client_order_id.is_none()) {
        // Some venues tell by the order alone whose a trade was.
        let names = gateway.fetch_order_names(symbol, from, Priority::Resolve).await?;
        for fill in &mut external {
            if let Some(order) = names.iter().find(|order| order.venue_order_id == fill.venue_order_id) {
                fill.client_order_id = fill.client_order_id.take().or_else(|| order.client_order_id.clone());
                fill.cause = if fill.cause == FillCause::Order { order.cause } else { fill.cause };
            }
        }
    }
    let is_external = |fill: &Fill| {
        fill.client_order_id.as_ref().is_none_or(|name| shared.reader.config.id_key.read(name).is_none())
    };
    Ok(external.into_iter().partition(is_external))
}

/// Looks up what moved a position, records it, tells people, and takes the venue's position as the truth.
///
/// # Errors
///
/// [`ReadError`] where the venue's trades cannot be read: then nothing was recorded, and it is tried again.
pub(crate) async fn explain(
    shared: &Shared,
    (account, symbol): (&AccountId, &Symbol),
    (expected, found): (Delta, Delta),
    (since, as_of): (Timestamp, Timestamp),
) -> Result<Vec<ExternalActivity>, ReadError> {
    let (Some(monitor), Some(gateway)) =
        (shared.reader.accounts.get(account), shared.execution.gateways.get(account))
    else {
        return Ok(Vec::new());
    };
    let from = since.before(OVERLAP);
    let (external, ours) = unnamed_since(shared, monitor, gateway.as_ref(), symbol, from).await?;
    let late = reopen(shared, (monitor, symbol), (expected, found), as_of, ours).await;
    let mut expected = expected.plus(late).unwrap_or(expected);
    let mut named = causes(expected, found, &external);
    let known_since = shared.ledger.known_since(account, symbol);
    let is_whole = |named: &[Named]| named.iter().all(|(cause, ..)| *cause != ExternalCause::Correction);
    if let Some(earlier) =
        known_since.map(|at| at.before(UNHEARD).max(since.before(FURTHER_BACK))).filter(|at| *at < from)
        && !is_whole(&named)
    {
        let (further, ours) = unnamed_since(shared, monitor, gateway.as_ref(), symbol, earlier).await?;
        let late = reopen(shared, (monitor, symbol), (expected, found), as_of, ours).await;
        expected = expected.plus(late).unwrap_or(expected);
        named = causes(expected, found, &further);
        if !is_whole(&named) {
            named = causes(expected, found, &external);
        }
    }
    Ok(record(shared, (monitor, symbol), (expected, found), as_of, named).await)
}

/// Names what moved a position by the trades of others that the account's stream told, where these explain all of it.
pub(crate) async fn explain_by_stream(
    shared: &Shared,
    (account, symbol): (&AccountId, &Symbol),
    (expected, found): (Delta, Delta),
    as_of: Timestamp,
) -> Option<Vec<ExternalActivity>> {
    let monitor = shared.reader.accounts.get(account)?;
    let fills = monitor.external_fills(symbol);
    if fills.is_empty() {
        return None;
    }
    let named = causes(expected, found, &fills);
    if named.iter().any(|(cause, ..)| *cause == ExternalCause::Correction) {
        return None;
    }
    Some(record(shared, (monitor, symbol), (expected, found), as_of, named).await)
}

/// Records what moved a position, tells people, and takes the position as the truth.
async fn record(
    shared: &Shared,
    (monitor, symbol): (&AccountMonitor, &Symbol),
    (expected, found): (Delta, Delta),
    as_of: Timestamp,
    named: Vec<Named>,
) -> Vec<ExternalActivity> {
    let account = &monitor.id;
    let now = shared.reader.clock.now();
    let mut position = expected;
    let mut recorded = Vec::new();
    let mut records = Vec::new();
    for (cause, change, trades) in named {
        position = position.plus(change).unwrap_or(found);
        let activity = ExternalActivity {
            account: account.clone(),
            symbol: symbol.clone(),
            cause,
            change,
            position,
            trades: trades.clone(),
            at: as_of,
        };
        if cause == ExternalCause::Correction {
            shared.breakers.on_mismatch(account, now, &shared.reader.config.breakers);
        }
        monitor.explain(symbol, trades);
        records.push(Record::External(activity.clone()));
        records.extend(shared.alerts.happened(condition(&activity), now));
        shared.ledger.keep(activity.clone());
        recorded.push(activity);
    }
    shared.ledger.add(account, symbol, found.minus(expected).unwrap_or_default());
    // A failure stops all sending by itself; there is nothing to take back.
    let _ = shared.execution.recorder.append(records).await;
    recorded
}

fn condition(activity: &ExternalActivity) -> Condition {
    let ExternalActivity { account, symbol, cause, change, position, .. } = activity;
    let (severity, what) = match cause {
        ExternalCause::ForeignTrade => (AlertSeverity::Warn, "was traded outside deltaplane"),
        ExternalCause::Liquidation => (AlertSeverity::Critical, "was liquidated by the exchange"),
        ExternalCause::Deleveraging => (AlertSeverity::Critical, "was auto-deleveraged by the exchange"),
        ExternalCause::Settlement => (AlertSeverity::Critical, "was settled by the exchange"),
        ExternalCause::Correction => (AlertSeverity::Critical, "changed without a trade"),
    };
    Condition {
        kind: AlertKind::Execution,
        topic: AlertTopic::ExternalActivity,
        severity,
        account: Some(account.clone()),
        symbol: Some(symbol.clone()),
        message: format!(
            "{account}: {change} {base} {what}; its {symbol} position was {position} {base} afterwards. See GET /api/v1/reconciliation.",
            base = symbol.base(),
        ),
    }
}

/// Ends alerts about what others did, some time after the last of it.
pub(crate) fn let_alerts_go(shared: &Shared, now: Timestamp) -> Vec<Record> {
    shared.alerts.resolve(AlertTopic::ExternalActivity, now, |alert| now.since(alert.seen_at) >= OUTSIDE_FOR)
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{delta, price, quantity};
    use deltaplane_types::Side;

    use super::*;

    fn fill(id: &str, side: Side, amount: &str, cause: FillCause) -> Fill {
        Fill {
            account: "main".parse().unwrap(),
            symbol: "BTC-USD".parse().unwrap(),
            trade_id: id.parse().unwrap(),
            venue_order_id: "1".parse().unwrap(),
            client_order_id: None,
            side,
            quantity: quantity(amount),
            price: price("50000"),
            fee: deltaplane_types::Fee::default(),
            cause,
            venue_time: Timestamp::default(),
        }
    }

    #[test]
    fn every_part_of_a_move_is_named_and_nothing_is_invented() {
        // From 1 to 0.55: 0.2 bought and 0.1 sold externally, 0.3 deleveraged, and 0.25 that no trade shows.
        let trades = [
            fill("1", Side::Buy, "0.2", FillCause::Order),
            fill("2", Side::Sell, "0.1", FillCause::Order),
            fill("3", Side::Sell, "0.3", FillCause::Deleveraging),
        ];
        let named = causes(delta("1"), delta("0.55"), &trades);
        let shown: Vec<(ExternalCause, String, usize)> =
            named.iter().map(|(cause, change, trades)| (*cause, change.to_string(), trades.len())).collect();
        assert_eq!(
            shown,
            [
                (ExternalCause::ForeignTrade, "0.1".to_owned(), 2),
                (ExternalCause::Deleveraging, "-0.3".to_owned(), 1),
                (ExternalCause::Correction, "-0.25".to_owned(), 0),
            ]
        );
        assert!(causes(delta("1"), delta("1"), &[]).is_empty());
    }

    #[test]
    fn trades_that_were_in_the_position_before_explain_nothing() {
        let trades = [
            fill("1", Side::Sell, "0.038", FillCause::Order),
            fill("2", Side::Sell, "0.02", FillCause::Order),
        ];
        let of = |id: &str| -> Vec<TradeId> { vec![id.parse().unwrap()] };
        let named = causes(delta("0.204"), delta("0.184"), &trades);
        assert_eq!(named, [(ExternalCause::ForeignTrade, delta("-0.02"), of("2"))]);
        // The newest one does not show yet.
        let named = causes(delta("0.204"), delta("0.166"), &trades);
        assert_eq!(named, [(ExternalCause::ForeignTrade, delta("-0.038"), of("1"))]);
    }

    #[test]
    fn a_difference_counts_when_it_lasts() {
        let ledger = Ledger::default();
        let (account, symbol) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let at = |ms| Timestamp::from_millis(ms);
        let told = |shown, ms, read: Option<i64>| {
            ledger.compare((&account, &symbol), delta(shown), at(ms), read.map(at))
        };
        let compare = |shown, ms| told(shown, ms, Some(ms));
        assert_eq!(compare("0.5", 0), Compared::Agrees, "the first sighting is taken as it is");
        assert_eq!(compare("0.4", 1_000), Compared::Differs);
        assert_eq!(compare("0.5", 2_000), Compared::Agrees, "it was shown late");
        assert_eq!(compare("0.4", 3_000), Compared::Differs);
        assert_eq!(compare("0.3", 4_000), Compared::Differs, "it still moves");
        assert_eq!(compare("0.3", 6_999), Compared::Differs);
        let broken = Compared::Broken { expected: delta("0.5"), since: at(2_000) };
        assert_eq!(compare("0.3", 7_000), broken);
        assert_eq!(told("0.3", 7_100, None), Compared::Unread, "a stream may have lost an event");
        assert_eq!(told("0.3", 7_200, Some(6_999)), Compared::Unread, "a reading may be late");
        assert_eq!(told("0.3", 7_300, Some(7_000)), broken);
    }
}
