//! Runs operations: snapshot, plan, gate, journal, dispatch, watch, resolve, re-plan, report.
//!
//! This is the crate that others embed. Its core is pure: [`operation`] is a state machine without clock,
//! network or journal, and [`control`] decides what a round does. The shell around them ([`Engine`]) reads the
//! ports, feeds the machine and does what it says. The only code that can reach [`OrderGateway::submit`] is
//! [`OrderGate::send`], and it takes a [`Durable`] intent, which only a journal append makes.
//!
//! It knows no venue, no wire and no database.
//!
//! [`OrderGateway::submit`]: deltaplane_ports::OrderGateway::submit

mod account_fold;
mod accounts;
mod alerts;
mod breakers;
mod canceling;
mod changes;
mod checks;
mod config;
pub mod control;
mod durable;
mod earnings;
mod engine;
mod equity;
mod feeds;
mod gate;
mod groups;
mod guard;
mod history;
mod holdings;
mod ids;
mod logins;
mod losses;
mod mapping;
mod monitor;
pub mod operation;
mod orders;
mod outlook;
mod plane;
mod plans;
mod policies;
mod position_locks;
mod proxy_pools;
mod readiness;
mod reconcile;
mod recovery;
mod reopening;
mod report;
mod risks;
mod runner;
mod services;
mod snapshot;
mod trading;
mod unresolved_orders;
mod utilization;
mod watch;

pub use alerts::Condition;
pub use breakers::BreakerSettings;
pub use config::EngineConfig;
pub use deltaplane_market::FeedLimits;
pub use deltaplane_risk::{AlertThresholds, LimitOverride, Limits, Overrides, Threshold};
pub use durable::{Durable, Recorder};
pub use engine::{AccountParts, Engine, EngineParts, StartError};
pub use gate::{DryRun, OrderGate};
pub use history::MemoryHistory;
pub use holdings::{ExternalDelta, Holdings};
pub use ids::{IdKey, OrderIdParts};
pub use snapshot::{AccountFacts, Snapshot};
pub use unresolved_orders::UnresolvedOrder;
