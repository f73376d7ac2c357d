//! Plain data: no environment, no default that hides a choice.

use std::sync::Arc;
use std::time::Duration;

use deltaplane_net::{Egress, WeightBudget};
use deltaplane_ports::{SymbolMap, TableStore};
use deltaplane_types::{AccountId, FeedId, VenueId};
use secrecy::SecretString;

/// Where and how an account is reached.
#[derive(Clone, Debug)]
pub struct PacificaConfig {
    /// The account.
    pub account: AccountId,
    /// The exchange's configured name.
    pub venue: VenueId,
    /// The name of its price stream.
    pub feed: FeedId,
    /// `https://api.pacifica.fi`, without `/api/v1`.
    pub rest_url: String,
    /// `wss://ws.pacifica.fi`, without `/ws`.
    pub stream_url: String,
    /// What this address may ask of the exchange, in tenths of a credit: one for all accounts and the feed that
    /// share it.
    pub credits: Arc<WeightBudget>,
    /// An API config key, which raises the credits.
    pub api_config_key: Option<SecretString>,
    /// Names of symbols.
    pub symbols: SymbolMap,
    /// Validity window signed into orders.
    pub expiry_window: Duration,
    /// How long after that window absence is trusted: the venue holds some orders back for a moment.
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

impl PacificaConfig {
    /// A budget of an address: 100 credits in a minute, 300 with an API config key.
    pub fn credit_budget(with_key: bool) -> Arc<WeightBudget> {
        Arc::new(WeightBudget::rolling(if with_key { 3_000 } else { 1_000 }, Duration::from_secs(60)))
    }
}
