//! One mutating operation per symbol and account, in order of arrival.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deltaplane_types::{AccountId, OperationId, Symbol};
use tokio::sync::Notify;
use tokio::time::Instant;

/// After this long others stand back for one that waits, also while it cannot go yet.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long position locks are kept for what makes the book safer and found them busy: it comes again within this.
const CLAIMED_FOR: Duration = Duration::from_secs(2);

/// Who goes first where several wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// What makes the book safer.
    Protective,
    /// All others, in order of arrival.
    Ordinary,
}

/// One that waits.
struct Waiting {
    operation: OperationId,
    symbol: Symbol,
    accounts: Vec<AccountId>,
    since: Instant,
}

/// Who holds which position locks, and who waits for position locks.
#[derive(Default)]
struct Table {
    held: BTreeMap<(Symbol, AccountId), OperationId>,
    /// Who goes first comes first.
    waiting: BTreeMap<(Rank, u64), Waiting>,
    arrivals: u64,
    /// Until when position locks are kept from ordinary requests.
    claimed: BTreeMap<(Symbol, AccountId), Instant>,
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

    /// What keeps a waiting operation from its locks: the holder of one of them, and an earlier one that wants one of them too and
    /// could go now or waited for long, or a claim. With the time at which to look again, where that is known.
    fn in_the_way(&self, place: (Rank, u64), now: Instant) -> Option<(Busy, Option<Instant>)> {
        let own = self.waiting.get(&place)?;
        if let Some(busy) = self.busy(&own.symbol, &own.accounts) {
            return Some((busy, None));
        }
        for other in self.waiting.range(..place).map(|(_, other)| other) {
            if other.symbol != own.symbol {
                continue;
            }
            let shared = own.accounts.iter().find(|account| other.accounts.contains(account));
            let Some(account) = shared else { continue };
            let goes = now.duration_since(other.since) >= PATIENCE
                || self.busy(&other.symbol, &other.accounts).is_none();
            if goes {
                let holder = Some(other.operation.clone());
                return Some((Busy { account: account.clone(), holder }, None));
            }
        }
        if place.0 == Rank::Protective {
            return None;
        }
        own.accounts.iter().find_map(|account| {
            let until = self.claimed.get(&(own.symbol.clone(), account.clone()))?;
            (*until > now).then(|| (Busy { account: account.clone(), holder: None }, Some(*until)))
        })
    }

    /// Gives its position locks to one that waits.
    fn give(&mut self, place: (Rank, u64)) {
        let Some(Waiting { operation, symbol, accounts, .. }) = self.waiting.get(&place) else { return };
        for account in accounts {
            let position_key = (symbol.clone(), account.clone());
            self.claimed.remove(&position_key);
            self.held.insert(position_key, operation.clone());
        }
    }

    /// Keeps the position locks that one finds busy for its next attempt; free ones are of use to others until then.
    fn claim(&mut self, place: (Rank, u64), now: Instant) {
        let Some(Waiting { symbol, accounts, .. }) = self.waiting.get(&place) else { return };
        for account in accounts {
            let position_key = (symbol.clone(), account.clone());
            if self.held.contains_key(&position_key) {
                self.claimed.insert(position_key, now + CLAIMED_FOR);
            }
        }
    }
}

#[derive(Default)]
struct Inner {
    table: Mutex<Table>,
    /// Told whenever position locks may have become free for one that waits.
    changed: Notify,
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All position locks.
#[derive(Clone, Default)]
pub(crate) struct PositionLocks(Arc<Inner>);

/// Position locks that an operation holds; dropping it frees them.
pub(crate) struct Held {
    position_locks: PositionLocks,
    symbol: Symbol,
    accounts: Vec<AccountId>,
}

/// A place in the queue; dropping it leaves the queue.
struct Place<'a>(&'a Inner, (Rank, u64));

/// Another operation holds a position lock.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) account: AccountId,
    /// The holder, or the earlier one that waits; none if it is reserved for a protective operation.
    pub(crate) holder: Option<OperationId>,
}

impl Held {
    /// The accounts whose position locks are held.
    pub(crate) fn accounts(&self) -> &[AccountId] {
        &self.accounts
    }

    /// Frees the position locks of all accounts but these.
    pub(crate) fn keep_only(&mut self, kept: &BTreeSet<AccountId>) {
        let (stay, freed): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.accounts).into_iter().partition(|id| kept.contains(id));
        self.accounts = stay;
        self.free(&freed);
    }

    fn free(&self, accounts: &[AccountId]) {
        let mut table = self.position_locks.0.table();
        for account in accounts {
            table.held.remove(&(self.symbol.clone(), account.clone()));
        }
        drop(table);
        self.position_locks.0.changed.notify_waiters();
    }
}

impl PositionLocks {
    /// Whether an operation holds a position lock.
    pub(crate) fn is_held(&self, symbol: &Symbol, account: &AccountId) -> bool {
        self.0.table().holder(symbol, account).is_some()
    }

    /// The operation that holds a position lock.
    pub(crate) fn holder(&self, symbol: &Symbol, account: &AccountId) -> Option<OperationId> {
        self.0.table().holder(symbol, account).cloned()
    }

    /// An account whose position lock is held and that is not among these.
    pub(crate) fn held_beside(&self, symbol: &Symbol, accounts: &[AccountId]) -> Option<AccountId> {
        let table = self.0.table();
        let mut held = table.held.keys().filter(|(of, account)| of == symbol && !accounts.contains(account));
        held.next().map(|(_, account)| account.clone())
    }

    /// Takes the position locks of all accounts at once, waiting at most `wait`; none means not at all.
    ///
    /// A waiting operation holds nothing: one that wants only free locks goes ahead, until one that waits did so
    /// for [`PATIENCE`]. Of those who could go what makes the book safer does, then the first to arrive. Where it finds
    /// them busy and does not wait, its position locks are kept for its next attempt.
    pub(crate) async fn take(
        &self,
        (symbol, accounts): (&Symbol, &[AccountId]),
        (operation, rank): (&OperationId, Rank),
        wait: Option<Duration>,
    ) -> Result<Held, Busy> {
        let since = Instant::now();
        let until = since + wait.unwrap_or_default();
        let place = {
            let mut table = self.0.table();
            let place = (rank, table.arrivals);
            table.arrivals += 1;
            let (operation, symbol, accounts) = (operation.clone(), symbol.clone(), accounts.to_vec());
            table.waiting.insert(place, Waiting { operation, symbol, accounts, since });
            Place(&self.0, place)
        };
        loop {
            // Made before the look, so that it hears of all that happens after it.
            let changed = self.0.changed.notified();
            let now = Instant::now();
            let (busy, again) = {
                let mut table = self.0.table();
                let Some(found) = table.in_the_way(place.1, now) else {
                    table.give(place.1);
                    let (symbol, accounts) = (symbol.clone(), accounts.to_vec());
                    return Ok(Held { position_locks: self.clone(), symbol, accounts });
                };
                if rank == Rank::Protective && now >= until {
                    table.claim(place.1, now);
                }
                found
            };
            if now >= until {
                return Err(busy);
            }
            let look_at = again.map_or(until, |again| again.min(until));
            let _ = tokio::time::timeout_at(look_at, changed).await;
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
        self.free(&self.accounts);
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
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let (first, second): (OperationId, OperationId) = ("op-1".parse().unwrap(), "op-2".parse().unwrap());
        let held = position_locks
            .take((&symbol, &accounts(&["a", "b"])), (&first, Rank::Ordinary), None)
            .await
            .unwrap();
        let Err(busy) =
            position_locks.take((&symbol, &accounts(&["b", "a"])), (&second, Rank::Ordinary), None).await
        else {
            panic!("both hold")
        };
        assert_eq!((busy.account.as_str(), busy.holder), ("b", Some(first)));
        let waiting = position_locks.clone();
        let (wanted, of) = (symbol.clone(), second.clone());
        let task = tokio::spawn(async move {
            waiting
                .take((&wanted, &accounts(&["b", "a"])), (&of, Rank::Ordinary), Some(Duration::from_secs(5)))
                .await
                .is_ok()
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(held);
        assert!(task.await.unwrap());
        assert!(
            position_locks.take((&symbol, &accounts(&["a"])), (&second, Rank::Ordinary), None).await.is_ok()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_is_given_back_early_is_free_for_one_that_waits() {
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let (first, second): (OperationId, OperationId) = ("op-1".parse().unwrap(), "op-2".parse().unwrap());
        let both = accounts(&["a", "b"]);
        let mut held = position_locks.take((&symbol, &both), (&first, Rank::Ordinary), None).await.unwrap();
        let (waiting, wanted, of) = (position_locks.clone(), symbol.clone(), second.clone());
        let task = tokio::spawn(async move {
            let wait = Some(Duration::from_secs(60));
            waiting.take((&wanted, &accounts(&["a"])), (&of, Rank::Ordinary), wait).await
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.keep_only(&BTreeSet::from(["b".parse().unwrap()]));
        assert_eq!(held.accounts(), accounts(&["b"]));
        let taken = task.await.unwrap().unwrap();
        // The end of the first frees what it still holds, and not what the second took meanwhile.
        drop(held);
        assert_eq!(position_locks.holder(&symbol, &both[0]), Some(second));
        assert_eq!(position_locks.holder(&symbol, &both[1]), None);
        drop(taken);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends() {
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id: OperationId = "op-1".parse().unwrap();
        let _held =
            position_locks.take((&symbol, &accounts(&["a"])), (&id, Rank::Ordinary), None).await.unwrap();
        assert!(
            position_locks
                .take((&symbol, &accounts(&["a"])), (&id, Rank::Ordinary), Some(Duration::from_secs(2)))
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_operations_hold_nothing_and_run_in_order() {
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id = |text: &str| text.parse::<OperationId>().unwrap();
        let held = position_locks
            .take((&symbol, &accounts(&["b"])), (&id("op-1"), Rank::Ordinary), None)
            .await
            .unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (name, wanted) in [("op-2", ["a", "b"].as_slice()), ("op-3", &["b"]), ("op-4", &["a"])] {
            let (position_locks, symbol, order) = (position_locks.clone(), symbol.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let wait = Some(Duration::from_secs(60));
                let held = position_locks
                    .take((&symbol, &accounts(wanted)), (&id(name), Rank::Ordinary), wait)
                    .await
                    .unwrap();
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
        let table = position_locks.0.table();
        assert!(table.held.is_empty() && table.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn leaving_the_queue_unblocks_the_others() {
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id = |text: &str| text.parse::<OperationId>().unwrap();
        let held = position_locks
            .take((&symbol, &accounts(&["a"])), (&id("op-1"), Rank::Ordinary), None)
            .await
            .unwrap();
        let (wanted, first, second) = (accounts(&["a"]), id("op-2"), id("op-3"));
        let wait = Some(Duration::from_secs(60));
        let mut leaves = Box::pin(position_locks.take((&symbol, &wanted), (&first, Rank::Ordinary), wait));
        let mut stays = Box::pin(position_locks.take((&symbol, &wanted), (&second, Rank::Ordinary), wait));
        let now = Duration::ZERO;
        assert!(tokio::time::timeout(now, &mut leaves).await.is_err());
        assert!(tokio::time::timeout(now, &mut stays).await.is_err());
        drop(held);
        assert!(tokio::time::timeout(now, &mut stays).await.is_err(), "the first could go");
        drop(leaves);
        assert!(stays.await.is_ok());
    }

    /// A takes turns on each of two position locks; one that wants both goes as soon as it waited for long.
    #[tokio::test(start_paused = true)]
    async fn an_operation_with_many_accounts_is_not_starved() {
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let mut narrow = Vec::new();
        for (name, position_key, from) in [("op-1", "a", 0), ("op-2", "b", 500)] {
            let (position_locks, symbol, id) =
                (position_locks.clone(), symbol.clone(), name.parse::<OperationId>().unwrap());
            narrow.push(tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(from)).await;
                loop {
                    let wait = Some(Duration::from_secs(60));
                    let wanted = accounts(&[position_key]);
                    let held =
                        position_locks.take((&symbol, &wanted), (&id, Rank::Ordinary), wait).await.unwrap();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    drop(held);
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(750)).await;
        let began = Instant::now();
        let wide: OperationId = "op-3".parse().unwrap();
        let (wanted, wait) = (accounts(&["a", "b"]), Some(Duration::from_secs(60)));
        let held = position_locks.take((&symbol, &wanted), (&wide, Rank::Ordinary), wait).await;
        assert!(held.is_ok() && began.elapsed() < PATIENCE + Duration::from_secs(2), "{:?}", began.elapsed());
        narrow.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// One works, one waits; what protects comes in between without waiting, and finds its position locks kept.
    #[tokio::test(start_paused = true)]
    async fn a_protective_operation_overtakes_one_that_waited_longer() {
        let position_locks = PositionLocks::default();
        let symbol: Symbol = "BTC-USD".parse().unwrap();
        let id = |text: &str| text.parse::<OperationId>().unwrap();
        let wanted = accounts(&["a"]);
        let held =
            position_locks.take((&symbol, &wanted), (&id("op-1"), Rank::Ordinary), None).await.unwrap();
        let (first, protects) = (id("op-2"), id("op-3"));
        let wait = Some(Duration::from_secs(60));
        let mut waits = Box::pin(position_locks.take((&symbol, &wanted), (&first, Rank::Ordinary), wait));
        assert!(tokio::time::timeout(Duration::ZERO, &mut waits).await.is_err());
        let busy =
            position_locks.take((&symbol, &wanted), (&protects, Rank::Protective), None).await.err().unwrap();
        assert_eq!(busy.holder, Some(id("op-1")));
        drop(held);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut waits).await.is_err());
        let held =
            position_locks.take((&symbol, &wanted), (&protects, Rank::Protective), None).await.unwrap();
        drop(held);
        assert!(tokio::time::timeout(Duration::ZERO, &mut waits).await.is_ok());
        // A claim that is not taken ends by itself.
        let held = position_locks.take((&symbol, &wanted), (&first, Rank::Ordinary), None).await.unwrap();
        assert!(position_locks.take((&symbol, &wanted), (&protects, Rank::Protective), None).await.is_err());
        drop(held);
        let began = Instant::now();
        assert!(position_locks.take((&symbol, &wanted), (&first, Rank::Ordinary), wait).await.is_ok());
        assert_eq!(began.elapsed().as_secs(), CLAIMED_FOR.as_secs());
    }
}
