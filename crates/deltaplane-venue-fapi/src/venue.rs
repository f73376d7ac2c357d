//! The ports: build, call, map.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_net::{ClockOffset, HttpTransport, Seldom, StreamProof, WeightBudget};
use deltaplane_ports::{
    AccountEvent, AccountReader, CancelOutcome, Check, Clock, Contract, Finding, Income, Invalidation,
    OpenOrder, OrderGateway, OrderName, OrderSighting, Pace, Priority, ReadError, StreamStatus, VenueAccount,
    VenueRules, table_prefix,
};
use deltaplane_types::{
    AccountSnapshot, ClientOrderId, Decimal, ExecutionReport, Fill, HeldSide, Instrument, Notional, OrderAck,
    OrderIntent, Position, Refusal, RefusalReason, Side, SubmitOutcome, Symbol, TimeInForce, Timestamp,
    UnknownCause, UnmappedPosition,
};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::config::FapiConfig;
use crate::dialect::{Dialect, Signer};
use crate::errors;
use crate::map::{self, InstrumentParts, MapError};
use crate::rest::{Rest, RestError, Submitted};
use crate::tables::Tables;
use crate::user_stream::{PROOF, UserStream};
use crate::wire::{AccountPosition, OrderAnswer, PositionRisk};

/// Pages of a statement that are read at once; the next reading goes on from there.
const INCOME_PAGES: usize = 10;
/// A list of trades this long may not be all of them.
const MOST_ROWS: usize = 1_000;
/// Orders of an account in ten seconds and in a minute, until the exchange tells its own limits.
const ORDERS_PER_TEN_SECONDS: u64 = 300;
const ORDERS_PER_MINUTE: u64 = 1_200;
/// How often the venue's clock is read.
const CLOCK_EVERY: Duration = Duration::from_secs(30);
/// How old position mode and settings may be when an account is checked before trading.
const SETTINGS_AGE: Duration = Duration::from_secs(600);
/// Orders whose nonce is kept.
const REMEMBERED_NONCES: usize = 1_000;
/// How often an account is read: each time costs little of the budget.
const PACE: Pace = Pace {
    idle: Duration::from_millis(1_500),
    after_event: Duration::from_millis(100),
    audit: Duration::from_secs(60),
};
/// Difference between our clock and the venue's above which preflight warns.
const NOTABLE_SKEW_MS: i64 = 1_000;
/// How often the account is read because of changes in contracts that have no symbol.
const UNMAPPED_EVERY: Duration = Duration::from_secs(10);
/// How long entry and liquidation prices of an unchanged position are believed.
const DETAIL_AGE: Duration = Duration::from_secs(10);

/// Why an account could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The venue's clock could not be read.
    #[error("the venue's time cannot be read")]
    Time(#[source] RestError),
    /// The account's position mode could not be read.
    #[error("the account's position mode cannot be read")]
    PositionMode(#[source] RestError),
}

/// One account on one exchange. Dropping it ends its stream.
pub struct FapiVenue {
    config: FapiConfig,
    rest: Arc<Rest>,
    tables: Arc<Tables>,
    events: broadcast::Sender<AccountEvent>,
    proof: Arc<StreamProof>,
    details: RwLock<(Timestamp, Vec<PositionRisk>)>,
    /// The account's code at the venue, as the newest preflight read it.
    code: Mutex<Option<String>>,
    /// The nonces of the newest orders, oldest first.
    nonces: Mutex<Vec<(ClientOrderId, i64)>>,
    _tasks: JoinSet<()>,
}

pub(crate) fn rest_of(
    config: &FapiConfig,
    dialect: &'static Dialect,
    signer: Option<Arc<dyn Signer>>,
    transport: Arc<dyn HttpTransport>,
    clock: Arc<dyn Clock>,
) -> Rest {
    Rest {
        transport,
        base: config.rest_url.trim_end_matches('/').to_owned(),
        dialect,
        signer,
        clock,
        offset: ClockOffset::default(),
        weight: config.weight.clone(),
        orders: [
            WeightBudget::fixed(ORDERS_PER_TEN_SECONDS, Duration::from_secs(10)),
            WeightBudget::fixed(ORDERS_PER_MINUTE, Duration::from_secs(60)),
        ],
        timeout: config.request_timeout,
        receive_window: config.receive_window,
    }
}

impl FapiVenue {
    /// Sets an account up and starts its stream and its clock. A venue that is down is tried again in the
    /// background: until it answers, reads fail and nothing is signed.
    pub fn start(
        config: FapiConfig,
        dialect: &'static Dialect,
        signer: Arc<dyn Signer>,
        transport: Arc<dyn HttpTransport>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let key: Vec<String> = signer.headers().into_iter().map(|(_, value)| value).collect();
        let identity = [config.rest_url.as_str(), signer.agent().unwrap_or_default(), &key.concat()];
        let prefix = table_prefix(&config.venue, &config.account, &identity);
        let rest = Arc::new(rest_of(&config, dialect, Some(signer), transport, clock));
        let events = broadcast::channel(4_096).0;
        let proof = Arc::new(StreamProof::new(PROOF));
        let tables =
            Arc::new(Tables::new(rest.clone(), config.symbols.clone(), config.tables.clone(), prefix));
        let mut tasks = JoinSet::new();
        let clock_rest = rest.clone();
        tasks.spawn(async move {
            loop {
                let known = clock_rest.time(Priority::Sync).await.is_ok();
                tokio::time::sleep(if known { CLOCK_EVERY } else { Duration::from_secs(1) }).await;
            }
        });
        tasks.spawn(tables.clone().keep());
        let stream = UserStream {
            rest: rest.clone(),
            tables: tables.clone(),
            url: config.stream_url.trim_end_matches('/').to_owned(),
            egress: config.egress.clone(),
            account: config.account.clone(),
            symbols: config.symbols.clone(),
            events: events.clone(),
            proof: proof.clone(),
            unmapped_changes: Seldom::new(UNMAPPED_EVERY),
        };
        tasks.spawn(stream.run());
        Arc::new(Self {
            config,
            rest,
            tables,
            events,
            proof,
            details: RwLock::default(),
            code: Mutex::default(),
            nonces: Mutex::default(),
            _tasks: tasks,
        })
    }

    /// Waits until the venue's time and the account's position mode are known.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the question that was not answered.
    pub async fn handshake(&self) -> Result<(), ConnectError> {
        self.rest.time(Priority::Sync).await.map_err(ConnectError::Time)?;
        let mode = self.tables.fetch_hedge_mode(SETTINGS_AGE, Priority::Sync).await;
        mode.map(|_| ()).map_err(ConnectError::PositionMode)
    }

    /// The contract of a symbol, from the exchange's own list.
    async fn contract(&self, symbol: &Symbol, priority: Priority) -> Result<Contract, ReadError> {
        if let Some(contract) = self.config.symbols.contract(symbol) {
            return Ok(contract);
        }
        self.tables.look_again(priority).await?;
        self.config.symbols.contract(symbol).ok_or_else(|| ReadError::UnknownSymbol(symbol.clone()))
    }

    fn position_side(&self, intent: &OrderIntent) -> Option<&'static str> {
        // Hedge mode: a closing sale works on the long position, an opening one on the short.
        self.tables.hedge_mode().then_some(match (intent.side, intent.reduce_only) {
            (Side::Buy, false) | (Side::Sell, true) => "LONG",
            (Side::Sell, false) | (Side::Buy, true) => "SHORT",
        })
    }

    /// Entry and liquidation prices: asked for when a position changed, else now and then.
    async fn position_details(
        &self,
        positions: &[AccountPosition],
        priority: Priority,
    ) -> Result<Vec<PositionRisk>, ReadError> {
        let now = self.rest.clock.now();
        let known = {
            let details = self.details.read().unwrap_or_else(PoisonError::into_inner);
            let fits = |row: &AccountPosition| {
                let same = |d: &&PositionRisk| d.symbol == row.symbol && d.position_side == row.position_side;
                details.1.iter().find(same).map_or(Decimal::ZERO, |d| d.position_amt.0) == row.position_amt.0
            };
            let young = now.since(details.0) < DETAIL_AGE;
            (young && positions.iter().all(fits)).then(|| details.1.clone())
        };
        if let Some(known) = known {
            return Ok(known);
        }
        let rows = self.rest.position_risk(priority).await?.read;
        *self.details.write().unwrap_or_else(PoisonError::into_inner) = (now, rows.clone());
        Ok(rows)
    }

    /// How long after its decision the venue may still take an order in.
    fn validity(&self) -> Duration {
        let fixed = self.rest.signer.as_ref().and_then(|signer| signer.fixed_validity());
        fixed.unwrap_or(self.config.receive_window)
    }

    fn has_fixed_validity(&self) -> bool {
        self.rest.signer.as_ref().is_some_and(|signer| signer.fixed_validity().is_some())
    }

    fn remember_nonce(&self, id: &ClientOrderId, nonce: i64) {
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.len() == REMEMBERED_NONCES {
            nonces.remove(0);
        }
        nonces.push((id.clone(), nonce));
    }

    /// The instrument that the tables make of a contract.
    fn instrument(
        symbol: &Symbol,
        contract: &Contract,
        tables: &crate::tables::InstrumentTables,
    ) -> Result<Instrument, MapError> {
        map::instrument(&InstrumentParts {
            symbol,
            contract,
            info: &tables.info,
            rates: &tables.rates,
            brackets: &tables.brackets,
            leverage: tables.leverage,
            isolated: tables.isolated,
            funding_interval_hours: tables.funding_interval_hours,
            mean_funding_rate: tables.mean_funding_rate,
        })
    }
}

impl From<MapError> for ReadError {
    fn from(error: MapError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl From<MapError> for RestError {
    fn from(error: MapError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

#[async_trait]
impl AccountReader for FapiVenue {
    async fn fetch_account(&self, priority: Priority) -> Result<AccountSnapshot, ReadError> {
        // Before it is known what is listed, a name does not tell which contract it means.
        self.tables.ensure_listed(priority).await?;
        let as_of = self.rest.clock.now();
        let mut account = self.rest.account(priority).await?;
        if let Some(odd) = account.assets.unreadable.first() {
            // A coin in the wallet counts into delta: without it another one would be hedged.
            return Err(ReadError::Unreadable(format!("a row of the assets: {}: {}", odd.reason, odd.text)));
        }
        let odd = account.positions.take_unreadable("positions");
        let rows = account.positions.read;
        let details = self.position_details(&rows, priority).await?;
        if rows.iter().any(|row| !row.position_amt.0.is_zero() && !self.tables.lists(&row.symbol)) {
            // Listed a moment ago, perhaps; else the position is reported as one without a symbol.
            if let Err(error) = self.tables.look_again(priority).await {
                tracing::debug!(%error, "the list of contracts could not be reloaded: the one before is used");
            }
        }
        let mut positions: BTreeMap<Symbol, Position> = BTreeMap::new();
        let mut unmapped: Vec<UnmappedPosition> =
            odd.iter().map(|row| self.config.symbols.unreadable_position(row)).collect();
        for row in &rows {
            if row.position_amt.0.is_zero() {
                continue;
            }
            let (symbol, contract) = match self.config.symbols.canonical(&row.symbol) {
                Ok(mapped) => mapped,
                Err(without) => {
                    let notional = Some(Notional::new(row.notional.0));
                    unmapped.push(without.position(&row.symbol, row.position_amt.0, notional));
                    continue;
                }
            };
            let detail =
                details.iter().find(|d| d.symbol == row.symbol && d.position_side == row.position_side);
            let delta = map::delta(row.position_amt, &contract)?;
            let unrealized = Notional::new(row.unrealized_profit.0);
            let initial = Notional::new(row.initial_margin.0);
            let maintenance = Notional::new(row.maint_margin.0);
            let price = |number| map::price_or_none(number, &contract);
            let side = HeldSide {
                delta,
                entry_price: detail.and_then(|detail| price(detail.entry_price)),
                unrealized,
                initial_margin: initial,
                maintenance_margin: maintenance,
                liquidation_price: detail.and_then(|detail| price(detail.liquidation_price)),
                isolated_margin: map::isolated_margin(row),
            };
            if let Some(other) = positions.get_mut(&symbol) {
                // The other side of hedge mode, or another contract of the same coin.
                add_side(other, side, row).map_err(MapError::from)?;
                continue;
            }
            let told = row.leverage.map(|leverage| leverage.0);
            let leverage = told.or_else(|| self.tables.known(&row.symbol).map(|tables| tables.leverage));
            positions.insert(
                symbol.clone(),
                Position {
                    symbol,
                    delta,
                    entry_price: side.entry_price,
                    mark_price: map::mark_price(row.notional, row.position_amt, &contract),
                    unrealized,
                    initial_margin: initial,
                    maintenance_margin: maintenance,
                    leverage,
                    liquidation_price: side.liquidation_price,
                    isolated_margin: side.isolated_margin,
                    updated_at: Timestamp::from_millis(row.update_time),
                    order: u64::try_from(row.update_time).ok(),
                    sides: vec![side],
                },
            );
        }
        for position in positions.values_mut().filter(|position| position.sides.len() < 2) {
            position.sides.clear();
        }
        positions.retain(|_, position| position.is_held());
        let mut unreadable = odd;
        unreadable.extend(self.tables.unreadable());
        Ok(AccountSnapshot {
            account: self.config.account.clone(),
            venue: self.config.venue.clone(),
            as_of,
            valued_at: as_of,
            order: None,
            wallet_balance: Notional::new(account.total_wallet_balance.0),
            unrealized: Notional::new(account.total_unrealized_profit.0),
            available: Notional::new(account.available_balance.0),
            initial_margin: Notional::new(account.total_initial_margin.0),
            maintenance_margin: Notional::new(account.total_maint_margin.0),
            balances: account.assets.read.into_iter().map(|row| (row.asset, row.wallet_balance.0)).collect(),
            positions,
            unmapped,
            unreadable,
            hedge_mode: self.tables.hedge_mode(),
        })
    }

    async fn fetch_all_open_orders(&self, priority: Priority) -> Result<Vec<OpenOrder>, ReadError> {
        let rows = self.rest.all_open_orders(priority).await?;
        if let Some(odd) = rows.unreadable.first() {
            // What it may still trade is not known.
            return Err(ReadError::Unreadable(format!("an open order: {}: {}", odd.reason, odd.text)));
        }
        let of_ours = rows.read.iter().filter_map(|row| {
            let (symbol, contract) = self.config.symbols.canonical(&row.symbol).ok()?;
            Some(map::open_order(row, (symbol, &contract)))
        });
        Ok(of_ours.collect::<Result<_, MapError>>()?)
    }

    async fn fetch_instrument(&self, symbol: &Symbol, priority: Priority) -> Result<Instrument, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        let tables = self.tables.of(&contract.name, priority).await?;
        let tables = tables.ok_or_else(|| ReadError::UnknownSymbol(symbol.clone()))?;
        Ok(Self::instrument(symbol, &contract, &tables)?)
    }

    fn known_instrument(&self, symbol: &Symbol) -> Option<Instrument> {
        let contract = self.config.symbols.contract(symbol)?;
        Self::instrument(symbol, &contract, &self.tables.known(&contract.name)?).ok()
    }

    async fn fetch_income(&self, since: Timestamp, priority: Priority) -> Result<Vec<Income>, ReadError> {
        let mut from = self.rest.offset.venue_time(since, i64::MAX).unwrap_or(since);
        let mut found = BTreeMap::new();
        for _ in 0..INCOME_PAGES {
            let rows = self.rest.income(&from.to_string(), priority).await?;
            let last = rows.last().map(|row| row.time);
            let is_all = rows.len() < MOST_ROWS;
            for row in rows {
                if let Some(income) = map::income(row, &self.config.symbols) {
                    found.insert(income.id.clone(), income);
                }
            }
            match last.map(Timestamp::from_millis) {
                // Rows of the same millisecond come again and count once.
                Some(last) if !is_all && last > from => from = last,
                _ => break,
            }
        }
        Ok(found.into_values().collect())
    }

    async fn fetch_adl_ranks(&self, priority: Priority) -> Result<BTreeMap<Symbol, u8>, ReadError> {
        let told: Vec<(String, u8)> = match self.rest.adl_quantiles(priority).await? {
            Some(rows) => {
                // `HEDGE` says that both sides are held, and is no place in the queue.
                let places = |row: crate::wire::AdlQuantile| {
                    let sides = row.adl_quantile.into_iter().filter(|(side, _)| side != "HEDGE");
                    sides.map(move |(_, rank)| (row.symbol.clone(), rank)).collect::<Vec<_>>()
                };
                rows.into_iter().flat_map(places).collect()
            }
            None => {
                let rows = self.rest.position_risk(priority).await?.read.into_iter();
                let held = rows.filter(|row| !row.position_amt.0.is_zero());
                held.filter_map(|row| Some((row.symbol, row.adl?))).collect()
            }
        };
        let mut ranks = BTreeMap::new();
        for (name, rank) in told {
            if let Ok((symbol, _)) = self.config.symbols.canonical(&name) {
                let nearest = ranks.entry(symbol).or_insert(rank);
                *nearest = rank.max(*nearest);
            }
        }
        Ok(ranks)
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
        PACE
    }

    async fn preflight(&self, symbol: &Symbol, priority: Priority) -> Vec<Finding> {
        let mut found = vec![self.check_clock(priority).await];
        match self.rest.account(priority).await {
            Err(error) => {
                found.push(self.unreachable_account(error));
                return found;
            }
            Ok(account) => {
                found.push(check_collateral(&account));
                found.extend(check_isolated_sides(&account));
            }
        }
        // The code only tells two keys of one account: a venue that does not answer this blocks nothing.
        if let Ok(rows) = self.rest.balances(priority).await {
            let code = rows.read.into_iter().map(|row| row.account_alias).find(|code| !code.is_empty());
            *self.code.lock().unwrap_or_else(PoisonError::into_inner) = code;
        }
        found.push(match self.rest.account_rights(priority).await {
            Ok(rights) => check_rights(&rights),
            Err(error) => cannot_ask(Check::Permissions, error),
        });
        match self.rest.agents(priority).await {
            Ok(Some(agents)) => found.extend(self.check_agents(&agents)),
            Ok(None) => {}
            Err(error) => found.push(cannot_ask(Check::Agent, error)),
        }
        found.push(match self.tables.fetch_hedge_mode(SETTINGS_AGE, priority).await {
            Ok(is_hedge_mode) => {
                let name = if is_hedge_mode { "hedge" } else { "one-way" };
                Finding::fine(Check::PositionMode, format!("positions are held in {name} mode"))
            }
            Err(error) => cannot_ask(Check::PositionMode, error),
        });
        let name = match self.contract(symbol, priority).await {
            Ok(contract) => contract.name,
            Err(error) => {
                found.push(Finding::untold(Check::Margin, &error));
                return found;
            }
        };
        found.push(match self.tables.fetch_setting(&name, SETTINGS_AGE, priority).await.map_err(ReadError::from) {
            Ok((leverage, true)) => Finding::blocking(
                Check::Margin,
                format!(
                    "{name} has isolated margin at leverage {leverage}: plans count on margin that is shared"
                ),
                format!("set {name} to cross margin while it is flat"),
            ),
            Ok((leverage, false)) => {
                Finding::fine(Check::Margin, format!("{name} has cross margin at leverage {leverage}"))
            }
            Err(error) => Finding::untold(Check::Margin, &error),
        });
        found
    }

    fn venue_account(&self) -> Option<VenueAccount> {
        let code = self.code.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(VenueAccount { venue: self.rest.base.clone(), name: code })
    }
}

/// Adds a row of a symbol to what was read of it: the net and the sums move. Both sides of hedge mode stay beside them.
fn add_side(
    position: &mut Position,
    side: HeldSide,
    row: &AccountPosition,
) -> Result<(), deltaplane_types::ArithmeticError> {
    position.delta = position.delta.plus(side.delta)?;
    position.unrealized = position.unrealized.plus(side.unrealized)?;
    position.initial_margin = position.initial_margin.plus(side.initial_margin)?;
    position.maintenance_margin = position.maintenance_margin.plus(side.maintenance_margin)?;
    position.order = position.order.max(u64::try_from(row.update_time).ok());
    if let Some(own) = side.isolated_margin {
        position.isolated_margin = Some(position.isolated_margin.unwrap_or_default().plus(own)?);
    }
    position.entry_price = position.entry_price.filter(|_| row.position_side == "BOTH");
    position.sides.push(side);
    Ok(())
}

fn cannot_ask(check: Check, error: RestError) -> Finding {
    Finding::untold(check, &error.into())
}

fn check_collateral(account: &crate::wire::Account) -> Finding {
    let equity = account.total_wallet_balance.0.saturating_add(account.total_unrealized_profit.0);
    if equity > Decimal::ZERO {
        Finding::fine(Check::Collateral, format!("equity is {}", equity.normalize()))
    } else {
        Finding::warning(
            Check::Collateral,
            format!("equity is {}: nothing can be opened", equity.normalize()),
            "deposit collateral",
        )
    }
}

/// Both sides of hedge mode with margin of their own: each is liquidated by itself, and what counts here is their net.
fn check_isolated_sides(account: &crate::wire::Account) -> Option<Finding> {
    let isolated = |row: &&crate::wire::AccountPosition| {
        !row.position_amt.0.is_zero() && map::isolated_margin(row).is_some()
    };
    let mut seen = std::collections::BTreeSet::new();
    let twice = account.positions.read.iter().filter(isolated).find(|row| !seen.insert(&row.symbol))?;
    Some(Finding::blocking(
        Check::Margin,
        format!("{} is held long and short with isolated margin each", twice.symbol),
        "close one side, or use cross margin",
    ))
}

fn check_rights(rights: &crate::wire::AccountRights) -> Finding {
    if rights.can_trade == Some(false) {
        return Finding::blocking(
            Check::Permissions,
            "the key may not trade",
            "give the key the right to trade futures, or use another",
        );
    }
    if rights.can_withdraw == Some(true) {
        return Finding::warning(
            Check::Permissions,
            "the key has the right to withdraw",
            "use a key without the right to withdraw, bound to this machine's address",
        );
    }
    Finding::fine(Check::Permissions, "the key may trade")
}

impl FapiVenue {
    async fn check_clock(&self, priority: Priority) -> Finding {
        if let Err(error) = self.rest.time(priority).await {
            return cannot_ask(Check::Clock, error);
        }
        let now = self.rest.clock.now();
        let venue = self.rest.offset.venue_time(now, i64::MAX).unwrap_or(now);
        let skew = venue.as_millis().saturating_sub(now.as_millis());
        let text = format!("the venue's clock is {skew} ms ahead of ours");
        if skew.abs() <= NOTABLE_SKEW_MS {
            Finding::fine(Check::Clock, text)
        } else {
            Finding::warning(
                Check::Clock,
                text,
                "synchronize this machine's clock; requests are signed with the venue's time",
            )
        }
    }

    /// What keeps the account's answer back decides what to do.
    fn unreachable_account(&self, error: RestError) -> Finding {
        if let RestError::Refused(refusal) = &error
            && let Some((text, remedy)) = refusal.code.and_then(self.rest.dialect.gate)
        {
            let check = if text.contains("deposit") { Check::Deposit } else { Check::Agent };
            return Finding::blocking(check, format!("{text} ({refusal})"), remedy);
        }
        cannot_ask(Check::Permissions, error)
    }

    fn check_agents(&self, agents: &[crate::wire::Agent]) -> Vec<Finding> {
        let now = self.rest.clock.now();
        let ours = self.rest.signer.as_ref().and_then(|signer| signer.agent()).unwrap_or_default();
        let mut found = Vec::new();
        if !ours.is_empty() && !agents.iter().any(|agent| agent.agent_address.eq_ignore_ascii_case(ours)) {
            found.push(Finding::warning(
                Check::Agent,
                format!("our agent {ours} is not among the agents that the venue lists"),
                "see that the wallet approved this agent",
            ));
        }
        for agent in agents {
            let address = &agent.agent_address;
            let ends = Timestamp::from_millis(agent.expired);
            if agent.can_withdraw {
                found.push(Finding::warning(
                    Check::Agent,
                    format!("agent {address} has the right to withdraw"),
                    "approve the agent again at the exchange without the right to withdraw",
                ));
            }
            let is_ours = address.eq_ignore_ascii_case(ours);
            if is_ours && !agent.can_perp_trade {
                found.push(Finding::blocking(
                    Check::Permissions,
                    format!("our agent {address} may not trade perpetuals"),
                    "approve the agent again at the exchange with the right to trade perpetuals",
                ));
            }
            if is_ours && ends <= now {
                found.push(Finding::blocking(
                    Check::Agent,
                    format!("the right of our agent {address} expired at {ends} (milliseconds)"),
                    "approve the agent again at the exchange",
                ));
            } else if ends.since(now) < Duration::from_secs(7 * 24 * 3_600) {
                found.push(Finding::warning(
                    Check::Agent,
                    format!("the right of agent {address} ends at {ends} (milliseconds)"),
                    "approve the agent again at the exchange before that time",
                ));
            } else {
                found.push(Finding::fine(Check::Agent, format!("agent {address} is approved")));
            }
        }
        found
    }
}

#[async_trait]
impl OrderGateway for FapiVenue {
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent, priority: Priority) -> SubmitOutcome {
        let left = intent.deadline.since(self.rest.clock.now());
        if left.is_zero() {
            return SubmitOutcome::NotAccepted(Refusal::kept_back("its deadline has passed".to_owned()));
        }
        let Some(contract) = self.config.symbols.contract(&intent.symbol) else {
            let text = format!("the exchange lists no contract for {}", intent.symbol);
            return SubmitOutcome::NotAccepted(Refusal::kept_back(text));
        };
        let numbers = contract.contracts(intent.quantity).and_then(|quantity| {
            Ok((quantity.to_string(), contract.contract_price(intent.limit_price)?.to_string()))
        });
        let (quantity, price) = match numbers {
            Ok(numbers) => numbers,
            Err(error) => return SubmitOutcome::NotAccepted(Refusal::kept_back(error.to_string())),
        };
        let validity = self.validity();
        let fixed = self.has_fixed_validity();
        // The validity counts from the decision. Where the signature carries no window, an order that waited
        // here for long would be good for longer than its deadline says.
        let decided = Timestamp::from_millis(
            intent
                .deadline
                .as_millis()
                .saturating_sub(i64::try_from(validity.as_millis()).unwrap_or(i64::MAX)),
        );
        if fixed && self.rest.clock.now().since(decided) > self.config.proof_slack {
            return SubmitOutcome::NotAccepted(Refusal::kept_back(
                "it waited too long before it could be sent".to_owned(),
            ));
        }
        let mut params: Vec<(&str, &str)> = vec![
            ("symbol", &contract.name),
            ("side", if intent.side == Side::Buy { "BUY" } else { "SELL" }),
            ("type", "LIMIT"),
            (
                "timeInForce",
                match intent.time_in_force {
                    TimeInForce::ImmediateOrCancel => "IOC",
                    TimeInForce::GoodTilCanceled => "GTC",
                    TimeInForce::PostOnly => "GTX",
                },
            ),
            ("quantity", &quantity),
            ("price", &price),
            ("newClientOrderId", id.as_str()),
            ("newOrderRespType", "RESULT"),
        ];
        match self.position_side(intent) {
            Some(side) => params.push(("positionSide", side)),
            None if intent.reduce_only => params.push(("reduceOnly", "true")),
            None => {}
        }
        // An answer that comes after the window would tell of an order that is already being looked for.
        let timeout = self.config.request_timeout.min(left + self.config.proof_slack);
        // The venue may take it in no later than its deadline, however long the journal took.
        let (at, window) = if fixed {
            (decided, validity)
        } else {
            (self.rest.clock.now(), self.config.receive_window.min(left))
        };
        let (submitted, nonce) = self.rest.order_post(&params, priority, (at, window), timeout).await;
        if let Some(nonce) = nonce {
            self.remember_nonce(id, nonce);
        }
        let dialect = self.rest.dialect;
        match submitted {
            Submitted::KeptBack(refusal) => SubmitOutcome::NotAccepted(refusal),
            Submitted::Lost(error) => errors::transport_outcome(&error),
            Submitted::Answer(response) if response.status == 200 => {
                acknowledged(dialect, id, &contract, &response.body)
            }
            Submitted::Answer(response) => {
                let outcome = errors::submit_outcome(dialect, response.status, &response.body);
                match &outcome {
                    SubmitOutcome::NotAccepted(refusal) if refusal.reason == RefusalReason::Clock => {
                        self.rest.offset.invalidate();
                    }
                    SubmitOutcome::NotAccepted(refusal) if refusal.reason == RefusalReason::Rejected => {
                        self.tables.unresolved();
                    }
                    _ => {}
                }
                outcome
            }
        }
    }

    async fn cancel(&self, id: &ClientOrderId, symbol: &Symbol) -> CancelOutcome {
        let contract = match self.contract(symbol, Priority::Protect).await {
            Ok(contract) => contract,
            Err(error) => return CancelOutcome::Refused(Refusal::kept_back(error.to_string())),
        };
        let dialect = self.rest.dialect;
        match self.rest.order_delete(&contract.name, id.as_str()).await {
            Submitted::KeptBack(refusal) => CancelOutcome::Refused(refusal),
            Submitted::Lost(error) => match errors::transport_outcome(&error) {
                SubmitOutcome::NotAccepted(refusal) => CancelOutcome::Refused(refusal),
                SubmitOutcome::Unknown(cause) => CancelOutcome::Unknown(cause),
                SubmitOutcome::Acknowledged(_) => CancelOutcome::Unknown(UnknownCause::Unreadable),
            },
            Submitted::Answer(response) if response.status == 200 => {
                let report = serde_json::from_slice::<OrderAnswer>(&response.body)
                    .ok()
                    .and_then(|o| map::report(&o, &contract).ok());
                report.map_or(CancelOutcome::Unknown(UnknownCause::Unreadable), CancelOutcome::Canceled)
            }
            Submitted::Answer(response) => {
                match errors::read_refusal(dialect, response.status, &response.body) {
                    Some(refusal)
                        if refusal.code.is_some_and(|code| dialect.orders.not_found.contains(&code)) =>
                    {
                        CancelOutcome::NotOpen
                    }
                    Some(refusal) if response.status < 500 && response.status != 408 => {
                        CancelOutcome::Refused(refusal)
                    }
                    _ => CancelOutcome::Unknown(UnknownCause::Unreadable),
                }
            }
        }
    }

    async fn invalidate(&self, id: &ClientOrderId, _symbol: &Symbol) -> Invalidation {
        let nonce = {
            let nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
            nonces.iter().find(|(known, _)| known == id).map(|(_, nonce)| *nonce)
        };
        let Some(nonce) = nonce else { return Invalidation::Unavailable };
        let orders = &self.rest.dialect.orders;
        match self.rest.noop(nonce).await {
            None | Some(Submitted::KeptBack(_)) => Invalidation::Unavailable,
            Some(Submitted::Lost(error)) => match errors::transport_outcome(&error) {
                SubmitOutcome::Unknown(cause) => Invalidation::Unknown(cause),
                _ => Invalidation::Unavailable,
            },
            Some(Submitted::Answer(response)) => {
                let code = serde_json::from_slice::<crate::wire::ErrorBody<'_>>(&response.body)
                    .map(|body| body.code);
                match code {
                    Ok(200) if response.status == 200 => Invalidation::UsedUp,
                    Ok(code) if orders.nonce_used.contains(&code) => Invalidation::Arrived,
                    _ => Invalidation::Unknown(UnknownCause::Unreadable),
                }
            }
        }
    }

    async fn fetch_order(
        &self,
        id: &ClientOrderId,
        symbol: &Symbol,
        _: Timestamp,
        priority: Priority,
    ) -> Result<OrderSighting, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        let absent = |code: i64| self.rest.dialect.orders.not_found.contains(&code);
        match self.rest.order_get(&contract.name, id.as_str(), priority).await {
            Ok(order) => Ok(OrderSighting::Found(map::report(&order, &contract)?)),
            Err(RestError::Refused(refusal)) if refusal.code.is_some_and(absent) => {
                Ok(OrderSighting::NotFound)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_fills(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<Fill>, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        // The venue's clock is its own: what it calls this time may be another moment.
        let since = self.rest.offset.venue_time(since, i64::MAX).unwrap_or(since);
        let trades = self.rest.user_trades(&contract.name, &since.to_string(), priority).await?;
        if trades.len() >= MOST_ROWS {
            // The rest was not told: what is missing here may be there.
            return Err(ReadError::Unreadable(format!(
                "the venue returned its most, {} trades, since {since}: later ones may be missing",
                trades.len()
            )));
        }
        let fills: Result<Vec<Fill>, MapError> = trades
            .iter()
            .map(|trade| map::trade_fill(trade, &self.config.account, (symbol, &contract)))
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
        // The venue tells of less than seven days at a time: the newest are asked for.
        let week = self.rest.clock.now().as_millis().saturating_sub(6 * 24 * 3_600_000);
        let since = since.as_millis().max(week);
        let orders = self.rest.all_orders(&contract.name, &since.to_string(), priority).await?;
        Ok(orders.iter().filter_map(map::order_name).collect())
    }

    async fn count_down(&self, symbol: &Symbol, after: Option<Duration>) -> Result<(), ReadError> {
        let contract = self.contract(symbol, Priority::Protect).await?;
        let after = after.unwrap_or_default().as_millis();
        let response = self.rest.countdown_cancel_all(&contract.name, after).await?;
        if response.status == 200 {
            return Ok(());
        }
        match errors::read_refusal(self.rest.dialect, response.status, &response.body) {
            Some(refusal) => Err(ReadError::Refused(refusal)),
            None => Err(ReadError::Unreadable(format!("status {}", response.status))),
        }
    }

    async fn fetch_open_orders(
        &self,
        symbol: &Symbol,
        priority: Priority,
    ) -> Result<Vec<ExecutionReport>, ReadError> {
        let contract = self.contract(symbol, priority).await?;
        let orders = self.rest.open_orders(&contract.name, priority).await?;
        // What others call their orders may be no name that we could have given.
        let orders = orders.iter().filter(|order| map::client_order_id(&order.client_order_id).is_ok());
        let reports: Result<Vec<ExecutionReport>, MapError> =
            orders.map(|order| map::report(order, &contract)).collect();
        Ok(reports?)
    }

    fn rules(&self) -> VenueRules {
        VenueRules {
            validity_window: self.validity(),
            proof_slack: self.config.proof_slack,
            proof_lag: self.config.proof_lag,
            invalidates: self.rest.dialect.paths.noop.is_some() && self.has_fixed_validity(),
            counts_down: true,
        }
    }
}

/// An answer that is not about our order is no answer.
fn acknowledged(dialect: &Dialect, id: &ClientOrderId, contract: &Contract, body: &[u8]) -> SubmitOutcome {
    let order = serde_json::from_slice::<OrderAnswer>(body).ok();
    let report = order.and_then(|order| map::report(&order, contract).ok());
    match report {
        Some(report) if report.client_order_id == *id => SubmitOutcome::Acknowledged(OrderAck {
            venue_order_id: report.venue_order_id,
            status: report.status,
            filled: report.filled,
        }),
        _ => match errors::submit_outcome(dialect, 200, body) {
            // -1006 and -1007 may come with status 200; nothing with status 200 is a definite refusal.
            SubmitOutcome::Unknown(cause) => SubmitOutcome::Unknown(cause),
            _ => SubmitOutcome::Unknown(UnknownCause::Unreadable),
        },
    }
}
