//! The ports: build, call, map.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_net::{ClockOffset, HttpTransport, Priority, WeightBudget};
use deltaplane_ports::{
    AccountEvent, AccountReader, CancelOutcome, Clock, OrderGateway, OrderSighting, ReadError, VenueRules,
};
use deltaplane_types::{
    AccountSnapshot, ClientOrderId, Decimal, Delta, ExecutionReport, Fill, Instrument, Notional, OrderAck,
    OrderIntent, Position, Refusal, RefusalReason, Side, SubmitOutcome, Symbol, TimeInForce, Timestamp,
    UnknownCause,
};
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::auth::Credential;
use crate::config::BinanceConfig;
use crate::errors;
use crate::map::{self, InstrumentParts, MapError};
use crate::rest::{Rest, RestError, Submitted};
use crate::user_stream::UserStream;
use crate::wire::{AccountPosition, OrderAnswer, PositionRisk, SymbolInfo};

/// Weight of an address in a minute, as `exchangeInfo` gives it for everyone.
const WEIGHT_PER_MINUTE: u64 = 2_400;
/// Orders of an account in ten seconds.
const ORDERS_PER_TEN_SECONDS: u64 = 300;
/// How often the venue's clock is read.
const CLOCK_EVERY: Duration = Duration::from_secs(30);
/// How long instruments are believed.
const INSTRUMENT_AGE: Duration = Duration::from_secs(60);
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
pub struct BinanceVenue {
    config: BinanceConfig,
    rest: Arc<Rest>,
    events: broadcast::Sender<AccountEvent>,
    live: Arc<AtomicBool>,
    hedge_mode: AtomicBool,
    infos: RwLock<BTreeMap<String, SymbolInfo>>,
    instruments: RwLock<BTreeMap<Symbol, (Timestamp, Instrument)>>,
    details: RwLock<(Timestamp, Vec<PositionRisk>)>,
    _tasks: JoinSet<()>,
}

pub(crate) fn rest_of(
    config: &BinanceConfig,
    credential: Option<Credential>,
    transport: Arc<dyn HttpTransport>,
    clock: Arc<dyn Clock>,
) -> Rest {
    Rest {
        transport,
        base: config.rest_url.trim_end_matches('/').to_owned(),
        credential,
        clock,
        offset: ClockOffset::default(),
        weight: WeightBudget::new(WEIGHT_PER_MINUTE, Duration::from_secs(60)),
        orders: WeightBudget::new(ORDERS_PER_TEN_SECONDS, Duration::from_secs(10)),
        timeout: config.request_timeout,
        receive_window: config.receive_window,
    }
}

impl BinanceVenue {
    /// Sets an account up and starts its stream and its clock. A venue that is down is tried again in the
    /// background: until it answers, reads fail and nothing is signed.
    pub fn start(
        config: BinanceConfig,
        credential: Credential,
        transport: Arc<dyn HttpTransport>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let rest = Arc::new(rest_of(&config, Some(credential), transport, clock));
        let events = broadcast::channel(4_096).0;
        let live = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        let clock_rest = rest.clone();
        tasks.spawn(async move {
            loop {
                let known = clock_rest.time().await.is_ok();
                tokio::time::sleep(if known { CLOCK_EVERY } else { Duration::from_secs(1) }).await;
            }
        });
        let stream = UserStream {
            rest: rest.clone(),
            url: config.stream_url.trim_end_matches('/').to_owned(),
            account: config.account.clone(),
            symbols: config.symbols.clone(),
            events: events.clone(),
            live: live.clone(),
        };
        tasks.spawn(stream.run());
        Arc::new(Self {
            config,
            rest,
            events,
            live,
            hedge_mode: AtomicBool::new(false),
            infos: RwLock::default(),
            instruments: RwLock::default(),
            details: RwLock::default(),
            _tasks: tasks,
        })
    }

    /// Waits until the venue's time and the account's position mode are known.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] names the question that was not answered.
    pub async fn handshake(&self) -> Result<(), ConnectError> {
        self.rest.time().await.map_err(ConnectError::Time)?;
        let mode = self.rest.position_mode().await.map_err(ConnectError::PositionMode)?;
        self.hedge_mode.store(mode.dual_side_position, Ordering::SeqCst);
        Ok(())
    }

    fn position_side(&self, intent: &OrderIntent) -> Option<&'static str> {
        // Hedge mode: a closing sale works on the long position, an opening one on the short.
        self.hedge_mode.load(Ordering::SeqCst).then_some(match (intent.side, intent.reduce_only) {
            (Side::Buy, false) | (Side::Sell, true) => "LONG",
            (Side::Sell, false) | (Side::Buy, true) => "SHORT",
        })
    }

    /// Entry and liquidation prices: asked for when a position changed, else now and then.
    async fn position_details(&self, positions: &[AccountPosition]) -> Result<Vec<PositionRisk>, ReadError> {
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
        let rows = self.rest.position_risk().await?;
        *self.details.write().unwrap_or_else(PoisonError::into_inner) = (now, rows.clone());
        Ok(rows)
    }

    async fn symbol_info(&self, symbol: &Symbol) -> Result<String, ReadError> {
        let name = self.config.symbols.venue_symbol(symbol);
        let info = self.rest.exchange_info().await?;
        let mut infos = self.infos.write().unwrap_or_else(PoisonError::into_inner);
        *infos = info.symbols.into_iter().map(|info| (info.symbol.clone(), info)).collect();
        if infos.contains_key(&name) { Ok(name) } else { Err(ReadError::UnknownSymbol(symbol.clone())) }
    }

    fn cached(&self, symbol: &Symbol) -> Option<Instrument> {
        let now = self.rest.clock.now();
        let known = self.instruments.read().unwrap_or_else(PoisonError::into_inner);
        known
            .get(symbol)
            .filter(|(at, _)| now.since(*at) < INSTRUMENT_AGE)
            .map(|(_, instrument)| instrument.clone())
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
impl AccountReader for BinanceVenue {
    async fn fetch_account(&self) -> Result<AccountSnapshot, ReadError> {
        let as_of = self.rest.clock.now();
        let account = self.rest.account().await?;
        let details = self.position_details(&account.positions).await?;
        let mut positions: BTreeMap<Symbol, Position> = BTreeMap::new();
        for row in &account.positions {
            // Symbols without a canonical name are not ours to manage.
            let Some(symbol) = self.config.symbols.canonical(&row.symbol) else { continue };
            let detail =
                details.iter().find(|d| d.symbol == row.symbol && d.position_side == row.position_side);
            let delta = map::delta(row.position_amt);
            let unrealized = Notional::new(row.unrealized_profit.0);
            let initial = Notional::new(row.initial_margin.0);
            let maintenance = Notional::new(row.maint_margin.0);
            if let Some(other) = positions.get_mut(&symbol) {
                // The other side of hedge mode: what counts is the net.
                let sum = |a: Notional, b: Notional| a.plus(b).map_err(MapError::from);
                other.delta = other.delta.plus(delta).map_err(MapError::from)?;
                other.unrealized = sum(other.unrealized, unrealized)?;
                other.initial_margin = sum(other.initial_margin, initial)?;
                other.maintenance_margin = sum(other.maintenance_margin, maintenance)?;
                continue;
            }
            let leverage = self.cached(&symbol).map(|instrument| instrument.leverage);
            positions.insert(
                symbol.clone(),
                Position {
                    symbol,
                    delta,
                    entry_price: detail.and_then(|detail| map::price_or_none(detail.entry_price)),
                    mark_price: map::mark_price(row.notional, row.position_amt),
                    unrealized,
                    initial_margin: initial,
                    maintenance_margin: maintenance,
                    leverage,
                    liquidation_price: detail.and_then(|detail| map::price_or_none(detail.liquidation_price)),
                    isolated: row.isolated_margin.0 > Decimal::ZERO,
                    updated_at: Timestamp::from_millis(row.update_time),
                },
            );
        }
        positions.retain(|_, position| position.delta != Delta::ZERO);
        Ok(AccountSnapshot {
            account: self.config.account.clone(),
            venue: self.config.venue.clone(),
            as_of,
            wallet_balance: Notional::new(account.total_wallet_balance.0),
            unrealized: Notional::new(account.total_unrealized_profit.0),
            available: Notional::new(account.available_balance.0),
            initial_margin: Notional::new(account.total_initial_margin.0),
            maintenance_margin: Notional::new(account.total_maint_margin.0),
            positions,
            hedge_mode: self.hedge_mode.load(Ordering::SeqCst),
        })
    }

    async fn fetch_instrument(&self, symbol: &Symbol) -> Result<Instrument, ReadError> {
        if let Some(instrument) = self.cached(symbol) {
            return Ok(instrument);
        }
        let name = self.symbol_info(symbol).await?;
        let (rates, brackets, configs, funding, mode) = tokio::try_join!(
            self.rest.commission_rate(&name),
            self.rest.leverage_bracket(&name),
            self.rest.symbol_config(&name),
            self.rest.funding_info(),
            self.rest.position_mode(),
        )?;
        self.hedge_mode.store(mode.dual_side_position, Ordering::SeqCst);
        let leverage =
            configs.iter().find(|config| config.symbol == name).map_or(Decimal::ONE, |c| c.leverage.0);
        // A symbol that is not listed has the usual interval.
        let hours = funding.iter().find(|row| row.symbol == name).map_or(8, |row| row.funding_interval_hours);
        let instrument = {
            let infos = self.infos.read().unwrap_or_else(PoisonError::into_inner);
            let info = infos.get(&name).ok_or_else(|| ReadError::UnknownSymbol(symbol.clone()))?;
            map::instrument(&InstrumentParts {
                symbol,
                info,
                rates: &rates,
                brackets: &brackets,
                leverage,
                funding_interval_hours: hours,
            })?
        };
        let now = self.rest.clock.now();
        let mut known = self.instruments.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(symbol.clone(), (now, instrument.clone()));
        Ok(instrument)
    }

    fn subscribe(&self) -> broadcast::Receiver<AccountEvent> {
        self.events.subscribe()
    }

    fn is_streaming(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }
}

fn kept_back(text: String) -> Refusal {
    Refusal { reason: RefusalReason::KeptBack, code: None, text }
}

#[async_trait]
impl OrderGateway for BinanceVenue {
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent) -> SubmitOutcome {
        let left = intent.deadline.since(self.rest.clock.now());
        if left.is_zero() {
            return SubmitOutcome::NotAccepted(kept_back("its deadline has passed".to_owned()));
        }
        let symbol = self.config.symbols.venue_symbol(&intent.symbol);
        let (quantity, price) = (intent.quantity.to_string(), intent.limit_price.to_string());
        let mut params: Vec<(&str, &str)> = vec![
            ("symbol", &symbol),
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
        let priority = if intent.reduce_only { Priority::Protect } else { Priority::Hedge };
        // An answer that comes after the window would tell of an order that is already being looked for.
        let timeout = self.config.request_timeout.min(left + self.config.proof_slack);
        // The venue may take it in no later than its deadline, however long the journal took.
        let window = self.config.receive_window.min(left);
        match self.rest.order_post(&params, priority, window, timeout).await {
            Submitted::KeptBack(text) => SubmitOutcome::NotAccepted(kept_back(text)),
            Submitted::Lost(error) => errors::transport_outcome(&error),
            Submitted::Answer(response) if response.status == 200 => acknowledged(id, &response.body),
            Submitted::Answer(response) => {
                let outcome = errors::submit_outcome(response.status, &response.body);
                if matches!(&outcome, SubmitOutcome::NotAccepted(refusal) if refusal.reason == RefusalReason::Clock)
                {
                    self.rest.offset.invalidate();
                }
                outcome
            }
        }
    }

    async fn cancel(&self, id: &ClientOrderId, symbol: &Symbol) -> CancelOutcome {
        let name = self.config.symbols.venue_symbol(symbol);
        match self.rest.order_delete(&name, id.as_str()).await {
            Submitted::KeptBack(text) => CancelOutcome::Refused(kept_back(text)),
            Submitted::Lost(error) => match errors::transport_outcome(&error) {
                SubmitOutcome::NotAccepted(refusal) => CancelOutcome::Refused(refusal),
                SubmitOutcome::Unknown(cause) => CancelOutcome::Unknown(cause),
                SubmitOutcome::Acknowledged(_) => CancelOutcome::Unknown(UnknownCause::Unreadable),
            },
            Submitted::Answer(response) if response.status == 200 => {
                let report = serde_json::from_slice::<OrderAnswer>(&response.body)
                    .ok()
                    .and_then(|o| map::report(&o).ok());
                report.map_or(CancelOutcome::Unknown(UnknownCause::Unreadable), CancelOutcome::Canceled)
            }
            Submitted::Answer(response) => match errors::read_refusal(response.status, &response.body) {
                Some(refusal) if matches!(refusal.code, Some(-2011 | -2013)) => CancelOutcome::NotOpen,
                Some(refusal) if response.status < 500 && response.status != 408 => {
                    CancelOutcome::Refused(refusal)
                }
                _ => CancelOutcome::Unknown(UnknownCause::Unreadable),
            },
        }
    }

    async fn fetch_order(&self, id: &ClientOrderId, symbol: &Symbol) -> Result<OrderSighting, ReadError> {
        let name = self.config.symbols.venue_symbol(symbol);
        match self.rest.order_get(&name, id.as_str()).await {
            Ok(order) => Ok(OrderSighting::Found(map::report(&order)?)),
            Err(RestError::Refused(refusal)) if refusal.code == Some(-2013) => Ok(OrderSighting::NotFound),
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch_fills(&self, symbol: &Symbol, since: Timestamp) -> Result<Vec<Fill>, ReadError> {
        let name = self.config.symbols.venue_symbol(symbol);
        let trades = self.rest.user_trades(&name, &since.to_string()).await?;
        let fills: Result<Vec<Fill>, MapError> =
            trades.iter().map(|trade| map::trade_fill(trade, &self.config.account, symbol)).collect();
        Ok(fills?)
    }

    async fn fetch_open_orders(&self, symbol: &Symbol) -> Result<Vec<ExecutionReport>, ReadError> {
        let name = self.config.symbols.venue_symbol(symbol);
        let orders = self.rest.open_orders(&name).await?;
        let reports: Result<Vec<ExecutionReport>, MapError> = orders.iter().map(map::report).collect();
        Ok(reports?)
    }

    fn rules(&self) -> VenueRules {
        VenueRules { validity_window: self.config.receive_window, proof_slack: self.config.proof_slack }
    }
}

/// An answer that is not about our order is no answer.
fn acknowledged(id: &ClientOrderId, body: &[u8]) -> SubmitOutcome {
    let report = serde_json::from_slice::<OrderAnswer>(body).ok().and_then(|order| map::report(&order).ok());
    match report {
        Some(report) if report.client_order_id == *id => SubmitOutcome::Acknowledged(OrderAck {
            venue_order_id: report.venue_order_id,
            status: report.status,
            filled: report.filled,
        }),
        _ => match errors::submit_outcome(200, body) {
            // -1006 and -1007 may come with status 200; nothing with status 200 is a definite refusal.
            SubmitOutcome::Unknown(cause) => SubmitOutcome::Unknown(cause),
            _ => SubmitOutcome::Unknown(UnknownCause::Unreadable),
        },
    }
}
