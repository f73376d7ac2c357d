//! HTTP and WebSocket plumbing for connectors: one attempt per request, bounded answers, budgets and clocks.
//!
//! It knows no venue: what a status or a code means is the connector's table.

mod backoff;
mod budget;
mod clock;
mod egress;
mod http;
mod proof;
mod rows;
mod seldom;
mod websocket;

pub use backoff::Backoff;
pub use budget::{Spent, WeightBudget};
pub use clock::ClockOffset;
pub use egress::{Egress, Proxy, ProxyError, ProxyKind};
pub use http::{
    HttpClient, HttpClientConfig, HttpRequest, HttpResponse, HttpTransport, Method, SetupError,
    TransportError, ask,
};
pub use proof::{ProofPart, ProofTimes, StreamProof};
pub use rows::Rows;
pub use seldom::Seldom;
pub use websocket::{Received, WebSocket, WebSocketError};
