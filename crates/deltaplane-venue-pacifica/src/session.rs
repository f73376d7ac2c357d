//! The account's WebSocket: its channels, their proof, and orders.
//!
//! The stream is proven while pings are answered and every channel of the account was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_net::{
    Backoff, Egress, ProofPart, ProofTimes, Seldom, Spent, StreamProof, WebSocket, WebSocketError,
    WeightBudget,
};
use deltaplane_ports::{AccountEvent, AccountTotals, BalanceCause, Clock, Contract, SymbolMap, WalletChange};
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
use crate::rest::{self, SignedOperation, Submitted};
use crate::wire::{AccountInfo, Frame, OrderUpdate, PositionUpdate, PriceRow, Subscribed, TradeUpdate};

const CONNECT: Duration = Duration::from_secs(5);
/// The venue cuts off who says nothing for a minute, and an answer proves the stream.
const PING_EVERY: Duration = Duration::from_secs(8);
/// How long an answer to a ping proves the stream; subscriptions hold as long as the connection.
pub(crate) const PROOF: ProofTimes = ProofTimes { ping: Duration::from_secs(20), subscription: None };
/// Prices come every second: silence for longer is a dead connection.
const SILENCE: Duration = Duration::from_secs(20);
/// A channel that is not acknowledged by then is not subscribed to: the venue answers a bad request with nothing.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
const CHANNELS: [&str; 7] = [
    "account_order_updates",
    "account_trades",
    "account_positions",
    "account_info",
    "account_margin",
    "account_leverage",
    "prices",
];
/// Deposits, withdrawals and transfers. Not waited for: without it they count as gains and losses, and nothing breaks.
const TRANSFERS: &str = "account_transfers";
/// Reports kept for those who ask by our name.
const KEPT_REPORTS: usize = 2_000;

/// What a placement over the socket came to.
pub(crate) enum Reply {
    /// It was never written: it may go another way.
    NotWritten(SignedOperation, Spent),
    /// It was written, and this came of it.
    Came(Submitted),
}

struct Outgoing {
    signed: SignedOperation,
    spent: Spent,
    reply: oneshot::Sender<Reply>,
}

/// Sends operations over the socket while it is up.
#[derive(Clone)]
pub(crate) struct Orders {
    queue: mpsc::Sender<Outgoing>,
    proof: Arc<StreamProof>,
}

impl Orders {
    /// Writes an operation to the socket and waits for its reply.
    pub(crate) async fn send(&self, signed: SignedOperation, spent: Spent, timeout: Duration) -> Reply {
        if !self.proof.status().is_proven() {
            return Reply::NotWritten(signed, spent);
        }
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(Outgoing { signed, spent, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                return Reply::NotWritten(back.signed, back.spent);
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
    /// Leverage or margin mode changed since the settings were asked for.
    pub(crate) settings_changed: AtomicBool,
}

impl Told {
    /// The newest report of an order; only one that ended says all.
    pub(crate) fn report(&self, id: &ClientOrderId) -> Option<ExecutionReport> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).0.get(id).cloned()
    }

    pub(crate) fn mark(&self, symbol: &Symbol) -> Option<Price> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).get(symbol).copied()
    }

    /// Takes marks for markets that the stream told none of.
    pub(crate) fn lack_no_mark(&self, marks: impl Iterator<Item = (Symbol, Price)>) {
        let mut known = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        for (symbol, mark) in marks {
            known.entry(symbol).or_insert(mark);
        }
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
    pub(crate) proof: Arc<StreamProof>,
    pub(crate) told: Arc<Told>,
    /// Raises the credits of what goes over the socket.
    pub(crate) api_config_key: Option<SecretString>,
    pub(crate) credits: Arc<WeightBudget>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) unmapped_changes: Seldom,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Socket(#[from] WebSocketError),
    #[error("the channel {0} was not acknowledged")]
    NotAcknowledged(&'static str),
    #[error("pings are not answered")]
    NoPong,
    #[error("a frame cannot be read: {0}")]
    NoFrame(String),
}

/// One connection's memory.
struct Connection {
    acknowledged: BTreeSet<&'static str>,
    /// Operations that wait for their reply, with what they cost.
    pending: BTreeMap<String, (oneshot::Sender<Reply>, Spent)>,
    last_pong: Instant,
    /// Counter of the newest whole set of positions.
    positions_id: Option<u64>,
    /// Positions with their entry prices, as they were told last.
    held: BTreeMap<Symbol, (Delta, Option<Price>)>,
    /// Symbols of which trades were told since the newest set.
    traded: BTreeSet<Symbol>,
    balance: Option<Decimal>,
}

impl Connection {
    fn new() -> Self {
        Self {
            acknowledged: BTreeSet::new(),
            pending: BTreeMap::new(),
            last_pong: Instant::now(),
            positions_id: None,
            held: BTreeMap::new(),
            traded: BTreeSet::new(),
            balance: None,
        }
    }
}

impl Session {
    /// The session's own end and the end for orders.
    pub(crate) fn with_orders(self) -> (impl Future<Output = ()> + Send, Orders) {
        let (queue, receiver) = mpsc::channel(256);
        let orders = Orders { queue, proof: self.proof.clone() };
        (self.run(receiver), orders)
    }

    async fn run(self, mut queue: mpsc::Receiver<Outgoing>) {
        self.symbols.until_known().await;
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let began = Instant::now();
            if let Err(error) = self.follow(&mut queue).await {
                tracing::warn!(account = %self.account, %error, "account stream lost");
            }
            if self.proof.disconnected() {
                self.tell(AccountEvent::Disconnected);
            }
            // What still waits was never written.
            while let Ok(outgoing) = queue.try_recv() {
                let _ = outgoing.reply.send(Reply::NotWritten(outgoing.signed, outgoing.spent));
            }
            if began.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    fn tell(&self, event: AccountEvent) {
        // There may be no listener between operations; state is then read by REST.
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
        let mut connection = Connection::new();
        self.proof.connected();
        self.tell(AccountEvent::Connected);
        let opened = Instant::now();
        let mut ping = tokio::time::interval(PING_EVERY);
        loop {
            tokio::select! {
                biased;
                text = socket.next_text() => self.on_text(&text?, &mut connection)?,
                Some(outgoing) = queue.recv() => {
                    let id = uuid::Uuid::new_v4().to_string();
                    let Outgoing { signed, spent, reply } = outgoing;
                    let frame = format!(
                        r#"{{"id":"{id}","params":{{"{}":{}}}}}"#, signed.operation, signed.body
                    );
                    connection.pending.insert(id, (reply, spent));
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
            if opened.elapsed() > ACKNOWLEDGE
                && let Some(channel) =
                    CHANNELS.iter().find(|channel| !connection.acknowledged.contains(*channel))
            {
                return Err(SessionError::NotAcknowledged(channel));
            }
        }
    }

    fn on_text(&self, text: &str, connection: &mut Connection) -> Result<(), SessionError> {
        let frame: Frame<'_> =
            serde_json::from_str(text).map_err(|error| SessionError::NoFrame(error.to_string()))?;
        if let Err(reason) = self.take(frame, connection) {
            // One odd message must not break the stream; the account is read again instead.
            tracing::warn!(account = %self.account, %reason, "an account message cannot be read");
            self.tell(AccountEvent::Unreadable);
        }
        Ok(())
    }

    fn take(&self, frame: Frame<'_>, connection: &mut Connection) -> Result<(), String> {
        let data = frame.data.map_or("null", RawValue::get);
        if let Some(channel) = frame.channel.as_deref() {
            match channel {
                "pong" => {
                    connection.last_pong = Instant::now();
                    self.proof.answered(ProofPart::Ping, self.clock.now());
                }
                "subscribe" => {
                    let params: Subscribed = serde_json::from_str(data).map_err(|error| error.to_string())?;
                    if let Some(known) = CHANNELS.iter().find(|known| **known == params.source) {
                        connection.acknowledged.insert(known);
                        if connection.acknowledged.len() == CHANNELS.len() {
                            self.proof.answered(ProofPart::Subscription, self.clock.now());
                        }
                    }
                }
                _ => self.on_channel(channel, data, frame.li, connection)?,
            }
            return Ok(());
        }
        let waiting = frame.id.as_ref().and_then(|id| connection.pending.remove(id));
        let (reply, spent) = waiting.unzip();
        self.observe_credits(&frame, spent);
        // A frame that names no request decides nothing: the waiting request asks in the end.
        let Some(reply) = reply else { return Ok(()) };
        let came = match frame.code {
            Some(200) => Submitted::Done(serde_json::from_str(data).unwrap_or(Value::Null)),
            Some(code) => errors::of_reply(code, &frame.err.or(frame.error).unwrap_or_default()).into(),
            None => Submitted::Unknown(UnknownCause::Unreadable),
        };
        // No request waits any more if the answer came late; the stream has the order.
        let _ = reply.send(Reply::Came(came));
        Ok(())
    }

    /// Takes the venue's count of credits from a reply.
    fn observe_credits(&self, frame: &Frame<'_>, spent: Option<Spent>) {
        let now = self.clock.now();
        let used = rest::believed(&self.credits, frame.rl.map(|left| (left.r, left.q)));
        match (spent, used) {
            (Some(spent), used) => spent.answered(now, used),
            (None, Some(used)) => self.credits.observe(now, used),
            (None, None) => {}
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
                    let Some((symbol, contract)) = self.of_market(&update.s) else { continue };
                    let open = map::left_open(&update, (symbol, &contract)).map_err(impossible)?;
                    self.tell(AccountEvent::Open(open));
                    if let Some(report) = map::update_report(&update, &contract).map_err(impossible)? {
                        self.told.keep(&report);
                        self.tell(AccountEvent::Report(report));
                    }
                }
            }
            "account_trades" => {
                for update in serde_json::from_str::<Vec<TradeUpdate>>(data).map_err(unreadable)? {
                    let Some((symbol, contract)) = self.of_market(&update.s) else { continue };
                    let fill = map::update_fill(&update, &self.account, (&symbol, &contract));
                    // Without its place it counts as told by the position already; a reading checks that.
                    let order = update.li.or(li).unwrap_or(0);
                    self.tell(AccountEvent::Fill(fill.map_err(impossible)?, order));
                    connection.traded.insert(symbol);
                }
            }
            "account_positions" => self.on_positions(data, li, connection)?,
            "account_info" => {
                let info: AccountInfo = serde_json::from_str(data).map_err(unreadable)?;
                let wallet = WalletChange { asset: "USDC".to_owned(), balance: info.b.0, is_money: true };
                self.tell(AccountEvent::Wallet(vec![wallet]));
                if let (Some(equity), Some(available), Some(used)) = (info.ae, info.available, info.mu) {
                    self.tell(AccountEvent::Totals(AccountTotals {
                        wallet_balance: Notional::new(info.b.0),
                        equity: Notional::new(equity.0),
                        available: Notional::new(available.0),
                        initial_margin: Notional::new(used.0),
                        maintenance_margin: info.cm.map(|margin| Notional::new(margin.0)),
                    }));
                }
                let before = connection.balance.replace(info.b.0);
                if let Some(change) = before.and_then(|before| info.b.0.checked_sub(before))
                    && !change.is_zero()
                {
                    let amount = Some(Notional::new(change));
                    // Trades settle into it too, and what moved it is not told.
                    self.tell(AccountEvent::BalanceChanged { amount, cause: BalanceCause::Other });
                }
            }
            "account_margin" | "account_leverage" => {
                self.told.settings_changed.store(true, Ordering::SeqCst);
                self.tell(AccountEvent::SettingsChanged);
            }
            // How much moves when, and what of it is pending for how long, is not documented: the count of gains begins
            // again with the next read.
            TRANSFERS => {
                self.tell(AccountEvent::BalanceChanged { amount: None, cause: BalanceCause::Transfer });
            }
            "prices" => {
                // Rows of unused markets may be malformed: each is read on its own.
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

    /// The contract that an event of the account is about. Of what has no symbol here, a reading tells.
    fn of_market(&self, name: &str) -> Option<(Symbol, Contract)> {
        let found = map::of_market(&self.symbols, name);
        // Trades in contracts without a symbol may be frequent.
        if found.is_none() && self.unmapped_changes.passes().is_some() {
            self.tell(AccountEvent::UnmappedChanged);
        }
        found
    }

    /// The set is whole every time: who is missing is flat.
    fn on_positions(&self, data: &str, li: Option<u64>, connection: &mut Connection) -> Result<(), String> {
        if li.zip(connection.positions_id).is_some_and(|(new, known)| new < known) {
            return Ok(());
        }
        // A set without a number comes after the one before it on this connection.
        let order = li.unwrap_or_else(|| connection.positions_id.unwrap_or(0).saturating_add(1));
        connection.positions_id = Some(order);
        let rows: Vec<PositionUpdate> = serde_json::from_str(data).map_err(|error| error.to_string())?;
        let mut held = BTreeMap::new();
        let mut newest = 0;
        for row in &rows {
            let Some((symbol, contract)) = self.of_market(&row.s) else { continue };
            let delta = map::delta(row.d, row.a.0, &contract).map_err(|error| error.to_string())?;
            held.insert(symbol, (delta, row.p.and_then(|price| contract.base_price(price.0).ok())));
            newest = newest.max(row.t);
        }
        let venue_time = Timestamp::from_millis(newest);
        // After a trade the set tells where the symbol stands, also where it stands as before: the trade is in it then.
        let traded = std::mem::take(&mut connection.traded);
        let known = connection.held.keys().chain(&traded).filter(|symbol| !held.contains_key(*symbol));
        let flat: BTreeSet<Symbol> = known.cloned().collect();
        let told = |symbol: &Symbol, delta, entry_price| AccountEvent::Position {
            symbol: symbol.clone(),
            delta,
            entry_price,
            unrealized: None,
            order,
            venue_time,
        };
        for symbol in flat {
            self.tell(told(&symbol, Delta::ZERO, None));
        }
        for (symbol, held) in &held {
            if connection.held.get(symbol) != Some(held) || traded.contains(symbol) {
                self.tell(told(symbol, held.0, held.1));
            }
        }
        connection.held = held;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_ports::{NameRule, SymbolMap};

    use super::*;

    struct At(Timestamp);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            self.0
        }
    }

    fn session() -> Session {
        Session {
            url: String::new(),
            egress: Egress::direct(),
            address: "address".to_owned(),
            account: "main".parse().expect("an account's name"),
            symbols: SymbolMap::of_names(NameRule::BaseOnly, ["BTC"]),
            events: broadcast::channel(64).0,
            proof: Arc::new(StreamProof::new(PROOF)),
            told: Arc::default(),
            api_config_key: None,
            credits: Arc::new(WeightBudget::rolling(1_000, Duration::from_secs(60))),
            clock: Arc::new(At(Timestamp::from_millis(1_764_000_000_000))),
            unmapped_changes: Seldom::new(Duration::from_secs(10)),
        }
    }

    /// A sell of 0.25 in two trades. The first set shows both already with the number of the first trade; the second set is
    /// the same and has the number of the second trade: it says that this one is in it.
    #[test]
    fn an_equal_set_after_a_trade_is_an_event_again() {
        let session = session();
        let mut told = session.events.subscribe();
        let mut connection = Connection::new();
        let mut take = |text: String| session.on_text(&text, &mut connection).expect("a frame");
        let set = |amount: &str, li: u64| {
            let row = json!({"s": "BTC", "d": "bid", "a": amount, "p": "66000", "m": "0", "f": "0", "i": false, "l": null, "t": 1, "li": li});
            json!({"channel": "account_positions", "data": [row], "li": li}).to_string()
        };
        let trade = |number: u64, amount: &str, li: u64| {
            let row = json!({"h": number, "i": 1, "I": null, "u": "address", "s": "BTC", "p": "66000", "o": "66000", "a": amount, "te": "fulfill_taker", "ts": "close_long", "tc": "normal", "f": "0", "n": "0", "t": 1, "li": li});
            json!({"channel": "account_trades", "data": [row]}).to_string()
        };
        for frame in
            [set("0.5", 1), trade(1, "0.124", 2), set("0.25", 2), trade(2, "0.126", 3), set("0.25", 3)]
        {
            take(frame);
        }
        // Without a trade in between it is one event.
        take(set("0.25", 4));
        let mut places = Vec::new();
        while let Ok(event) = told.try_recv() {
            match event {
                AccountEvent::Position { delta, order, .. } => places.push((delta.to_string(), order)),
                AccountEvent::Fill(fill, order) => places.push((format!("sold {}", fill.quantity), order)),
                _ => {}
            }
        }
        let text = |text: &str| text.to_owned();
        assert_eq!(
            places,
            [
                (text("0.5"), 1),
                (text("sold 0.124"), 2),
                (text("0.25"), 2),
                (text("sold 0.126"), 3),
                (text("0.25"), 3)
            ]
        );
    }

    /// A stream counts as proven when every channel was acknowledged, and not when they were only asked for.
    #[tokio::test]
    async fn a_stream_is_proven_when_every_channel_was_acknowledged() {
        let session = session();
        let mut connection = Connection::new();
        session.proof.connected();
        session.on_text(r#"{"channel":"pong"}"#, &mut connection).expect("a pong");
        let (last, others) = CHANNELS.split_last().expect("channels");
        for source in others {
            let answer = json!({"channel": "subscribe", "data": {"source": source, "account": "address"}});
            session.on_text(&answer.to_string(), &mut connection).expect("an acknowledgement");
            assert!(!session.proof.status().is_proven(), "{source} is not the last one");
        }
        let answer = json!({"channel": "subscribe", "data": {"source": last}});
        session.on_text(&answer.to_string(), &mut connection).expect("an acknowledgement");
        assert!(session.proof.status().is_proven());
    }
}
