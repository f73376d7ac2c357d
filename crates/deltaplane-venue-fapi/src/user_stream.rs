//! The account's stream: listen key, proof, reconnect, events.
//!
//! The stream is proven while the exchange extends **our** listen key and answers the pings of this very connection.

use std::sync::Arc;
use std::time::Duration;

use deltaplane_net::{
    Backoff, Egress, ProofPart, ProofTimes, Received, Seldom, StreamProof, WebSocket, WebSocketError,
};
use deltaplane_ports::{AccountEvent, BalanceCause, Priority, SymbolMap, WalletChange};
use deltaplane_types::{AccountId, Decimal, Notional, Timestamp, is_money};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use crate::map::{self, MapError};
use crate::rest::{Rest, RestError};
use crate::tables::Tables;
use crate::wire::{AccountUpdate, EventType, OrderTradeUpdate};

/// How often the key is extended: that proves that it is ours and alive.
const EXTEND_EVERY: Duration = Duration::from_secs(60);
/// The pause after an extension that was not answered.
const EXTEND_AGAIN: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long an answer to a ping, and an extension, prove the stream.
pub(crate) const PROOF: ProofTimes =
    ProofTimes { ping: Duration::from_secs(30), subscription: Some(Duration::from_secs(75)) };
/// A connection on which nothing comes for so long, not even an answer to a ping, is dead.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);
/// The exchange's code for a listen key that does not exist.
const NO_KEY: i64 = -1125;

pub(crate) struct UserStream {
    pub(crate) rest: Arc<Rest>,
    pub(crate) tables: Arc<Tables>,
    pub(crate) url: String,
    pub(crate) egress: Arc<Egress>,
    pub(crate) account: AccountId,
    pub(crate) symbols: SymbolMap,
    pub(crate) events: broadcast::Sender<AccountEvent>,
    pub(crate) proof: Arc<StreamProof>,
    pub(crate) unmapped_changes: Seldom,
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Socket(#[from] WebSocketError),
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error("the listen key ran out")]
    KeyExpired,
    #[error("the exchange extends another listen key than this stream's")]
    OtherKey,
    #[error("a frame is no event: {0}")]
    NoEvent(String),
    #[error("an event cannot be read: {0}")]
    Unreadable(String),
}

impl From<serde_json::Error> for StreamError {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl From<MapError> for StreamError {
    fn from(error: MapError) -> Self {
        Self::Unreadable(error.to_string())
    }
}

impl UserStream {
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
        loop {
            let began = tokio::time::Instant::now();
            if let Err(error) = self.follow().await {
                tracing::warn!(account = %self.account, %error, "account stream lost");
            }
            if self.proof.disconnected() {
                self.tell(AccountEvent::Disconnected);
            }
            if began.elapsed() > Duration::from_secs(30) {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    fn tell(&self, event: AccountEvent) {
        // Without a listener the state is read by REST.
        let _ = self.events.send(event);
    }

    async fn follow(&self) -> Result<(), StreamError> {
        // Before it is known what is listed, an event does not tell which contract it means.
        self.tables.ensure_listed(Priority::Sync).await?;
        let key = self.rest.listen_key_post().await?.listen_key;
        let streams = self.rest.dialect.streams;
        let url = format!("{}{}{key}", self.url, streams.user);
        let mut socket = WebSocket::connect(&url, &self.egress, CONNECT, SILENCE).await?;
        let now = || self.rest.clock.now();
        self.proof.connected();
        self.tell(AccountEvent::Connected);
        let mut ping = tokio::time::interval(PING_EVERY);
        // At once: that it was made a moment ago does not prove that it is the account's one that lives.
        let mut extend_at = tokio::time::Instant::now();
        // Beside the stream: a slow answer holds no event up.
        let mut extending: Option<BoxFuture<'_, Result<(), StreamError>>> = None;
        loop {
            tokio::select! {
                biased;
                received = socket.next() => match received? {
                    Received::Text(text) => self.on_text(&text)?,
                    Received::Pong => self.proof.answered(ProofPart::Ping, now()),
                },
                extended = async { match extending.as_mut() { Some(extending) => extending.await, None => Ok(()) } },
                    if extending.is_some() =>
                {
                    extending = None;
                    match extended {
                        Ok(()) => {
                            self.proof.answered(ProofPart::Subscription, now());
                            extend_at = tokio::time::Instant::now() + EXTEND_EVERY;
                        }
                        Err(StreamError::Rest(error)) => {
                            // The proof lapses by itself where this lasts.
                            tracing::debug!(account = %self.account, %error, "the listen key is not extended yet");
                            extend_at = tokio::time::Instant::now() + EXTEND_AGAIN;
                        }
                        Err(error) => return Err(error),
                    }
                }
                _ = ping.tick() => socket.send_ping().await?,
                () = tokio::time::sleep_until(extend_at), if extending.is_none() => {
                    extending = Some(self.extend(&key).boxed());
                }
            }
        }
    }

    /// Extends the listen key; an error where another one is alive.
    async fn extend(&self, ours: &str) -> Result<(), StreamError> {
        let named = if self.rest.dialect.streams.extends_by_post {
            Ok(Some(self.rest.listen_key_post().await?.listen_key))
        } else {
            self.rest.listen_key_put().await
        };
        match named {
            Ok(Some(key)) if key != ours => Err(StreamError::OtherKey),
            Ok(_) => Ok(()),
            Err(RestError::Refused(refusal)) if refusal.code == Some(NO_KEY) => Err(StreamError::KeyExpired),
            Err(error) => Err(error.into()),
        }
    }

    fn on_text(&self, text: &str) -> Result<(), StreamError> {
        match decode(text, &self.account, &self.symbols) {
            Ok(events) => {
                for event in events {
                    match event {
                        AccountEvent::SettingsChanged => self.tables.settings_changed(),
                        // Trades in contracts without a symbol may be frequent.
                        AccountEvent::UnmappedChanged if self.unmapped_changes.passes().is_none() => continue,
                        _ => {}
                    }
                    self.tell(event);
                }
            }
            Err(StreamError::Unreadable(reason)) => {
                // One odd event must not break the stream; the account is read again instead.
                tracing::warn!(account = %self.account, %reason, "an account event cannot be read");
                self.tell(AccountEvent::Unreadable);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What one message tells; unknown types tell nothing.
fn decode(text: &str, account: &AccountId, symbols: &SymbolMap) -> Result<Vec<AccountEvent>, StreamError> {
    let kind: EventType<'_> =
        serde_json::from_str(text).map_err(|error| StreamError::NoEvent(error.to_string()))?;
    let mut told = Vec::new();
    match &*kind.e {
        "ORDER_TRADE_UPDATE" => {
            let OrderTradeUpdate { o } = serde_json::from_str(text)?;
            let Ok((symbol, contract)) = symbols.canonical(&o.s) else {
                return Ok(vec![AccountEvent::UnmappedChanged]);
            };
            if let Some(fill) = map::event_fill(&o, account, (&symbol, &contract))? {
                told.push(AccountEvent::Fill(fill, order_of(o.time)));
            }
            told.push(AccountEvent::Open(map::event_open(&o, (symbol, &contract))?));
            // What the venue or another program calls its orders may be no name that we could have given.
            if map::client_order_id(&o.c).is_ok() {
                told.push(AccountEvent::Report(map::event_report(&o, &contract)?));
            }
        }
        "ACCOUNT_UPDATE" => {
            let update: AccountUpdate = serde_json::from_str(text)?;
            for position in update.a.positions {
                // In hedge mode one side alone is not the net position: trades move it, and readings check it.
                if position.ps != "BOTH" {
                    continue;
                }
                let Ok((symbol, contract)) = symbols.canonical(&position.s) else {
                    told.push(AccountEvent::UnmappedChanged);
                    continue;
                };
                told.push(AccountEvent::Position {
                    symbol,
                    delta: map::delta(position.pa, &contract)?,
                    entry_price: position.ep.and_then(|entry| map::price_or_none(entry, &contract)),
                    unrealized: position.up.map(|profit| Notional::new(profit.0)),
                    order: order_of(update.time),
                    venue_time: Timestamp::from_millis(update.time),
                });
            }
            let wallets = update.a.balances.iter().filter_map(|row| {
                Some(WalletChange { asset: row.a.clone(), balance: row.wb?.0, is_money: is_money(&row.a) })
            });
            let wallets: Vec<WalletChange> = wallets.collect();
            if !wallets.is_empty() {
                told.push(AccountEvent::Wallet(wallets));
            }
            if update.a.reason != "ORDER" {
                // Other assets than dollars have no amount in quote.
                let in_dollars = update.a.balances.iter().all(|b| is_money(&b.a) || b.bc.is_none());
                let changes = update.a.balances.iter().filter_map(|balance| balance.bc);
                let sum = changes.fold(Decimal::ZERO, |sum, change| sum.saturating_add(change.0));
                let amount = (in_dollars && !sum.is_zero()).then(|| Notional::new(sum));
                let cause = match update.a.reason.as_str() {
                    "FUNDING_FEE" => BalanceCause::Funding,
                    "DEPOSIT" | "WITHDRAW" | "WITHDRAW_REJECT" | "ADMIN_DEPOSIT" | "ADMIN_WITHDRAW"
                    | "ASSET_TRANSFER" | "COIN_SWAP_DEPOSIT" | "COIN_SWAP_WITHDRAW" => BalanceCause::Transfer,
                    "MARGIN_TYPE_CHANGE" => {
                        told.push(AccountEvent::SettingsChanged);
                        BalanceCause::Other
                    }
                    _ => BalanceCause::Other,
                };
                told.push(AccountEvent::BalanceChanged { amount, cause });
            }
        }
        "ACCOUNT_CONFIG_UPDATE" => told.push(AccountEvent::SettingsChanged),
        "listenKeyExpired" => return Err(StreamError::KeyExpired),
        // A margin call, or an event of tomorrow that carries a position: the account is read at once.
        _ if text.contains(r#""pa":"#) || text.contains(r#""positionAmt":"#) => {
            told.push(AccountEvent::Unreadable);
        }
        _ => {}
    }
    Ok(told)
}

/// The place of an event in the exchange's order: events of one symbol are ordered by their transaction time.
fn order_of(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_ports::NameRule;
    use deltaplane_types::{FillCause, OrderStatus, Side};

    fn symbols() -> SymbolMap {
        SymbolMap::of_names(NameRule::BaseAndQuote, ["BTCUSDT"])
    }

    fn events(text: &str) -> Vec<AccountEvent> {
        decode(text, &"a".parse().unwrap(), &symbols()).unwrap()
    }

    /// The sample of the venue's page on order updates.
    #[test]
    fn a_trade_tells_a_fill_and_a_report() {
        let text = r#"{"e":"ORDER_TRADE_UPDATE","E":1795312345690,"T":1795312345688,"o":{"s":"BTCUSDT","c":"dn-7f3a","S":"BUY","o":"LIMIT","f":"GTC","q":"0.010","p":"61000","ap":"61000.00","sp":"0","x":"TRADE","X":"PARTIALLY_FILLED","i":22542179,"l":"0.004","z":"0.004","L":"61000","n":"0.04880000","N":"USDT","T":1795312345688,"t":501234567,"b":"366.00000","a":"0","m":true,"R":false,"wt":"CONTRACT_PRICE","ot":"LIMIT","ps":"BOTH","cp":false,"rp":"0","pP":false,"si":0,"ss":0,"V":"EXPIRE_MAKER","pm":"NONE","gtd":0,"er":"0"}}"#;
        let told = events(text);
        let AccountEvent::Fill(fill, 1_795_312_345_688) = &told[0] else { panic!("{told:?}") };
        assert_eq!(
            (fill.trade_id.as_str(), fill.side, fill.quantity.to_string()),
            ("501234567", Side::Buy, "0.004".into())
        );
        assert_eq!(
            (fill.price.to_string(), fill.fee.amount.normalize().to_string()),
            ("61000".into(), "0.0488".into())
        );
        let AccountEvent::Open(open) = &told[1] else { panic!("{told:?}") };
        assert_eq!((open.left.to_string(), open.side), ("0.006".into(), Side::Buy));
        let AccountEvent::Report(report) = &told[2] else { panic!("{told:?}") };
        assert_eq!(
            (report.status, report.client_order_id.as_str()),
            (OrderStatus::PartiallyFilled, "dn-7f3a")
        );
    }

    #[test]
    fn a_state_of_tomorrow_is_an_error_and_an_event_of_tomorrow_is_not() {
        assert!(events(r#"{"e":"FUTURE_EVENT","E":1}"#).is_empty());
        let call = r#"{"e":"MARGIN_CALL","E":1587727187525,"cw":"3.16812045","p":[{"s":"ETHUSDT","ps":"LONG","pa":"1.327","mt":"CROSSED","iw":"0","mp":"187.17127","up":"-1.166074","mm":"1.614445"}]}"#;
        assert_eq!(events(call), [AccountEvent::Unreadable]);
        let text = r#"{"e":"ORDER_TRADE_UPDATE","o":{"s":"BTCUSDT","c":"x","S":"BUY","X":"MELTED","i":1,"l":"0","z":"0","L":"0","ap":"0","T":1,"t":0}}"#;
        assert!(decode(text, &"a".parse().unwrap(), &symbols()).is_err());
    }

    /// The same page's frame that is no event, and a changed leverage.
    #[test]
    fn an_unknown_frame_ends_the_stream_and_a_changed_setting_is_an_event() {
        for text in ["", "<html>", "[1]", r#"{"stream":"x"}"#] {
            let told = decode(text, &"a".parse().unwrap(), &symbols());
            assert!(matches!(told, Err(StreamError::NoEvent(_))), "{text}: {told:?}");
        }
        let told = events(r#"{"e":"ACCOUNT_CONFIG_UPDATE","E":1,"T":1,"ac":{"s":"BTCUSDT","l":25}}"#);
        assert_eq!(told, [AccountEvent::SettingsChanged]);
    }

    /// The venue's names of its own orders may be longer than ours can be: 40 characters.
    #[test]
    fn a_trade_of_the_venues_own_order_is_an_event() {
        let told = events(
            r#"{"e":"ORDER_TRADE_UPDATE","o":{"s":"BTCUSDT","c":"settlement_autoclose-1768962991505050083","S":"SELL","X":"FILLED","q":"0.2","i":7,"l":"0.2","z":"0.2","L":"66000","ap":"66000","T":5,"t":9}}"#,
        );
        let [AccountEvent::Fill(fill, 5), AccountEvent::Open(open)] = &told[..] else { panic!("{told:?}") };
        assert_eq!((fill.cause, fill.client_order_id.as_ref()), (FillCause::Settlement, None));
        assert!(open.left.is_zero());
    }

    #[test]
    fn a_contract_without_symbol_asks_for_a_read() {
        let told = events(
            r#"{"e":"ACCOUNT_UPDATE","E":2,"T":1,"a":{"m":"ORDER","B":[],"P":[{"s":"ODDUSDT","pa":"3","ps":"BOTH"},{"s":"BTCUSDT","pa":"1","ps":"BOTH"}]}}"#,
        );
        assert!(
            matches!(&told[..], [AccountEvent::UnmappedChanged, AccountEvent::Position { .. }]),
            "{told:?}"
        );
    }

    #[test]
    fn positions_are_absolute_and_an_expired_key_ends_the_stream() {
        let told = events(
            r#"{"e":"ACCOUNT_UPDATE","E":2,"T":1,"a":{"m":"ORDER","B":[],"P":[{"s":"BTCUSDT","pa":"-0.250","ep":"61000","ps":"BOTH"}]}}"#,
        );
        assert!(matches!(&told[..], [AccountEvent::Position { delta, .. }] if delta.to_string() == "-0.25"));
        for text in [
            r#"{"e":"listenKeyExpired","E":1,"listenKey":"k"}"#,
            r#"{"e":"listenKeyExpired","E":"1","listenKey":"k"}"#,
        ] {
            assert!(matches!(decode(text, &"a".parse().unwrap(), &symbols()), Err(StreamError::KeyExpired)));
        }
    }
}
