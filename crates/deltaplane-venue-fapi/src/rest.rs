//! One function per endpoint, named like the endpoint.

use std::sync::Arc;
use std::time::Duration;

use deltaplane_net::{
    ClockOffset, HttpRequest, HttpResponse, HttpTransport, Method, Priority, TransportError, WeightBudget,
};
use deltaplane_ports::{Clock, ReadError};
use deltaplane_types::{Refusal, RefusalReason, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::dialect::{Dialect, Freshness, Signed, Signer, encode};
use crate::errors;
use crate::wire;

/// Our clock may be this far off before nothing is signed: a quarter of the shortest window.
const CLOCK_UNCERTAINTY_MS: i64 = 750;

/// How long nothing is sent after the firewall before a venue refused: its rule lasts five minutes, and a pause of
/// one finds out without feeding it.
const FIREWALL_PAUSE: Duration = Duration::from_secs(60);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The request or its answer was lost.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The venue refused.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer cannot be read.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// Our own budget kept it back.
    #[error("kept back for {0:?}: the venue's request budget is nearly spent")]
    Budget(Duration),
    /// The venue's time is not known well enough to sign.
    #[error("the venue's clock is not known")]
    Clock,
}

impl From<RestError> for ReadError {
    fn from(error: RestError) -> Self {
        match error {
            RestError::Transport(TransportError::Proxy(text)) => Self::Proxy(text),
            RestError::Transport(error) => Self::Unreachable(error.to_string()),
            RestError::Refused(refusal) => Self::Refused(refusal),
            RestError::Unreadable(text) => Self::Unreadable(text),
            RestError::Budget(_) => Self::Refused(Refusal {
                reason: RefusalReason::RateLimited,
                code: None,
                text: error.to_string(),
            }),
            RestError::Clock => {
                Self::Refused(Refusal { reason: RefusalReason::Clock, code: None, text: error.to_string() })
            }
        }
    }
}

/// What a signed mutation came to.
pub(crate) enum Submitted {
    Answer(HttpResponse),
    Lost(TransportError),
    KeptBack(String),
}

pub(crate) struct Rest {
    pub(crate) transport: Arc<dyn HttpTransport>,
    pub(crate) base: String,
    pub(crate) dialect: &'static Dialect,
    pub(crate) signer: Option<Arc<dyn Signer>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) offset: ClockOffset,
    /// Shared by everyone who reaches the venue from this address.
    pub(crate) weight: Arc<WeightBudget>,
    pub(crate) orders: WeightBudget,
    pub(crate) timeout: Duration,
    pub(crate) receive_window: Duration,
}

type Params<'a> = &'a [(&'a str, &'a str)];

impl Rest {
    fn request(
        &self,
        method: Method,
        path: &str,
        query: &str,
        body: String,
        timeout: Duration,
    ) -> HttpRequest {
        let url = if query.is_empty() {
            format!("{}{path}", self.base)
        } else {
            format!("{}{path}?{query}", self.base)
        };
        let mut headers = self.signer.as_ref().map(|signer| signer.headers()).unwrap_or_default();
        if !body.is_empty() {
            headers.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
        }
        HttpRequest { method, url, headers, body, timeout }
    }

    /// Takes the venue's counts from an answer.
    fn observe(&self, response: &HttpResponse) {
        let now = self.clock.now();
        let count = |name| response.header(name).and_then(|value| value.parse::<u64>().ok());
        if let Some(used) = count("x-mbx-used-weight-1m") {
            self.weight.observe(now, used);
        }
        if let Some(used) = count("x-mbx-order-count-10s") {
            self.orders.observe(now, used);
        }
        if matches!(response.status, 429 | 418) {
            let wait = count("retry-after").unwrap_or(60).clamp(1, 3 * 24 * 3_600);
            let until = banned_until(&response.body).unwrap_or_else(|| now.after(Duration::from_secs(wait)));
            if String::from_utf8_lossy(&response.body).contains("-1015") {
                // Only the order count is spent: questions and cancels go on.
                self.orders.silence_until(now, now.after(Duration::from_secs(10)));
            } else if response.status == 429 {
                self.weight.silence_until(now, until);
            } else {
                self.weight.ban_until(until.min(now.after(Duration::from_secs(3 * 24 * 3_600))));
            }
        } else if response.status == 403 && serde_json::from_slice::<IgnoredAny>(&response.body).is_err() {
            // The firewall before the venue, and not the venue.
            self.weight.ban_until(now.after(FIREWALL_PAUSE));
        }
    }

    async fn read<T: for<'de> Deserialize<'de>>(&self, request: HttpRequest) -> Result<T, RestError> {
        let response = deltaplane_net::ask(self.transport.as_ref(), request).await?;
        self.observe(&response);
        if response.status != 200 {
            let refusal = errors::read_refusal(self.dialect, response.status, &response.body);
            if refusal.as_ref().is_some_and(|refusal| refusal.reason == RefusalReason::Clock) {
                self.offset.invalidate();
            }
            return Err(refusal.map_or_else(
                || RestError::Unreadable(format!("status {}", response.status)),
                RestError::Refused,
            ));
        }
        serde_json::from_slice(&response.body).map_err(|error| RestError::Unreadable(error.to_string()))
    }

    fn take(&self, priority: Priority, weight: u64) -> Result<(), RestError> {
        self.weight.take(self.clock.now(), priority, weight).map_err(RestError::Budget)
    }

    async fn public<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        params: Params<'_>,
        weight: u64,
    ) -> Result<T, RestError> {
        self.take(Priority::Data, weight)?;
        self.read(self.request(Method::Get, path, &encode(params), String::new(), self.timeout)).await
    }

    /// The venue's time now, if it is known well enough to sign.
    fn venue_now(&self) -> Result<Timestamp, RestError> {
        self.offset.venue_time(self.clock.now(), CLOCK_UNCERTAINTY_MS).ok_or(RestError::Clock)
    }

    /// Signs parameters that were decided at a time of the venue's.
    fn signed(&self, params: Params<'_>, freshness: Freshness) -> Result<Signed, RestError> {
        Ok(self.signer.as_ref().ok_or(RestError::Clock)?.sign(params, freshness))
    }

    fn fresh(&self, window: Duration) -> Result<Freshness, RestError> {
        Ok(Freshness { at: self.venue_now()?, window })
    }

    async fn private<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        params: Params<'_>,
        priority: Priority,
        weight: u64,
    ) -> Result<T, RestError> {
        self.take(priority, weight)?;
        if self.venue_now().is_err() {
            self.time().await?;
        }
        let signed = self.signed(params, self.fresh(Duration::from_secs(5))?)?;
        self.read(self.request(Method::Get, path, &signed.query, String::new(), self.timeout)).await
    }

    pub(crate) async fn time(&self) -> Result<(), RestError> {
        self.take(Priority::Data, 1)?;
        let sent = self.clock.now();
        let request = self.request(Method::Get, self.dialect.paths.time, "", String::new(), self.timeout);
        let time: wire::ServerTime = self.read(request).await?;
        self.offset.observe(sent, Timestamp::from_millis(time.server_time), self.clock.now());
        Ok(())
    }

    pub(crate) async fn exchange_info(&self) -> Result<wire::ExchangeInfo, RestError> {
        self.public(self.dialect.paths.exchange_info, &[], 1).await
    }

    pub(crate) async fn depth(&self, symbol: &str) -> Result<wire::DepthSnapshot, RestError> {
        self.public(self.dialect.paths.depth, &[("symbol", symbol), ("limit", "1000")], 20).await
    }

    pub(crate) async fn funding_info(&self) -> Result<Vec<wire::FundingInfo>, RestError> {
        self.public(self.dialect.paths.funding_info, &[], 0).await
    }

    /// Settlements of a symbol since a time, oldest first.
    pub(crate) async fn funding_rate(
        &self,
        symbol: &str,
        since: Timestamp,
    ) -> Result<Vec<wire::FundingRate>, RestError> {
        let since = since.to_string();
        self.public(self.dialect.paths.funding_rate, &[("symbol", symbol), ("startTime", &since)], 1).await
    }

    pub(crate) async fn account(&self) -> Result<wire::Account, RestError> {
        self.private(self.dialect.paths.account, &[], Priority::Sync, 5).await
    }

    pub(crate) async fn position_risk(&self) -> Result<Vec<wire::PositionRisk>, RestError> {
        self.private(self.dialect.paths.position_risk, &[], Priority::Sync, 5).await
    }

    /// Places in the queue for auto-deleveraging, where the exchange has an endpoint for them.
    pub(crate) async fn adl_quantiles(&self) -> Result<Option<Vec<wire::AdlQuantile>>, RestError> {
        let Some(path) = self.dialect.paths.adl_quantile else { return Ok(None) };
        Ok(Some(match self.private(path, &[], Priority::Data, 5).await? {
            wire::AdlQuantiles::Rows(rows) => rows,
            wire::AdlQuantiles::None {} => Vec::new(),
        }))
    }

    pub(crate) async fn position_mode(&self) -> Result<wire::PositionMode, RestError> {
        self.private(self.dialect.paths.position_mode, &[], Priority::Sync, 30).await
    }

    /// The settings of a symbol, where the exchange has an endpoint for them.
    pub(crate) async fn symbol_config(
        &self,
        symbol: &str,
    ) -> Result<Option<Vec<wire::SymbolConfig>>, RestError> {
        let Some(path) = self.dialect.paths.symbol_config else { return Ok(None) };
        self.private(path, &[("symbol", symbol)], Priority::Sync, 5).await.map(Some)
    }

    /// What the key may do, as far as the exchange tells.
    pub(crate) async fn account_rights(&self) -> Result<wire::AccountRights, RestError> {
        let path = self.dialect.paths.account_config.unwrap_or(self.dialect.paths.account);
        self.private(path, &[], Priority::Sync, 5).await
    }

    /// The agents of the account, where the exchange has such.
    pub(crate) async fn agents(&self) -> Result<Option<Vec<wire::Agent>>, RestError> {
        let Some(path) = self.dialect.paths.agents else { return Ok(None) };
        self.private(path, &[], Priority::Sync, 1).await.map(Some)
    }

    pub(crate) async fn commission_rate(&self, symbol: &str) -> Result<wire::CommissionRate, RestError> {
        self.private(self.dialect.paths.commission_rate, &[("symbol", symbol)], Priority::Sync, 20).await
    }

    /// The venue's page shows one object for one symbol, clients report an array: both are read.
    pub(crate) async fn leverage_bracket(&self, symbol: &str) -> Result<wire::LeverageBracket, RestError> {
        let answer: Box<serde_json::value::RawValue> = self
            .private(self.dialect.paths.leverage_bracket, &[("symbol", symbol)], Priority::Sync, 1)
            .await?;
        let text = answer.get();
        let unreadable = |error: serde_json::Error| RestError::Unreadable(error.to_string());
        if text.starts_with('[') {
            let all: Vec<wire::LeverageBracket> = serde_json::from_str(text).map_err(unreadable)?;
            let found = all.into_iter().find(|bracket| bracket.symbol == symbol);
            return found.ok_or_else(|| RestError::Unreadable(format!("no margin table of {symbol}")));
        }
        serde_json::from_str(text).map_err(unreadable)
    }

    pub(crate) async fn order_get(
        &self,
        symbol: &str,
        client_id: &str,
    ) -> Result<wire::OrderAnswer, RestError> {
        let params = [("symbol", symbol), ("origClientOrderId", client_id)];
        self.private(self.dialect.paths.order, &params, Priority::Resolve, 1).await
    }

    pub(crate) async fn open_orders(&self, symbol: &str) -> Result<Vec<wire::OrderAnswer>, RestError> {
        self.private(self.dialect.paths.open_orders, &[("symbol", symbol)], Priority::Protect, 1).await
    }

    /// The names of the newest thousand orders of a symbol since a time.
    pub(crate) async fn all_orders(
        &self,
        symbol: &str,
        since: &str,
    ) -> Result<Vec<wire::OrderName>, RestError> {
        let params = [("symbol", symbol), ("startTime", since), ("limit", "1000")];
        self.private(self.dialect.paths.all_orders, &params, Priority::Resolve, 5).await
    }

    /// Lets the venue cancel all orders of a symbol after some milliseconds; zero ends that.
    pub(crate) async fn countdown_cancel_all(
        &self,
        symbol: &str,
        after_ms: u128,
    ) -> Result<HttpResponse, RestError> {
        self.take(Priority::Protect, 10)?;
        let after = after_ms.to_string();
        let params = [("symbol", symbol), ("countdownTime", after.as_str())];
        let signed = self.signed(&params, self.fresh(self.receive_window)?)?;
        let path = self.dialect.paths.countdown;
        let request = self.request(Method::Post, path, "", signed.query, self.timeout);
        let response = self.transport.send(request).await?;
        self.observe(&response);
        Ok(response)
    }

    /// Trades of a symbol since a time, oldest first, at most a thousand.
    pub(crate) async fn user_trades(
        &self,
        symbol: &str,
        since: &str,
    ) -> Result<Vec<wire::UserTrade>, RestError> {
        let params = [("symbol", symbol), ("startTime", since), ("limit", "1000")];
        self.private(self.dialect.paths.user_trades, &params, Priority::Resolve, 5).await
    }

    /// The account's statement since a time, oldest first, at most 1,000 rows.
    pub(crate) async fn income(&self, since: &str) -> Result<Vec<wire::IncomeRow>, RestError> {
        let params = [("startTime", since), ("limit", "1000")];
        self.private(self.dialect.paths.income, &params, Priority::Data, 30).await
    }

    /// Places an order: one attempt, and whatever came of it. `decided` is our time of the decision: the
    /// validity that is signed counts from there. Gives the nonce that was used, where there is one.
    pub(crate) async fn order_post(
        &self,
        params: Params<'_>,
        priority: Priority,
        (decided, window): (Timestamp, Duration),
        timeout: Duration,
    ) -> (Submitted, Option<i64>) {
        if let Err(wait) = self.orders.take(self.clock.now(), priority, 1) {
            let text = format!("the venue's order budget is spent for {wait:?}");
            return (Submitted::KeptBack(text), None);
        }
        if let Err(wait) = self.weight.take(self.clock.now(), priority, 0) {
            return (Submitted::KeptBack(format!("the venue asked for silence for {wait:?}")), None);
        }
        let Some(at) = self.offset.venue_time(decided, CLOCK_UNCERTAINTY_MS) else {
            return (Submitted::KeptBack(RestError::Clock.to_string()), None);
        };
        let signed = match self.signed(params, Freshness { at, window }) {
            Ok(signed) => signed,
            Err(error) => return (Submitted::KeptBack(error.to_string()), None),
        };
        let request = self.request(Method::Post, self.dialect.paths.order, "", signed.query, timeout);
        (self.send(request).await, signed.nonce)
    }

    /// Cancels an order.
    pub(crate) async fn order_delete(&self, symbol: &str, client_id: &str) -> Submitted {
        if let Err(wait) = self.weight.take(self.clock.now(), Priority::Protect, 1) {
            return Submitted::KeptBack(format!("the venue asked for silence for {wait:?}"));
        }
        let params = [("symbol", symbol), ("origClientOrderId", client_id)];
        let signed = self.fresh(self.receive_window).and_then(|freshness| self.signed(&params, freshness));
        match signed {
            Ok(signed) => {
                let path = self.dialect.paths.order;
                self.send(self.request(Method::Delete, path, &signed.query, String::new(), self.timeout))
                    .await
            }
            Err(error) => Submitted::KeptBack(error.to_string()),
        }
    }

    /// Takes the nonce of a request that may not have arrived; none where there is no such thing.
    pub(crate) async fn noop(&self, nonce: i64) -> Option<Submitted> {
        let path = self.dialect.paths.noop?;
        let query = self.signer.as_ref()?.sign_again(&[], nonce)?;
        if let Err(wait) = self.weight.take(self.clock.now(), Priority::Resolve, 1) {
            return Some(Submitted::KeptBack(format!("the venue asked for silence for {wait:?}")));
        }
        Some(self.send(self.request(Method::Post, path, "", query, self.timeout)).await)
    }

    async fn send(&self, request: HttpRequest) -> Submitted {
        match self.transport.send(request).await {
            Ok(response) => {
                self.observe(&response);
                Submitted::Answer(response)
            }
            Err(error) => Submitted::Lost(error),
        }
    }

    async fn listen_key_request(&self, method: Method) -> Result<HttpRequest, RestError> {
        let signed = self.signer.as_ref().is_some_and(|signer| signer.signs_listen_keys());
        let query = if signed {
            if self.venue_now().is_err() {
                self.time().await?;
            }
            self.signed(&[], self.fresh(Duration::from_secs(5))?)?.query
        } else {
            String::new()
        };
        Ok(self.request(method, self.dialect.paths.listen_key, &query, String::new(), self.timeout))
    }

    pub(crate) async fn listen_key_post(&self) -> Result<wire::ListenKey, RestError> {
        self.take(Priority::Sync, 1)?;
        self.read(self.listen_key_request(Method::Post).await?).await
    }

    pub(crate) async fn listen_key_put(&self) -> Result<(), RestError> {
        self.take(Priority::Sync, 1)?;
        let request = self.listen_key_request(Method::Put).await?;
        self.read::<IgnoredAny>(request).await.map(|_| ())
    }
}

/// `banned until <unix ms>` in the text of a -1003.
fn banned_until(body: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(body).ok()?;
    let rest = text.split_once("banned until ")?.1;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_ban_is_read_from_its_text() {
        let body = br#"{"code":-1003,"msg":"Way too many requests; IP(1.2.3.4) banned until 1573799999999. Please use the websocket."}"#;
        assert_eq!(banned_until(body), Some(Timestamp::from_millis(1_573_799_999_999)));
        assert_eq!(banned_until(b"<html>"), None);
    }
}
