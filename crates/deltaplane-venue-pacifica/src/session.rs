//! The account's WebSocket: its channels, and orders.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_net::{Backoff, Egress, WebSocket, WebSocketError, WeightBudget};
use deltaplane_ports::{AccountEvent, BalanceCause, Clock, SymbolMap};
use deltaplane_types::{
    AccountId, ClientOrderId, Decimal, Delta, ExecutionReport, Notional, Price, Symbol, Timestamp,
    UnknownCause,
};
use secrecy::SecretString;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

use crate::errors;
use crate::map::{self, MapError};
use crate::rest::{SignedOperation, Submitted};
use crate::wire::{AccountInfo, Frame, OrderUpdate, PositionUpdate, PriceRow, Subscribed, TradeUpdate};

const CONNECT: Duration = Duration::from_secs(5);
/// The venue cuts off who says nothing for a minute.
const PING_EVERY: Duration = Duration::from_secs(15);
/// Prices come every second: silence for longer is a dead connection.
const SILENCE: Duration = Duration::from_secs(20);
/// A channel that is not acknowledged by then is not subscribed to: the venue answers a bad request with nothing.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
const CHANNELS: [&str; 5] =
    ["account_order_updates", "account_trades", "account_positions", "account_info", "prices"];
/// Deposits, withdrawals and transfers. Not waited for: without it they count as gains and losses, and nothing breaks.
const TRANSFERS: &str = "account_transfers";
/// Reports kept for those who ask by our name.
const KEPT_REPORTS: usize = 2_000;

/// What a placement over the socket came to.
pub(crate) enum Reply {
    /// It was never written: it may go another way.
    NotWritten(SignedOperation),
    /// It was written, and this came of it.
    Came(Submitted),
}

struct Outgoing {
    signed: SignedOperation,
    reply: oneshot::Sender<Reply>,
}

/// Sends operations over the socket while it is up.
#[derive(Clone)]
pub(crate) struct Orders {
    queue: mpsc::Sender<Outgoing>,
    live: Arc<AtomicBool>,
}

impl Orders {
    /// Writes an operation to the socket and waits for its reply.
    pub(crate) async fn send(&self, signed: SignedOperation, timeout: Duration) -> Reply {
        if !self.live.load(Ordering::SeqCst) {
            return Reply::NotWritten(signed);
        }
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(Outgoing { signed, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                return Reply::NotWritten(back.signed);
            }
        }
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(reply)) => reply,
            // Taken from the queue and perhaps written.
            Ok(Err(_)) => Reply::Came(Submitted::Unknown(UnknownCause::Disconnected)),
            Err(_) => Reply::Came(Submitted::Unknown(UnknownCause::Timeout)),
        }
    }
}

/// What the stream told last.
#[derive(Default)]
pub(crate) struct Told {
    reports: Mutex<(BTreeMap<ClientOrderId, ExecutionReport>, Vec<ClientOrderId>)>,
    marks: Mutex<BTreeMap<Symbol, Price>>,
}

impl Told {
    /// The newest report of an order; only one that ended says all.
    pub(crate) fn report(&self, id: &ClientOrderId) -> Option<ExecutionReport> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).0.get(id).cloned()
    }

    pub(crate) fn mark(&self, symbol: &Symbol) -> Option<Price> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).get(symbol).copied()
    }

    fn keep(&self, report: &ExecutionReport) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let id = &report.client_order_id;
        if reports.0.insert(id.clone(), report.clone()).is_none() {
            reports.1.push(id.clone());
            if reports.1.len() > KEPT_REPORTS {
                let oldest = reports.1.remove(0);
                reports.0.remove(&oldest);
            }
        }
    }
}

pub(crate) struct Session {
    pub(crate) url: String,
    pub(crate) egress: Arc<Egress>,
    /// The account's public key.
    pub(crate) address: String,
    pub(crate) account: AccountId,
    pub(crate) symbols: SymbolMap,
    pub(crate) events: broadcast::Sender<AccountEvent>,
    pub(crate) live: Arc<AtomicBool>,
    pub(crate) told: Arc<Told>,
    /// Raises the credits of what goes over the socket.
    pub(crate) api_config_key: Option<SecretString>,
    pub(crate) credits: Arc<WeightBudget>,
    pub(crate) clock: Arc<dyn Clock>,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Socket(#[from] WebSocketError),
    #[error("the channel {0} was not acknowledged")]
    NotAcknowledged(&'static str),
    #[error("pings are not answered")]
    NoPong,
}

/// One connection's memory.
struct Connection {
    acknowledged: BTreeMap<&'static str, bool>,
    pending: BTreeMap<String, oneshot::Sender<Reply>>,
    last_pong: Instant,
    /// Counter of the newest whole set of positions.
    positions_id: Option<u64>,
    held: BTreeMap<Symbol, Delta>,
    balance: Option<Decimal>,
}

impl Session {
    /// The session's own end and the end for orders.
    pub(crate) fn with_orders(self) -> (impl Future<Output = ()> + Send, Orders) {
        let (queue, receiver) = mpsc::channel(256);
        let orders = Orders { queue, live: self.live.clone() };
        (self.run(receiver), orders)
    }

    async fn run(self, mut queue: mpsc::Receiver<Outgoing>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let began = Instant::now();
            if let Err(error) = self.follow(&mut queue).await {
                tracing::warn!(account = %self.account, %error, "account stream lost");
            }
            if self.live.swap(false, Ordering::SeqCst) {
                self.tell(AccountEvent::Disconnected);
            }
            // What still waits was never written.
            while let Ok(outgoing) = queue.try_recv() {
                let _ = outgoing.reply.send(Reply::NotWritten(outgoing.signed));
            }
            if began.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    fn tell(&self, event: AccountEvent) {
        // Nobody listens between operations; state is then read by REST.
        let _ = self.events.send(event);
    }

    async fn follow(&self, queue: &mut mpsc::Receiver<Outgoing>) -> Result<(), SessionError> {
        let key = self.api_config_key.as_ref().map(|key| ("pf-api-key", key));
        let mut socket = WebSocket::connect_with(&self.url, &self.egress, key, CONNECT, SILENCE).await?;
        for channel in CHANNELS.into_iter().chain([TRANSFERS]) {
            let params = match channel {
                "prices" => json!({"source": channel}),
                _ => json!({"source": channel, "account": self.address}),
            };
            socket.send_text(json!({"method": "subscribe", "params": params}).to_string()).await?;
        }
        let mut connection = Connection {
            acknowledged: BTreeMap::new(),
            pending: BTreeMap::new(),
            last_pong: Instant::now(),
            positions_id: None,
            held: BTreeMap::new(),
            balance: None,
        };
        let opened = Instant::now();
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                biased;
                text = socket.next_text() => self.on_text(&text?, &mut connection),
                Some(outgoing) = queue.recv() => {
                    let id = uuid::Uuid::new_v4().to_string();
                    let Outgoing { signed, reply } = outgoing;
                    let frame = format!(
                        r#"{{"id":"{id}","params":{{"{}":{}}}}}"#, signed.operation, signed.body
                    );
                    connection.pending.insert(id, reply);
                    // From here on it may have been written: the reply or the query decides.
                    socket.send_text(frame).await?;
                }
                _ = ping.tick() => {
                    if connection.last_pong.elapsed() > PING_EVERY * 3 {
                        return Err(SessionError::NoPong);
                    }
                    socket.send_text(r#"{"method":"ping"}"#.to_owned()).await?;
                }
            }
            let missing = CHANNELS.iter().find(|channel| !connection.acknowledged.contains_key(*channel));
            match missing {
                Some(channel) if opened.elapsed() > ACKNOWLEDGE => {
                    return Err(SessionError::NotAcknowledged(channel));
                }
                None if !self.live.swap(true, Ordering::SeqCst) => self.tell(AccountEvent::Connected),
                _ => {}
            }
        }
    }

    fn on_text(&self, text: &str, connection: &mut Connection) {
        if let Err(reason) = self.take(text, connection) {
            // One message of somebody else's must not break the stream; whoever waits asks instead.
            tracing::warn!(account = %self.account, %reason, "an account message cannot be read");
            self.tell(AccountEvent::Connected);
        }
    }

    fn take(&self, text: &str, connection: &mut Connection) -> Result<(), String> {
        let frame: Frame<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let data = frame.data.map_or("null", RawValue::get);
        if let Some(channel) = frame.channel.as_deref() {
            match channel {
                "pong" => connection.last_pong = Instant::now(),
                "subscribe" => {
                    let params: Subscribed = serde_json::from_str(data).map_err(|error| error.to_string())?;
                    if let Some(known) = CHANNELS.iter().find(|known| **known == params.source) {
                        connection.acknowledged.insert(known, true);
                    }
                }
                _ => self.on_channel(channel, data, frame.li, connection)?,
            }
            return Ok(());
        }
        self.observe_credits(&frame);
        let Some(reply) = frame.id.as_ref().and_then(|id| connection.pending.remove(id)) else {
            // A frame that names no request decides nothing: whoever waits for it asks in the end.
            return Ok(());
        };
        let came = match frame.code {
            Some(200) => Submitted::Done(serde_json::from_str(data).unwrap_or(Value::Null)),
            Some(code) => errors::of_reply(code, &frame.err.or(frame.error).unwrap_or_default()).into(),
            None => Submitted::Unknown(UnknownCause::Unreadable),
        };
        // Nobody waits any more where the answer came late; the stream tells the order itself.
        let _ = reply.send(Reply::Came(came));
        Ok(())
    }

    /// Takes the venue's count of credits from a reply.
    fn observe_credits(&self, frame: &Frame<'_>) {
        let now = self.clock.now();
        if let Some(left) = frame.rl {
            self.credits.observe_share(now, left.q.saturating_sub(left.r), left.q);
        }
        if frame.code == Some(429) {
            let wait = frame.rl.map_or(10, |left| left.t).clamp(1, 60);
            self.credits.silence_until(now, now.after(Duration::from_secs(wait)));
        }
    }

    fn on_channel(
        &self,
        channel: &str,
        data: &str,
        li: Option<u64>,
        connection: &mut Connection,
    ) -> Result<(), String> {
        let unreadable = |error: serde_json::Error| error.to_string();
        let impossible = |error: MapError| error.to_string();
        match channel {
            "account_order_updates" => {
                for update in serde_json::from_str::<Vec<OrderUpdate>>(data).map_err(unreadable)? {
                    let Some((_, contract)) = map::of_market(&self.symbols, &update.s) else { continue };
                    if let Some(report) = map::update_report(&update, &contract).map_err(impossible)? {
                        self.told.keep(&report);
                        self.tell(AccountEvent::Report(report));
                    }
                }
            }
            "account_trades" => {
                for update in serde_json::from_str::<Vec<TradeUpdate>>(data).map_err(unreadable)? {
                    let Some((symbol, contract)) = map::of_market(&self.symbols, &update.s) else { continue };
                    let fill = map::update_fill(&update, &self.account, (&symbol, &contract));
                    self.tell(AccountEvent::Fill(fill.map_err(impossible)?));
                }
            }
            "account_positions" => self.on_positions(data, li, connection)?,
            "account_info" => {
                let info: AccountInfo = serde_json::from_str(data).map_err(unreadable)?;
                let before = connection.balance.replace(info.b.0);
                if let Some(change) = before.and_then(|before| info.b.0.checked_sub(before))
                    && !change.is_zero()
                {
                    let amount = Some(Notional::new(change));
                    // Trades settle into it too, and what moved it is not told.
                    self.tell(AccountEvent::BalanceChanged { amount, cause: BalanceCause::Other });
                }
            }
            // How much moves when, and what of it is pending for how long, is not documented: the count of gains begins
            // anew with the next reading.
            TRANSFERS => {
                self.tell(AccountEvent::BalanceChanged { amount: None, cause: BalanceCause::Transfer });
            }
            "prices" => {
                // Rows of markets that nobody trades may be odd: each is read on its own.
                let rows: Vec<&RawValue> = serde_json::from_str(data).map_err(unreadable)?;
                let mut marks = self.told.marks.lock().unwrap_or_else(PoisonError::into_inner);
                for row in rows {
                    let Ok(row) = serde_json::from_str::<PriceRow>(row.get()) else { continue };
                    let Some((symbol, contract)) = map::of_market(&self.symbols, &row.symbol) else {
                        continue;
                    };
                    if let Ok(mark) = contract.base_price(row.mark.0) {
                        marks.insert(symbol, mark);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The set is whole every time: who is missing is flat.
    fn on_positions(&self, data: &str, li: Option<u64>, connection: &mut Connection) -> Result<(), String> {
        if li.zip(connection.positions_id).is_some_and(|(new, known)| new < known) {
            return Ok(());
        }
        connection.positions_id = li.or(connection.positions_id);
        let rows: Vec<PositionUpdate> = serde_json::from_str(data).map_err(|error| error.to_string())?;
        let mut held = BTreeMap::new();
        let mut newest = 0;
        for row in &rows {
            let Some((symbol, contract)) = map::of_market(&self.symbols, &row.s) else { continue };
            held.insert(symbol, map::delta(row.d, row.a.0, &contract).map_err(|error| error.to_string())?);
            newest = newest.max(row.t);
        }
        let venue_time = Timestamp::from_millis(newest);
        let flat = connection.held.keys().filter(|symbol| !held.contains_key(*symbol)).cloned();
        let flat: Vec<Symbol> = flat.collect();
        for symbol in flat {
            self.tell(AccountEvent::Position { symbol, delta: Delta::ZERO, venue_time });
        }
        for (symbol, delta) in &held {
            if connection.held.get(symbol) != Some(delta) {
                self.tell(AccountEvent::Position { symbol: symbol.clone(), delta: *delta, venue_time });
            }
        }
        connection.held = held;
        Ok(())
    }
}
