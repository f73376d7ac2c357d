//! hyper connections: limits, timeouts, drain.
//!
//! `axum::serve` sets no timer, so half a header would keep a connection for ever; this loop does. What counts is requests
//! at work: idle connections are closed, the longest idle one first, so that many clients that keep theirs open
//! block no other client.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

/// How long a connection that is to end may take for that where it has no request.
const LINGER: Duration = Duration::from_secs(10);

/// What all clients together may take.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Requests at work at one time; more wait.
    pub requests: usize,
    /// Connections at one time: beyond these the longest idle one is closed.
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
            requests: 1_024,
            connections: 1_024,
            header_time: Duration::from_secs(5),
            headers: 100,
            drain_time: Duration::from_secs(30),
        }
    }
}

/// An open connection.
struct Open {
    /// Requests at work on it.
    busy: usize,
    /// It was asked to end and holds no place any more.
    is_closing: bool,
    /// Its place in the order in which connections were used last.
    used: u64,
    close: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// The next number of a connection or of its use.
    next: u64,
    open: BTreeMap<u64, Open>,
}

/// The connections that are open and not asked to end.
#[derive(Default)]
struct Connections {
    state: Mutex<State>,
    /// One ended or became idle.
    freed: Notify,
}

impl Connections {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until one more may be opened; closes the longest idle one for it.
    async fn make_room(&self, most: usize) {
        loop {
            let freed = self.freed.notified();
            let has_room = self.with(|state| {
                if state.open.values().filter(|open| !open.is_closing).count() < most {
                    return true;
                }
                let idle = state.open.values_mut().filter(|open| open.busy == 0 && !open.is_closing);
                let Some(oldest) = idle.min_by_key(|open| open.used) else { return false };
                oldest.is_closing = true;
                oldest.close.notify_one();
                true
            });
            if has_room {
                return;
            }
            freed.await;
        }
    }

    fn open(&self) -> (u64, Arc<Notify>) {
        self.with(|state| {
            let id = state.next;
            state.next = state.next.saturating_add(1);
            let close = Arc::new(Notify::new());
            state.open.insert(id, Open { busy: 0, is_closing: false, used: id, close: close.clone() });
            (id, close)
        })
    }

    fn begin(self: &Arc<Self>, id: u64) -> Busy {
        self.with(|state| {
            if let Some(open) = state.open.get_mut(&id) {
                open.busy = open.busy.saturating_add(1);
            }
        });
        Busy { connections: self.clone(), id }
    }

    fn is_busy(&self, id: u64) -> bool {
        self.with(|state| state.open.get(&id).is_some_and(|open| open.busy > 0))
    }

    fn closed(&self, id: u64) {
        self.with(|state| state.open.remove(&id));
        self.freed.notify_one();
    }

    fn close_all(&self) {
        self.with(|state| state.open.values().for_each(|open| open.close.notify_one()));
    }
}

/// A request at work on a connection.
struct Busy {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connections.with(|state| {
            let used = state.next;
            state.next = state.next.saturating_add(1);
            if let Some(open) = state.open.get_mut(&self.id) {
                (open.busy, open.used) = (open.busy.saturating_sub(1), used);
            }
        });
        self.connections.freed.notify_one();
    }
}

/// Serves until `shutdown` resolves, then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServerLimits,
    shutdown: impl Future<Output = ()>,
) {
    let requests = Arc::new(Semaphore::new(limits.requests));
    let connections = Arc::new(Connections::default());
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = async {
            let (socket, _) = listener.accept().await?;
            // The rest waits in the system's queue.
            connections.make_room(limits.connections).await;
            std::io::Result::Ok(socket)
        };
        let socket = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accepted => match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    // Out of file handles, for example: give others time to close.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let place = connections.open();
        tasks.spawn(follow(socket, place, router.clone(), limits, requests.clone(), connections.clone()));
    }
    drop(listener);
    connections.close_all();
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_time, drained).await.is_err() {
        tracing::warn!("requests were still running when the drain time ended");
    }
    // What still waits for an operation gets its answer while that is finished.
    tasks.detach_all();
}

/// Serves one connection to its end.
async fn follow(
    socket: TcpStream,
    (id, close): (u64, Arc<Notify>),
    router: Router,
    limits: ServerLimits,
    requests: Arc<Semaphore>,
    connections: Arc<Connections>,
) {
    let _ = socket.set_nodelay(true);
    let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
        let busy = connections.begin(id);
        let (router, requests) = (router.clone(), requests.clone());
        async move {
            // It is never closed.
            let _slot = requests.acquire().await;
            let response: Result<Response<Body>, Infallible> = router.oneshot(request.map(Body::new)).await;
            drop(busy);
            response
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_headers(limits.headers)
        .max_buf_size(64 * 1024)
        .keep_alive(true)
        .half_close(false);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = close.notified() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(LINGER, connection.as_mut()).await {
                Ok(ended) => ended,
                // It sent no whole request by now.
                Err(_) if !connections.is_busy(id) => Ok(()),
                Err(_) => connection.await,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
    connections.closed(id);
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const ASK: &[u8] = b"GET /now HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const ASK_SLOW: &[u8] = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n";

    /// A server for so many connections whose slow answers take a place each: so many are at work as places are taken.
    async fn server(connections: usize) -> (std::net::SocketAddr, Arc<Semaphore>) {
        let places = Arc::new(Semaphore::new(2));
        let slow = places.clone();
        let router = Router::new().route("/now", get(async || "now")).route(
            "/slow",
            get(move || async move {
                slow.acquire().await.unwrap().forget();
                // Until the test gives two more.
                let _both = slow.acquire_many(2).await;
                "slow"
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = ServerLimits { connections, ..ServerLimits::default() };
        tokio::spawn(serve(listener, router, limits, std::future::pending()));
        (address, places)
    }

    async fn connect(address: std::net::SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    /// Asks on a connection and reads the answer; none where it is closed.
    async fn answer(socket: &mut TcpStream, ask: &[u8]) -> Option<String> {
        socket.write_all(ask).await.ok()?;
        read(socket).await
    }

    async fn read(socket: &mut TcpStream) -> Option<String> {
        let mut text = vec![0; 4_096];
        let read = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut text)).await;
        let length = read.expect("an answer or an end").ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    #[tokio::test]
    async fn idle_connections_are_closed_the_longest_idle_one_first() {
        let (address, _) = server(3).await;
        let mut idle = Vec::new();
        for _ in 0..3 {
            let mut socket = connect(address).await;
            assert!(answer(&mut socket, ASK).await.unwrap().ends_with("now"));
            idle.push(socket);
        }
        // The first one asks again: now the second one is idle for the longest time.
        assert!(answer(&mut idle[0], ASK).await.unwrap().ends_with("now"));
        let mut fourth = connect(address).await;
        assert!(answer(&mut fourth, ASK).await.unwrap().ends_with("now"), "at once, with three open");
        assert_eq!(read(&mut idle[1]).await, None, "it was closed");
        assert!(answer(&mut idle[0], ASK).await.unwrap().ends_with("now"), "and this one was not");
    }

    #[tokio::test]
    async fn requests_at_work_are_not_cut_off_and_who_comes_then_waits() {
        let (address, places) = server(2).await;
        let (mut first, mut second) = (connect(address).await, connect(address).await);
        first.write_all(ASK_SLOW).await.unwrap();
        second.write_all(ASK_SLOW).await.unwrap();
        while places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let mut third = connect(address).await;
        let early = tokio::time::timeout(Duration::from_millis(300), answer(&mut third, ASK)).await;
        assert!(early.is_err(), "both places have requests at work");
        places.add_permits(2);
        assert!(read(&mut third).await.unwrap().ends_with("now"));
        let answered = [read(&mut first).await, read(&mut second).await];
        assert!(answered.iter().flatten().all(|text| text.ends_with("slow")), "{answered:?}");
        assert_eq!(answered.iter().flatten().count(), 2, "{answered:?}");
    }

    #[tokio::test]
    async fn half_a_request_blocks_no_other_client() {
        let (address, _) = server(1).await;
        let mut half = connect(address).await;
        half.write_all(b"GET /now HTT").await.unwrap();
        let mut other = connect(address).await;
        assert!(answer(&mut other, ASK).await.unwrap().ends_with("now"));
        assert_eq!(read(&mut half).await, None);
    }
}
