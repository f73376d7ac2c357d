//! Sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::binance::{rest, stream};
use crate::dialect::Dialect;
use crate::sim::{Sim, SimOptions};

/// Why an exchange did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The control port changes positions and prices: it is for this machine only.
    #[error("the control address {0} is not a loopback address")]
    ControlNotLoopback(SocketAddr),
}

/// An exchange at work. Dropping it ends it.
pub struct Running {
    sim: Arc<Sim>,
    address: SocketAddr,
    control: Option<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Running {
    /// The exchange's state.
    pub fn sim(&self) -> &Arc<Sim> {
        &self.sim
    }

    /// Where REST is served: `http://ADDRESS`.
    pub fn rest(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the streams are: `ws://ADDRESS`.
    pub fn ws(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Where the control port is, where there is one.
    pub fn control(&self) -> Option<String> {
        self.control.map(|address| format!("http://{address}"))
    }
}

/// Starts an exchange.
///
/// # Errors
///
/// [`StartError`] if an address cannot be had or the control address is not loopback.
pub async fn start(
    options: SimOptions,
    listen: SocketAddr,
    control: Option<SocketAddr>,
) -> Result<Running, StartError> {
    if let Some(address) = control.filter(|address| !address.ip().is_loopback()) {
        return Err(StartError::ControlNotLoopback(address));
    }
    let sim = Sim::new(&options);
    let listener = bind(listen).await?;
    let address = listener.local_addr().map_err(|source| StartError::Listen { address: listen, source })?;
    let mut tasks = JoinSet::new();
    tasks.spawn(crate::market::run(sim.clone(), options.market));
    tasks.spawn(watch_countdowns(sim.clone()));
    tasks.spawn(crate::script::run(sim.clone(), options.script));
    let streams = any(upgrade);
    let router = Router::new()
        .route("/public/{*rest}", streams.clone())
        .route("/market/{*rest}", streams.clone())
        .route("/private/{*rest}", streams.clone())
        .route("/ws", streams.clone())
        .route("/ws/{*rest}", streams.clone())
        .route("/stream", streams)
        .fallback(call)
        .layer(DefaultBodyLimit::max(64 * 1024))
        .with_state(sim.clone());
    tasks.spawn(serve(listener, router));
    let mut control_address = None;
    if let Some(wanted) = control {
        let listener = bind(wanted).await?;
        control_address =
            Some(listener.local_addr().map_err(|source| StartError::Listen { address: wanted, source })?);
        tasks.spawn(serve(listener, crate::control::router(sim.clone())));
    }
    Ok(Running { sim, address, control: control_address, _tasks: tasks })
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

async fn serve(listener: TcpListener, router: Router) {
    let listener = axum::serve::ListenerExt::tap_io(listener, |socket| {
        let _ = socket.set_nodelay(true);
    });
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the simulated exchange stopped listening");
    }
}

/// Ends countdowns that ran out, as promptly as the exchanges say they do.
async fn watch_countdowns(sim: Arc<Sim>) {
    let mut every = tokio::time::interval(Duration::from_millis(10));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if sim.with(|exchange| !exchange.countdowns.is_empty()) {
            // A tick cannot be refused.
            let _ = sim.apply(crate::core::Command::Tick);
        }
    }
}

async fn upgrade(State(sim): State<Arc<Sim>>, upgrade: WebSocketUpgrade, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if sim.dialect == Dialect::Pacifica {
        let with_key = request.headers().contains_key("pf-api-key");
        return upgrade.on_upgrade(move |socket| crate::pacifica::stream::serve(sim, socket, with_key));
    }
    upgrade.on_upgrade(move |socket| stream::serve(sim, socket, path, query))
}

async fn call(State(sim): State<Arc<Sim>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 64 * 1024).await.unwrap_or_default();
    if sim.dialect == Dialect::Pacifica {
        return crate::pacifica::rest::handle(sim, parts.method, parts.uri, parts.headers, body).await;
    }
    rest::handle(sim, parts.method, parts.uri, parts.headers, body).await
}
