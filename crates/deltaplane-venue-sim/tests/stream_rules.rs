//! How long a connection lives: heartbeats, silence, message rates and the end of its day.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use deltaplane_venue_sim::config::{AccountConfig, ExchangeConfig};
use deltaplane_venue_sim::{Dialect, Market, SimClock, SimOptions, StreamRules, start};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

const ALL: [Dialect; 3] = [Dialect::Binance, Dialect::Aster, Dialect::Pacifica];

/// An unsolicited pong of a client (masked with zeros).
const PONG: [u8; 6] = [0x8a, 0x80, 0, 0, 0, 0];

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A text frame of a client.
fn text(payload: &str) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    [&[0x81, 0x80 | length, 0, 0, 0, 0], payload.as_bytes()].concat()
}

/// How long a connection lives on which a client sends a frame again and again; `None` if it outlives `watched`.
/// Nothing here answers a ping.
async fn life(
    dialect: Dialect,
    rules: StreamRules,
    (frame, every): (&[u8], Duration),
    watched: Duration,
) -> Option<Duration> {
    let config = ExchangeConfig::with_accounts(dialect, vec![AccountConfig::new("a", "key", "secret")]);
    let clock = SimClock::Frozen(Arc::new(AtomicI64::new(1_750_000_000_000)));
    let market = Market::Synthetic { seed: 1, venue: 1, mark: None };
    let mut options = SimOptions::new(dialect, config, clock, market);
    options.streams = rules;
    let any = "127.0.0.1:0".parse().unwrap();
    let running = start(options, any, Some(any)).await.unwrap();
    let address = running.rest().replace("http://", "");
    let began = Instant::now();
    let mut socket = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = socket.into_split();
    let mut buffer = [0; 4_096];
    let mut answered = false;
    let mut ticks = tokio::time::interval_at(began + every, every);
    while began.elapsed() < watched {
        tokio::select! {
            read = reading.read(&mut buffer) => match read {
                Ok(0) | Err(_) => {
                    assert!(answered, "{dialect:?}: no handshake");
                    return Some(began.elapsed());
                }
                // The handshake of RFC 6455, section 1.3.
                Ok(length) if !answered => {
                    let answer = String::from_utf8_lossy(&buffer[..length]);
                    assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
                    answered = true;
                }
                Ok(_) => {}
            },
            _ = ticks.tick() => {
                // A connection that was cut off shows when it is read.
                let _ = writing.write_all(frame).await;
            }
        }
    }
    None
}

/// The documented rules with minutes turned into tenths of seconds.
fn quick(dialect: Dialect) -> StreamRules {
    StreamRules {
        ping_every: ms(100),
        pong_within: ms(2_400),
        idle_within: ms(if dialect == Dialect::Pacifica { 2_400 } else { 60_000 }),
        lifetime: ms(60_000),
        ..dialect.stream_rules()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_clients_are_disconnected_and_answering_ones_are_not() {
    let silent = async |dialect| life(dialect, quick(dialect), (&[], ms(60_000)), ms(8_000)).await;
    let answering = async |dialect| {
        let answer = match dialect {
            Dialect::Pacifica => text(r#"{"method":"ping"}"#),
            Dialect::Binance | Dialect::Aster => PONG.to_vec(),
        };
        life(dialect, quick(dialect), (&answer, ms(150)), ms(3_600)).await
    };
    // On Pacifica a pong says nothing: the venue waits for a message.
    let ponging = life(Dialect::Pacifica, quick(Dialect::Pacifica), (&PONG, ms(150)), ms(8_000));
    let (ended, lasting, ponged) =
        tokio::join!(join_all(ALL.map(silent)), join_all(ALL.map(answering)), ponging);
    for lived in ended.into_iter().chain([ponged]) {
        assert!(lived.is_some_and(|lived| lived > ms(2_300) && lived < ms(7_000)), "{lived:?}");
    }
    assert_eq!(lasting, [None; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_its_day() {
    for dialect in ALL {
        let rules = StreamRules { lifetime: ms(1_000), ..dialect.stream_rules() };
        let lived = life(dialect, rules, (&[], ms(60_000)), ms(8_000)).await;
        assert!(lived.is_some_and(|lived| lived >= ms(990) && lived < ms(7_000)), "{dialect:?}: {lived:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_send_too_much_are_disconnected() {
    for dialect in [Dialect::Binance, Dialect::Aster] {
        let list = text(r#"{"method":"LIST_SUBSCRIPTIONS","id":1}"#);
        let rules = dialect.stream_rules();
        let lived = life(dialect, rules, (&list, ms(20)), ms(8_000)).await;
        assert!(lived.is_some_and(|lived| lived < ms(7_000)), "{dialect:?}: {lived:?}");
        assert_eq!(life(dialect, rules, (&list, ms(200)), ms(3_000)).await, None, "{dialect:?}");
    }
}
