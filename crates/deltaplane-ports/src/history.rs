//! What is kept of the past to be looked at. Nothing is decided by it, so losing the newest of it in a crash is
//! allowed.

use std::collections::BTreeMap;

use async_trait::async_trait;
use deltaplane_types::{AccountId, Decimal, Notional, Ratio, Symbol, Timestamp};

use crate::control::{HistoryQuery, RiskSample};
use crate::earnings::{Drift, EarnedDay, Income, PnlQuery};

/// Why the history cannot be used. Trading goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history cannot be used: {0}")]
pub struct HistoryError(pub String);

/// An account's equity so far: what a drawdown is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EquityMark {
    /// Equity at the newest reading, where there was one; the account's currency.
    pub last_equity: Option<Notional>,
    /// The index with deposits and withdrawals taken out, 1 at the start.
    pub index: Decimal,
    /// Its highest value: the high-water mark.
    pub peak: Decimal,
    /// The largest loss from a peak.
    pub max_drawdown: Ratio,
}

/// A high point of what accounts gained together: what their losses are counted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GainPeak {
    /// The symbol whose policy names the accounts; none is all accounts.
    pub symbol: Option<Symbol>,
    /// When it was reached.
    pub at: Timestamp,
    /// By how much it is above what is gained when it is kept, USD.
    pub above: Decimal,
}

/// Samples of accounts' risk over time, thinned out as they get older.
#[async_trait]
pub trait RiskHistory: Send + Sync {
    /// Adds a sample of each account.
    async fn append(&self, samples: Vec<(AccountId, RiskSample)>) -> Result<(), HistoryError>;

    /// An account's samples, the newest first.
    async fn read(&self, account: &AccountId, query: HistoryQuery) -> Result<Vec<RiskSample>, HistoryError>;

    /// Keeps how the accounts' equity stands, so that a restart does not forget a peak.
    async fn keep_marks(&self, marks: BTreeMap<AccountId, EquityMark>) -> Result<(), HistoryError>;

    /// What was kept last.
    async fn marks(&self) -> Result<BTreeMap<AccountId, EquityMark>, HistoryError>;

    /// Keeps the high points of what accounts gained together within the last day, in place of those kept before.
    async fn keep_peaks(&self, peaks: Vec<GainPeak>) -> Result<(), HistoryError>;

    /// What was kept last; of each book the oldest comes first.
    async fn peaks(&self) -> Result<Vec<GainPeak>, HistoryError>;

    /// Adds rows of an account's statement, each in its own asset. A row that is known already changes nothing.
    async fn add_income(&self, account: &AccountId, rows: Vec<Income>) -> Result<(), HistoryError>;

    /// The venue's time of the newest row that is known of an account.
    async fn newest_income(&self, account: &AccountId) -> Result<Option<Timestamp>, HistoryError>;

    /// Adds what positions earned by moves of prices.
    async fn add_drift(&self, drift: Vec<Drift>) -> Result<(), HistoryError>;

    /// What was earned, by day, symbol, account and asset, in that order, each in that asset; moves of prices in
    /// [`USD`](crate::USD).
    async fn earned(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, HistoryError>;
}

/// Which samples, the newest first, are the newest of their spans.
#[derive(Debug)]
pub struct ThinOut {
    /// Milliseconds; zero for every sample.
    span: i64,
    last: Option<i64>,
}

impl ThinOut {
    /// By the interval of a query.
    pub fn new(query: HistoryQuery) -> Self {
        let span = query.interval.and_then(|interval| i64::try_from(interval.as_millis()).ok()).unwrap_or(0);
        Self { span, last: None }
    }

    /// Whether a sample of this time is returned; asked of each, the newest first.
    pub fn keeps(&mut self, at: Timestamp) -> bool {
        let place = (self.span > 0).then(|| at.as_millis().div_euclid(self.span));
        let is_new = place.is_none() || place != self.last;
        self.last = place;
        is_new
    }
}

/// Leaves the newest sample of each span, at most `limit`; `newest_first` is in that order.
pub fn thin_out(newest_first: impl IntoIterator<Item = RiskSample>, query: HistoryQuery) -> Vec<RiskSample> {
    let mut thinned = ThinOut::new(query);
    let kept = newest_first.into_iter().filter(|sample| thinned.keeps(sample.at));
    kept.take(query.limit).collect()
}
