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

use crate::egress::{ConnectError, Egress, host_and_port};

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
}

impl WebSocket {
    /// Opens a connection that leaves through `egress`; one that stays silent longer than `silence` is given up.
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
        let connecting = async {
            let stream = egress.connect(&host, port).await.map_err(|error| match error {
                ConnectError::Proxy(why) => WebSocketError::Proxy(why),
                ConnectError::Direct(why) => WebSocketError::Connect(why),
            })?;
            let opened = client_async_tls_with_config(request, stream, Some(config), None).await;
            opened.map_err(|error| WebSocketError::Connect(error.to_string()))
        };
        match tokio::time::timeout(timeout, connecting).await {
            Ok(Ok((inner, _))) => Ok(Self { inner, silence, heard: Instant::now() }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(WebSocketError::Connect("no answer in time".to_owned())),
        }
    }

    /// The next text message. Pings are answered on the way.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a message is either returned or still to come.
    pub async fn next_text(&mut self) -> Result<Utf8Bytes, WebSocketError> {
        loop {
            // Counted from the last message, however often the caller begins to wait anew.
            let until = self.heard + self.silence;
            let Ok(message) = tokio::time::timeout_at(until, self.inner.next()).await else {
                return Err(WebSocketError::Silent(self.silence));
            };
            self.heard = Instant::now();
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(_))) | None => return Err(WebSocketError::Closed),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(WebSocketError::Broken(error.to_string())),
            }
        }
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: String) -> Result<(), WebSocketError> {
        // A peer that reads nothing any more is as silent as one that says nothing.
        match tokio::time::timeout(self.silence, self.inner.send(Message::Text(text.into()))).await {
            Ok(sent) => sent.map_err(|error| WebSocketError::Broken(error.to_string())),
            Err(_) => Err(WebSocketError::Silent(self.silence)),
        }
    }
}
