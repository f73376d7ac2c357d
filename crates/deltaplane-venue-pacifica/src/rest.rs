//! One function per endpoint, named like the endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use deltaplane_net::{
    ClockOffset, HttpRequest, HttpResponse, HttpTransport, Method, Rows, Spent, TransportError, WeightBudget,
};
use deltaplane_ports::{Clock, Priority, ReadError};
use deltaplane_types::{Refusal, RefusalReason, Timestamp, UnknownCause};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::auth::AccountKey;
use crate::errors::{self, AnswerMeaning};
use crate::wire::{self, Answer};

/// Our clock may be this far off before nothing is signed: a quarter of the shortest window, and more than the
/// second that the `Date` header leaves open.
pub(crate) const CLOCK_UNCERTAINTY: Duration = Duration::from_millis(1_250);
/// The `Date` header counts whole seconds.
const DATE_RESOLUTION: Duration = Duration::from_secs(1);
/// Costs in tenths of a credit.
pub(crate) const ORDINARY: u64 = 10;
pub(crate) const CANCEL: u64 = 5;
const HEAVY: u64 = 120;
/// Pages of a history that are read: more than any operation fills.
const HISTORY_PAGES: usize = 10;

/// Whether all that comes after a page is older than a time: its rows get older and its last one is.
fn is_older(first: &wire::PastOrder, last: &wire::PastOrder, since: Timestamp) -> bool {
    last.created_at < since.as_millis() && last.created_at < first.created_at
}

/// What is used by the exchange's own count, and its quota: `r` and `q`, both in tenths of a credit. A quota of zero or
/// more left than there is says nothing.
pub(crate) fn believed(credits: &WeightBudget, told: Option<(u64, u64)>) -> Option<u64> {
    let (left, quota) = told.filter(|(left, quota)| *quota > 0 && left <= quota)?;
    credits.set_limit(quota);
    Some(quota - left)
}

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
    #[error("withheld for {0:?}: the venue's credits are nearly used up")]
    Budget(Duration),
    /// A history is longer than what is read of one.
    #[error("the history has more pages than are read")]
    TooManyPages,
    /// The venue's time is not known well enough to sign.
    #[error("the venue's clock is not known")]
    Clock,
}

impl From<RestError> for ReadError {
    fn from(error: RestError) -> Self {
        let refused =
            |reason, text: String| Self::Refused(Refusal { reason, code: None, text, remedy: None });
        match error {
            RestError::Transport(TransportError::Proxy(text)) => Self::Proxy(text),
            RestError::Transport(error) => Self::Unreachable(error.to_string()),
            RestError::Refused(refusal) => Self::Refused(refusal),
            RestError::Unreadable(text) => Self::Unreadable(text),
            RestError::TooManyPages => Self::Unreadable(error.to_string()),
            RestError::Budget(wait) => Self::Withheld(wait),
            RestError::Clock => refused(RefusalReason::Clock, error.to_string()),
        }
    }
}

/// A signed operation, ready to be sent once.
pub(crate) struct SignedOperation {
    pub(crate) operation: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: String,
}

/// What a signed operation came to.
pub(crate) enum Submitted {
    /// The venue's `data`.
    Done(Value),
    Refused(Refusal),
    Unknown(UnknownCause),
}

pub(crate) struct Rest {
    pub(crate) transport: Arc<dyn HttpTransport>,
    pub(crate) base: String,
    pub(crate) key: Option<Arc<AccountKey>>,
    pub(crate) api_config_key: Option<SecretString>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) offset: ClockOffset,
    pub(crate) credits: Arc<WeightBudget>,
    pub(crate) timeout: Duration,
}

type Query<'a> = &'a [(&'a str, &'a str)];

impl Rest {
    fn request(&self, method: Method, path: &str, query: Query<'_>, body: String) -> HttpRequest {
        let mut url = format!("{}/api/v1{path}", self.base);
        for (index, (name, value)) in query.iter().enumerate() {
            url.push(if index == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
        let mut headers = Vec::new();
        if let Some(key) = &self.api_config_key {
            headers.push(("pf-api-key", key.expose_secret().to_owned()));
        }
        if !body.is_empty() {
            headers.push(("content-type", "application/json".to_owned()));
        }
        HttpRequest { method, url, headers, body, timeout: self.timeout }
    }

    /// Takes the venue's count of credits and its time from an answer.
    fn observe(&self, sent: Timestamp, response: &HttpResponse, spent: Spent) {
        let now = self.clock.now();
        let number = |header: &str, name: &str| -> Option<u64> {
            let text = response.header(header)?;
            let digits =
                text.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))?;
            self.credits.read_count(digits)
        };
        let told = number("ratelimit", "r").zip(number("ratelimit-policy", "q"));
        spent.answered(now, believed(&self.credits, told));
        if response.status == 429 {
            let wait = number("ratelimit", "t").unwrap_or(10).clamp(1, 60);
            self.credits.silence_until(now, now.after(Duration::from_secs(wait)));
        }
        let date = response.header("date").and_then(|text| httpdate::parse_http_date(text).ok());
        let since = date.and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok());
        if let Some(millis) = since.and_then(|since| i64::try_from(since.as_millis()).ok()) {
            self.offset.observe_coarse(sent, Timestamp::from_millis(millis), now, DATE_RESOLUTION);
        }
    }

    /// The venue's time now, if it is known well enough to sign.
    pub(crate) fn venue_now(&self) -> Result<Timestamp, RestError> {
        {
            let allowed = i64::try_from(CLOCK_UNCERTAINTY.as_millis()).unwrap_or(0);
            self.offset.venue_time(self.clock.now(), allowed)
        }
        .ok_or(RestError::Clock)
    }

    /// Asks for something small where the venue's time is not known, as after a refusal for its sake: every answer tells it.
    /// An order, and all the more a protective request, reads the time itself.
    pub(crate) async fn know_the_clock(&self, account: &str, priority: Priority) {
        if self.venue_now().is_err()
            && let Err(error) = self.settings(account, priority).await
        {
            tracing::warn!(%error, "the exchange's time is not known");
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: Query<'_>,
        (priority, cost): (Priority, u64),
    ) -> Result<Answer<T>, RestError> {
        let body = self.get_text(path, query, (priority, cost)).await?;
        wire::answer(&body).map_err(RestError::Unreadable)
    }

    /// An answer as it is written.
    pub(crate) async fn get_text(
        &self,
        path: &str,
        query: Query<'_>,
        (priority, cost): (Priority, u64),
    ) -> Result<Bytes, RestError> {
        let sent = self.clock.now();
        let spent = self.credits.take(sent, priority, cost).map_err(RestError::Budget)?;
        let question = self.request(Method::Get, path, query, String::new());
        let response = deltaplane_net::ask(self.transport.as_ref(), question).await?;
        self.observe(sent, &response, spent);
        if response.status != 200 {
            return Err(match errors::of_answer(response.status, &response.body) {
                AnswerMeaning::Refused(refusal) => RestError::Refused(refusal),
                // A question can be asked again; what it says is enough.
                AnswerMeaning::Unknown(_) if response.status >= 500 || response.status == 408 => {
                    RestError::Refused(Refusal {
                        reason: RefusalReason::Overloaded,
                        code: Some(response.status.into()),
                        text: format!("status {}", response.status),
                        remedy: None,
                    })
                }
                AnswerMeaning::Unknown(UnknownCause::VenueUncertain(text)) => RestError::Refused(Refusal {
                    reason: RefusalReason::Rejected,
                    code: Some(response.status.into()),
                    text,
                    remedy: None,
                }),
                AnswerMeaning::Unknown(_) => RestError::Unreadable(format!("status {}", response.status)),
            });
        }
        Ok(response.body)
    }

    /// The markets, as they are written.
    pub(crate) async fn info(&self, priority: Priority) -> Result<Bytes, RestError> {
        self.get_text("/info", &[], (priority, ORDINARY)).await
    }

    pub(crate) async fn prices(&self, priority: Priority) -> Result<Vec<wire::PriceRow>, RestError> {
        let rows: Rows<wire::PriceRow> = self.get("/info/prices", &[], (priority, ORDINARY)).await?.data;
        Ok(rows.read)
    }

    /// The newest day of hourly settlements.
    pub(crate) async fn funding_rate_history(
        &self,
        market: &str,
        priority: Priority,
    ) -> Result<Vec<wire::PastFunding>, RestError> {
        let query = [("symbol", market), ("limit", "24")];
        Ok(self.get("/funding_rate/history", &query, (priority, ORDINARY)).await?.data)
    }

    /// The account; old answers wrap it in an array.
    pub(crate) async fn account(
        &self,
        account: &str,
        priority: Priority,
    ) -> Result<wire::Account, RestError> {
        let query = [("account", account)];
        let answer: Value = self.get("/account", &query, (priority, ORDINARY)).await?.data;
        let one = match answer {
            Value::Array(mut rows) if rows.len() == 1 => rows.remove(0),
            other => other,
        };
        // Numbers are texts on this wire: nothing passes through a float.
        serde_json::from_str(&one.to_string()).map_err(|error| RestError::Unreadable(error.to_string()))
    }

    /// Markets whose settings differ from the defaults, as they are written.
    pub(crate) async fn settings(&self, account: &str, priority: Priority) -> Result<Bytes, RestError> {
        self.get_text("/account/settings", &[("account", account)], (priority, ORDINARY)).await
    }

    /// Positions, and the place up to which the whole set tells everything.
    pub(crate) async fn positions(
        &self,
        account: &str,
        priority: Priority,
    ) -> Result<(Rows<wire::PositionRow>, Option<u64>), RestError> {
        let answer = self.get("/positions", &[("account", account)], (priority, ORDINARY)).await?;
        Ok((answer.data, answer.last_id))
    }

    pub(crate) async fn open_orders(
        &self,
        account: &str,
        priority: Priority,
    ) -> Result<Vec<wire::OpenOrder>, RestError> {
        Ok(self.get("/orders", &[("account", account)], (priority, ORDINARY)).await?.data)
    }

    /// The past orders with a name that were not placed before `since`, from the pages of the history.
    pub(crate) async fn order_history(
        &self,
        account: &str,
        name: &str,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<wire::PastOrder>, RestError> {
        let mut cursor = None;
        for _ in 0..HISTORY_PAGES {
            let (mut rows, next) = self.order_page(account, cursor.as_deref(), since, priority).await?;
            rows.retain(|row| row.client_order_id.as_deref() == Some(name));
            if next.is_none() || !rows.is_empty() {
                return Ok(rows);
            }
            cursor = next;
        }
        Err(RestError::Unreadable("the history of orders has more pages than are read".to_owned()))
    }

    /// Past and open orders that were not placed before `since`, as far as ten pages tell.
    pub(crate) async fn orders_since(
        &self,
        account: &str,
        since: Timestamp,
        priority: Priority,
    ) -> Result<Vec<wire::PastOrder>, RestError> {
        let mut found = Vec::new();
        let mut cursor = None;
        for _ in 0..HISTORY_PAGES {
            let (rows, next) = self.order_page(account, cursor.as_deref(), since, priority).await?;
            found.extend(rows.into_iter().filter(|row| row.created_at >= since.as_millis()));
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// A page of the history of orders, and where the next one is; none where there is none or all in it is older.
    ///
    /// Whether the newest or the oldest row comes first is not documented: a page says by its own order when the
    /// rest is too old.
    async fn order_page(
        &self,
        account: &str,
        cursor: Option<&str>,
        since: Timestamp,
        priority: Priority,
    ) -> Result<(Vec<wire::PastOrder>, Option<String>), RestError> {
        let mut query = vec![("account", account), ("limit", "100")];
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: Answer<Vec<wire::PastOrder>> =
            self.get("/orders/history", &query, (priority, HEAVY / 4)).await?;
        let ends = page.data.first().zip(page.data.last());
        let rest_is_older = ends.is_some_and(|(first, last)| is_older(first, last, since));
        Ok((page.data, page.next_cursor.filter(|_| !rest_is_older)))
    }

    /// All trades of a market, or of all markets, newest first on the wire, over as many pages as there are.
    pub(crate) async fn trade_history<T: DeserializeOwned>(
        &self,
        account: &str,
        market: Option<&str>,
        (since, until): (Timestamp, Option<Timestamp>),
        priority: Priority,
    ) -> Result<Vec<T>, RestError> {
        let since = since.to_string();
        let until = until.map(|until| until.to_string());
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..HISTORY_PAGES {
            let mut query = vec![("account", account), ("start_time", &since), ("limit", "1000")];
            query.extend(market.map(|market| ("symbol", market)));
            query.extend(until.as_deref().map(|until| ("end_time", until)));
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: Answer<Vec<T>> = self.get("/trades/history", &query, (priority, HEAVY / 4)).await?;
            all.extend(page.data);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
        Err(RestError::TooManyPages)
    }

    /// What the account was paid in funding since a time, newest first on the wire, and since when all of it is there:
    /// later than was asked for where there are more pages than are read.
    pub(crate) async fn paid_funding(
        &self,
        account: &str,
        since: Timestamp,
        priority: Priority,
    ) -> Result<(Vec<wire::PaidFunding>, Timestamp), RestError> {
        let mut all: Vec<wire::PaidFunding> = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..HISTORY_PAGES {
            let mut query = vec![("account", account), ("limit", "1000")];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let page: Answer<Vec<wire::PaidFunding>> =
                self.get("/funding/history", &query, (priority, HEAVY / 4)).await?;
            let is_older = page.data.iter().any(|row| row.created_at < since.as_millis());
            all.extend(page.data.into_iter().filter(|row| row.created_at >= since.as_millis()));
            cursor = page.next_cursor.filter(|_| !is_older);
            if cursor.is_none() {
                return Ok((all, since));
            }
        }
        let oldest = all.iter().map(|row| row.created_at).min().map_or(since, Timestamp::from_millis);
        Ok((all, oldest))
    }

    /// Signs an operation for now; it is good for `window`.
    pub(crate) fn sign(
        &self,
        (operation, path): (&'static str, &'static str),
        payload: Map<String, Value>,
        window: Duration,
    ) -> Result<SignedOperation, RestError> {
        let key = self.key.as_ref().ok_or(RestError::Clock)?;
        let now = self.venue_now()?.as_millis();
        let window = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        Ok(SignedOperation { operation, path, body: key.signed_body(operation, payload, now, window) })
    }

    /// Sends a signed operation: one attempt, and whatever came of it.
    pub(crate) async fn post(&self, signed: &SignedOperation, spent: Spent, timeout: Duration) -> Submitted {
        let sent = self.clock.now();
        let mut request = self.request(Method::Post, signed.path, &[], signed.body.clone());
        request.timeout = timeout;
        match self.transport.send(request).await {
            Err(error) => errors::of_transport(&error).into(),
            Ok(response) => {
                self.observe(sent, &response, spent);
                if response.status != 200 {
                    return errors::of_answer(response.status, &response.body).into();
                }
                match wire::answer::<Value>(&response.body) {
                    Ok(answer) => Submitted::Done(answer.data),
                    // Neither a success nor a refusal by the table.
                    Err(_) => errors::of_answer(200, &response.body).into(),
                }
            }
        }
    }
}

impl From<AnswerMeaning> for Submitted {
    fn from(decision: AnswerMeaning) -> Self {
        match decision {
            AnswerMeaning::Refused(refusal) => Self::Refused(refusal),
            AnswerMeaning::Unknown(cause) => Self::Unknown(cause),
        }
    }
}
