//! One request, one attempt.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::egress::Egress;

/// How a proxy asks for other credentials.
const PROXY_AUTHENTICATION_REQUIRED: u16 = 407;

/// A connection that breaks within this time was dead before the request.
const AT_ONCE: Duration = Duration::from_millis(500);

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Creates.
    Post,
    /// Replaces.
    Put,
    /// Removes.
    Delete,
}

/// A request, complete: what is here is sent byte for byte.
#[derive(Clone)]
pub struct HttpRequest {
    /// What it does.
    pub method: Method,
    /// The whole address, with the query.
    pub url: String,
    /// Headers; values may be secret, so nothing here is printable.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for none.
    pub body: String,
    /// How long the whole exchange may take.
    pub timeout: Duration,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
    headers: Vec<(String, String)>,
}

impl HttpResponse {
    /// Puts an answer together, for transports.
    pub const fn new(status: u16, headers: Vec<(String, String)>, body: Bytes) -> Self {
        Self { status, body, headers }
    }

    /// A header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no answer. Texts never hold the address, which may be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No byte of the request left this machine.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The proxy failed before a byte reached the other side.
    #[error("the proxy failed: {0}")]
    Proxy(String),
    /// No answer in time; the request may have arrived.
    #[error("no answer in time")]
    Timeout,
    /// The connection broke after bytes were written.
    #[error("the connection broke: {0}")]
    Disconnected(String),
    /// The answer is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// Sends requests.
#[async_trait]
pub trait HttpTransport: Send + Sync {
    /// Makes exactly one attempt.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, TransportError>;
}

/// Sends a request, and a question ([`Method::Get`]) once more where the connection breaks.
///
/// The other side may close a kept connection just when it is used again, which shows at once; asking twice changes
/// nothing. What the second attempt costs is seen in the venue's own count. One that breaks later is not repeated: what
/// was signed grows old.
///
/// # Errors
///
/// [`TransportError`], of the second attempt where there was one.
pub async fn ask(
    transport: &dyn HttpTransport,
    request: HttpRequest,
) -> Result<HttpResponse, TransportError> {
    if request.method != Method::Get {
        return transport.send(request).await;
    }
    let began = tokio::time::Instant::now();
    match transport.send(request.clone()).await {
        Err(TransportError::Disconnected(_)) if began.elapsed() < AT_ONCE => transport.send(request).await,
        outcome => outcome,
    }
}

/// How the client connects.
#[derive(Clone, Debug)]
pub struct HttpClientConfig {
    /// Plain HTTP is allowed; only for addresses on this machine.
    pub allow_plain: bool,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// The largest answer.
    pub max_answer_bytes: usize,
    /// Where connections leave from.
    pub egress: Arc<Egress>,
}

impl Default for HttpClientConfig {
    fn default() -> Self {
        Self {
            allow_plain: false,
            connect_timeout: Duration::from_secs(3),
            max_answer_bytes: 8 * 1024 * 1024,
            egress: Egress::direct(),
        }
    }
}

/// The TLS back end or proxy cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client cannot be set up")]
pub struct SetupError(#[source] reqwest::Error);

/// The real transport. It follows no redirect, repeats nothing, and takes no proxy from the environment.
pub struct HttpClient {
    /// One for each proxy, or one that goes directly.
    clients: Vec<reqwest::Client>,
    egress: Arc<Egress>,
    max_answer_bytes: usize,
}

impl HttpClient {
    /// Sets up a client.
    pub fn new(config: &HttpClientConfig) -> Result<Self, SetupError> {
        let builder = || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .no_proxy()
                .https_only(!config.allow_plain)
                .connect_timeout(config.connect_timeout)
                .pool_idle_timeout(Duration::from_secs(50))
                .tcp_nodelay(true)
        };
        let egress = config.egress.clone();
        let mut clients = Vec::new();
        for proxy in egress.proxies() {
            let proxy = proxy.for_http().map_err(SetupError)?;
            clients.push(builder().proxy(proxy).build().map_err(SetupError)?);
        }
        if clients.is_empty() {
            clients.push(builder().build().map_err(SetupError)?);
        }
        Ok(Self { clients, egress, max_answer_bytes: config.max_answer_bytes })
    }
}

#[async_trait]
impl HttpTransport for HttpClient {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, TransportError> {
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Delete => reqwest::Method::DELETE,
        };
        let through = self.egress.active();
        let is_carried =
            request.url.starts_with("http://") && through.is_some_and(|at| self.egress.carries(at));
        let client = self.clients.get(through.unwrap_or(0)).or(self.clients.first());
        let Some(client) = client else {
            return Err(TransportError::NotSent("no proxy or direct connection is configured".to_owned()));
        };
        let mut builder = client.request(method, &request.url).timeout(request.timeout);
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        if !request.body.is_empty() {
            builder = builder.body(request.body);
        }
        let response = match builder.send().await {
            Ok(response) => response,
            Err(error) => {
                let error = classify(error, through.is_some());
                if let (TransportError::Proxy(why), Some(index)) = (&error, through) {
                    self.egress.failed(index, why);
                }
                return Err(error);
            }
        };
        let status = response.status().as_u16();
        if let Some(index) = through {
            // Without TLS the proxy itself carries the request, and no exchange answers so. What comes out of a tunnel is
            // the other side's word.
            if status == PROXY_AUTHENTICATION_REQUIRED && is_carried {
                let why = "it wants other credentials (407)".to_owned();
                self.egress.failed(index, &why);
                return Err(TransportError::Proxy(why));
            }
            self.egress.worked(index);
        }
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| classify(error, false))?;
            if body.len() + chunk.len() > self.max_answer_bytes {
                return Err(TransportError::TooLarge(self.max_answer_bytes));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpResponse::new(status, headers, body.into()))
    }
}

/// Only a failure to connect proves that nothing was sent. Behind a proxy it is the proxy's, unless TLS was already
/// spoken with the other side.
fn classify(error: reqwest::Error, behind_proxy: bool) -> TransportError {
    let error = error.without_url();
    let connect = error.is_connect();
    let timeout = error.is_timeout();
    let builder = error.is_builder();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let lower = text.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let tls = says(&["certificate", "tls", "handshake"]) && !says(&["socks", "tunnel"]);
    if connect && behind_proxy && !tls {
        TransportError::Proxy(text)
    } else if connect || builder {
        TransportError::NotSent(text)
    } else if timeout {
        TransportError::Timeout
    } else {
        TransportError::Disconnected(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::egress::Proxy;

    fn request(url: String) -> HttpRequest {
        HttpRequest {
            method: Method::Post,
            url,
            headers: vec![("x-mbx-apikey", "key".to_owned())],
            body: "a=1".to_owned(),
            timeout: Duration::from_millis(500),
        }
    }

    fn client() -> HttpClient {
        HttpClient::new(&HttpClientConfig {
            allow_plain: true,
            max_answer_bytes: 1_000,
            ..HttpClientConfig::default()
        })
        .unwrap()
    }

    /// Answers every connection with `answer`, then closes it; counts requests.
    async fn server(answer: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let seen = count.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut buffer = [0_u8; 4_096];
                if socket.read(&mut buffer).await.unwrap_or(0) > 0 {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        (url, count)
    }

    #[tokio::test]
    async fn a_closed_port_means_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        assert!(matches!(client().send(request(url)).await, Err(TransportError::NotSent(_))));
    }

    #[tokio::test]
    async fn a_connection_that_closes_after_the_request_is_unknown_and_is_not_tried_again() {
        let (url, count) = server("").await;
        assert!(matches!(client().send(request(url)).await, Err(TransportError::Disconnected(_))));
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_question_is_asked_once_more_where_the_connection_breaks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        tokio::spawn(async move {
            // The first connection closes without an answer, the second one answers.
            for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"] {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut buffer = [0_u8; 4_096];
                let _ = socket.read(&mut buffer).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        let question = HttpRequest { method: Method::Get, body: String::new(), ..request(url) };
        assert_eq!(ask(&client(), question).await.unwrap().body, "ok");

        let (url, count) = server("").await;
        let question = HttpRequest { method: Method::Get, body: String::new(), ..request(url) };
        assert!(matches!(ask(&client(), question).await, Err(TransportError::Disconnected(_))));
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_is_not_followed() {
        let (other, visited) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let answer: &'static str =
            format!("HTTP/1.1 307 Moved\r\nlocation: {other}\r\ncontent-length: 0\r\n\r\n").leak();
        let (url, _) = server(answer).await;
        assert_eq!(client().send(request(url)).await.unwrap().status, 307);
        assert_eq!(visited.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn silence_is_a_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        assert_eq!(client().send(request(url)).await.unwrap_err(), TransportError::Timeout);
        drop(listener);
    }

    #[tokio::test]
    async fn a_huge_answer_is_cut_off() {
        let (url, _) =
            server(format!("HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n{}", "x".repeat(2_000)).leak())
                .await;
        assert_eq!(client().send(request(url)).await.unwrap_err(), TransportError::TooLarge(1_000));
    }

    #[tokio::test]
    async fn plain_http_is_refused_unless_allowed() {
        let strict = HttpClient::new(&HttpClientConfig::default()).unwrap();
        let (url, count) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(matches!(strict.send(request(url)).await, Err(TransportError::NotSent(_))));
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }

    /// A client behind two proxies, of which the second is `other`.
    fn behind(proxy: &str, other: &str, failover: bool) -> (HttpClient, Arc<Egress>) {
        let proxies = [("first", proxy), ("second", other)];
        let proxies = proxies.map(|(name, address)| Proxy::new(name, address, None).unwrap()).to_vec();
        let egress = Egress::through(proxies, failover);
        let config = HttpClientConfig {
            allow_plain: true,
            connect_timeout: Duration::from_millis(300),
            egress: egress.clone(),
            ..HttpClientConfig::default()
        };
        (HttpClient::new(&config).unwrap(), egress)
    }

    fn origin(url: &str) -> String {
        url.trim_end_matches("/x").to_owned()
    }

    /// A proxy that refuses, hangs, cuts the connection or asks for other credentials: nothing reached the venue.
    #[tokio::test]
    async fn a_failing_proxy_is_distinguished_from_a_failing_venue() {
        let (cut, _) = server("").await;
        let (denies, _) =
            server("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        let (broken, _) = server("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let hangs = format!("http://{}", silent.local_addr().unwrap());
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refuses = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        for address in [origin(&cut), origin(&denies), origin(&broken), hangs.clone(), refuses.clone()] {
            for scheme in ["http", "socks5"] {
                let address = address.replace("http://", &format!("{scheme}://"));
                let (client, egress) = behind(&address, &refuses, false);
                let answer = client.send(request("https://fapi.example/x".to_owned())).await;
                assert!(matches!(answer, Err(TransportError::Proxy(_))), "{address}: {answer:?}");
                let status = deltaplane_ports::ProxyPool::status(&*egress);
                assert!(status.proxies[0].failing.is_some() && status.proxies[0].is_active, "{status:?}");
            }
        }
        // Without TLS the proxy itself carries the request; its 407 is no answer of the venue's.
        let (client, _) = behind(&origin(&denies), &refuses, false);
        let answer = client.send(request("http://fapi.example/x".to_owned())).await;
        assert!(matches!(answer, Err(TransportError::Proxy(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn the_next_attempt_leaves_through_another_proxy_where_that_is_allowed() {
        let (works, count) = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refuses = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let (client, _) = behind(&refuses, &origin(&works), true);
        let to = || request("http://fapi.example/x".to_owned());
        assert!(
            matches!(client.send(to()).await, Err(TransportError::Proxy(_))),
            "one attempt is one attempt"
        );
        assert_eq!((client.send(to()).await.unwrap().status, count.load(Ordering::SeqCst)), (200, 1));
    }
}
