//! Who a request serves, and what an exchange still allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use deltaplane_types::{AccountId, Timestamp, VenueId};

/// What a request serves: the priority of its operation, reads included. A lower one leaves more of the request budget
/// to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Kill switch, cancel, flatten and deleverage (R0).
    Protect,
    /// Finding out what became of an unresolved order (R1).
    Resolve,
    /// Hedges and policies (R2).
    Hedge,
    /// Account state, its audit, and preflight (R3).
    Sync,
    /// Dry runs, market tables and history (R4).
    Data,
}

impl Priority {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 5] = [Self::Protect, Self::Resolve, Self::Hedge, Self::Sync, Self::Data];

    /// Its name in answers and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protect => "protect",
            Self::Resolve => "resolve",
            Self::Hedge => "hedge",
            Self::Sync => "sync",
            Self::Data => "data",
        }
    }
}

/// How an address stands with the requests that an exchange allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetStatus {
    /// Used in the current window, by the exchange's count where it tells one.
    pub used: u64,
    /// What the window allows, in the same units: weight, or tenths of a credit.
    pub limit: u64,
    /// When the window ends; of a rolling one, when its oldest cost is forgotten. By our clock.
    pub window_ends_at: Timestamp,
    /// What we spent in this window by priority.
    pub by_priority: BTreeMap<Priority, u64>,
}

/// A request budget that can be looked at.
pub trait RequestBudget: Send + Sync {
    /// How it stands.
    fn status(&self, now: Timestamp) -> BudgetStatus;
}

/// A request budget and who spends it.
#[derive(Clone)]
pub struct BudgetUser {
    /// The configured name of the exchange.
    pub venue: VenueId,
    /// The address that requests leave from: the names of its proxies, or `direct`.
    pub egress: String,
    /// The accounts that share it.
    pub accounts: Vec<AccountId>,
    /// The budget.
    pub budget: Arc<dyn RequestBudget>,
}

/// A request budget in answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetView {
    /// The configured name of the exchange.
    pub venue: VenueId,
    /// The address that requests leave from: the names of its proxies, or `direct`.
    pub egress: String,
    /// The accounts that share it.
    pub accounts: Vec<AccountId>,
    /// How it stands.
    pub status: BudgetStatus,
}
