//! The values that every layer of deltaplane speaks in.
//!
//! A quantity is a type and carries its unit: a [`Delta`] is signed base units, a [`Notional`] is signed
//! quote currency, a [`Ratio`] is a fraction. Only products that mean something exist, and they are checked.
//!
//! This crate knows no time, no network, no file and no JSON: a value promises nothing to anyone's wire.
#![deny(clippy::arithmetic_side_effects)]

mod account;
mod alert_topic;
mod code;
pub mod decimal;
mod ending;
mod ids;
mod market;
mod money;
mod order;
mod plan;
mod quantity;
mod requester;
mod time;
mod trading;

pub use account::{
    AccountSnapshot, HeldSide, Instrument, MarginBracket, MarginPrice, Position, Sides, UnmappedPosition,
    UnreadableRow,
};
pub use alert_topic::AlertTopic;
pub use code::Code;
pub use decimal::{DecimalError, parse_exact, read_back};
pub use ending::{OrderState, Preemption};
pub use ids::{
    AccountId, ClientOrderId, FeedId, IdError, OperationId, PlanId, Symbol, TradeId, VenueId, VenueOrderId,
};
pub use market::{Level, MarketView};
pub use money::is_money;
pub use order::{
    Evidence, ExecutionReport, Fee, Fill, FillCause, OrderAck, OrderIntent, OrderStatus, Refusal,
    RefusalReason, Side, SubmitOutcome, TimeInForce, UnknownCause,
};
pub use plan::{
    Alternative, AlternativeKind, CostParts, Leg, Obstacle, ObstacleKind, Plan, Slice, SliceOrder,
};
pub use quantity::{ArithmeticError, Delta, Notional, Price, Quantity, RangeError, Ratio};
pub use requester::Requester;
/// The exact decimal number behind every quantity.
pub use rust_decimal::Decimal;
pub use time::Timestamp;
pub use trading::{AlertKind, AlertSeverity, TradingScope, TradingState, UnknownName};
