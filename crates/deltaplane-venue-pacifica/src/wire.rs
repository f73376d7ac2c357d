//! The venue's messages, spelled as the venue spells them. Unknown fields are ignored, unknown states are errors.

use deltaplane_types::{Decimal, parse_exact};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer};
use serde_json::value::RawValue;

/// A decimal in a string or a number, read exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub Decimal);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The raw text is kept, so that a JSON number never passes through a float.
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        let text = raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).unwrap_or(raw);
        parse_exact(text).map(Self).map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
    }
}

/// What a refusal says, in whichever of its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The text.
    pub text: String,
    /// The code, where there is one.
    pub code: Option<i64>,
    /// The slug, where there is one.
    pub slug: Option<String>,
}

impl Failure {
    /// Reads an object with `error`, or a bare string; none for web pages and everything else.
    pub fn read(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Body {
            error: Option<String>,
            code: Option<i64>,
            error_id: Option<String>,
        }
        if let Ok(text) = serde_json::from_slice::<String>(body) {
            return Some(Self { text, code: None, slug: None });
        }
        let body: Body = serde_json::from_slice(body).ok()?;
        Some(Self { text: body.error?, code: body.code, slug: body.error_id })
    }
}

/// A successful answer with what stands beside the data.
#[derive(Debug)]
pub struct Answer<T> {
    /// The data.
    pub data: T,
    /// Counter of the newest event in it, if the venue sends it.
    pub last_id: Option<u64>,
    /// Where the next page begins, where there is one.
    pub next_cursor: Option<String>,
}

/// Reads an answer, in its envelope or bare. An answer that says `success: false`, outside or inside, is none.
///
/// # Errors
///
/// The decoder's message, or what the answer says.
pub fn answer<T: DeserializeOwned>(body: &[u8]) -> Result<Answer<T>, String> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        success: Option<bool>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
        error: Option<String>,
        last_order_id: Option<u64>,
        next_cursor: Option<String>,
        has_more: Option<bool>,
    }
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let read = |text: &str| serde_json::from_str::<T>(text).map_err(|error| error.to_string());
    let envelope =
        serde_json::from_str::<Envelope<'_>>(text).ok().filter(|envelope| envelope.success.is_some());
    let Some(envelope) = envelope else {
        return Ok(Answer { data: read(text)?, last_id: None, next_cursor: None });
    };
    if envelope.success != Some(true) {
        return Err(envelope.error.unwrap_or_else(|| "the answer says that it failed".to_owned()));
    }
    let data = envelope.data.map_or("null", RawValue::get);
    if let Ok(inner) = serde_json::from_str::<Envelope<'_>>(data)
        && inner.success == Some(false)
    {
        return Err(inner.error.unwrap_or_else(|| "the inner answer says that it failed".to_owned()));
    }
    let more = envelope.has_more == Some(true);
    Ok(Answer {
        data: read(data)?,
        last_id: envelope.last_order_id,
        next_cursor: envelope.next_cursor.filter(|cursor| more && !cursor.is_empty()),
    })
}

/// One market of `GET /info`.
#[derive(Debug, Clone, Deserialize)]
pub struct Market {
    /// The name, case-sensitive.
    pub symbol: String,
    /// Step of prices.
    pub tick_size: Number,
    /// Step of amounts.
    pub lot_size: Number,
    /// Highest leverage.
    pub max_leverage: u32,
    /// Smallest order, USD.
    pub min_order_size: Number,
    /// Largest order, USD.
    pub max_order_size: Number,
    /// Whether positions of the market always have margin of their own.
    #[serde(default)]
    pub isolated_only: bool,
    /// `perpetual` or `spot`; rows of old have none and are perpetual.
    pub instrument_type: Option<String>,
}

impl Market {
    /// Whether it is a perpetual future.
    pub fn is_perpetual(&self) -> bool {
        self.instrument_type.as_deref().unwrap_or("perpetual") == "perpetual" && !self.symbol.contains('-')
    }

    /// Whether it is a spot market; rows of old tell it by their names only.
    pub fn is_spot(&self) -> bool {
        self.instrument_type.as_deref() == Some("spot") || self.symbol.contains('-')
    }
}

/// One row of `GET /info/prices` and of the channel `prices`.
#[derive(Debug, Clone, Deserialize)]
pub struct PriceRow {
    /// The market.
    pub symbol: String,
    /// Funding rate of the coming hour.
    pub next_funding: Number,
    /// Mark price.
    pub mark: Number,
    /// Oracle price.
    pub oracle: Number,
    /// When, milliseconds.
    pub timestamp: i64,
}

/// Which market a row of prices is about.
#[derive(Debug, Deserialize)]
pub struct OfRow {
    /// The market.
    pub symbol: String,
}

/// One level of a book.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct BookLevel {
    /// Price.
    pub p: Number,
    /// Amount.
    pub a: Number,
}

/// `GET /book` and the channel `book`: always whole.
#[derive(Debug, Clone, Deserialize)]
pub struct Book {
    /// The market.
    pub s: String,
    /// Bids and asks, best first.
    pub l: (Vec<BookLevel>, Vec<BookLevel>),
    /// When, milliseconds.
    pub t: i64,
    /// Counter of what happened.
    pub li: Option<u64>,
}

/// The channel `bbo`. A side that is empty is zero.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct BestPrices {
    /// Best bid.
    #[serde(rename = "b")]
    pub bid: Number,
    /// What rests there.
    #[serde(rename = "B")]
    pub bid_amount: Number,
    /// Best ask.
    #[serde(rename = "a")]
    pub ask: Number,
    /// What rests there.
    #[serde(rename = "A")]
    pub ask_amount: Number,
    /// When, milliseconds.
    pub t: i64,
}

/// The market of a `bbo` message.
#[derive(Debug, Deserialize)]
pub struct OfMarket {
    /// The market.
    pub s: String,
}

/// `GET /account`.
#[derive(Clone, Debug, Deserialize)]
pub struct Account {
    /// Settled USDC.
    pub balance: Number,
    /// Everything, with unrealized profit.
    pub account_equity: Number,
    /// What backs cross positions.
    pub cross_account_equity: Option<Number>,
    /// What new positions may use.
    pub available_to_spend: Number,
    /// Margin in use.
    pub total_margin_used: Number,
    /// Maintenance margin of cross positions.
    pub cross_mmr: Option<Number>,
    /// Fee rate of an order that rests.
    pub maker_fee: Option<Number>,
    /// Fee rate of an order that takes.
    pub taker_fee: Option<Number>,
    /// Spot assets.
    #[serde(default)]
    pub spot_balances: Vec<SpotBalance>,
}

/// One spot asset of an account.
#[derive(Clone, Debug, Deserialize)]
pub struct SpotBalance {
    /// The asset.
    pub symbol: String,
    /// How much.
    pub amount: Number,
}

/// Margin settings of one market.
#[derive(Debug, Clone, Deserialize)]
pub struct MarginSetting {
    /// The market.
    pub symbol: String,
    /// Whether its margin is its own.
    pub isolated: bool,
    /// The leverage.
    pub leverage: u32,
}

/// `GET /account/settings` as an object; of old it was the array itself.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// Markets whose settings differ from the defaults.
    #[serde(default)]
    pub margin_settings: Vec<MarginSetting>,
}

/// One row of `GET /positions`.
#[derive(Debug, Deserialize)]
pub struct PositionRow {
    /// The market.
    pub symbol: String,
    /// Long is a bid.
    pub side: BookSide,
    /// Not signed.
    pub amount: Number,
    /// Average entry price.
    pub entry_price: Number,
    /// Margin of its own where isolated.
    pub margin: Option<Number>,
    /// Whether its margin is its own.
    #[serde(default)]
    pub isolated: bool,
    /// Liquidation price; may be missing or below zero.
    pub liquidation_price: Option<Number>,
    /// When it changed.
    pub updated_at: i64,
}

/// Sides of orders and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BookSide {
    /// Buys; a long position.
    Bid,
    /// Sells; a short position.
    Ask,
}

/// Sides of trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TradeSide {
    /// Buys.
    OpenLong,
    /// Sells.
    OpenShort,
    /// Sells.
    CloseLong,
    /// Buys.
    CloseShort,
}

/// States of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderState {
    /// Nothing traded.
    Open,
    /// Some traded.
    PartiallyFilled,
    /// All traded.
    Filled,
    /// Ended; what traded may be part of it.
    Cancelled,
    /// Refused after it was taken in.
    Rejected,
    /// One that is not known here, as stop orders have: of an order of ours it is an error, not a guess.
    #[serde(other)]
    Unknown,
}

/// Why a trade happened; an unknown word is kept as it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TradeCause {
    /// Somebody's order.
    Normal,
    /// Margin ran out.
    MarketLiquidation,
    /// Margin ran out further.
    BackstopLiquidation,
    /// Closed to cover another trader's loss.
    Settlement,
    /// The same, in another word.
    AdlLiquidation,
    /// Not known here.
    #[serde(other)]
    Other,
}

/// One row of `GET /orders`.
#[derive(Debug, Deserialize)]
pub struct OpenOrder {
    /// The venue's id.
    pub order_id: u64,
    /// Ours.
    pub client_order_id: Option<String>,
    /// The market.
    pub symbol: String,
    /// What traded.
    pub filled_amount: Number,
    /// When it changed.
    pub updated_at: i64,
    /// Side.
    pub side: BookSide,
    /// Quantity of the order.
    pub initial_amount: Number,
    /// What was canceled of it.
    #[serde(default)]
    pub cancelled_amount: Option<Number>,
    /// Whether it only reduces.
    #[serde(default)]
    pub reduce_only: bool,
}

/// One row of `GET /orders/history`.
#[derive(Debug, Deserialize)]
pub struct PastOrder {
    /// The venue's id.
    pub order_id: u64,
    /// Ours.
    pub client_order_id: Option<String>,
    /// The market.
    pub symbol: String,
    /// Where it stands.
    pub order_status: OrderState,
    /// What traded.
    pub filled_amount: Number,
    /// Average price; zero where nothing traded, missing in some answers.
    pub average_filled_price: Option<Number>,
    /// When it was placed.
    pub created_at: i64,
    /// When it changed.
    pub updated_at: i64,
}

/// One row of `GET /trades/history`.
#[derive(Debug, Deserialize)]
pub struct PastTrade {
    /// The trade.
    pub history_id: u64,
    /// Its order.
    pub order_id: u64,
    /// Our name for the order.
    pub client_order_id: Option<String>,
    /// The market.
    pub symbol: String,
    /// How much.
    pub amount: Number,
    /// At what price.
    pub price: Number,
    /// What was paid.
    pub fee: Number,
    /// What it realized, less the fee.
    pub pnl: Option<Number>,
    /// Which way.
    pub side: TradeSide,
    /// When.
    pub created_at: i64,
    /// Why.
    pub cause: Option<TradeCause>,
}

/// What a statement needs of a row of `GET /trades/history`, of whatever market.
#[derive(Debug, Deserialize)]
pub struct PaidTrade {
    /// The trade.
    pub history_id: u64,
    /// The market.
    pub symbol: String,
    /// What was paid.
    pub fee: Number,
    /// What it realized, less the fee.
    pub pnl: Option<Number>,
    /// When.
    pub created_at: i64,
}

/// One row of `GET /funding/history`: what the account was paid.
#[derive(Debug, Deserialize)]
pub struct PaidFunding {
    /// Its number.
    pub history_id: u64,
    /// The market.
    pub symbol: String,
    /// What was received; negative was paid.
    pub payout: Number,
    /// When.
    pub created_at: i64,
}

/// One row of `GET /funding_rate/history`.
#[derive(Clone, Debug, Deserialize)]
pub struct PastFunding {
    /// The rate that was paid.
    pub funding_rate: Number,
    /// When.
    pub created_at: i64,
}

/// The answer to a placement.
#[derive(Debug, Deserialize)]
pub struct Placed {
    /// The venue's id.
    pub order_id: u64,
}

/// A frame of the WebSocket: a channel's data, or a reply.
#[derive(Debug, Deserialize)]
pub struct Frame<'a> {
    /// The channel.
    pub channel: Option<String>,
    /// What it tells.
    #[serde(borrow)]
    pub data: Option<&'a RawValue>,
    /// Counter of what happened.
    pub li: Option<u64>,
    /// The id of the request that this replies to.
    pub id: Option<String>,
    /// The reply's code.
    pub code: Option<i64>,
    /// The reply's text where it failed.
    pub err: Option<String>,
    /// The same, as REST spells it.
    pub error: Option<String>,
    /// What is left of the credits; told only to who has an API config key.
    pub rl: Option<RateLeft>,
}

/// What is left of the credits, in tenths.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct RateLeft {
    /// Left.
    pub r: u64,
    /// In a window.
    pub q: u64,
    /// Seconds until they are renewed.
    pub t: u64,
}

/// The parameters of a subscription, as an acknowledgement repeats them.
#[derive(Debug, Deserialize)]
pub struct Subscribed {
    /// The channel.
    pub source: String,
    /// The market, where it is of one.
    pub symbol: Option<String>,
}

/// One row of `account_order_updates`.
#[derive(Debug, Deserialize)]
pub struct OrderUpdate {
    /// The venue's id.
    pub i: u64,
    /// Ours.
    #[serde(rename = "I")]
    pub client_order_id: Option<String>,
    /// The market.
    pub s: String,
    /// Average price of what traded.
    pub p: Option<Number>,
    /// What traded.
    pub f: Number,
    /// Where it stands.
    pub os: OrderState,
    /// When.
    pub ut: i64,
    /// Side.
    pub d: BookSide,
    /// Quantity of the order.
    pub a: Number,
    /// Whether it only reduces.
    #[serde(default)]
    pub r: bool,
}

/// One row of `account_trades`.
#[derive(Debug, Deserialize)]
pub struct TradeUpdate {
    /// The trade.
    pub h: u64,
    /// Its order.
    pub i: u64,
    /// Our name for the order.
    #[serde(rename = "I")]
    pub client_order_id: Option<String>,
    /// The market.
    pub s: String,
    /// Price.
    pub p: Number,
    /// Amount.
    pub a: Number,
    /// Which way.
    pub ts: TradeSide,
    /// Why.
    pub tc: TradeCause,
    /// What was paid.
    pub f: Number,
    /// When.
    pub t: i64,
    /// The place in the exchange's order.
    #[serde(default)]
    pub li: Option<u64>,
}

/// One row of `account_positions`.
#[derive(Debug, Deserialize)]
pub struct PositionUpdate {
    /// The market.
    pub s: String,
    /// Long is a bid.
    pub d: BookSide,
    /// Not signed.
    pub a: Number,
    /// When.
    pub t: i64,
    /// Entry price.
    #[serde(default)]
    pub p: Option<Number>,
}

/// `account_info`, as far as it is used.
#[derive(Debug, Deserialize)]
pub struct AccountInfo {
    /// Settled USDC.
    pub b: Number,
    /// Equity.
    #[serde(default)]
    pub ae: Option<Number>,
    /// What may be spent.
    #[serde(rename = "as", default)]
    pub available: Option<Number>,
    /// Initial margin in use.
    #[serde(default)]
    pub mu: Option<Number>,
    /// Maintenance margin of positions that share the account's margin.
    #[serde(default)]
    pub cm: Option<Number>,
}

/// The data of a reply to a placement or cancel.
#[derive(Debug, Deserialize)]
pub struct PlacedReply {
    /// The venue's id; missing for a cancel by our id.
    pub i: Option<u64>,
}
