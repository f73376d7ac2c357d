//! The exchange itself: a state machine without clock, network or randomness.
//!
//! # Fill rules
//! An order that takes walks the market's book and the resting orders of other accounts, best price first; at
//! one price the market's quantity comes before resting orders. A resting order fills at its own price when the
//! market's book crosses it. In a replay the recorded book is never altered by fills.
//!
//! # Known lies
//! Isolated margin is a setting without effect: margin is always shared over the account. Market orders take no
//! price protection beyond the percent-price band. Liquidation closes everything at the mark price. Stops
//! and profit takers are set off by the price that they watch; there are no trailing and no TWAP orders.

mod account;
mod book;
mod candles;
mod conditional;
mod exchange;
mod margin;
mod matching;
mod order;
mod rules;

pub use account::{Account, HeldPosition};
pub use book::MarketBook;
pub use candles::{Candle, Candles};
pub use exchange::{Command, Event, Exchange, MarketState, NewOrder};
pub use order::{
    Cause, ExecutionType, ExpiryReason, Order, OrderKind, PositionSide, Reject, Status, TimeInForce, Trade,
    Trigger, TriggerSource,
};
pub use rules::{Bracket, ClientIds, MarginTable, Rules};
