//! The exchange in process: the ports implemented on its state, without wire and without network.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_ports::{
    AccountEvent, AccountReader, BalanceCause, CancelOutcome, Check, Clock, FeedStatus, Finding, Income,
    IncomeKind, Invalidation, OpenOrder, OrderGateway, OrderName, OrderSighting, Pace, PriceFeed, Priority,
    ReadError, StreamStatus, VenueAccount, VenueRules, WalletChange,
};
use deltaplane_types::{
    AccountId, AccountSnapshot, ClientOrderId, Decimal, Delta, ExecutionReport, Fee, FeedId, Fill, FillCause,
    Instrument, Level, MarginBracket, MarginPrice, MarketView, Notional, OrderAck, OrderIntent, OrderStatus,
    Position, Price, Quantity, Ratio, Refusal, RefusalReason, Side, SubmitOutcome, Symbol, TimeInForce,
    Timestamp,
};
use tokio::sync::{broadcast, watch};

use crate::config::{AccountConfig, ExchangeConfig};
use crate::core::{self, Command, Event, ExecutionType, NewOrder, OrderKind, PositionSide, Status};
use crate::dialect::Dialect;
use crate::market::Market;
use crate::sim::{Sim, SimClock, SimOptions};

/// One account on one simulated exchange, in process.
pub struct InProcessVenue {
    sim: Arc<Sim>,
    account: AccountId,
    feed: FeedId,
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<AccountEvent>,
    changes: watch::Sender<u64>,
    started_at: Timestamp,
    /// Number of the newest event, which is its place in the exchange's order.
    told: AtomicU64,
}

fn venue_symbol(symbol: &Symbol) -> String {
    format!("{}USDT", symbol.base())
}

fn canonical(name: &str) -> Option<Symbol> {
    format!("{}-USD", name.strip_suffix("USDT")?).parse().ok()
}

fn unreadable(error: impl std::fmt::Display) -> ReadError {
    ReadError::Unreadable(error.to_string())
}

impl InProcessVenue {
    /// An exchange with one account, at a fixed price with deep books, in one-way mode.
    ///
    /// # Errors
    ///
    /// [`ReadError`] if the name is not a legal account id.
    pub fn new(
        account: AccountConfig,
        price: Decimal,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, ReadError> {
        let id: AccountId = account.id.parse().map_err(unreadable)?;
        let feed: FeedId = account.id.parse().map_err(unreadable)?;
        let config = ExchangeConfig::with_accounts(Dialect::Binance, vec![account]);
        let market = Market::Synthetic { seed: 0, venue: 0, mark: None };
        let options = SimOptions::new(Dialect::Binance, config, SimClock::Running(clock.clone()), market);
        let sim = Sim::new(&options);
        let venue = Arc::new(Self {
            sim,
            account: id,
            feed,
            started_at: clock.now(),
            told: AtomicU64::new(1),
            clock,
            events: broadcast::channel(1_024).0,
            changes: watch::channel(0).0,
        });
        venue.set_price("BTCUSDT", price);
        Ok(venue)
    }

    /// Sets a symbol's price: ten units rest at each of twenty ticks on both sides.
    pub fn set_price(&self, symbol: &str, price: Decimal) {
        let tick =
            self.sim.with(|exchange| exchange.markets.get(symbol).map(|market| market.config.tick_size.0));
        let Some(tick) = tick else { return };
        let side = |direction: Decimal| {
            (1..=20)
                .map(|step| (price + direction * tick * Decimal::from(step), Decimal::TEN))
                .collect::<Vec<_>>()
        };
        let command = Command::Market {
            symbol: symbol.to_owned(),
            bids: side(-Decimal::ONE),
            asks: side(Decimal::ONE),
            update_id: 1,
            reset: true,
            mark: Some(price),
        };
        // A price cannot be refused.
        let _ = self.sim.apply(command);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Moves the exchange on, as external activity or the exchange itself does, and informs the account's stream.
    ///
    /// # Errors
    ///
    /// The exchange's refusal.
    pub fn apply(&self, command: Command) -> Result<(), core::Reject> {
        let events = self.sim.apply(command)?;
        self.tell(&events);
        Ok(())
    }

    /// The exchange's own state.
    pub fn sim(&self) -> &Arc<Sim> {
        &self.sim
    }

    fn tell(&self, events: &[Event]) {
        // Without a listener it is dropped.
        let send = |event| drop(self.events.send(event));
        // What one step of the exchange did has one place in its order.
        let place = self.told.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        for event in events {
            match event {
                Event::Order { order, execution } => {
                    if let ExecutionType::Trade(trade) | ExecutionType::Calculated(trade) = execution
                        && let Ok(fill) = self.fill(trade, Some(&order.client_id))
                    {
                        send(AccountEvent::Fill(fill, place));
                    }
                    if let Some(open) = open_order(order) {
                        send(AccountEvent::Open(open));
                    }
                    if let Ok(report) = report(order) {
                        send(AccountEvent::Report(report));
                    }
                }
                Event::Account { reason, wallet, balance_change, positions, .. } => {
                    for (name, _, held) in positions {
                        let Some(symbol) = canonical(name) else { continue };
                        send(AccountEvent::Position {
                            symbol,
                            delta: Delta::new(held.amount),
                            entry_price: Price::try_new(held.entry).ok(),
                            unrealized: None,
                            order: place,
                            venue_time: Timestamp::from_millis(held.updated),
                        });
                    }
                    let asset = "USDT".to_owned();
                    send(AccountEvent::Wallet(vec![WalletChange {
                        asset,
                        balance: *wallet,
                        is_money: true,
                    }]));
                    if *reason == "ADMIN_DEPOSIT" {
                        let (amount, cause) = (Some(Notional::new(*balance_change)), BalanceCause::Transfer);
                        send(AccountEvent::BalanceChanged { amount, cause });
                    }
                }
                Event::Leverage { .. } => send(AccountEvent::SettingsChanged),
                Event::Funding { .. } => {}
            }
        }
    }

    fn instrument(&self, symbol: &Symbol) -> Result<Instrument, ReadError> {
        let name = venue_symbol(symbol);

        self.sim.with(|exchange| {
            let market =
                exchange.markets.get(&name).ok_or_else(|| ReadError::UnknownSymbol(symbol.clone()))?;
            let account =
                exchange.accounts.get(self.account.as_str()).ok_or_else(|| unreadable("no such account"))?;
            let mut floor = Decimal::ZERO;
            let mut brackets = Vec::new();
            for step in &market.brackets {
                brackets.push(MarginBracket {
                    floor: Notional::new(floor),
                    cap: Notional::new(step.cap),
                    maintenance_rate: Ratio::new(step.rate),
                    deduction: Notional::new(step.deduction),
                    max_leverage: Decimal::from(step.max_leverage),
                });
                floor = step.cap;
            }
            let (config, rules) = (&market.config, &exchange.rules);
            Ok(Instrument {
                symbol: symbol.clone(),
                venue_symbol: name.clone(),
                multiplier: Decimal::ONE,
                quote: exchange.rules.money.to_owned(),
                lot_size: Quantity::try_new(config.step_size.0).map_err(unreadable)?,
                min_quantity: Quantity::try_new(config.min_quantity.0).map_err(unreadable)?,
                max_quantity: Quantity::try_new(Decimal::ONE_THOUSAND).map_err(unreadable)?,
                tick_size: Price::try_new(config.tick_size.0).map_err(unreadable)?,
                min_notional: Notional::new(config.min_notional.0),
                reduce_only_exempt: true,
                price_band_up: Some(Ratio::new(rules.band_up)),
                price_band_down: Some(Ratio::new(rules.band_down)),
                taker_rate: Ratio::new(rules.taker_rate),
                maker_rate: Ratio::new(rules.maker_rate),
                leverage: Decimal::from(account.leverage(&name)),
                brackets,
                funding_interval_hours: config.funding_interval_hours,
                mean_funding_rate: None,
                tradable: config.is_trading,
                listed: config.is_trading,
                initial_margin_from: MarginPrice::Mark,
                ends_at: config.delivers_at.map(Timestamp::from_millis),
            })
        })
    }

    fn fill(&self, trade: &core::Trade, client_id: Option<&str>) -> Result<Fill, ReadError> {
        Ok(Fill {
            account: self.account.clone(),
            symbol: canonical(&trade.symbol).ok_or_else(|| unreadable(&trade.symbol))?,
            trade_id: trade.id.to_string().parse().map_err(unreadable)?,
            venue_order_id: trade.order_id.to_string().parse().map_err(unreadable)?,
            client_order_id: client_id.and_then(|id| id.parse().ok()),
            side: trade.side,
            quantity: Quantity::try_new(trade.quantity).map_err(unreadable)?,
            price: Price::try_new(trade.price).map_err(unreadable)?,
            fee: Fee { amount: trade.fee, asset: Some(trade.fee_asset.to_owned()), rate: None },
            cause: FillCause::Order,
            venue_time: Timestamp::from_millis(trade.time),
        })
    }
}

/// What is left of an order.
fn open_order(order: &core::Order) -> Option<OpenOrder> {
    let left = if order.status.is_open() { order.quantity - order.executed } else { Decimal::ZERO };
    Some(OpenOrder {
        symbol: canonical(&order.symbol)?,
        venue_order_id: order.id.to_string().parse().ok()?,
        side: order.side,
        left: Quantity::try_new(left).ok()?,
        reduce_only: order.reduce_only,
    })
}

fn report(order: &core::Order) -> Result<ExecutionReport, ReadError> {
    Ok(ExecutionReport {
        client_order_id: order.client_id.parse().map_err(unreadable)?,
        venue_order_id: order.id.to_string().parse().map_err(unreadable)?,
        status: match order.status {
            Status::Waiting | Status::New => OrderStatus::Open,
            Status::PartiallyFilled => OrderStatus::PartiallyFilled,
            Status::Filled => OrderStatus::Filled,
            Status::Canceled => OrderStatus::Canceled,
            Status::Expired | Status::ExpiredInMatch => OrderStatus::Expired,
        },
        filled: Quantity::try_new(order.executed).map_err(unreadable)?,
        average_price: Price::try_new(order.average_price()).ok(),
        venue_time: Timestamp::from_millis(order.updated),
    })
}

#[async_trait]
impl AccountReader for InProcessVenue {
    async fn fetch_account(&self, _: Priority) -> Result<AccountSnapshot, ReadError> {
        let as_of = self.clock.now();
        let told = self.told.load(Ordering::SeqCst);
        self.sim.with(|exchange| {
            let account =
                exchange.accounts.get(self.account.as_str()).ok_or_else(|| unreadable("no such account"))?;
            let (initial, orders, maintenance, unrealized) = exchange.margin(account);
            let mut positions = BTreeMap::new();
            for (name, market) in &exchange.markets {
                let held = account.position(name, PositionSide::Both);
                let Some(symbol) = canonical(name).filter(|_| !held.amount.is_zero()) else { continue };
                let leverage = Decimal::from(account.leverage(name));
                let notional = held.amount.abs() * market.mark;
                let position = Position {
                    symbol: symbol.clone(),
                    delta: Delta::new(held.amount),
                    entry_price: Price::try_new(held.entry).ok(),
                    mark_price: Price::try_new(market.mark).ok(),
                    unrealized: Notional::new(held.unrealized(market.mark)),
                    initial_margin: Notional::new(notional / leverage),
                    maintenance_margin: Notional::new(market.maintenance(notional)),
                    leverage: Some(leverage),
                    liquidation_price: None,
                    isolated_margin: account.isolated_margin(name, &held).map(Notional::new),
                    updated_at: Timestamp::from_millis(held.updated),
                    order: None,
                    sides: Vec::new(),
                };
                positions.insert(symbol, position);
            }
            Ok(AccountSnapshot {
                account: self.account.clone(),
                venue: self.account.as_str().parse().map_err(unreadable)?,
                as_of,
                valued_at: as_of,
                order: Some(told),
                wallet_balance: Notional::new(account.wallet),
                unrealized: Notional::new(unrealized),
                available: Notional::new(exchange.available(account)),
                initial_margin: Notional::new(initial + orders),
                maintenance_margin: Notional::new(maintenance),
                balances: account.all_balances(),
                positions,
                unmapped: Vec::new(),
                unreadable: Vec::new(),
                hedge_mode: account.hedge_mode,
            })
        })
    }

    async fn fetch_all_open_orders(&self, _: Priority) -> Result<Vec<OpenOrder>, ReadError> {
        self.sim.with(|exchange| {
            let mine = exchange.orders.values();
            let mine = mine.filter(|order| order.status.is_open() && order.account == self.account.as_str());
            Ok(mine.filter_map(open_order).collect())
        })
    }

    async fn fetch_instrument(&self, symbol: &Symbol, _: Priority) -> Result<Instrument, ReadError> {
        self.instrument(symbol)
    }

    fn known_instrument(&self, symbol: &Symbol) -> Option<Instrument> {
        self.instrument(symbol).ok()
    }

    async fn fetch_income(&self, since: Timestamp, _: Priority) -> Result<Vec<Income>, ReadError> {
        let row = |id: String, name: &str, kind, amount, at| {
            let (amount, at) = (Notional::new(amount), Timestamp::from_millis(at));
            Some(Income { id, symbol: canonical(name)?, kind, amount, asset: "USDT".to_owned(), at })
        };
        let mut rows = self.sim.with(|exchange| {
            let mine =
                exchange.funding.iter().enumerate().filter(|(_, (of, ..))| of == self.account.as_str());
            let funding = mine.filter_map(|(index, (_, symbol, amount, at))| {
                row(format!("funding-{index}"), symbol, IncomeKind::Funding, *amount, *at)
            });
            let trades = exchange.trades.iter().filter(|trade| trade.account == self.account.as_str());
            let trades = trades.flat_map(|trade| {
                let (symbol, at) = (&trade.symbol, trade.time);
                [
                    row(format!("fee-{}", trade.id), symbol, IncomeKind::Fee, -trade.fee, at),
                    row(format!("realized-{}", trade.id), symbol, IncomeKind::Realized, trade.realized, at),
                ]
            });
            funding.chain(trades.flatten()).collect::<Vec<Income>>()
        });
        rows.retain(|row| row.at >= since && !row.amount.is_zero());
        Ok(rows)
    }

    async fn fetch_adl_ranks(&self, _: Priority) -> Result<BTreeMap<Symbol, u8>, ReadError> {
        Ok(BTreeMap::new())
    }

    fn subscribe(&self) -> broadcast::Receiver<AccountEvent> {
        self.events.subscribe()
    }

    fn venue_clock(&self, ours: Timestamp) -> Option<Timestamp> {
        Some(ours)
    }

    fn stream(&self) -> StreamStatus {
        StreamStatus { is_connected: true, proven_since: Some(self.started_at) }
    }

    fn pace(&self) -> Pace {
        Pace {
            idle: Duration::from_millis(1_500),
            after_event: Duration::from_millis(100),
            audit: Duration::from_secs(60),
        }
    }

    async fn preflight(&self, _: &Symbol, _: Priority) -> Vec<Finding> {
        vec![Finding::fine(Check::Permissions, "an exchange in process has no keys")]
    }

    fn venue_account(&self) -> Option<VenueAccount> {
        None
    }
}

#[async_trait]
impl OrderGateway for InProcessVenue {
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent, _: Priority) -> SubmitOutcome {
        let order = NewOrder {
            symbol: venue_symbol(&intent.symbol),
            side: intent.side,
            position_side: PositionSide::Both,
            kind: OrderKind::Limit,
            time_in_force: match intent.time_in_force {
                TimeInForce::ImmediateOrCancel => core::TimeInForce::Ioc,
                TimeInForce::GoodTilCanceled => core::TimeInForce::Gtc,
                TimeInForce::PostOnly => core::TimeInForce::Gtx,
            },
            price: intent.limit_price.value(),
            quantity: intent.quantity.value(),
            reduce_only: intent.reduce_only,
            client_id: Some(id.to_string()),
            good_till: 0,
            trigger: None,
        };
        let account = self.account.to_string();
        match self.sim.apply(Command::Place { account, order }) {
            Err(reject) => SubmitOutcome::NotAccepted(Refusal {
                reason: if reject.code == -2022 {
                    RefusalReason::ReduceOnly
                } else {
                    RefusalReason::Rejected
                },
                code: Some(reject.code.into()),
                text: reject.message,
                remedy: None,
            }),
            Ok(events) => {
                self.tell(&events);
                let symbol = intent.symbol.clone();
                match self.fetch_order(id, &symbol, Timestamp::default(), Priority::Hedge).await {
                    Ok(OrderSighting::Found(report)) => SubmitOutcome::Acknowledged(OrderAck {
                        venue_order_id: report.venue_order_id,
                        status: report.status,
                        filled: report.filled,
                    }),
                    _ => SubmitOutcome::Unknown(deltaplane_types::UnknownCause::Unreadable),
                }
            }
        }
    }

    async fn cancel(&self, id: &ClientOrderId, symbol: &Symbol) -> CancelOutcome {
        let name = venue_symbol(symbol);
        let order_id = self.sim.with(|exchange| {
            exchange.open_by_client_id(self.account.as_str(), &name, id.as_str()).map(|order| order.id)
        });
        let Some(order_id) = order_id else { return CancelOutcome::NotOpen };
        match self.sim.apply(Command::Cancel { account: self.account.to_string(), order_id }) {
            Ok(events) => self.tell(&events),
            Err(_) => return CancelOutcome::NotOpen,
        }
        match self.fetch_order(id, symbol, Timestamp::default(), Priority::Protect).await {
            Ok(OrderSighting::Found(report)) => CancelOutcome::Canceled(report),
            _ => CancelOutcome::NotOpen,
        }
    }

    async fn invalidate(&self, _: &ClientOrderId, _: &Symbol) -> Invalidation {
        Invalidation::Unavailable
    }

    async fn fetch_order(
        &self,
        id: &ClientOrderId,
        symbol: &Symbol,
        _: Timestamp,
        _: Priority,
    ) -> Result<OrderSighting, ReadError> {
        let name = venue_symbol(symbol);
        self.sim.with(|exchange| {
            let mine = |o: &&core::Order| {
                o.account == self.account.as_str() && o.symbol == name && o.client_id == id.as_str()
            };
            match exchange.orders.values().rev().find(mine) {
                Some(order) => report(order).map(OrderSighting::Found),
                None => Ok(OrderSighting::NotFound),
            }
        })
    }

    async fn fetch_fills(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        _: Priority,
    ) -> Result<Vec<Fill>, ReadError> {
        let name = venue_symbol(symbol);
        self.sim.with(|exchange| {
            let mine = exchange.trades.iter().filter(|trade| {
                trade.account == self.account.as_str()
                    && trade.symbol == name
                    && trade.time >= since.as_millis()
            });
            mine.map(|trade| self.fill(trade, None)).collect()
        })
    }

    async fn fetch_order_names(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        _: Priority,
    ) -> Result<Vec<OrderName>, ReadError> {
        let name = venue_symbol(symbol);
        self.sim.with(|exchange| {
            let mine = exchange.orders.values().filter(|order| {
                order.account == self.account.as_str()
                    && order.symbol == name
                    && order.created >= since.as_millis()
            });
            let named = mine.filter_map(|order| {
                let client_order_id = order.client_id.parse().ok()?;
                let venue_order_id = order.id.to_string().parse().ok()?;
                let client_order_id = Some(client_order_id);
                Some(OrderName { venue_order_id, client_order_id, cause: FillCause::Order })
            });
            Ok(named.collect())
        })
    }

    async fn count_down(&self, symbol: &Symbol, after: Option<Duration>) -> Result<(), ReadError> {
        let after = after.map(|after| i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
        let command = Command::CountDown {
            account: self.account.to_string(),
            symbol: venue_symbol(symbol),
            until: after.map(|after| self.sim.now().saturating_add(after)),
        };
        self.sim.apply(command).map(|_| ()).map_err(|reject| unreadable(reject.message))
    }

    async fn fetch_open_orders(
        &self,
        symbol: &Symbol,
        _: Priority,
    ) -> Result<Vec<ExecutionReport>, ReadError> {
        let name = venue_symbol(symbol);
        self.sim.with(|exchange| {
            let open = exchange.orders.values().filter(|order| {
                order.status.is_open() && order.account == self.account.as_str() && order.symbol == name
            });
            open.map(report).collect()
        })
    }

    fn rules(&self) -> VenueRules {
        VenueRules {
            validity_window: Duration::from_secs(3),
            proof_slack: Duration::from_secs(1),
            proof_lag: Duration::from_secs(1),
            invalidates: false,
            counts_down: true,
        }
    }
}

impl PriceFeed for InProcessVenue {
    fn id(&self) -> &FeedId {
        &self.feed
    }

    fn view(&self, symbol: &Symbol) -> Option<Arc<MarketView>> {
        let now = self.clock.now();
        self.sim.with(|exchange| {
            let market = exchange.markets.get(&venue_symbol(symbol))?;
            let levels = |side: Side| -> Option<Vec<Level>> {
                let levels = market.book.against(side);
                levels
                    .map(|(price, quantity)| {
                        Some(Level {
                            price: Price::try_new(price).ok()?,
                            quantity: Quantity::try_new(quantity).ok()?,
                        })
                    })
                    .collect()
            };
            Some(Arc::new(MarketView {
                feed: self.feed.clone(),
                quote: "USDT".into(),
                bids: levels(Side::Sell)?.into(),
                asks: levels(Side::Buy)?.into(),
                mark: Price::try_new(market.mark).ok(),
                mark_at: Some(now),
                index: Price::try_new(market.index).ok(),
                funding_rate: Some(Ratio::new(market.config.funding_rate.0)),
                next_funding: Some(Timestamp::from_millis(market.next_funding)),
                venue_time: now,
                received_at: now,
            }))
        })
    }

    fn follow(&self, _: &Symbol) {}

    fn not_followed(&self) -> Vec<Symbol> {
        Vec::new()
    }

    fn status(&self) -> FeedStatus {
        FeedStatus { connected: true, last_update: Some(self.clock.now()), error_count: 0 }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
