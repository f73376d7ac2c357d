//! Plain data: no environment, no default that hides a choice.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_types::{AccountId, FeedId, Symbol, VenueId};

/// Canonical symbols and the venue's names for them.
#[derive(Clone, Debug, Default)]
pub struct SymbolMap {
    to_venue: BTreeMap<Symbol, String>,
}

impl SymbolMap {
    /// Overrides the rule for some symbols.
    pub const fn with_overrides(overrides: BTreeMap<Symbol, String>) -> Self {
        Self { to_venue: overrides }
    }

    /// The venue's name: an override, else `BTC-USD` → `BTCUSDT`.
    pub fn venue_symbol(&self, symbol: &Symbol) -> String {
        self.to_venue.get(symbol).cloned().unwrap_or_else(|| {
            let quote = if symbol.quote() == "USD" { "USDT" } else { symbol.quote() };
            format!("{}{quote}", symbol.base())
        })
    }

    /// The canonical symbol: an override, else `BTCUSDT` → `BTC-USD`; none where the quote is not USDT.
    pub fn canonical(&self, venue_symbol: &str) -> Option<Symbol> {
        if let Some((symbol, _)) = self.to_venue.iter().find(|(_, name)| *name == venue_symbol) {
            return Some(symbol.clone());
        }
        format!("{}-USD", venue_symbol.strip_suffix("USDT")?).parse().ok()
    }
}

/// Where and how an account is reached.
#[derive(Clone, Debug)]
pub struct BinanceConfig {
    /// The account.
    pub account: AccountId,
    /// The exchange's configured name.
    pub venue: VenueId,
    /// The name of its price stream.
    pub feed: FeedId,
    /// `https://fapi.binance.com`.
    pub rest_url: String,
    /// `wss://fstream.binance.com`, without a route.
    pub stream_url: String,
    /// Names of symbols.
    pub symbols: SymbolMap,
    /// Validity window signed into orders.
    pub receive_window: Duration,
    /// How long after that window absence is trusted.
    pub proof_slack: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
}
