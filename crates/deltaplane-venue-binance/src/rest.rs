//! One function per endpoint, named like the endpoint.

use std::sync::Arc;
use std::time::Duration;

use deltaplane_net::{
    ClockOffset, HttpRequest, HttpResponse, HttpTransport, Method, Priority, TransportError, WeightBudget,
};
use deltaplane_ports::{Clock, ReadError};
use deltaplane_types::{Refusal, RefusalReason, Timestamp};
use serde::Deserialize;

use crate::auth::{Credential, encode};
use crate::errors;
use crate::wire;

/// Our clock may be this far off before nothing is signed: a quarter of the shortest window.
const CLOCK_UNCERTAINTY_MS: i64 = 750;

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
    pub(crate) credential: Option<Credential>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) offset: ClockOffset,
    pub(crate) weight: WeightBudget,
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
        let mut headers = Vec::new();
        if let Some(credential) = &self.credential {
            headers.push(("x-mbx-apikey", credential.api_key().to_owned()));
        }
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
                self.orders.stop_until(now.after(Duration::from_secs(10)));
            } else {
                self.weight.stop_until(until.min(now.after(Duration::from_secs(3 * 24 * 3_600))));
            }
        }
    }

    async fn read<T: for<'de> Deserialize<'de>>(&self, request: HttpRequest) -> Result<T, RestError> {
        let response = self.transport.send(request).await?;
        self.observe(&response);
        if response.status != 200 {
            let refusal = errors::read_refusal(response.status, &response.body);
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

    /// Signs parameters with the venue's time.
    fn signed(&self, params: Params<'_>, window: Duration) -> Result<String, RestError> {
        let credential = self.credential.as_ref().ok_or(RestError::Clock)?;
        let now = self.offset.venue_time(self.clock.now(), CLOCK_UNCERTAINTY_MS).ok_or(RestError::Clock)?;
        let (timestamp, window) = (now.to_string(), window.as_millis().to_string());
        let mut all: Vec<(&str, &str)> = params.to_vec();
        all.push(("recvWindow", &window));
        all.push(("timestamp", &timestamp));
        Ok(credential.signed_query(&all))
    }

    async fn private<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        params: Params<'_>,
        priority: Priority,
        weight: u64,
    ) -> Result<T, RestError> {
        self.take(priority, weight)?;
        if self.offset.venue_time(self.clock.now(), CLOCK_UNCERTAINTY_MS).is_none() {
            self.time().await?;
        }
        let query = self.signed(params, Duration::from_secs(5))?;
        self.read(self.request(Method::Get, path, &query, String::new(), self.timeout)).await
    }

    pub(crate) async fn time(&self) -> Result<(), RestError> {
        self.take(Priority::Data, 1)?;
        let sent = self.clock.now();
        let request = self.request(Method::Get, "/fapi/v1/time", "", String::new(), self.timeout);
        let time: wire::ServerTime = self.read(request).await?;
        self.offset.observe(sent, Timestamp::from_millis(time.server_time), self.clock.now());
        Ok(())
    }

    pub(crate) async fn exchange_info(&self) -> Result<wire::ExchangeInfo, RestError> {
        self.public("/fapi/v1/exchangeInfo", &[], 1).await
    }

    pub(crate) async fn depth(&self, symbol: &str) -> Result<wire::DepthSnapshot, RestError> {
        self.public("/fapi/v1/depth", &[("symbol", symbol), ("limit", "1000")], 20).await
    }

    pub(crate) async fn funding_info(&self) -> Result<Vec<wire::FundingInfo>, RestError> {
        self.public("/fapi/v1/fundingInfo", &[], 0).await
    }

    pub(crate) async fn account(&self) -> Result<wire::Account, RestError> {
        self.private("/fapi/v3/account", &[], Priority::Sync, 5).await
    }

    pub(crate) async fn position_risk(&self) -> Result<Vec<wire::PositionRisk>, RestError> {
        self.private("/fapi/v3/positionRisk", &[], Priority::Sync, 5).await
    }

    pub(crate) async fn position_mode(&self) -> Result<wire::PositionMode, RestError> {
        self.private("/fapi/v1/positionSide/dual", &[], Priority::Sync, 30).await
    }

    pub(crate) async fn symbol_config(&self, symbol: &str) -> Result<Vec<wire::SymbolConfig>, RestError> {
        self.private("/fapi/v1/symbolConfig", &[("symbol", symbol)], Priority::Sync, 5).await
    }

    pub(crate) async fn commission_rate(&self, symbol: &str) -> Result<wire::CommissionRate, RestError> {
        self.private("/fapi/v1/commissionRate", &[("symbol", symbol)], Priority::Sync, 20).await
    }

    /// The venue's page shows one object for one symbol, clients report an array: both are read.
    pub(crate) async fn leverage_bracket(&self, symbol: &str) -> Result<wire::LeverageBracket, RestError> {
        let answer: Box<serde_json::value::RawValue> =
            self.private("/fapi/v1/leverageBracket", &[("symbol", symbol)], Priority::Sync, 1).await?;
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
        self.private("/fapi/v1/order", &params, Priority::Resolve, 1).await
    }

    pub(crate) async fn open_orders(&self, symbol: &str) -> Result<Vec<wire::OrderAnswer>, RestError> {
        self.private("/fapi/v1/openOrders", &[("symbol", symbol)], Priority::Resolve, 1).await
    }

    pub(crate) async fn user_trades(
        &self,
        symbol: &str,
        since: &str,
    ) -> Result<Vec<wire::UserTrade>, RestError> {
        let params = [("symbol", symbol), ("startTime", since), ("limit", "1000")];
        self.private("/fapi/v1/userTrades", &params, Priority::Resolve, 5).await
    }

    /// Places an order: one attempt, and whatever came of it.
    pub(crate) async fn order_post(
        &self,
        params: Params<'_>,
        priority: Priority,
        window: Duration,
        timeout: Duration,
    ) -> Submitted {
        if let Err(wait) = self.orders.take(self.clock.now(), priority, 1) {
            return Submitted::KeptBack(format!("the venue's order budget is spent for {wait:?}"));
        }
        if let Err(wait) = self.weight.take(self.clock.now(), priority, 0) {
            return Submitted::KeptBack(format!("the venue asked for silence for {wait:?}"));
        }
        self.mutate(Method::Post, params, window, timeout).await
    }

    /// Cancels an order.
    pub(crate) async fn order_delete(&self, symbol: &str, client_id: &str) -> Submitted {
        if let Err(wait) = self.weight.take(self.clock.now(), Priority::Protect, 1) {
            return Submitted::KeptBack(format!("the venue asked for silence for {wait:?}"));
        }
        let params = [("symbol", symbol), ("origClientOrderId", client_id)];
        self.mutate(Method::Delete, &params, self.receive_window, self.timeout).await
    }

    async fn mutate(
        &self,
        method: Method,
        params: Params<'_>,
        window: Duration,
        timeout: Duration,
    ) -> Submitted {
        let signed = match self.signed(params, window) {
            Ok(signed) => signed,
            Err(error) => return Submitted::KeptBack(error.to_string()),
        };
        let request = if method == Method::Post {
            self.request(method, "/fapi/v1/order", "", signed, timeout)
        } else {
            self.request(method, "/fapi/v1/order", &signed, String::new(), timeout)
        };
        match self.transport.send(request).await {
            Ok(response) => {
                self.observe(&response);
                Submitted::Answer(response)
            }
            Err(error) => Submitted::Lost(error),
        }
    }

    pub(crate) async fn listen_key_post(&self) -> Result<wire::ListenKey, RestError> {
        self.take(Priority::Sync, 1)?;
        self.read(self.request(Method::Post, "/fapi/v1/listenKey", "", String::new(), self.timeout)).await
    }

    pub(crate) async fn listen_key_put(&self) -> Result<(), RestError> {
        self.take(Priority::Sync, 1)?;
        let request = self.request(Method::Put, "/fapi/v1/listenKey", "", String::new(), self.timeout);
        self.read::<serde::de::IgnoredAny>(request).await.map(|_| ())
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
