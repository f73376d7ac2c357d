//! Exact arithmetic on exposure, margin and order books.
//!
//! Everything here is a synchronous function of values: no time, no ports, no wire. Results are exact or an
//! error; a quotient that does not end is rounded half-even at 28 digits.
#![deny(clippy::arithmetic_side_effects)]

mod book;
mod exact;
mod exposure;
mod liquidation;
mod margin;
mod order_size;
mod rebalance;
mod worst_case;

pub use book::{BookWalk, cumulative, walk_book};
pub use exact::{MathError, add, div, mul, mul_rounded, sub};
pub use exposure::{
    Decision, Exposure, deviation_ratio, effective_tolerance, exposure_of, inverse_delta, linear_delta,
    quantity_to_band, reference_exposure,
};
pub use liquidation::{MarkedPosition, joint_liquidation_distance, shared_equity};
pub use margin::{
    MarginUse, keeps_distance, least_distances, leverage_ratio, liquidation_distance, maintenance_margin,
    margin_ratio, utilization,
};
pub use order_size::{OrderRules, ceil_to_step, floor_to_step, price_cap, round_down_to_lot, smallest_order};
pub use rebalance::{Rebalance, RebalanceAccount, RebalanceChange, RebalanceInput, rebalance};
pub use worst_case::{Interval, WorstCase, shrink, worst_case};
