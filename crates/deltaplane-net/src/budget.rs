//! What a venue lets one address ask, and who goes first when it is scarce.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deltaplane_types::Timestamp;

/// Who asks. A lower one leaves more of the budget to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Cancels and orders that reduce.
    Protect,
    /// Finding orders whose fate is unknown.
    Resolve,
    /// Orders that hedge.
    Hedge,
    /// Account state.
    Sync,
    /// Market data.
    Data,
}

impl Priority {
    /// Percent of the window's budget that this one may use up to.
    const fn share(self) -> u64 {
        match self {
            Self::Protect => 100,
            Self::Resolve => 90,
            Self::Hedge => 70,
            Self::Sync => 60,
            Self::Data => 50,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    window: i64,
    used: u64,
    stopped_until: Timestamp,
}

/// A budget of a fixed window: 30 % of it are kept for protection and resolution.
#[derive(Debug)]
pub struct WeightBudget {
    limit: u64,
    window: Duration,
    state: Mutex<State>,
}

impl WeightBudget {
    /// A budget of `limit` in each `window`.
    pub fn new(limit: u64, window: Duration) -> Self {
        Self { limit, window, state: Mutex::default() }
    }

    fn state(&self, now: Timestamp) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let length = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX).max(1);
        let window = now.as_millis().div_euclid(length);
        if state.window != window {
            state.window = window;
            state.used = 0;
        }
        state
    }

    /// Takes `weight` for a request, or tells how long to wait.
    pub fn take(&self, now: Timestamp, priority: Priority, weight: u64) -> Result<(), Duration> {
        let mut state = self.state(now);
        if now < state.stopped_until {
            return Err(state.stopped_until.since(now));
        }
        let after = state.used.saturating_add(weight);
        if after.saturating_mul(100) > self.limit.saturating_mul(priority.share()) {
            let length = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX).max(1);
            let next = state.window.saturating_add(1).saturating_mul(length);
            return Err(Timestamp::from_millis(next).since(now));
        }
        state.used = after;
        Ok(())
    }

    /// How much of the window's budget is used, in percent.
    pub fn used_percent(&self, now: Timestamp) -> u64 {
        self.state(now).used.saturating_mul(100).checked_div(self.limit).unwrap_or(100)
    }

    /// Takes the venue's own count, where it is higher than ours.
    pub fn observe(&self, now: Timestamp, used: u64) {
        let mut state = self.state(now);
        state.used = state.used.max(used);
    }

    /// Takes the venue's own count and its own limit: a higher limit than ours leaves more to use.
    pub fn observe_share(&self, now: Timestamp, used: u64, limit: u64) {
        let share = used.saturating_mul(self.limit).checked_div(limit).unwrap_or(self.limit);
        self.observe(now, share);
    }

    /// Stops everything until a time: the venue said so.
    pub fn stop_until(&self, until: Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped_until = state.stopped_until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_kept_for_protection() {
        let now = Timestamp::from_millis(60_000 * 100 + 10_000);
        let budget = WeightBudget::new(100, Duration::from_secs(60));
        assert_eq!(budget.take(now, Priority::Hedge, 70), Ok(()));
        assert_eq!(budget.take(now, Priority::Hedge, 1), Err(Duration::from_secs(50)));
        assert_eq!(budget.take(now, Priority::Resolve, 20), Ok(()));
        assert_eq!(budget.take(now, Priority::Protect, 10), Ok(()));
        assert!(budget.take(now, Priority::Protect, 1).is_err());
        assert_eq!(budget.take(now.after(Duration::from_secs(50)), Priority::Hedge, 70), Ok(()));
    }

    #[test]
    fn the_venues_count_and_ban_are_believed() {
        let now = Timestamp::from_millis(60_000 * 100);
        let budget = WeightBudget::new(100, Duration::from_secs(60));
        budget.observe(now, 99);
        assert!(budget.take(now, Priority::Protect, 2).is_err());
        budget.stop_until(now.after(Duration::from_secs(120)));
        let later = now.after(Duration::from_secs(61));
        assert_eq!(budget.take(later, Priority::Protect, 1), Err(Duration::from_secs(59)));
    }
}
