//! The ports, on a venue of the simulated world, over its simulated network; and the journal on its disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_ports::{
    AccountEvent, AccountReader, CancelOutcome, Check, FeedStatus, Finding, Income, Invalidation, Journal,
    JournalError, OpenOrder, OrderGateway, OrderName, OrderSighting, Pace, PriceFeed, Priority, ReadError,
    Record, StoredRecord, StreamStatus, VenueAccount, VenueRules,
};
use deltaplane_types::{
    AccountId, AccountSnapshot, ClientOrderId, Decimal, Delta, ExecutionReport, FeedId, Fill, FillCause,
    Instrument, Level, MarginBracket, MarginPrice, MarketView, Notional, OrderIntent, Position, Price,
    Quantity, Ratio, Refusal, RefusalReason, SubmitOutcome, Symbol, Timestamp, UnknownCause,
};
use deltaplane_venue_sim::core::Command;
use rand::Rng as _;
use tokio::sync::{broadcast, oneshot, watch};

use crate::limits::{Refused, Request};
use crate::world::{
    Due, Held, MARKET, POSITION_LATE_MS, PROOF_MS, REQUEST_TIMEOUT, State, Venue, WayBack, World, btc,
    fill_of, left_of, order_of, report_of,
};

/// One account on its venue.
pub(crate) struct SimAccount {
    pub(crate) world: Arc<World>,
    pub(crate) account: AccountId,
    pub(crate) feed: FeedId,
    pub(crate) changes: watch::Sender<u64>,
}

pub(crate) fn view(
    account: &AccountId,
    bids: &[(Decimal, Decimal)],
    asks: &[(Decimal, Decimal)],
    middle: i64,
    now: i64,
) -> Option<MarketView> {
    let levels = |side: &[(Decimal, Decimal)]| -> Option<Vec<Level>> {
        side.iter()
            .map(|(price, quantity)| {
                Some(Level {
                    price: Price::try_new(*price).ok()?,
                    quantity: Quantity::try_new(*quantity).ok()?,
                })
            })
            .collect()
    };
    let mark = Price::try_new(Decimal::from_i128_with_scale(middle.into(), 1)).ok();
    Some(MarketView {
        feed: account.as_str().parse().ok()?,
        quote: "USDT".into(),
        bids: levels(bids)?.into(),
        asks: levels(asks)?.into(),
        mark,
        mark_at: Some(Timestamp::from_millis(now)),
        index: mark,
        funding_rate: None,
        next_funding: None,
        venue_time: Timestamp::from_millis(now),
        received_at: Timestamp::from_millis(now),
    })
}

fn too_many() -> Refusal {
    Refusal {
        reason: RefusalReason::RateLimited,
        code: Some(429),
        text: "simulated".to_owned(),
        remedy: None,
    }
}

impl SimAccount {
    /// A question on its way: it takes time, it may fail, and the venue may be down.
    async fn ask<T>(
        &self,
        (priority, request): (Priority, Request),
        answer: impl FnOnce(&mut State, i64) -> T,
    ) -> Result<T, ReadError> {
        self.world.alive().await;
        let (wait, fails, is_refused) = {
            let mut state = self.world.lock();
            let paid = self.pay(&mut state, priority, request);
            if let Err(Refused::Withheld(wait)) = paid {
                return Err(ReadError::Withheld(wait));
            }
            let wait = state.rng.random_range(2..30);
            let chances = state.chances;
            let fails = state.chance("read fails", chances.read_fails);
            (Duration::from_millis(wait), fails, paid.is_err())
        };
        tokio::time::sleep(wait).await;
        self.world.alive().await;
        let unreachable = || ReadError::Unreachable("simulated".to_owned());
        let answered = {
            let mut state = self.world.lock();
            let now = state.now();
            let down = state.venues.get(&self.account).is_none_or(|venue| now < venue.down_until);
            if fails || down {
                Err(unreachable())
            } else if is_refused {
                Err(ReadError::Refused(too_many()))
            } else {
                Ok(answer(&mut state, now))
            }
        };
        tokio::time::sleep(wait).await;
        self.world.alive().await;
        answered
    }

    /// Takes what a request costs from the budget, and from what the venue takes.
    fn pay(&self, state: &mut State, priority: Priority, request: Request) -> Result<(), Refused> {
        let now = state.now();
        if self.venue(state).limits.wants_others(now) {
            let percent = if state.chance("others at the address", state.chances.others) {
                state.rng.random_range(30..=97)
            } else {
                0
            };
            self.venue(state).limits.others_use(now, percent);
        }
        let paid = self.venue(state).limits.take(now, priority, request);
        match paid {
            Ok(()) => {}
            Err(Refused::Withheld(_)) => *state.faults.entry("withheld").or_default() += 1,
            Err(Refused::TooMany { knew }) => {
                *state.faults.entry("too many requests").or_default() += 1;
                if knew {
                    let text = format!("a budget let through what {} does not take", self.account);
                    state.oracle.violation(text);
                }
            }
        }
        paid
    }

    fn instrument(symbol: &Symbol) -> Result<Instrument, ReadError> {
        if *symbol != btc() {
            return Err(ReadError::UnknownSymbol(symbol.clone()));
        }
        let rate = |value: i64, scale| Ratio::new(Decimal::from_i128_with_scale(value.into(), scale));
        let thousandth = Decimal::from_i128_with_scale(1, 3);
        let quantity = |value| Quantity::try_new(value).expect("not below zero");
        Ok(Instrument {
            symbol: symbol.clone(),
            venue_symbol: MARKET.to_owned(),
            multiplier: Decimal::ONE,
            quote: "USDT".to_owned(),
            lot_size: quantity(thousandth),
            min_quantity: quantity(thousandth),
            max_quantity: quantity(Decimal::from(1_000)),
            tick_size: Price::try_new(Decimal::from_i128_with_scale(1, 1)).expect("above zero"),
            min_notional: Notional::new(Decimal::from(50)),
            reduce_only_exempt: true,
            price_band_up: Some(rate(105, 2)),
            price_band_down: Some(rate(95, 2)),
            taker_rate: rate(5, 4),
            maker_rate: rate(2, 4),
            leverage: Decimal::TEN,
            brackets: vec![MarginBracket {
                floor: Notional::ZERO,
                cap: Notional::new(Decimal::from(50_000_000)),
                maintenance_rate: rate(4, 3),
                deduction: Notional::ZERO,
                max_leverage: Decimal::from(125),
            }],
            funding_interval_hours: 8,
            mean_funding_rate: None,
            tradable: true,
            listed: true,
            ends_at: None,
            initial_margin_from: MarginPrice::Mark,
        })
    }

    fn venue<'a>(&self, state: &'a mut State) -> &'a mut Venue {
        state.venues.get_mut(&self.account).expect("the account is in this world")
    }
}

#[async_trait]
impl AccountReader for SimAccount {
    async fn fetch_account(&self, priority: Priority) -> Result<AccountSnapshot, ReadError> {
        let asked = { Timestamp::from_millis(self.world.lock().now()) };
        self.ask((priority, Request::Account), |state, now| {
            let late = state.chance("position shown late", state.chances.shown_late);
            let lag = if late { state.rng.random_range(1..POSITION_LATE_MS) } else { 0 };
            let venue = self.venue(state);
            let Held { delta: held, order, at } = venue.held_at(now - lag);
            let numbered = venue.numbered;
            let market = &venue.exchange.markets[MARKET];
            let mark = market.mark;
            let notional = held.abs() * mark;
            let mut positions = BTreeMap::new();
            if !held.is_zero() {
                positions.insert(
                    btc(),
                    Position {
                        symbol: btc(),
                        delta: Delta::new(held),
                        entry_price: Price::try_new(mark).ok(),
                        mark_price: Price::try_new(mark).ok(),
                        unrealized: Notional::ZERO,
                        initial_margin: Notional::new(notional / Decimal::TEN),
                        maintenance_margin: Notional::new(market.maintenance(notional)),
                        leverage: Some(Decimal::TEN),
                        liquidation_price: None,
                        isolated_margin: None,
                        updated_at: Timestamp::from_millis(at),
                        order: (!numbered).then_some(order),
                        sides: Vec::new(),
                    },
                );
            }
            let wallet = Decimal::from(1_000_000);
            AccountSnapshot {
                account: self.account.clone(),
                venue: self.account.as_str().parse().expect("a venue id"),
                as_of: asked,
                valued_at: asked,
                order: numbered.then_some(order),
                wallet_balance: Notional::new(wallet),
                unrealized: Notional::ZERO,
                available: Notional::new(wallet - notional / Decimal::TEN),
                initial_margin: Notional::new(notional / Decimal::TEN),
                maintenance_margin: Notional::new(market.maintenance(notional)),
                balances: BTreeMap::from([("USDT".to_owned(), wallet)]),
                positions,
                unmapped: Vec::new(),
                unreadable: Vec::new(),
                hedge_mode: false,
            }
        })
        .await
    }

    async fn fetch_all_open_orders(&self, priority: Priority) -> Result<Vec<OpenOrder>, ReadError> {
        self.ask((priority, Request::AllOpenOrders), |state, _| {
            let venue = self.venue(state);
            let open = venue.exchange.orders.values().filter(|order| order.status.is_open());
            open.map(left_of).collect()
        })
        .await
    }

    fn known_instrument(&self, symbol: &Symbol) -> Option<Instrument> {
        Self::instrument(symbol).ok()
    }

    async fn fetch_instrument(&self, symbol: &Symbol, _: Priority) -> Result<Instrument, ReadError> {
        Self::instrument(symbol)
    }

    /// Nothing here is decided by what was earned.
    async fn fetch_income(&self, _: Timestamp, _: Priority) -> Result<Vec<Income>, ReadError> {
        Ok(Vec::new())
    }

    async fn fetch_adl_ranks(&self, _: Priority) -> Result<BTreeMap<Symbol, u8>, ReadError> {
        Ok(BTreeMap::new())
    }

    fn subscribe(&self) -> broadcast::Receiver<AccountEvent> {
        self.world.lock().venues[&self.account].events.subscribe()
    }

    fn venue_clock(&self, ours: Timestamp) -> Option<Timestamp> {
        Some(ours)
    }

    fn stream(&self) -> StreamStatus {
        let state = self.world.lock();
        let now = state.now();
        let Some(venue) = state.venues.get(&self.account) else { return StreamStatus::default() };
        let is_connected = now >= venue.down_until && now >= venue.cut_until;
        let (deaf_from, deaf_until) = venue.deaf;
        let is_proven = is_connected && !(deaf_from + PROOF_MS..deaf_until).contains(&now);
        let deaf_until = if now >= deaf_until { deaf_until } else { 0 };
        let since = venue.down_until.max(venue.cut_until).max(deaf_until);
        let proven_since = is_proven.then(|| Timestamp::from_millis(since));
        StreamStatus { is_connected, proven_since }
    }

    fn pace(&self) -> Pace {
        let mut state = self.world.lock();
        let now = state.now();
        self.venue(&mut state).limits.pace(now)
    }

    async fn preflight(&self, _: &Symbol, _: Priority) -> Vec<Finding> {
        vec![Finding::fine(Check::Permissions, "simulated")]
    }

    fn venue_account(&self) -> Option<VenueAccount> {
        None
    }
}

#[async_trait]
impl OrderGateway for SimAccount {
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent, priority: Priority) -> SubmitOutcome {
        self.world.alive().await;
        let definite = |reason, text: &str| {
            SubmitOutcome::NotAccepted(Refusal { reason, code: None, text: text.to_owned(), remedy: None })
        };
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.world.lock();
            let now = state.now();
            state.note(format!(
                "send {id} {} {} {} at {} reduce-only {}",
                intent.account, intent.side, intent.quantity, intent.limit_price, intent.reduce_only
            ));
            match self.pay(&mut state, priority, Request::Place) {
                Ok(()) => {}
                Err(Refused::Withheld(wait)) => return SubmitOutcome::NotAccepted(Refusal::withheld(wait)),
                Err(Refused::TooMany { .. }) => return SubmitOutcome::NotAccepted(too_many()),
            }
            state.check_send(id, intent, now);
            let chances = state.chances;
            if state.chance("not sent", chances.not_sent) {
                return definite(RefusalReason::NotSent, "simulated");
            }
            if state.chance("refused", chances.refused) {
                let kinds = [RefusalReason::RateLimited, RefusalReason::Overloaded, RefusalReason::Rejected];
                let kind = kinds[state.rng.random_range(0..kinds.len())];
                return definite(kind, "simulated");
            }
            if !state.chance("request lost", chances.request_lost) {
                let late = state.chance("request late", chances.late);
                let delay =
                    if late { state.rng.random_range(500..7_000) } else { state.rng.random_range(5..80) };
                let way_back = if state.chance("answer lost", chances.answer_lost) {
                    WayBack::Lost
                } else if state.chance("answer uncertain", chances.uncertain) {
                    WayBack::Uncertain
                } else {
                    WayBack::Comes
                };
                let due = Due::Arrives {
                    account: self.account.clone(),
                    id: id.clone(),
                    intent: intent.clone(),
                    answer,
                    way_back,
                };
                drop(state);
                self.world.schedule(now + delay, due);
            }
        }
        // The process may die with the request on its way.
        self.world.alive().await;
        let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                SubmitOutcome::Unknown(UnknownCause::Disconnected)
            }
            Err(_) => SubmitOutcome::Unknown(UnknownCause::Timeout),
        };
        self.world.alive().await;
        outcome
    }

    async fn cancel(&self, id: &ClientOrderId, _: &Symbol) -> CancelOutcome {
        let result = self
            .ask((Priority::Protect, Request::Cancel), |state, now| {
                let lost = state.chance("cancel answer lost", state.chances.answer_lost);
                state.note(format!("cancel {id}"));
                let open = order_of(&self.venue(state).exchange, id).filter(|order| order.status.is_open());
                let Some(order_id) = open.map(|order| order.id) else { return CancelOutcome::NotOpen };
                let command = Command::Cancel { account: self.account.to_string(), order_id };
                state.command(now, &self.account, command).expect("what is open can be canceled");
                *state.oracle.seldom.entry("canceled at rest".to_owned()).or_default() += 1;
                match order_of(&self.venue(state).exchange, id).filter(|_| !lost) {
                    Some(order) => CancelOutcome::Canceled(report_of(order)),
                    None => CancelOutcome::Unknown(UnknownCause::Timeout),
                }
            })
            .await;
        result.unwrap_or(CancelOutcome::Unknown(UnknownCause::Disconnected))
    }

    async fn invalidate(&self, id: &ClientOrderId, _: &Symbol) -> Invalidation {
        let result = self
            .ask((Priority::Resolve, Request::Invalidate), |state, _| {
                let lost = state.chance("invalidation answer lost", state.chances.answer_lost);
                let venue = self.venue(state);
                if !venue.invalidates {
                    return Invalidation::Unavailable;
                }
                let arrived = venue.arrived.contains(id.as_str());
                if !arrived {
                    venue.burned.insert(id.to_string());
                }
                match (lost, arrived) {
                    (true, _) => Invalidation::Unknown(UnknownCause::Timeout),
                    (false, true) => Invalidation::Arrived,
                    (false, false) => Invalidation::UsedUp,
                }
            })
            .await;
        result.unwrap_or(Invalidation::Unknown(UnknownCause::Disconnected))
    }

    async fn fetch_order(
        &self,
        id: &ClientOrderId,
        _: &Symbol,
        _: Timestamp,
        priority: Priority,
    ) -> Result<OrderSighting, ReadError> {
        self.ask((priority, Request::Order), |state, now| {
            let venue = self.venue(state);
            let shown = venue.shown_at.get(id.as_str()).is_some_and(|at| now >= *at);
            match order_of(&venue.exchange, id).filter(|_| shown) {
                Some(order) => OrderSighting::Found(report_of(order)),
                None => OrderSighting::NotFound,
            }
        })
        .await
    }

    async fn fetch_fills(
        &self,
        _: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<Fill>, ReadError> {
        let account = self.account.clone();
        self.ask((priority, Request::Trades), move |state, now| {
            let venue = state.venues.get(&account).expect("the account is in this world");
            let shown = venue.exchange.trades.iter().filter(|trade| {
                trade.time >= since.as_millis()
                    && venue.trade_shown_at.get(&trade.id).is_none_or(|at| now >= *at)
            });
            // As Binance does, the list of trades does not repeat our names.
            shown.map(|trade| fill_of(&account, trade, None)).collect()
        })
        .await
    }

    async fn fetch_order_names(
        &self,
        _: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<OrderName>, ReadError> {
        self.ask((priority, Request::OrderNames), |state, _| {
            let venue = self.venue(state);
            let mine = venue.exchange.orders.values().filter(|order| order.created >= since.as_millis());
            let named = mine.filter_map(|order| {
                let client_order_id = order.client_id.parse().ok()?;
                let venue_order_id = order.id.to_string().parse().ok()?;
                let client_order_id = Some(client_order_id);
                Some(OrderName { venue_order_id, client_order_id, cause: FillCause::Order })
            });
            named.collect()
        })
        .await
    }

    async fn count_down(&self, _: &Symbol, after: Option<Duration>) -> Result<(), ReadError> {
        self.ask((Priority::Protect, Request::CountDown), |state, now| {
            let until = after.map(|after| now + i64::try_from(after.as_millis()).expect("two minutes"));
            let (account, symbol) = (self.account.to_string(), MARKET.to_owned());
            let _ = state.command(now, &self.account, Command::CountDown { account, symbol, until });
        })
        .await
    }

    async fn fetch_open_orders(
        &self,
        _: &Symbol,
        priority: Priority,
    ) -> Result<Vec<ExecutionReport>, ReadError> {
        self.ask((priority, Request::OpenOrders), |state, _| {
            let venue = self.venue(state);
            venue.exchange.orders.values().filter(|order| order.status.is_open()).map(report_of).collect()
        })
        .await
    }

    fn rules(&self) -> VenueRules {
        let invalidates = self.world.lock().venues[&self.account].invalidates;
        VenueRules {
            validity_window: if invalidates { Duration::from_secs(20) } else { Duration::from_secs(3) },
            proof_slack: Duration::from_secs(1),
            proof_lag: Duration::from_secs(10),
            invalidates,
            counts_down: !invalidates,
        }
    }
}

impl PriceFeed for SimAccount {
    fn id(&self) -> &FeedId {
        &self.feed
    }

    fn view(&self, symbol: &Symbol) -> Option<Arc<MarketView>> {
        let state = self.world.lock();
        state.venues.get(&self.account)?.view.clone().filter(|_| *symbol == btc())
    }

    fn follow(&self, _: &Symbol) {}

    fn not_followed(&self) -> Vec<Symbol> {
        Vec::new()
    }

    fn status(&self) -> FeedStatus {
        FeedStatus { connected: true, last_update: None, error_count: 0 }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// The journal on the world's disk.
pub(crate) struct SimJournal(pub(crate) Arc<World>);

#[async_trait]
impl Journal for SimJournal {
    async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
        self.0.alive().await;
        let (token, takes) = self.0.begin_write(records);
        tokio::time::sleep(takes).await;
        // It may die before the records are there, and between that and knowing it.
        self.0.alive().await;
        self.0.end_write(token);
        self.0.alive().await;
        Ok(())
    }

    async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
        let records = self.0.lock().journal.clone();
        Ok((1_u64..).zip(records).map(|(position, record)| StoredRecord { position, record }).collect())
    }
}
