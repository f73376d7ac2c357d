//! The HTTP facade: parse, ask the [`ControlPlane`], render.
//!
//! | method and path | what it does |
//! |---|---|
//! | `POST /api/v1/delta/control` | brings net delta to its target |
//! | `POST /api/v1/delta/flatten` | closes positions, both sides in lock step |
//! | `POST /api/v1/utilization/rebalance` | brings utilization near a target, the net delta stays |
//! | `POST /api/v1/hedge/execute` | trades an amount |
//! | `POST /api/v1/account/sync` | reads accounts now |
//! | `GET /api/v1/accounts` | the configured accounts |
//! | `GET /api/v1/portfolio` | exposure by symbol, state by account |
//! | `GET /api/v1/operations[/{id}]` | what was done and why |
//! | `POST /api/v1/operations/{id}/resolve` | a person's word for an unresolved order |
//! | `GET /api/v1/reconciliation` | what moved positions without an order of ours |
//! | `GET /api/v1/risk/metrics/{accountId}` | how an account stands |
//! | `GET /api/v1/risk/alerts` | the alerts that stand |
//! | `GET /api/v1/risk/alerts/history` | those that are over |
//! | `POST /api/v1/risk/alerts/{id}/ack` | a person saw one |
//! | `GET /api/v1/risk/history/{accountId}` | how an account stood |
//! | `POST /api/v1/risk/stress` | what price moves, a lost leg or an outage would do |
//! | `GET /api/v1/funding` | funding of every account, and what venues differ by |
//! | `GET /api/v1/market/feeds` | the price feeds and the active one |
//! | `POST /api/v1/market/failover` | another feed becomes the active one |
//! | `GET /api/v1/policies` and `GET`, `PUT`, `DELETE /api/v1/policies/{symbol}` | what is done without being asked |
//! | `PUT /api/v1/trading-state` | what may be traded |
//! | `POST /api/v1/system/kill-switch` | from then on only what reduces a position |
//! | `POST /api/v1/system/restart`, `POST /api/v1/system/stop` | the services; the facade stays up |
//! | `GET /api/v1/system/status` | the parts and how they fare |
//! | `GET /healthz`, `GET /readyz` | for supervisors |
//!
//! hyper and hyper-util own the sockets, axum routes. The caller owns the listener and the shutdown future.
//! This crate knows neither the engine nor a venue, and holds no rule of the domain.

mod guard;
mod handlers;
mod language;
mod prepared;
mod problem;
pub mod request;
mod router;
mod server;
mod state;
pub mod texts;
mod wire;

pub use deltaplane_ports::ControlPlane;
pub use guard::auth::{ApiKey, ApiKeyError};
pub use prepared::Prepared;
pub use router::{control_router, router};
pub use server::{ServerLimits, serve};
pub use state::{ApiState, Traffic, Vitals};
