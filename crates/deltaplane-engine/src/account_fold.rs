//! The state of one account as a fold: a reading, then the events of the account's stream, checked by later readings.
//!
//! Pure: time and events come in, the state and what has to be done come out. Never: an event that counts twice, or a
//! reading that replaces what a newer event told. [`crate::accounts`] is the shell around it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use deltaplane_math::{MathError, div, maintenance_margin, mul_rounded};
use deltaplane_ports::{AccountEvent, AccountTotals, BalanceCause, OpenOrder, WalletChange};
use deltaplane_types::{
    AccountSnapshot, Decimal, Delta, Fill, FillCause, HeldSide, Instrument, Notional, Position, Price,
    Symbol, Timestamp, TradeId, VenueOrderId,
};

/// Trade numbers that are remembered, so that a repeated trade counts once.
const KEPT_TRADES: usize = 4_000;
/// Events that are kept while the first reading is on its way; beyond that the reading is repeated.
const KEPT_EVENTS: usize = 4_000;
/// Values of a position at one place in the venue's order that are remembered, so that a repeated event changes nothing.
const KEPT_VALUES: usize = 8;
/// A position that moved without a trade is audited when no trade explained it within this time.
const TRADE_WITHIN: Duration = Duration::from_secs(1);
/// A reading that differs from what the stream told is repeated after this time: most often it was only late.
const READ_AGAIN: Duration = Duration::from_millis(500);
/// A venue's reads lag behind its matching by at most this much: a difference is looked at again after it.
pub(crate) const READS_LAG: Duration = Duration::from_millis(3_500);

/// The margin terms of a symbol that the account holds nothing of yet.
pub(crate) type OperationOptions<'a> = &'a dyn Fn(&Symbol) -> Option<Instrument>;

/// What the stream told of a symbol since it connected.
#[derive(Clone, Debug, Default)]
struct Told {
    /// When the newest event came, by our clock.
    at: Timestamp,
    /// The place up to which the position tells everything.
    order: u64,
    /// What the position was at this place, before its next event.
    values: VecDeque<Delta>,
    /// What the position moved without a trade, and since when.
    untraded: Delta,
    untraded_since: Option<Timestamp>,
}

impl Told {
    /// Whether a trade's change is a part of what the position moved without one.
    fn has(&self, change: Delta) -> bool {
        let (moved, change) = (self.untraded.value(), change.value());
        moved.is_sign_negative() == change.is_sign_negative() && moved.abs() >= change.abs()
    }
}

/// A reading that differs from what the stream told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspicion {
    read: Delta,
    folded: Delta,
    since: Timestamp,
    /// The place that the reading told, where it did.
    order: Option<u64>,
    /// The reading counts already: the stream has time to tell it too.
    is_taken: bool,
}

/// A difference between stream and readings that lasted over a repetition. The reading counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) symbol: Symbol,
    /// What the stream's events came to.
    pub(crate) folded: Delta,
    /// What two readings showed.
    pub(crate) read: Delta,
    pub(crate) at: Timestamp,
}

/// What an event or a reading asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The state is another one.
    pub(crate) changed: bool,
    /// The account must be read before the fold counts again.
    pub(crate) resync: bool,
    /// The account is to be read after this time, to check the fold.
    pub(crate) audit_after: Option<Duration>,
    /// Differences that lasted.
    pub(crate) mismatches: Vec<Mismatch>,
}

impl Outcome {
    fn audit(&mut self, after: Duration) {
        self.audit_after = Some(self.audit_after.map_or(after, |known| known.min(after)));
    }
}

/// An account's state.
#[derive(Debug, Default)]
pub(crate) struct AccountFold {
    snapshot: Option<AccountSnapshot>,
    /// Orders by symbol and the venue's number, with the time at which they were told: those that ended stay until the next
    /// list, with nothing left. None while they are not known.
    open: Option<BTreeMap<(Symbol, VenueOrderId), (OpenOrder, Timestamp)>>,
    /// What was open when the stream broke.
    last_open: Vec<OpenOrder>,
    connected_at: Option<Timestamp>,
    /// The same by the venue's clock, where that is known.
    connected_there: Option<Timestamp>,
    /// A reading that began after the stream connected is in the state, so that nothing is missing.
    is_synced: bool,
    /// A trade was left out for its time alone: the reading that should have it may lag.
    lacks_dropped: bool,
    /// Events since the stream connected, until that reading.
    buffered: Vec<(Timestamp, AccountEvent)>,
    told: BTreeMap<Symbol, Told>,
    /// The newest place in the venue's order that was told of a symbol by event or reading, and when. A new connection
    /// forgets none.
    newest: BTreeMap<Symbol, (u64, Timestamp)>,
    /// The newest place that a position was told at by the stream: readings after it have it.
    placed: BTreeMap<Symbol, u64>,
    /// The place up to which the newest reading that counts has everything.
    read_order: BTreeMap<Symbol, u64>,
    /// The symbols of which that reading told its place itself: what comes after is not in it.
    placed_by_reading: BTreeSet<Symbol>,
    suspicions: BTreeMap<Symbol, Suspicion>,
    trades: BTreeSet<(Symbol, TradeId)>,
    newest_trades: VecDeque<(Symbol, TradeId)>,
    /// What trades of others moved since the start, by symbol.
    external: BTreeMap<Symbol, Delta>,
    external_fills: VecDeque<Fill>,
    /// Trades of ours that the stream has not told yet, what they moved, and since when they are known.
    awaited: BTreeMap<(Symbol, TradeId), (Delta, Timestamp)>,
}

impl AccountFold {
    /// The state as it is known now.
    pub(crate) const fn snapshot(&self) -> Option<&AccountSnapshot> {
        self.snapshot.as_ref()
    }

    /// Whether the stream is connected, as far as it told.
    pub(crate) const fn is_connected(&self) -> bool {
        self.connected_at.is_some()
    }

    /// Whether a reading and all events since then are in the state.
    pub(crate) const fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// The open orders of all symbols; none where they are not known.
    pub(crate) fn open_orders(&self) -> Option<Vec<OpenOrder>> {
        let open = self.open.as_ref()?.values().map(|(order, _)| order);
        Some(open.filter(|order| !order.left.is_zero()).cloned().collect())
    }

    /// The open orders as they were known last: while nothing is known of them now, those of before the stream broke.
    pub(crate) fn last_open_orders(&self) -> Vec<OpenOrder> {
        self.open_orders().unwrap_or_else(|| self.last_open.clone())
    }

    /// What trades of others moved a position since the start, as far as the stream told.
    pub(crate) fn external(&self, symbol: &Symbol) -> Delta {
        self.external.get(symbol).copied().unwrap_or_default()
    }

    /// The newest trades of others in a symbol, oldest first, as the stream told them.
    pub(crate) fn external_fills(&self, symbol: &Symbol) -> Vec<Fill> {
        self.external_fills.iter().filter(|fill| fill.symbol == *symbol).cloned().collect()
    }

    /// External trades are explained: they are not reported again.
    pub(crate) fn forget_external(&mut self, symbol: &Symbol, trades: &[TradeId]) {
        self.external_fills.retain(|fill| fill.symbol != *symbol || !trades.contains(&fill.trade_id));
    }

    /// Trades of ours are known, with what they moved, that the stream may not have told yet.
    pub(crate) fn expect(
        &mut self,
        symbol: &Symbol,
        trades: impl IntoIterator<Item = (TradeId, Delta)>,
        now: Timestamp,
    ) {
        for (trade, moved) in trades {
            let key = (symbol.clone(), trade);
            if !self.trades.contains(&key) {
                self.awaited.insert(key, (moved, now));
            }
        }
    }

    /// Whether every trade of ours that is known is in the state, every move has its trade, and no reading says otherwise.
    pub(crate) fn is_settled(&self) -> bool {
        let are_traded = self.told.values().all(|told| told.untraded.is_zero());
        self.awaited.is_empty()
            && are_traded
            && !self.lacks_dropped
            && self.suspicions.values().all(|suspicion| suspicion.is_taken)
    }

    /// When trades of ours became known that the stream has not told.
    fn awaits_since(&self) -> Option<Timestamp> {
        self.awaited.values().map(|(_, since)| since).min().copied()
    }

    /// What trades of ours moved that the stream has not told.
    pub(crate) fn awaited_move(&self, symbol: &Symbol) -> Delta {
        let of_symbol = self.awaited.iter().filter(|((of, _), _)| of == symbol);
        of_symbol.fold(Delta::ZERO, |sum, (_, (moved, _))| sum.plus(*moved).unwrap_or(sum))
    }

    /// Trades of ours in a symbol are in the state though the stream did not tell them.
    fn place_awaited(&mut self, symbol: &Symbol) {
        let keys: Vec<_> = self.awaited.keys().filter(|(of, _)| of == symbol).cloned().collect();
        for key in keys {
            self.awaited.remove(&key);
            self.remember(key);
        }
    }

    /// The stream broke: what happens until the next reading may never be told.
    pub(crate) fn on_disconnected(&mut self) {
        self.last_open = self.last_open_orders();
        (self.is_synced, self.connected_at, self.open) = (false, None, None);
        self.lacks_dropped = false;
        self.buffered.clear();
        self.told.clear();
        self.suspicions.clear();
    }

    /// The stream begins, or begins again.
    pub(crate) fn on_connected(&mut self, now: Timestamp) {
        self.on_disconnected();
        (self.connected_at, self.connected_there) = (Some(now), None);
    }

    /// What the venue's clock showed when the stream began.
    pub(crate) const fn connected_there(&mut self, at: Option<Timestamp>) {
        self.connected_there = at;
    }

    /// Takes an event. `is_ours` says whether a trade is of an order of ours.
    pub(crate) fn apply(
        &mut self,
        event: &AccountEvent,
        now: Timestamp,
        is_ours: impl Fn(&Fill) -> bool,
        options: OperationOptions<'_>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        match event {
            AccountEvent::Connected => {
                self.on_connected(now);
                outcome.resync = true;
            }
            AccountEvent::Disconnected => {
                self.on_disconnected();
                outcome.resync = true;
            }
            AccountEvent::Unreadable => {
                // Whatever it told is missing in what the events come to.
                self.on_connected(now);
                outcome.resync = true;
            }
            AccountEvent::SettingsChanged | AccountEvent::UnmappedChanged => outcome.audit(Duration::ZERO),
            AccountEvent::BalanceChanged { cause: BalanceCause::Transfer, .. }
            | AccountEvent::BalanceChanged { cause: BalanceCause::Funding, amount: None } => {
                outcome.audit(Duration::ZERO);
            }
            AccountEvent::BalanceChanged { .. } | AccountEvent::Report(_) => {}
            AccountEvent::Open(order) => self.on_open(order, now),
            AccountEvent::Fill(fill, order) => {
                let is_ours = is_ours(fill);
                if self.note_trade(fill, is_ours) {
                    let was_read =
                        self.snapshot.as_ref().is_some_and(|known| self.was_read(known, fill, *order));
                    if !is_ours && !was_read {
                        let sum = self.external.entry(fill.symbol.clone()).or_default();
                        *sum = sum.plus(fill.quantity.signed(fill.side)).unwrap_or(*sum);
                    }
                    if fill.cause != FillCause::Order {
                        outcome.audit(Duration::ZERO);
                    }
                    self.change(event, now, options, &mut outcome);
                }
            }
            AccountEvent::Position { .. } | AccountEvent::Wallet(_) | AccountEvent::Totals(_) => {
                self.change(event, now, options, &mut outcome);
            }
        }
        outcome
    }

    /// Whether the newest reading that counts has a trade already, so that it moves nothing any more.
    fn was_read(&self, snapshot: &AccountSnapshot, fill: &Fill, order: u64) -> bool {
        let is_placed = self.read_order.get(&fill.symbol).is_some_and(|read| order <= *read);
        is_placed || self.was_before(snapshot, &fill.symbol, fill.venue_time)
    }

    /// Whether something happened before the stream began, where no reading tells a place of the symbol: then the reading
    /// that followed has it, or the next one, where reads lag.
    fn was_before(&self, snapshot: &AccountSnapshot, symbol: &Symbol, venue_time: Timestamp) -> bool {
        let has_no_place =
            self.is_synced && snapshot.order.is_none() && !self.placed_by_reading.contains(symbol);
        has_no_place && self.connected_there.is_some_and(|at| venue_time < at)
    }

    /// Takes a trade's number; gives whether it is new.
    fn note_trade(&mut self, fill: &Fill, is_ours: bool) -> bool {
        let key = (fill.symbol.clone(), fill.trade_id.clone());
        self.awaited.remove(&key);
        if !self.remember(key) {
            return false;
        }
        if !is_ours {
            self.external_fills.push_back(fill.clone());
            if self.external_fills.len() > KEPT_TRADES {
                self.external_fills.pop_front();
            }
        }
        true
    }

    /// Trades of ours count as placed where a reading shows them: their events may still come.
    fn place_shown(&mut self, known: &AccountSnapshot, reading: &AccountSnapshot) {
        let symbols: BTreeSet<Symbol> = self.awaited.keys().map(|(symbol, _)| symbol.clone()).collect();
        for symbol in symbols {
            let with_trades = known.position(&symbol).plus(self.awaited_move(&symbol));
            if with_trades == Ok(reading.position(&symbol)) {
                self.place_awaited(&symbol);
            }
        }
    }

    /// Remembers a trade's number; gives whether it is new.
    fn remember(&mut self, key: (Symbol, TradeId)) -> bool {
        if !self.trades.insert(key.clone()) {
            return false;
        }
        self.newest_trades.push_back(key);
        if self.newest_trades.len() > KEPT_TRADES
            && let Some(oldest) = self.newest_trades.pop_front()
        {
            self.trades.remove(&oldest);
        }
        true
    }

    fn on_open(&mut self, order: &OpenOrder, now: Timestamp) {
        if let Some(open) = &mut self.open {
            open.insert((order.symbol.clone(), order.venue_order_id.clone()), (order.clone(), now));
        }
    }

    /// Lets an event change the state, or keeps it until there is one.
    fn change(
        &mut self,
        event: &AccountEvent,
        now: Timestamp,
        options: OperationOptions<'_>,
        outcome: &mut Outcome,
    ) {
        if !self.is_synced && self.connected_at.is_some() {
            if self.buffered.len() >= KEPT_EVENTS {
                // A reading takes too long for this flow of events: the next one begins with none.
                self.buffered.clear();
                self.connected_at = Some(now);
                outcome.resync = true;
            }
            self.buffered.push((now, event.clone()));
        }
        let Some(mut snapshot) = self.snapshot.take() else { return };
        let before = snapshot.clone();
        if self.fold(&mut snapshot, event, now, options, outcome).is_err() {
            // A number that cannot be held exactly: the venue's own sums are asked for.
            snapshot = before.clone();
            outcome.audit(Duration::ZERO);
        }
        if snapshot != before {
            snapshot.as_of = now.max(before.as_of);
            outcome.changed = true;
        }
        self.snapshot = Some(snapshot);
    }

    fn fold(
        &mut self,
        snapshot: &mut AccountSnapshot,
        event: &AccountEvent,
        now: Timestamp,
        options: OperationOptions<'_>,
        outcome: &mut Outcome,
    ) -> Result<(), MathError> {
        if let AccountEvent::Position { symbol, order, .. } | AccountEvent::Fill(Fill { symbol, .. }, order) =
            event
        {
            self.note_order(symbol, *order, now);
        }
        match event {
            AccountEvent::Position { symbol, venue_time, .. }
                if self.was_before(snapshot, symbol, *venue_time) =>
            {
                self.lacks_dropped = true;
                Ok(())
            }
            AccountEvent::Position { symbol, delta, entry_price, unrealized, order, venue_time } => {
                let held = snapshot.position(symbol);
                let known = self.order_of(snapshot, symbol);
                let placed = self.placed.entry(symbol.clone()).or_insert(*order);
                *placed = (*placed).max(*order);
                let told = self
                    .told
                    .entry(symbol.clone())
                    .or_insert_with(|| Told { order: known, ..Told::default() });
                if self.suspicions.get(symbol).is_some_and(|suspicion| suspicion.read == *delta) {
                    // The stream tells what the reading showed, if later.
                    self.suspicions.remove(symbol);
                }
                let is_repeated = *order == told.order && told.values.contains(delta);
                if *order < told.order || is_repeated {
                    return Ok(());
                }
                if *order > told.order {
                    told.values.clear();
                }
                if told.values.len() >= KEPT_VALUES {
                    told.values.pop_front();
                }
                told.values.push_back(held);
                (told.at, told.order) = (now, *order);
                note_untraded(told, delta.minus(held)?, now, outcome);
                if let Some(suspicion) = self.suspicions.get(symbol)
                    && suspicion.order.is_none_or(|read| *order >= read)
                {
                    self.suspicions.remove(symbol);
                }
                let moved = Moved {
                    delta: *delta,
                    entry: *entry_price,
                    unrealized: *unrealized,
                    traded_at: None,
                    order: *order,
                    venue_time: *venue_time,
                };
                move_position(snapshot, symbol, &moved, options)
            }
            AccountEvent::Fill(fill, order) if self.was_read(snapshot, fill, *order) => {
                self.lacks_dropped |= self.was_before(snapshot, &fill.symbol, fill.venue_time);
                Ok(())
            }
            AccountEvent::Fill(fill, order) => {
                let known = self.order_of(snapshot, &fill.symbol);
                let told = self
                    .told
                    .entry(fill.symbol.clone())
                    .or_insert_with(|| Told { order: known, ..Told::default() });
                told.at = now;
                let change = fill.quantity.signed(fill.side);
                // The position that was told last has it already. Where times are the places, a venue may give a trade a
                // later one than the position that it moved: what moved without a trade was this one.
                if *order <= told.order || (snapshot.order.is_none() && told.has(change)) {
                    let change = change.negated();
                    note_untraded(told, change, now, outcome);
                    return Ok(());
                }
                let held = snapshot.position(&fill.symbol);
                let moved = Moved {
                    delta: held.plus(change)?,
                    entry: None,
                    unrealized: None,
                    traded_at: Some(fill.price),
                    order: known,
                    venue_time: fill.venue_time,
                };
                if snapshot.hedge_mode {
                    // Which side it took or opened is not told.
                    outcome.audit(READ_AGAIN);
                }
                move_position(snapshot, &fill.symbol, &moved, options)
            }
            AccountEvent::Wallet(changes) => wallet(snapshot, changes),
            AccountEvent::Totals(totals) => sums(snapshot, totals),
            _ => Ok(()),
        }
    }

    /// The place up to which the state tells everything of a symbol.
    fn order_of(&self, snapshot: &AccountSnapshot, symbol: &Symbol) -> u64 {
        let of_position = || snapshot.positions.get(symbol).and_then(|position| position.order);
        let read = || of_position().max(snapshot.order).max(self.read_order.get(symbol).copied());
        self.told.get(symbol).map(|told| told.order).or_else(read).unwrap_or(0)
    }

    /// A reading counts for a symbol: it has all that was told of its position before.
    fn note_read(&mut self, symbol: &Symbol, order: Option<u64>) {
        if order.is_some() {
            self.placed_by_reading.insert(symbol.clone());
        } else {
            self.placed_by_reading.remove(symbol);
        }
        let placed = self.placed.get(symbol).copied();
        match order.or(placed) {
            Some(order) => drop(self.read_order.insert(symbol.clone(), order)),
            None => drop(self.read_order.remove(symbol)),
        }
        if let Some(order) = order {
            self.placed.insert(symbol.clone(), order);
        }
    }

    /// Takes a reading. `is_proven` says whether the stream is: only then a difference needs a second reading.
    pub(crate) fn on_reading(
        &mut self,
        mut reading: AccountSnapshot,
        is_proven: bool,
        now: Timestamp,
        options: OperationOptions<'_>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let began = reading.as_of;
        self.keep_odd(&mut reading);
        if self.snapshot.as_ref().is_some_and(|known| known.valued_at > began) {
            // A newer reading is in the state.
            return outcome;
        }
        // Earlier than this a reading may lack a trade as the stream does.
        if !self.is_synced && self.is_outdated(&reading, began) {
            outcome.resync = true;
            return outcome;
        }
        for symbol in reading.positions.keys() {
            if let Some(order) = order_in(&reading, symbol) {
                self.note_order(symbol, order, began);
            }
        }
        self.note_closed(&reading, began);
        self.awaited.retain(|_, (_, since)| began < since.after(READS_LAG));
        self.lacks_dropped &= self.connected_at.is_none_or(|at| began < at.after(READS_LAG));
        let before = self.snapshot.take();
        // Where a reading tells no place, it has what was told until now if it comes to the same.
        let is_shown = |symbol: &Symbol| {
            let known = before.as_ref().map(|known| known.position(symbol));
            !self.is_synced && order_in(&reading, symbol).is_none() && known == Some(reading.position(symbol))
        };
        let told = self.buffered.iter().filter_map(|(_, event)| moved_by(event));
        let shown: BTreeSet<Symbol> = told.filter(|symbol| is_shown(symbol)).cloned().collect();
        let mut next = AccountSnapshot { as_of: began, valued_at: began, ..reading.clone() };
        if self.is_synced {
            let held = before.iter().flat_map(|known| known.positions.keys());
            let symbols: BTreeSet<Symbol> = self
                .told
                .keys()
                .chain(reading.positions.keys())
                .chain(self.suspicions.keys())
                .chain(held)
                .cloned()
                .collect();
            for symbol in symbols {
                let folded = before.as_ref().map(|known| known.position(&symbol)).unwrap_or_default();
                let keeps =
                    self.keeps_folded(&symbol, folded, &reading, (began, is_proven, now), &mut outcome);
                let held = before.as_ref().and_then(|known| known.positions.get(&symbol));
                if !keeps {
                    self.note_read(&symbol, order_in(&reading, &symbol));
                } else if keep_position(&mut next, &symbol, held, options).is_err() {
                    outcome.resync = true;
                }
            }
            if let Some(known) = &before
                && known.as_of > began
            {
                // Money moved after the question: what the stream told of it is newer.
                next.balances.clone_from(&known.balances);
                next.wallet_balance = known.wallet_balance;
            }
            next.as_of = before.as_ref().map_or(began, |known| known.as_of.max(began));
        } else {
            self.suspicions.clear();
            self.told.clear();
            if let Some(known) = &before {
                self.place_shown(known, &reading);
            }
            let symbols = self.placed.keys().chain(self.read_order.keys()).chain(reading.positions.keys());
            for symbol in symbols.cloned().collect::<BTreeSet<_>>() {
                self.note_read(&symbol, order_in(&reading, &symbol));
            }
            self.is_synced = self.connected_at.is_some_and(|at| at <= began);
        }
        if self.is_synced && self.connected_at.is_some_and(|at| began < at.after(READS_LAG)) {
            // Reads may lag behind the matching: what happened just before the stream began shows in a later one.
            outcome.audit(READS_LAG);
        }
        outcome.changed = before.as_ref() != Some(&next);
        self.snapshot = Some(next);
        if self.is_synced {
            for (at, event) in std::mem::take(&mut self.buffered) {
                if !moved_by(&event).is_some_and(|symbol| shown.contains(symbol)) {
                    self.change(&event, at, options, &mut outcome);
                }
            }
        }
        outcome
    }

    /// A position whose row cannot be read is not known: what was known of it stays.
    fn keep_odd(&self, reading: &mut AccountSnapshot) {
        let Some(known) = &self.snapshot else { return };
        let odd = reading.unmapped.iter().filter(|held| held.quantity.is_none());
        let bases: BTreeSet<&str> = odd.filter_map(|held| held.base.as_deref()).collect();
        for (symbol, position) in known.positions.iter().filter(|(symbol, _)| bases.contains(symbol.base())) {
            reading.positions.entry(symbol.clone()).or_insert_with(|| position.clone());
        }
    }

    fn note_order(&mut self, symbol: &Symbol, order: u64, at: Timestamp) {
        let newest = self.newest.entry(symbol.clone()).or_insert((order, at));
        if order > newest.0 {
            *newest = (order, at);
        }
    }

    /// Notes positions that a reading lacks, where readings tell no place of their own: what showed them is older, if the
    /// reading cannot lag behind them, or trades of ours say that they are closed.
    fn note_closed(&mut self, reading: &AccountSnapshot, began: Timestamp) {
        let Some(known) = self.snapshot.as_ref().filter(|_| reading.order.is_none()) else { return };
        let closed = known.positions.iter().filter(|(symbol, _)| !reading.positions.contains_key(*symbol));
        let placed = closed.filter_map(|(symbol, position)| {
            let is_late = self.newest.get(symbol).is_some_and(|(_, at)| began >= at.after(READS_LAG));
            let is_ours = position.delta.plus(self.awaited_move(symbol)) == Ok(Delta::ZERO);
            Some((symbol.clone(), position.order?.checked_add(1)?)).filter(|_| is_late || is_ours)
        });
        for (symbol, order) in placed.collect::<Vec<_>>() {
            self.note_order(&symbol, order, began);
        }
    }

    /// Whether a reading is older than what was told before, by the venue's own order. One that was asked for when reads
    /// could lag no longer is not, whatever it says.
    fn is_outdated(&self, reading: &AccountSnapshot, began: Timestamp) -> bool {
        self.newest.keys().any(|symbol| self.is_outdated_for(symbol, order_in(reading, symbol), began))
    }

    fn is_outdated_for(&self, symbol: &Symbol, order: Option<u64>, began: Timestamp) -> bool {
        let newest = self.newest.get(symbol).filter(|(_, at)| began < at.after(READS_LAG));
        newest.zip(order).is_some_and(|((newest, _), order)| order < *newest)
    }

    /// Whether what the stream told of a symbol stays, beside a reading that was asked for at `began`.
    fn keeps_folded(
        &mut self,
        symbol: &Symbol,
        folded: Delta,
        reading: &AccountSnapshot,
        (began, is_proven, now): (Timestamp, bool, Timestamp),
        outcome: &mut Outcome,
    ) -> bool {
        let read = reading.position(symbol);
        let order = order_in(reading, symbol);
        if read == folded {
            let late = self.suspicions.get(symbol).copied().filter(|known| known.is_taken);
            match late.filter(|_| is_proven) {
                // The stream never told what two readings show.
                Some(known) if now.since(known.since) >= READS_LAG => {
                    let symbol = symbol.clone();
                    self.suspicions.remove(&symbol);
                    outcome.mismatches.push(Mismatch { symbol, folded: known.folded, read, at: now });
                }
                Some(_) => outcome.audit(READS_LAG),
                None => drop(self.suspicions.remove(symbol)),
            }
            if let Some(told) = self.told.get_mut(symbol) {
                (told.order, told.untraded, told.untraded_since) =
                    (told.order.max(order.unwrap_or(0)), Delta::ZERO, None);
            }
            return false;
        }
        let told = self.told.get(symbol);
        let told_order = told.as_ref().map(|told| told.order);
        if order.zip(told_order).is_some_and(|(read, told)| read < told)
            || self.is_outdated_for(symbol, order, began)
        {
            // Older than what was told, by the venue's own order.
            return true;
        }
        let told_at = told.as_ref().map(|told| told.at);
        let is_newer = order.zip(told_order).is_some_and(|(read, told)| read > told);
        if !is_newer && told_at.is_some_and(|at| began <= at) {
            // Asked before the event.
            return true;
        }
        let awaited = self.awaited_move(symbol);
        if !awaited.is_zero() && folded.plus(awaited) == Ok(read) {
            // It shows our own trades, which the stream did not tell.
            self.place_awaited(symbol);
            self.suspicions.remove(symbol);
            self.told.remove(symbol);
            return false;
        }
        if !is_proven {
            self.suspicions.remove(symbol);
            self.told.remove(symbol);
            return false;
        }
        let known = self.suspicions.get(symbol).copied();
        let lasts = known.filter(|known| known.read == read && now.since(known.since) >= READS_LAG);
        if let Some(known) = lasts {
            self.suspicions.remove(symbol);
            self.told.remove(symbol);
            let (folded, at) = (known.folded, now);
            outcome.mismatches.push(Mismatch { symbol: symbol.clone(), folded, read, at });
            return false;
        }
        // A symbol that the stream never spoke of is as the reading says. Just after the stream began that is no
        // difference: reads lag.
        let is_taken = is_newer || told_at.is_none();
        outcome.audit(if is_taken { READS_LAG } else { READ_AGAIN });
        let is_late_start = told_at.is_none()
            && self.connected_at.is_some_and(|at| began < at.after(READS_LAG.saturating_mul(2)));
        if !is_late_start && known.is_none_or(|known| known.read != read) {
            let suspicion = Suspicion { read, folded, since: now, order, is_taken };
            self.suspicions.insert(symbol.clone(), suspicion);
        }
        if let Some(told) = self.told.get_mut(symbol).filter(|_| is_newer) {
            // Newer than the stream by the venue's own order.
            (told.order, told.untraded, told.untraded_since) = (order.unwrap_or(0), Delta::ZERO, None);
            told.values.clear();
        }
        !is_taken
    }

    /// Takes the open orders as they were when they were asked for at `began`.
    pub(crate) fn on_open_orders(&mut self, orders: Vec<OpenOrder>, began: Timestamp) {
        if self.connected_at.is_some_and(|at| at <= began) {
            let entry =
                |order: OpenOrder| ((order.symbol.clone(), order.venue_order_id.clone()), (order, began));
            let told = self.open.take().unwrap_or_default();
            // What the stream told after the question is newer than the list.
            let newer = told.into_iter().filter(|(_, (_, at))| *at >= began);
            self.open = Some(orders.into_iter().map(entry).chain(newer).collect());
        }
    }

    /// What has to be done as time passed.
    pub(crate) fn on_time(&self, now: Timestamp) -> Outcome {
        let mut outcome = Outcome::default();
        let untraded = self.told.values().filter_map(|told| told.untraded_since);
        if untraded.chain(self.awaits_since()).any(|since| now.since(since) >= TRADE_WITHIN) {
            outcome.audit(Duration::ZERO);
        }
        outcome
    }
}

/// The symbol whose position an event moves.
const fn moved_by(event: &AccountEvent) -> Option<&Symbol> {
    match event {
        AccountEvent::Fill(fill, _) => Some(&fill.symbol),
        AccountEvent::Position { symbol, .. } => Some(symbol),
        _ => None,
    }
}

/// The place up to which a reading has everything of a symbol, where the venue tells it.
fn order_in(reading: &AccountSnapshot, symbol: &Symbol) -> Option<u64> {
    reading.positions.get(symbol).and_then(|position| position.order).max(reading.order)
}

fn note_untraded(told: &mut Told, change: Delta, now: Timestamp, outcome: &mut Outcome) {
    let Ok(untraded) = told.untraded.plus(change) else { return outcome.audit(Duration::ZERO) };
    told.untraded = untraded;
    told.untraded_since = (!untraded.is_zero()).then(|| told.untraded_since.unwrap_or(now));
}

/// Where a position moves to.
struct Moved {
    delta: Delta,
    entry: Option<Price>,
    unrealized: Option<Notional>,
    /// The price of the trade that moved it.
    traded_at: Option<Price>,
    order: u64,
    venue_time: Timestamp,
}

fn scaled(amount: Notional, part: Decimal) -> Result<Notional, MathError> {
    mul_rounded(amount.value(), part).map(Notional::new)
}

/// The average entry price after a trade.
fn entry_after(held: Option<&Position>, delta: Delta, price: Price) -> Option<Price> {
    let Some(held) = held.filter(|held| !held.delta.is_zero()) else { return Some(price) };
    let before = held.entry_price?;
    if held.delta.side() != delta.side() {
        return Some(price);
    }
    if delta.abs() <= held.delta.abs() {
        return Some(before);
    }
    let added = delta.abs().minus(held.delta.abs()).ok()?.value().checked_mul(price.value())?;
    let sum = held.delta.abs().value().checked_mul(before.value())?.checked_add(added)?;
    Price::try_new(sum.checked_div(delta.abs().value())?).ok()
}

/// Both sides after a move of their net: what the stream tells has no side, so that it counts as a trade that takes off the
/// opposite side first, as ours do. The next reading tells the venue's own sides. Empty once one of them is gone.
fn sides_after(before: &Position, delta: Delta) -> Result<Vec<HeldSide>, MathError> {
    let Some(sides) = before.sides() else { return Ok(Vec::new()) };
    let after = sides.after(delta.minus(before.delta)?)?;
    if after.long.is_zero() || after.short.is_zero() {
        return Ok(Vec::new());
    }
    let moved = before.sides.iter().map(|side| {
        let quantity = if side.delta.is_negative() { after.short } else { after.long };
        let part = div(quantity.value(), side.delta.abs().value())?;
        Ok(HeldSide {
            delta: quantity.signed(side.delta.side()),
            unrealized: scaled(side.unrealized, part)?,
            initial_margin: scaled(side.initial_margin, part)?,
            maintenance_margin: scaled(side.maintenance_margin, part)?,
            ..side.clone()
        })
    });
    moved.collect()
}

/// Moves a position and the account's sums with it. Margin of a position that was there changes in proportion; of a new
/// one it follows from its terms. The next reading tells the venue's own figures.
fn move_position(
    snapshot: &mut AccountSnapshot,
    symbol: &Symbol,
    moved: &Moved,
    options: OperationOptions<'_>,
) -> Result<(), MathError> {
    let held = snapshot.positions.get(symbol).cloned();
    let flat = Position {
        symbol: symbol.clone(),
        delta: Delta::ZERO,
        entry_price: None,
        mark_price: moved.traded_at.or(moved.entry),
        unrealized: Notional::ZERO,
        initial_margin: Notional::ZERO,
        maintenance_margin: Notional::ZERO,
        leverage: None,
        liquidation_price: None,
        isolated_margin: None,
        updated_at: moved.venue_time,
        order: Some(moved.order),
        sides: Vec::new(),
    };
    let before = held.clone().unwrap_or(flat);
    let mut after = Position {
        sides: sides_after(&before, moved.delta)?,
        delta: moved.delta,
        updated_at: moved.venue_time,
        order: Some(moved.order),
        liquidation_price: before.liquidation_price.filter(|_| before.delta == moved.delta),
        ..before.clone()
    };
    after.entry_price = match (moved.entry, moved.traded_at) {
        (Some(entry), _) => Some(entry),
        (None, Some(price)) => entry_after(held.as_ref(), moved.delta, price),
        (None, None) => before.entry_price,
    };
    if !before.is_held() {
        let options = options(symbol);
        after.leverage = after.leverage.or_else(|| options.as_ref().map(|options| options.leverage));
        if let Some(mark) = after.mark_price {
            let notional = moved.delta.abs().notional_at(mark)?;
            let leverage = after.leverage.unwrap_or(Decimal::ONE).max(Decimal::ONE);
            after.initial_margin = Notional::new(div(notional.value(), leverage)?);
            if let Some(options) = &options {
                after.maintenance_margin = maintenance_margin(&options.brackets, moved.delta, mark)?;
            }
        }
    } else if let Some(options) = options(symbol).filter(|_| !before.sides.is_empty())
        && let Some(mark) = after.mark_price
    {
        let notional = after.gross()?.notional_at(mark)?;
        after.initial_margin = Notional::new(div(notional.value(), options.leverage.max(Decimal::ONE))?);
        let margins = after.parts().into_iter().map(|part| maintenance_margin(&options.brackets, part, mark));
        after.maintenance_margin = margins
            .into_iter()
            .try_fold(Notional::ZERO, |sum, margin| Ok::<_, MathError>(sum.plus(margin?)?))?;
    } else if !before.delta.is_zero() {
        let part = div(moved.delta.abs().value(), before.delta.abs().value())?;
        after.initial_margin = scaled(before.initial_margin, part)?;
        after.maintenance_margin = scaled(before.maintenance_margin, part)?;
    }
    let gain = match (after.mark_price, after.entry_price) {
        (Some(mark), Some(entry)) => {
            let moved = deltaplane_math::sub(mark.value(), entry.value())?;
            Notional::new(mul_rounded(after.delta.value(), moved)?)
        }
        _ => before.unrealized,
    };
    after.unrealized = moved.unrealized.unwrap_or(gain);
    replace(snapshot, symbol, &before, after)
}

/// Puts a position in place of another one; the account's sums move by the difference.
fn replace(
    snapshot: &mut AccountSnapshot,
    symbol: &Symbol,
    before: &Position,
    after: Position,
) -> Result<(), MathError> {
    let initial = after.initial_margin.minus(before.initial_margin)?;
    let gained = after.unrealized.minus(before.unrealized)?;
    snapshot.initial_margin = snapshot.initial_margin.plus(initial)?.max(Notional::ZERO);
    snapshot.maintenance_margin = snapshot
        .maintenance_margin
        .plus(after.maintenance_margin.minus(before.maintenance_margin)?)?
        .max(Notional::ZERO);
    snapshot.unrealized = snapshot.unrealized.plus(gained)?;
    snapshot.available = snapshot.available.plus(gained)?.minus(initial)?;
    if after.is_held() {
        snapshot.positions.insert(symbol.clone(), after);
    } else {
        snapshot.positions.remove(symbol);
    }
    Ok(())
}

/// Keeps a position as the stream told it in a reading that tells it otherwise.
fn keep_position(
    next: &mut AccountSnapshot,
    symbol: &Symbol,
    held: Option<&Position>,
    options: OperationOptions<'_>,
) -> Result<(), MathError> {
    let moved = Moved {
        delta: held.map(|held| held.delta).unwrap_or_default(),
        entry: held.and_then(|held| held.entry_price),
        unrealized: held.map(|held| held.unrealized),
        traded_at: held.and_then(|held| held.mark_price),
        order: held.and_then(|held| held.order).unwrap_or(0),
        venue_time: held.map(|held| held.updated_at).unwrap_or_default(),
    };
    match (next.positions.get(symbol).cloned(), held) {
        // What the stream told has its own margins.
        (Some(read), Some(held)) => replace(next, symbol, &read, held.clone()),
        _ => move_position(next, symbol, &moved, options),
    }
}

fn wallet(snapshot: &mut AccountSnapshot, changes: &[WalletChange]) -> Result<(), MathError> {
    for change in changes {
        let before = snapshot.balances.insert(change.asset.clone(), change.balance).unwrap_or_default();
        if change.is_money {
            let moved = Notional::new(deltaplane_math::sub(change.balance, before)?);
            snapshot.wallet_balance = snapshot.wallet_balance.plus(moved)?;
            snapshot.available = snapshot.available.plus(moved)?;
        }
    }
    Ok(())
}

fn sums(snapshot: &mut AccountSnapshot, totals: &AccountTotals) -> Result<(), MathError> {
    snapshot.wallet_balance = totals.wallet_balance;
    snapshot.unrealized = totals.equity.minus(totals.wallet_balance)?;
    snapshot.available = totals.available;
    snapshot.initial_margin = totals.initial_margin;
    if let Some(maintenance) = totals.maintenance_margin {
        let isolated = snapshot.positions.values().filter(|position| position.isolated_margin.is_some());
        let own = isolated.map(|position| position.maintenance_margin);
        snapshot.maintenance_margin = own.into_iter().try_fold(maintenance, Notional::plus)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "account_fold_tests.rs"]
mod tests;
