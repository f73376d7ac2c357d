//! Limits, the gate that every plan passes, and the metrics of what happened.
//!
//! Decisions only: nothing here knows time, ports or a wire.
#![deny(clippy::arithmetic_side_effects)]

mod distances;
mod drawdown;
mod execution;
mod exposures;
mod gate;
mod limits;
mod threshold;

pub use distances::{DistanceBook, Distances};
pub use drawdown::{Drawdown, DrawdownState, EquityPoint};
pub use execution::{ExecutionQuality, ExposureStep, PricedFill, execution_quality, unhedged_dollar_seconds};
pub use exposures::{ExposureBook, HeldTogether};
pub use gate::{AccountFacts, Approved, Gate, GateFacts, GateRefusal};
pub use limits::{LimitOverride, Limits, Overrides};
pub use threshold::{AlertThresholds, Threshold};
