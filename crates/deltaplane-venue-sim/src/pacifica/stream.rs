//! The one WebSocket: public and account channels, and order entry.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::errors::Refused;
use super::{auth, operations, render};
use crate::fault::FaultKind;
use crate::sim::{Frame, Sim, UserFrame, lock};

/// How often whole books are sent.
const BOOK_EVERY: Duration = Duration::from_millis(250);
const PRICES_EVERY: Duration = Duration::from_secs(1);

const ACCOUNT_CHANNELS: [&str; 7] = [
    "account_info",
    "account_positions",
    "account_order_updates",
    "account_trades",
    "account_margin",
    "account_leverage",
    "account_transfers",
];

struct Session {
    sim: Arc<Sim>,
    /// Whether the handshake named an API config key.
    with_key: bool,
    /// Parameters by channel and symbol or account.
    subscriptions: BTreeMap<(String, String), Value>,
    /// The account of an account channel.
    accounts: BTreeMap<(String, String), String>,
    /// Best prices as they were last sent.
    best: BTreeMap<String, String>,
}

/// Serves one connection until it ends.
pub(crate) async fn serve(sim: Arc<Sim>, mut socket: WebSocket, with_key: bool) {
    let mut session = Session {
        sim: sim.clone(),
        with_key,
        subscriptions: BTreeMap::new(),
        accounts: BTreeMap::new(),
        best: BTreeMap::new(),
    };
    let (replies, mut replied) = mpsc::channel::<String>(256);
    let mut frames = sim.frames.subscribe();
    let mut users = sim.users.subscribe();
    let mut closer = sim.stream_closer.subscribe();
    let started = Instant::now();
    let mut heard = started;
    let mut books = tokio::time::interval(BOOK_EVERY);
    let mut prices = tokio::time::interval(PRICES_EVERY);
    let mut watch = tokio::time::interval(Duration::from_millis(100));
    // User events on their way.
    let mut coming: VecDeque<(Instant, Vec<String>)> = VecDeque::new();
    loop {
        // A muted stream reads nothing either, so that no ping is answered.
        let is_muted = lock(&sim.faults).mutes_streams();
        let next = coming.front().map_or_else(|| Instant::now() + Duration::from_secs(3_600), |(at, _)| *at);
        let texts: Vec<String> = tokio::select! {
            biased;
            _ = closer.changed() => break,
            Some(reply) = replied.recv() => vec![reply],
            message = socket.recv(), if !is_muted => match message {
                Some(Ok(Message::Text(text))) => {
                    heard = Instant::now();
                    session.on_text(&text, &replies)
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => Vec::new(),
            },
            user = users.recv() => match user {
                Ok(frame) => {
                    coming.push_back((frame.arrives_at, session.user_frame(&frame)));
                    Vec::new()
                }
                Err(RecvError::Lagged(_)) => Vec::new(),
                Err(RecvError::Closed) => break,
            },
            () = tokio::time::sleep_until(next), if !coming.is_empty() => {
                coming.pop_front().map(|(_, texts)| texts).unwrap_or_default()
            }
            frame = frames.recv() => match frame {
                Ok(frame) => session.best_prices(&frame),
                Err(RecvError::Lagged(_)) => Vec::new(),
                Err(RecvError::Closed) => break,
            },
            _ = books.tick() => session.books(),
            _ = prices.tick() => session.prices(),
            _ = watch.tick() => {
                if heard.elapsed() > sim.streams.idle_within || started.elapsed() > sim.streams.lifetime { break; }
                Vec::new()
            }
        };
        if is_muted {
            continue;
        }
        for text in texts {
            if socket.send(Message::Text(text.into())).await.is_err() {
                return;
            }
        }
    }
    // The peer may be gone already.
    let _ = socket.send(Message::Close(None)).await;
}

#[derive(Deserialize)]
struct Incoming {
    method: Option<String>,
    id: Option<String>,
    params: Option<Box<RawValue>>,
}

impl Session {
    fn on_text(&mut self, text: &str, replies: &mpsc::Sender<String>) -> Vec<String> {
        let malformed =
            || vec![json!({"code": 400, "err": "Invalid request", "t": self.sim.now()}).to_string()];
        let Ok(incoming) = serde_json::from_str::<Incoming>(text) else { return malformed() };
        let params = incoming.params.as_deref().map_or("{}", RawValue::get);
        match (incoming.method.as_deref(), incoming.id) {
            (Some("ping"), _) => vec![json!({"channel": "pong"}).to_string()],
            (Some("subscribe"), _) => self.subscribe(params),
            (Some("unsubscribe"), _) => {
                let params: Value = serde_json::from_str(params).unwrap_or_default();
                if let Some(key) = key_of(&params) {
                    self.subscriptions.remove(&key);
                    self.accounts.remove(&key);
                }
                vec![json!({"channel": "unsubscribe", "data": params}).to_string()]
            }
            (None, Some(id)) => {
                self.trade(id, params, replies);
                Vec::new()
            }
            _ => malformed(),
        }
    }

    /// What the exchange does not know is not answered at all.
    fn subscribe(&mut self, params: &str) -> Vec<String> {
        let params: Value = serde_json::from_str(params).unwrap_or_default();
        let Some(key) = key_of(&params) else { return Vec::new() };
        let (source, of) = key.clone();
        let mut told = vec![json!({"channel": "subscribe", "data": params}).to_string()];
        if ACCOUNT_CHANNELS.contains(&source.as_str()) {
            let Some(account) = lock(&self.sim.bindings).account(&of).map(str::to_owned) else {
                return Vec::new();
            };
            if source == "account_positions" {
                let li = self.sim.last_id.load(Ordering::Relaxed);
                let rows = self
                    .sim
                    .with(|x| x.accounts.get(&account).map(|holder| render::positions(x, holder, li, true)));
                told.push(json!({"channel": "account_positions", "data": rows, "li": li}).to_string());
            }
            if source == "account_info" {
                let now = self.sim.now();
                let info = self
                    .sim
                    .with(|x| x.accounts.get(&account).map(|holder| render::account_info(x, holder, now)));
                told.push(json!({"channel": "account_info", "data": info}).to_string());
            }
            self.accounts.insert(key.clone(), account);
        } else if !(source == "prices" || self.sim.with(|x| x.markets.contains_key(&of))) {
            return Vec::new();
        }
        if self.subscriptions.keys().filter(|(known, _)| *known == source).count()
            < self.sim.streams.max_streams
        {
            self.subscriptions.insert(key, params);
        }
        told
    }

    /// Carries out an operation beside the connection: one that is held back holds nothing else up.
    fn trade(&self, id: String, params: &str, replies: &mpsc::Sender<String>) {
        let Ok(operations) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(params) else { return };
        let Some((operation, body)) = operations.into_iter().next() else { return };
        let (sim, replies, with_key) = (self.sim.clone(), replies.clone(), self.with_key);
        tokio::spawn(async move {
            tokio::time::sleep(sim.latency).await;
            let fault = lock(&sim.faults).for_request("WS", &operation, body.get());
            match &fault {
                Some(
                    FaultKind::Refuse { body, .. }
                    | FaultKind::RefuseFor { body, .. }
                    | FaultKind::RefuseIncreasing { body, .. },
                ) => {
                    let _ = replies.send(body.clone()).await;
                    return;
                }
                Some(FaultKind::Html) => {
                    let _ = replies.send("<html><body>Just a moment...</body></html>".to_owned()).await;
                    return;
                }
                Some(FaultKind::ErrorThenAccept { body, millis, .. }) => {
                    let _ = replies.send(body.clone()).await;
                    tokio::time::sleep(Duration::from_millis(*millis)).await;
                }
                Some(FaultKind::Overfill { quantity }) => crate::fault::overfill(&sim, quantity),
                Some(FaultKind::Late { millis }) => tokio::time::sleep(Duration::from_millis(*millis)).await,
                _ => {}
            }
            let cost = if operation.starts_with("cancel") { 5 } else { 10 };
            let standing = lock(&sim.credits).take(sim.now(), cost, with_key);
            let result = if standing.exhausted {
                Err(Refused::new(429, "Rate limit exceeded"))
            } else {
                perform(&sim, &operation, body.get()).await
            };
            let mut reply = match &result {
                Ok(done) => json!({
                    "code": 200, "data": done.socket(), "id": id, "t": sim.now(), "type": operation,
                }),
                Err(refused) => json!({
                    "id": id, "type": operation, "code": refused.socket_code(), "err": refused.text, "t": sim.now(),
                }),
            };
            if with_key {
                reply["rl"] = json!({"r": standing.remaining, "q": standing.quota, "t": standing.refresh});
            }
            match fault {
                Some(FaultKind::AcceptThenSilence | FaultKind::ErrorThenAccept { .. }) => return,
                Some(FaultKind::Truncate) => {
                    let text = reply.to_string();
                    let _ = replies.send(text.chars().take(text.len() / 2).collect()).await;
                    return;
                }
                Some(FaultKind::Delay { millis }) => tokio::time::sleep(Duration::from_millis(millis)).await,
                Some(FaultKind::AcceptThenError { body, .. }) => {
                    let _ = replies.send(body).await;
                    return;
                }
                _ => {}
            }
            tokio::time::sleep(sim.latency).await;
            // The connection may have ended meanwhile.
            let _ = replies.send(reply.to_string()).await;
        });
    }

    fn user_frame(&self, frame: &UserFrame) -> Vec<String> {
        let mine = self
            .accounts
            .iter()
            .any(|((channel, _), account)| channel == frame.kind && **account == *frame.account);
        if mine { vec![frame.json.to_string()] } else { Vec::new() }
    }

    fn subscribed(&self, channel: &str) -> Vec<String> {
        self.subscriptions.keys().filter(|(known, _)| known == channel).map(|(_, of)| of.clone()).collect()
    }

    fn books(&self) -> Vec<String> {
        if lock(&self.sim.faults).drops_depth() {
            return Vec::new();
        }
        let (now, li) = (self.sim.now(), self.sim.last_id.load(Ordering::Relaxed));
        let symbols = self.subscribed("book");
        self.sim.with(|exchange| {
            let markets = symbols.iter().filter_map(|symbol| exchange.markets.get(symbol));
            markets
                .map(|market| {
                    let mut data = render::book(market, now);
                    data["li"] = li.into();
                    json!({"channel": "book", "data": data}).to_string()
                })
                .collect()
        })
    }

    fn prices(&self) -> Vec<String> {
        if self.subscribed("prices").is_empty() {
            return Vec::new();
        }
        let now = self.sim.now();
        vec![json!({"channel": "prices", "data": self.sim.with(|x| render::prices(x, now))}).to_string()]
    }

    /// Best prices go out when they change; the market's own frames only say that something did.
    fn best_prices(&mut self, frame: &Frame) -> Vec<String> {
        if !matches!(frame.channel, "bookTicker" | "depth") {
            return Vec::new();
        }
        let (now, li) = (self.sim.now(), self.sim.last_id.load(Ordering::Relaxed));
        let mut told = Vec::new();
        // A recording of another exchange names the quote too.
        let base = frame.symbol.strip_suffix("usdt").unwrap_or(&frame.symbol);
        let is_of =
            |symbol: &String| symbol.eq_ignore_ascii_case(base) || symbol.eq_ignore_ascii_case(&frame.symbol);
        for symbol in self.subscribed("bbo").into_iter().filter(is_of) {
            let best = self.sim.with(|exchange| {
                let book = &exchange.markets.get(&symbol)?.book;
                let (bid, ask) = (book.best_bid().unwrap_or_default(), book.best_ask().unwrap_or_default());
                Some(json!({
                    "b": render::dec(bid.0), "B": render::dec(bid.1), "a": render::dec(ask.0), "A": render::dec(ask.1),
                }))
            });
            let Some(mut data) = best else { continue };
            let text = data.to_string();
            if self.best.get(&symbol) == Some(&text) {
                continue;
            }
            self.best.insert(symbol.clone(), text);
            data["s"] = symbol.into();
            data["t"] = now.into();
            data["li"] = li.into();
            told.push(json!({"channel": "bbo", "data": data}).to_string());
        }
        told
    }
}

async fn perform(sim: &Sim, operation: &str, body: &str) -> Result<operations::Done, Refused> {
    let allowed = [
        "create_order",
        "create_market_order",
        "edit_order",
        "cancel_order",
        "cancel_all_orders",
        "batch_orders",
    ];
    if !allowed.contains(&operation) {
        return Err(Refused::new(400, format!("unknown operation `{operation}`")));
    }
    if operations::is_held_back(operation, body) {
        auth::verify_only(sim, operation, body)?;
        tokio::time::sleep(sim.speed_bump).await;
    }
    operations::execute(sim, operation, body)
}

/// Channel, and the symbol or account that it is of.
fn key_of(params: &Value) -> Option<(String, String)> {
    let text = |name: &str| params[name].as_str().map(str::to_owned);
    Some((text("source")?, text("symbol").or(text("account")).unwrap_or_default()))
}
