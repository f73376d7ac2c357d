//! WebSocket connections with bounded messages.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use crate::egress::{ConnectError, Connected, Egress, LATE, host_and_port};

/// The largest message.
const MAX_MESSAGE: usize = 1024 * 1024;
/// The largest frame.
const MAX_FRAME: usize = 256 * 1024;

/// Why a connection ended or never began. Texts never hold the address, which may carry a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// It could not be opened.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The proxy failed.
    #[error("the proxy failed: {0}")]
    Proxy(String),
    /// It broke.
    #[error("the stream broke: {0}")]
    Broken(String),
    /// The other side closed it.
    #[error("the stream was closed")]
    Closed,
    /// Nothing came for too long, not even a ping.
    #[error("the stream was silent for {0:?}")]
    Silent(Duration),
}

/// An open connection.
pub struct WebSocket {
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
    silence: Duration,
    heard: Instant,
    /// The number of the newest ping.
    ping: u64,
}

/// What came over a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(Utf8Bytes),
    /// The answer to the newest ping of ours.
    Pong,
}

impl WebSocket {
    /// Opens a connection that leaves through `egress`; one that stays silent longer than `silence` is given up.
    /// The way there and the handshake may take `timeout` each.
    pub async fn connect(
        url: &str,
        egress: &Egress,
        timeout: Duration,
        silence: Duration,
    ) -> Result<Self, WebSocketError> {
        Self::connect_with(url, egress, None, timeout, silence).await
    }

    /// The same with a secret in a header of the handshake.
    pub async fn connect_with(
        url: &str,
        egress: &Egress,
        header: Option<(&'static str, &SecretString)>,
        timeout: Duration,
        silence: Duration,
    ) -> Result<Self, WebSocketError> {
        let mut request =
            url.into_client_request().map_err(|error| WebSocketError::Connect(error.to_string()))?;
        if let Some((name, secret)) = header {
            let mut value = HeaderValue::from_str(secret.expose_secret())
                .map_err(|_| WebSocketError::Connect(format!("{name} is no legal header")))?;
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_FRAME));
        let (host, port) = host_and_port(url)
            .ok_or_else(|| WebSocketError::Connect("the address has no host".to_owned()))?;
        let Connected { stream, through } =
            egress.connect((&host, port), timeout).await.map_err(|error| match error {
                ConnectError::Proxy(why) => WebSocketError::Proxy(why),
                ConnectError::Direct(why) => WebSocketError::Connect(why),
            })?;
        let opening = client_async_tls_with_config(request, stream, Some(config), None);
        match tokio::time::timeout(timeout, opening).await {
            Ok(Ok((inner, _))) => {
                if let Some(index) = through {
                    egress.worked(index);
                }
                Ok(Self { inner, silence, heard: Instant::now(), ping: 0 })
            }
            Ok(Err(error)) => Err(WebSocketError::Connect(error.to_string())),
            Err(_) => Err(WebSocketError::Connect(LATE.to_owned())),
        }
    }

    /// The next text message. Pings are answered on the way.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is either returned or still to come.
    pub async fn next_text(&mut self) -> Result<Utf8Bytes, WebSocketError> {
        loop {
            if let Received::Text(text) = self.next().await? {
                return Ok(text);
            }
        }
    }

    /// The next text message, or the answer to a ping of ours. Pings of the other side are answered on the way.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is either returned or still to come.
    pub async fn next(&mut self) -> Result<Received, WebSocketError> {
        loop {
            // Counted from the last message, however often the caller begins to wait again.
            let until = self.heard + self.silence;
            let Ok(message) = tokio::time::timeout_at(until, self.inner.next()).await else {
                return Err(WebSocketError::Silent(self.silence));
            };
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => return Ok(Received::Text(text)),
                Some(Ok(Message::Pong(payload))) if payload == self.ping.to_be_bytes().as_slice() => {
                    return Ok(Received::Pong);
                }
                Some(Ok(Message::Close(_))) | None => return Err(WebSocketError::Closed),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(WebSocketError::Broken(error.to_string())),
            }
        }
    }

    /// Asks the other side for a sign of life; [`Received::Pong`] is its answer to the newest ping.
    pub async fn send_ping(&mut self) -> Result<(), WebSocketError> {
        self.ping = self.ping.wrapping_add(1);
        let payload = self.ping.to_be_bytes().to_vec();
        self.send(Message::Ping(payload.into())).await
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: String) -> Result<(), WebSocketError> {
        self.send(Message::Text(text.into())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), WebSocketError> {
        // A peer that reads nothing any more is as silent as one that says nothing.
        match tokio::time::timeout(self.silence, self.inner.send(message)).await {
            Ok(sent) => sent.map_err(|error| WebSocketError::Broken(error.to_string())),
            Err(_) => Err(WebSocketError::Silent(self.silence)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use deltaplane_ports::ProxyPool as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::egress::Proxy;

    const WITHIN: Duration = Duration::from_millis(300);

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    }

    /// A proxy that answers everything with the same bytes and closes.
    async fn saying(answer: &'static [u8]) -> String {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0_u8; 4_096]).await;
                let _ = socket.write_all(answer).await;
            }
        });
        address
    }

    /// An exchange that says hello to everybody and then nothing.
    async fn exchange() -> String {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
                    socket.send(Message::text("hello")).await.unwrap();
                    while socket.next().await.is_some() {}
                });
            }
        });
        address
    }

    /// What a proxy does once the tunnel stands.
    #[derive(Clone, Copy)]
    enum Then {
        CutAtOnce,
        SayNothing,
        /// Passes on so many bytes of the exchange's, then cuts.
        CutAfter(usize),
    }

    /// An HTTP proxy that opens every tunnel.
    async fn tunnel(then: Then) -> String {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut buffer = [0_u8; 4_096];
                let length = socket.read(&mut buffer).await.unwrap();
                let head = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let to = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                match then {
                    Then::CutAtOnce => {}
                    Then::SayNothing => {
                        tokio::spawn(async move { while socket.read(&mut buffer).await.unwrap_or(0) > 0 {} });
                    }
                    Then::CutAfter(bytes) => {
                        let mut venue = TcpStream::connect(to).await.unwrap();
                        let length = socket.read(&mut buffer).await.unwrap();
                        venue.write_all(&buffer[..length]).await.unwrap();
                        let mut passed = 0;
                        while passed < bytes {
                            let length = venue.read(&mut buffer).await.unwrap();
                            socket.write_all(&buffer[..length]).await.unwrap();
                            passed += length;
                        }
                    }
                }
            }
        });
        address
    }

    fn through(addresses: &[String], failover: bool) -> Arc<Egress> {
        let proxy = |(index, url): (usize, &String)| Proxy::new(&format!("p{index}"), url, None).unwrap();
        Egress::through(addresses.iter().enumerate().map(proxy).collect(), failover)
    }

    async fn open(venue: &str, egress: &Egress) -> Result<WebSocket, WebSocketError> {
        WebSocket::connect(&format!("ws://{venue}/ws"), egress, WITHIN, WITHIN).await
    }

    /// Nothing there, nothing said, a cut, other credentials, an error, and bytes that are no answer.
    #[tokio::test]
    async fn a_failing_proxy_is_distinguished_from_a_failing_venue() {
        let (silent, hangs) = listener().await;
        let (gone, refuses) = listener().await;
        drop(gone);
        let denies = saying(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        let broken = saying(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n").await;
        let venue = exchange().await;
        for address in [hangs, refuses, denies, broken, saying(b"").await, saying(b"\x05\xff").await] {
            for scheme in ["http", "socks5"] {
                let url = format!("{scheme}://{address}");
                let egress = through(std::slice::from_ref(&url), false);
                let error = open(&venue, &egress).await.err();
                assert!(matches!(error, Some(WebSocketError::Proxy(_))), "{url}: {error:?}");
                let proxy = egress.status().proxies.remove(0);
                assert!(proxy.failing.is_some() && proxy.failures == 1, "{url}: {proxy:?}");
            }
        }
        drop(silent);
    }

    /// Behind an open tunnel it is not known who fails: the connection ends in time, and the proxy is not blamed.
    #[tokio::test]
    async fn a_tunnel_that_is_cut_or_silent_ends_the_connection() {
        let venue = exchange().await;
        for then in [Then::CutAtOnce, Then::SayNothing] {
            let egress = through(&[format!("http://{}", tunnel(then).await)], false);
            let error = open(&venue, &egress).await.err();
            assert!(matches!(error, Some(WebSocketError::Connect(_))), "{error:?}");
            assert_eq!(egress.status().proxies[0].failing, None);
        }
        // The exchange's answer to the handshake has more than 100 bytes, then "hello" comes.
        let egress = through(&[format!("http://{}", tunnel(Then::CutAfter(101)).await)], false);
        let mut socket = open(&venue, &egress).await.unwrap();
        let end = loop {
            match socket.next_text().await {
                Ok(text) => assert_eq!(text.as_str(), "hello"),
                Err(error) => break error,
            }
        };
        assert!(matches!(end, WebSocketError::Broken(_) | WebSocketError::Closed), "{end:?}");
        // A venue that says nothing any more is noticed behind a proxy as well.
        let egress = through(&[format!("http://{}", tunnel(Then::CutAfter(usize::MAX)).await)], false);
        let mut socket = open(&venue, &egress).await.unwrap();
        assert_eq!(socket.next_text().await.unwrap().as_str(), "hello");
        assert_eq!(socket.next_text().await.unwrap_err(), WebSocketError::Silent(WITHIN));
    }

    #[tokio::test]
    async fn the_next_attempt_leaves_through_another_proxy_where_that_is_allowed() {
        let (_silent, hangs) = listener().await;
        let works = tunnel(Then::CutAfter(usize::MAX)).await;
        let venue = exchange().await;
        let addresses = [format!("socks5://{hangs}"), format!("http://{works}")];
        for failover in [false, true] {
            let egress = through(&addresses, failover);
            assert!(matches!(open(&venue, &egress).await.err(), Some(WebSocketError::Proxy(_))));
            assert_eq!(open(&venue, &egress).await.is_ok(), failover);
            assert_eq!(egress.active(), Some(usize::from(failover)));
        }
    }
}
