//! What may be traded now. Read before every order, changed by a person or by the engine itself.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use deltaplane_ports::{JournalError, Record, TradingOrder};
use deltaplane_types::{AccountId, Symbol, TradingState};

use crate::durable::Recorder;

/// What may be traded, and why.
pub(crate) struct Trading {
    /// The stricter of both parts of the order, where every order can read it without a lock.
    effective: AtomicU8,
    state: Mutex<State>,
    /// One change is written at a time, so that the journal's newest word is the one that holds.
    writing: tokio::sync::Mutex<()>,
}

struct State {
    order: TradingOrder,
    /// How often it was tightened: what loosens does not undo what came after it was asked for.
    tightened: u64,
}

const fn rank(state: TradingState) -> u8 {
    match state {
        TradingState::Running => 0,
        TradingState::Paused => 1,
        TradingState::ReduceOnly => 2,
        TradingState::Halted => 3,
    }
}

/// Whether an order allows nothing that another one does not.
fn is_as_tight(after: &TradingOrder, before: &TradingOrder) -> bool {
    let state = |order: &TradingOrder, scope| {
        order.scoped.get(scope).map_or(TradingState::Running, |scoped| scoped.state)
    };
    after.kill >= before.kill
        && after.state >= before.state
        && before.scoped.keys().all(|scope| state(after, scope) >= state(before, scope))
}

impl Trading {
    pub(crate) fn new(order: TradingOrder) -> Self {
        let effective = AtomicU8::new(rank(order.overall()));
        Self {
            effective,
            state: Mutex::new(State { order, tightened: 0 }),
            writing: tokio::sync::Mutex::default(),
        }
    }

    /// What may be traded now, everywhere.
    pub(crate) fn now(&self) -> TradingState {
        match self.effective.load(Ordering::SeqCst) {
            0 => TradingState::Running,
            1 => TradingState::Paused,
            2 => TradingState::ReduceOnly,
            _ => TradingState::Halted,
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let given = f(&mut state);
        self.effective.store(rank(state.order.overall()), Ordering::SeqCst);
        given
    }

    /// The newest word.
    pub(crate) fn order(&self) -> TradingOrder {
        self.with(|state| state.order.clone())
    }

    /// Makes a change hold at once if it loosens nothing; gives whether it does not.
    pub(crate) fn tighten(&self, change: &impl Fn(&mut TradingOrder)) -> bool {
        self.with(|state| {
            let mut after = state.order.clone();
            change(&mut after);
            let tightens = is_as_tight(&after, &state.order);
            if tightens {
                state.order = after;
                state.tightened = state.tightened.wrapping_add(1);
            }
            tightens
        })
    }

    /// Makes a change and writes it down, with other records. What tightens holds at once, whatever comes of the
    /// disk. A loosening holds once it is durable, and not after a tightening meanwhile. Returns what holds then.
    ///
    /// # Errors
    ///
    /// [`JournalError`] if it is not durable.
    pub(crate) async fn change(
        &self,
        recorder: &Recorder,
        change: impl Fn(&mut TradingOrder),
        with: Vec<Record>,
    ) -> Result<TradingOrder, JournalError> {
        let tightens = self.tighten(&change);
        let _turn = self.writing.lock().await;
        let (wanted, tightened) = self.with(|state| {
            let mut wanted = state.order.clone();
            // What tightens holds already.
            if !tightens {
                change(&mut wanted);
            }
            (wanted, state.tightened)
        });
        let mut records = vec![Record::Trading(wanted)];
        records.extend(with);
        recorder.append(records).await?;
        Ok(self.with(|state| {
            if tightens || state.tightened == tightened {
                let mut after = state.order.clone();
                change(&mut after);
                // What was tightened further meanwhile stays so.
                if !tightens || is_as_tight(&after, &state.order) {
                    state.order = after;
                }
            }
            state.order.clone()
        }))
    }

    /// What may be traded now in a symbol on an account.
    pub(crate) fn of(&self, account: &AccountId, symbol: &Symbol) -> TradingState {
        self.with(|state| state.order.of(account, symbol))
    }

    /// The loosest of what may be traded in a symbol on some of these accounts, with the reason of the strictest.
    pub(crate) fn loosest(&self, accounts: &[AccountId], symbol: &Symbol) -> (TradingState, String) {
        self.with(|state| {
            let each = |account: &AccountId| (state.order.of(account, symbol), account.clone());
            let loosest = accounts.iter().map(each).min();
            match loosest {
                Some((found, account)) => (found, state.order.reason_for(&account, symbol)),
                None => (state.order.overall(), state.order.overall_reason()),
            }
        })
    }

    /// Why not everything may be traded in a symbol on an account.
    pub(crate) fn reason_for(&self, account: &AccountId, symbol: &Symbol) -> String {
        self.with(|state| state.order.reason_for(account, symbol))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use deltaplane_ports::{Journal, StoredRecord};
    use futures_util::FutureExt as _;
    use tokio::sync::Semaphore;

    use super::*;

    /// A disk that writes when it is let.
    struct SlowJournal {
        written: Mutex<Vec<Record>>,
        permits: Semaphore,
    }

    #[async_trait]
    impl Journal for SlowJournal {
        async fn append(&self, records: Vec<Record>) -> Result<(), JournalError> {
            self.permits.acquire().await.unwrap().forget();
            self.written.lock().unwrap().extend(records);
            Ok(())
        }

        async fn load(&self) -> Result<Vec<StoredRecord>, JournalError> {
            Ok(Vec::new())
        }
    }

    fn world() -> (Arc<SlowJournal>, Recorder, Trading) {
        let journal = Arc::new(SlowJournal { written: Mutex::default(), permits: Semaphore::new(0) });
        (journal.clone(), Recorder::new(journal), Trading::new(TradingOrder::default()))
    }

    fn newest(journal: &SlowJournal) -> (TradingState, bool) {
        match journal.written.lock().unwrap().last() {
            Some(Record::Trading(order)) => (order.state, order.kill),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_tightening_holds_before_its_append_and_a_loosening_after() {
        let (journal, recorder, trading) = world();
        let halt = trading.change(&recorder, |order| order.state = TradingState::Halted, Vec::new());
        tokio::pin!(halt);
        assert!(halt.as_mut().now_or_never().is_none());
        assert_eq!(trading.now(), TradingState::Halted);
        journal.permits.add_permits(1);
        halt.await.unwrap();
        let run = trading.change(&recorder, |order| order.state = TradingState::Running, Vec::new());
        tokio::pin!(run);
        assert!(run.as_mut().now_or_never().is_none());
        assert_eq!(trading.now(), TradingState::Halted);
        journal.permits.add_permits(1);
        assert_eq!(run.await.unwrap().state, TradingState::Running);
        assert_eq!(trading.now(), TradingState::Running);
    }

    #[tokio::test]
    async fn a_kill_switch_that_comes_beside_another_change_is_not_lost() {
        for state in [TradingState::ReduceOnly, TradingState::Running] {
            let (journal, recorder, trading) = world();
            journal.permits.add_permits(1);
            trading
                .change(&recorder, |order| order.state = TradingState::ReduceOnly, Vec::new())
                .await
                .unwrap();
            let other = trading.change(&recorder, |order| order.state = state, Vec::new());
            tokio::pin!(other);
            assert!(other.as_mut().now_or_never().is_none());
            let kill = trading.change(&recorder, |order| order.kill = true, Vec::new());
            tokio::pin!(kill);
            assert!(kill.as_mut().now_or_never().is_none());
            assert!(trading.order().kill, "at once");
            journal.permits.add_permits(2);
            let (other, kill) = tokio::join!(other, kill);
            assert!(other.unwrap().kill && kill.unwrap().kill);
            assert!(trading.order().kill);
            // What a restart would read is what holds.
            assert_eq!(newest(&journal), (trading.order().state, true));
        }
    }

    #[tokio::test]
    async fn clearing_the_kill_switch_does_not_undo_a_later_one() {
        let (journal, recorder, trading) = world();
        journal.permits.add_permits(1);
        trading.change(&recorder, |order| order.kill = true, Vec::new()).await.unwrap();
        let clear = trading.change(&recorder, |order| order.kill = false, Vec::new());
        tokio::pin!(clear);
        assert!(clear.as_mut().now_or_never().is_none());
        assert!(trading.order().kill, "not before it is durable");
        let again = trading.change(&recorder, |order| order.kill = true, Vec::new());
        tokio::pin!(again);
        assert!(again.as_mut().now_or_never().is_none());
        journal.permits.add_permits(2);
        let (cleared, again) = tokio::join!(clear, again);
        assert!(cleared.unwrap().kill && again.unwrap().kill);
        assert_eq!(newest(&journal), (TradingState::Running, true));
    }
}
