//! What a simulated exchange is made of, as its TOML file says it.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, parse_exact};
use serde::{Deserialize, Deserializer};

use crate::dialect::Dialect;

/// A decimal written as a TOML string, read exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact(pub Decimal);

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_exact(&text).map(Self).map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    }
}

/// One exchange.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExchangeConfig {
    /// Its instruments; those of the dialect where none is named.
    #[serde(default, rename = "symbol")]
    pub symbols: Vec<SymbolConfig>,
    /// Its accounts.
    #[serde(default, rename = "account")]
    pub accounts: Vec<AccountConfig>,
    /// What an asset is worth as margin, bid and ask, where all assets are margin; 1 where none is named.
    #[serde(default)]
    pub asset_rates: BTreeMap<String, [Exact; 2]>,
    /// Malformed rows.
    #[serde(default, rename = "odd_row")]
    pub odd_rows: Vec<OddRow>,
}

/// A row that a list of the exchange has as it is written here, in the place of one with the same name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OddRow {
    /// Which list.
    pub list: OddList,
    /// The row, JSON.
    pub row: JsonText,
}

/// Lists that may have odd rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OddList {
    /// What the exchange lists: `exchangeInfo`, `/info`.
    Instruments,
    /// The positions of an account's answer.
    Positions,
}

/// JSON written as a TOML string.
#[derive(Clone, Debug)]
pub struct JsonText(pub serde_json::Value);

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text)
            .map(Self)
            .map_err(|error| serde::de::Error::custom(format!("{text:?}: {error}")))
    }
}

impl OddRow {
    /// Puts odd rows of a list among its rows.
    pub(crate) fn put(odd: &[Self], list: OddList, rows: &mut Vec<serde_json::Value>) {
        for odd in odd.iter().filter(|odd| odd.list == list) {
            let name = &odd.row.0["symbol"];
            match rows.iter_mut().find(|row| name.is_string() && row["symbol"] == *name) {
                Some(row) => *row = odd.row.0.clone(),
                None => rows.push(odd.row.0.clone()),
            }
        }
    }
}

/// One instrument with the venue's filters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymbolConfig {
    /// The venue's name, `BTCUSDT`.
    pub name: String,
    /// The base asset.
    pub base: String,
    /// Step of prices.
    pub tick_size: Exact,
    /// Step of quantities.
    pub step_size: Exact,
    /// Smallest quantity.
    pub min_quantity: Exact,
    /// Largest quantity of a market order.
    pub market_max_quantity: Exact,
    /// Smallest notional.
    pub min_notional: Exact,
    /// Where the synthetic market starts.
    pub start_price: Exact,
    /// Funding rate of each interval.
    #[serde(default = "default_funding")]
    pub funding_rate: Exact,
    /// Hours between fundings.
    #[serde(default = "default_interval")]
    pub funding_interval_hours: u32,
    /// The highest leverage.
    #[serde(default = "default_max_leverage")]
    pub max_leverage: u32,
    /// Whether it trades; not where it is being settled.
    #[serde(default = "default_trading")]
    pub is_trading: bool,
    /// When the exchange says that it ends, milliseconds; none where it goes on.
    #[serde(default)]
    pub delivers_at: Option<i64>,
    /// What the exchange says that it is.
    #[serde(default = "default_contract_type")]
    pub contract_type: String,
}

impl SymbolConfig {
    /// Largest quantity of a limit order: coins below a dollar are traded by the million.
    pub fn max_quantity(&self) -> Decimal {
        Decimal::from(1_000).max(self.market_max_quantity.0 * Decimal::TWO)
    }
}

/// One more API key of an account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// The key.
    pub api_key: String,
    /// Its secret.
    pub secret: String,
}

/// One account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct AccountConfig {
    /// Its name on the control port.
    pub id: String,
    /// Its API key, on exchanges that have such keys.
    #[serde(default)]
    pub api_key: String,
    /// The key's secret.
    #[serde(default)]
    pub secret: String,
    /// Further keys of the same account.
    #[serde(default, rename = "key")]
    pub more_keys: Vec<KeyConfig>,
    /// Its address: of the wallet on Aster (`0x…`), its public key on Pacifica (base58).
    #[serde(default)]
    pub address: String,
    /// Agents that may sign for it.
    #[serde(default, rename = "agent")]
    pub agents: Vec<AgentConfig>,
    /// Whether it ever made a deposit; Aster keeps others out.
    #[serde(default = "yes")]
    pub deposited: bool,
    /// USDT in its wallet; USDC on Pacifica.
    #[serde(default = "default_wallet")]
    pub wallet: Exact,
    /// Other assets in its wallet, by name.
    #[serde(default)]
    pub balances: BTreeMap<String, Exact>,
    /// Whether longs and shorts are held apart.
    #[serde(default)]
    pub hedge_mode: bool,
    /// Whether all its assets are margin.
    #[serde(default)]
    pub multi_assets: bool,
    /// Leverage of every symbol.
    #[serde(default = "default_leverage")]
    pub leverage: u32,
    /// The price of BNB where fees are paid in it, a tenth less, as long as there is enough of it in the wallet.
    #[serde(default)]
    pub fee_burn: Option<Exact>,
    /// Whether the key may trade.
    #[serde(default = "yes")]
    pub can_trade: bool,
    /// Symbols set to isolated margin.
    #[serde(default)]
    pub isolated: Vec<String>,
    /// Positions at the start by the venue's symbol, signed.
    #[serde(default)]
    pub positions: BTreeMap<String, Exact>,
}

/// A key that may sign for an account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Its address or public key.
    pub address: String,
    /// When its right ends, milliseconds since the epoch.
    #[serde(default = "never")]
    pub expires: i64,
    /// Whether it may trade.
    #[serde(default = "yes")]
    pub can_trade: bool,
    /// Whether it may take money out.
    #[serde(default)]
    pub can_withdraw: bool,
}

impl AgentConfig {
    /// An agent that may trade for ever and may not take money out.
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), expires: never(), can_trade: true, can_withdraw: false }
    }
}

const fn never() -> i64 {
    4_102_444_800_000
}

fn default_funding() -> Exact {
    Exact(Decimal::from_i128_with_scale(1, 4))
}

fn default_contract_type() -> String {
    "PERPETUAL".to_owned()
}

const fn default_trading() -> bool {
    true
}

const fn default_interval() -> u32 {
    8
}

fn default_wallet() -> Exact {
    Exact(Decimal::from(100_000))
}

const fn default_leverage() -> u32 {
    10
}

const fn default_max_leverage() -> u32 {
    125
}

const fn yes() -> bool {
    true
}

impl AccountConfig {
    /// An account with 100,000 USDT, ten times leverage and no position.
    pub fn new(id: &str, api_key: &str, secret: &str) -> Self {
        Self {
            id: id.to_owned(),
            api_key: api_key.to_owned(),
            more_keys: Vec::new(),
            secret: secret.to_owned(),
            address: String::new(),
            agents: Vec::new(),
            deposited: true,
            wallet: default_wallet(),
            balances: BTreeMap::new(),
            hedge_mode: false,
            multi_assets: false,
            fee_burn: None,
            leverage: default_leverage(),
            can_trade: true,
            isolated: Vec::new(),
            positions: BTreeMap::new(),
        }
    }
}

impl ExchangeConfig {
    /// Reads a TOML file's text.
    ///
    /// # Errors
    ///
    /// The parser's message, with line and column.
    pub fn from_toml(text: &str, dialect: Dialect) -> Result<Self, toml::de::Error> {
        let mut config: Self = toml::from_str(text)?;
        if config.symbols.is_empty() {
            config.symbols = dialect.default_symbols();
        }
        Ok(config)
    }

    /// The dialect's own instruments with these accounts.
    pub fn with_accounts(dialect: Dialect, accounts: Vec<AccountConfig>) -> Self {
        Self {
            symbols: dialect.default_symbols(),
            accounts,
            asset_rates: BTreeMap::new(),
            odd_rows: Vec::new(),
        }
    }
}
