//! The state machine.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, Side};

use super::account::{Account, HeldPosition};
use super::book::MarketBook;
use super::order::{
    ExecutionType, ExpiryReason, Order, OrderKind, PositionSide, Reject, Status, TimeInForce, Trade,
};
use crate::config::{ExchangeConfig, SymbolConfig};

/// Maintenance steps: cap of the notional, rate, deduction, highest leverage.
pub const BRACKETS: [(i64, &str, i64, u32); 5] = [
    (300_000, "0.004", 0, 125),
    (800_000, "0.005", 300, 100),
    (3_000_000, "0.0065", 1_500, 75),
    (12_000_000, "0.01", 12_000, 50),
    (70_000_000, "0.02", 132_000, 25),
];

/// Fee rate of an order that takes.
pub const TAKER_RATE: &str = "0.0005";
/// Fee rate of an order that rests.
pub const MAKER_RATE: &str = "0.0002";
/// Open orders per symbol and account.
const MAX_OPEN_ORDERS: usize = 200;

fn rate(text: &str) -> Decimal {
    deltaplane_types::parse_exact(text).unwrap_or_default()
}

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
    /// Funding payments: account, symbol, amount, time.
    pub funding: Vec<(String, String, Decimal, i64)>,
    next_order: u64,
    next_trade: u64,
}

impl Exchange {
    /// An exchange at a time.
    pub fn new(config: &ExchangeConfig, now: i64) -> Self {
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
                    hedge_mode: account.hedge_mode,
                    can_trade: account.can_trade,
                    leverage: BTreeMap::new(),
                    default_leverage: account.leverage,
                    isolated: BTreeMap::new(),
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
            next_order: 1_000,
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
            Command::SetLeverage { account, symbol, leverage } => {
                self.set_leverage(&account, &symbol, leverage, &mut events)?;
            }
            Command::Market { symbol, bids, asks, update_id, reset, mark } => {
                self.market(now, &symbol, (&bids, &asks, update_id, reset), mark, &mut events);
            }
            Command::Tick => self.charge_funding(now, &mut events),
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
        Ok(events)
    }

    fn account_mut(&mut self, account: &str) -> Result<&mut Account, Reject> {
        self.accounts
            .get_mut(account)
            .ok_or_else(|| Reject::new(-2015, "Invalid API-key, IP, or permissions for action."))
    }

    fn market_of(&self, symbol: &str) -> Result<&MarketState, Reject> {
        self.markets.get(symbol).ok_or_else(|| Reject::new(-1121, "Invalid symbol."))
    }

    /// Margin of an account: initial margin of positions, of open orders, maintenance, unrealized profit.
    pub fn margin(&self, account: &Account) -> (Decimal, Decimal, Decimal, Decimal) {
        let (mut initial, mut open, mut maintenance, mut unrealized) =
            (Decimal::ZERO, Decimal::ZERO, Decimal::ZERO, Decimal::ZERO);
        for (symbol, market) in &self.markets {
            let (position, orders) = self.symbol_margin(account, symbol, market, None);
            initial += position;
            open += orders;
            for side in [PositionSide::Both, PositionSide::Long, PositionSide::Short] {
                let held = account.position(symbol, side);
                maintenance += maintenance_of(held.amount.abs() * market.mark);
                unrealized += held.unrealized(market.mark);
            }
        }
        (initial, open, maintenance, unrealized)
    }

    /// What new positions may use.
    pub fn available(&self, account: &Account) -> Decimal {
        let (initial, open, _, unrealized) = self.margin(account);
        (account.wallet + unrealized - initial - open).max(Decimal::ZERO)
    }

    /// Initial margin of a symbol's positions, and what open orders (and `extra`, side and notional) add to it.
    pub fn symbol_margin(
        &self,
        account: &Account,
        symbol: &str,
        market: &MarketState,
        extra: Option<(Side, Decimal)>,
    ) -> (Decimal, Decimal) {
        let leverage = Decimal::from(account.leverage(symbol));
        let sides = [PositionSide::Both, PositionSide::Long, PositionSide::Short];
        let gross: Decimal =
            sides.iter().map(|side| account.position(symbol, *side).amount.abs() * market.mark).sum();
        let net = account.net(symbol) * market.mark;
        let (mut bids, mut asks) = (Decimal::ZERO, Decimal::ZERO);
        let open = self.orders.values().filter(|order| {
            order.status.is_open()
                && order.account == account.id
                && order.symbol == symbol
                && !order.reduce_only
        });
        for order in open {
            let notional = order.open_quantity() * order.price;
            if order.side == Side::Buy { bids += notional } else { asks += notional }
        }
        match extra {
            Some((Side::Buy, notional)) => bids += notional,
            Some((Side::Sell, notional)) => asks += notional,
            None => {}
        }
        let position = gross / leverage;
        let with_orders = (net + bids).abs().max((net - asks).abs()).max(gross) / leverage;
        (position, with_orders - position)
    }

    fn place(
        &mut self,
        now: i64,
        account: &str,
        new: NewOrder,
        events: &mut Vec<Event>,
    ) -> Result<(), Reject> {
        self.check(account, &new)?;
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
            status: Status::New,
            expiry: ExpiryReason::None,
            created: now,
            updated: now,
        };
        events.push(Event::Order { order: order.clone(), execution: ExecutionType::New });
        self.orders.insert(id, order);
        self.take(now, id, events);
        self.end_rest(now, id, events);
        Ok(())
    }

    /// The venue's rules, in the order in which it answers.
    fn check(&self, account: &str, new: &NewOrder) -> Result<(), Reject> {
        let market = self.market_of(&new.symbol)?;
        let holder = self
            .accounts
            .get(account)
            .ok_or_else(|| Reject::new(-2015, "Invalid API-key, IP, or permissions for action."))?;
        if holder.hedge_mode == (new.position_side == PositionSide::Both) {
            return Err(Reject::new(-4061, "Order's position side does not match user's setting."));
        }
        if holder.hedge_mode && new.reduce_only {
            return Err(Reject::new(-1106, "Parameter 'reduceonly' sent when not required."));
        }
        if new.client_id.as_ref().is_some_and(|id| self.open_by_client_id(account, &new.symbol, id).is_some())
        {
            return Err(Reject::new(-4116, "ClientOrderId is duplicated."));
        }
        let config = &market.config;
        check_quantity(config, new)?;
        let limit = if new.kind == OrderKind::Market { market.mark } else { new.price };
        if new.kind == OrderKind::Limit {
            check_price(config, market.mark, new)?;
        }
        if !new.reduce_only && !closes(new) && limit * new.quantity < config.min_notional.0 {
            let least = config.min_notional.0.normalize();
            let text =
                format!("Order's notional must be no smaller than {least} (unless you choose reduce only).");
            return Err(Reject::new(-4164, text));
        }
        let held = holder.position(&new.symbol, new.position_side).amount;
        let shrinks = !held.is_zero() && (held > Decimal::ZERO) == (new.side == Side::Sell);
        if (new.reduce_only || closes(new)) && !shrinks {
            return Err(Reject::new(-2022, "ReduceOnly Order is rejected."));
        }
        if closes(new) && new.quantity > held.abs() {
            return Err(Reject::new(-2022, "ReduceOnly Order is rejected."));
        }
        let open = self
            .orders
            .values()
            .filter(|o| o.status.is_open() && o.account == account && o.symbol == new.symbol);
        if open.count() >= MAX_OPEN_ORDERS {
            return Err(Reject::new(-2025, "Reach max open order limit."));
        }
        if !new.reduce_only && !closes(new) {
            self.check_margin(holder, market, new, limit)?;
        }
        let crosses = market
            .book
            .best_against(new.side)
            .is_some_and(|(price, _)| acceptable(new.side, new.price, price));
        if new.time_in_force == TimeInForce::Gtx && crosses {
            let text = "Due to the order could not be executed as maker, the Post Only order will be rejected. The order will not be recorded in the order history";
            return Err(Reject::new(-5022, text));
        }
        if new.time_in_force == TimeInForce::Fok && self.fillable(account, new, market) < new.quantity {
            let text = "Due to the order could not be filled immediately, the FOK order has been rejected. The order will not be recorded in the order history";
            return Err(Reject::new(-5021, text));
        }
        Ok(())
    }

    fn fillable(&self, account: &str, new: &NewOrder, market: &MarketState) -> Decimal {
        let external: Decimal = market
            .book
            .against(new.side)
            .take_while(|(price, _)| acceptable(new.side, new.price, *price))
            .map(|(_, quantity)| quantity)
            .sum();
        let resting: Decimal = self
            .orders
            .values()
            .filter(|o| {
                o.status.is_open() && o.symbol == new.symbol && o.side != new.side && o.account != account
            })
            .filter(|o| acceptable(new.side, new.price, o.price))
            .map(Order::open_quantity)
            .sum();
        external + resting
    }

    fn check_margin(
        &self,
        holder: &Account,
        market: &MarketState,
        new: &NewOrder,
        limit: Decimal,
    ) -> Result<(), Reject> {
        let leverage = holder.leverage(&new.symbol);
        let signed = if new.side == Side::Buy { new.quantity } else { -new.quantity };
        let after = (holder.net(&new.symbol) + signed).abs() * market.mark;
        let cap = BRACKETS.iter().rev().find(|(_, _, _, most)| *most >= leverage).map_or(0, |(cap, ..)| *cap);
        let grows = after > holder.net(&new.symbol).abs() * market.mark;
        if grows && after > Decimal::from(cap) {
            return Err(Reject::new(-2027, "Exceeded the maximum allowable position at current leverage."));
        }
        let assumed = match (new.kind, new.side) {
            (OrderKind::Market, Side::Buy) => limit * rate("1.0005"),
            _ => limit,
        };
        let (position, before) = self.symbol_margin(holder, &new.symbol, market, None);
        let (_, with) =
            self.symbol_margin(holder, &new.symbol, market, Some((new.side, assumed * new.quantity)));
        let side = if new.side == Side::Buy { Decimal::ONE } else { -Decimal::ONE };
        let open_loss = (new.quantity * (side * (market.mark - assumed)).min(Decimal::ZERO)).abs();
        let _ = position;
        let needed = with - before;
        if needed > Decimal::ZERO && needed + open_loss > self.available(holder) {
            return Err(Reject::new(-2019, "Margin is insufficient."));
        }
        Ok(())
    }

    /// The open order of an account with a client id.
    pub fn open_by_client_id(&self, account: &str, symbol: &str, client_id: &str) -> Option<&Order> {
        self.orders.values().rev().find(|order| {
            order.status.is_open()
                && order.account == account
                && order.symbol == symbol
                && order.client_id == client_id
        })
    }

    /// Trades an order against what is there.
    fn take(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        // A level is met once: in a replay the book is not altered, so what this order took is counted here.
        let mut met: BTreeMap<Decimal, Decimal> = BTreeMap::new();
        for _ in 0..10_000 {
            let Some(order) = self.orders.get(&id).cloned() else { return };
            if !order.status.is_open() {
                return;
            }
            let wanted = self.reducible(&order).min(order.open_quantity());
            if wanted <= Decimal::ZERO {
                self.finish(now, id, Status::Expired, ExpiryReason::ReduceOnly, events);
                return;
            }
            let limit = if order.kind == OrderKind::Market { None } else { Some(order.price) };
            let fits = |price: Decimal| limit.is_none_or(|limit| acceptable(order.side, limit, price));
            let Some(market) = self.markets.get(&order.symbol) else { return };
            let external = market
                .book
                .against(order.side)
                .map(|(price, quantity)| {
                    let taken = if market.consumes {
                        Decimal::ZERO
                    } else {
                        met.get(&price).copied().unwrap_or_default()
                    };
                    (price, quantity - taken)
                })
                .find(|(_, quantity)| *quantity > Decimal::ZERO)
                .filter(|(price, _)| fits(*price));
            let resting = self.best_resting(&order).filter(|(price, _)| fits(*price));
            let external_first = match (external, resting) {
                (Some((a, _)), Some((b, _))) => a == b || !better(order.side, b, a),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return,
            };
            if external_first {
                let Some((price, quantity)) = external else { return };
                let quantity = quantity.min(wanted);
                *met.entry(price).or_default() += quantity;
                if let Some(market) = self.markets.get_mut(&order.symbol)
                    && market.consumes
                {
                    market.book.consume(order.side, price, quantity);
                }
                self.fill(now, id, price, quantity, false, events);
                continue;
            }
            let Some((price, maker)) = resting else { return };
            if self.orders.get(&maker).is_some_and(|other| other.account == order.account) {
                self.finish(now, maker, Status::ExpiredInMatch, ExpiryReason::SelfTrade, events);
                continue;
            }
            let quantity = self
                .orders
                .get(&maker)
                .map_or(Decimal::ZERO, |other| self.reducible(other).min(other.open_quantity()).min(wanted));
            if quantity <= Decimal::ZERO {
                self.finish(now, maker, Status::Expired, ExpiryReason::ReduceOnly, events);
                continue;
            }
            self.fill(now, maker, price, quantity, true, events);
            self.fill(now, id, price, quantity, false, events);
        }
    }

    /// The best resting order that this one would trade with: best price, then oldest.
    fn best_resting(&self, order: &Order) -> Option<(Decimal, u64)> {
        self.orders
            .values()
            .filter(|o| {
                o.status.is_open() && o.symbol == order.symbol && o.side != order.side && o.id != order.id
            })
            .map(|o| (o.price, o.id))
            .reduce(|best, next| if better(order.side, next.0, best.0) { next } else { best })
    }

    /// How much a reduce-only order may trade; without bound for others.
    fn reducible(&self, order: &Order) -> Decimal {
        let closing = order.reduce_only
            || matches!(
                (order.position_side, order.side),
                (PositionSide::Long, Side::Sell) | (PositionSide::Short, Side::Buy)
            );
        if !closing {
            return Decimal::MAX;
        }
        let held = self
            .accounts
            .get(&order.account)
            .map_or(Decimal::ZERO, |a| a.position(&order.symbol, order.position_side).amount);
        let shrinks = (held > Decimal::ZERO) == (order.side == Side::Sell);
        if shrinks { held.abs() } else { Decimal::ZERO }
    }

    fn fill(
        &mut self,
        now: i64,
        id: u64,
        price: Decimal,
        quantity: Decimal,
        maker: bool,
        events: &mut Vec<Event>,
    ) {
        self.trade(now, id, price, quantity, maker, false, events);
    }

    #[expect(clippy::too_many_arguments, reason = "one trade has this many facts")]
    fn trade(
        &mut self,
        now: i64,
        id: u64,
        price: Decimal,
        quantity: Decimal,
        maker: bool,
        forced: bool,
        events: &mut Vec<Event>,
    ) {
        self.next_trade += 1;
        let trade_id = self.next_trade;
        let Some(order) = self.orders.get_mut(&id) else { return };
        order.executed += quantity;
        order.quote += price * quantity;
        order.updated = now;
        order.status = if order.open_quantity().is_zero() { Status::Filled } else { Status::PartiallyFilled };
        let order = order.clone();
        let Some(account) = self.accounts.get_mut(&order.account) else { return };
        let key = (order.symbol.clone(), order.position_side);
        let held = account.positions.entry(key).or_default();
        let realized = held.trade(order.side, quantity, price, now);
        let held = *held;
        let fee = price * quantity * rate(if maker { MAKER_RATE } else { TAKER_RATE });
        account.wallet += realized - fee;
        let wallet = account.wallet;
        if let Some(market) = self.markets.get_mut(&order.symbol) {
            market.last = price;
        }
        let trade = Trade {
            id: trade_id,
            order_id: id,
            account: order.account.clone(),
            symbol: order.symbol.clone(),
            side: order.side,
            position_side: order.position_side,
            price,
            quantity,
            fee,
            realized,
            maker,
            time: now,
        };
        self.trades.push(trade.clone());
        let execution = if forced { ExecutionType::Calculated(trade) } else { ExecutionType::Trade(trade) };
        events.push(Event::Order { order: order.clone(), execution });
        events.push(Event::Account {
            account: order.account,
            reason: "ORDER",
            wallet,
            balance_change: Decimal::ZERO,
            positions: vec![(order.symbol, order.position_side, held)],
        });
    }

    fn finish(&mut self, now: i64, id: u64, status: Status, expiry: ExpiryReason, events: &mut Vec<Event>) {
        let Some(order) = self.orders.get_mut(&id) else { return };
        order.status = status;
        order.expiry = expiry;
        order.updated = now;
        let execution =
            if status == Status::Canceled { ExecutionType::Canceled } else { ExecutionType::Expired };
        events.push(Event::Order { order: order.clone(), execution });
    }

    /// Ends what may not rest.
    fn end_rest(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        let Some(order) = self.orders.get(&id) else { return };
        if !order.status.is_open() {
            return;
        }
        if order.kind == OrderKind::Market {
            self.finish(now, id, Status::Expired, ExpiryReason::MarketRest, events);
        } else if matches!(order.time_in_force, TimeInForce::Ioc | TimeInForce::Fok) {
            self.finish(now, id, Status::Expired, ExpiryReason::ImmediateRest, events);
        }
    }

    fn cancel(&mut self, now: i64, account: &str, id: u64, events: &mut Vec<Event>) -> Result<(), Reject> {
        let open =
            self.orders.get(&id).is_some_and(|order| order.account == account && order.status.is_open());
        if !open {
            return Err(Reject::new(-2011, "Unknown order sent."));
        }
        self.finish(now, id, Status::Canceled, ExpiryReason::None, events);
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
        };
        check_quantity(&market.config, &probe)?;
        check_price(&market.config, market.mark, &probe)?;
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
        let mark = market.mark;
        let holder = self.account_mut(account)?;
        let cap = BRACKETS.iter().rev().find(|(_, _, _, most)| *most >= leverage).map_or(0, |(cap, ..)| *cap);
        if holder.net(symbol).abs() * mark > Decimal::from(cap) {
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

    /// The market came to a resting order: it fills at its own price, as far as the crossing quantity goes.
    fn fill_resting(&mut self, now: i64, id: u64, events: &mut Vec<Event>) {
        let Some(order) = self.orders.get(&id).cloned() else { return };
        let Some(market) = self.markets.get_mut(&order.symbol) else { return };
        let levels: Vec<(Decimal, Decimal)> = market
            .book
            .against(order.side)
            .take_while(|(price, _)| acceptable(order.side, order.price, *price))
            .collect();
        let consumes = market.consumes;
        for (price, quantity) in levels {
            let Some(order) = self.orders.get(&id).cloned().filter(|order| order.status.is_open()) else {
                return;
            };
            let quantity = quantity.min(order.open_quantity()).min(self.reducible(&order));
            if quantity <= Decimal::ZERO {
                self.finish(now, id, Status::Expired, ExpiryReason::ReduceOnly, events);
                return;
            }
            if consumes && let Some(market) = self.markets.get_mut(&order.symbol) {
                market.book.consume(order.side, price, quantity);
            }
            self.fill(now, id, order.price, quantity, true, events);
        }
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

    fn liquidate(&mut self, now: i64, events: &mut Vec<Event>) {
        let broke: Vec<String> = self
            .accounts
            .values()
            .filter(|account| {
                let (_, _, maintenance, unrealized) = self.margin(account);
                maintenance > Decimal::ZERO && account.wallet + unrealized <= maintenance
            })
            .map(|account| account.id.clone())
            .collect();
        for account in broke {
            let open: Vec<u64> = self
                .orders
                .values()
                .filter(|o| o.status.is_open() && o.account == account)
                .map(|o| o.id)
                .collect();
            for id in open {
                self.finish(now, id, Status::Expired, ExpiryReason::Liquidated, events);
            }
            let held: Vec<((String, PositionSide), HeldPosition)> = self
                .accounts
                .get(&account)
                .map(|a| a.positions.clone().into_iter().collect())
                .unwrap_or_default();
            for ((symbol, position_side), position) in held {
                if position.amount.is_zero() {
                    continue;
                }
                let price = self.markets.get(&symbol).map_or(position.entry, |market| market.mark);
                self.next_order += 1;
                let id = self.next_order;
                let order = Order {
                    id,
                    client_id: format!("autoclose-{now}{id}"),
                    account: account.clone(),
                    symbol,
                    side: if position.amount > Decimal::ZERO { Side::Sell } else { Side::Buy },
                    position_side,
                    kind: OrderKind::Limit,
                    time_in_force: TimeInForce::Ioc,
                    price,
                    quantity: position.amount.abs(),
                    executed: Decimal::ZERO,
                    quote: Decimal::ZERO,
                    reduce_only: false,
                    good_till: 0,
                    status: Status::New,
                    expiry: ExpiryReason::None,
                    created: now,
                    updated: now,
                };
                events.push(Event::Order { order: order.clone(), execution: ExecutionType::New });
                self.orders.insert(id, order);
                self.trade(now, id, price, position.amount.abs(), false, true, events);
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

/// Maintenance margin of a notional.
pub fn maintenance_of(notional: Decimal) -> Decimal {
    let step = BRACKETS
        .iter()
        .find(|(cap, ..)| notional <= Decimal::from(*cap))
        .unwrap_or(&BRACKETS[BRACKETS.len() - 1]);
    (notional * rate(step.1) - Decimal::from(step.2)).max(Decimal::ZERO)
}

fn next_funding(now: i64, hours: u32) -> i64 {
    let interval = i64::from(hours.max(1)) * 3_600_000;
    (now.div_euclid(interval) + 1) * interval
}

/// Whether a price is no worse than the limit of an order.
fn acceptable(side: Side, limit: Decimal, price: Decimal) -> bool {
    match side {
        Side::Buy => price <= limit,
        Side::Sell => price >= limit,
    }
}

/// Whether an order of this side would rather trade at `a`.
fn better(side: Side, a: Decimal, b: Decimal) -> bool {
    match side {
        Side::Buy => a < b,
        Side::Sell => a > b,
    }
}

/// Whether an order of hedge mode closes.
fn closes(new: &NewOrder) -> bool {
    matches!(
        (new.position_side, new.side),
        (PositionSide::Long, Side::Sell) | (PositionSide::Short, Side::Buy)
    )
}

fn check_quantity(config: &SymbolConfig, new: &NewOrder) -> Result<(), Reject> {
    let most =
        if new.kind == OrderKind::Market { config.market_max_quantity.0 } else { Decimal::from(1_000) };
    if new.quantity <= Decimal::ZERO {
        return Err(Reject::new(-4003, "Quantity less than or equal to zero."));
    }
    if new.quantity < config.min_quantity.0 {
        return Err(Reject::new(-4004, "Quantity less than min quantity."));
    }
    if new.quantity > most {
        return Err(Reject::new(-4005, "Quantity greater than max quantity."));
    }
    if new.quantity.normalize().scale() > config.step_size.0.normalize().scale() {
        return Err(Reject::new(-1111, "Precision is over the maximum defined for this asset."));
    }
    if !(new.quantity % config.step_size.0).is_zero() {
        return Err(Reject::new(-4023, "Qty not increased by step size."));
    }
    Ok(())
}

fn check_price(config: &SymbolConfig, mark: Decimal, new: &NewOrder) -> Result<(), Reject> {
    if new.price <= Decimal::ZERO {
        return Err(Reject::new(-4001, "Price less than 0."));
    }
    if new.price > Decimal::from(4_529_764) {
        return Err(Reject::new(-4002, "Price greater than max price."));
    }
    if new.price.normalize().scale() > config.tick_size.0.normalize().scale() {
        return Err(Reject::new(-1111, "Precision is over the maximum defined for this asset."));
    }
    if !(new.price % config.tick_size.0).is_zero() {
        return Err(Reject::new(-4014, "Price not increased by tick size."));
    }
    let (high, low) = (mark * rate("1.05"), mark * rate("0.95"));
    if new.side == Side::Buy && new.price > high {
        return Err(Reject::new(-4016, format!("Limit price can't be higher than {}.", high.normalize())));
    }
    if new.side == Side::Sell && new.price < low {
        return Err(Reject::new(-4024, format!("Limit price can't be lower than {}.", low.normalize())));
    }
    Ok(())
}
