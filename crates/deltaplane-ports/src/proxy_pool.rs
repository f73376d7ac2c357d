//! Where connections leave from.

use std::time::Duration;

use deltaplane_types::{AccountId, FeedId};

/// One proxy of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyView {
    /// The proxy's configured name.
    pub proxy: String,
    /// Whether connections leave through it now.
    pub is_active: bool,
    /// Why it failed, where its newest attempt did. It holds no credentials.
    pub failing: Option<String>,
    /// How often it failed so far.
    pub failures: u64,
    /// How long ago it worked; none where it never did in this run.
    pub worked_ago: Option<Duration>,
}

/// Whose connections leave through a pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolUser {
    /// An account's.
    Account(AccountId),
    /// A price feed's.
    Feed(FeedId),
}

/// How a pool stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its proxies, in order; none where connections leave directly.
    pub proxies: Vec<ProxyView>,
    /// Whether another proxy may be taken when the active one fails.
    pub failover: bool,
}

/// The ways out of an account or a feed.
pub trait ProxyPool: Send + Sync {
    /// How they stand.
    fn status(&self) -> PoolStatus;
}
