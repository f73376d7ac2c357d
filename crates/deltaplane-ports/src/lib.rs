//! The seams between decisions and effects.
//!
//! Each port is small, `dyn`, and chosen once at start-up. Its documentation is the contract that a second
//! implementation can be written from. No port has a default method that pretends success.

pub mod bounds;
mod budget;
mod control;
mod earnings;
mod history;
mod journal;
mod preflight;
mod proxy_pool;
mod symbols;
mod tables;
mod time;
mod venue;

pub use budget::{BudgetStatus, BudgetUser, BudgetView, Priority, RequestBudget};
pub use control::{
    AccountReadiness, AccountRisk, AccountSource, AccountView, ControlPlane, Deleverage, DeltaControl,
    Failover, Failure, FeedCondition, FeedView, FeedsView, Flatten, FundingView, HedgeExecution,
    HedgeStrategy, HedgeTo, HistoryQuery, IdempotencyKey, KillReport, KillSwitch, LastKnown, MarketSummary,
    OnShortfall, OperationKind, OperationReport, OperationState, OrderReport, Pacing, PastAlert, Policy,
    PolicyLimits, PolicyStatus, PolicyView, PortfolioView, PositionRisk, PreflightReport, QuoteExposure,
    RebalanceLine, RebalanceView, RequestMeta, ResolveOrder, RiskSample, ScheduledRebalance, ServiceState,
    ServiceView, Settlement, Started, StressAccount, StressLoss, StressMove, StressReport, StressRequest,
    SymbolView, SyncReport, SyncRequest, SystemCommand, SystemPhase, SystemView, TimelineEntry,
    TradingChange, Transfer, UtilizationRebalance,
};
pub use earnings::{DAY_MS, Drift, Earned, EarnedDay, Income, IncomeKind, PnlQuery, USD, day_of};
pub use history::{EquityMark, GainPeak, HistoryError, RiskHistory, ThinOut, thin_out};
pub use journal::{
    Acknowledgement, Alert, AlertChange, Answer, AnswerClaim, AnswerStore, Correction, ExternalActivity,
    ExternalCause, IntentRecord, Journal, JournalError, OutcomeRecord, PlannedLeg, Record, ScopedTrading,
    StoredRecord, TradingOrder,
};
pub use preflight::{Check, Finding, Severity};
pub use proxy_pool::{PoolStatus, PoolUser, ProxyPool, ProxyView};
pub use symbols::{Contract, ContractError, ContractKind, ListedContract, NameRule, SymbolMap, Unmapped};
pub use tables::{TableStore, table_prefix};
pub use time::{Clock, IdSource};
pub use venue::{
    AccountEvent, AccountReader, AccountTotals, BalanceCause, CancelOutcome, Capabilities, FeedStatus,
    Invalidation, OpenOrder, OrderEntry, OrderGateway, OrderName, OrderSighting, Pace, PriceFeed, ReadError,
    StreamStatus, VenueAccount, VenueRules, WalletChange,
};

#[cfg(feature = "mock")]
pub use venue::{MockAccountReader, MockOrderGateway, MockPriceFeed};
