//! The ports: build, call, map.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_net::{Backoff, ClockOffset, HttpTransport, Rows, Seldom, Spent, StreamProof};
use deltaplane_ports::{
    AccountEvent, AccountReader, CancelOutcome, Check, Clock, Contract, Finding, Income, IncomeKind,
    Invalidation, OpenOrder, OrderGateway, OrderName, OrderSighting, Pace, Priority, ReadError, StreamStatus,
    VenueAccount, VenueRules, table_prefix,
};
use deltaplane_types::{
    AccountSnapshot, ClientOrderId, Decimal, Delta, ExecutionReport, Fill, Instrument, Notional, OrderAck,
    OrderIntent, OrderStatus, Position, Price, Quantity, Refusal, RefusalReason, SubmitOutcome, Symbol,
    TimeInForce, Timestamp, UnknownCause, UnmappedPosition, UnreadableRow,
};
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::auth::AccountKey;
use crate::config::PacificaConfig;
use crate::errors;
use crate::map::{self, InstrumentParts, MapError};
use crate::rest::{self, Rest, RestError, SignedOperation, Submitted};
use crate::session::{Orders, PROOF, Reply, Session, Told};
use crate::wire::{
    self, Account, BookSide, MarginSetting, Market, PaidTrade, PastFunding, PastTrade, Placed, PlacedReply,
    PositionRow,
};

/// How often an account is read: each time costs two credits of a hundred in a minute, with its orders three.
const PACE: Pace = Pace {
    idle: Duration::from_secs(5),
    after_event: Duration::from_millis(100),
    audit: Duration::from_secs(50),
};
/// How often it is read when a third of the credits is used: the rest is for decisions and orders.
const SPARING: Pace = Pace {
    idle: Duration::from_secs(20),
    after_event: Duration::from_secs(10),
    audit: Duration::from_secs(60),
};
const SPARE_FROM_PERCENT: u64 = 33;
/// How often the account is read because of changes in markets that have no symbol.
const UNMAPPED_EVERY: Duration = Duration::from_secs(10);
/// How long the venue holds back an order that takes.
const SPEED_BUMP: Duration = Duration::from_millis(250);
/// How long markets, settings and past fundings are believed.
const TABLE_AGE: Duration = Duration::from_secs(3_600);
/// A list that lacks a market is read again where it is older than this.
const LACKING_AGE: Duration = Duration::from_secs(60);
/// How old settings may be when an account is checked before trading.
const SETTINGS_AGE: Duration = Duration::from_secs(600);
/// After a refused order the tables behind it are read again, where they were not just read.
const DOUBTED_AFTER: Duration = Duration::from_secs(1);
/// How often the background looks for what is old, and its pause after a failure.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Difference between our clock and the venue's above which preflight warns; the venue's clock has whole seconds.
const NOTABLE_SKEW_MS: i64 = 3_000;

/// A statement with very many trades is read in parts, not shorter than this.
const SHORTEST_WINDOW: Duration = Duration::from_secs(600);

const CREATE: (&str, &str) = ("create_order", "/orders/create");
const CANCEL: (&str, &str) = ("cancel_order", "/orders/cancel");

/// Tables with the times at which they were asked for.
#[derive(Default)]
struct Known {
    markets: Option<(Timestamp, BTreeMap<String, Market>)>,
    /// Rows of their list that were left out.
    unreadable: Vec<UnreadableRow>,
    settings: Option<(Timestamp, Vec<MarginSetting>)>,
    /// The rules may not be those that are known: an order was refused.
    are_markets_doubted: bool,
    /// The settings may not be those that are known: an order was refused, or they are from an earlier run.
    are_settings_doubted: bool,
    account: Option<Account>,
    settled: BTreeMap<String, (Timestamp, Vec<PastFunding>)>,
    /// Markets whose past fundings are read in the background.
    wanted: BTreeSet<String>,
}

/// One account on Pacifica. Dropping it ends its stream.
pub struct PacificaVenue {
    config: PacificaConfig,
    key: Arc<AccountKey>,
    rest: Rest,
    orders: Orders,
    told: Arc<Told>,
    events: broadcast::Sender<AccountEvent>,
    proof: Arc<StreamProof>,
    known: RwLock<Known>,
    /// One question for a table at a time: those who wait take its answer.
    asking: tokio::sync::Mutex<()>,
    asking_prices: tokio::sync::Mutex<()>,
    tasks: Mutex<JoinSet<()>>,
}

impl PacificaVenue {
    /// Sets an account up and starts its stream. A venue that is down is tried again in the background: until it
    /// answers, reads fail and nothing is signed.
    pub fn start(
        config: PacificaConfig,
        key: Arc<AccountKey>,
        transport: Arc<dyn HttpTransport>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let events = broadcast::channel(4_096).0;
        let proof = Arc::new(StreamProof::new(PROOF));
        let told = Arc::new(Told::default());
        let session = Session {
            url: format!("{}/ws", config.stream_url.trim_end_matches('/')),
            egress: config.egress.clone(),
            address: key.account().to_owned(),
            account: config.account.clone(),
            symbols: config.symbols.clone(),
            events: events.clone(),
            proof: proof.clone(),
            told: told.clone(),
            api_config_key: config.api_config_key.clone(),
            credits: config.credits.clone(),
            clock: clock.clone(),
            unmapped_changes: Seldom::new(UNMAPPED_EVERY),
        };
        let (running, orders) = session.with_orders();
        let mut tasks = JoinSet::new();
        tasks.spawn(running);
        let rest = Rest {
            transport,
            base: config.rest_url.trim_end_matches('/').to_owned(),
            key: Some(key.clone()),
            api_config_key: config.api_config_key.clone(),
            clock,
            offset: ClockOffset::default(),
            credits: config.credits.clone(),
            timeout: config.request_timeout,
        };
        let venue = Arc::new(Self {
            config,
            key,
            rest,
            orders,
            told,
            events,
            proof,
            known: RwLock::default(),
            asking: tokio::sync::Mutex::default(),
            asking_prices: tokio::sync::Mutex::default(),
            tasks: Mutex::new(tasks),
        });
        venue.load_tables();
        let keeping = Self::keep_tables(Arc::downgrade(&venue));
        venue.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(keeping);
        venue
    }

    fn known<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn learn(&self, write: impl FnOnce(&mut Known)) {
        write(&mut self.known.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn are_markets_older(&self, age: Duration) -> bool {
        self.known(|known| {
            let at = known.markets.as_ref().map(|(at, _)| *at);
            self.is_older(at, age, known.are_markets_doubted)
        })
    }

    fn are_settings_older(&self, age: Duration) -> bool {
        let is_older = self.known(|known| {
            let at = known.settings.as_ref().map(|(at, _)| *at);
            self.is_older(at, age, known.are_settings_doubted)
        });
        is_older || self.told.settings_changed.load(Ordering::SeqCst)
    }

    fn is_older(&self, at: Option<Timestamp>, age: Duration, is_doubted: bool) -> bool {
        let now = self.rest.clock.now();
        at.is_none_or(|at| now.since(at) >= age || (is_doubted && now.since(at) >= DOUBTED_AFTER))
    }

    fn table_name(&self, table: &str) -> String {
        let identity = [self.config.rest_url.as_str(), self.key.account()];
        format!("{}-{table}", table_prefix(&self.config.venue, &self.config.account, &identity))
    }

    /// Takes the tables that an earlier run kept.
    fn load_tables(&self) {
        let Some(store) = &self.config.tables else { return };
        let now = self.rest.clock.now();
        if let Some((_, text)) = store.load(&self.table_name("contracts")) {
            self.config.symbols.remember(&text);
        }
        if let Some((at, text)) = store.load(&self.table_name("markets"))
            && let Err(error) = self.take_markets(at.min(now), text.as_bytes())
        {
            tracing::info!(%error, "the stored list of markets cannot be read: it is loaded from the exchange");
        }
        if let Some((at, text)) = store.load(&self.table_name("settings"))
            && let Err(error) = self.take_settings(at.min(now), text.as_bytes())
        {
            tracing::info!(%error, "the stored settings cannot be read: they are loaded from the exchange");
        }
        // Users change these while no stream is connected.
        self.learn(|known| known.are_settings_doubted = true);
    }

    fn keep_table(&self, table: &str, at: Timestamp, text: &[u8]) {
        if let (Some(store), Ok(text)) = (&self.config.tables, std::str::from_utf8(text)) {
            store.store(&self.table_name(table), at, text);
        }
    }

    fn take_markets(&self, at: Timestamp, text: &[u8]) -> Result<(), RestError> {
        let mut rows: Rows<Market> = wire::answer(text).map_err(RestError::Unreadable)?.data;
        map::learn(&self.config.symbols, &rows);
        let unreadable = rows.take_unreadable("info");
        let perpetual = rows.read.into_iter().filter(Market::is_perpetual);
        let markets = perpetual.map(|market| (market.symbol.clone(), market)).collect();
        self.learn(|known| {
            (known.markets, known.are_markets_doubted) = (Some((at, markets)), false);
            known.unreadable = unreadable;
        });
        Ok(())
    }

    /// Takes the settings; of old they are the array itself.
    fn take_settings(&self, at: Timestamp, text: &[u8]) -> Result<(), RestError> {
        let answer: Value = wire::answer(text).map_err(RestError::Unreadable)?.data;
        let text = answer.to_string();
        let unreadable = |error: serde_json::Error| RestError::Unreadable(error.to_string());
        let rows = if answer.is_array() {
            serde_json::from_str(&text).map_err(unreadable)?
        } else {
            serde_json::from_str::<wire::Settings>(&text).map_err(unreadable)?.margin_settings
        };
        self.learn(|known| (known.settings, known.are_settings_doubted) = (Some((at, rows)), false));
        Ok(())
    }

    async fn ensure_markets(&self, age: Duration, priority: Priority) -> Result<(), RestError> {
        if !self.are_markets_older(age) {
            return Ok(());
        }
        let _turn = self.asking.lock().await;
        if self.are_markets_older(age) {
            let asked = self.rest.clock.now();
            let text = self.rest.info(priority).await?;
            self.take_markets(asked, &text)?;
            self.keep_table("markets", asked, &text);
            self.keep_table("contracts", asked, self.config.symbols.to_text().as_bytes());
        }
        Ok(())
    }

    async fn ensure_settings(&self, age: Duration, priority: Priority) -> Result<(), RestError> {
        if !self.are_settings_older(age) {
            return Ok(());
        }
        let _turn = self.asking.lock().await;
        if self.are_settings_older(age) {
            let asked = self.rest.clock.now();
            // What changes from here on is asked for again.
            let was_told = self.told.settings_changed.swap(false, Ordering::SeqCst);
            let read = async {
                let text = self.rest.settings(self.key.account(), priority).await?;
                self.take_settings(asked, &text).map(|()| text)
            };
            let text = read.await.inspect_err(|_| {
                self.told.settings_changed.fetch_or(was_told, Ordering::SeqCst);
            })?;
            self.keep_table("settings", asked, &text);
        }
        Ok(())
    }

    fn known_market(&self, name: &str) -> Option<Market> {
        self.known(|known| known.markets.as_ref()?.1.get(name).cloned())
    }

    /// The settings of a market; none where it has the defaults.
    fn known_setting(&self, name: &str) -> Option<MarginSetting> {
        self.known(|known| known.settings.as_ref()?.1.iter().find(|row| row.symbol == name).cloned())
    }

    async fn market(&self, name: &str, priority: Priority) -> Result<Option<Market>, ReadError> {
        if let Err(error) = self.ensure_markets(Duration::MAX, priority).await {
            // Doubted rules that cannot be read again now count until they can.
            return self.known_market(name).map(Some).ok_or_else(|| error.into());
        }
        if self.known_market(name).is_none() {
            // Listed a moment ago, perhaps.
            self.ensure_markets(LACKING_AGE, priority).await?;
        }
        Ok(self.known_market(name))
    }

    async fn setting(
        &self,
        name: &str,
        age: Duration,
        priority: Priority,
    ) -> Result<Option<MarginSetting>, ReadError> {
        self.ensure_settings(age, priority).await?;
        Ok(self.known_setting(name))
    }

    /// Reads again what is old, until the account is dropped.
    async fn keep_tables(venue: Weak<Self>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            // The stream waits for it: before it is known what is listed, an event does not tell what it is about.
            let Some(venue) = venue.upgrade() else { return };
            if venue.ensure_markets(Duration::MAX, Priority::Sync).await.is_ok() {
                break;
            }
            drop(venue);
            tokio::time::sleep(backoff.next_wait()).await;
        }
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(venue) = venue.upgrade() else { return };
            let refreshed = venue.refresh_one().await;
            drop(venue);
            match refreshed {
                Ok(()) => {}
                Err(RestError::Budget(wait)) => tokio::time::sleep(wait).await,
                Err(error) => {
                    tracing::debug!(%error, "a table of the exchange could not be reloaded: the one before is used");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    async fn refresh_one(&self) -> Result<(), RestError> {
        if self.known(|known| known.markets.is_some()) {
            self.ensure_markets(TABLE_AGE, Priority::Data).await?;
        }
        if self.known(|known| known.settings.is_some()) {
            self.ensure_settings(TABLE_AGE, Priority::Data).await?;
        }
        let now = self.rest.clock.now();
        let old = self.known(|known| {
            let is_old =
                |name: &&String| known.settled.get(*name).is_none_or(|(at, _)| now.since(*at) >= TABLE_AGE);
            known.wanted.iter().find(is_old).cloned()
        });
        if let Some(name) = old {
            let rows = self.rest.funding_rate_history(&name, Priority::Data).await?;
            self.learn(|known| drop(known.settled.insert(name, (now, rows))));
        }
        Ok(())
    }

    /// The instrument that the tables make of a market.
    fn instrument(
        &self,
        symbol: &Symbol,
        contract: &Contract,
        market: &Market,
    ) -> Result<Instrument, MapError> {
        let setting = self.known_setting(&contract.name);
        let mark = self.told.mark(symbol);
        self.known(|known| {
            let settled =
                known.settled.get(&contract.name).map(|(_, rows)| rows.as_slice()).unwrap_or_default();
            map::instrument(&InstrumentParts {
                symbol,
                contract,
                market,
                account: known.account.as_ref(),
                isolated: setting.as_ref().is_some_and(|setting| setting.isolated),
                leverage: setting.map(|setting| setting.leverage),
                mark,
                settled,
            })
        })
    }

    /// The mark that the stream told last, else the one that REST tells.
    async fn mark(&self, symbol: &Symbol, priority: Priority) -> Result<Option<Price>, ReadError> {
        if let Some(mark) = self.told.mark(symbol) {
            return Ok(Some(mark));
        }
        // One list has all markets: who else needs it takes it from there.
        let _turn = self.asking_prices.lock().await;
        if self.told.mark(symbol).is_none() {
            let rows = self.rest.prices(priority).await?;
            let marks = rows.iter().filter_map(|row| {
                let (symbol, contract) = map::of_market(&self.config.symbols, &row.symbol)?;
                Some((symbol, contract.base_price(row.mark.0).ok()?))
            });
            self.told.lack_no_mark(marks);
        }
        Ok(self.told.mark(symbol))
    }

    /// The contract of a symbol, from the venue's own list.
    async fn contract(&self, symbol: &Symbol, priority: Priority) -> Result<Contract, ReadError> {
        if let Some(contract) = self.config.symbols.contract(symbol) {
            return Ok(contract);
        }
        self.ensure_markets(LACKING_AGE, priority).await?;
        self.config.symbols.contract(symbol).ok_or_else(|| ReadError::UnknownSymbol(symbol.clone()))
    }

    async fn position(
        &self,
        row: &PositionRow,
        (symbol, contract): (Symbol, Contract),
        order: Option<u64>,
        priority: Priority,
    ) -> Result<Position, ReadError> {
        let delta = map::delta(row.side, row.amount.0, &contract)?;
        let entry = contract.base_price(row.entry_price.0).ok();
        let mark = self.mark(&symbol, priority).await?;
        let market = self.market(&row.symbol, priority).await?;
        let setting = self.setting(&row.symbol, Duration::MAX, priority).await?;
        let max_leverage = market.map_or(1, |market| market.max_leverage.max(1));
        let leverage = setting.map_or(max_leverage, |setting| setting.leverage.max(1));
        let value = |price: Option<Price>| {
            price.and_then(|price| delta.abs().notional_at(price).ok()).unwrap_or(Notional::ZERO).value()
        };
        let part = |amount: Decimal, by: u32| amount.checked_div(Decimal::from(by)).unwrap_or(amount);
        let unrealized = entry
            .zip(mark)
            .and_then(|(entry, mark)| delta.value().checked_mul(mark.value().checked_sub(entry.value())?));
        Ok(Position {
            symbol,
            delta,
            entry_price: entry,
            mark_price: mark,
            unrealized: Notional::new(unrealized.unwrap_or_default()),
            // Initial margin counts from the entry price, maintenance from the mark.
            initial_margin: Notional::new(part(value(entry), leverage)),
            maintenance_margin: Notional::new(part(value(mark.or(entry)), max_leverage.saturating_mul(2))),
            leverage: Some(Decimal::from(leverage)),
            liquidation_price: row.liquidation_price.and_then(|price| contract.base_price(price.0).ok()),
            isolated_margin: row
                .isolated
                .then(|| Notional::new(row.margin.as_ref().map_or(Decimal::ZERO, |margin| margin.0))),
            updated_at: Timestamp::from_millis(row.updated_at),
            order,
            sides: Vec::new(),
        })
    }

    /// Sends a signed operation once: over the socket while it is up, else over REST.
    async fn send(&self, signed: SignedOperation, spent: Spent, timeout: Duration) -> Submitted {
        match self.orders.send(signed, spent, timeout).await {
            Reply::Came(submitted) => submitted,
            Reply::NotWritten(signed, spent) => self.rest.post(&signed, spent, timeout).await,
        }
    }

    /// An order among the open and the past ones, by our name.
    async fn search(
        &self,
        id: &ClientOrderId,
        contract: &Contract,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Option<ExecutionReport>, ReadError> {
        let mine = |name: Option<&String>| name.is_some_and(|name| name == id.as_str());
        let open = self.rest.open_orders(self.key.account(), priority).await?;
        if let Some(row) = open.iter().find(|row| mine(row.client_order_id.as_ref())) {
            return Ok(map::open_report(row, contract)?);
        }
        let past = self.rest.order_history(self.key.account(), id.as_str(), since, priority).await?;
        // A changed order keeps our name and gets a new id: the newest one counts.
        let row = past.iter().max_by_key(|row| row.order_id);
        Ok(row.map(|row| map::past_report(row, contract)).transpose()?.flatten())
    }
}

impl From<MapError> for ReadError {
    fn from(error: MapError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

#[async_trait]
impl AccountReader for PacificaVenue {
    async fn fetch_account(&self, priority: Priority) -> Result<AccountSnapshot, ReadError> {
        // Before it is known what is listed, a name does not tell which contract it means.
        if !self.config.symbols.is_known() {
            self.ensure_markets(Duration::MAX, priority).await?;
        }
        let as_of = self.rest.clock.now();
        let address = self.key.account();
        let (account, (mut rows, order)) =
            tokio::try_join!(self.rest.account(address, priority), self.rest.positions(address, priority))?;
        self.learn(|known| known.account = Some(account.clone()));
        let mut unreadable = rows.take_unreadable("positions");
        let mut unmapped: Vec<UnmappedPosition> =
            unreadable.iter().map(|row| self.config.symbols.unreadable_position(row)).collect();
        if rows.read.iter().any(|row| self.known_market(&row.symbol).is_none()) {
            // Listed a moment ago, perhaps; else the position is reported as one without a symbol.
            if let Err(error) = self.ensure_markets(LACKING_AGE, priority).await {
                tracing::debug!(%error, "the list of markets could not be reloaded: the one before is used");
            }
        }
        let mut positions = BTreeMap::new();
        for row in &rows.read {
            match self.config.symbols.canonical(&row.symbol) {
                Ok(mapped) => {
                    let position = self.position(row, mapped, order, priority).await?;
                    positions.insert(position.symbol.clone(), position);
                }
                Err(_) if row.amount.0.is_zero() => {}
                Err(without) => {
                    let amount = if row.side == BookSide::Ask { -row.amount.0 } else { row.amount.0 };
                    unmapped.push(without.position(&row.symbol, amount, None));
                }
            }
        }
        unreadable.extend(self.known(|known| known.unreadable.clone()));
        positions.retain(|_, position: &mut Position| position.delta != Delta::ZERO);
        // What backs positions that share it, and what those have and maintain that do not.
        let isolated =
            || positions.values().filter_map(|position| Some((position, position.isolated_margin?)));
        let own =
            isolated().map(|(position, margin)| margin.value().saturating_add(position.unrealized.value()));
        let own = own.fold(Decimal::ZERO, Decimal::saturating_add);
        let kept = isolated().map(|(position, _)| position.maintenance_margin.value());
        let kept = kept.fold(Decimal::ZERO, Decimal::saturating_add);
        let equity = match account.cross_account_equity {
            Some(shared) => shared.0.saturating_add(own),
            None => account.account_equity.0,
        };
        let cross_mmr = account.cross_mmr.map_or(Decimal::ZERO, |margin| margin.0);
        Ok(AccountSnapshot {
            account: self.config.account.clone(),
            venue: self.config.venue.clone(),
            as_of,
            valued_at: as_of,
            order,
            wallet_balance: Notional::new(account.balance.0),
            unrealized: Notional::new(equity.saturating_sub(account.balance.0)),
            available: Notional::new(account.available_to_spend.0),
            initial_margin: Notional::new(account.total_margin_used.0),
            maintenance_margin: Notional::new(cross_mmr.saturating_add(kept)),
            balances: map::balances(&account),
            positions,
            unmapped,
            unreadable,
            hedge_mode: false,
        })
    }

    async fn fetch_all_open_orders(&self, priority: Priority) -> Result<Vec<OpenOrder>, ReadError> {
        let rows = self.rest.open_orders(self.key.account(), priority).await?;
        let of_ours = rows.iter().filter_map(|row| {
            let (symbol, contract) = map::of_market(&self.config.symbols, &row.symbol)?;
            Some(map::open_order(row, (symbol, &contract)))
        });
        Ok(of_ours.collect::<Result<_, MapError>>()?)
    }

    async fn fetch_instrument(&self, symbol: &Symbol, priority: Priority) -> Result<Instrument, ReadError> {
        let unknown = || ReadError::UnknownSymbol(symbol.clone());
        let contract = self.contract(symbol, priority).await?;
        let market = self.market(&contract.name, priority).await?.ok_or_else(unknown)?;
        if let Err(error) = self.ensure_settings(Duration::MAX, priority).await {
            // Doubted settings that cannot be read again now count until they can.
            self.known(|known| known.settings.is_some()).then_some(()).ok_or(error)?;
        }
        self.learn(|known| known.wanted.extend([contract.name.clone()]));
        // It came by the stream, or its largest size is unknown: the largest order is stated in money.
        self.mark(symbol, priority).await?;
        Ok(self.instrument(symbol, &contract, &market)?)
    }

    fn known_instrument(&self, symbol: &Symbol) -> Option<Instrument> {
        let contract = self.config.symbols.contract(symbol)?;
        self.instrument(symbol, &contract, &self.known_market(&contract.name)?).ok()
    }

    async fn fetch_income(&self, since: Timestamp, priority: Priority) -> Result<Vec<Income>, ReadError> {
        let venue_time = |ours| self.rest.offset.venue_time(ours, i64::MAX - 1).unwrap_or(ours);
        let (since, now) = (venue_time(since), venue_time(self.rest.clock.now()));
        let (funding, funding_from) = self.rest.paid_funding(self.key.account(), since, priority).await?;
        if funding_from > since {
            tracing::warn!(account = %self.config.account, "older funding than the statement's last pages is not counted");
        }
        let mut found = BTreeMap::new();
        // Rows at the edge of two windows come twice and count once.
        let mut add = |income: Income| {
            found.insert(income.id.clone(), income);
        };
        // All at once, and where that is more than is read, in ever shorter parts from the oldest on.
        let (mut from, mut window) = (since, now.since(since));
        while from < now {
            let until = Some(from.after(window)).filter(|until| *until < now);
            let trades = self.rest.trade_history(self.key.account(), None, (from, until), priority).await;
            match trades {
                Ok(trades) => self.incomes_of(trades).for_each(&mut add),
                Err(RestError::TooManyPages) if window > SHORTEST_WINDOW => {
                    window /= 2;
                    continue;
                }
                // What was told so far is whole; the next reading begins after it.
                Err(error) if from > since => {
                    tracing::info!(account = %self.config.account, %error, "the statement ends early");
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            from = until.unwrap_or(now);
        }
        for row in funding.into_iter().filter(|row| from >= now || row.created_at <= from.as_millis()) {
            if let Ok((symbol, _)) = self.config.symbols.canonical(&row.symbol) {
                let id = format!("funding-{}", row.history_id);
                add(map::income(id, symbol, IncomeKind::Funding, row.payout.0, row.created_at));
            }
        }
        Ok(found.into_values().collect())
    }

    async fn fetch_adl_ranks(&self, _: Priority) -> Result<BTreeMap<Symbol, u8>, ReadError> {
        // The venue has such a queue and tells nobody's place in it.
        Ok(BTreeMap::new())
    }

    fn subscribe(&self) -> broadcast::Receiver<AccountEvent> {
        self.events.subscribe()
    }

    fn venue_clock(&self, ours: Timestamp) -> Option<Timestamp> {
        self.rest.offset.timing(ours)
    }

    fn stream(&self) -> StreamStatus {
        self.proof.status()
    }

    fn pace(&self) -> Pace {
        let used = self.config.credits.used_percent(self.rest.clock.now());
        if used < SPARE_FROM_PERCENT { PACE } else { SPARING }
    }

    async fn preflight(&self, symbol: &Symbol, priority: Priority) -> Vec<Finding> {
        let mut found = Vec::new();
        match self.rest.account(self.key.account(), priority).await {
            Ok(account) => {
                let equity = account.account_equity.0.normalize();
                found.push(Finding::fine(Check::Deposit, "the venue knows the account"));
                found.push(if equity > Decimal::ZERO {
                    Finding::fine(Check::Collateral, format!("equity is {equity}"))
                } else {
                    let text = format!("equity is {equity}: nothing can be opened");
                    Finding::warning(Check::Collateral, text, "deposit collateral")
                });
            }
            Err(RestError::Refused(refusal))
                if !matches!(refusal.reason, RefusalReason::RateLimited | RefusalReason::Overloaded) =>
            {
                let text = format!("the account {} cannot be read: {refusal}", self.key.account());
                found.push(Finding::blocking(
                    Check::Deposit,
                    text,
                    "check the account's public key and the network, and make a first deposit",
                ));
                return found;
            }
            Err(error) => {
                found.push(Finding::untold(Check::Permissions, &error.into()));
                return found;
            }
        }
        found.push(self.check_clock());
        found.push(self.check_binding(symbol, priority).await);
        found.push(Finding::fine(Check::PositionMode, "positions are held in one-way mode"));
        found.push(match self.key.agent() {
            Some(_) => Finding::fine(Check::Permissions, "an agent signs"),
            None => Finding::warning(
                Check::Permissions,
                "the account's own key signs: it has the right to withdraw and to bind agents",
                "create an agent wallet for the account at the venue and configure the agent's key",
            ),
        });
        let name = match self.contract(symbol, priority).await {
            Ok(contract) => contract.name,
            Err(error) => {
                found.push(Finding::untold(Check::Margin, &error));
                return found;
            }
        };
        let isolated_only =
            self.market(&name, priority).await.ok().flatten().is_some_and(|market| market.isolated_only);
        found.push(match self.setting(&name, SETTINGS_AGE, priority).await {
            Ok(_) if isolated_only => Finding::blocking(
                Check::Margin,
                format!("{name} has isolated margin only: plans count on margin that is shared"),
                "use another symbol on this account",
            ),
            Ok(Some(setting)) if setting.isolated => Finding::blocking(
                Check::Margin,
                format!("{name} has isolated margin: plans count on margin that is shared"),
                format!("set {name} to cross margin while it is flat"),
            ),
            Ok(Some(setting)) => Finding::fine(
                Check::Margin,
                format!("{name} has cross margin at leverage {}", setting.leverage),
            ),
            Ok(None) => Finding::fine(
                Check::Margin,
                format!("{name} has the default: cross margin at the highest leverage"),
            ),
            Err(error) => Finding::untold(Check::Margin, &error),
        });
        found
    }

    fn venue_account(&self) -> Option<VenueAccount> {
        Some(VenueAccount { venue: self.rest.base.clone(), name: self.key.account().to_owned() })
    }
}

impl PacificaVenue {
    /// The fee of every trade, and what it realized.
    fn incomes_of(&self, trades: Vec<PaidTrade>) -> impl Iterator<Item = Income> {
        trades.into_iter().flat_map(|row| {
            let Ok((symbol, _)) = self.config.symbols.canonical(&row.symbol) else { return Vec::new() };
            let part = |kind, name: &str, amount| {
                map::income(
                    format!("{name}-{}", row.history_id),
                    symbol.clone(),
                    kind,
                    amount,
                    row.created_at,
                )
            };
            let fee = row.fee.0;
            // The venue's profit of a trade has its fee taken off.
            let realized = row.pnl.and_then(|pnl| pnl.0.checked_add(fee)).filter(|gain| !gain.is_zero());
            let realized = realized.map(|gain| part(IncomeKind::Realized, "realized", gain));
            std::iter::once(part(IncomeKind::Fee, "fee", -fee)).chain(realized).collect()
        })
    }

    fn check_clock(&self) -> Finding {
        let now = self.rest.clock.now();
        let Some(venue) = self.rest.offset.venue_time(now, i64::MAX - 1) else {
            return Finding::blocking(Check::Clock, "the venue's time is not known", "check the connection");
        };
        let skew = venue.as_millis().saturating_sub(now.as_millis());
        let text = format!("the venue's clock is about {skew} ms ahead of ours");
        if skew.abs() <= NOTABLE_SKEW_MS {
            Finding::fine(Check::Clock, text)
        } else {
            let remedy = "synchronize this machine's clock; requests are signed with the venue's time";
            Finding::warning(Check::Clock, text, remedy)
        }
    }

    /// Cancels an order that cannot exist: whatever the engine says of it, the signature and the binding passed.
    async fn check_binding(&self, symbol: &Symbol, priority: Priority) -> Finding {
        let spent = match self.config.credits.take(self.rest.clock.now(), priority, rest::CANCEL) {
            Ok(spent) => spent,
            Err(wait) => return Finding::untold(Check::Agent, &ReadError::Withheld(wait)),
        };
        let name = match self.contract(symbol, priority).await {
            Ok(contract) => contract.name,
            Err(error) => return Finding::untold(Check::Agent, &error),
        };
        let unused = uuid::Uuid::new_v4().to_string();
        let signed = match self.rest.sign(CANCEL, cancel_payload(&name, &unused), self.config.expiry_window) {
            Ok(signed) => signed,
            Err(error) => {
                return Finding::blocking(Check::Agent, error.to_string(), "wait for the venue's clock");
            }
        };
        let who = self.key.agent().map_or("the account's key".to_owned(), |agent| format!("agent {agent}"));
        match self.rest.post(&signed, spent, self.config.request_timeout).await {
            Submitted::Refused(refusal) if refusal.reason == RefusalReason::NotPermitted => {
                Finding::blocking(
                    Check::Agent,
                    format!("{who} may not sign for {}: {refusal}", self.key.account()),
                    "bind the agent to this very account, and check that key and network belong together",
                )
            }
            Submitted::Refused(refusal) if refusal.reason == RefusalReason::Clock => Finding::blocking(
                Check::Clock,
                format!("the venue finds our requests too old: {refusal}"),
                "synchronize this machine's clock",
            ),
            Submitted::Refused(refusal)
                if matches!(
                    refusal.reason,
                    RefusalReason::RateLimited
                        | RefusalReason::Overloaded
                        | RefusalReason::NotSent
                        | RefusalReason::ProxyFailed
                        | RefusalReason::KeptBack
                        | RefusalReason::Withheld(_)
                ) =>
            {
                Finding::untold(Check::Agent, &ReadError::Refused(refusal))
            }
            // Only a word of the engine's says that the signature passed.
            Submitted::Unknown(cause) if !matches!(&cause, UnknownCause::VenueUncertain(text) if errors::is_gone(text, None)) => {
                Finding::untold(Check::Agent, &ReadError::Unreadable(cause.to_string()))
            }
            Submitted::Done(_) | Submitted::Refused(_) | Submitted::Unknown(_) => {
                Finding::fine(Check::Agent, format!("{who} may sign"))
            }
        }
    }
}

fn cancel_payload(market: &str, client_id: &str) -> Map<String, Value> {
    let mut payload = Map::new();
    payload.insert("symbol".to_owned(), market.into());
    payload.insert("client_order_id".to_owned(), client_id.into());
    payload
}

#[async_trait]
impl OrderGateway for PacificaVenue {
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent, priority: Priority) -> SubmitOutcome {
        // First of all: what is asked here takes time, and the order may live no longer than what is left after it.
        self.rest.know_the_clock(self.key.account(), priority).await;
        let left = intent.deadline.since(self.rest.clock.now());
        if left.is_zero() {
            return SubmitOutcome::NotAccepted(Refusal::kept_back("its deadline has passed"));
        }
        let Some(contract) = self.config.symbols.contract(&intent.symbol) else {
            let text = format!("the exchange lists no contract for {}", intent.symbol);
            return SubmitOutcome::NotAccepted(Refusal::kept_back(text));
        };
        let numbers = contract.contracts(intent.quantity).and_then(|amount| {
            Ok((amount.to_string(), contract.contract_price(intent.limit_price)?.to_string()))
        });
        let (amount, price) = match numbers {
            Ok(numbers) => numbers,
            Err(error) => return SubmitOutcome::NotAccepted(Refusal::kept_back(error.to_string())),
        };
        let payload = json!({
            "symbol": contract.name,
            "price": price,
            "amount": amount,
            "side": map::side(intent.side),
            "tif": match intent.time_in_force {
                TimeInForce::ImmediateOrCancel => "IOC",
                TimeInForce::GoodTilCanceled => "GTC",
                TimeInForce::PostOnly => "ALO",
            },
            "reduce_only": intent.reduce_only,
            "client_order_id": id.as_str(),
        });
        let Value::Object(payload) = payload else {
            return SubmitOutcome::NotAccepted(Refusal::kept_back("the order cannot be written"));
        };
        let spent = match self.config.credits.take(self.rest.clock.now(), priority, rest::ORDINARY) {
            Ok(spent) => spent,
            Err(wait) => return SubmitOutcome::NotAccepted(Refusal::withheld(wait)),
        };
        // The venue may take it in no later than its deadline, however long the journal took.
        let signed = match self.rest.sign(CREATE, payload, self.config.expiry_window.min(left)) {
            Ok(signed) => signed,
            Err(error) => return SubmitOutcome::NotAccepted(Refusal::kept_back(error.to_string())),
        };
        let timeout = self.config.request_timeout.min(left + self.config.proof_slack);
        match self.send(signed, spent, timeout).await {
            Submitted::Done(data) => acknowledged(&data),
            Submitted::Refused(refusal) => {
                match refusal.reason {
                    RefusalReason::Clock => self.rest.offset.invalidate(),
                    // Perhaps the rules are not those that we know any more.
                    RefusalReason::Rejected => self.learn(|known| {
                        (known.are_markets_doubted, known.are_settings_doubted) = (true, true);
                    }),
                    _ => {}
                }
                SubmitOutcome::NotAccepted(refusal)
            }
            Submitted::Unknown(cause) => SubmitOutcome::Unknown(cause),
        }
    }

    async fn cancel(&self, id: &ClientOrderId, symbol: &Symbol) -> CancelOutcome {
        let contract = match self.contract(symbol, Priority::Protect).await {
            Ok(contract) => contract,
            Err(error) => return CancelOutcome::Refused(Refusal::kept_back(error.to_string())),
        };
        let spent = match self.config.credits.take(self.rest.clock.now(), Priority::Protect, rest::CANCEL) {
            Ok(spent) => spent,
            Err(wait) => return CancelOutcome::Refused(Refusal::withheld(wait)),
        };
        self.rest.know_the_clock(self.key.account(), Priority::Protect).await;
        let payload = cancel_payload(&contract.name, id.as_str());
        let signed = match self.rest.sign(CANCEL, payload, self.config.expiry_window) {
            Ok(signed) => signed,
            Err(error) => return CancelOutcome::Refused(Refusal::kept_back(error.to_string())),
        };
        match self.send(signed, spent, self.config.request_timeout).await {
            // The answer does not say what had traded by then.
            Submitted::Done(_) => {
                match self.fetch_order(id, symbol, Timestamp::default(), Priority::Protect).await {
                    Ok(OrderSighting::Found(report)) => CancelOutcome::Canceled(report),
                    _ => CancelOutcome::Unknown(UnknownCause::Unreadable),
                }
            }
            Submitted::Refused(refusal) if errors::is_gone(&refusal.text, refusal.code) => {
                CancelOutcome::NotOpen
            }
            Submitted::Refused(refusal) => CancelOutcome::Refused(refusal),
            Submitted::Unknown(UnknownCause::VenueUncertain(text)) if errors::is_gone(&text, None) => {
                CancelOutcome::NotOpen
            }
            Submitted::Unknown(cause) => CancelOutcome::Unknown(cause),
        }
    }

    async fn invalidate(&self, _: &ClientOrderId, _: &Symbol) -> Invalidation {
        Invalidation::Unavailable
    }

    async fn fetch_order(
        &self,
        id: &ClientOrderId,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<OrderSighting, ReadError> {
        // What the stream told of an order's end does not change any more.
        if let Some(report) = self.told.report(id).filter(|report| report.status.is_terminal()) {
            return Ok(OrderSighting::Found(report));
        }
        let contract = self.contract(symbol, priority).await?;
        // The history bears the venue's own times.
        let told = self.rest.offset.venue_time(since, i64::MAX - 1).unwrap_or(since);
        if let Some(report) = self.search(id, &contract, told, priority).await? {
            return Ok(OrderSighting::Found(report));
        }
        // A trade under our name is a sighting too, though it does not tell the end.
        let fills = self.fetch_fills(symbol, since, priority).await?;
        let mine: Vec<&Fill> =
            fills.iter().filter(|fill| fill.client_order_id.as_ref() == Some(id)).collect();
        let Some(last) = mine.last() else { return Ok(OrderSighting::NotFound) };
        let sum = mine.iter().fold(Decimal::ZERO, |sum, fill| sum.saturating_add(fill.quantity.value()));
        Ok(OrderSighting::Found(ExecutionReport {
            client_order_id: id.clone(),
            venue_order_id: last.venue_order_id.clone(),
            status: OrderStatus::PartiallyFilled,
            filled: Quantity::try_new(sum).unwrap_or_default(),
            average_price: None,
            venue_time: last.venue_time,
        }))
    }

    async fn fetch_fills(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<Fill>, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        // The venue's clock is its own: what it calls this time may be another moment.
        let since = self.rest.offset.venue_time(since, i64::MAX - 1).unwrap_or(since);
        let (market, times) = (Some(contract.name.as_str()), (since, None));
        let mut trades: Vec<PastTrade> =
            self.rest.trade_history(self.key.account(), market, times, priority).await?;
        trades.sort_by_key(|trade| trade.history_id);
        trades.dedup_by_key(|trade| trade.history_id);
        let fills: Result<Vec<Fill>, MapError> = trades
            .iter()
            .map(|trade| map::past_fill(trade, &self.config.account, (symbol, &contract)))
            .collect();
        Ok(fills?)
    }

    async fn fetch_order_names(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<OrderName>, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        let since = self.rest.offset.venue_time(since, i64::MAX - 1).unwrap_or(since);
        let rows = self.rest.orders_since(self.key.account(), since, priority).await?;
        let names = rows.iter().filter(|row| row.symbol == contract.name);
        Ok(names.filter_map(map::order_name).collect())
    }

    async fn count_down(&self, _: &Symbol, _: Option<Duration>) -> Result<(), ReadError> {
        Err(ReadError::Unreadable("Pacifica has no countdown that cancels orders".to_owned()))
    }

    async fn fetch_open_orders(
        &self,
        symbol: &Symbol,
        priority: Priority,
    ) -> Result<Vec<ExecutionReport>, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        let rows = self.rest.open_orders(self.key.account(), priority).await?;
        let mine = rows.iter().filter(|row| row.symbol == contract.name);
        let reports: Result<Vec<Option<ExecutionReport>>, MapError> =
            mine.map(|row| map::open_report(row, &contract)).collect();
        Ok(reports?.into_iter().flatten().collect())
    }

    fn rules(&self) -> VenueRules {
        VenueRules {
            validity_window: self.config.expiry_window,
            // The venue's time may be wrong by what signing allows, and the venue holds orders back.
            proof_slack: self.config.proof_slack + rest::CLOCK_UNCERTAINTY + SPEED_BUMP,
            proof_lag: self.config.proof_lag,
            invalidates: false,
            counts_down: false,
        }
    }
}

/// The venue has the order; whether it rests, trades or ended comes in events.
fn acknowledged(data: &Value) -> SubmitOutcome {
    let text = data.to_string();
    let id = serde_json::from_str::<Placed>(&text)
        .map(|placed| placed.order_id)
        .ok()
        .or_else(|| serde_json::from_str::<PlacedReply>(&text).ok()?.i);
    match id.and_then(|id| id.to_string().parse().ok()) {
        Some(venue_order_id) => SubmitOutcome::Acknowledged(OrderAck {
            venue_order_id,
            status: OrderStatus::Open,
            filled: Quantity::ZERO,
        }),
        None => SubmitOutcome::Unknown(UnknownCause::Unreadable),
    }
}
