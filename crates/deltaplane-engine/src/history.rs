//! A history in memory, for programs that keep none on disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use deltaplane_ports::{
    DAY_MS, Drift, Earned, EarnedDay, EquityMark, GainPeak, HistoryError, HistoryQuery, Income, IncomeKind,
    PnlQuery, RiskHistory, RiskSample, USD, day_of, thin_out,
};
use deltaplane_types::{AccountId, Symbol, Timestamp};

/// Samples of an account that are kept: an hour of one a second.
const KEPT: usize = 3_600;

/// The newest samples of each account. They are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryHistory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    samples: BTreeMap<AccountId, VecDeque<RiskSample>>,
    marks: BTreeMap<AccountId, EquityMark>,
    peaks: Vec<GainPeak>,
    income: BTreeMap<(AccountId, String), Income>,
    drift: BTreeMap<(Timestamp, Symbol, AccountId), Drift>,
}

impl MemoryHistory {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl RiskHistory for MemoryHistory {
    async fn append(&self, samples: Vec<(AccountId, RiskSample)>) -> Result<(), HistoryError> {
        self.with(|state| {
            for (account, sample) in samples {
                let kept = state.samples.entry(account).or_default();
                kept.push_back(sample);
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
        });
        Ok(())
    }

    async fn read(&self, account: &AccountId, query: HistoryQuery) -> Result<Vec<RiskSample>, HistoryError> {
        Ok(self.with(|state| {
            let samples = state.samples.get(account).into_iter().flatten().rev();
            let inside = samples
                .filter(|sample| query.until.is_none_or(|until| sample.at <= until))
                .take_while(|sample| query.since.is_none_or(|since| sample.at >= since));
            thin_out(inside.cloned(), query)
        }))
    }

    async fn keep_marks(&self, marks: BTreeMap<AccountId, EquityMark>) -> Result<(), HistoryError> {
        self.with(|state| state.marks = marks);
        Ok(())
    }

    async fn marks(&self) -> Result<BTreeMap<AccountId, EquityMark>, HistoryError> {
        Ok(self.with(|state| state.marks.clone()))
    }

    async fn keep_peaks(&self, peaks: Vec<GainPeak>) -> Result<(), HistoryError> {
        self.with(|state| state.peaks = peaks);
        Ok(())
    }

    async fn peaks(&self) -> Result<Vec<GainPeak>, HistoryError> {
        Ok(self.with(|state| state.peaks.clone()))
    }

    async fn add_income(&self, account: &AccountId, rows: Vec<Income>) -> Result<(), HistoryError> {
        self.with(|state| {
            for row in rows {
                state.income.entry((account.clone(), row.id.clone())).or_insert(row);
            }
        });
        Ok(())
    }

    async fn newest_income(&self, account: &AccountId) -> Result<Option<Timestamp>, HistoryError> {
        Ok(self.with(|state| {
            let own = state.income.iter().filter(|((of, _), _)| of == account);
            own.map(|(_, row)| row.at).max()
        }))
    }

    async fn add_drift(&self, drift: Vec<Drift>) -> Result<(), HistoryError> {
        self.with(|state| {
            for more in drift {
                let key = (day_of(more.at), more.symbol.clone(), more.account.clone());
                match state.drift.get_mut(&key) {
                    Some(sum) => {
                        sum.basis = sum.basis.plus(more.basis).map_err(failed)?;
                        sum.residual = sum.residual.plus(more.residual).map_err(failed)?;
                    }
                    None => drop(state.drift.insert(key, more)),
                }
            }
            Ok(())
        })
    }

    async fn earned(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, HistoryError> {
        self.with(|state| {
            let mut days = BTreeMap::<(Timestamp, Symbol, AccountId, String), EarnedDay>::new();
            let mut add =
                |day: Timestamp, symbol: &Symbol, account: &AccountId, asset: &str, more: Earned| {
                    let key = (day, symbol.clone(), account.clone(), asset.to_owned());
                    let none = || EarnedDay {
                        day,
                        symbol: symbol.clone(),
                        account: account.clone(),
                        asset: asset.to_owned(),
                        earned: Earned::default(),
                    };
                    let sum = days.entry(key).or_insert_with(none);
                    sum.earned = sum.earned.plus(&more).map_err(failed)?;
                    Ok::<(), HistoryError>(())
                };
            for ((account, _), row) in &state.income {
                let mut more = Earned::default();
                match row.kind {
                    IncomeKind::Funding => more.funding = row.amount,
                    IncomeKind::Fee => more.fees = row.amount,
                    IncomeKind::Realized => more.realized = row.amount,
                }
                add(day_of(row.at), &row.symbol, account, &row.asset, more)?;
            }
            for ((day, symbol, account), drift) in &state.drift {
                let more = Earned { basis: drift.basis, residual: drift.residual, ..Earned::default() };
                add(*day, symbol, account, USD, more)?;
            }
            let inside = |line: &EarnedDay| {
                let ends = Timestamp::from_millis(line.day.as_millis().saturating_add(DAY_MS));
                query.symbol.as_ref().is_none_or(|symbol| line.symbol == *symbol)
                    && query.since.is_none_or(|since| ends > since)
                    && query.until.is_none_or(|until| line.day < until)
            };
            Ok(days.into_values().filter(inside).collect())
        })
    }
}

fn failed(error: impl std::fmt::Display) -> HistoryError {
    HistoryError(error.to_string())
}
