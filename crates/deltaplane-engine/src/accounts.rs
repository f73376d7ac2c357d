//! The newest state of every account, read anew whenever it may have changed.
//!
//! Only whole snapshots are kept: an event on the account's stream says that something changed, not how the
//! rest stands, so it only makes the next reading due at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::equity::EquityTrack;
use deltaplane_ports::{AccountEvent, AccountReader, Check, Clock, Finding, ReadError, Severity};
use deltaplane_types::{AccountId, AccountSnapshot, Delta, Fill, Symbol, Timestamp, TradeId, VenueId};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

/// How often an account that may trade is checked.
const CHECK_EVERY: Duration = Duration::from_secs(15 * 60);
/// How often one is checked that is kept out.
const CHECK_BLOCKED: Duration = Duration::from_secs(15);
/// How soon one is checked again whose venue did not tell, for the first time; then each time twice as late.
const CHECK_UNTOLD: Duration = Duration::from_secs(1);
/// Trades of ended operations that are kept: more than the few seconds hold in which another one may meet them.
const KEPT_TRADES: usize = 2_000;
/// A venue shows a trade in the position no later than this.
const SHOWN_WITHIN: Duration = Duration::from_secs(3);

/// What a position was before each of our newest orders, and what it is with them. A venue may show any of it for a
/// while, even after it showed a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecentTrades {
    pub(crate) before: Vec<Delta>,
    pub(crate) after: Delta,
}

/// How soon a reading that failed is tried again, at the latest.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// The same where an operation waits to see what it did, and how often at most.
const CATCH_UP_EVERY: Duration = Duration::from_secs(2);
const CATCH_UP_TIMES: u32 = 15;

#[derive(Default)]
struct State {
    snapshot: Option<Arc<AccountSnapshot>>,
    /// Snapshots that began before this may lack what we know to have happened.
    changed_at: Timestamp,
    last_error: Option<String>,
    error_count: u64,
    last_beat: Timestamp,
    /// Why orders may not be sent for it, by somebody's decision.
    blocked: Option<String>,
    /// Whether what the venue shows was compared with what the journal says.
    reconciled: bool,
    /// Trades of operations that ended: they explain themselves to those that come after. Oldest first.
    explained: VecDeque<(Symbol, TradeId)>,
    /// The newest trades of ours, and when they ended.
    recent: BTreeMap<Symbol, (Timestamp, RecentTrades)>,
    /// What the newest look before trading found; none before the first one ended.
    findings: Option<Vec<Finding>>,
}

/// One account with its newest state.
pub(crate) struct AccountKeeper {
    pub(crate) id: AccountId,
    pub(crate) venue: VenueId,
    pub(crate) exchange: String,
    pub(crate) reader: Arc<dyn AccountReader>,
    clock: Arc<dyn Clock>,
    state: RwLock<State>,
    wake: Notify,
    /// What its equity did.
    pub(crate) equity: EquityTrack,
    /// Counts whole states that were read.
    readings: watch::Sender<u64>,
}

/// What counts after another look: a venue that is away for a moment takes back nothing of what it said.
fn merged(before: Vec<Finding>, now: Vec<Finding>) -> Vec<Finding> {
    let is_known = |findings: &[Finding], check: Check| {
        findings.iter().any(|finding| finding.check == check && finding.severity != Severity::Unknown)
    };
    if now.iter().all(|finding| finding.severity != Severity::Unknown) {
        return now;
    }
    let fresh: Vec<Finding> = now
        .into_iter()
        .filter(|finding| finding.severity != Severity::Unknown || !is_known(&before, finding.check))
        .collect();
    let kept = before.into_iter().filter(|old| !fresh.iter().any(|new| new.check == old.check));
    let kept: Vec<Finding> = kept.collect();
    fresh.into_iter().chain(kept).collect()
}

/// How an account's keeping goes.
pub(crate) struct KeeperHealth {
    pub(crate) last_beat: Timestamp,
    pub(crate) error_count: u64,
    pub(crate) failing: bool,
}

impl AccountKeeper {
    pub(crate) fn new(
        id: AccountId,
        venue: VenueId,
        exchange: String,
        reader: Arc<dyn AccountReader>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            id,
            venue,
            exchange,
            reader,
            clock,
            state: RwLock::default(),
            wake: Notify::new(),
            equity: EquityTrack::default(),
            readings: watch::Sender::new(0),
        }
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest snapshot, however old.
    pub(crate) fn newest(&self) -> Option<Arc<AccountSnapshot>> {
        self.read(|state| state.snapshot.clone())
    }

    /// The newest snapshot, if it is not older than this.
    pub(crate) fn known(&self, within: Duration) -> Option<Arc<AccountSnapshot>> {
        let now = self.clock.now();
        self.newest().filter(|snapshot| now.since(snapshot.as_of) <= within)
    }

    /// Why orders may not be sent for it.
    pub(crate) fn blocked(&self) -> Option<String> {
        self.read(|state| {
            let found = || match &state.findings {
                None => Some("it was not checked yet".to_owned()),
                Some(findings) => {
                    let blocking = findings.iter().filter(|finding| finding.severity >= Severity::Unknown);
                    let texts: Vec<String> =
                        blocking.map(|f| format!("{}: {}; {}", f.check, f.text, f.remedy)).collect();
                    (!texts.is_empty()).then(|| texts.join("; "))
                }
            };
            let unreconciled = || {
                (!state.reconciled).then(|| {
                    "it is not reconciled yet: the venue's orders and positions were not compared with the journal"
                        .to_owned()
                })
            };
            state.blocked.clone().or_else(unreconciled).or_else(found)
        })
    }

    /// Whether the start of the services is what still keeps it out: that ends by itself.
    pub(crate) fn is_starting(&self) -> bool {
        self.read(|state| state.blocked.is_none() && (!state.reconciled || state.findings.is_none()))
    }

    /// Looks at everything that decides whether the account may trade, and keeps what was found.
    pub(crate) async fn preflight(&self, symbol: &Symbol) -> Vec<Finding> {
        let findings = self.reader.preflight(symbol).await;
        self.write(|state| {
            let before = state.findings.take().unwrap_or_default();
            state.findings = Some(merged(before, findings.clone()));
        });
        findings
    }

    /// Looks again and again: soon while something keeps the account out, else now and then.
    pub(crate) async fn keep_checking(self: Arc<Self>, symbol: Symbol) {
        let mut told = None;
        let mut checked = None;
        let mut is_first = true;
        let mut untold = CHECK_UNTOLD;
        loop {
            let is_due = checked.is_none_or(|at: Instant| at.elapsed() >= CHECK_EVERY);
            // What is not reconciled yet is not mended by looking.
            let looks = is_due || (self.is_reconciled() && self.blocked().is_some());
            if looks {
                self.preflight(&symbol).await;
                checked = Some(Instant::now());
            }
            // At a start nothing is reconciled yet: that is told where it lasts.
            let blocked = self.blocked().filter(|_| self.is_reconciled() || !is_first);
            is_first = false;
            if blocked != told {
                match &blocked {
                    Some(reason) => tracing::error!(account = %self.id, reason, "kept out of trading"),
                    None if told.is_some() => tracing::info!(account = %self.id, "may trade again"),
                    None => {}
                }
                told.clone_from(&blocked);
            }
            // Somebody's look in between may have found what keeps it out.
            if self.is_untold() {
                tokio::time::sleep(untold).await;
                if looks {
                    untold = untold.saturating_mul(2).min(CHECK_BLOCKED);
                }
            } else {
                untold = CHECK_UNTOLD;
                tokio::time::sleep(CHECK_BLOCKED).await;
            }
        }
    }

    /// Whether something that decides about trading is only not known: nothing was found that keeps it out.
    fn is_untold(&self) -> bool {
        self.read(|state| {
            let worst = state.findings.iter().flatten().map(|finding| finding.severity).max();
            worst == Some(Severity::Unknown)
        })
    }

    /// Whether the first look before trading ended.
    pub(crate) fn is_checked(&self) -> bool {
        self.read(|state| state.findings.is_some())
    }

    /// Whether its truth is established.
    pub(crate) fn is_reconciled(&self) -> bool {
        self.read(|state| state.reconciled)
    }

    pub(crate) fn set_reconciled(&self) {
        self.write(|state| state.reconciled = true);
    }

    /// The clock that its readings are stamped with.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Tells whenever a whole state was read.
    pub(crate) fn readings(&self) -> watch::Receiver<u64> {
        self.readings.subscribe()
    }

    pub(crate) fn block(&self, reason: Option<String>) {
        self.write(|state| state.blocked = reason);
    }

    pub(crate) fn health(&self) -> KeeperHealth {
        self.read(|state| KeeperHealth {
            last_beat: state.last_beat,
            error_count: state.error_count,
            failing: state.last_error.is_some(),
        })
    }

    /// Something happened on the account: what was read before does not count any more.
    pub(crate) fn mark_changed(&self) {
        self.note_change();
        self.wake.notify_one();
    }

    fn note_change(&self) {
        let now = self.clock.now();
        self.write(|state| state.changed_at = state.changed_at.max(now));
    }

    /// Whether something happened after the newest reading began.
    pub(crate) fn has_changed(&self) -> bool {
        self.read(|state| state.snapshot.as_ref().is_none_or(|known| known.as_of <= state.changed_at))
    }

    /// Keeps what our newest trades made of a position.
    pub(crate) fn keep_recent(&self, symbol: &Symbol, recent: RecentTrades) {
        let now = self.clock.now();
        self.write(|state| state.recent.insert(symbol.clone(), (now, recent)));
    }

    /// What [`Self::keep_recent`] was told, while the venue may still show the position without those trades.
    pub(crate) fn recent(&self, symbol: &Symbol) -> Option<RecentTrades> {
        let now = self.clock.now();
        let known = self.read(|state| state.recent.get(symbol).cloned());
        known.filter(|(at, _)| now.since(*at) <= SHOWN_WITHIN).map(|(_, recent)| recent)
    }

    /// Notes trades that are explained. A venue may count the trades of each symbol anew.
    pub(crate) fn explain(&self, symbol: &Symbol, trades: impl IntoIterator<Item = TradeId>) {
        self.write(|state| {
            state.explained.extend(trades.into_iter().map(|trade| (symbol.clone(), trade)));
            let surplus = state.explained.len().saturating_sub(KEPT_TRADES);
            state.explained.drain(..surplus);
        });
    }

    /// Leaves out what is explained.
    pub(crate) fn without_explained(&self, fills: Vec<Fill>) -> Vec<Fill> {
        self.read(|state| {
            let known = |fill: &Fill| {
                state
                    .explained
                    .iter()
                    .any(|(symbol, trade)| *symbol == fill.symbol && *trade == fill.trade_id)
            };
            fills.into_iter().filter(|fill| !known(fill)).collect()
        })
    }

    /// A snapshot that is younger than `max_age` and newer than every change that we know of.
    pub(crate) async fn fresh(&self, max_age: Duration) -> Result<AccountSnapshot, ReadError> {
        let now = self.clock.now();
        let usable = self.read(|state| {
            state.snapshot.clone().filter(|known| {
                known.as_of > state.changed_at
                    && now.since(known.as_of) <= max_age
                    && self.reader.is_streaming()
            })
        });
        match usable {
            Some(snapshot) => Ok((*snapshot).clone()),
            None => self.refresh().await,
        }
    }

    /// Reads the account now.
    pub(crate) async fn refresh(&self) -> Result<AccountSnapshot, ReadError> {
        let result = self.reader.fetch_account().await;
        let now = self.clock.now();
        self.write(|state| {
            state.last_beat = now;
            match &result {
                Ok(snapshot) => {
                    state.last_error = None;
                    if state.snapshot.as_ref().is_none_or(|known| known.as_of <= snapshot.as_of) {
                        state.snapshot = Some(Arc::new(snapshot.clone()));
                    }
                    self.readings.send_modify(|count| *count = count.wrapping_add(1));
                }
                Err(error) => {
                    state.error_count = state.error_count.saturating_add(1);
                    state.last_error = Some(error.to_string());
                }
            }
        });
        result
    }

    /// Reads the account now, again and again where that fails: a venue's budget may be spent for a moment.
    pub(crate) async fn catch_up(&self) {
        for _ in 0..CATCH_UP_TIMES {
            if self.refresh().await.is_ok() {
                return;
            }
            tokio::time::sleep(CATCH_UP_EVERY).await;
        }
    }

    /// Keeps the state fresh until dropped.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut events = self.reader.subscribe();
        let mut failing = false;
        loop {
            match self.refresh().await {
                Ok(_) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(account = %self.id, %error, "account cannot be read");
                }
                Err(_) => {}
            }
            self.wait_until_due(&mut events).await;
        }
    }

    /// Waits until the account should be read again: a while after something happened, else when what is known
    /// is old. What an operation read in the meantime counts.
    async fn wait_until_due(&self, events: &mut broadcast::Receiver<AccountEvent>) {
        // What could not be read is not left alone as long as what was.
        let idle = self.reader.pace().idle;
        let is_failing = self.read(|state| state.last_error.is_some());
        let mut due = Instant::now() + if is_failing { idle.min(AGAIN_AFTER) } else { idle };
        loop {
            let pace = self.reader.pace();
            tokio::select! {
                biased;
                event = events.recv() => {
                    // A lagging receiver lost events: something did change. A closed one ends with the venue.
                    if matches!(event, Err(RecvError::Closed)) {
                        tokio::time::sleep(pace.idle).await;
                        return;
                    }
                    self.note_change();
                    due = due.min(Instant::now() + pace.after_event);
                }
                () = self.wake.notified() => due = due.min(Instant::now() + pace.after_event),
                () = tokio::time::sleep_until(due) => {
                    let rest = pace.idle.saturating_sub(self.age());
                    if self.has_changed() || rest.is_zero() {
                        return;
                    }
                    due = Instant::now() + rest;
                }
            }
        }
    }

    /// The age of the newest snapshot.
    fn age(&self) -> Duration {
        self.newest().map_or(Duration::MAX, |snapshot| self.clock.now().since(snapshot.as_of))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use deltaplane_ports::{MockAccountReader, Pace, ReadError};
    use deltaplane_testkit::{TestClock, account_snapshot};
    use deltaplane_types::{Refusal, RefusalReason};

    use super::*;

    /// A keeper at work, the count of its readings, and the account's stream.
    fn kept(pace: Pace) -> (Arc<AccountKeeper>, Arc<AtomicUsize>, broadcast::Sender<AccountEvent>) {
        let clock = Arc::new(TestClock::default());
        let readings = Arc::new(AtomicUsize::new(0));
        let (events, _) = broadcast::channel(64);
        let mut reader = MockAccountReader::new();
        let (count, at, stream) = (readings.clone(), clock.clone(), events.clone());
        reader.expect_fetch_account().returning(move || {
            count.fetch_add(1, Ordering::SeqCst);
            let mut snapshot = account_snapshot("main");
            snapshot.as_of = at.now();
            Ok(snapshot)
        });
        reader.expect_subscribe().returning(move || stream.subscribe());
        reader.expect_is_streaming().return_const(true);
        reader.expect_pace().return_const(pace);
        let keeper = Arc::new(AccountKeeper::new(
            "main".parse().unwrap(),
            "main".parse().unwrap(),
            "binance".to_owned(),
            Arc::new(reader),
            clock,
        ));
        tokio::spawn(keeper.clone().keep());
        (keeper, readings, events)
    }

    async fn pass(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    const PACE: Pace = Pace { idle: Duration::from_secs(5), after_event: Duration::from_secs(1) };

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_events_is_served_by_one_reading() {
        let (_keeper, readings, events) = kept(PACE);
        pass(500).await;
        assert_eq!(readings.load(Ordering::SeqCst), 1, "at the start");
        for _ in 0..5 {
            events
                .send(AccountEvent::BalanceChanged {
                    amount: None,
                    cause: deltaplane_ports::BalanceCause::Other,
                })
                .unwrap();
            pass(100).await;
        }
        pass(600).await;
        assert_eq!(readings.load(Ordering::SeqCst), 2, "a second after the first event");
        pass(4_000).await;
        assert_eq!(readings.load(Ordering::SeqCst), 2, "nothing happened since");
        pass(1_000).await;
        assert_eq!(readings.load(Ordering::SeqCst), 3, "five seconds later");
    }

    #[test]
    fn a_venue_that_is_away_takes_back_nothing_of_what_it_said() {
        let away = |check| Finding::untold(check, &ReadError::Unreachable("away".to_owned()));
        let fine = |check| Finding::fine(check, "");
        let wrong = |check| Finding::blocking(check, "wrong", "mend it");
        // At the start nothing is known.
        assert_eq!(merged(Vec::new(), vec![away(Check::Clock)]), [away(Check::Clock)]);
        // What was found stays, good and bad.
        let before = vec![fine(Check::Permissions), wrong(Check::Margin)];
        assert_eq!(merged(before.clone(), vec![away(Check::Permissions)]), before);
        // What is found now counts beside it.
        let now = vec![away(Check::Permissions), wrong(Check::Agent)];
        let expected = [wrong(Check::Agent), fine(Check::Permissions), wrong(Check::Margin)];
        assert_eq!(merged(before.clone(), now), expected);
        // A key that was revoked is no venue that is away.
        let text = "Invalid API-key, IP, or permissions for action.".to_owned();
        let refusal = Refusal { reason: RefusalReason::NotPermitted, code: None, text };
        let revoked = Finding::untold(Check::Permissions, &ReadError::Refused(refusal));
        let known = [revoked.clone(), wrong(Check::Margin)];
        assert_eq!(merged(before.clone(), vec![revoked.clone(), away(Check::Margin)]), known);
        assert_eq!(revoked.severity, Severity::Blocking);
        // A whole look replaces all.
        assert_eq!(merged(before, vec![fine(Check::Margin)]), [fine(Check::Margin)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_decision_read_is_not_read_again() {
        let (keeper, readings, _events) = kept(PACE);
        pass(500).await;
        keeper.mark_changed();
        pass(100).await;
        keeper.fresh(Duration::from_secs(2)).await.unwrap();
        assert_eq!(readings.load(Ordering::SeqCst), 2, "at once: it changed");
        pass(4_900).await;
        assert_eq!(readings.load(Ordering::SeqCst), 2, "until that one is five seconds old");
        pass(200).await;
        assert_eq!(readings.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trade_is_explained_by_its_symbol_and_number() {
        let (keeper, _, _) = kept(PACE);
        let fill = |symbol: &str| Fill {
            account: "main".parse().unwrap(),
            symbol: symbol.parse().unwrap(),
            trade_id: "7".parse().unwrap(),
            venue_order_id: "1".parse().unwrap(),
            client_order_id: None,
            side: deltaplane_types::Side::Buy,
            quantity: deltaplane_testkit::quantity("1"),
            price: deltaplane_testkit::price("50000"),
            fee: deltaplane_types::Notional::ZERO,
            cause: deltaplane_types::FillCause::Order,
            venue_time: Timestamp::default(),
        };
        keeper.explain(&"BTC-USD".parse().unwrap(), ["7".parse().unwrap()]);
        let left = keeper.without_explained(vec![fill("BTC-USD"), fill("ETH-USD")]);
        assert_eq!(left, [fill("ETH-USD")]);
    }
}
