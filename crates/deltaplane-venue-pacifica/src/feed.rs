//! The price stream: whole books, best prices, marks, on one connection for each market.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use deltaplane_net::{Backoff, ClockOffset, Egress, HttpTransport, Rows, Seldom, WebSocket, WebSocketError};
use deltaplane_ports::{Clock, Contract, FeedStatus, PriceFeed, Priority, SymbolMap};
use deltaplane_types::{FeedId, MarketView, Ratio, Symbol, Timestamp};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::book::TopOfBook;
use crate::config::PacificaConfig;
use crate::map;
use crate::rest::{Rest, RestError};
use crate::wire::{self, BestPrices, Book, Frame, Market, OfMarket, OfRow, PriceRow, Subscribed};

const CONNECT: Duration = Duration::from_secs(5);
/// How often the log tells of streams that end: with many symbols they end together.
const LOSSES_EVERY: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(15);
/// A market whose book is this old has a dead subscription, whatever else still comes.
const STALE_BOOK: Duration = Duration::from_secs(8);
const SILENCE: Duration = Duration::from_secs(8);
const HOUR_MS: i64 = 3_600_000;
/// More symbols are not followed: each has a connection of its own, and the venue allows 300 for an address.
const MOST_FOLLOWED: usize = 250;
/// Connections on which a symbol must be missing before it counts as not listed: a venue may begin with half of its
/// prices.
const MISSING_TRIES: u32 = 3;
/// A symbol that the venue does not list is looked for this often.
const UNLISTED: Duration = Duration::from_secs(600);

struct Shared {
    id: FeedId,
    views: RwLock<BTreeMap<Symbol, Arc<MarketView>>>,
    last_update: AtomicI64,
    errors: AtomicU64,
    /// Ends of streams are logged once in a while, with their number.
    losses: Seldom,
    changes: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

/// The exchange's live prices. Dropping it ends its connections.
pub struct PacificaFeed {
    shared: Arc<Shared>,
    list: Arc<List>,
    config: PacificaConfig,
    runtime: tokio::runtime::Handle,
    followed: Mutex<(BTreeSet<Symbol>, JoinSet<()>)>,
    not_followed: Mutex<BTreeSet<Symbol>>,
}

impl PacificaFeed {
    /// Connects and keeps connected; views appear as books come. What is followed later runs on the runtime that this is
    /// called on, too.
    pub fn start(
        config: &PacificaConfig,
        symbols: &[Symbol],
        transport: Arc<dyn HttpTransport>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let rest = Rest {
            transport,
            base: config.rest_url.trim_end_matches('/').to_owned(),
            key: None,
            api_config_key: config.api_config_key.clone(),
            clock: clock.clone(),
            offset: ClockOffset::default(),
            credits: config.credits.clone(),
            timeout: config.request_timeout,
        };
        let list = List { rest, symbols: config.symbols.clone(), read_at: tokio::sync::Mutex::default() };
        let shared = Arc::new(Shared {
            id: config.feed.clone(),
            views: RwLock::default(),
            last_update: AtomicI64::new(i64::MIN),
            errors: AtomicU64::new(0),
            losses: Seldom::new(LOSSES_EVERY),
            changes: watch::channel(0).0,
            clock,
        });
        let feed = Self {
            shared,
            list: Arc::new(list),
            config: config.clone(),
            runtime: tokio::runtime::Handle::current(),
            followed: Mutex::default(),
            not_followed: Mutex::default(),
        };
        for symbol in symbols {
            feed.follow(symbol);
        }
        feed
    }
}

impl PriceFeed for PacificaFeed {
    fn id(&self) -> &FeedId {
        &self.shared.id
    }

    fn view(&self, symbol: &Symbol) -> Option<Arc<MarketView>> {
        self.shared.views.read().unwrap_or_else(PoisonError::into_inner).get(symbol).cloned()
    }

    fn follow(&self, symbol: &Symbol) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let (symbols, tasks) = &mut *followed;
        if symbols.contains(symbol) {
            return;
        }
        if symbols.len() >= MOST_FOLLOWED {
            self.not_followed.lock().unwrap_or_else(PoisonError::into_inner).insert(symbol.clone());
            return;
        }
        symbols.insert(symbol.clone());
        let follower = Follower {
            shared: self.shared.clone(),
            symbol: symbol.clone(),
            list: self.list.clone(),
            url: format!("{}/ws", self.config.stream_url.trim_end_matches('/')),
            egress: self.config.egress.clone(),
        };
        tasks.spawn_on(follower.run(), &self.runtime);
    }

    fn not_followed(&self) -> Vec<Symbol> {
        self.not_followed.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn status(&self) -> FeedStatus {
        let last = self.shared.last_update.load(Ordering::Relaxed);
        FeedStatus {
            connected: !self.shared.views.read().unwrap_or_else(PoisonError::into_inner).is_empty(),
            last_update: (last != i64::MIN).then(|| Timestamp::from_millis(last)),
            error_count: self.shared.errors.load(Ordering::Relaxed),
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Socket(#[from] WebSocketError),
    #[error("a message cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the book of {0} does not come")]
    Silent(String),
    #[error("the venue does not list {0}")]
    Unlisted(String),
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error("the list of markets cannot be read: {0}")]
    NoList(String),
}

/// The venue's list, read if no other part has read it yet.
struct List {
    rest: Rest,
    symbols: SymbolMap,
    read_at: tokio::sync::Mutex<Option<Instant>>,
}

impl List {
    async fn contract(&self, symbol: &Symbol) -> Result<Contract, FeedError> {
        if let Some(contract) = self.symbols.contract(symbol) {
            return Ok(contract);
        }
        // Those who wait take what the first one learns.
        let mut read_at = self.read_at.lock().await;
        if !self.symbols.is_known() || read_at.is_none_or(|at| at.elapsed() >= UNLISTED) {
            let text = self.rest.info(Priority::Hedge).await?;
            let rows: Rows<Market> = wire::answer(&text).map_err(FeedError::NoList)?.data;
            map::learn(&self.symbols, &rows);
            *read_at = Some(Instant::now());
        }
        self.symbols.contract(symbol).ok_or_else(|| FeedError::Unlisted(symbol.to_string()))
    }
}

/// Follows one market. Each has its connection: one without a book must not end the others.
struct Follower {
    shared: Arc<Shared>,
    symbol: Symbol,
    list: Arc<List>,
    url: String,
    egress: Arc<Egress>,
}

/// What one connection knows of its market.
struct Known {
    top: TopOfBook,
    /// The newest prices, and when they came.
    price: Option<(PriceRow, Timestamp)>,
    /// The prices of other markets came, and none of this one.
    is_missing: bool,
    book_at: Instant,
}

impl Follower {
    async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        let mut missing = 0_u32;
        loop {
            let began = Instant::now();
            let result = match self.list.contract(&self.symbol).await {
                Ok(contract) => self.follow(&contract).await,
                Err(error) => Err(error),
            };
            let was_listed =
                self.shared.views.read().unwrap_or_else(PoisonError::into_inner).contains_key(&self.symbol);
            let is_missing = matches!(result, Err(FeedError::Unlisted(_)));
            missing = if was_listed || !is_missing { 0 } else { missing.saturating_add(1) };
            // An order book without updates is no order book.
            self.shared.views.write().unwrap_or_else(PoisonError::into_inner).remove(&self.symbol);
            self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
            if let Err(error) = result {
                match self.shared.losses.passes() {
                    Some(more) => {
                        tracing::warn!(feed = %self.shared.id, symbol = %self.symbol, %error, more, "price stream lost");
                    }
                    None => {
                        tracing::debug!(feed = %self.shared.id, symbol = %self.symbol, %error, "price stream lost");
                    }
                }
                if missing >= MISSING_TRIES {
                    tokio::time::sleep(UNLISTED).await;
                    continue;
                }
                if !is_missing {
                    self.shared.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            if began.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn follow(&self, contract: &Contract) -> Result<(), FeedError> {
        let mut socket = WebSocket::connect(&self.url, &self.egress, CONNECT, SILENCE).await?;
        let name = &contract.name;
        let subscriptions = [
            json!({"source": "prices"}),
            json!({"source": "book", "symbol": name, "agg_level": 1}),
            json!({"source": "bbo", "symbol": name}),
        ];
        for params in subscriptions {
            socket.send_text(json!({"method": "subscribe", "params": params}).to_string()).await?;
        }
        let mut known =
            Known { top: TopOfBook::default(), price: None, is_missing: false, book_at: Instant::now() };
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                biased;
                text = socket.next_text() => self.on_text(contract, &text?, &mut known)?,
                _ = ping.tick() => socket.send_text(r#"{"method":"ping"}"#.to_owned()).await?,
            }
            if known.book_at.elapsed() > STALE_BOOK {
                let unlisted = known.is_missing && known.price.is_none();
                let error = if unlisted { FeedError::Unlisted } else { FeedError::Silent };
                return Err(error(contract.name.clone()));
            }
        }
    }

    fn on_text(&self, contract: &Contract, text: &str, market: &mut Known) -> Result<(), FeedError> {
        let frame: Frame<'_> = serde_json::from_str(text)?;
        let (Some(channel), Some(data)) = (frame.channel.as_deref(), frame.data) else { return Ok(()) };
        match channel {
            "book" => {
                let book: Book = serde_json::from_str(data.get())?;
                if book.s == contract.name {
                    market.book_at = Instant::now();
                    market.top.on_book(book);
                    self.publish(contract, market);
                }
            }
            "bbo" => {
                let of: OfMarket = serde_json::from_str(data.get())?;
                if of.s == contract.name {
                    market.top.on_best(serde_json::from_str::<BestPrices>(data.get())?);
                    self.publish(contract, market);
                }
            }
            "prices" => {
                // Other markets, spot among them, are passed over.
                let rows: Vec<&RawValue> = serde_json::from_str(data.get())?;
                market.is_missing = !rows.is_empty();
                for row in rows {
                    let Ok(of) = serde_json::from_str::<OfRow>(row.get()) else { continue };
                    if of.symbol == contract.name {
                        market.is_missing = false;
                        let row = serde_json::from_str(row.get())?;
                        market.price = Some((row, self.shared.clock.now()));
                    }
                }
            }
            "subscribe" => {
                let params: Subscribed = serde_json::from_str(data.get())?;
                tracing::debug!(feed = %self.shared.id, source = params.source, symbol = params.symbol, "subscribed");
            }
            _ => {}
        }
        Ok(())
    }

    fn publish(&self, contract: &Contract, market: &Known) {
        let (Some((bids, asks)), Some(venue_time)) = (market.top.levels(contract), market.top.venue_time())
        else {
            return;
        };
        let now = self.shared.clock.now();
        let price = market.price.as_ref().map(|(row, _)| row);
        let of = |number: crate::wire::Number| contract.base_price(number.0).ok();
        // Funding is charged at each full hour.
        let next_hour =
            price.map(|row| row.timestamp.div_euclid(HOUR_MS).saturating_add(1).saturating_mul(HOUR_MS));
        let view = MarketView {
            feed: self.shared.id.clone(),
            quote: contract.quote.as_str().into(),
            bids: bids.into(),
            asks: asks.into(),
            mark: price.and_then(|row| of(row.mark)),
            mark_at: market.price.as_ref().map(|(_, at)| *at),
            index: price.and_then(|row| of(row.oracle)),
            funding_rate: price.map(|row| Ratio::new(row.next_funding.0)),
            next_funding: next_hour.map(Timestamp::from_millis),
            venue_time: Timestamp::from_millis(venue_time),
            received_at: now,
        };
        self.shared
            .views
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.symbol.clone(), Arc::new(view));
        self.shared.last_update.store(now.as_millis(), Ordering::Relaxed);
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}
