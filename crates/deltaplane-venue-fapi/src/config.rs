//! Plain data: no environment, no default that hides a choice.

use std::sync::Arc;
use std::time::Duration;

use deltaplane_net::{Egress, WeightBudget};
use deltaplane_ports::{SymbolMap, TableStore};
use deltaplane_types::{AccountId, FeedId, VenueId};

/// Where and how an account is reached.
#[derive(Clone, Debug)]
pub struct FapiConfig {
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
    /// What this address may ask of the exchange: one for all accounts and the feed that share it.
    pub weight: Arc<WeightBudget>,
    /// Names of symbols.
    pub symbols: SymbolMap,
    /// Validity window signed into orders, where the signature carries one.
    pub receive_window: Duration,
    /// How long after that window absence is trusted.
    pub proof_slack: Duration,
    /// How far two looks must be apart that prove that an order does not exist.
    pub proof_lag: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// Where its streams leave from; the transport has its own.
    pub egress: Arc<Egress>,
    /// Keeps tables over restarts; none where they are asked for at each start.
    pub tables: Option<Arc<dyn TableStore>>,
}

impl FapiConfig {
    /// A budget of an address as `exchangeInfo` gives it for everyone: 2,400 in a minute.
    pub fn weight_budget() -> Arc<WeightBudget> {
        Arc::new(WeightBudget::fixed(2_400, Duration::from_secs(60)))
    }
}
