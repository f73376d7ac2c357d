//! hyper connections: limits, timeouts, drain.
//!
//! `axum::serve` sets no timer, so half a header would keep a connection for ever; this loop does.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// What one client may take.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at one time.
    pub connections: usize,
    /// How long the headers of a request may take, also on an idle connection.
    pub header_time: Duration,
    /// Headers of a request.
    pub headers: usize,
    /// How long running requests may go on after shutdown began.
    pub drain_time: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 1_024,
            header_time: Duration::from_secs(5),
            headers: 100,
            drain_time: Duration::from_secs(30),
        }
    }
}

/// Serves until `shutdown` resolves, then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    shutdown: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_headers(limits.headers)
        .max_buf_size(64 * 1024)
        .keep_alive(true)
        .half_close(false);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // A place is taken before a connection is accepted: the rest waits in the system's queue.
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let socket = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of file handles, for example: give others time to close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(socket), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain_time, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still running when the drain time ended");
    }
}
