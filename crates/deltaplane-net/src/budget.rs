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

/// Requests that protect and may still go out in one silence that a venue asked for: enough to cancel what rests,
/// too few to be taken for somebody who does not listen.
const PROTECTED_IN_SILENCE: u64 = 20;

#[derive(Debug, Default)]
struct State {
    window: i64,
    used: u64,
    /// Nothing at all goes out before.
    banned_until: Timestamp,
    /// Only what protects goes out before.
    silent_until: Timestamp,
    /// How many of those may still.
    protected_left: u64,
    /// Until then all others have half of their share.
    halved_until: Timestamp,
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
        if now < state.banned_until {
            return Err(state.banned_until.since(now));
        }
        if now < state.silent_until {
            // The venue refused for want of budget, so its count is not asked: few requests, that must get through.
            if priority != Priority::Protect || state.protected_left == 0 {
                return Err(state.silent_until.since(now));
            }
            state.protected_left -= 1;
            state.used = state.used.saturating_add(weight);
            return Ok(());
        }
        let after = state.used.saturating_add(weight);
        let halved = now < state.halved_until && priority >= Priority::Hedge;
        let share = if halved { priority.share() / 2 } else { priority.share() };
        if after.saturating_mul(100) > self.limit.saturating_mul(share) {
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

    /// The venue asked for silence until a time (429): only a few cancels and orders that reduce go out before, and
    /// in the window after it hedges, account state and market data have half of their share.
    pub fn silence_until(&self, now: Timestamp, until: Timestamp) {
        let mut state = self.state(now);
        if state.silent_until <= now {
            state.protected_left = PROTECTED_IN_SILENCE;
        }
        state.silent_until = state.silent_until.max(until);
        state.halved_until = state.silent_until.after(self.window);
    }

    /// The venue banned this address until a time (418, 403): nothing goes out before.
    pub fn ban_until(&self, until: Timestamp) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.banned_until = state.banned_until.max(until);
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
        budget.ban_until(now.after(Duration::from_secs(120)));
        let later = now.after(Duration::from_secs(61));
        assert_eq!(budget.take(later, Priority::Protect, 1), Err(Duration::from_secs(59)));
    }

    #[test]
    fn in_a_silence_a_few_requests_that_protect_go_out_and_after_it_the_others_have_half() {
        let now = Timestamp::from_millis(60_000 * 100);
        let at = |seconds| now.after(Duration::from_secs(seconds));
        let budget = WeightBudget::new(1_000, Duration::from_secs(60));
        budget.silence_until(now, at(30));
        for priority in [Priority::Resolve, Priority::Hedge, Priority::Sync, Priority::Data] {
            assert_eq!(budget.take(at(10), priority, 1), Err(Duration::from_secs(20)), "{priority:?}");
        }
        for _ in 0..20 {
            assert_eq!(budget.take(at(10), Priority::Protect, 1), Ok(()));
            // Refused again: that is the same silence.
            budget.silence_until(at(10), at(40));
        }
        assert_eq!(budget.take(at(10), Priority::Protect, 1), Err(Duration::from_secs(30)));
        // 35 % of a thousand for hedges until 40 s and a window are over.
        assert_eq!(budget.take(at(60), Priority::Hedge, 350), Ok(()));
        assert!(budget.take(at(61), Priority::Hedge, 1).is_err());
        assert_eq!(budget.take(at(61), Priority::Resolve, 550), Ok(()));
        assert_eq!(budget.take(at(120), Priority::Hedge, 700), Ok(()));
    }
}
