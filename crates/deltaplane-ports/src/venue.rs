//! What the engine asks of a venue, for one account.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_types::{
    AccountSnapshot, ClientOrderId, Decimal, Delta, ExecutionReport, FeedId, Fill, FillCause, Instrument,
    MarketView, Notional, OrderIntent, Price, Quantity, Refusal, Side, SubmitOutcome, Symbol, Timestamp,
    UnknownCause, VenueOrderId,
};
use tokio::sync::{broadcast, watch};

use crate::budget::Priority;
use crate::earnings::Income;
use crate::preflight::Finding;

/// Why a question to a venue has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not reached, or no answer in time.
    #[error("the venue did not answer: {0}")]
    Unreachable(String),
    /// The account's proxy failed.
    #[error("the account's proxy failed: {0}")]
    Proxy(String),
    /// An answer that cannot be read.
    #[error("the venue's answer cannot be read: {0}")]
    Unreadable(String),
    /// The venue refused the question.
    #[error("{0}")]
    Refused(Refusal),
    /// Not asked: the share of the request budget that this priority may use is spent for so long.
    #[error("withheld: the exchange's request budget has no room for it for {} ms", .0.as_millis())]
    Withheld(Duration),
    /// The venue has no such instrument.
    #[error("the venue has no instrument for {0}")]
    UnknownSymbol(Symbol),
}

/// An order that is open at the venue, ours or external.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenOrder {
    /// The symbol.
    pub symbol: Symbol,
    /// The venue's id, unique in the symbol.
    pub venue_order_id: VenueOrderId,
    /// Buys or sells.
    pub side: Side,
    /// What may still trade, base units.
    pub left: Quantity,
    /// It only reduces a position.
    pub reduce_only: bool,
}

/// The wallet balance of one asset as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalletChange {
    /// The venue's name of the asset.
    pub asset: String,
    /// The balance, units of the asset.
    pub balance: Decimal,
    /// Whether a unit of it counts as a unit of the account's quote currency.
    pub is_money: bool,
}

/// The sums of an account as a venue's stream tells them, quote currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountTotals {
    /// Wallet balance without unrealized profit.
    pub wallet_balance: Notional,
    /// Equity: wallet balance and unrealized profit.
    pub equity: Notional,
    /// What new positions may use.
    pub available: Notional,
    /// Initial margin in use.
    pub initial_margin: Notional,
    /// Maintenance margin of positions that share the account's margin, if the venue sends it.
    pub maintenance_margin: Option<Notional>,
}

/// What an account's stream tells.
///
/// `order` is the place of an event in the venue's own order of what happens to one symbol of the account: the
/// transaction time in milliseconds on Binance and Aster, `li` on Pacifica. It is compared within a symbol only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountEvent {
    /// State of one order; may repeat and may come before the order's own acknowledgement.
    Report(ExecutionReport),
    /// What is left of one open order; nothing left where it ended.
    Open(OpenOrder),
    /// One trade, and its place; may repeat.
    Fill(Fill, u64),
    /// A position after everything up to its place, absolute.
    Position {
        /// The symbol.
        symbol: Symbol,
        /// Base units, signed; the net of both sides.
        delta: Delta,
        /// The average entry price, if the venue sends it.
        entry_price: Option<Price>,
        /// Profit not yet realized, quote, if the venue sends it.
        unrealized: Option<Notional>,
        /// Its place.
        order: u64,
        /// The venue's time.
        venue_time: Timestamp,
    },
    /// Wallet balances as they are now; assets that are not named did not change.
    Wallet(Vec<WalletChange>),
    /// The account's sums as they are now.
    Totals(AccountTotals),
    /// Money moved without a trade: funding, a deposit, a withdrawal, a transfer.
    BalanceChanged {
        /// What the wallet gained, where the venue tells, quote.
        amount: Option<Notional>,
        /// What moved it.
        cause: BalanceCause,
    },
    /// A leverage or a margin mode was changed.
    SettingsChanged,
    /// A position changed in a contract that has no symbol: the account is read again in the background.
    UnmappedChanged,
    /// Something happened to positions or money that could not be read: the account must be read again.
    Unreadable,
    /// The stream broke; what happens until [`AccountEvent::Connected`] may never be told.
    Disconnected,
    /// The stream is live again; an order that is waited for must be looked up.
    Connected,
}

/// Whether an account's private stream is proven to tell everything.
///
/// Proven means: connected, every subscription acknowledged, and the other side answered lately to something that only
/// this connection can answer. Silence proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStatus {
    /// Whether a connection is open.
    pub is_connected: bool,
    /// Since when it is proven without a gap; none where it is not.
    pub proven_since: Option<Timestamp>,
}

impl StreamStatus {
    /// Whether it is proven now.
    pub const fn is_proven(&self) -> bool {
        self.proven_since.is_some()
    }
}

/// What moved money without an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalanceCause {
    /// Funding between longs and shorts.
    Funding,
    /// A deposit, a withdrawal or a transfer: money that was not earned or lost.
    Transfer,
    /// Something else, or the venue does not tell.
    Other,
}

/// What a venue says when it is asked for an order by our id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderSighting {
    /// The venue knows it.
    Found(ExecutionReport),
    /// The venue does not show it. Soon after a submission this proves nothing.
    NotFound,
}

/// What is known after asking for a cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The order is canceled.
    Canceled(ExecutionReport),
    /// The venue has no such open order: it may have filled, ended, or never existed. Ask for it.
    NotOpen,
    /// Refused.
    Refused(Refusal),
    /// No answer that can be trusted.
    Unknown(UnknownCause),
}

/// What came of taking an order's place at the venue, so that it cannot be carried out any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalidation {
    /// The order had not been taken in and never will be. A trade before that is still to be ruled out.
    UsedUp,
    /// The venue had taken the request in, whatever became of it: ask for the order.
    Arrived,
    /// The venue has no such means, or it is not known how for this order.
    Unavailable,
    /// No answer that can be trusted.
    Unknown(UnknownCause),
}

/// How orders reach a venue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderEntry {
    /// One HTTP request for each.
    Rest,
    /// Over an open WebSocket, else over HTTP.
    WebSocketThenRest,
}

/// What a venue can do, for readers and for decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a table with a column for each")]
pub struct Capabilities {
    /// The venue, as configurations name it.
    pub venue: &'static str,
    /// How requests are signed.
    pub signing: &'static str,
    /// How orders reach it.
    pub order_entry: OrderEntry,
    /// Whether an order can be asked for by our id.
    pub finds_by_client_id: bool,
    /// When our id may be used again.
    pub client_id_scope: &'static str,
    /// Whether longs and shorts of a symbol can be held apart.
    pub hedge_mode: bool,
    /// Whether an order that may never have arrived can be kept from being carried out.
    pub invalidates: bool,
    /// Whether it cancels what rests by itself when we fall silent.
    pub counts_down: bool,
    /// How long a signed order may still be taken in.
    pub validity: &'static str,
    /// How the book comes.
    pub book: &'static str,
    /// Hours between fundings.
    pub funding: &'static str,
    /// Whether reduce-only orders are free of the smallest notional.
    pub reduce_only_exempt: bool,
    /// Requests or credits of an address in a minute.
    pub budget: &'static str,
}

/// What an order is called at its venue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderName {
    /// The venue's own id.
    pub venue_order_id: VenueOrderId,
    /// The client's name of it, where it is one that we could have given: the venue's own names may be longer.
    pub client_order_id: Option<ClientOrderId>,
    /// Why it exists, as far as the name tells: trades may tell more.
    pub cause: FillCause,
}

/// What of a venue's behavior decides when an order is proven never to have existed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VenueRules {
    /// How long after signing the venue may still take an order in.
    pub validity_window: Duration,
    /// How long after that window an order is looked for before its absence says anything.
    pub proof_slack: Duration,
    /// How far two looks must be apart that prove absence: the venue's reads lag behind its matching by less.
    pub proof_lag: Duration,
    /// Whether [`OrderGateway::invalidate`] can settle an order before its window has passed.
    pub invalidates: bool,
    /// Whether the venue cancels an account's orders by itself when it is not told otherwise in time: see
    /// [`OrderGateway::count_down`].
    pub counts_down: bool,
}

/// How often an account is read by REST in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// While its stream is not proven and nothing happens.
    pub idle: Duration,
    /// While its stream is not proven, after something happened; what happens in between is served by the same reading.
    pub after_event: Duration,
    /// While its stream is proven: each reading only checks what the stream told.
    pub audit: Duration,
}

/// The venue's own name of an account, with the place that the name belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VenueAccount {
    /// Where the venue is asked: names are unique there.
    pub venue: String,
    /// The account's number, code or address.
    pub name: String,
}

/// Reads one account.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait AccountReader: Send + Sync {
    /// Asks the venue for balances, margin and all positions.
    ///
    /// `as_of` of the answer is the time before the question was sent: nothing in it is older, unless the venue's reads
    /// lag behind its matching.
    async fn fetch_account(&self, priority: Priority) -> Result<AccountSnapshot, ReadError>;

    /// Asks for the open orders of all symbols.
    async fn fetch_all_open_orders(&self, priority: Priority) -> Result<Vec<OpenOrder>, ReadError>;

    /// Gives the instrument of a symbol with the account's fees, leverage and margin table, from what is known where it
    /// is known. Tables are read again in the background.
    async fn fetch_instrument(&self, symbol: &Symbol, priority: Priority) -> Result<Instrument, ReadError>;

    /// The instrument as it is known now, without asking.
    fn known_instrument(&self, symbol: &Symbol) -> Option<Instrument>;

    /// Asks for the account's statement since a time: what funding, fees and trades brought. Of a long one it may be the
    /// older part, whole up to its newest row.
    async fn fetch_income(&self, since: Timestamp, priority: Priority) -> Result<Vec<Income>, ReadError>;

    /// Asks where the account's positions stand in the venue's queue for auto-deleveraging: 0 is last, 4 is closed first.
    /// Of two sides in hedge mode the nearer one counts. Empty where the venue does not tell.
    async fn fetch_adl_ranks(&self, priority: Priority) -> Result<BTreeMap<Symbol, u8>, ReadError>;

    /// Follows the account's stream from now on. A receiver that lags must treat it as a disconnect.
    fn subscribe(&self) -> broadcast::Receiver<AccountEvent>;

    /// Whether the account's stream is proven.
    fn stream(&self) -> StreamStatus;

    /// What the venue's clock shows when ours shows this; none where that is not known well enough to time prices.
    fn venue_clock(&self, ours: Timestamp) -> Option<Timestamp>;

    /// How often the account may be read in the background without spending the venue's budget.
    fn pace(&self) -> Pace;

    /// Checks everything that decides whether the account may trade a symbol. A question that the venue does not
    /// answer is a blocking finding.
    async fn preflight(&self, symbol: &Symbol, priority: Priority) -> Vec<Finding>;

    /// The venue's own name of the account, as the newest preflight read it: equal for two keys of one account.
    /// None if the venue did not tell it.
    fn venue_account(&self) -> Option<VenueAccount>;
}

/// Places, cancels and finds orders of one account on one venue.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait OrderGateway: Send + Sync {
    /// Places one order under our `id` and returns what is known of it. Exactly one attempt is made.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not take the order back: its outcome is then unknown.
    async fn submit(&self, id: &ClientOrderId, intent: &OrderIntent, priority: Priority) -> SubmitOutcome;

    /// Cancels the order with our `id`; always with [`Priority::Protect`].
    async fn cancel(&self, id: &ClientOrderId, symbol: &Symbol) -> CancelOutcome;

    /// Keeps an order that may never have arrived from being carried out, where the venue has means for it; always with
    /// [`Priority::Resolve`].
    async fn invalidate(&self, id: &ClientOrderId, symbol: &Symbol) -> Invalidation;

    /// Asks for the order with our `id`, which was not placed before `since`: so far back a venue must be searched
    /// that cannot be asked by our id. A search that had to end earlier is an error, not an absence.
    async fn fetch_order(
        &self,
        id: &ClientOrderId,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<OrderSighting, ReadError>;

    /// Asks for all trades of the account in a symbol since a time, oldest first.
    async fn fetch_fills(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<Fill>, ReadError>;

    /// Asks for the names of the account's orders in a symbol since a time, ended ones too. What no client and no
    /// venue named is left out.
    async fn fetch_order_names(
        &self,
        symbol: &Symbol,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<OrderName>, ReadError>;

    /// Lets the venue cancel **all** orders of the account in a symbol after this time unless it is renewed
    /// before; none ends that. Foreign orders go with ours. Always with [`Priority::Protect`].
    ///
    /// # Errors
    ///
    /// [`ReadError`] if it is not certain that the venue took it; always where [`VenueRules::counts_down`] is false.
    async fn count_down(&self, symbol: &Symbol, after: Option<Duration>) -> Result<(), ReadError>;

    /// Asks for all open orders in a symbol.
    async fn fetch_open_orders(
        &self,
        symbol: &Symbol,
        priority: Priority,
    ) -> Result<Vec<ExecutionReport>, ReadError>;

    /// The venue's evidence rules.
    fn rules(&self) -> VenueRules;
}

/// What a feed says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedStatus {
    /// Whether its connection is up and its book in step.
    pub connected: bool,
    /// When the newest event reached us.
    pub last_update: Option<Timestamp>,
    /// How often it was disconnected, gapped or unreadable.
    pub error_count: u64,
}

/// One venue's live prices.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait PriceFeed: Send + Sync {
    /// Its name.
    fn id(&self) -> &FeedId;

    /// The newest view of a symbol; none while disconnected or out of step.
    fn view(&self, symbol: &Symbol) -> Option<Arc<MarketView>>;

    /// Follows one more symbol from now on; its view comes after a moment. Nothing happens where it is followed already, or
    /// its venue does not list it.
    fn follow(&self, symbol: &Symbol);

    /// Symbols that were asked for and are not followed, because the venue allows no more connections.
    fn not_followed(&self) -> Vec<Symbol>;

    /// What it says of itself.
    fn status(&self) -> FeedStatus;

    /// Changes whenever a view does.
    fn changes(&self) -> watch::Receiver<u64>;
}
