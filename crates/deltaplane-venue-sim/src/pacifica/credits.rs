//! Credits in a rolling minute, counted in tenths as the headers show them.

use std::collections::VecDeque;

/// Credits of an address without a key, times ten.
const WITHOUT_KEY: u64 = 1_000;
/// Credits of the lowest tier with a key, times ten.
const WITH_KEY: u64 = 3_000;
const WINDOW_MS: i64 = 60_000;

/// How an address stands.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub(super) remaining: u64,
    pub(super) quota: u64,
    /// Seconds until the oldest cost is forgotten.
    pub(super) refresh: i64,
    pub(super) exhausted: bool,
}

pub(crate) struct Credits {
    spent: VecDeque<(i64, u64)>,
    /// Multiplies the quota: public clients that are checked here ask more than a careful one does.
    factor: u64,
}

impl Credits {
    pub(crate) fn new(factor: u64) -> Self {
        Self { spent: VecDeque::new(), factor }
    }

    /// Takes a cost in tenths; one that does not fit is not taken.
    pub(super) fn take(&mut self, now: i64, tenths: u64, with_key: bool) -> Standing {
        while self.spent.front().is_some_and(|(at, _)| now - at >= WINDOW_MS) {
            self.spent.pop_front();
        }
        let quota = self.factor * if with_key { WITH_KEY } else { WITHOUT_KEY };
        let used: u64 = self.spent.iter().map(|(_, cost)| cost).sum();
        let exhausted = used + tenths > quota;
        if !exhausted {
            self.spent.push_back((now, tenths));
        }
        let used = if exhausted { used } else { used + tenths };
        let refresh = self.spent.front().map_or(60, |(at, _)| (WINDOW_MS - (now - at)).max(0) / 1_000);
        Standing { remaining: quota.saturating_sub(used), quota, refresh, exhausted }
    }
}
