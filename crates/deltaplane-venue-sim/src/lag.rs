//! Reads that lag behind the matching, as those of real exchanges do.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::core::{Account, Exchange, Status};

/// States are kept for the longest lag that can be configured, and a little longer.
const KEPT_MS: i64 = 10_000;

/// What accounts were after each change of the last seconds.
pub(crate) struct Lag {
    range: RangeInclusive<Duration>,
    rng: ChaCha8Rng,
    /// Time, counter of events, and the accounts from then on; oldest first.
    past: VecDeque<(i64, u64, BTreeMap<String, Account>)>,
}

thread_local! {
    /// The state that the request at work on this thread reads: handlers never wait in the middle.
    static READING: RefCell<Option<(Exchange, u64)>> = const { RefCell::new(None) };
}

impl Lag {
    pub(crate) fn new(range: RangeInclusive<Duration>) -> Self {
        Self { range, rng: ChaCha8Rng::seed_from_u64(41), past: VecDeque::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.past.is_empty()
    }

    pub(crate) fn set(&mut self, range: RangeInclusive<Duration>) {
        self.range = range;
    }

    /// Takes what the accounts are after a change.
    pub(crate) fn changed(&mut self, now: i64, number: u64, accounts: &BTreeMap<String, Account>) {
        if self.range.end().is_zero() {
            self.past.clear();
        }
        self.past.push_back((now, number, accounts.clone()));
        while self.past.get(1).is_some_and(|(at, ..)| now - at > KEPT_MS) {
            self.past.pop_front();
        }
    }

    /// The state that a read sees now; none where it is the newest one.
    pub(crate) fn view(&mut self, now: i64, exchange: &Exchange) -> Option<(Exchange, u64)> {
        let millis = |duration: &Duration| i64::try_from(duration.as_millis()).unwrap_or(0);
        let (least, most) = (millis(self.range.start()), millis(self.range.end()));
        let lag = if most > 0 { self.rng.random_range(least..=most.max(least)) } else { 0 };
        let cutoff = now - lag;
        let (at, number, accounts) = self.past.iter().rev().find(|(at, ..)| *at <= cutoff)?;
        if self.past.back().is_some_and(|(newest, ..)| newest == at) {
            return None;
        }
        let mut view = exchange.clone();
        view.accounts.clone_from(accounts);
        view.trades.retain(|trade| trade.time <= cutoff);
        view.orders.retain(|_, order| order.created <= cutoff);
        for order in view.orders.values_mut().filter(|order| order.updated > cutoff) {
            // As it was: with the trades that are shown.
            let traded = view.trades.iter().filter(|trade| trade.order_id == order.id);
            order.executed = traded.map(|trade| trade.quantity).sum();
            order.status = if order.executed.is_zero() { Status::New } else { Status::PartiallyFilled };
            order.updated = cutoff;
        }
        Some((view, *number))
    }
}

/// Runs a handler that reads this state.
pub(crate) fn reading<T>(view: Option<(Exchange, u64)>, handler: impl FnOnce() -> T) -> T {
    READING.with(|slot| slot.replace(view));
    let result = handler();
    READING.with(|slot| slot.replace(None));
    result
}

/// Reads the past state of the request at work, where it reads one; else gives `read` back.
pub(crate) fn read_past<T, F: FnOnce(&Exchange) -> T>(read: F) -> Result<T, F> {
    let Some(view) = READING.with(RefCell::take) else { return Err(read) };
    let result = read(&view.0);
    READING.with(|slot| slot.replace(Some(view)));
    Ok(result)
}

/// The counter of events that the request at work reads, where that is not the newest one.
pub(crate) fn past_number() -> Option<u64> {
    READING.with(|slot| slot.borrow().as_ref().map(|(_, number)| *number))
}
