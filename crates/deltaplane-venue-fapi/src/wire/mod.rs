//! The venue's messages, spelled as the venue spells them. Unknown fields are ignored, unknown states are errors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use deltaplane_net::Rows;
use deltaplane_types::{Decimal, parse_exact};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// A decimal that the venue writes as a string or as a number, read exactly. An empty string is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub Decimal);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The raw text is kept, so that a JSON number never passes through a float.
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?.get();
        let text = raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).unwrap_or(raw);
        parse_exact(text).map(Self).map_err(|error| de::Error::custom(format_args!("{text:?}: {error}")))
    }
}

/// A decimal in a string, in messages where speed counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text(pub Decimal);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal in a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                parse_exact(text).map(Text).map_err(|error| E::custom(format_args!("{text:?}: {error}")))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// The body of a refusal.
#[derive(Debug, Deserialize)]
pub struct ErrorBody<'a> {
    /// The code.
    pub code: i64,
    /// The text.
    #[serde(borrow)]
    pub msg: Cow<'a, str>,
}

/// `GET /fapi/v1/time`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerTime {
    /// Milliseconds.
    pub server_time: i64,
}

/// `GET /fapi/v1/exchangeInfo`, as far as it is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExchangeInfo {
    /// Every instrument.
    pub symbols: Rows<SymbolInfo>,
    /// What an address and an account may ask.
    #[serde(default)]
    pub rate_limits: Vec<RateLimit>,
}

/// One limit of requests or orders.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// `REQUEST_WEIGHT` or `ORDERS`.
    #[serde(default)]
    pub rate_limit_type: String,
    /// `SECOND` or `MINUTE`.
    #[serde(default)]
    pub interval: String,
    /// How many intervals a window has.
    #[serde(default)]
    pub interval_num: u64,
    /// What a window allows.
    #[serde(default)]
    pub limit: u64,
}

impl RateLimit {
    fn seconds(&self) -> Option<u64> {
        let unit = match self.interval.as_str() {
            "SECOND" => 1,
            "TEN_SECONDS" => 10,
            "MINUTE" => 60,
            _ => return None,
        };
        Some(self.interval_num.saturating_mul(unit))
    }

    /// Whether it limits the weight of a minute.
    pub fn is_weight_of_a_minute(&self) -> bool {
        self.rate_limit_type == "REQUEST_WEIGHT" && self.seconds() == Some(60)
    }

    /// Whether it limits the orders of so many seconds.
    pub fn is_orders_of(&self, seconds: u64) -> bool {
        self.rate_limit_type == "ORDERS" && self.seconds() == Some(seconds)
    }
}

/// One instrument.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SymbolInfo {
    /// The name.
    pub symbol: String,
    /// `TRADING` or a state in which it is not traded.
    pub status: Option<String>,
    /// `PERPETUAL` or another kind.
    pub contract_type: Option<String>,
    /// What it counts: `BTC`, `1000PEPE`.
    pub base_asset: Option<String>,
    /// What it is settled in.
    pub margin_asset: Option<String>,
    /// When it is delivered, milliseconds: in 2100 where it is not.
    #[serde(default)]
    pub delivery_date: Option<i64>,
    /// The rules.
    pub filters: Option<Rows<Filter>>,
}

/// One rule; kinds that are not used are `Other`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "filterType", rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum Filter {
    /// Steps of prices.
    PriceFilter {
        /// The step.
        tick_size: String,
    },
    /// Steps of quantities.
    LotSize {
        /// The smallest.
        min_qty: String,
        /// The largest.
        max_qty: String,
        /// The step.
        step_size: String,
    },
    /// Smallest notional.
    MinNotional {
        /// Quote.
        notional: String,
    },
    /// Price band.
    PercentPrice {
        /// A buy may not be above mark times this.
        multiplier_up: String,
        /// A sell may not be below mark times this.
        multiplier_down: String,
    },
    /// Not used.
    #[serde(other)]
    Other,
}

/// `GET /fapi/v1/depth`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DepthSnapshot {
    /// Id of the newest update in it.
    pub last_update_id: u64,
    /// Time of the newest transaction.
    #[serde(rename = "T")]
    pub transaction_time: i64,
    /// Bids.
    pub bids: Vec<(Text, Text)>,
    /// Asks.
    pub asks: Vec<(Text, Text)>,
}

/// Reads a `GET /fapi/v1/depth`.
///
/// # Errors
///
/// The decoder's message.
pub fn depth_snapshot(text: &str) -> Result<DepthSnapshot, serde_json::Error> {
    serde_json::from_str(text)
}

/// An order of `openOrders`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestingOrder {
    /// The instrument.
    pub symbol: String,
    /// The venue's id.
    pub order_id: u64,
    /// Which way.
    pub side: WireSide,
    /// Quantity of the order.
    pub orig_qty: Number,
    /// All that traded.
    pub executed_qty: Number,
    /// Whether it only reduces.
    #[serde(default)]
    pub reduce_only: bool,
}

/// The answer to a placement, cancel or query.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderAnswer {
    /// The venue's id.
    pub order_id: u64,
    /// Ours.
    pub client_order_id: String,
    /// Where it stands.
    pub status: OrderState,
    /// What traded.
    pub executed_qty: Number,
    /// Average price; only in answers to queries.
    pub avg_price: Option<Number>,
    /// When it changed.
    pub update_time: i64,
}

/// What `GET allOrders` tells of an order, as far as its name goes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderName {
    /// Its number.
    pub order_id: u64,
    /// Its client's, or the venue's own where it closed a position.
    pub client_order_id: String,
}

/// States of an order. A new one is an error, not a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OrderState {
    /// Nothing traded.
    New,
    /// Some traded.
    PartiallyFilled,
    /// All traded.
    Filled,
    /// Canceled.
    Canceled,
    /// Refused after it was taken in.
    Rejected,
    /// Ended by its terms.
    Expired,
    /// Ended to prevent a trade with oneself.
    ExpiredInMatch,
    /// A liquidation at work.
    NewInsurance,
    /// A deleveraging at work.
    NewAdl,
}

/// Sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WireSide {
    /// Buys.
    Buy,
    /// Sells.
    Sell,
}

/// `GET /fapi/v3/account`, as far as it is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Initial margin of positions and orders.
    pub total_initial_margin: Number,
    /// Maintenance margin.
    pub total_maint_margin: Number,
    /// Wallet without unrealized profit.
    pub total_wallet_balance: Number,
    /// Unrealized profit.
    pub total_unrealized_profit: Number,
    /// What new positions may use.
    pub available_balance: Number,
    /// Every asset.
    #[serde(default)]
    pub assets: Rows<AssetBalance>,
    /// Held or ordered instruments.
    pub positions: Rows<AccountPosition>,
}

/// One asset of `GET /fapi/v3/account`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssetBalance {
    /// Its name.
    pub asset: String,
    /// What of it is in the wallet.
    pub wallet_balance: Number,
}

/// One row of `GET /fapi/v3/balance`, as far as it is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Balance {
    /// The account's unique code; empty for accounts that are not in use.
    #[serde(default)]
    pub account_alias: String,
}

/// One row of `GET /fapi/v1/fundingRate`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FundingRate {
    /// The rate of one settlement.
    pub funding_rate: Number,
}

/// One position of `GET /fapi/v3/account`: it belongs to the same moment as the margins beside it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountPosition {
    /// The instrument.
    pub symbol: String,
    /// `BOTH`, `LONG` or `SHORT`.
    pub position_side: String,
    /// Signed quantity.
    pub position_amt: Number,
    /// Unrealized profit.
    pub unrealized_profit: Number,
    /// Signed notional at the mark price.
    pub notional: Number,
    /// Margin of position and orders.
    pub initial_margin: Number,
    /// Maintenance margin.
    pub maint_margin: Number,
    /// Wallet of its own, zero in cross mode.
    pub isolated_wallet: Option<Number>,
    /// Whether its margin is its own; not told by every exchange.
    pub isolated: Option<bool>,
    /// The leverage; not told by every exchange.
    pub leverage: Option<Number>,
    /// When it changed.
    pub update_time: i64,
}

/// One row of `GET /fapi/v3/positionRisk`: what the account's own answer leaves out.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PositionRisk {
    /// The instrument.
    pub symbol: String,
    /// `BOTH`, `LONG` or `SHORT`.
    pub position_side: String,
    /// Signed quantity.
    pub position_amt: Number,
    /// Average entry price, zero where flat.
    pub entry_price: Number,
    /// Liquidation price, zero where there is none.
    pub liquidation_price: Number,
    /// The leverage; not told by every exchange.
    pub leverage: Option<Number>,
    /// `cross` or `isolated`; not told by every exchange.
    pub margin_type: Option<String>,
    /// Place in the queue for auto-deleveraging, 4 is first; not told by every exchange.
    pub adl: Option<u8>,
}

/// One row of `GET /fapi/v1/adlQuantile`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdlQuantile {
    /// The instrument.
    pub symbol: String,
    /// By side of the position, `HEDGE` beside them: 4 is closed first.
    pub adl_quantile: BTreeMap<String, u8>,
}

/// Its answer; where nothing is held it may be an empty object.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum AdlQuantiles {
    /// The rows.
    Rows(Vec<AdlQuantile>),
    /// None.
    None {},
}

/// One row of `GET /fapi/v1/symbolConfig`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SymbolConfig {
    /// The instrument.
    pub symbol: String,
    /// Its leverage.
    pub leverage: Number,
    /// `CROSSED` or `ISOLATED`.
    pub margin_type: Option<String>,
}

/// What a key may do, in whatever answer tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountRights {
    /// Whether it may trade.
    pub can_trade: Option<bool>,
    /// Whether it may take money out.
    pub can_withdraw: Option<bool>,
    /// Whether several assets stand behind positions.
    pub multi_assets_margin: Option<bool>,
}

/// An agent that may sign for the account.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its address.
    pub agent_address: String,
    /// When its right ends, milliseconds.
    pub expired: i64,
    /// Whether it may trade perpetuals.
    pub can_perp_trade: bool,
    /// Whether it may take money out.
    pub can_withdraw: bool,
}

/// One row of `GET /fapi/v1/income`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IncomeRow {
    /// The venue's name of the contract; empty where none is meant.
    pub symbol: String,
    /// What it is: `FUNDING_FEE`, `COMMISSION`, `REALIZED_PNL` and many others.
    pub income_type: String,
    /// What the account gained.
    pub income: Number,
    /// In what.
    pub asset: String,
    /// When.
    pub time: i64,
    /// Its number, of its own in each type.
    pub tran_id: Name,
    /// The trade, where there is one.
    #[serde(default)]
    pub trade_id: Option<Name>,
}

/// A name that the venue writes as a string or as a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?.get();
        Ok(Self(raw.trim_matches('"').to_owned()))
    }
}

/// `GET /fapi/v1/commissionRate`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommissionRate {
    /// Fee rate of an order that rests.
    pub maker_commission_rate: Number,
    /// Fee rate of an order that takes.
    pub taker_commission_rate: Number,
}

/// One element of `GET /fapi/v1/leverageBracket`.
#[derive(Clone, Debug, Deserialize)]
pub struct LeverageBracket {
    /// The instrument.
    pub symbol: String,
    /// The steps.
    pub brackets: Vec<Bracket>,
}

/// One step of the margin table; JSON numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bracket {
    /// Highest leverage.
    pub initial_leverage: Number,
    /// Up to this notional.
    pub notional_cap: Number,
    /// From this notional.
    pub notional_floor: Number,
    /// Maintenance rate.
    pub maint_margin_ratio: Number,
    /// Deduction.
    pub cum: Number,
}

/// `GET /fapi/v1/positionSide/dual`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PositionMode {
    /// Whether longs and shorts are held apart.
    pub dual_side_position: bool,
}

/// One row of `GET /fapi/v1/fundingInfo`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FundingInfo {
    /// The instrument.
    pub symbol: String,
    /// Hours between fundings; a number, a text or nothing.
    pub funding_interval_hours: Option<Number>,
}

/// One row of `GET /fapi/v1/userTrades`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserTrade {
    /// The trade.
    pub id: u64,
    /// Its order.
    pub order_id: u64,
    /// Which way.
    pub side: WireSide,
    /// The price.
    pub price: Number,
    /// The quantity.
    pub qty: Number,
    /// The fee.
    pub commission: Number,
    /// The asset that paid it.
    #[serde(default)]
    pub commission_asset: Option<String>,
    /// When.
    pub time: i64,
}

/// `PUT listenKey`; older answers name no key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtendedKey {
    /// The key.
    #[serde(default)]
    pub listen_key: Option<String>,
}

/// `POST /fapi/v1/listenKey`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenKey {
    /// The key: its owner reads the account's stream.
    pub listen_key: String,
}

/// A frame of a combined stream.
#[derive(Debug, Deserialize)]
pub struct StreamFrame<'a> {
    /// The event's JSON.
    #[serde(borrow)]
    pub data: &'a serde_json::value::RawValue,
}

/// What every event begins with.
#[derive(Debug, Deserialize)]
pub struct EventType<'a> {
    /// The type.
    #[serde(borrow)]
    pub e: Cow<'a, str>,
}

/// `depthUpdate`.
#[derive(Debug, Deserialize)]
pub struct DepthUpdate {
    /// Time of the transaction.
    #[serde(rename = "T")]
    pub transaction_time: i64,
    /// First update in it.
    #[serde(rename = "U")]
    pub first_id: u64,
    /// Last update in it.
    #[serde(rename = "u")]
    pub last_id: u64,
    /// Last update of the event before.
    pub pu: u64,
    /// Bids; zero removes.
    #[serde(rename = "b")]
    pub bids: Vec<(Text, Text)>,
    /// Asks; zero removes.
    #[serde(rename = "a")]
    pub asks: Vec<(Text, Text)>,
}

/// `bookTicker`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct BookTicker {
    /// Id of the book's update.
    #[serde(rename = "u")]
    pub update_id: u64,
    /// Time of the transaction.
    #[serde(rename = "T")]
    pub transaction_time: i64,
    /// Best bid.
    #[serde(rename = "b")]
    pub bid_price: Text,
    /// What rests there.
    #[serde(rename = "B")]
    pub bid_quantity: Text,
    /// Best ask.
    #[serde(rename = "a")]
    pub ask_price: Text,
    /// What rests there.
    #[serde(rename = "A")]
    pub ask_quantity: Text,
}

/// `markPriceUpdate`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct MarkPriceUpdate {
    /// Mark price.
    #[serde(rename = "p")]
    pub mark: Text,
    /// Index price.
    #[serde(rename = "i")]
    pub index: Text,
    /// Funding rate of the current interval.
    #[serde(rename = "r")]
    pub funding_rate: Text,
    /// When it is charged.
    #[serde(rename = "T")]
    pub next_funding: i64,
}

/// `ORDER_TRADE_UPDATE`.
#[derive(Debug, Deserialize)]
pub struct OrderTradeUpdate {
    /// The order.
    pub o: OrderEvent,
}

/// The order of an `ORDER_TRADE_UPDATE`.
#[derive(Debug, Deserialize)]
pub struct OrderEvent {
    /// The instrument.
    pub s: String,
    /// Our id; `autoclose-…` and `adl_autoclose` are the venue's own.
    pub c: String,
    /// Which way.
    #[serde(rename = "S")]
    pub side: WireSide,
    /// Where it stands.
    #[serde(rename = "X")]
    pub status: OrderState,
    /// The venue's id.
    pub i: u64,
    /// Quantity of this trade.
    #[serde(rename = "l")]
    pub last_quantity: Number,
    /// All that traded.
    #[serde(rename = "z")]
    pub filled: Number,
    /// Price of this trade.
    #[serde(rename = "L")]
    pub last_price: Number,
    /// Average price.
    #[serde(rename = "ap")]
    pub average_price: Number,
    /// Fee, absent where there is none.
    #[serde(rename = "n")]
    pub commission: Option<Number>,
    /// The asset that paid it.
    #[serde(rename = "N", default)]
    pub commission_asset: Option<String>,
    /// When.
    #[serde(rename = "T")]
    pub time: i64,
    /// The trade, zero where there is none.
    pub t: u64,
    /// Quantity of the order.
    #[serde(rename = "q", default)]
    pub quantity: Option<Number>,
    /// Whether it only reduces.
    #[serde(rename = "R", default)]
    pub reduce_only: bool,
}

/// `ACCOUNT_UPDATE`.
#[derive(Debug, Deserialize)]
pub struct AccountUpdate {
    /// Time of the transaction.
    #[serde(rename = "T")]
    pub time: i64,
    /// What changed.
    pub a: AccountChange,
}

/// What an `ACCOUNT_UPDATE` tells.
#[derive(Debug, Deserialize)]
pub struct AccountChange {
    /// Why: `ORDER`, `FUNDING_FEE`, `DEPOSIT` and others.
    #[serde(rename = "m", default)]
    pub reason: String,
    /// Balances that changed.
    #[serde(rename = "B", default)]
    pub balances: Vec<BalanceEvent>,
    /// Positions that changed, absolute.
    #[serde(rename = "P", default)]
    pub positions: Vec<PositionEvent>,
}

/// One balance of an `ACCOUNT_UPDATE`.
#[derive(Debug, Deserialize)]
pub struct BalanceEvent {
    /// The asset.
    #[serde(default)]
    pub a: String,
    /// Change beside profit and fees.
    pub bc: Option<Number>,
    /// Wallet balance.
    pub wb: Option<Number>,
}

/// One position of an `ACCOUNT_UPDATE`.
#[derive(Debug, Deserialize)]
pub struct PositionEvent {
    /// The instrument.
    pub s: String,
    /// Signed quantity.
    pub pa: Number,
    /// Entry price.
    pub ep: Option<Number>,
    /// Profit not yet realized.
    pub up: Option<Number>,
    /// `BOTH`, `LONG` or `SHORT`.
    pub ps: String,
}
