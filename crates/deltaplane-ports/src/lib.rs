//! The seams between decisions and effects.
//!
//! Each port is small, `dyn`, and chosen once at start-up. Its documentation is the contract that a second
//! implementation can be written from. No port has a default method that pretends success.

mod control;
mod journal;
mod preflight;
mod symbols;
mod time;
mod venue;

pub use control::{
    AccountRisk, AccountView, ControlPlane, DeltaControl, Failure, Flatten, HedgeExecution, HedgeStrategy,
    HedgeTo, IdempotencyKey, KillReport, KillSwitch, MarketSummary, OnShortfall, OperationKind,
    OperationReport, OperationState, OrderReport, PortfolioView, PositionRisk, PreflightReport,
    QuoteExposure, RebalanceLine, RebalanceView, RequestMeta, ResolveOrder, ServiceState, ServiceView,
    Settlement, Started, SymbolView, SyncReport, SyncRequest, SystemView, TimelineEntry, TradingChange,
    Transfer, UtilizationRebalance,
};
pub use journal::{
    Alert, AlertChange, Answer, AnswerClaim, AnswerStore, ExternalActivity, ExternalCause, IntentRecord,
    Journal, JournalError, OutcomeRecord, PlannedLeg, Record, StoredRecord, TradingOrder,
};
pub use preflight::{Check, Finding, Severity};
pub use symbols::{Contract, ContractError, NameRule, SymbolMap};
pub use time::{Clock, IdSource};
pub use venue::{
    AccountEvent, AccountReader, BalanceCause, CancelOutcome, Capabilities, FeedStatus, FenceOutcome,
    OrderEntry, OrderGateway, OrderName, OrderSighting, Pace, PriceFeed, ReadError, VenueRules,
};

#[cfg(feature = "mock")]
pub use venue::{MockAccountReader, MockOrderGateway, MockPriceFeed};
