//! One mutating operation per symbol and account, in order of arrival.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_types::{AccountId, OperationId, Symbol};
use tokio::sync::OwnedMutexGuard;

type Lane = Arc<tokio::sync::Mutex<()>>;
/// Each lane with the operation that holds it.
type LaneTable = BTreeMap<(Symbol, AccountId), (Lane, Option<OperationId>)>;

/// All lanes.
#[derive(Clone, Default)]
pub(crate) struct Lanes(Arc<Mutex<LaneTable>>);

/// Lanes that an operation holds; dropping it frees them.
pub(crate) struct Held {
    lanes: Lanes,
    symbol: Symbol,
    accounts: Vec<AccountId>,
    _guards: Vec<OwnedMutexGuard<()>>,
}

/// Another operation holds a lane.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) account: AccountId,
    pub(crate) holder: Option<OperationId>,
}

impl Lanes {
    fn lane(&self, symbol: &Symbol, account: &AccountId) -> Lane {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.entry((symbol.clone(), account.clone())).or_default().0.clone()
    }

    fn holder(&self, symbol: &Symbol, account: &AccountId) -> Option<OperationId> {
        let lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.get(&(symbol.clone(), account.clone())).and_then(|(_, holder)| holder.clone())
    }

    fn set_holder(&self, symbol: &Symbol, accounts: &[AccountId], holder: Option<&OperationId>) {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for account in accounts {
            lanes.entry((symbol.clone(), account.clone())).or_default().1 = holder.cloned();
        }
    }

    /// Whether an operation holds a lane.
    pub(crate) fn is_held(&self, symbol: &Symbol, account: &AccountId) -> bool {
        self.holder(symbol, account).is_some()
    }

    /// An account whose lane is held and that is not among these.
    pub(crate) fn held_beside(&self, symbol: &Symbol, accounts: &[AccountId]) -> Option<AccountId> {
        let lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = lanes.iter().find(|((of, account), (_, holder))| {
            of == symbol && holder.is_some() && !accounts.contains(account)
        });
        held.map(|((_, account), _)| account.clone())
    }

    /// Takes the lanes of all accounts in sorted order, waiting at most `wait` in all; none means not at all.
    pub(crate) async fn take(
        &self,
        symbol: &Symbol,
        accounts: &[AccountId],
        operation: &OperationId,
        wait: Option<Duration>,
    ) -> Result<Held, Busy> {
        let sorted: BTreeSet<&AccountId> = accounts.iter().collect();
        let until = tokio::time::Instant::now() + wait.unwrap_or_default();
        let mut guards = Vec::with_capacity(sorted.len());
        for account in sorted {
            let lane = self.lane(symbol, account);
            let guard = match wait {
                None => lane.try_lock_owned().ok(),
                Some(_) => tokio::time::timeout_at(until, lane.lock_owned()).await.ok(),
            };
            let Some(guard) = guard else {
                return Err(Busy { account: account.clone(), holder: self.holder(symbol, account) });
            };
            guards.push(guard);
        }
        self.set_holder(symbol, accounts, Some(operation));
        Ok(Held { lanes: self.clone(), symbol: symbol.clone(), accounts: accounts.to_vec(), _guards: guards })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lanes.set_holder(&self.symbol, &self.accounts, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(names: &[&str]) -> Vec<AccountId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn crossing_requests_do_not_lock_each_other_out() {
        let lanes = Lanes::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let (first, second): (OperationId, OperationId) = ("op-1".parse().unwrap(), "op-2".parse().unwrap());
        let held = lanes.take(&symbol, &accounts(&["a", "b"]), &first, None).await.unwrap();
        let Err(busy) = lanes.take(&symbol, &accounts(&["b", "a"]), &second, None).await else {
            panic!("both hold")
        };
        assert_eq!((busy.account.as_str(), busy.holder), ("a", Some(first)));
        let waiting = lanes.clone();
        let (wanted, of) = (symbol.clone(), second.clone());
        let task = tokio::spawn(async move {
            waiting.take(&wanted, &accounts(&["b", "a"]), &of, Some(Duration::from_secs(5))).await.is_ok()
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(held);
        assert!(task.await.unwrap());
        assert!(lanes.take(&symbol, &accounts(&["a"]), &second, None).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends() {
        let lanes = Lanes::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id: OperationId = "op-1".parse().unwrap();
        let _held = lanes.take(&symbol, &accounts(&["a"]), &id, None).await.unwrap();
        assert!(lanes.take(&symbol, &accounts(&["a"]), &id, Some(Duration::from_secs(2))).await.is_err());
    }
}
