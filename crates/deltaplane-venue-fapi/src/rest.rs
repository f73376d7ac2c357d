//! One function per endpoint, named like the endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltaplane_net::{
    ClockOffset, HttpRequest, HttpResponse, HttpTransport, Method, Rows, Spent, TransportError, WeightBudget,
};
use deltaplane_ports::{Clock, Priority, ReadError};
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
    #[error("withheld for {0:?}: the venue's request budget is nearly used up")]
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
            RestError::Budget(wait) => Self::Withheld(wait),
            RestError::Clock => Self::Refused(Refusal {
                reason: RefusalReason::Clock,
                code: None,
                text: error.to_string(),
                remedy: None,
            }),
        }
    }
}

/// What a signed mutation came to.
pub(crate) enum Submitted {
    Answer(HttpResponse),
    Lost(TransportError),
    KeptBack(Refusal),
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
    /// Orders of this account in ten seconds, and in a minute.
    pub(crate) orders: [WeightBudget; 2],
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

    /// Takes the venue's counts from an answer to a request that took these parts of the budgets.
    fn observe(&self, response: &HttpResponse, weight: Spent, orders: Option<[Spent; 2]>) {
        let now = self.clock.now();
        let count = |name| response.header(name).and_then(|value| self.weight.read_count(value));
        weight.answered(now, count("x-mbx-used-weight-1m"));
        if let Some([short, long]) = orders {
            short.answered(now, count("x-mbx-order-count-10s"));
            long.answered(now, count("x-mbx-order-count-1m"));
        }
        if matches!(response.status, 429 | 418) {
            let wait = count("retry-after").unwrap_or(60).clamp(1, 3 * 24 * 3_600);
            let until = banned_until(&response.body).unwrap_or_else(|| now.after(Duration::from_secs(wait)));
            if String::from_utf8_lossy(&response.body).contains("-1015") {
                // Only the order count is spent: questions and cancels go on.
                self.orders[0].silence_until(now, now.after(Duration::from_secs(10)));
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

    async fn read<T: for<'de> Deserialize<'de>>(
        &self,
        request: HttpRequest,
        spent: Spent,
    ) -> Result<T, RestError> {
        let text = self.read_text(request, spent).await?;
        serde_json::from_slice(&text).map_err(|error| RestError::Unreadable(error.to_string()))
    }

    async fn read_text(&self, request: HttpRequest, spent: Spent) -> Result<Bytes, RestError> {
        let response = deltaplane_net::ask(self.transport.as_ref(), request).await?;
        self.observe(&response, spent, None);
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
        Ok(response.body)
    }

    fn take(&self, priority: Priority, weight: u64) -> Result<Spent, RestError> {
        self.weight.take(self.clock.now(), priority, weight).map_err(RestError::Budget)
    }

    async fn public<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        params: Params<'_>,
        (priority, weight): (Priority, u64),
    ) -> Result<T, RestError> {
        let spent = self.take(priority, weight)?;
        self.read(self.request(Method::Get, path, &encode(params), String::new(), self.timeout), spent).await
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
        (priority, weight): (Priority, u64),
    ) -> Result<T, RestError> {
        let text = self.private_text(path, params, (priority, weight)).await?;
        serde_json::from_slice(&text).map_err(|error| RestError::Unreadable(error.to_string()))
    }

    async fn private_text(
        &self,
        path: &str,
        params: Params<'_>,
        (priority, weight): (Priority, u64),
    ) -> Result<Bytes, RestError> {
        let spent = self.take(priority, weight)?;
        if self.venue_now().is_err() {
            self.time(priority).await?;
        }
        let signed = self.signed(params, self.fresh(Duration::from_secs(5))?)?;
        let request = self.request(Method::Get, path, &signed.query, String::new(), self.timeout);
        self.read_text(request, spent).await
    }

    /// Asks for the venue's time where it is not known, as after a refusal for its sake: an order, and all the more what
    /// protects, reads the time itself. A request that still lacks it is not signed.
    async fn know_the_clock(&self, priority: Priority) {
        if self.venue_now().is_err()
            && let Err(error) = self.time(priority).await
        {
            tracing::warn!(%error, "the exchange's time is not known");
        }
    }

    pub(crate) async fn time(&self, priority: Priority) -> Result<(), RestError> {
        let spent = self.take(priority, 1)?;
        let sent = self.clock.now();
        let request = self.request(Method::Get, self.dialect.paths.time, "", String::new(), self.timeout);
        let time: wire::ServerTime = self.read(request, spent).await?;
        let now = self.clock.now();
        self.offset.observe(sent, Timestamp::from_millis(time.server_time), now);
        if let Some(venue) = self.offset.venue_time(now, i64::MAX) {
            let ahead = venue.as_millis().saturating_sub(now.as_millis());
            self.weight.follow_clock(ahead);
            self.orders.iter().for_each(|orders| orders.follow_clock(ahead));
        }
        Ok(())
    }

    pub(crate) async fn exchange_info(&self, priority: Priority) -> Result<wire::ExchangeInfo, RestError> {
        self.public(self.dialect.paths.exchange_info, &[], (priority, 1)).await
    }

    pub(crate) async fn depth(&self, symbol: &str) -> Result<wire::DepthSnapshot, RestError> {
        let params = [("symbol", symbol), ("limit", "500")];
        self.public(self.dialect.paths.depth, &params, (Priority::Hedge, 10)).await
    }

    /// A table of the exchange or of the account as it is written, for [`crate::tables`].
    pub(crate) async fn table(
        &self,
        path: &str,
        params: Params<'_>,
        (priority, weight): (Priority, u64),
    ) -> Result<Bytes, RestError> {
        if path == self.dialect.paths.exchange_info || path == self.dialect.paths.funding_info {
            let spent = self.take(priority, weight)?;
            let request = self.request(Method::Get, path, &encode(params), String::new(), self.timeout);
            return self.read_text(request, spent).await;
        }
        self.private_text(path, params, (priority, weight)).await
    }

    /// Settlements of a symbol since a time, oldest first.
    pub(crate) async fn funding_rate(
        &self,
        symbol: &str,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<wire::FundingRate>, RestError> {
        let since = since.to_string();
        let params = [("symbol", symbol), ("startTime", since.as_str())];
        self.public(self.dialect.paths.funding_rate, &params, (priority, 1)).await
    }

    pub(crate) async fn account(&self, priority: Priority) -> Result<wire::Account, RestError> {
        self.private(self.dialect.paths.account, &[], (priority, 5)).await
    }

    pub(crate) async fn balances(&self, priority: Priority) -> Result<Rows<wire::Balance>, RestError> {
        self.private(self.dialect.paths.balance, &[], (priority, 5)).await
    }

    pub(crate) async fn position_risk(
        &self,
        priority: Priority,
    ) -> Result<Rows<wire::PositionRisk>, RestError> {
        self.private(self.dialect.paths.position_risk, &[], (priority, 5)).await
    }

    /// Places in the queue for auto-deleveraging, where the exchange has an endpoint for them.
    pub(crate) async fn adl_quantiles(
        &self,
        priority: Priority,
    ) -> Result<Option<Vec<wire::AdlQuantile>>, RestError> {
        let Some(path) = self.dialect.paths.adl_quantile else { return Ok(None) };
        Ok(Some(match self.private(path, &[], (priority, 5)).await? {
            wire::AdlQuantiles::Rows(rows) => rows,
            wire::AdlQuantiles::None {} => Vec::new(),
        }))
    }

    /// What the key may do, as far as the exchange tells.
    pub(crate) async fn account_rights(&self, priority: Priority) -> Result<wire::AccountRights, RestError> {
        let path = self.dialect.paths.account_config.unwrap_or(self.dialect.paths.account);
        self.private(path, &[], (priority, 5)).await
    }

    /// The agents of the account, where the exchange has such.
    pub(crate) async fn agents(&self, priority: Priority) -> Result<Option<Vec<wire::Agent>>, RestError> {
        let Some(path) = self.dialect.paths.agents else { return Ok(None) };
        self.private(path, &[], (priority, 1)).await.map(Some)
    }

    pub(crate) async fn order_get(
        &self,
        symbol: &str,
        client_id: &str,
        priority: Priority,
    ) -> Result<wire::OrderAnswer, RestError> {
        let params = [("symbol", symbol), ("origClientOrderId", client_id)];
        self.private(self.dialect.paths.order, &params, (priority, 1)).await
    }

    pub(crate) async fn open_orders(
        &self,
        symbol: &str,
        priority: Priority,
    ) -> Result<Vec<wire::OrderAnswer>, RestError> {
        self.private(self.dialect.paths.open_orders, &[("symbol", symbol)], (priority, 1)).await
    }

    /// The open orders of all symbols.
    pub(crate) async fn all_open_orders(
        &self,
        priority: Priority,
    ) -> Result<Rows<wire::RestingOrder>, RestError> {
        self.private(self.dialect.paths.open_orders, &[], (priority, 40)).await
    }

    /// The names of the newest thousand orders of a symbol since a time.
    pub(crate) async fn all_orders(
        &self,
        symbol: &str,
        since: &str,
        priority: Priority,
    ) -> Result<Vec<wire::OrderName>, RestError> {
        let params = [("symbol", symbol), ("startTime", since), ("limit", "1000")];
        self.private(self.dialect.paths.all_orders, &params, (priority, 5)).await
    }

    /// Lets the venue cancel all orders of a symbol after some milliseconds; zero ends that.
    pub(crate) async fn countdown_cancel_all(
        &self,
        symbol: &str,
        after_ms: u128,
    ) -> Result<HttpResponse, RestError> {
        let spent = self.take(Priority::Protect, 10)?;
        self.know_the_clock(Priority::Protect).await;
        let after = after_ms.to_string();
        let params = [("symbol", symbol), ("countdownTime", after.as_str())];
        let signed = self.signed(&params, self.fresh(self.receive_window)?)?;
        let path = self.dialect.paths.countdown;
        let request = self.request(Method::Post, path, "", signed.query, self.timeout);
        let response = self.transport.send(request).await?;
        self.observe(&response, spent, None);
        Ok(response)
    }

    /// Trades of a symbol since a time, oldest first, at most a thousand.
    pub(crate) async fn user_trades(
        &self,
        symbol: &str,
        since: &str,
        priority: Priority,
    ) -> Result<Vec<wire::UserTrade>, RestError> {
        let params = [("symbol", symbol), ("startTime", since), ("limit", "1000")];
        self.private(self.dialect.paths.user_trades, &params, (priority, 5)).await
    }

    /// The account's statement since a time, oldest first, at most 1,000 rows.
    pub(crate) async fn income(
        &self,
        since: &str,
        priority: Priority,
    ) -> Result<Vec<wire::IncomeRow>, RestError> {
        let params = [("startTime", since), ("limit", "1000")];
        self.private(self.dialect.paths.income, &params, (priority, 30)).await
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
        let now = self.clock.now();
        let [short, long] = &self.orders;
        let orders =
            match short.take(now, priority, 1).and_then(|short| Ok([short, long.take(now, priority, 1)?])) {
                Ok(orders) => orders,
                Err(wait) => return (Submitted::KeptBack(Refusal::withheld(wait)), None),
            };
        let weight = match self.weight.take(now, priority, 0) {
            Ok(weight) => weight,
            Err(wait) => return (Submitted::KeptBack(Refusal::withheld(wait)), None),
        };
        self.know_the_clock(priority).await;
        let Some(at) = self.offset.venue_time(decided, CLOCK_UNCERTAINTY_MS) else {
            return (Submitted::KeptBack(Refusal::kept_back(RestError::Clock.to_string())), None);
        };
        let signed = match self.signed(params, Freshness { at, window }) {
            Ok(signed) => signed,
            Err(error) => return (Submitted::KeptBack(Refusal::kept_back(error.to_string())), None),
        };
        let request = self.request(Method::Post, self.dialect.paths.order, "", signed.query, timeout);
        (self.send(request, weight, Some(orders)).await, signed.nonce)
    }

    /// Cancels an order.
    pub(crate) async fn order_delete(&self, symbol: &str, client_id: &str) -> Submitted {
        let spent = match self.weight.take(self.clock.now(), Priority::Protect, 1) {
            Ok(spent) => spent,
            Err(wait) => return Submitted::KeptBack(Refusal::withheld(wait)),
        };
        self.know_the_clock(Priority::Protect).await;
        let params = [("symbol", symbol), ("origClientOrderId", client_id)];
        let signed = self.fresh(self.receive_window).and_then(|freshness| self.signed(&params, freshness));
        match signed {
            Ok(signed) => {
                let path = self.dialect.paths.order;
                let request = self.request(Method::Delete, path, &signed.query, String::new(), self.timeout);
                self.send(request, spent, None).await
            }
            Err(error) => Submitted::KeptBack(Refusal::kept_back(error.to_string())),
        }
    }

    /// Takes the nonce of a request that may not have arrived; none where there is no such thing.
    pub(crate) async fn noop(&self, nonce: i64) -> Option<Submitted> {
        let path = self.dialect.paths.noop?;
        let query = self.signer.as_ref()?.sign_again(&[], nonce)?;
        let spent = match self.weight.take(self.clock.now(), Priority::Resolve, 1) {
            Ok(spent) => spent,
            Err(wait) => return Some(Submitted::KeptBack(Refusal::withheld(wait))),
        };
        Some(self.send(self.request(Method::Post, path, "", query, self.timeout), spent, None).await)
    }

    async fn send(&self, request: HttpRequest, weight: Spent, orders: Option<[Spent; 2]>) -> Submitted {
        match self.transport.send(request).await {
            Ok(response) => {
                self.observe(&response, weight, orders);
                Submitted::Answer(response)
            }
            Err(error) => Submitted::Lost(error),
        }
    }

    async fn listen_key_request(&self, method: Method) -> Result<HttpRequest, RestError> {
        let signed = self.signer.as_ref().is_some_and(|signer| signer.signs_listen_keys());
        let query = if signed {
            if self.venue_now().is_err() {
                self.time(Priority::Resolve).await?;
            }
            self.signed(&[], self.fresh(Duration::from_secs(5))?)?.query
        } else {
            String::new()
        };
        Ok(self.request(method, self.dialect.paths.listen_key, &query, String::new(), self.timeout))
    }

    /// Makes the account's listen key, or extends it; gives the key that is live then.
    pub(crate) async fn listen_key_post(&self) -> Result<wire::ListenKey, RestError> {
        let spent = self.take(Priority::Resolve, 1)?;
        self.read(self.listen_key_request(Method::Post).await?, spent).await
    }

    /// Extends the account's listen key; gives its name, where the answer has it.
    pub(crate) async fn listen_key_put(&self) -> Result<Option<String>, RestError> {
        let spent = self.take(Priority::Resolve, 1)?;
        let request = self.listen_key_request(Method::Put).await?;
        Ok(self.read::<wire::ExtendedKey>(request, spent).await?.listen_key)
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
