//! The price stream: whole books, best prices, marks, on one connection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deltaplane_net::{Backoff, Egress, WebSocket, WebSocketError};
use deltaplane_ports::{Clock, Contract, FeedStatus, PriceFeed};
use deltaplane_types::{FeedId, MarketView, Ratio, Symbol, Timestamp};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::book::TopOfBook;
use crate::config::PacificaConfig;
use crate::wire::{BestPrices, Book, Frame, OfMarket, OfRow, PriceRow, Subscribed};

const CONNECT: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(15);
/// A market whose book is this old has a dead subscription, whatever else still comes.
const STALE_BOOK: Duration = Duration::from_secs(8);
const SILENCE: Duration = Duration::from_secs(8);
const HOUR_MS: i64 = 3_600_000;

struct Shared {
    id: FeedId,
    views: RwLock<BTreeMap<Symbol, Arc<MarketView>>>,
    connected: AtomicBool,
    last_update: AtomicI64,
    errors: AtomicU64,
    changes: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

/// The exchange's live prices. Dropping it ends its connection.
pub struct PacificaFeed {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl PacificaFeed {
    /// Connects and keeps connected; views appear as books come.
    pub fn start(config: &PacificaConfig, symbols: &[Symbol], clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared {
            id: config.feed.clone(),
            views: RwLock::default(),
            connected: AtomicBool::new(false),
            last_update: AtomicI64::new(i64::MIN),
            errors: AtomicU64::new(0),
            changes: watch::channel(0).0,
            clock,
        });
        let markets =
            symbols.iter().map(|symbol| (symbol.clone(), config.symbols.contract(symbol))).collect();
        let url = format!("{}/ws", config.stream_url.trim_end_matches('/'));
        let mut tasks = JoinSet::new();
        tasks.spawn(Follower { shared: shared.clone(), markets, url, egress: config.egress.clone() }.run());
        Self { shared, _tasks: tasks }
    }
}

impl PriceFeed for PacificaFeed {
    fn id(&self) -> &FeedId {
        &self.shared.id
    }

    fn view(&self, symbol: &Symbol) -> Option<Arc<MarketView>> {
        self.shared.views.read().unwrap_or_else(PoisonError::into_inner).get(symbol).cloned()
    }

    fn status(&self) -> FeedStatus {
        let last = self.shared.last_update.load(Ordering::Relaxed);
        FeedStatus {
            connected: self.shared.connected.load(Ordering::Relaxed),
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
}

struct Follower {
    shared: Arc<Shared>,
    markets: Vec<(Symbol, Contract)>,
    url: String,
    egress: Arc<Egress>,
}

/// What one connection knows of one market.
struct Known {
    symbol: Symbol,
    contract: Contract,
    top: TopOfBook,
    price: Option<PriceRow>,
    book_at: Instant,
}

impl Follower {
    async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let began = Instant::now();
            let result = self.follow().await;
            // A book that nobody renews is no book.
            self.shared.connected.store(false, Ordering::Relaxed);
            self.shared.views.write().unwrap_or_else(PoisonError::into_inner).clear();
            self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
            if let Err(error) = result {
                self.shared.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(feed = %self.shared.id, %error, "price stream lost");
            }
            if began.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn follow(&self) -> Result<(), FeedError> {
        let mut socket = WebSocket::connect(&self.url, &self.egress, CONNECT, SILENCE).await?;
        let mut subscriptions = vec![json!({"source": "prices"})];
        for (_, contract) in &self.markets {
            subscriptions.push(json!({"source": "book", "symbol": contract.name, "agg_level": 1}));
            subscriptions.push(json!({"source": "bbo", "symbol": contract.name}));
        }
        for params in subscriptions {
            socket.send_text(json!({"method": "subscribe", "params": params}).to_string()).await?;
        }
        let mut known: BTreeMap<String, Known> = self
            .markets
            .iter()
            .map(|(symbol, contract)| {
                let known = Known {
                    symbol: symbol.clone(),
                    contract: contract.clone(),
                    top: TopOfBook::default(),
                    price: None,
                    book_at: Instant::now(),
                };
                (contract.name.clone(), known)
            })
            .collect();
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                biased;
                text = socket.next_text() => self.on_text(&text?, &mut known)?,
                _ = ping.tick() => socket.send_text(r#"{"method":"ping"}"#.to_owned()).await?,
            }
            if let Some((name, _)) = known.iter().find(|(_, market)| market.book_at.elapsed() > STALE_BOOK) {
                return Err(FeedError::Silent(name.clone()));
            }
        }
    }

    fn on_text(&self, text: &str, known: &mut BTreeMap<String, Known>) -> Result<(), FeedError> {
        let frame: Frame<'_> = serde_json::from_str(text)?;
        let (Some(channel), Some(data)) = (frame.channel.as_deref(), frame.data) else { return Ok(()) };
        match channel {
            "book" => {
                let book: Book = serde_json::from_str(data.get())?;
                if let Some(market) = known.get_mut(&book.s) {
                    market.book_at = Instant::now();
                    market.top.on_book(book);
                    self.publish(market);
                }
            }
            "bbo" => {
                let of: OfMarket = serde_json::from_str(data.get())?;
                if let Some(market) = known.get_mut(&of.s) {
                    market.top.on_best(serde_json::from_str::<BestPrices>(data.get())?);
                    self.publish(market);
                }
            }
            "prices" => {
                // Markets that nobody asked for, spot among them, are passed over.
                for row in serde_json::from_str::<Vec<&RawValue>>(data.get())? {
                    let Ok(of) = serde_json::from_str::<OfRow>(row.get()) else { continue };
                    if let Some(market) = known.get_mut(&of.symbol) {
                        market.price = Some(serde_json::from_str(row.get())?);
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

    fn publish(&self, market: &Known) {
        let (Some((bids, asks)), Some(venue_time)) =
            (market.top.levels(&market.contract), market.top.venue_time())
        else {
            return;
        };
        let now = self.shared.clock.now();
        let price = market.price.as_ref();
        let of = |number: crate::wire::Number| market.contract.base_price(number.0).ok();
        // Funding is charged at each full hour.
        let next_hour =
            price.map(|row| row.timestamp.div_euclid(HOUR_MS).saturating_add(1).saturating_mul(HOUR_MS));
        let view = MarketView {
            feed: self.shared.id.clone(),
            quote: market.contract.quote.as_str().into(),
            bids: bids.into(),
            asks: asks.into(),
            mark: price.and_then(|row| of(row.mark)),
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
            .insert(market.symbol.clone(), Arc::new(view));
        self.shared.connected.store(true, Ordering::Relaxed);
        self.shared.last_update.store(now.as_millis(), Ordering::Relaxed);
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}
