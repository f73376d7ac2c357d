//! The account's stream: listen key, keep-alive, reconnect, events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deltaplane_net::{Backoff, Egress, WebSocket, WebSocketError};
use deltaplane_ports::{AccountEvent, BalanceCause, SymbolMap};
use deltaplane_types::{AccountId, Decimal, Notional, Timestamp};
use tokio::sync::broadcast;

use crate::map::{self, MapError};
use crate::rest::{Rest, RestError};
use crate::wire::{AccountUpdate, EventType, OrderTradeUpdate};

/// Assets whose amounts are money.
const DOLLARS: [&str; 6] = ["USDT", "USDC", "USDF", "USD1", "FDUSD", "BUSD"];

/// Keys live for 60 minutes; they are extended well before.
const KEEP_ALIVE: Duration = Duration::from_secs(25 * 60);
const CONNECT: Duration = Duration::from_secs(5);

pub(crate) struct UserStream {
    pub(crate) rest: Arc<Rest>,
    pub(crate) url: String,
    pub(crate) egress: Arc<Egress>,
    pub(crate) account: AccountId,
    pub(crate) symbols: SymbolMap,
    pub(crate) events: broadcast::Sender<AccountEvent>,
    pub(crate) live: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Socket(#[from] WebSocketError),
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error("the listen key ran out")]
    KeyExpired,
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
            if self.live.swap(false, Ordering::SeqCst) {
                self.tell(AccountEvent::Disconnected);
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

    async fn follow(&self) -> Result<(), StreamError> {
        let key = self.rest.listen_key_post().await?;
        let streams = self.rest.dialect.streams;
        let url = format!("{}{}{}", self.url, streams.user, key.listen_key);
        let mut socket = WebSocket::connect(&url, &self.egress, CONNECT, streams.user_silence).await?;
        self.live.store(true, Ordering::SeqCst);
        self.tell(AccountEvent::Connected);
        let mut keep_alive = tokio::time::interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        loop {
            tokio::select! {
                biased;
                text = socket.next_text() => self.on_text(&text?)?,
                _ = keep_alive.tick() => self.rest.listen_key_put().await?,
            }
        }
    }

    fn on_text(&self, text: &str) -> Result<(), StreamError> {
        match decode(text, &self.account, &self.symbols) {
            Ok(events) => events.into_iter().for_each(|event| self.tell(event)),
            Err(StreamError::Unreadable(reason)) => {
                // One event of somebody else's must not break the stream; whoever waits asks instead.
                tracing::warn!(account = %self.account, %reason, "an account event cannot be read");
                self.tell(AccountEvent::Connected);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What one message tells; unknown types tell nothing.
fn decode(text: &str, account: &AccountId, symbols: &SymbolMap) -> Result<Vec<AccountEvent>, StreamError> {
    let kind: EventType<'_> = serde_json::from_str(text)?;
    let mut told = Vec::new();
    match &*kind.e {
        "ORDER_TRADE_UPDATE" => {
            let OrderTradeUpdate { o } = serde_json::from_str(text)?;
            let Some((symbol, contract)) = symbols.canonical(&o.s) else { return Ok(told) };
            if let Some(fill) = map::event_fill(&o, account, (&symbol, &contract))? {
                told.push(AccountEvent::Fill(fill));
            }
            told.push(AccountEvent::Report(map::event_report(&o, &contract)?));
        }
        "ACCOUNT_UPDATE" => {
            let update: AccountUpdate = serde_json::from_str(text)?;
            for position in update.a.positions {
                // In hedge mode one side alone is not the net position; the next snapshot tells it.
                if position.ps != "BOTH" {
                    continue;
                }
                let Some((symbol, contract)) = symbols.canonical(&position.s) else { continue };
                let venue_time = Timestamp::from_millis(update.time);
                let delta = map::delta(position.pa, &contract)?;
                told.push(AccountEvent::Position { symbol, delta, venue_time });
            }
            if update.a.reason != "ORDER" {
                // Other assets than dollars have no amount in quote.
                let in_dollars =
                    update.a.balances.iter().all(|b| DOLLARS.contains(&b.a.as_str()) || b.bc.is_none());
                let changes = update.a.balances.iter().filter_map(|balance| balance.bc);
                let sum = changes.fold(Decimal::ZERO, |sum, change| sum.saturating_add(change.0));
                let amount = (in_dollars && !sum.is_zero()).then(|| Notional::new(sum));
                let cause = match update.a.reason.as_str() {
                    "FUNDING_FEE" => BalanceCause::Funding,
                    "DEPOSIT" | "WITHDRAW" | "WITHDRAW_REJECT" | "ADMIN_DEPOSIT" | "ADMIN_WITHDRAW"
                    | "ASSET_TRANSFER" | "COIN_SWAP_DEPOSIT" | "COIN_SWAP_WITHDRAW" => BalanceCause::Transfer,
                    _ => BalanceCause::Other,
                };
                told.push(AccountEvent::BalanceChanged { amount, cause });
            }
        }
        "listenKeyExpired" => return Err(StreamError::KeyExpired),
        _ => {}
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_ports::NameRule;
    use deltaplane_types::{OrderStatus, Side};

    fn events(text: &str) -> Vec<AccountEvent> {
        decode(text, &"a".parse().unwrap(), &SymbolMap::new(NameRule::BaseAndQuote)).unwrap()
    }

    /// The sample of the venue's page on order updates.
    #[test]
    fn a_trade_tells_a_fill_and_a_report() {
        let text = r#"{"e":"ORDER_TRADE_UPDATE","E":1795312345690,"T":1795312345688,"o":{"s":"BTCUSDT","c":"dn-7f3a","S":"BUY","o":"LIMIT","f":"GTC","q":"0.010","p":"61000","ap":"61000.00","sp":"0","x":"TRADE","X":"PARTIALLY_FILLED","i":22542179,"l":"0.004","z":"0.004","L":"61000","n":"0.04880000","N":"USDT","T":1795312345688,"t":501234567,"b":"366.00000","a":"0","m":true,"R":false,"wt":"CONTRACT_PRICE","ot":"LIMIT","ps":"BOTH","cp":false,"rp":"0","pP":false,"si":0,"ss":0,"V":"EXPIRE_MAKER","pm":"NONE","gtd":0,"er":"0"}}"#;
        let told = events(text);
        let AccountEvent::Fill(fill) = &told[0] else { panic!("{told:?}") };
        assert_eq!(
            (fill.trade_id.as_str(), fill.side, fill.quantity.to_string()),
            ("501234567", Side::Buy, "0.004".into())
        );
        assert_eq!((fill.price.to_string(), fill.fee.to_string()), ("61000".into(), "0.0488".into()));
        let AccountEvent::Report(report) = &told[1] else { panic!("{told:?}") };
        assert_eq!(
            (report.status, report.client_order_id.as_str()),
            (OrderStatus::PartiallyFilled, "dn-7f3a")
        );
    }

    #[test]
    fn a_state_of_tomorrow_is_an_error_and_an_event_of_tomorrow_is_not() {
        assert!(events(r#"{"e":"FUTURE_EVENT","E":1}"#).is_empty());
        let text = r#"{"e":"ORDER_TRADE_UPDATE","o":{"s":"BTCUSDT","c":"x","S":"BUY","X":"MELTED","i":1,"l":"0","z":"0","L":"0","ap":"0","T":1,"t":0}}"#;
        assert!(decode(text, &"a".parse().unwrap(), &SymbolMap::new(NameRule::BaseAndQuote)).is_err());
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
            assert!(matches!(
                decode(text, &"a".parse().unwrap(), &SymbolMap::new(NameRule::BaseAndQuote)),
                Err(StreamError::KeyExpired)
            ));
        }
    }
}
