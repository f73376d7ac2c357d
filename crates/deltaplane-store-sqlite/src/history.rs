//! The accounts' risk over time, in a file of its own: it may be deleted, and the journal does not wait for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use deltaplane_ports::{
    DAY_MS, Drift, Earned, EarnedDay, EquityMark, GainPeak, HistoryError, HistoryQuery, Income, IncomeKind,
    PnlQuery, RiskHistory, RiskSample, ThinOut, USD, day_of,
};
use deltaplane_types::{AccountId, Notional, Ratio, Timestamp, read_back};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

const SECOND: i64 = 1_000;
const DAY: i64 = 24 * 3_600 * SECOND;

/// Spans, and how long one sample of each is kept: every second for a day, every minute for a week, every hour for
/// 30 days. A span's sample is its last.
const KEPT: [(i64, i64); 3] = [(SECOND, DAY), (60 * SECOND, 7 * DAY), (3_600 * SECOND, 30 * DAY)];

/// How often old samples are looked for.
const CLEANED_EVERY: i64 = 3_600 * SECOND;

fn failed(error: impl std::fmt::Display) -> HistoryError {
    HistoryError(error.to_string())
}

/// A sample as it stands in the file. Decimals are text, so that they stay exact.
#[derive(Serialize, Deserialize)]
struct SampleRow {
    at: i64,
    equity: String,
    unrealized: String,
    delta_deviation: String,
    utilization: Option<String>,
    leverage: Option<String>,
    margin_ratio: Option<String>,
    max_drawdown: String,
    liquidation_distance: Option<String>,
}

impl From<&RiskSample> for SampleRow {
    fn from(sample: &RiskSample) -> Self {
        let text = |ratio: Option<Ratio>| ratio.map(|ratio| ratio.to_string());
        Self {
            at: sample.at.as_millis(),
            equity: sample.equity.to_string(),
            unrealized: sample.unrealized.to_string(),
            delta_deviation: sample.delta_deviation.to_string(),
            utilization: text(sample.utilization),
            leverage: text(sample.leverage),
            margin_ratio: text(sample.margin_ratio),
            max_drawdown: sample.max_drawdown.to_string(),
            liquidation_distance: text(sample.liquidation_distance),
        }
    }
}

fn ratio(text: &str) -> Result<Ratio, HistoryError> {
    read_back(text).map(Ratio::new).map_err(failed)
}

fn notional(text: &str) -> Result<Notional, HistoryError> {
    read_back(text).map(Notional::new).map_err(failed)
}

impl TryFrom<SampleRow> for RiskSample {
    type Error = HistoryError;

    fn try_from(row: SampleRow) -> Result<Self, HistoryError> {
        let maybe = |text: Option<String>| text.as_deref().map(ratio).transpose();
        Ok(Self {
            at: Timestamp::from_millis(row.at),
            equity: notional(&row.equity)?,
            unrealized: notional(&row.unrealized)?,
            delta_deviation: ratio(&row.delta_deviation)?,
            utilization: maybe(row.utilization)?,
            leverage: maybe(row.leverage)?,
            margin_ratio: maybe(row.margin_ratio)?,
            max_drawdown: ratio(&row.max_drawdown)?,
            liquidation_distance: maybe(row.liquidation_distance)?,
        })
    }
}

/// The history on disk.
#[derive(Clone)]
pub struct SqliteHistory(Arc<Mutex<State>>);

struct State {
    connection: Connection,
    cleaned_at: i64,
}

impl SqliteHistory {
    /// Opens `history.sqlite` in a folder, made where it is missing.
    ///
    /// # Errors
    ///
    /// [`HistoryError`] where the file cannot be used; it may be deleted then.
    pub fn open(folder: &Path) -> Result<Self, HistoryError> {
        std::fs::create_dir_all(folder).map_err(failed)?;
        let connection = Connection::open(folder.join("history.sqlite")).map_err(failed)?;
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = NORMAL;
                 CREATE TABLE IF NOT EXISTS samples (
                     account TEXT NOT NULL,
                     span INTEGER NOT NULL,
                     place INTEGER NOT NULL,
                     at INTEGER NOT NULL,
                     sample TEXT NOT NULL,
                     PRIMARY KEY (account, span, place)
                 ) STRICT, WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS marks (
                     account TEXT PRIMARY KEY,
                     last_equity TEXT,
                     equity_index TEXT NOT NULL,
                     peak TEXT NOT NULL,
                     max_drawdown TEXT NOT NULL
                 ) STRICT, WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS peaks (
                     symbol TEXT NOT NULL,
                     at INTEGER NOT NULL,
                     above TEXT NOT NULL,
                     PRIMARY KEY (symbol, at)
                 ) STRICT, WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS income (
                     account TEXT NOT NULL,
                     id TEXT NOT NULL,
                     day INTEGER NOT NULL,
                     at INTEGER NOT NULL,
                     symbol TEXT NOT NULL,
                     kind TEXT NOT NULL,
                     amount TEXT NOT NULL,
                     asset TEXT NOT NULL DEFAULT 'USD',
                     PRIMARY KEY (account, id)
                 ) STRICT, WITHOUT ROWID;
                 CREATE INDEX IF NOT EXISTS income_by_day ON income (day);
                 CREATE TABLE IF NOT EXISTS drift (
                     day INTEGER NOT NULL,
                     symbol TEXT NOT NULL,
                     account TEXT NOT NULL,
                     basis TEXT NOT NULL,
                     residual TEXT NOT NULL,
                     PRIMARY KEY (day, symbol, account)
                 ) STRICT, WITHOUT ROWID;",
            )
            .map_err(failed)?;
        add_assets(&connection).map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(State { connection, cleaned_at: 0 }))))
    }

    /// Works with the file on a thread that may wait for the disk.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let state = self.0.clone();
        let done = tokio::task::spawn_blocking(move || {
            work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.map_err(failed)?
    }
}

/// Files of earlier versions have every statement's row in USD.
fn add_assets(connection: &Connection) -> Result<(), rusqlite::Error> {
    let known = "SELECT count(*) FROM pragma_table_info('income') WHERE name = 'asset'";
    if connection.query_row(known, [], |row| row.get::<_, i64>(0))? == 0 {
        connection.execute("ALTER TABLE income ADD COLUMN asset TEXT NOT NULL DEFAULT 'USD'", [])?;
    }
    Ok(())
}

fn append(state: &mut State, samples: &[(AccountId, RiskSample)]) -> Result<(), HistoryError> {
    let newest = samples.iter().map(|(_, sample)| sample.at.as_millis()).max().unwrap_or(0);
    let clean = newest - state.cleaned_at >= CLEANED_EVERY;
    let transaction = state.connection.transaction().map_err(failed)?;
    {
        let mut insert = transaction
            .prepare_cached("INSERT OR REPLACE INTO samples VALUES (?1, ?2, ?3, ?4, ?5)")
            .map_err(failed)?;
        for (account, sample) in samples {
            let text = serde_json::to_string(&SampleRow::from(sample)).map_err(failed)?;
            let at = sample.at.as_millis();
            for (span, _) in KEPT {
                let place = at.div_euclid(span);
                insert.execute(params![account.as_str(), span, place, at, text]).map_err(failed)?;
            }
        }
    }
    if clean {
        for (span, kept) in KEPT {
            let oldest = newest - kept;
            transaction
                .execute("DELETE FROM samples WHERE span = ?1 AND at < ?2", params![span, oldest])
                .map_err(failed)?;
        }
    }
    transaction.commit().map_err(failed)?;
    if clean {
        state.cleaned_at = newest;
    }
    Ok(())
}

/// Every sample of an account that is kept, each time by the finest span that still has it.
fn read(state: &State, account: &str, query: HistoryQuery) -> Result<Vec<RiskSample>, HistoryError> {
    let since = query.since.map_or(i64::MIN, Timestamp::as_millis);
    let mut until = query.until.map_or(i64::MAX, Timestamp::as_millis);
    let mut statement = state
        .connection
        .prepare_cached(
            "SELECT at, sample FROM samples WHERE account = ?1 AND span = ?2 AND at BETWEEN ?3 AND ?4
             ORDER BY place DESC",
        )
        .map_err(failed)?;
    let mut thinned = ThinOut::new(query);
    let mut found: Vec<RiskSample> = Vec::new();
    for (span, _) in KEPT {
        let mut rows = statement.query(params![account, span, since, until]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let at: i64 = row.get(0).map_err(failed)?;
            // What a coarser span has from then on is known in more detail.
            until = at - 1;
            // What is left out needs not be read: a day has 86,400 seconds.
            if !thinned.keeps(Timestamp::from_millis(at)) {
                continue;
            }
            let text: String = row.get(1).map_err(failed)?;
            let row: SampleRow = serde_json::from_str(&text).map_err(failed)?;
            found.push(RiskSample::try_from(row)?);
            if found.len() >= query.limit {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

const fn kind_name(kind: IncomeKind) -> &'static str {
    match kind {
        IncomeKind::Funding => "funding",
        IncomeKind::Fee => "fee",
        IncomeKind::Realized => "realized",
    }
}

fn add_income(state: &mut State, account: &str, rows: &[Income]) -> Result<(), HistoryError> {
    let transaction = state.connection.transaction().map_err(failed)?;
    {
        let mut insert = transaction
            .prepare_cached(
                "INSERT OR IGNORE INTO income (account, id, day, at, symbol, kind, amount, asset)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )
            .map_err(failed)?;
        for row in rows {
            let (day, at) = (day_of(row.at).as_millis(), row.at.as_millis());
            let amount = row.amount.to_string();
            let (symbol, kind) = (row.symbol.as_str(), kind_name(row.kind));
            insert
                .execute(params![account, row.id, day, at, symbol, kind, amount, row.asset])
                .map_err(failed)?;
        }
    }
    transaction.commit().map_err(failed)
}

fn add_drift(state: &mut State, drift: &[Drift]) -> Result<(), HistoryError> {
    let transaction = state.connection.transaction().map_err(failed)?;
    for more in drift {
        let key = params![day_of(more.at).as_millis(), more.symbol.as_str(), more.account.as_str()];
        let known = transaction.query_row(
            "SELECT basis, residual FROM drift WHERE day = ?1 AND symbol = ?2 AND account = ?3",
            key,
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)),
        );
        let (basis, residual) = match known {
            Ok((basis, residual)) => (notional(&basis)?, notional(&residual)?),
            Err(rusqlite::Error::QueryReturnedNoRows) => (Notional::ZERO, Notional::ZERO),
            Err(error) => return Err(failed(error)),
        };
        let basis = basis.plus(more.basis).map_err(failed)?.to_string();
        let residual = residual.plus(more.residual).map_err(failed)?.to_string();
        let (day, symbol, account) =
            (day_of(more.at).as_millis(), more.symbol.as_str(), more.account.as_str());
        transaction
            .execute(
                "INSERT OR REPLACE INTO drift VALUES (?1, ?2, ?3, ?4, ?5)",
                params![day, symbol, account, basis, residual],
            )
            .map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// Decimals are text in the file and are added up here, exactly.
fn earned(state: &State, query: &PnlQuery) -> Result<Vec<EarnedDay>, HistoryError> {
    // A day that ends after `since` begins at most a day before it.
    let since = query.since.map_or(i64::MIN, |since| since.as_millis().saturating_sub(DAY_MS));
    let until = query.until.map_or(i64::MAX, Timestamp::as_millis);
    let mut statement = state
        .connection
        .prepare_cached(
            "SELECT day, symbol, account, asset, kind, amount, '0' FROM income WHERE day > ?1 AND day < ?2
             UNION ALL
             SELECT day, symbol, account, ?3, 'drift', basis, residual FROM drift WHERE day > ?1 AND day < ?2",
        )
        .map_err(failed)?;
    let mut rows = statement.query(params![since, until, USD]).map_err(failed)?;
    let mut days = BTreeMap::<(i64, String, String, String), Earned>::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let key = (
            row.get(0).map_err(failed)?,
            row.get::<_, String>(1).map_err(failed)?,
            row.get(2).map_err(failed)?,
            row.get(3).map_err(failed)?,
        );
        if query.symbol.as_ref().is_some_and(|symbol| symbol.as_str() != key.1) {
            continue;
        }
        let (kind, first, second): (String, String, String) =
            (row.get(4).map_err(failed)?, row.get(5).map_err(failed)?, row.get(6).map_err(failed)?);
        let amount = notional(&first)?;
        let more = match kind.as_str() {
            "funding" => Earned { funding: amount, ..Earned::default() },
            "fee" => Earned { fees: amount, ..Earned::default() },
            "realized" => Earned { realized: amount, ..Earned::default() },
            _ => Earned { basis: amount, residual: notional(&second)?, ..Earned::default() },
        };
        let sum = days.entry(key).or_default();
        *sum = sum.plus(&more).map_err(failed)?;
    }
    days.into_iter()
        .map(|((day, symbol, account, asset), earned)| {
            Ok(EarnedDay {
                day: Timestamp::from_millis(day),
                symbol: symbol.parse().map_err(failed)?,
                account: account.parse().map_err(failed)?,
                asset,
                earned,
            })
        })
        .collect()
}

#[async_trait]
impl RiskHistory for SqliteHistory {
    async fn append(&self, samples: Vec<(AccountId, RiskSample)>) -> Result<(), HistoryError> {
        self.with(move |state| append(state, &samples)).await
    }

    async fn read(&self, account: &AccountId, query: HistoryQuery) -> Result<Vec<RiskSample>, HistoryError> {
        let account = account.to_string();
        self.with(move |state| read(state, &account, query)).await
    }

    async fn keep_marks(&self, marks: BTreeMap<AccountId, EquityMark>) -> Result<(), HistoryError> {
        self.with(move |state| {
            let transaction = state.connection.transaction().map_err(failed)?;
            for (account, mark) in marks {
                let row = params![
                    account.as_str(),
                    mark.last_equity.map(|equity| equity.to_string()),
                    mark.index.to_string(),
                    mark.peak.to_string(),
                    mark.max_drawdown.to_string(),
                ];
                transaction
                    .execute("INSERT OR REPLACE INTO marks VALUES (?1, ?2, ?3, ?4, ?5)", row)
                    .map_err(failed)?;
            }
            transaction.commit().map_err(failed)
        })
        .await
    }

    async fn marks(&self) -> Result<BTreeMap<AccountId, EquityMark>, HistoryError> {
        self.with(|state| {
            let mut statement = state
                .connection
                .prepare("SELECT account, last_equity, equity_index, peak, max_drawdown FROM marks")
                .map_err(failed)?;
            let rows = statement
                .query_map([], |row| {
                    let texts: (String, Option<String>, String, String, String) =
                        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
                    Ok(texts)
                })
                .map_err(failed)?;
            let mut marks = BTreeMap::new();
            for row in rows {
                let (account, last, index, peak, most) = row.map_err(failed)?;
                let mark = EquityMark {
                    last_equity: last.as_deref().map(notional).transpose()?,
                    index: read_back(&index).map_err(failed)?,
                    peak: read_back(&peak).map_err(failed)?,
                    max_drawdown: ratio(&most)?,
                };
                marks.insert(account.parse().map_err(failed)?, mark);
            }
            Ok(marks)
        })
        .await
    }

    async fn keep_peaks(&self, peaks: Vec<GainPeak>) -> Result<(), HistoryError> {
        self.with(move |state| {
            let transaction = state.connection.transaction().map_err(failed)?;
            transaction.execute("DELETE FROM peaks", []).map_err(failed)?;
            for GainPeak { symbol, at, above } in peaks {
                // All accounts are the book without a symbol.
                let symbol = symbol.map(|symbol| symbol.to_string()).unwrap_or_default();
                let row = params![symbol, at.as_millis(), above.to_string()];
                transaction
                    .execute("INSERT OR REPLACE INTO peaks VALUES (?1, ?2, ?3)", row)
                    .map_err(failed)?;
            }
            transaction.commit().map_err(failed)
        })
        .await
    }

    async fn peaks(&self) -> Result<Vec<GainPeak>, HistoryError> {
        self.with(|state| {
            let mut statement = state
                .connection
                .prepare("SELECT symbol, at, above FROM peaks ORDER BY symbol, at")
                .map_err(failed)?;
            let rows = statement
                .query_map([], |row| {
                    let texts: (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                    Ok(texts)
                })
                .map_err(failed)?;
            let mut peaks = Vec::new();
            for row in rows {
                let (symbol, at, above) = row.map_err(failed)?;
                let symbol = (!symbol.is_empty()).then(|| symbol.parse()).transpose().map_err(failed)?;
                let above = read_back(&above).map_err(failed)?;
                peaks.push(GainPeak { symbol, at: Timestamp::from_millis(at), above });
            }
            Ok(peaks)
        })
        .await
    }

    async fn add_income(&self, account: &AccountId, rows: Vec<Income>) -> Result<(), HistoryError> {
        let account = account.to_string();
        self.with(move |state| add_income(state, &account, &rows)).await
    }

    async fn newest_income(&self, account: &AccountId) -> Result<Option<Timestamp>, HistoryError> {
        let account = account.to_string();
        self.with(move |state| {
            let newest: Option<i64> = state
                .connection
                .query_row("SELECT max(at) FROM income WHERE account = ?1", params![account], |row| {
                    row.get(0)
                })
                .map_err(failed)?;
            Ok(newest.map(Timestamp::from_millis))
        })
        .await
    }

    async fn add_drift(&self, drift: Vec<Drift>) -> Result<(), HistoryError> {
        self.with(move |state| add_drift(state, &drift)).await
    }

    async fn earned(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, HistoryError> {
        self.with(move |state| earned(state, &query)).await
    }
}
