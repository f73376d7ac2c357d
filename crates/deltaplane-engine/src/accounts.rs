//! The newest state of every account: folded from its stream while that is proven, else read by REST.
//!
//! [`crate::account_fold`] decides what a state is; this reads and listens for it. Decisions take the folded state and
//! wait for no reading as long as the stream is proven.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::account_fold::{AccountFold, Mismatch, Outcome};
use crate::changes::{ChangeListener, Changes};
use crate::equity::EquityTrack;
use crate::ids::IdKey;
use crate::logins::Logins;
use deltaplane_ports::{
    AccountEvent, AccountReader, Check, Clock, Finding, OpenOrder, Priority, ReadError, Severity,
};
use deltaplane_types::{AccountId, AccountSnapshot, Delta, Fill, Symbol, Timestamp, TradeId, VenueId};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
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
    /// What trades of others had moved by then, since the engine started.
    pub(crate) external: Delta,
}

/// How soon a reading that failed is tried again, at the latest.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Readings that check the fold are at least this far apart.
const AUDIT_GAP: Duration = Duration::from_secs(1);
/// A stream tells a trade of ours no later than this, or the account is read.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
/// Two readings, the second when reads can lag no longer, decide between a stream and a reading no later than this.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);
/// How often the proof of a stream is looked at.
const PROOF_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    fold: AccountFold,
    /// The fold's state, shared with those who read it.
    snapshot: Option<Arc<AccountSnapshot>>,
    /// When the newest reading was asked for.
    read_at: Timestamp,
    /// Until when the folded state was known to be the account's.
    live_until: Timestamp,
    /// When the open orders were asked for.
    orders_read_at: Timestamp,
    /// The newest reading as the venue answered it.
    reading: Option<Arc<AccountSnapshot>>,
    /// Readings that began before this may lack what we know to have happened.
    changed_at: Timestamp,
    /// When the fold is to be checked, earlier than its schedule.
    audit_at: Option<Timestamp>,
    /// Differences between stream and reads that were not reported yet.
    mismatches: Vec<Mismatch>,
    /// When differences lasted.
    mismatched_at: Vec<Timestamp>,
    last_error: Option<String>,
    /// When the last reading in the background failed; none where it did not.
    failed_at: Option<Timestamp>,
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
pub(crate) struct AccountMonitor {
    pub(crate) id: AccountId,
    pub(crate) venue: VenueId,
    pub(crate) exchange: String,
    pub(crate) reader: Arc<dyn AccountReader>,
    clock: Arc<dyn Clock>,
    /// Tells orders of ours from others.
    id_key: IdKey,
    /// The venue's names of all accounts of the engine.
    logins: Arc<Logins>,
    state: RwLock<State>,
    wake: Notify,
    /// One reading for a decision at a time: those who wait take its answer.
    reading: tokio::sync::Mutex<()>,
    /// What its equity did.
    pub(crate) equity: EquityTrack,
    /// Counts whole states that were read.
    readings: Changes,
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
pub(crate) struct MonitorHealth {
    pub(crate) last_beat: Timestamp,
    pub(crate) error_count: u64,
    pub(crate) failing: bool,
}

impl AccountMonitor {
    pub(crate) fn new(
        id: AccountId,
        venue: VenueId,
        exchange: String,
        reader: Arc<dyn AccountReader>,
        clock: Arc<dyn Clock>,
        id_key: IdKey,
        logins: Arc<Logins>,
    ) -> Self {
        Self {
            id,
            venue,
            exchange,
            reader,
            clock,
            id_key,
            logins,
            state: RwLock::default(),
            wake: Notify::new(),
            reading: tokio::sync::Mutex::default(),
            equity: EquityTrack::default(),
            readings: Changes::new(),
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

    /// The newest reading as the venue answered it: without what the stream told.
    pub(crate) fn reading(&self) -> Option<Arc<AccountSnapshot>> {
        self.read(|state| state.reading.clone())
    }

    /// Whether the folded state is the account's state now: its stream is proven, and a reading and all events since then
    /// are in it.
    pub(crate) fn is_live(&self) -> bool {
        self.reader.stream().is_proven() && self.read(|state| state.fold.is_synced())
    }

    /// When the newest state was true: now where the stream is proven, else when it was that or was read, whichever is
    /// later.
    pub(crate) fn confirmed_at(&self) -> Option<Timestamp> {
        if self.is_live() {
            let now = self.clock.now();
            return self.newest().map(|_| now);
        }
        self.read(|state| Some(state.snapshot.as_ref()?.as_of.max(state.live_until)))
    }

    /// The newest snapshot, if it was true no longer ago than this.
    pub(crate) fn known(&self, within: Duration) -> Option<Arc<AccountSnapshot>> {
        let age = self.clock.now().since(self.confirmed_at()?);
        self.newest().filter(|_| age <= within)
    }

    /// The open orders as they were known last.
    pub(crate) fn last_open_orders(&self) -> Vec<OpenOrder> {
        self.read(|state| state.fold.last_open_orders())
    }

    /// What trades of ours moved a position that its state does not show yet.
    pub(crate) fn awaited_move(&self, symbol: &Symbol) -> Delta {
        self.read(|state| state.fold.awaited_move(symbol))
    }

    /// The open orders of all symbols, as far as they are known.
    pub(crate) fn open_orders(&self) -> Option<Vec<OpenOrder>> {
        self.read(|state| state.fold.open_orders())
    }

    /// What trades of others moved a position since the start, as far as the stream told.
    pub(crate) fn external(&self, symbol: &Symbol) -> Delta {
        self.read(|state| state.fold.external(symbol))
    }

    /// The newest trades of others in a symbol that were not named yet, oldest first, as the stream told them.
    pub(crate) fn external_fills(&self, symbol: &Symbol) -> Vec<Fill> {
        let fills = self.read(|state| state.fold.external_fills(symbol));
        self.without_explained(fills)
    }

    /// Trades of ours that are known, with what they moved: the state is complete once it has them all.
    pub(crate) fn expect_trades(&self, symbol: &Symbol, trades: Vec<(TradeId, Delta)>) {
        let now = self.clock.now();
        self.write(|state| state.fold.expect(symbol, trades, now));
        self.wake.notify_one();
    }

    /// Whether the state is exact: live and settled.
    pub(crate) fn is_exact(&self) -> bool {
        self.is_live() && self.is_settled()
    }

    /// Whether the state has every trade of ours that is known, every move has its trade, and no reading says otherwise.
    pub(crate) fn is_settled(&self) -> bool {
        self.read(|state| if state.fold.is_synced() { state.fold.is_settled() } else { true })
    }

    /// Counts a mismatch; gives how many there were within this time.
    pub(crate) fn count_mismatch(&self, at: Timestamp, within: Duration) -> usize {
        self.write(|state| {
            state.mismatched_at.retain(|earlier| at.since(*earlier) < within);
            state.mismatched_at.push(at);
            state.mismatched_at.len()
        })
    }

    /// Differences between stream and readings since the last call.
    pub(crate) fn take_mismatches(&self) -> Vec<Mismatch> {
        self.write(|state| std::mem::take(&mut state.mismatches))
    }

    /// Why orders may not be sent for it.
    pub(crate) fn blocked(&self) -> Option<String> {
        self.read(|state| {
            let found = || match &state.findings {
                None => Some("preflight has not run yet".to_owned()),
                Some(findings) => {
                    let login = self.logins.check(&self.id);
                    let blocking = findings.iter().chain(&login);
                    let blocking = blocking.filter(|finding| finding.severity >= Severity::Unknown);
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
        let mut findings = self.reader.preflight(symbol, Priority::Sync).await;
        self.logins.note(&self.id, self.reader.venue_account());
        self.write(|state| {
            let before = state.findings.take().unwrap_or_default();
            state.findings = Some(merged(before, findings.clone()));
        });
        findings.extend(self.logins.check(&self.id));
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
            // A check cannot reconcile the account.
            let looks = is_due || (self.is_reconciled() && self.blocked().is_some());
            if looks {
                self.preflight(&symbol).await;
                checked = Some(Instant::now());
            }
            // At a start nothing is reconciled yet: it is logged only if it lasts.
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
    pub(crate) fn readings(&self) -> ChangeListener {
        self.readings.listen()
    }

    pub(crate) fn block(&self, reason: Option<String>) {
        self.write(|state| state.blocked = reason);
    }

    pub(crate) fn health(&self) -> MonitorHealth {
        self.read(|state| MonitorHealth {
            last_beat: state.last_beat,
            error_count: state.error_count,
            failing: state.last_error.is_some(),
        })
    }

    /// Something happened on the account that its stream may not tell: what was read before does not count any more
    /// where the stream is not proven.
    pub(crate) fn mark_changed(&self) {
        self.note_change();
        self.wake.notify_one();
    }

    fn note_change(&self) {
        let now = self.clock.now();
        self.write(|state| state.changed_at = state.changed_at.max(now));
    }

    /// Has the fold checked by a reading soon.
    pub(crate) fn audit_soon(&self) {
        let now = self.clock.now();
        self.write(|state| state.audit_at = Some(state.audit_at.map_or(now, |at| at.min(now))));
        self.mark_changed();
    }

    /// Whether something happened that the newest state may lack.
    pub(crate) fn has_changed(&self) -> bool {
        !self.is_live() && self.read(|state| state.snapshot.is_none() || state.read_at <= state.changed_at)
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

    /// Notes trades that are explained. A venue may count the trades of each symbol apart.
    pub(crate) fn explain(&self, symbol: &Symbol, trades: impl IntoIterator<Item = TradeId>) {
        let trades: Vec<TradeId> = trades.into_iter().collect();
        self.write(|state| {
            state.fold.forget_external(symbol, &trades);
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

    /// The state now: folded where the stream is proven, else a reading that is younger than `max_age` and newer than
    /// every change that we know of.
    pub(crate) async fn fresh(
        &self,
        max_age: Duration,
        priority: Priority,
    ) -> Result<AccountSnapshot, ReadError> {
        if let Some(snapshot) = self.usable(max_age, Timestamp::default()) {
            return Ok(snapshot);
        }
        if self.is_live() && self.settles(priority).await {
            return self.refresh_unless(self.usable(max_age, Timestamp::default()), priority).await;
        }
        let asked = self.clock.now();
        // A protective operation waits for no other read.
        let _turn = if priority == Priority::Protect { None } else { Some(self.reading.lock().await) };
        self.refresh_unless(self.usable(max_age, asked), priority).await
    }

    async fn refresh_unless(
        &self,
        usable: Option<AccountSnapshot>,
        priority: Priority,
    ) -> Result<AccountSnapshot, ReadError> {
        match usable {
            Some(snapshot) => Ok(snapshot),
            None => self.refresh(priority).await,
        }
    }

    /// The state by a question to the venue, which decides where stream and readings differ.
    pub(crate) async fn ask_venue(&self, priority: Priority) -> Result<AccountSnapshot, ReadError> {
        let read = self.refresh(priority).await?;
        if self.is_live() && !self.is_settled() {
            self.settles(priority).await;
        }
        Ok(self.usable(Duration::ZERO, Timestamp::default()).unwrap_or(read))
    }

    /// Waits for a while until the state is settled; gives whether it is. Who protects waits less.
    async fn settles(&self, priority: Priority) -> bool {
        let within = if priority == Priority::Protect { TOLD_WITHIN } else { SETTLED_WITHIN };
        let mut readings = self.readings();
        let told = async {
            while !self.is_settled() {
                if !readings.changed().await {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(within, told).await.is_ok()
    }

    /// The state, where it needs no reading, or one that was asked for since `asked` came.
    fn usable(&self, max_age: Duration, asked: Timestamp) -> Option<AccountSnapshot> {
        let now = self.clock.now();
        if self.is_live() {
            let newest = self.newest().filter(|_| self.is_settled())?;
            return Some(AccountSnapshot { as_of: now, ..(*newest).clone() });
        }
        self.read(|state| {
            let is_young = now.since(state.read_at) <= max_age && state.read_at > state.changed_at;
            let is_new = asked != Timestamp::default() && state.read_at >= asked;
            let streams = self.reader.stream().is_connected;
            state.snapshot.as_deref().filter(|_| is_new || (is_young && streams)).cloned()
        })
    }

    /// A reading of another account is none: orders would go to one and positions be counted of the other.
    fn of_this_account(&self, reading: AccountSnapshot) -> Result<AccountSnapshot, ReadError> {
        if reading.account == self.id {
            return Ok(reading);
        }
        let told = &reading.account;
        Err(ReadError::Unreadable(format!("its connector tells of the account {told}, not of {}", self.id)))
    }

    /// Reads the account now and gives its state with that.
    pub(crate) async fn refresh(&self, priority: Priority) -> Result<AccountSnapshot, ReadError> {
        let result =
            self.reader.fetch_account(priority).await.and_then(|reading| self.of_this_account(reading));
        let now = self.clock.now();
        let is_proven = self.reader.stream().is_proven();
        let changed = self.write(|state| {
            state.last_beat = now;
            match &result {
                Ok(reading) => {
                    state.last_error = None;
                    if reading.as_of >= state.read_at {
                        state.read_at = reading.as_of;
                        state.reading = Some(Arc::new(reading.clone()));
                    }
                    let options = |symbol: &Symbol| self.reader.known_instrument(symbol);
                    let outcome = state.fold.on_reading(reading.clone(), is_proven, now, &options);
                    Self::take(state, outcome, now);
                    true
                }
                Err(error) => {
                    state.error_count = state.error_count.saturating_add(1);
                    state.last_error = Some(error.to_string());
                    false
                }
            }
        });
        if changed {
            self.tell();
            self.wake.notify_one();
        }
        result.map(|reading| self.newest().as_deref().cloned().unwrap_or(reading))
    }

    /// Takes what the fold asks for, and shares its state.
    fn take(state: &mut State, outcome: Outcome, now: Timestamp) {
        if outcome.resync {
            (state.audit_at, state.changed_at) = (Some(now), now);
        }
        if let Some(after) = outcome.audit_after {
            let at = now.after(after);
            state.audit_at = Some(state.audit_at.map_or(at, |known| known.min(at)));
        }
        state.mismatches.extend(outcome.mismatches);
        if outcome.changed || state.snapshot.is_none() {
            state.snapshot = state.fold.snapshot().cloned().map(Arc::new);
        }
    }

    fn tell(&self) {
        self.readings.tell();
    }

    /// Takes an event of the stream. A trade of another account is none of this one: what its connector tells then is not
    /// believed without a reading.
    fn on_event(&self, event: &AccountEvent) {
        let now = self.clock.now();
        let event = match event {
            AccountEvent::Fill(fill, _) if fill.account != self.id => {
                tracing::error!(account = %self.id, told = %fill.account, "its connector tells of another account");
                &AccountEvent::Unreadable
            }
            event => event,
        };
        let is_ours =
            |fill: &Fill| fill.client_order_id.as_ref().is_some_and(|name| self.id_key.read(name).is_some());
        let options = |symbol: &Symbol| self.reader.known_instrument(symbol);
        let changed = self.write(|state| {
            // Where the stream is not proven, an event says that something changed.
            state.changed_at = state.changed_at.max(now);
            let was_unsettled = !state.fold.is_settled();
            let outcome = state.fold.apply(event, now, is_ours, &options);
            if matches!(event, AccountEvent::Connected | AccountEvent::Unreadable) {
                state.fold.connected_there(self.reader.venue_clock(now));
            }
            let changed = outcome.changed || (was_unsettled && state.fold.is_settled());
            Self::take(state, outcome, now);
            changed
        });
        if changed {
            self.tell();
        }
    }

    /// Checks the fold by a reading of the account and of its open orders.
    async fn audit(self: Arc<Self>) {
        let began = self.clock.now();
        // Taken before the question: what asks for another one meanwhile is heard.
        self.write(|state| state.audit_at = None);
        let read = self.refresh(Priority::Sync).await;
        if let Err(error) = &read {
            let now = self.clock.now();
            if self.write(|state| state.failed_at.replace(now)).is_none() {
                tracing::warn!(account = %self.id, %error, "account cannot be read");
            }
            return;
        }
        // The list of open orders costs more than all else: the stream tells their changes, and without one it would be old at
        // once.
        let every = self.reader.pace().audit.saturating_mul(9) / 10;
        let is_due = self.write(|state| {
            state.failed_at = None;
            let is_old = state.fold.open_orders().is_none() || began.since(state.orders_read_at) >= every;
            let is_due = state.fold.is_connected() && is_old;
            if is_due {
                state.orders_read_at = began;
            }
            is_due
        });
        if is_due && let Ok(orders) = self.reader.fetch_all_open_orders(Priority::Sync).await {
            self.write(|state| state.fold.on_open_orders(orders, began));
        }
    }

    /// Keeps the state fresh until dropped: takes every event, and reads when that is due.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut events = self.reader.subscribe();
        let mut reading: Option<BoxFuture<'static, ()>> = Some(self.clone().audit().boxed());
        let mut proof = tokio::time::interval(PROOF_EVERY);
        let mut was_proven = None;
        let mut audits = 0_u32;
        loop {
            let due = self.due_at(audits);
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Ok(event) => self.on_event(&event),
                    // Lost events: as after a disconnect.
                    Err(RecvError::Lagged(_)) => self.on_event(&AccountEvent::Unreadable),
                    Err(RecvError::Closed) => return,
                },
                () = async { if let Some(reading) = reading.as_mut() { reading.await } }, if reading.is_some() => {
                    reading = None;
                    audits = audits.wrapping_add(1);
                }
                () = self.wake.notified() => {}
                _ = proof.tick() => {
                    let now = self.clock.now();
                    let status = self.reader.stream();
                    if status.is_connected && !self.read(|state| state.fold.is_connected()) {
                        // It connected before anybody listened.
                        self.on_event(&AccountEvent::Connected);
                    }
                    let proven = status.proven_since;
                    if was_proven.is_some() && proven != was_proven {
                        // The proof failed or begins again: what came between is read.
                        self.on_event(&AccountEvent::Unreadable);
                    }
                    was_proven = proven;
                    let is_live = self.is_live();
                    self.write(|state| {
                        state.last_beat = now;
                        if is_live {
                            state.live_until = now;
                        }
                        let outcome = state.fold.on_time(now);
                        Self::take(state, outcome, now);
                    });
                }
                () = tokio::time::sleep_until(due), if reading.is_none() => {
                    reading = Some(self.clone().audit().boxed());
                }
            }
        }
    }

    /// When the account is to be read next.
    fn due_at(&self, audits: u32) -> Instant {
        let pace = self.reader.pace();
        let now = self.clock.now();
        let is_live = self.is_live();
        let wait = self.read(|state| {
            let age = now.since(state.read_at);
            if let Some(failed_at) = state.failed_at {
                return AGAIN_AFTER.min(pace.idle).saturating_sub(now.since(failed_at));
            }
            let asked = state.audit_at.map(|at| at.since(now).max(AUDIT_GAP.saturating_sub(age)));
            let scheduled = if is_live {
                self.spread(pace.audit, audits).saturating_sub(age)
            } else if state.changed_at >= state.read_at {
                pace.after_event.saturating_sub(age)
            } else {
                pace.idle.saturating_sub(age)
            };
            asked.map_or(scheduled, |asked| asked.min(scheduled))
        });
        Instant::now() + wait
    }

    /// The time to the next audit: accounts are read at different moments, a tenth earlier or later each time.
    fn spread(&self, every: Duration, audits: u32) -> Duration {
        let mut hasher = DefaultHasher::new();
        (self.id.as_str(), audits).hash(&mut hasher);
        let part = u32::try_from(hasher.finish() % 201).unwrap_or(100);
        every.saturating_mul(900 + part) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use deltaplane_ports::{MockAccountReader, Pace, ReadError, StreamStatus};
    use deltaplane_testkit::{TestClock, account_snapshot};
    use deltaplane_types::{Refusal, RefusalReason};
    use tokio::sync::broadcast;

    use super::*;

    /// A stream that is connected and not proven.
    fn unproven() -> Arc<Mutex<StreamStatus>> {
        Arc::new(Mutex::new(StreamStatus { is_connected: true, proven_since: None }))
    }

    #[tokio::test]
    async fn a_reading_of_another_account_is_none() {
        let mut reader = MockAccountReader::new();
        reader.expect_fetch_account().returning(|_| Ok(account_snapshot("other")));
        reader.expect_stream().returning(StreamStatus::default);
        let clock = Arc::new(TestClock::default());
        let (id, venue) = ("main".parse().unwrap(), "main".parse().unwrap());
        let key = IdKey::new(b"tests");
        let logins = Arc::default();
        let monitor =
            AccountMonitor::new(id, venue, "binance".to_owned(), Arc::new(reader), clock, key, logins);
        let error = monitor.refresh(Priority::Sync).await.unwrap_err().to_string();
        assert!(error.contains("tells of the account other, not of main"), "{error}");
        assert!(monitor.newest().is_none());
    }

    /// A account monitor at work, the count of its readings, and the account's stream.
    fn kept(
        pace: Pace,
        proof: Arc<Mutex<StreamStatus>>,
    ) -> (Arc<AccountMonitor>, Arc<AtomicUsize>, broadcast::Sender<AccountEvent>) {
        let clock = Arc::new(TestClock::default());
        let readings = Arc::new(AtomicUsize::new(0));
        let (events, _) = broadcast::channel(64);
        let mut reader = MockAccountReader::new();
        let (count, at, stream) = (readings.clone(), clock.clone(), events.clone());
        reader.expect_fetch_account().returning(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            let mut snapshot = account_snapshot("main");
            (snapshot.as_of, snapshot.valued_at) = (at.now(), at.now());
            Ok(snapshot)
        });
        reader.expect_subscribe().returning(move || stream.subscribe());
        reader.expect_fetch_all_open_orders().returning(|_| Ok(Vec::new()));
        reader.expect_known_instrument().returning(|_| None);
        reader.expect_venue_clock().returning(Some);
        let status = proof.clone();
        reader.expect_stream().returning(move || *status.lock().unwrap());
        reader.expect_pace().return_const(pace);
        let monitor = Arc::new(AccountMonitor::new(
            "main".parse().unwrap(),
            "main".parse().unwrap(),
            "binance".to_owned(),
            Arc::new(reader),
            clock,
            IdKey::new(b"tests"),
            Arc::default(),
        ));
        tokio::spawn(monitor.clone().keep());
        (monitor, readings, events)
    }

    /// A trade of another account on this one's stream: the state is not believed before it was read again.
    #[tokio::test(start_paused = true)]
    async fn a_trade_of_another_account_is_none_and_has_the_account_read() {
        let proven = StreamStatus { is_connected: true, proven_since: Some(Timestamp::default()) };
        let (monitor, readings, events) = kept(PACE, Arc::new(Mutex::new(proven)));
        pass(10_000).await;
        let before = readings.load(Ordering::SeqCst);
        let mut fill = fill("BTC-USD");
        fill.account = "other".parse().unwrap();
        events.send(AccountEvent::Fill(fill, 1)).unwrap();
        pass(2_000).await;
        assert!(readings.load(Ordering::SeqCst) > before);
        assert!(monitor.external(&"BTC-USD".parse().unwrap()).is_zero(), "it moved nothing here");
    }

    fn fill(symbol: &str) -> Fill {
        Fill {
            account: "main".parse().unwrap(),
            symbol: symbol.parse().unwrap(),
            trade_id: "7".parse().unwrap(),
            venue_order_id: "1".parse().unwrap(),
            client_order_id: None,
            side: deltaplane_types::Side::Buy,
            quantity: deltaplane_testkit::quantity("1"),
            price: deltaplane_testkit::price("50000"),
            fee: deltaplane_types::Fee::default(),
            cause: deltaplane_types::FillCause::Order,
            venue_time: Timestamp::default(),
        }
    }

    async fn pass(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    const PACE: Pace = Pace {
        idle: Duration::from_secs(5),
        after_event: Duration::from_secs(1),
        audit: Duration::from_secs(60),
    };

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_events_is_served_by_one_reading() {
        let (_keeper, readings, events) = kept(PACE, unproven());
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
        pass(2_800).await;
        assert_eq!(readings.load(Ordering::SeqCst), 2, "nothing happened since");
        pass(300).await;
        assert_eq!(readings.load(Ordering::SeqCst), 3, "reads of the stream's first moments may have lagged");
        pass(4_500).await;
        assert_eq!(readings.load(Ordering::SeqCst), 3, "nothing happened since");
        pass(1_000).await;
        assert_eq!(readings.load(Ordering::SeqCst), 4, "five seconds later");
    }

    #[test]
    fn a_venue_that_is_away_takes_back_nothing_of_what_it_said() {
        let away = |check| Finding::untold(check, &ReadError::Unreachable("away".to_owned()));
        let fine = |check| Finding::fine(check, "");
        let wrong = |check| Finding::blocking(check, "wrong", "fix it");
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
        let refusal = Refusal { reason: RefusalReason::NotPermitted, code: None, text, remedy: None };
        let revoked = Finding::untold(Check::Permissions, &ReadError::Refused(refusal));
        let known = [revoked.clone(), wrong(Check::Margin)];
        assert_eq!(merged(before.clone(), vec![revoked.clone(), away(Check::Margin)]), known);
        assert_eq!(revoked.severity, Severity::Blocking);
        // A whole look replaces all.
        assert_eq!(merged(before, vec![fine(Check::Margin)]), [fine(Check::Margin)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_read_for_a_decision_is_not_read_again() {
        let (monitor, readings, _events) = kept(PACE, unproven());
        pass(500).await;
        monitor.mark_changed();
        pass(100).await;
        monitor.fresh(Duration::from_secs(2), Priority::Hedge).await.unwrap();
        assert_eq!(readings.load(Ordering::SeqCst), 2, "at once: it changed");
        // With the open orders, which the connection asked for; and once more when reads cannot lag any more.
        pass(1_100).await;
        assert_eq!(readings.load(Ordering::SeqCst), 3);
        pass(3_200).await;
        assert_eq!(readings.load(Ordering::SeqCst), 3);
        pass(500).await;
        assert_eq!(readings.load(Ordering::SeqCst), 4);
        pass(4_600).await;
        assert_eq!(readings.load(Ordering::SeqCst), 4, "until that one is five seconds old");
        pass(500).await;
        assert_eq!(readings.load(Ordering::SeqCst), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_stream_replaces_readings_and_its_end_brings_them_back() {
        let proven = StreamStatus { is_connected: true, proven_since: Some(Timestamp::default()) };
        let proof = Arc::new(Mutex::new(proven));
        let (monitor, readings, events) = kept(PACE, proof.clone());
        pass(10).await;
        events.send(AccountEvent::Connected).unwrap();
        // One at the start, one for the connection, and one more after reads can lag no longer.
        pass(10_000).await;
        let at_start = readings.load(Ordering::SeqCst);
        assert!(monitor.is_live() && at_start == 3, "{at_start}");
        for _ in 0..20 {
            let snapshot = monitor.fresh(Duration::from_secs(2), Priority::Hedge).await.unwrap();
            assert_eq!(snapshot.as_of, monitor.now(), "the state of now");
            pass(1_000).await;
        }
        assert_eq!(readings.load(Ordering::SeqCst), at_start, "decisions read nothing");
        pass(60_000).await;
        let audited = readings.load(Ordering::SeqCst) - at_start;
        assert!((1..=2).contains(&audited), "{audited} audits in 80 s");
        *proof.lock().unwrap() = StreamStatus { is_connected: true, proven_since: None };
        pass(10_500).await;
        assert!(!monitor.is_live());
        let again = readings.load(Ordering::SeqCst) - at_start - audited;
        assert!((2..=4).contains(&again), "{again} readings in 10 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trade_is_explained_by_its_symbol_and_number() {
        let (monitor, _, _) = kept(PACE, unproven());
        monitor.explain(&"BTC-USD".parse().unwrap(), ["7".parse().unwrap()]);
        let left = monitor.without_explained(vec![fill("BTC-USD"), fill("ETH-USD")]);
        assert_eq!(left, [fill("ETH-USD")]);
    }
}
