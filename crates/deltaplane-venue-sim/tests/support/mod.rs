//! One request over a plain socket: nothing re-orders or re-encodes what is sent.

use deltaplane_venue_sim::Running;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A request as its bytes go out.
pub(crate) struct Plain<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) headers: &'a str,
    pub(crate) body: &'a str,
}

/// Sends it and gives status and body.
pub(crate) async fn send(running: &Running, request: &Plain<'_>) -> (u16, String) {
    let address = running.rest().replace("http://", "");
    // A GET without a body has no length: some exchanges refuse one that has.
    let length = match (request.method, request.body.len()) {
        ("GET", 0) => String::new(),
        (_, length) => format!("Content-Length: {length}\r\n"),
    };
    let text = format!(
        "{} {} HTTP/1.1\r\nHost: {address}\r\n{}{length}Connection: close\r\n\r\n{}",
        request.method, request.target, request.headers, request.body
    );
    let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let status = answer[9..12].parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// `code` of a body.
pub(crate) fn code(body: &str) -> Option<i64> {
    serde_json::from_str::<Value>(body).ok()?["code"].as_i64()
}

/// Another last character.
pub(crate) fn flipped(text: &str) -> String {
    let last = if text.ends_with(['b', 'B']) { 'c' } else { 'b' };
    format!("{}{last}", &text[..text.len() - 1])
}
