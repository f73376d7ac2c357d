//! The price stream: books, best prices, marks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use deltaplane_net::{Backoff, Egress, HttpTransport, Seldom, WebSocket, WebSocketError};
use deltaplane_ports::{Clock, Contract, FeedStatus, PriceFeed, Priority, SymbolMap};
use deltaplane_types::{Decimal, FeedId, Level, MarketView, Ratio, Symbol, Timestamp};
use percent_encoding::utf8_percent_encode;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::book::{BookStep, BookSync};
use crate::config::FapiConfig;
use crate::dialect::{Dialect, ENCODED};
use crate::map;
use crate::rest::{Rest, RestError};
use crate::venue::rest_of;
use crate::wire::{BookTicker, DepthUpdate, EventType, MarkPriceUpdate, StreamFrame};

/// Levels of a published view.
const DEPTH: usize = 50;
/// A market stream that is silent for this long is given up.
const SILENCE: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(5);
/// How often the log tells of streams that end: with many symbols they end together.
const LOSSES_EVERY: Duration = Duration::from_secs(10);
/// More symbols are not followed: each has two connections, and the venues let an address open 300 in five minutes.
const MOST_FOLLOWED: usize = 140;
/// A symbol that the venue does not list is looked for this often.
const UNLISTED: Duration = Duration::from_secs(600);
/// The venue's code for a symbol that it does not list.
const INVALID_SYMBOL: i64 = -1121;

type Views = RwLock<BTreeMap<Symbol, Arc<MarketView>>>;

struct Shared {
    id: FeedId,
    views: Views,
    last_update: AtomicI64,
    errors: AtomicU64,
    /// Ends of streams are logged once in a while, with their number.
    losses: Seldom,
    changes: watch::Sender<u64>,
    clock: Arc<dyn Clock>,
}

/// One exchange's live prices. Dropping it ends its connections.
pub struct FapiFeed {
    shared: Arc<Shared>,
    rest: Arc<Rest>,
    config: FapiConfig,
    runtime: tokio::runtime::Handle,
    /// When the exchange's list was read for the sake of prices.
    listed_at: Arc<tokio::sync::Mutex<Option<tokio::time::Instant>>>,
    followed: Mutex<(BTreeSet<Symbol>, JoinSet<()>)>,
    not_followed: Mutex<BTreeSet<Symbol>>,
}

impl FapiFeed {
    /// Connects and keeps connected; views appear as books come in step. What is followed later runs on the runtime that
    /// this is called on, too.
    pub fn start(
        config: &FapiConfig,
        dialect: &'static Dialect,
        symbols: &[Symbol],
        transport: Arc<dyn HttpTransport>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = Arc::new(Shared {
            id: config.feed.clone(),
            views: RwLock::default(),
            last_update: AtomicI64::new(i64::MIN),
            errors: AtomicU64::new(0),
            losses: Seldom::new(LOSSES_EVERY),
            changes: watch::channel(0).0,
            clock: clock.clone(),
        });
        let rest = Arc::new(rest_of(config, dialect, None, transport, clock));
        let feed = Self {
            shared,
            rest,
            config: config.clone(),
            runtime: tokio::runtime::Handle::current(),
            listed_at: Arc::default(),
            followed: Mutex::default(),
            not_followed: Mutex::default(),
        };
        for symbol in symbols {
            feed.follow(symbol);
        }
        feed
    }
}

impl PriceFeed for FapiFeed {
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
        let session = Session {
            shared: self.shared.clone(),
            rest: self.rest.clone(),
            symbol: symbol.clone(),
            symbols: self.config.symbols.clone(),
            url: self.config.stream_url.trim_end_matches('/').to_owned(),
            egress: self.config.egress.clone(),
            listed_at: self.listed_at.clone(),
            mark: watch::channel(None).0,
            in_step: watch::channel(false).0,
        };
        tasks.spawn_on(session.run(), &self.runtime);
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

struct Session {
    shared: Arc<Shared>,
    rest: Arc<Rest>,
    symbol: Symbol,
    symbols: SymbolMap,
    url: String,
    egress: Arc<Egress>,
    listed_at: Arc<tokio::sync::Mutex<Option<tokio::time::Instant>>>,
    /// The newest mark, and when it came.
    mark: watch::Sender<Option<(MarkPriceUpdate, Timestamp)>>,
    /// Whether the book was in step once: then the venue lists the symbol.
    in_step: watch::Sender<bool>,
}

impl Session {
    async fn run(self) {
        let session = Arc::new(self);
        let marks = session.clone().keep(Session::follow_marks_once);
        tokio::join!(session.keep(Session::follow_book_once), marks);
    }

    /// The contract of the symbol, from the exchange's own list.
    async fn contract(&self) -> Result<Contract, FeedError> {
        if let Some(contract) = self.symbols.contract(&self.symbol) {
            return Ok(contract);
        }
        // Those who wait take what the first one learns.
        let mut listed_at = self.listed_at.lock().await;
        if !self.symbols.is_known() || listed_at.is_none_or(|at| at.elapsed() >= UNLISTED) {
            let info = self.rest.exchange_info(Priority::Hedge).await?;
            map::learn(&self.symbols, &info.symbols);
            *listed_at = Some(tokio::time::Instant::now());
        }
        self.symbols.contract(&self.symbol).ok_or(FeedError::Unlisted)
    }

    /// Connects again and again, waiting longer each time that it fails at once.
    async fn keep<F>(self: Arc<Self>, once: impl Fn(Arc<Self>) -> F)
    where
        F: Future<Output = Result<(), FeedError>>,
    {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let began = tokio::time::Instant::now();
            if let Err(error) = once(self.clone()).await {
                if error.is_unlisted() {
                    tracing::warn!(feed = %self.shared.id, symbol = %self.symbol, "the venue does not list it");
                    tokio::time::sleep(UNLISTED).await;
                    continue;
                }
                self.shared.errors.fetch_add(1, Ordering::Relaxed);
                match self.shared.losses.passes() {
                    Some(more) => {
                        tracing::warn!(feed = %self.shared.id, symbol = %self.symbol, %error, more, "price stream lost");
                    }
                    None => {
                        tracing::debug!(feed = %self.shared.id, symbol = %self.symbol, %error, "price stream lost");
                    }
                }
            }
            if began.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn follow_marks_once(self: Arc<Self>) -> Result<(), FeedError> {
        let result = self.follow_marks().await;
        // An old mark is no mark: views go on without one.
        self.mark.send_replace(None);
        result
    }

    async fn follow_marks(&self) -> Result<(), FeedError> {
        // It cannot close: this holds the other end.
        let _ = self.in_step.subscribe().wait_for(|in_step| *in_step).await;
        let name = stream_name(&self.contract().await?);
        let url = format!("{}{}{name}@markPrice@1s", self.url, self.rest.dialect.streams.marks);
        let mut socket = WebSocket::connect(&url, &self.egress, CONNECT, SILENCE).await?;
        loop {
            let text = socket.next_text().await?;
            let frame: StreamFrame<'_> = serde_json::from_str(&text)?;
            let mark = serde_json::from_str(frame.data.get())?;
            self.mark.send_replace(Some((mark, self.shared.clock.now())));
        }
    }

    async fn follow_book_once(self: Arc<Self>) -> Result<(), FeedError> {
        let result = self.follow_book().await;
        if result.as_ref().is_err_and(FeedError::is_unlisted) {
            self.in_step.send_replace(false);
        }
        self.shared.views.write().unwrap_or_else(PoisonError::into_inner).remove(&self.symbol);
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
        result
    }

    async fn follow_book(&self) -> Result<(), FeedError> {
        let contract = &self.contract().await?;
        let (name, books) = (stream_name(contract), self.rest.dialect.streams.books);
        let url = format!("{}{books}{name}@depth@100ms/{name}@bookTicker", self.url);
        let mut socket = WebSocket::connect(&url, &self.egress, CONNECT, SILENCE).await?;
        let mut book = BookSync::default();
        let mut retry = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut snapshot_at = Some(tokio::time::Instant::now() + Duration::from_millis(50));
        loop {
            let due = snapshot_at.unwrap_or_else(|| tokio::time::Instant::now() + SILENCE);
            tokio::select! {
                biased;
                text = socket.next_text() => {
                    let text = text?;
                    let venue_time = fold_frame(&mut book, &text)?;
                    if let Some((step, venue_time)) = venue_time {
                        if step == BookStep::Gap {
                            self.shared.errors.fetch_add(1, Ordering::Relaxed);
                            self.withdraw();
                            snapshot_at = Some(tokio::time::Instant::now() + retry.next_wait());
                        }
                        self.publish(contract, &book, venue_time);
                    }
                }
                () = tokio::time::sleep_until(due), if snapshot_at.is_some() => {
                    // The stream is read on while the snapshot is on its way: the socket buffers it.
                    let snapshot = match self.rest.depth(&contract.name).await {
                        Ok(snapshot) => snapshot,
                        // The stream goes on; the venue's count begins again soon.
                        Err(RestError::Budget(wait)) => {
                            snapshot_at = Some(tokio::time::Instant::now() + wait.max(retry.next_wait()));
                            continue;
                        }
                        Err(error) => return Err(error.into()),
                    };
                    snapshot_at = if book.on_snapshot(&snapshot) == BookStep::Gap {
                        Some(tokio::time::Instant::now() + retry.next_wait())
                    } else {
                        retry.reset();
                        self.publish(contract, &book, snapshot.transaction_time);
                        None
                    };
                }
            }
        }
    }

    /// The book is out of step: better no price than a wrong one.
    fn withdraw(&self) {
        self.shared.views.write().unwrap_or_else(PoisonError::into_inner).remove(&self.symbol);
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn publish(&self, contract: &Contract, book: &BookSync, venue_time: i64) {
        if book.needs_snapshot() {
            return;
        }
        let (mut bids, mut asks) = book.top(DEPTH);
        if contract.multiplier != Decimal::ONE {
            (bids, asks) = (in_base_units(contract, &bids), in_base_units(contract, &asks));
        }
        let price = |price: Decimal| contract.base_price(price).ok();
        let now = self.shared.clock.now();
        let (mark, mark_at) = (*self.mark.borrow()).unzip();
        let view = MarketView {
            feed: self.shared.id.clone(),
            quote: contract.quote.as_str().into(),
            bids: bids.into(),
            asks: asks.into(),
            mark: mark.and_then(|mark| price(mark.mark.0)),
            mark_at,
            index: mark.and_then(|mark| price(mark.index.0)),
            funding_rate: mark.map(|mark| Ratio::new(mark.funding_rate.0)),
            next_funding: mark.map(|mark| Timestamp::from_millis(mark.next_funding)),
            venue_time: Timestamp::from_millis(venue_time),
            received_at: now,
        };
        self.shared
            .views
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.symbol.clone(), Arc::new(view));
        self.in_step.send_replace(true);
        self.shared.last_update.store(now.as_millis(), Ordering::Relaxed);
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A contract's name in the path of a stream.
fn stream_name(contract: &Contract) -> String {
    utf8_percent_encode(&contract.name.to_lowercase(), ENCODED).to_string()
}

fn in_base_units(contract: &Contract, levels: &[Level]) -> Vec<Level> {
    let convert = |level: &Level| {
        Some(Level {
            price: contract.base_price(level.price.value()).ok()?,
            quantity: contract.base_quantity(level.quantity.value()).ok()?,
        })
    };
    levels.iter().filter_map(convert).collect()
}

/// Folds a combined frame into a book; gives the step and the venue's time, none for other events.
///
/// # Errors
///
/// The decoder's message if the frame cannot be read.
pub fn fold_frame(book: &mut BookSync, text: &str) -> Result<Option<(BookStep, i64)>, serde_json::Error> {
    let frame: StreamFrame<'_> = serde_json::from_str(text)?;
    let data = frame.data.get();
    let kind: EventType<'_> = serde_json::from_str(data)?;
    Ok(match &*kind.e {
        "depthUpdate" => {
            let event: DepthUpdate = serde_json::from_str(data)?;
            let time = event.transaction_time;
            Some((book.on_depth(event), time))
        }
        "bookTicker" => {
            let ticker: BookTicker = serde_json::from_str(data)?;
            book.on_ticker(ticker);
            Some((BookStep::Applied, ticker.transaction_time))
        }
        _ => None,
    })
}

impl FeedError {
    fn is_unlisted(&self) -> bool {
        matches!(self, Self::Unlisted)
            || matches!(self, Self::Rest(RestError::Refused(refusal)) if refusal.code == Some(INVALID_SYMBOL))
    }
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Stream(#[from] WebSocketError),
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error("an event cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the exchange lists no contract for the symbol")]
    Unlisted,
}
