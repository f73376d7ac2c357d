//! Where connections leave from: directly, or through the proxies of a pool.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{PoolStatus, ProxyPool, ProxyView};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service;

/// How often every proxy is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(15);
/// After so many looks without an answer a proxy fails.
const SILENT_TWICE: u32 = 2;
/// How long one look may take.
const CHECK_FOR: Duration = Duration::from_secs(5);

/// The error of a connection that took too long.
pub(crate) const LATE: &str = "no answer in time";

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP, with CONNECT.
    Http,
    /// SOCKS 5; names are resolved by the proxy.
    Socks5,
}

/// A proxy. Its credentials are never printed.
#[derive(Clone)]
pub struct Proxy {
    name: String,
    kind: ProxyKind,
    authority: String,
    credentials: Option<(String, SecretString)>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, authority, credentials } = self;
        let credentials = credentials.as_ref().map(|_| "hidden");
        f.debug_struct("Proxy")
            .field("name", name)
            .field("kind", kind)
            .field("authority", authority)
            .field("credentials", &credentials)
            .finish()
    }
}

/// A proxy's address or credentials that cannot be used. It repeats neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The scheme is none of the known ones.
    #[error("the address must begin with http:// or socks5://")]
    Scheme,
    /// Something is in the address that does not belong there.
    #[error("the address holds credentials; give them as user_password_env or user_password_file")]
    Credentials,
    /// The rest is no host and port.
    #[error("the address must be a host and a port, such as socks5://10.0.0.5:1080")]
    Address,
    /// Not a name and a password.
    #[error("the credentials must be user:password, at most 255 characters each")]
    UserPassword,
}

impl Proxy {
    /// A proxy by its address, `http://host:port` or `socks5://host:port`, and its credentials, `user:password`.
    ///
    /// # Errors
    ///
    /// [`ProxyError`]; it repeats nothing of what was given.
    pub fn new(name: &str, address: &str, credentials: Option<&SecretString>) -> Result<Self, ProxyError> {
        let (kind, rest) = [
            ("http://", ProxyKind::Http),
            ("socks5://", ProxyKind::Socks5),
            ("socks5h://", ProxyKind::Socks5),
        ]
        .into_iter()
        .find_map(|(scheme, kind)| Some((kind, address.strip_prefix(scheme)?)))
        .ok_or(ProxyError::Scheme)?;
        let authority = rest.trim_end_matches('/');
        if authority.contains('@') {
            return Err(ProxyError::Credentials);
        }
        let uri: reqwest::Url = format!("http://{authority}").parse().map_err(|_| ProxyError::Address)?;
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if !has_port || uri.host_str().is_none() || uri.path() != "/" || uri.query().is_some() {
            return Err(ProxyError::Address);
        }
        let split = |secret: &SecretString| -> Result<(String, SecretString), ProxyError> {
            let (user, password) = secret.expose_secret().split_once(':').ok_or(ProxyError::UserPassword)?;
            let fits = |text: &str| (1..=255).contains(&text.len()) && text.chars().all(|c| !c.is_control());
            if !fits(user) || !fits(password) {
                return Err(ProxyError::UserPassword);
            }
            Ok((user.to_owned(), password.to_owned().into()))
        };
        Ok(Self {
            name: name.to_owned(),
            kind,
            authority: authority.to_owned(),
            credentials: credentials.map(split).transpose()?,
        })
    }

    /// Its configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For the HTTP client.
    pub(crate) fn for_http(&self) -> Result<reqwest::Proxy, reqwest::Error> {
        let scheme = match self.kind {
            ProxyKind::Http => "http",
            ProxyKind::Socks5 => "socks5h",
        };
        let proxy = reqwest::Proxy::all(format!("{scheme}://{}", self.authority))?;
        Ok(match &self.credentials {
            Some((user, password)) => proxy.basic_auth(user, password.expose_secret()),
            None => proxy,
        })
    }

    /// Whether an address answers through it, whatever the answer is.
    async fn answers(&self, url: &str) -> Result<(), String> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .proxy(self.for_http().map_err(|error| error.to_string())?)
            .timeout(CHECK_FOR)
            .build()
            .map_err(|error| error.to_string())?;
        let answer = client.get(url).send().await;
        let answer = answer.map_err(|error| with_causes(&error.without_url()))?;
        // Without TLS an HTTP proxy answers in place of those whom it cannot reach.
        let is_carried = self.kind == ProxyKind::Http && url.starts_with("http://");
        match answer.status().as_u16() {
            status @ (407 | 502..=504) if is_carried => Err(format!("it answers {status} itself")),
            _ => Ok(()),
        }
    }

    /// Opens a connection to a host through it.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let address = |authority: &str| format!("http://{authority}").parse::<hyper::Uri>();
        let to = address(&format!("{host}:{port}")).map_err(|error| error.to_string())?;
        let via = address(&self.authority).map_err(|error| error.to_string())?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let stream = match self.kind {
            ProxyKind::Http => {
                let mut tunnel = Tunnel::new(via, connector);
                if let Some(value) = self.basic()? {
                    tunnel = tunnel.with_auth(value);
                }
                tunnel.call(to).await.map_err(|error| with_causes(&error))?
            }
            ProxyKind::Socks5 => {
                let mut socks = SocksV5::new(via, connector);
                if let Some((user, password)) = &self.credentials {
                    socks = socks.with_auth(user.clone(), password.expose_secret().to_owned());
                }
                socks.call(to).await.map_err(|error| with_causes(&error))?
            }
        };
        Ok(TokioIo::into_inner(stream))
    }

    fn basic(&self) -> Result<Option<HeaderValue>, String> {
        use base64::Engine as _;
        let Some((user, password)) = &self.credentials else { return Ok(None) };
        let pair = format!("{user}:{}", password.expose_secret());
        let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| "its credentials cannot be a header".to_owned())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Why no connection could be opened; nothing was sent to the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// The proxy failed.
    Proxy(String),
    /// The other side could not be reached directly.
    Direct(String),
}

/// The way out for one account or feed: directly, or through one proxy of a pool at a time.
///
/// Another proxy is taken only where `failover` allows it: keys may be bound to an address. It is kept until it fails
/// itself.
#[derive(Debug)]
pub struct Egress {
    proxies: Vec<PooledProxy>,
    failover: bool,
    active: AtomicUsize,
}

#[derive(Debug)]
struct PooledProxy {
    proxy: Proxy,
    health: Mutex<Health>,
}

#[derive(Clone, Debug, Default)]
struct Health {
    failing: Option<String>,
    failures: u64,
    worked_at: Option<Instant>,
    /// How many looks in a row nothing came back through it, though something did through another one.
    silent: u32,
}

impl Egress {
    /// No proxy.
    pub fn direct() -> Arc<Self> {
        Self::through(Vec::new(), false)
    }

    /// Through the first of these proxies, and through the next one that works where `failover` allows it.
    pub fn through(proxies: Vec<Proxy>, failover: bool) -> Arc<Self> {
        let pooled = |proxy| PooledProxy { proxy, health: Mutex::default() };
        let proxies = proxies.into_iter().map(pooled).collect();
        Arc::new(Self { proxies, failover, active: AtomicUsize::new(0) })
    }

    /// The proxies, in order.
    pub(crate) fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.proxies.iter().map(|pooled| &pooled.proxy)
    }

    /// The index of the proxy that is used now; none where connections leave directly.
    pub(crate) fn active(&self) -> Option<usize> {
        (!self.proxies.is_empty()).then(|| self.active.load(Ordering::SeqCst))
    }

    /// Whether a proxy passes requests without TLS on by itself.
    pub(crate) fn carries(&self, index: usize) -> bool {
        self.proxies.get(index).is_some_and(|pooled| pooled.proxy.kind == ProxyKind::Http)
    }

    fn health(&self, index: usize) -> Option<std::sync::MutexGuard<'_, Health>> {
        self.proxies.get(index).map(|pooled| pooled.health.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A proxy did its part.
    pub(crate) fn worked(&self, index: usize) {
        let Some(mut health) = self.health(index) else { return };
        (health.worked_at, health.silent) = (Some(Instant::now()), 0);
        if health.failing.take().is_some()
            && let Some(pooled) = self.proxies.get(index)
        {
            tracing::info!(proxy = %pooled.proxy.name, "the proxy works again");
        }
    }

    /// A proxy failed: the next attempt leaves through another one, where that is allowed and one works.
    pub(crate) fn failed(&self, index: usize, why: &str) {
        let Some(pooled) = self.proxies.get(index) else { return };
        if let Some(mut health) = self.health(index) {
            if health.failing.is_none() {
                tracing::warn!(proxy = %pooled.proxy.name, why, "the proxy fails");
            }
            health.failing = Some(why.to_owned());
            health.failures = health.failures.saturating_add(1);
        }
        if !self.failover || self.active() != Some(index) {
            return;
        }
        let works = |other: &usize| self.health(*other).is_some_and(|health| health.failing.is_none());
        let count = self.proxies.len();
        let next = (1..count).map(|step| (index + step) % count).find(works);
        if let Some(next) = next
            && self.active.compare_exchange(index, next, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            && let Some(other) = self.proxies.get(next)
        {
            tracing::warn!(from = %pooled.proxy.name, to = %other.proxy.name, "connections leave through another proxy");
        }
    }

    /// Opens a connection within a time. It is this that waits and not its caller: a proxy that says nothing must not
    /// stay in good standing.
    pub(crate) async fn connect(
        &self,
        (host, port): (&str, u16),
        within: Duration,
    ) -> Result<Connected, ConnectError> {
        let Some(index) = self.active() else {
            let stream = tokio::time::timeout(within, TcpStream::connect((host, port))).await;
            let stream = stream.map_err(|_| ConnectError::Direct(LATE.to_owned()))?;
            let prompt = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
            let stream = prompt.map_err(|error| ConnectError::Direct(error.to_string()))?;
            return Ok(Connected { stream, through: None });
        };
        match self.connect_through(index, (host, port), within).await {
            Ok(stream) => Ok(Connected { stream, through: Some(index) }),
            Err(why) => {
                self.failed(index, &why);
                Err(ConnectError::Proxy(why))
            }
        }
    }

    async fn connect_through(
        &self,
        index: usize,
        (host, port): (&str, u16),
        within: Duration,
    ) -> Result<TcpStream, String> {
        let pooled = self.proxies.get(index).ok_or_else(|| "there is no such proxy".to_owned())?;
        match tokio::time::timeout(within, pooled.proxy.connect(host, port)).await {
            Ok(connected) => connected,
            Err(_) => Err(LATE.to_owned()),
        }
    }

    /// Asks the exchange for something through every proxy from time to time, as long as the pool is in use.
    pub fn keep_checking(self: &Arc<Self>, url: &str) {
        let Some((host, port)) = host_and_port(url) else { return };
        let url = url.to_owned();
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(egress) = pool.upgrade() {
                egress.check((&url, &host, port)).await;
                drop(egress);
                tokio::time::sleep(CHECK_EVERY).await;
            }
        });
    }

    /// Looks at every proxy. One that cannot be reached, or reaches no exchange, fails. Where nothing comes back through one,
    /// it is that or the exchange: it fails where something comes back through another one.
    async fn check(&self, (url, host, port): (&str, &str, u16)) {
        let looks = self.proxies.iter().enumerate().map(|(index, pooled)| async move {
            // What is seen counts at once: another proxy may take long.
            if let Err(why) = self.connect_through(index, (host, port), CHECK_FOR).await {
                self.failed(index, &why);
                return Look::Fails;
            }
            let opened = Instant::now();
            match pooled.proxy.answers(url).await {
                Ok(()) => {
                    self.worked(index);
                    Look::Answers
                }
                Err(why) => Look::Silent { opened, why },
            }
        });
        let looks = futures_util::future::join_all(looks).await;
        let is_exchange_there = looks.contains(&Look::Answers);
        for (index, look) in looks.into_iter().enumerate() {
            if let Look::Silent { opened, why } = look {
                self.said_nothing(index, opened, is_exchange_there.then_some(why));
            }
        }
    }

    /// A proxy opened a connection through which nothing came back; `why` is there where others reached the exchange.
    fn said_nothing(&self, index: usize, opened: Instant, why: Option<String>) {
        let Some(mut health) = self.health(index) else { return };
        // Others may have had an answer through it meanwhile.
        if health.worked_at.is_some_and(|at| at >= opened) {
            return;
        }
        match why {
            // One that is lost says nothing yet.
            Some(why) => {
                health.silent = health.silent.saturating_add(1);
                let fails = health.silent >= SILENT_TWICE;
                drop(health);
                if fails {
                    self.failed(index, &format!("nothing comes back through it: {why}"));
                }
            }
            // It is reached again, and the exchange answers no proxy.
            None if health.silent == 0 => health.failing = None,
            None => {}
        }
    }
}

/// What a look at a proxy showed.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// The exchange answered through it.
    Answers,
    /// It opened a connection, and no answer came.
    Silent { opened: Instant, why: String },
    /// It opened none.
    Fails,
}

/// A connection, and the index of the proxy that it goes through: once something came back through that it
/// [`worked`](Egress::worked).
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) through: Option<usize>,
}

impl ProxyPool for Egress {
    fn status(&self) -> PoolStatus {
        let active = self.active();
        let proxies = self
            .proxies
            .iter()
            .enumerate()
            .map(|(index, pooled)| {
                let health = pooled.health.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let Health { failing, failures, worked_at, .. } = health;
                ProxyView {
                    proxy: pooled.proxy.name.clone(),
                    is_active: active == Some(index),
                    failing,
                    failures,
                    worked_ago: worked_at.map(|at| at.elapsed()),
                }
            })
            .collect();
        PoolStatus { proxies, failover: self.failover }
    }
}

/// Host and port of a URL.
pub(crate) fn host_and_port(url: &str) -> Option<(String, u16)> {
    let url: reqwest::Url = url.parse().ok()?;
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port().or(match url.scheme() {
        "https" | "wss" => Some(443),
        "http" | "ws" => Some(80),
        _ => None,
    })?;
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_port_and_holds_no_secret() {
        let secret: SecretString = "user:pass:word".to_owned().into();
        let proxy = Proxy::new("tokyo", "socks5://10.0.0.5:1080", Some(&secret)).unwrap();
        assert!(!format!("{proxy:?}").contains("word"), "{proxy:?}");
        assert_eq!(proxy.credentials.as_ref().map(|(_, word)| word.expose_secret()), Some("pass:word"));
        for (address, expected) in [
            ("10.0.0.5:1080", ProxyError::Scheme),
            ("https://10.0.0.5:1080", ProxyError::Scheme),
            ("http://me:secret@10.0.0.5:1080", ProxyError::Credentials),
            ("http://10.0.0.5", ProxyError::Address),
            ("http://10.0.0.5:99999", ProxyError::Address),
            ("http://:1080", ProxyError::Address),
            ("http://10.0.0.5:1080/x", ProxyError::Address),
            ("http://10.0.0.5/x:1080", ProxyError::Address),
        ] {
            let error = Proxy::new("tokyo", address, None).unwrap_err();
            assert_eq!(error, expected, "{address}");
            assert!(!error.to_string().contains("secret"));
        }
        for credentials in ["no-colon", ":word", "user:", "user:a\nb"] {
            let credentials: SecretString = credentials.to_owned().into();
            let error = Proxy::new("tokyo", "http://10.0.0.5:1", Some(&credentials)).unwrap_err();
            assert_eq!(error, ProxyError::UserPassword);
        }
    }

    #[test]
    fn urls_tell_where_they_lead() {
        let of = |url: &str| host_and_port(url);
        assert_eq!(of("https://fapi.binance.com"), Some(("fapi.binance.com".to_owned(), 443)));
        assert_eq!(of("ws://127.0.0.1:80/x"), Some(("127.0.0.1".to_owned(), 80)));
        assert_eq!(of("wss://[::1]:9/x"), Some(("::1".to_owned(), 9)));
        assert_eq!(of("nowhere"), None);
    }

    fn pool(failover: bool) -> Arc<Egress> {
        let proxy = |name: &str| Proxy::new(name, "http://127.0.0.1:1", None).unwrap();
        Egress::through(vec![proxy("a"), proxy("b"), proxy("c")], failover)
    }

    /// What a SOCKS 5 server does once its tunnel is open.
    #[derive(Clone, Copy)]
    enum Tunnel {
        Passes,
        Cuts,
        SaysNothing,
    }

    async fn socks(what: Tunnel) -> Proxy {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("socks5://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut greeting = [0; 3];
                    socket.read_exact(&mut greeting).await.unwrap();
                    socket.write_all(&[5, 0]).await.unwrap();
                    // CONNECT to an IPv4 address: four bytes of it and two of the port at the end.
                    let mut asked = [0; 10];
                    socket.read_exact(&mut asked).await.unwrap();
                    socket.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
                    match what {
                        Tunnel::Passes => {
                            let port = u16::from_be_bytes([asked[8], asked[9]]);
                            let mut other = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                            let _ = tokio::io::copy_bidirectional(&mut socket, &mut other).await;
                        }
                        Tunnel::Cuts => drop(socket),
                        Tunnel::SaysNothing => tokio::time::sleep(Duration::from_secs(60)).await,
                    }
                });
            }
        });
        Proxy::new("socks", &address, None).unwrap()
    }

    /// An exchange that answers everything with 404.
    async fn exchange() -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut asked = [0; 1_024];
                let _ = socket.read(&mut asked).await;
                let _ = socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
            }
        });
        url
    }

    #[tokio::test]
    async fn a_proxy_that_nothing_comes_back_through_fails_where_another_one_reaches_the_exchange() {
        let url = exchange().await;
        let (host, port) = host_and_port(&url).unwrap();
        for what in [Tunnel::Cuts, Tunnel::SaysNothing] {
            let egress = Egress::through(vec![socks(what).await, socks(Tunnel::Passes).await], true);
            egress.check((&url, &host, port)).await;
            assert_eq!(egress.active(), Some(0), "one answer may be lost");
            egress.check((&url, &host, port)).await;
            let failing: Vec<Option<String>> =
                egress.status().proxies.into_iter().map(|pooled| pooled.failing).collect();
            let why = failing[0].as_deref().unwrap_or_default();
            assert!(why.starts_with("nothing comes back through it"), "{failing:?}");
            assert_eq!((&failing[1], egress.active()), (&None, Some(1)));
        }
        // Alone it may be the exchange: that is nothing against the proxy.
        let egress = Egress::through(vec![socks(Tunnel::Cuts).await], true);
        egress.check((&url, &host, port)).await;
        egress.check((&url, &host, port)).await;
        assert_eq!(egress.status().proxies[0].failures, 0);
        // One that could not be reached is reached again.
        egress.failed(0, "refused");
        egress.check((&url, &host, port)).await;
        assert_eq!(egress.status().proxies[0].failing, None);
        let egress = Egress::through(vec![socks(Tunnel::Passes).await, socks(Tunnel::Passes).await], true);
        egress.check((&url, &host, port)).await;
        assert_eq!((egress.status().proxies[0].failures, egress.active()), (0, Some(0)));
        assert!(egress.status().proxies[0].worked_ago.is_some());
    }

    #[test]
    fn another_proxy_is_taken_only_where_that_is_allowed_and_kept_until_it_fails() {
        let egress = pool(false);
        egress.failed(0, "refused");
        assert_eq!(egress.active(), Some(0));
        let egress = pool(true);
        egress.failed(1, "refused");
        assert_eq!(egress.active(), Some(0), "it is not in use");
        egress.failed(0, "refused");
        assert_eq!(egress.active(), Some(2), "the second one fails too");
        egress.worked(0);
        assert_eq!(egress.active(), Some(2));
        egress.failed(2, "refused");
        assert_eq!(egress.active(), Some(0));
        egress.failed(0, "refused");
        assert_eq!(egress.active(), Some(0), "none works");
        let status = egress.status();
        let failing: Vec<bool> = status.proxies.iter().map(|pooled| pooled.failing.is_some()).collect();
        assert_eq!((failing, status.proxies[0].failures), (vec![true, true, true], 2));
        assert_eq!(Egress::direct().active(), None);
    }
}
