//! The state machine.

use std::collections::{BTreeMap, BTreeSet};

use deltaplane_types::{Decimal, Side};

use super::account::{Account, HeldPosition};
use super::book::MarketBook;
use super::candles::Candles;
use super::order::{
    ExecutionType, ExpiryReason, Order, OrderKind, PositionSide, Reject, Status, TimeInForce, Trade, Trigger,
};
use super::rules::{Bracket, MarginTable, Rules, acceptable, check_quantity};
use crate::config::{Exact, ExchangeConfig, OddRow, SymbolConfig};

/// The market of one symbol.
#[derive(Clone, Debug)]
pub struct MarketState {
    /// The instrument.
    pub config: SymbolConfig,
    /// The book of everybody else.
    pub book: MarketBook,
    /// The mark price.
    pub mark: Decimal,
    /// The index price.
    pub index: Decimal,
    /// The last traded price.
    pub last: Decimal,
    /// When funding is next charged.
    pub next_funding: i64,
    /// Whether fills take quantity off the market's book.
    pub consumes: bool,
    /// The margin table, ascending.
    pub brackets: Vec<Bracket>,
    /// Its course by the minute.
    pub candles: Candles,
}

/// An order to be placed.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// The symbol.
    pub symbol: String,
    /// Which way.
    pub side: Side,
    /// Which position.
    pub position_side: PositionSide,
    /// Limit or market.
    pub kind: OrderKind,
    /// How long it may rest.
    pub time_in_force: TimeInForce,
    /// The limit; zero for market orders.
    pub price: Decimal,
    /// Base units.
    pub quantity: Decimal,
    /// Whether it may only shrink the position.
    pub reduce_only: bool,
    /// The client's id.
    pub client_id: Option<String>,
    /// Date of a good-till-date order, else 0.
    pub good_till: i64,
    /// The price that it waits for, if any.
    pub trigger: Option<Trigger>,
}

impl NewOrder {
    /// A market order that no client named.
    pub fn market(symbol: &str, side: Side, quantity: Decimal) -> Self {
        Self {
            symbol: symbol.to_owned(),
            side,
            position_side: PositionSide::Both,
            kind: OrderKind::Market,
            time_in_force: TimeInForce::Gtc,
            price: Decimal::ZERO,
            quantity,
            reduce_only: false,
            client_id: None,
            good_till: 0,
            trigger: None,
        }
    }
}

/// What can be asked of the exchange.
#[derive(Clone, Debug)]
pub enum Command {
    /// Place an order.
    Place {
        /// Whose.
        account: String,
        /// The order.
        order: NewOrder,
    },
    /// Cancel an order by the venue's id.
    Cancel {
        /// Whose.
        account: String,
        /// Which.
        order_id: u64,
    },
    /// Change the price and quantity of a resting limit order.
    Amend {
        /// Whose.
        account: String,
        /// Which.
        order_id: u64,
        /// The new limit.
        price: Decimal,
        /// The new quantity.
        quantity: Decimal,
    },
    /// Cancel a resting order and place another with its name, post-only.
    Replace {
        /// Whose.
        account: String,
        /// Which.
        order_id: u64,
        /// The new limit.
        price: Decimal,
        /// The new quantity.
        quantity: Decimal,
    },
    /// Close a part of a position to cover another trader's loss.
    Deleverage {
        /// Whose.
        account: String,
        /// The symbol.
        symbol: String,
        /// At most this much, base units.
        quantity: Decimal,
    },
    /// Cancel an account's orders on a symbol at a time, unless that is asked again before.
    CountDown {
        /// Whose.
        account: String,
        /// The symbol.
        symbol: String,
        /// When, milliseconds since the epoch; none stops it.
        until: Option<i64>,
    },
    /// Set a symbol's leverage.
    SetLeverage {
        /// Whose.
        account: String,
        /// The symbol.
        symbol: String,
        /// 1 to 125.
        leverage: u32,
    },
    /// The market's book changed, and with it mark and index.
    Market {
        /// The symbol.
        symbol: String,
        /// Changed bids; zero removes.
        bids: Vec<(Decimal, Decimal)>,
        /// Changed asks; zero removes.
        asks: Vec<(Decimal, Decimal)>,
        /// Id of the update.
        update_id: u64,
        /// Whether the levels replace the book.
        reset: bool,
        /// A mark price of its own; else the mid.
        mark: Option<Decimal>,
    },
    /// The next trade that takes from a book is larger than was asked for.
    Overfill {
        /// How much more, base units.
        quantity: Decimal,
    },
    /// Set where everybody's positions in a symbol stand in the queue for deleveraging.
    SetAdlRank {
        /// The symbol.
        symbol: String,
        /// 0 is last, 4 is closed first.
        rank: u8,
    },
    /// Change a contract as its exchange does at any moment; none leaves what it is.
    SetContract {
        /// The symbol.
        symbol: String,
        /// Whether the exchange says that it trades; not where it is being settled. Orders are accepted nevertheless.
        is_trading: Option<bool>,
        /// Funding rate of each interval.
        funding_rate: Option<Decimal>,
        /// Hours between fundings, 1 to 24.
        funding_interval_hours: Option<u32>,
        /// When the exchange says that it ends, milliseconds.
        delivers_at: Option<i64>,
    },
    /// Time passed: funding may be due.
    Tick,
    /// Set a position from outside, as a person's trade elsewhere would.
    SetPosition {
        /// Whose.
        account: String,
        /// The symbol.
        symbol: String,
        /// Signed base units.
        amount: Decimal,
        /// Entry price; else the mark.
        entry: Option<Decimal>,
    },
    /// Set a wallet.
    SetWallet {
        /// Whose.
        account: String,
        /// USDT.
        wallet: Decimal,
    },
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An order changed.
    Order {
        /// The order as it is now.
        order: Order,
        /// What happened to it.
        execution: ExecutionType,
    },
    /// Wallet or positions changed.
    Account {
        /// Whose.
        account: String,
        /// Why, as the venue names it.
        reason: &'static str,
        /// The wallet now.
        wallet: Decimal,
        /// Change of the wallet beside profit and fees.
        balance_change: Decimal,
        /// The positions that changed.
        positions: Vec<(String, PositionSide, HeldPosition)>,
    },
    /// A symbol's leverage changed.
    Leverage {
        /// Whose.
        account: String,
        /// The symbol.
        symbol: String,
        /// The leverage.
        leverage: u32,
    },
    /// Funding was charged or paid.
    Funding {
        /// Whose.
        account: String,
        /// The symbol.
        symbol: String,
        /// What the wallet gained.
        amount: Decimal,
        /// When.
        time: i64,
    },
}

/// The exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Markets by symbol.
    pub markets: BTreeMap<String, MarketState>,
    /// Accounts by name.
    pub accounts: BTreeMap<String, Account>,
    /// Every order ever placed, by id.
    pub orders: BTreeMap<u64, Order>,
    /// Every trade of an account, in order.
    pub trades: Vec<Trade>,
    /// What this exchange's engine does in its own way.
    pub rules: Rules,
    /// Funding payments: account, symbol, amount, time.
    pub funding: Vec<(String, String, Decimal, i64)>,
    /// What an asset is worth as margin: bid and ask.
    pub asset_rates: BTreeMap<String, (Decimal, Decimal)>,
    /// Malformed rows.
    pub(crate) odd_rows: Vec<OddRow>,
    /// When an account's orders on a symbol are canceled.
    pub countdowns: BTreeMap<(String, String), i64>,
    /// Places in the queue for deleveraging by symbol, where they are not 1.
    pub(crate) adl_ranks: BTreeMap<String, u8>,
    /// What the next taker trades beyond what it asked for.
    pub(super) surplus: Decimal,
    pub(super) waiting: BTreeSet<u64>,
    pub(super) next_order: u64,
    pub(super) next_trade: u64,
}

impl Exchange {
    /// An exchange at a time.
    pub fn new(config: &ExchangeConfig, rules: Rules, now: i64) -> Self {
        let mut markets = BTreeMap::new();
        for symbol in &config.symbols {
            let price = symbol.start_price.0;
            let state = MarketState {
                config: symbol.clone(),
                book: MarketBook::default(),
                mark: price,
                index: price,
                last: price,
                next_funding: next_funding(now, symbol.funding_interval_hours),
                consumes: true,
                brackets: rules.brackets(symbol.max_leverage),
                candles: Candles::default(),
            };
            markets.insert(symbol.name.clone(), state);
        }
        let mut accounts = BTreeMap::new();
        for account in &config.accounts {
            let positions = account
                .positions
                .iter()
                .filter_map(|(symbol, amount)| {
                    let entry = markets.get(symbol)?.mark;
                    let held =
                        HeldPosition { amount: amount.0, entry, updated: now, ..HeldPosition::default() };
                    let side = match (account.hedge_mode, amount.0 > Decimal::ZERO) {
                        (false, _) => PositionSide::Both,
                        (true, true) => PositionSide::Long,
                        (true, false) => PositionSide::Short,
                    };
                    Some(((symbol.clone(), side), held))
                })
                .collect();
            accounts.insert(
                account.id.clone(),
                Account {
                    id: account.id.clone(),
                    wallet: account.wallet.0,
                    assets: account.balances.iter().map(|(asset, n)| (asset.clone(), n.0)).collect(),
                    hedge_mode: account.hedge_mode,
                    multi_assets: account.multi_assets,
                    fee_burn: account.fee_burn.map(|price| price.0),
                    can_trade: account.can_trade,
                    leverage: BTreeMap::new(),
                    default_leverage: default_leverage(config, &rules, account.leverage),
                    isolated: account.isolated.iter().map(|symbol| (symbol.clone(), true)).collect(),
                    positions,
                },
            );
        }
        Self {
            markets,
            accounts,
            orders: BTreeMap::new(),
            trades: Vec::new(),
            funding: Vec::new(),
            asset_rates: config
                .asset_rates
                .iter()
                .map(|(asset, [bid, ask])| (asset.clone(), (bid.0, ask.0)))
                .collect(),
            odd_rows: config.odd_rows.clone(),
            countdowns: BTreeMap::new(),
            adl_ranks: BTreeMap::new(),
            surplus: Decimal::ZERO,
            waiting: BTreeSet::new(),
            next_order: rules.first_order_id,
            rules,
            next_trade: 500_000,
        }
    }

    /// Moves the state on. A refusal leaves it as it was.
    ///
    /// # Errors
    ///
    /// The venue's refusal.
    pub fn handle(&mut self, now: i64, command: Command) -> Result<Vec<Event>, Reject> {
        let mut events = Vec::new();
        match command {
            Command::Place { account, order } => self.place(now, &account, order, &mut events)?,
            Command::Cancel { account, order_id } => self.cancel(now, &account, order_id, &mut events)?,
            Command::Amend { account, order_id, price, quantity } => {
                self.amend(now, &account, order_id, price, quantity, &mut events)?;
            }
            Command::Replace { account, order_id, price, quantity } => {
                self.replace(now, &account, order_id, (price, quantity), &mut events)?;
            }
            Command::Deleverage { account, symbol, quantity } => {
                self.deleverage(now, &account, &symbol, quantity, &mut events)?;
            }
            Command::SetLeverage { account, symbol, leverage } => {
                self.set_leverage(&account, &symbol, leverage, &mut events)?;
            }
            Command::Market { symbol, bids, asks, update_id, reset, mark } => {
                self.market(now, &symbol, (&bids, &asks, update_id, reset), mark, &mut events);
            }
            Command::CountDown { account, symbol, until } => self.count_down(account, symbol, until)?,
            Command::Tick => {
                for market in self.markets.values_mut() {
                    let price = market.book.mid().unwrap_or(market.last);
                    let premium = (market.mark - market.index) / market.index;
                    market.candles.see(now, price, premium);
                }
                self.charge_funding(now, &mut events);
            }
            Command::SetAdlRank { symbol, rank } => {
                self.market_of(&symbol)?;
                self.adl_ranks.insert(symbol, rank);
            }
            Command::SetContract {
                symbol,
                is_trading,
                funding_rate,
                funding_interval_hours,
                delivers_at,
            } => {
                let market =
                    self.markets.get_mut(&symbol).ok_or_else(|| Reject::new(-1121, "Invalid symbol."))?;
                let config = &mut market.config;
                config.is_trading = is_trading.unwrap_or(config.is_trading);
                config.delivers_at = delivers_at.or(config.delivers_at);
                config.funding_rate = funding_rate.map_or(config.funding_rate, Exact);
                if let Some(hours) = funding_interval_hours {
                    config.funding_interval_hours = hours;
                    market.next_funding = next_funding(now, hours);
                }
            }
            Command::Overfill { quantity } => {
                self.surplus = quantity;
            }
            Command::SetPosition { account, symbol, amount, entry } => {
                self.set_position(now, &account, &symbol, amount, entry, &mut events)?;
            }
            Command::SetWallet { account, wallet } => {
                let holder = self.account_mut(&account)?;
                let change = wallet - holder.wallet;
                holder.wallet = wallet;
                let (reason, positions) = ("ADMIN_DEPOSIT", Vec::new());
                events.push(Event::Account { account, reason, wallet, balance_change: change, positions });
            }
        }
        self.end_countdowns(now, &mut events);
        self.set_off(now, &mut events);
        Ok(events)
    }

    fn account_mut(&mut self, account: &str) -> Result<&mut Account, Reject> {
        self.accounts
            .get_mut(account)
            .ok_or_else(|| Reject::new(-2015, "Invalid API-key, IP, or permissions for action."))
    }

    /// Where positions in a symbol stand in the queue for deleveraging.
    pub(crate) fn adl_rank(&self, symbol: &str) -> u8 {
        self.adl_ranks.get(symbol).copied().unwrap_or(1)
    }

    pub(super) fn market_of(&self, symbol: &str) -> Result<&MarketState, Reject> {
        self.markets.get(symbol).ok_or_else(|| Reject::new(-1121, "Invalid symbol."))
    }

    fn place(
        &mut self,
        now: i64,
        account: &str,
        new: NewOrder,
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        self.check(account, &new)?;
        self.insert(now, account, new, events);
        Ok(())
    }

    /// Takes in an order that keeps the rules.
    fn insert(&mut self, now: i64, account: &str, new: NewOrder, events: &mut Vec<Event>) {
        self.next_order += 1;
        let id = self.next_order;
        let client_id = new.client_id.unwrap_or_else(|| format!("web_{id:032}"));
        let order = Order {
            id,
            client_id,
            account: account.to_owned(),
            symbol: new.symbol,
            side: new.side,
            position_side: new.position_side,
            kind: new.kind,
            time_in_force: new.time_in_force,
            price: new.price,
            quantity: new.quantity,
            executed: Decimal::ZERO,
            quote: Decimal::ZERO,
            reduce_only: new.reduce_only,
            good_till: new.good_till,
            status: if new.trigger.is_some() { Status::Waiting } else { Status::New },
            trigger: new.trigger,
            expiry: ExpiryReason::None,
            created: now,
            updated: now,
        };
        events.push(Event::Order { order: order.clone(), execution: ExecutionType::New });
        if order.status == Status::Waiting {
            self.orders.insert(id, order);
            self.waiting.insert(id);
            return;
        }
        let crosses = order.time_in_force == TimeInForce::Gtx && self.would_take(&order);
        self.orders.insert(id, order);
        if crosses {
            self.finish(now, id, Status::Expired, ExpiryReason::PostOnly, events);
            return;
        }
        self.take(now, id, events);
        self.end_rest(now, id, events);
    }

    fn cancel(&mut self, now: i64, account: &str, id: u64, events: &mut Vec<Event>) -> Result<(), Reject> {
        let open =
            self.orders.get(&id).is_some_and(|order| order.account == account && order.status.is_live());
        if !open {
            return Err(Reject::new(-2011, "Unknown order sent."));
        }
        self.waiting.remove(&id);
        self.finish(now, id, Status::Canceled, ExpiryReason::None, events);
        Ok(())
    }

    fn replace(
        &mut self,
        now: i64,
        account: &str,
        id: u64,
        (price, quantity): (Decimal, Decimal),
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        let Some(old) = self.orders.get(&id).filter(|o| o.account == account && o.status.is_open()).cloned()
        else {
            return Err(Reject::new(-2011, "Unknown order sent."));
        };
        let new = NewOrder {
            symbol: old.symbol.clone(),
            side: old.side,
            position_side: old.position_side,
            kind: OrderKind::Limit,
            time_in_force: TimeInForce::Gtx,
            price,
            quantity,
            reduce_only: old.reduce_only,
            client_id: None,
            good_till: 0,
            trigger: None,
        };
        self.check(account, &new)?;
        self.finish(now, id, Status::Canceled, ExpiryReason::None, events);
        self.insert(now, account, NewOrder { client_id: Some(old.client_id), ..new }, events);
        Ok(())
    }

    fn amend(
        &mut self,
        now: i64,
        account: &str,
        id: u64,
        price: Decimal,
        quantity: Decimal,
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        let Some(order) =
            self.orders.get(&id).filter(|o| o.account == account && o.status.is_open()).cloned()
        else {
            return Err(Reject::new(-2013, "Order does not exist."));
        };
        if order.price == price && order.quantity == quantity {
            return Err(Reject::new(-5027, "No need to modify the order."));
        }
        let market = self.market_of(&order.symbol)?;
        let probe = NewOrder {
            symbol: order.symbol.clone(),
            side: order.side,
            position_side: order.position_side,
            kind: OrderKind::Limit,
            time_in_force: order.time_in_force,
            price,
            quantity,
            reduce_only: order.reduce_only,
            client_id: None,
            good_till: order.good_till,
            trigger: None,
        };
        check_quantity(&market.config, &probe)?;
        self.check_price(&market.config, market.mark, &probe)?;
        if !order.reduce_only && price * quantity < market.config.min_notional.0 {
            return Err(Reject::new(-5029, "Order's notional must be no smaller than the minimum."));
        }
        let crosses =
            market.book.best_against(order.side).is_some_and(|(best, _)| acceptable(order.side, price, best));
        if quantity <= order.executed || (order.time_in_force == TimeInForce::Gtx && crosses) {
            self.finish(now, id, Status::Canceled, ExpiryReason::None, events);
            return Ok(());
        }
        if let Some(order) = self.orders.get_mut(&id) {
            order.price = price;
            order.quantity = quantity;
            order.updated = now;
            events.push(Event::Order { order: order.clone(), execution: ExecutionType::Amendment });
        }
        self.take(now, id, events);
        Ok(())
    }

    fn set_leverage(
        &mut self,
        account: &str,
        symbol: &str,
        leverage: u32,
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        let market = self.market_of(symbol)?;
        if !(1..=125).contains(&leverage) {
            return Err(Reject::new(-4028, format!("Leverage {leverage} is not valid")));
        }
        let (mark, cap) = (market.mark, market.notional_cap(leverage));
        let holder = self.account_mut(account)?;
        if holder.net(symbol).abs() * mark > cap {
            return Err(Reject::new(-2027, "Exceeded the maximum allowable position at current leverage."));
        }
        let before = holder.leverage(symbol);
        holder.leverage.insert(symbol.to_owned(), leverage);
        let probe = holder.clone();
        if self.margin(&probe).0 > probe.wallet + self.margin(&probe).3 {
            self.account_mut(account)?.leverage.insert(symbol.to_owned(), before);
            return Err(Reject::new(
                -2028,
                "Leverage is smaller than permitted: insufficient margin balance.",
            ));
        }
        events.push(Event::Leverage { account: account.to_owned(), symbol: symbol.to_owned(), leverage });
        Ok(())
    }

    #[expect(clippy::type_complexity, reason = "the parts of one book update")]
    fn market(
        &mut self,
        now: i64,
        symbol: &str,
        (bids, asks, update_id, reset): (&[(Decimal, Decimal)], &[(Decimal, Decimal)], u64, bool),
        mark: Option<Decimal>,
        events: &mut Vec<Event>,
    ) {
        let Some(market) = self.markets.get_mut(symbol) else { return };
        if reset {
            market.book.reset(bids, asks, update_id);
        } else {
            market.book.apply(bids, asks, update_id);
        }
        if let Some(mid) = mark.or_else(|| market.book.mid()) {
            market.mark = mid;
            market.index = mid;
        }
        let crossed: Vec<u64> = self
            .orders
            .values()
            .filter(|order| order.status.is_open() && order.symbol == symbol)
            .filter(|order| {
                market
                    .book
                    .best_against(order.side)
                    .is_some_and(|(best, _)| acceptable(order.side, order.price, best))
            })
            .map(|order| order.id)
            .collect();
        for id in crossed {
            self.fill_resting(now, id, events);
        }
        self.charge_funding(now, events);
        self.liquidate(now, events);
    }

    fn charge_funding(&mut self, now: i64, events: &mut Vec<Event>) {
        for (symbol, market) in &mut self.markets {
            if now < market.next_funding {
                continue;
            }
            let due = market.next_funding;
            market.next_funding = next_funding(now, market.config.funding_interval_hours);
            for account in self.accounts.values_mut() {
                let amount = account.net(symbol);
                if amount.is_zero() {
                    continue;
                }
                let gained = -(amount * market.mark * market.config.funding_rate.0);
                account.wallet += gained;
                self.funding.push((account.id.clone(), symbol.clone(), gained, due));
                let id = account.id.clone();
                events.push(Event::Funding {
                    account: id.clone(),
                    symbol: symbol.clone(),
                    amount: gained,
                    time: due,
                });
                events.push(Event::Account {
                    account: id,
                    reason: "FUNDING_FEE",
                    wallet: account.wallet,
                    balance_change: gained,
                    positions: Vec::new(),
                });
            }
        }
    }

    fn set_position(
        &mut self,
        now: i64,
        account: &str,
        symbol: &str,
        amount: Decimal,
        entry: Option<Decimal>,
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        let mark = self.market_of(symbol)?.mark;
        let holder = self.account_mut(account)?;
        let side = match (holder.hedge_mode, amount > Decimal::ZERO) {
            (false, _) => PositionSide::Both,
            (true, true) => PositionSide::Long,
            (true, false) => PositionSide::Short,
        };
        let held = holder.positions.entry((symbol.to_owned(), side)).or_default();
        held.amount = amount;
        held.entry = if amount.is_zero() { Decimal::ZERO } else { entry.unwrap_or(mark) };
        held.updated = now;
        let changed = vec![(symbol.to_owned(), side, *held)];
        events.push(Event::Account {
            account: account.to_owned(),
            reason: "ADJUSTMENT",
            wallet: holder.wallet,
            balance_change: Decimal::ZERO,
            positions: changed,
        });
        Ok(())
    }
}

/// Leverage of symbols whose leverage was never set.
fn default_leverage(config: &ExchangeConfig, rules: &Rules, of_account: u32) -> BTreeMap<String, u32> {
    let leverage = |symbol: &SymbolConfig| match rules.margin {
        MarginTable::Stepped => of_account,
        MarginTable::HalfOfInitial => symbol.max_leverage,
    };
    config.symbols.iter().map(|symbol| (symbol.name.clone(), leverage(symbol))).collect()
}

fn next_funding(now: i64, hours: u32) -> i64 {
    let interval = i64::from(hours.max(1)) * 3_600_000;
    (now.div_euclid(interval) + 1) * interval
}
