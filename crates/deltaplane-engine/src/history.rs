//! A history in memory, for programs that keep none on disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use deltaplane_ports::{EquityMark, HistoryError, HistoryQuery, RiskHistory, RiskSample, thin_out};
use deltaplane_types::AccountId;

/// Samples of an account that are kept: an hour of one a second.
const KEPT: usize = 3_600;

/// The newest samples of each account. They are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryHistory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    samples: BTreeMap<AccountId, VecDeque<RiskSample>>,
    marks: BTreeMap<AccountId, EquityMark>,
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
}
