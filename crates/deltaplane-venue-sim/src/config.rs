//! What a simulated exchange is made of, as its TOML file says it.

use std::collections::BTreeMap;

use deltaplane_types::{Decimal, parse_exact};
use serde::{Deserialize, Deserializer};

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
    /// Its instruments; the defaults are BTCUSDT and ETHUSDT.
    #[serde(default = "default_symbols", rename = "symbol")]
    pub symbols: Vec<SymbolConfig>,
    /// Its accounts.
    #[serde(default, rename = "account")]
    pub accounts: Vec<AccountConfig>,
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
}

/// One account.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountConfig {
    /// Its name on the control port.
    pub id: String,
    /// Its API key.
    pub api_key: String,
    /// Its secret.
    pub secret: String,
    /// USDT in its wallet.
    #[serde(default = "default_wallet")]
    pub wallet: Exact,
    /// Whether longs and shorts are held apart.
    #[serde(default)]
    pub hedge_mode: bool,
    /// Leverage of every symbol.
    #[serde(default = "default_leverage")]
    pub leverage: u32,
    /// Whether the key may trade.
    #[serde(default = "yes")]
    pub can_trade: bool,
    /// Positions at the start by the venue's symbol, signed.
    #[serde(default)]
    pub positions: BTreeMap<String, Exact>,
}

fn default_funding() -> Exact {
    Exact(Decimal::from_i128_with_scale(1, 4))
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

const fn yes() -> bool {
    true
}

fn default_symbols() -> Vec<SymbolConfig> {
    let exact = |mantissa: i64, scale| Exact(Decimal::from_i128_with_scale(mantissa.into(), scale));
    let symbol = |base: &str, tick, min_notional, start, market_max| SymbolConfig {
        name: format!("{base}USDT"),
        base: base.to_owned(),
        tick_size: tick,
        step_size: exact(1, 3),
        min_quantity: exact(1, 3),
        market_max_quantity: exact(market_max, 0),
        min_notional: exact(min_notional, 0),
        start_price: exact(start, 0),
        funding_rate: default_funding(),
        funding_interval_hours: default_interval(),
    };
    vec![symbol("BTC", exact(1, 1), 50, 66_000, 120), symbol("ETH", exact(1, 2), 20, 2_600, 2_000)]
}

impl ExchangeConfig {
    /// Reads a TOML file's text.
    ///
    /// # Errors
    ///
    /// The parser's message, with line and column.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The default instruments with these accounts.
    pub fn with_accounts(accounts: Vec<AccountConfig>) -> Self {
        Self { symbols: default_symbols(), accounts }
    }
}
