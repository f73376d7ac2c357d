//! One mutating operation per symbol and account, in order of arrival.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deltaplane_types::{AccountId, OperationId, Symbol};
use tokio::sync::Notify;

/// Who holds which lanes, and who waits for lanes.
#[derive(Default)]
struct Table {
    held: BTreeMap<(Symbol, AccountId), OperationId>,
    /// By order of arrival.
    waiting: BTreeMap<u64, (Symbol, Vec<AccountId>)>,
    arrivals: u64,
}

impl Table {
    fn holder(&self, symbol: &Symbol, account: &AccountId) -> Option<&OperationId> {
        self.held.get(&(symbol.clone(), account.clone()))
    }

    /// The first of these that another operation holds.
    fn busy(&self, symbol: &Symbol, accounts: &[AccountId]) -> Option<Busy> {
        accounts.iter().find_map(|account| {
            let holder = self.holder(symbol, account)?;
            Some(Busy { account: account.clone(), holder: Some(holder.clone()) })
        })
    }

    /// What keeps the one that arrived as `place` from its lanes: who holds one of them, or who came before it, wants one
    /// of them too and could go now.
    fn in_the_way(&self, place: u64, symbol: &Symbol, accounts: &[AccountId]) -> Option<Busy> {
        self.busy(symbol, accounts).or_else(|| {
            let before = self.waiting.range(..place).filter(|(_, (of, _))| of == symbol);
            before.filter(|(_, (_, wanted))| self.busy(symbol, wanted).is_none()).find_map(
                |(_, (_, wanted))| {
                    let account = accounts.iter().find(|account| wanted.contains(account))?;
                    Some(Busy { account: account.clone(), holder: None })
                },
            )
        })
    }
}

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// Told whenever lanes may have become free for one that waits.
    changed: Notify,
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All lanes.
#[derive(Clone, Default)]
pub(crate) struct Lanes(Arc<Inner>);

/// Lanes that an operation holds; dropping it frees them.
pub(crate) struct Held {
    lanes: Lanes,
    symbol: Symbol,
    accounts: Vec<AccountId>,
}

/// A place in the queue; dropping it leaves the queue.
struct Place<'a>(&'a Inner, u64);

/// Another operation holds a lane.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) account: AccountId,
    /// None where the lane is free and one that waited for it longer takes it now.
    pub(crate) holder: Option<OperationId>,
}

impl Lanes {
    /// Whether an operation holds a lane.
    pub(crate) fn is_held(&self, symbol: &Symbol, account: &AccountId) -> bool {
        self.0.table().holder(symbol, account).is_some()
    }

    /// An account whose lane is held and that is not among these.
    pub(crate) fn held_beside(&self, symbol: &Symbol, accounts: &[AccountId]) -> Option<AccountId> {
        let table = self.0.table();
        let mut held = table.held.keys().filter(|(of, account)| of == symbol && !accounts.contains(account));
        held.next().map(|(_, account)| account.clone())
    }

    /// Takes the lanes of all accounts at once, waiting at most `wait`; none means not at all.
    ///
    /// Whoever waits holds nothing meanwhile: what wants only lanes that are free goes ahead, and of those who could go
    /// the first to arrive does.
    pub(crate) async fn take(
        &self,
        symbol: &Symbol,
        accounts: &[AccountId],
        operation: &OperationId,
        wait: Option<Duration>,
    ) -> Result<Held, Busy> {
        let until = tokio::time::Instant::now() + wait.unwrap_or_default();
        let place = {
            let mut table = self.0.table();
            let place = table.arrivals;
            table.arrivals += 1;
            table.waiting.insert(place, (symbol.clone(), accounts.to_vec()));
            Place(&self.0, place)
        };
        loop {
            // Made before the look, so that it hears of all that happens after it.
            let changed = self.0.changed.notified();
            let busy = {
                let mut table = self.0.table();
                let busy = table.in_the_way(place.1, symbol, accounts);
                if busy.is_none() {
                    for account in accounts {
                        table.held.insert((symbol.clone(), account.clone()), operation.clone());
                    }
                }
                busy
            };
            let Some(busy) = busy else {
                let (symbol, accounts) = (symbol.clone(), accounts.to_vec());
                return Ok(Held { lanes: self.clone(), symbol, accounts });
            };
            if wait.is_none() || tokio::time::timeout_at(until, changed).await.is_err() {
                return Err(busy);
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.table().waiting.remove(&self.1);
        self.0.changed.notify_waiters();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = self.lanes.0.table();
        for account in &self.accounts {
            table.held.remove(&(self.symbol.clone(), account.clone()));
        }
        drop(table);
        self.lanes.0.changed.notify_waiters();
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
        assert_eq!((busy.account.as_str(), busy.holder), ("b", Some(first)));
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

    #[tokio::test(start_paused = true)]
    async fn who_waits_holds_nothing_and_the_first_to_come_is_the_first_to_go() {
        let lanes = Lanes::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id = |text: &str| text.parse::<OperationId>().unwrap();
        let held = lanes.take(&symbol, &accounts(&["b"]), &id("op-1"), None).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, wanted) in [("op-2", ["a", "b"].as_slice()), ("op-3", &["b"]), ("op-4", &["a"])] {
            let (lanes, symbol, order) = (lanes.clone(), symbol.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let wait = Some(Duration::from_secs(60));
                let held = lanes.take(&symbol, &accounts(wanted), &id(name), wait).await.unwrap();
                order.lock().unwrap().push(name);
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(held);
            }));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(*order.lock().unwrap(), ["op-4"], "only what was free was taken");
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["op-4", "op-2", "op-3"]);
        let table = lanes.0.table();
        assert!(table.held.is_empty() && table.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_queue_stands_in_nobodys_way() {
        let lanes = Lanes::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id = |text: &str| text.parse::<OperationId>().unwrap();
        let held = lanes.take(&symbol, &accounts(&["a"]), &id("op-1"), None).await.unwrap();
        let (wanted, first, second) = (accounts(&["a"]), id("op-2"), id("op-3"));
        let wait = Some(Duration::from_secs(60));
        let mut leaves = Box::pin(lanes.take(&symbol, &wanted, &first, wait));
        let mut stays = Box::pin(lanes.take(&symbol, &wanted, &second, wait));
        let now = Duration::ZERO;
        assert!(tokio::time::timeout(now, &mut leaves).await.is_err());
        assert!(tokio::time::timeout(now, &mut stays).await.is_err());
        drop(held);
        assert!(tokio::time::timeout(now, &mut stays).await.is_err(), "the first could go");
        drop(leaves);
        assert!(stays.await.is_ok());
    }
}
