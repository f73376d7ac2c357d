//! What is true at the start of a round: accounts and prices, read once and stamped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_market::{Consensus, FeedHealth, consensus, health, outliers};
use deltaplane_math::{Exposure, MarginUse, MarkedPosition, MathError};
use deltaplane_ports::{Clock, LastKnown, OperationReport, Pacing, PriceFeed, Priority, ReadError};
use deltaplane_types::{
    AccountId, AccountSnapshot, Code, Decimal, Delta, FeedId, Instrument, MarginBracket, MarginPrice,
    MarketView, Notional, OperationId, Position, Price, Quantity, Ratio, Side, Symbol, Timestamp,
    TradingState,
};

use crate::accounts::AccountMonitor;
use crate::alerts::Alerts;
use crate::config::EngineConfig;
use crate::report::failure;
use crate::trading::Trading;
use crate::unresolved_orders::{UnresolvedOrder, UnresolvedOrders};

/// One account in a snapshot.
#[derive(Clone, Debug)]
pub struct AccountFacts {
    /// The account's state.
    pub account: AccountSnapshot,
    /// Its delta in the symbol: the position and what its wallet holds of the base asset.
    pub delta: Delta,
    /// The same by single holdings: what a deviation is compared with.
    pub exposure: Exposure,
    /// Its instrument.
    pub instrument: Instrument,
    /// Its own venue's market.
    pub market: Arc<MarketView>,
    /// Whether its price is off those of the others: what may be wrong is no price to open a position at.
    pub is_off: bool,
    /// What a unit of its quote currency is worth in USD.
    pub quote_rate: Decimal,
    /// Notional of its positions in other symbols, longs and shorts added up, USD; none where one has no price.
    pub gross_elsewhere: Option<Notional>,
    /// Its positions in other symbols at their marks, USD; none of them where one cannot be valued.
    pub others: Vec<MarkedPosition>,
    /// What trades of others moved its position in the symbol since the engine started, as far as its stream told.
    pub external: Delta,
    /// Its state was folded from its proven stream and has every trade of operations that ended.
    pub is_exact: bool,
    /// What its open orders may still buy and sell beside what only reduces, base units: the venue counts them.
    pub open_buys: Quantity,
    /// The same of sales.
    pub open_sells: Quantity,
}

/// What was true at one time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When reading began.
    pub as_of: Timestamp,
    /// The reference price.
    pub reference_price: Price,
    /// Independent sources behind it.
    pub price_sources: usize,
    /// The named accounts.
    pub accounts: BTreeMap<AccountId, AccountFacts>,
    /// What is held elsewhere in the symbol.
    pub external: Delta,
    /// What unresolved orders of other operations may have traded.
    pub unresolved: Option<UnresolvedOrder>,
    /// What may be traded now, everywhere.
    pub trading: TradingState,
    /// What may be traded in the symbol on each named account.
    pub trading_by: BTreeMap<AccountId, TradingState>,
    /// Why, of the named accounts on which it is less than all.
    pub restrictions: BTreeMap<AccountId, String>,
    /// Accounts that only take orders that reduce, with the alerts that say so.
    pub blocked_by: BTreeMap<AccountId, Vec<String>>,
    /// Alerts of circuit breakers, with the account that each stopped; none stands for all.
    pub tripped: Vec<(Option<AccountId>, String)>,
    /// Delta of every configured account in the symbol, as far as it is known.
    pub all_deltas: BTreeMap<AccountId, Option<Delta>>,
    /// The age of the oldest state of a named account.
    pub age: Duration,
    /// Named accounts whose state is older than it should be, as a dry run tells it.
    pub stale: Vec<String>,
}

/// How accounts are read for a snapshot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// The venues are asked even where the accounts' streams are proven.
    pub(crate) from_venue: bool,
    /// Whom the questions serve.
    pub(crate) priority: Priority,
    /// What is known counts where the request budget has no room for a question.
    pub(crate) is_dry: bool,
    /// Positions that have no symbol are accepted by the request.
    pub(crate) accept_unmapped: bool,
}

/// All that reads and nothing that sends.
pub(crate) struct SnapshotReader {
    pub(crate) config: EngineConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) accounts: BTreeMap<AccountId, Arc<AccountMonitor>>,
    pub(crate) feeds: BTreeMap<FeedId, Arc<dyn PriceFeed>>,
    /// The feed of each account's own venue.
    pub(crate) feed_of: BTreeMap<AccountId, FeedId>,
    pub(crate) trading: Arc<Trading>,
    pub(crate) unresolved_orders: UnresolvedOrders,
    pub(crate) alerts: Arc<Alerts>,
    /// What accounts hold, as last valued: a round does not ask venues for the margin tables of other symbols.
    pub(crate) tables: Mutex<BTreeMap<(AccountId, Symbol), Instrument>>,
}

/// The state of an account that no decision reads counts as known for this long: longer than the
/// slowest pace of reading in the background.
pub(crate) const KNOWN_FOR: Duration = Duration::from_secs(30);

/// When to ask again where a venue refused for want of budget and did not say for how long.
const RETRY_AFTER: Duration = Duration::from_secs(10);

type Failed = Box<deltaplane_ports::Failure>;

impl SnapshotReader {
    /// Fresh views of the feeds that may be traded on.
    pub(crate) fn healthy_views(&self, symbol: &Symbol) -> BTreeMap<FeedId, Arc<MarketView>> {
        let now = self.clock.now();
        let mut views = BTreeMap::new();
        for (id, feed) in &self.feeds {
            let view = feed.view(symbol);
            let fresh = |view: &Arc<MarketView>| now.since(view.received_at) <= self.config.max_price_age;
            if health(view.as_deref(), now, self.config.feeds) == FeedHealth::Healthy
                && let Some(view) = view.filter(fresh)
            {
                views.insert(id.clone(), view);
            }
        }
        views
    }

    /// The feeds whose price is off those of the others.
    fn off(&self, views: &BTreeMap<FeedId, Arc<MarketView>>) -> BTreeSet<FeedId> {
        let mids = views.iter().filter_map(|(id, view)| Some((id.clone(), self.mid_in_usd(view)?)));
        outliers(&mids.collect(), self.config.feeds.off_by).unwrap_or_default()
    }

    /// The middle of a view's book, USD.
    pub(crate) fn mid_in_usd(&self, view: &MarketView) -> Option<Decimal> {
        let rate = self.config.holdings.rate(&view.quote);
        deltaplane_math::mul_rounded(view.mid()?.value(), rate).ok()
    }

    /// Has all feeds follow a symbol from now on.
    pub(crate) fn follow(&self, symbol: &Symbol) {
        for feed in self.feeds.values() {
            feed.follow(symbol);
        }
    }

    /// Has the feed of each account follow what the account holds: some venues tell marks with prices only.
    pub(crate) fn follow_what_is_held(&self) {
        for (id, monitor) in &self.accounts {
            let (Some(snapshot), Some(feed)) = (monitor.newest(), self.feed_of.get(id)) else { continue };
            let Some(feed) = self.feeds.get(feed) else { continue };
            let held = snapshot.positions.iter().filter(|(_, position)| position.is_held());
            for (symbol, _) in held {
                feed.follow(symbol);
            }
            // A coin in the wallet may pay fees.
            for symbol in self.config.holdings.collateral_symbols(&snapshot) {
                feed.follow(&symbol);
            }
        }
    }

    /// Whether an account's own venue has prices of a symbol that may be traded on.
    pub(crate) fn has_healthy_feed(&self, account: &AccountId, symbol: &Symbol) -> bool {
        self.feed_of.get(account).is_some_and(|feed| self.healthy_views(symbol).contains_key(feed))
    }

    /// The reference price of a symbol now, where there is one.
    pub(crate) fn reference_price(&self, symbol: &Symbol) -> Option<Price> {
        self.agreed(&self.healthy_views(symbol)).ok().flatten().map(|consensus| consensus.price)
    }

    /// Where an operation did not read net delta, what it was when it was known last.
    pub(crate) fn add_last_known(&self, report: &mut OperationReport) {
        if report.initial_delta.is_none() && report.final_delta.is_none() {
            report.last_known = self.last_known(&report.symbol, &report.accounts);
        }
    }

    /// Net delta of accounts by their newest states, however old; none where one was never read.
    fn last_known(&self, symbol: &Symbol, accounts: &[AccountId]) -> Option<LastKnown> {
        let holdings = &self.config.holdings;
        let external = holdings.external.get(symbol).map(|held| (held.delta, held.as_of));
        let states = accounts.iter().map(|id| {
            let monitor = self.accounts.get(id)?;
            Some((holdings.delta(&*monitor.newest()?, symbol).ok()?, monitor.confirmed_at()?))
        });
        let all: Vec<(Delta, Timestamp)> = states.chain(external.map(Some)).collect::<Option<_>>()?;
        let value = all.iter().try_fold(Delta::ZERO, |sum, (delta, _)| sum.plus(*delta)).ok()?;
        Some(LastKnown { value, at: all.iter().map(|(_, at)| *at).min()? })
    }

    /// What a unit of an asset is worth now, USD: a coin by the prices of its symbol.
    pub(crate) fn worth_of(&self, asset: &str) -> Option<Decimal> {
        let holdings = &self.config.holdings;
        if holdings.is_money(asset) {
            return Some(holdings.rate(asset));
        }
        let symbol: Symbol = format!("{}-USD", holdings.counted_as(asset)).parse().ok()?;
        self.follow(&symbol);
        self.reference_price(&symbol).map(Price::value)
    }

    /// An account's positions in other symbols, with the marks that are streamed where its venue told none.
    fn elsewhere(&self, account: &AccountSnapshot, symbol: &Symbol, feed: Option<&FeedId>) -> Vec<Position> {
        let others = account.positions.values().filter(|position| position.symbol != *symbol);
        let others = others.filter(|position| position.is_held()).map(|position| {
            let streamed = || self.feeds.get(feed?)?.view(&position.symbol)?.mark;
            Position { mark_price: position.mark_price.or_else(streamed), ..position.clone() }
        });
        others.collect()
    }

    /// Positions of an account at their marks with their margin tables, USD; none where one of these is not known.
    fn marked(&self, account: &AccountId, positions: &[Position]) -> Option<Vec<MarkedPosition>> {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = positions.iter().flat_map(Position::split).map(|position| {
            let instrument = tables.get(&(account.clone(), position.symbol.clone()))?;
            crate::equity::marked(&position, instrument, self.config.holdings.rate(&instrument.quote)).ok()
        });
        marked.collect()
    }

    /// What the healthy feeds that are not off agree on, in USD.
    fn agreed(&self, views: &BTreeMap<FeedId, Arc<MarketView>>) -> Result<Option<Consensus>, MathError> {
        let off = self.off(views);
        let views = views.iter().filter(|(id, _)| !off.contains(*id)).map(|(_, view)| view.as_ref());
        consensus(views.map(|view| (view, self.config.holdings.rate(&view.quote))))
    }

    /// Waits until the state of one of the accounts changes, so long at most.
    pub(crate) async fn until_changed(&self, accounts: &[AccountId], within: Duration) {
        let monitors = accounts.iter().filter_map(|id| self.accounts.get(id));
        let changes = monitors.map(|monitor| {
            let mut readings = monitor.readings();
            Box::pin(async move {
                if !readings.changed().await {
                    std::future::pending::<()>().await;
                }
            })
        });
        let changes: Vec<_> = changes.collect();
        if changes.is_empty() {
            return tokio::time::sleep(within).await;
        }
        let _ = tokio::time::timeout(within, futures_util::future::select_all(changes)).await;
    }

    /// An account's state for a snapshot.
    async fn state_of(&self, monitor: &AccountMonitor, how: Reading) -> Result<AccountSnapshot, ReadError> {
        if how.from_venue {
            return monitor.ask_venue(how.priority).await;
        }
        match monitor.fresh(self.config.max_account_age, how.priority).await {
            Err(error @ ReadError::Withheld(_)) if how.is_dry => {
                monitor.newest().as_deref().cloned().ok_or(error)
            }
            state => state,
        }
    }

    /// Takes accounts and prices as they are now.
    pub(crate) async fn snapshot(
        &self,
        (symbol, operation): (&Symbol, Option<&OperationId>),
        named: &[AccountId],
        how: Reading,
    ) -> Result<Snapshot, Failed> {
        self.check_symbol(symbol)?;
        let as_of = self.clock.now();
        let external = self.config.holdings.external(symbol, as_of)?;
        // Before the positions: what is settled meanwhile counts as unresolved order once more, and not the other way round.
        let unresolved = self.unresolved_orders.beside(symbol, operation);
        // Instruments may take long when they are not known yet: states are read after all of them.
        let instruments = named.iter().map(|id| async move {
            let monitor = self.accounts.get(id)?;
            Some((id, monitor, monitor.reader.fetch_instrument(symbol, how.priority).await))
        });
        let instruments = futures_util::future::join_all(instruments).await;
        let readings = instruments.into_iter().map(|found| async move {
            let (id, monitor, instrument) = found?;
            Some((id.clone(), (self.state_of(monitor, how).await, instrument)))
        });
        let readings = futures_util::future::join_all(readings).await;
        // Where a venue gave a symbol up and nothing is left there, the other accounts go on alone.
        let mut left_out = Vec::new();
        let is_listed_here = readings.iter().flatten().any(|(_, (_, found))| is_listed(found));
        let views = self.healthy_views(symbol);
        let is_needed = |id: &AccountId, (state, found): &(Result<AccountSnapshot, ReadError>, _)| {
            // Coins in its wallet and other contracts of the coin count too.
            let holds_nothing = state.as_ref().is_ok_and(|state| {
                let counted = self.config.holdings.exposure(state, symbol);
                !state.holds(symbol)
                    && counted.is_ok_and(|held| held.is_empty())
                    && self.check_position(state, symbol).is_ok()
            });
            let is_gone = is_delisted(found);
            // What is closed needs no price where nothing is held.
            let is_closing = how.priority == Priority::Protect;
            let has_price = self.feed_of.get(id).is_some_and(|feed| views.contains_key(feed));
            !(is_listed_here && holds_nothing && (is_gone || (is_closing && !has_price)))
        };
        let (readings, gone): (Vec<_>, Vec<_>) =
            readings.into_iter().flatten().partition(|(id, reading)| is_needed(id, reading));
        for (id, _) in gone {
            left_out
                .push(format!("left out: {id} holds no {symbol}, and its exchange does not trade it now"));
        }
        // A symbol that a venue does not list, or whose rules cannot be read, is no missing price.
        for (id, (_, instrument)) in &readings {
            if let Err(error @ (ReadError::UnknownSymbol(_) | ReadError::Unreadable(_))) = instrument {
                return Err(unreadable(id, error));
            }
        }
        if readings.iter().all(|(_, (_, instrument))| instrument.is_ok()) {
            self.follow(symbol);
        }
        let mut priced = views.clone();
        if let Err(two_coins) = self.check_coin(symbol, &views) {
            // What is held may be closed at the prices of where it is held.
            let states = readings.iter().filter_map(|(id, (state, _))| Some((id, state.as_ref().ok()?)));
            let held = states.filter(|(_, state)| state.holds(symbol));
            let held: BTreeSet<&FeedId> = held.filter_map(|(id, _)| self.feed_of.get(id)).collect();
            if how.priority != Priority::Protect || held.len() > 1 {
                return Err(two_coins);
            }
            priced.retain(|id, _| held.is_empty() || held.contains(id));
        }
        let agreed = self.agreed(&priced).map_err(beyond_arithmetic)?;
        let Some(agreed) = agreed else {
            let feeds: Vec<&str> = self.feeds.keys().map(FeedId::as_str).collect();
            return Err(failure(
                Code::MarketDataUnavailable,
                format!("no healthy price feed for {symbol} among {}", feeds.join(", ")),
                "wait for a feed to recover, or check the exchanges' connections; prices of a symbol that is new here are subscribed now: retry in a few seconds",
            ));
        };
        let off = self.off(&views);
        let mut accounts = BTreeMap::new();
        let (mut age, mut stale) = (Duration::ZERO, left_out);
        let now = self.clock.now();
        for (id, (state, instrument)) in readings {
            let (account, instrument) = match (state, instrument) {
                (Ok(account), Ok(instrument)) => (account, instrument),
                (Err(error), _) | (_, Err(error)) => return Err(unreadable(&id, &error)),
            };
            self.check_position(&account, symbol)?;
            let feed = self.feed_of.get(&id);
            let Some(market) = feed.and_then(|feed| views.get(feed)) else {
                let name = feed.map_or("none", FeedId::as_str);
                let refuses = feed
                    .and_then(|feed| self.feeds.get(feed))
                    .is_some_and(|feed| feed.not_followed().contains(symbol));
                let (text, solution) = if refuses {
                    (
                        format!("the price feed {name} of account {id} is full and does not follow {symbol}"),
                        "restart the server without the symbols that are not needed any more, or leave the account out",
                    )
                } else {
                    (
                        format!("the price feed {name} of account {id} is not healthy"),
                        "wait for the feed to recover, or leave the account out",
                    )
                };
                return Err(failure(Code::MarketDataUnavailable, text, solution));
            };
            let old = now.since(account.as_of);
            age = age.max(old);
            if old > self.config.max_account_age {
                let seconds = old.as_secs();
                stale.push(format!(
                    "stale: the state of {id} is {seconds} s old, the request budget of its exchange is nearly spent"
                ));
            }
            let delta = self.config.holdings.delta(&account, symbol).map_err(beyond_arithmetic)?;
            let monitor = self.accounts.get(&id);
            let exposure = self.config.holdings.exposure(&account, symbol).map_err(beyond_arithmetic)?;
            let external = monitor.map(|monitor| monitor.external(symbol)).unwrap_or_default();
            let is_exact = monitor.is_some_and(|monitor| monitor.is_exact());
            let quote_rate = self.config.holdings.rate(&instrument.quote);
            let elsewhere = self.elsewhere(&account, symbol, feed);
            let [open_buys, open_sells] = open_quantities(monitor, symbol).map_err(beyond_arithmetic)?;
            let gross_elsewhere = gross(&elsewhere, quote_rate);
            let others = self.marked(&id, &elsewhere).unwrap_or_default();
            let (market, is_off) = (market.clone(), feed.is_some_and(|feed| off.contains(feed)));
            let facts = AccountFacts {
                account,
                delta,
                exposure,
                instrument,
                market,
                is_off,
                quote_rate,
                gross_elsewhere,
                others,
                external,
                is_exact,
                open_buys,
                open_sells,
            };
            accounts.insert(id, facts);
        }
        let all_deltas = self
            .accounts
            .iter()
            .map(|(id, monitor)| {
                let known = accounts.get(id).map(|facts| facts.delta);
                let newest = || self.config.holdings.delta(&*monitor.known(KNOWN_FOR)?, symbol).ok();
                (id.clone(), known.or_else(newest))
            })
            .collect();
        let mut trading_by: BTreeMap<AccountId, TradingState> =
            named.iter().map(|id| (id.clone(), self.trading.of(id, symbol))).collect();
        let restricted = named.iter().filter(|id| self.trading.of(id, symbol) != TradingState::Running);
        let mut restrictions: BTreeMap<AccountId, String> =
            restricted.map(|id| (id.clone(), self.trading.reason_for(id, symbol))).collect();
        if let Some(why) = self.held_beside(symbol).filter(|_| !how.accept_unmapped) {
            for id in named {
                let state = trading_by.entry(id.clone()).or_default();
                *state = (*state).max(TradingState::ReduceOnly);
                restrictions.entry(id.clone()).or_insert_with(|| why.clone());
            }
        }
        Ok(Snapshot {
            as_of,
            reference_price: agreed.price,
            price_sources: agreed.sources,
            accounts,
            external,
            unresolved,
            trading: self.trading.now(),
            trading_by,
            restrictions,
            blocked_by: self.alerts.blocking(),
            tripped: self.alerts.tripped(symbol),
            all_deltas,
            age,
            stale,
        })
    }
}

fn is_listed(instrument: &Result<Instrument, ReadError>) -> bool {
    instrument.as_ref().is_ok_and(|instrument| instrument.listed)
}

/// Whether a venue said that it does not list or trade a symbol any more.
fn is_delisted(instrument: &Result<Instrument, ReadError>) -> bool {
    match instrument {
        Ok(instrument) => !instrument.listed,
        Err(error) => matches!(error, ReadError::UnknownSymbol(_)),
    }
}

/// What an account's open orders in a symbol may still buy and sell, but for those that only reduce.
fn open_quantities(
    monitor: Option<&Arc<AccountMonitor>>,
    symbol: &Symbol,
) -> Result<[Quantity; 2], MathError> {
    let (mut buys, mut sells) = (Quantity::ZERO, Quantity::ZERO);
    let orders = monitor.and_then(|monitor| monitor.open_orders()).unwrap_or_default();
    for order in orders.iter().filter(|order| order.symbol == *symbol && !order.reduce_only) {
        let sum = if order.side == Side::Buy { &mut buys } else { &mut sells };
        *sum = Quantity::try_new(deltaplane_math::add(sum.value(), order.left.value())?)?;
    }
    Ok([buys, sells])
}

/// Notional of positions, longs and shorts added up, USD; none where one has no price.
fn gross(positions: &[Position], quote_rate: Decimal) -> Option<Notional> {
    positions.iter().try_fold(Notional::ZERO, |sum, position| {
        let notional = position.gross().ok()?.notional_at(position.mark_price?).ok()?;
        let worth = deltaplane_math::mul_rounded(notional.value(), quote_rate).ok()?;
        sum.plus(Notional::new(worth)).ok()
    })
}

fn beyond_arithmetic(error: impl std::fmt::Display) -> Failed {
    failure(Code::Internal, error.to_string(), "report this defect")
}

fn unreadable(account: &AccountId, error: &ReadError) -> Failed {
    use deltaplane_types::RefusalReason;
    let (code, solution) = match error {
        ReadError::Proxy(_) => (Code::ProxyFailed, "check the account's proxy"),
        ReadError::Refused(refusal) if refusal.reason == RefusalReason::NotPermitted => {
            (Code::NotPermitted, "check the venue key and its permissions")
        }
        ReadError::Refused(refusal) if refusal.reason == RefusalReason::RateLimited => {
            (Code::TooManyRequests, "wait for the venue's budget to recover")
        }
        ReadError::Withheld(_) => (Code::TooManyRequests, "wait until the request budget's window ends"),
        ReadError::UnknownSymbol(_) => (Code::InvalidRequest, "use a symbol that the account's venue lists"),
        _ => (Code::HedgeFailed, "check the venue's connection, or leave the account out"),
    };
    let mut failed = failure(code, format!("account {account} cannot be read: {error}"), solution);
    if code == Code::TooManyRequests {
        failed.retry_after = Some(if let ReadError::Withheld(wait) = error { *wait } else { RETRY_AFTER });
    }
    failed
}

impl Snapshot {
    /// What may be traded in the symbol on a named account.
    pub fn trading_of(&self, account: &AccountId) -> TradingState {
        self.trading_by.get(account).copied().unwrap_or_default().max(self.trading)
    }
}

impl AccountFacts {
    /// What isolated positions in other symbols have for themselves, in the account's currency.
    fn not_shared(&self, symbol: &Symbol) -> Result<Notional, MathError> {
        let others = self.account.positions.values().filter(|position| position.symbol != *symbol);
        others
            .filter_map(|position| Some((position.isolated_margin?, position.unrealized)))
            .try_fold(Notional::ZERO, |sum, (margin, unrealized)| Ok(sum.plus(margin)?.plus(unrealized)?))
    }

    /// What the venue lets new positions use, USD. Not told for an operation whose own orders rest: a reading may count
    /// their margin after they are gone.
    pub(crate) fn available(&self, pacing: &Pacing) -> Result<Option<Notional>, MathError> {
        if pacing.rest_for.is_some() {
            return Ok(None);
        }
        let worth = deltaplane_math::mul_rounded(self.account.available.value(), self.quote_rate)?;
        Ok(Some(Notional::new(worth)))
    }

    /// The largest long and short that the venue lets the account hold at the leverage in force, base units: the end of the
    /// margin table's last step with that leverage over the mark, less the open orders on that side.
    pub(crate) fn venue_caps(&self) -> Result<[Option<Quantity>; 2], MathError> {
        let leverage = self.instrument.leverage;
        let steps = self.instrument.brackets.iter().filter(|step| step.max_leverage >= leverage);
        let Some(cap) = steps.map(|step| step.cap).max() else { return Ok([None; 2]) };
        let price = self.market.mark.or_else(|| self.market.mid());
        let Some(price) = price else { return Ok([None; 2]) };
        let most = deltaplane_math::div(cap.value(), price.value())?;
        let less = |open: Quantity| {
            let left = deltaplane_math::sub(most, open.value())?.max(Decimal::ZERO);
            let left = deltaplane_math::floor_to_step(left, self.instrument.lot_size.value())?;
            Ok::<_, MathError>(Some(Quantity::try_new(left)?))
        };
        Ok([less(self.open_buys)?, less(self.open_sells)?])
    }

    /// What decides the account's margin in the symbol, in USD.
    pub(crate) fn margin(&self, symbol: &Symbol) -> Result<MarginUse, MathError> {
        let held = self.account.positions.get(symbol);
        let own = |amount: fn(&deltaplane_types::Position) -> Notional| held.map_or(Notional::ZERO, amount);
        let leverage = self.instrument.leverage.max(Decimal::ONE);
        // The venue counts the margin of open orders with that of the position; only the position's changes with it.
        let of_position = match held.and_then(|p| Some((p, p.mark_price?))) {
            Some((held, mark)) => {
                let at = match self.instrument.initial_margin_from {
                    MarginPrice::Mark => mark,
                    MarginPrice::Entry => held.entry_price.unwrap_or(mark),
                };
                let notional = held.gross()?.notional_at(at)?;
                held.initial_margin.min(Notional::new(deltaplane_math::div(notional.value(), leverage)?))
            }
            None => own(|p| p.initial_margin),
        };
        let other = self.account.initial_margin.minus(of_position)?;
        let maintenance = self.account.maintenance_margin.minus(own(|p| p.maintenance_margin))?;
        // What isolated positions maintain they maintain for themselves.
        let isolated = self
            .account
            .positions
            .values()
            .filter(|position| position.symbol != *symbol && position.isolated_margin.is_some());
        let maintenance =
            isolated.map(|position| position.maintenance_margin).try_fold(maintenance, Notional::minus)?;
        let worth = |amount: Notional| {
            deltaplane_math::mul_rounded(amount.value(), self.quote_rate).map(Notional::new)
        };
        let bracket = |bracket: &MarginBracket| {
            Ok(MarginBracket {
                floor: worth(bracket.floor)?,
                // A last step without end stays so.
                cap: worth(bracket.cap).unwrap_or(bracket.cap),
                deduction: worth(bracket.deduction)?,
                ..*bracket
            })
        };
        Ok(MarginUse {
            equity: worth(self.account.equity()?)?,
            // Rounding on the venue's side may leave a hair below zero.
            other_margin: worth(other.max(Notional::ZERO))?,
            other_maintenance: worth(maintenance.max(Notional::ZERO))?,
            initial_rate: Ratio::new(deltaplane_math::div(Decimal::ONE, leverage)?),
            brackets: self.instrument.brackets.iter().map(bracket).collect::<Result<_, MathError>>()?,
            not_shared: worth(self.not_shared(symbol)?)?,
            others: self.others.iter().filter(|other| other.own_equity.is_none()).cloned().collect(),
            sides: self.account.sides(symbol),
        })
    }
}
