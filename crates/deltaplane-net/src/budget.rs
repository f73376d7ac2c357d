//! The request budget of one address at one exchange, and who is served first when it is scarce.
//!
//! The exchange's own count always replaces ours: an answer says how much is used, and only what was sent since then is
//! added. A count that cannot be true is ignored.
//!
//! Never: a request without a priority, or a wait that is shorter than the real rest of the window.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deltaplane_ports::{BudgetStatus, Priority, RequestBudget};
use deltaplane_types::Timestamp;

/// Percent of the window's budget that a priority may use up to.
const fn share(priority: Priority) -> u64 {
    match priority {
        Priority::Protect => 100,
        Priority::Resolve => 90,
        Priority::Hedge => 70,
        Priority::Sync => 60,
        Priority::Data => 50,
    }
}

/// Protective requests that may still go out while the exchange asked for silence (429): enough to cancel what rests,
/// too few to look like a client that ignores the request.
const PROTECTED_IN_SILENCE: u64 = 20;
/// What was spent at unknown times counts in so many parts, evenly over the window.
const PARTS: u32 = 6;
/// A count above so many times the limit is not believed.
const BELIEVED_UP_TO: u64 = 10;

/// How the exchange forgets what was spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All at once, at each full window of the exchange's clock.
    Fixed,
    /// Each cost by itself, one window after it was spent.
    Rolling,
}

#[derive(Debug)]
struct State {
    limit: u64,
    /// The exchange's clock minus ours, milliseconds: its windows begin by its clock.
    clock_offset: i64,
    /// Number of the current fixed window.
    window: i64,
    /// What a fixed window has used: the exchange's newest count, and what was sent since.
    used: u64,
    /// The exchange's highest count in this window.
    told: u64,
    /// Spent and not yet answered: the exchange's counts do not hold it yet.
    in_flight: u64,
    /// Costs of a rolling window, oldest first.
    costs: VecDeque<(Timestamp, u64)>,
    /// Spent in this window by priority; of a rolling one, since its number changed.
    by: [u64; Priority::ALL.len()],
    /// Nothing at all goes out before.
    banned_until: Timestamp,
    /// Only protective requests go out before.
    silent_until: Timestamp,
    /// How many of those may still.
    protected_left: u64,
    /// Until then all others have half of their share.
    halved_until: Timestamp,
    /// A count that cannot be true was logged.
    warned: bool,
}

/// The budget of one address: 30 % of it are kept for protection and for unresolved orders.
#[derive(Clone, Debug)]
pub struct WeightBudget {
    window: Duration,
    kind: Kind,
    state: Arc<Mutex<State>>,
}

/// A part of the budget that one request took. Dropped without an answer it stays spent.
#[derive(Debug)]
#[must_use = "the answer's count belongs to it"]
pub struct Spent {
    budget: WeightBudget,
    weight: u64,
    window: i64,
    is_open: bool,
}

impl Spent {
    /// The request was answered; `used` is the exchange's own count of the window, where the answer has one.
    pub fn answered(mut self, now: Timestamp, used: Option<u64>) {
        self.is_open = false;
        let budget = self.budget.clone();
        let mut state = budget.state(now);
        land(&mut state, self.weight);
        // A count may be of the window in which the request went out: it says nothing of a later one.
        let is_of_now = budget.kind == Kind::Rolling || self.window == state.window;
        if let Some(used) = used.filter(|_| is_of_now) {
            budget.believe(&mut state, now, used);
        }
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        if self.is_open {
            land(&mut self.budget.locked(), self.weight);
        }
    }
}

/// A request is not on its way any more. Of a window that ended meanwhile it stays in the next one's count, where the
/// exchange may have taken it.
fn land(state: &mut State, weight: u64) {
    state.in_flight = state.in_flight.saturating_sub(weight);
}

impl WeightBudget {
    /// A budget of `limit` in each `window`, which ends by the clock.
    pub fn fixed(limit: u64, window: Duration) -> Self {
        Self::new(limit, window, Kind::Fixed)
    }

    /// A budget of `limit` in any `window`.
    pub fn rolling(limit: u64, window: Duration) -> Self {
        Self::new(limit, window, Kind::Rolling)
    }

    fn new(limit: u64, window: Duration, kind: Kind) -> Self {
        let state = State {
            limit,
            clock_offset: 0,
            window: 0,
            used: 0,
            told: 0,
            in_flight: 0,
            costs: VecDeque::new(),
            by: [0; Priority::ALL.len()],
            banned_until: Timestamp::default(),
            silent_until: Timestamp::default(),
            protected_left: 0,
            halved_until: Timestamp::default(),
            warned: false,
        };
        Self { window, kind, state: Arc::new(Mutex::new(state)) }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn length_ms(&self) -> i64 {
        i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX).max(1)
    }

    /// The state with what is over forgotten.
    fn state(&self, now: Timestamp) -> MutexGuard<'_, State> {
        let mut state = self.locked();
        let window = now.as_millis().saturating_add(state.clock_offset).div_euclid(self.length_ms());
        if state.window != window {
            state.window = window;
            state.told = 0;
            state.used = state.in_flight;
            state.by = [0; Priority::ALL.len()];
        }
        if self.kind == Kind::Rolling {
            while state.costs.front().is_some_and(|(at, _)| now.since(*at) >= self.window) {
                state.costs.pop_front();
            }
            state.used = state.costs.iter().fold(0, |sum: u64, (_, cost)| sum.saturating_add(*cost));
        }
        state
    }

    /// Takes the exchange's count in place of ours.
    fn believe(&self, state: &mut State, now: Timestamp, used: u64) {
        if used > state.limit.saturating_mul(BELIEVED_UP_TO) {
            if !std::mem::replace(&mut state.warned, true) {
                tracing::warn!(
                    used,
                    limit = state.limit,
                    "the exchange's request count cannot be true and is ignored"
                );
            }
            return;
        }
        match self.kind {
            Kind::Fixed => {
                // Answers overtake each other; a count of less than half belongs to a window that began meanwhile.
                let rolled = used.saturating_mul(2) < state.told;
                state.told = if rolled { used } else { state.told.max(used) };
                state.used = state.told.saturating_add(state.in_flight);
            }
            Kind::Rolling => {
                let ours = state.used.saturating_sub(state.in_flight);
                if used >= ours {
                    self.spread(state, now, used - ours);
                } else {
                    // What it forgot is the oldest.
                    let mut surplus = ours - used;
                    for (_, cost) in &mut state.costs {
                        let less = surplus.min(*cost);
                        *cost -= less;
                        surplus -= less;
                    }
                }
                state.used = used.saturating_add(state.in_flight);
            }
        }
    }

    /// Takes what others, or an earlier run, spent at unknown times: evenly over the window until now. The next
    /// answer corrects it.
    fn spread(&self, state: &mut State, now: Timestamp, spent: u64) {
        for part in 0..PARTS {
            let rest = if part == 0 { spent % u64::from(PARTS) } else { 0 };
            let earlier = self.window.saturating_mul(part) / PARTS;
            state.costs.push_back((now.before(earlier), spent / u64::from(PARTS) + rest));
        }
        state.costs.make_contiguous().sort_by_key(|(at, _)| *at);
    }

    /// A number of an answer's headers; none, and logged once, where it is none.
    pub fn read_count(&self, text: &str) -> Option<u64> {
        let read = text.trim().parse().ok();
        if read.is_none() && !std::mem::replace(&mut self.locked().warned, true) {
            tracing::warn!(count = text, "the exchange's request count cannot be read and is ignored");
        }
        read
    }

    /// Takes `weight` for a request.
    ///
    /// # Errors
    ///
    /// How long the caller has to wait until its share has room for it.
    pub fn take(&self, now: Timestamp, priority: Priority, weight: u64) -> Result<Spent, Duration> {
        let mut state = self.state(now);
        if now < state.banned_until {
            return Err(state.banned_until.since(now));
        }
        let is_silent = now < state.silent_until;
        if is_silent {
            // The exchange refused for want of budget, so its count is not asked: few requests, that must get through.
            if priority != Priority::Protect || state.protected_left == 0 {
                return Err(state.silent_until.since(now));
            }
            state.protected_left -= 1;
        }
        let halved = now < state.halved_until && priority >= Priority::Hedge;
        let share = if halved { share(priority) / 2 } else { share(priority) };
        let allowed = state.limit.saturating_mul(share) / 100;
        if !is_silent && state.used.saturating_add(weight) > allowed {
            return Err(self.wait(&state, now, weight, allowed));
        }
        state.used = state.used.saturating_add(weight);
        state.in_flight = state.in_flight.saturating_add(weight);
        if self.kind == Kind::Rolling && weight > 0 {
            state.costs.push_back((now, weight));
        }
        if let Some(spent) = state.by.get_mut(priority as usize) {
            *spent = spent.saturating_add(weight);
        }
        Ok(Spent { budget: self.clone(), weight, window: state.window, is_open: true })
    }

    /// How long until a request has room.
    fn wait(&self, state: &State, now: Timestamp, weight: u64, allowed: u64) -> Duration {
        let window_end = self.window_end(state, now);
        if self.kind == Kind::Fixed {
            return window_end.since(now);
        }
        let mut left = state.used;
        for (at, cost) in &state.costs {
            left = left.saturating_sub(*cost);
            if left.saturating_add(weight) <= allowed {
                return at.after(self.window).since(now).max(Duration::from_millis(1));
            }
        }
        self.window
    }

    fn window_end(&self, state: &State, now: Timestamp) -> Timestamp {
        match self.kind {
            Kind::Fixed => {
                let next = state.window.saturating_add(1).saturating_mul(self.length_ms());
                Timestamp::from_millis(next.saturating_sub(state.clock_offset))
            }
            Kind::Rolling => state.costs.front().map_or(now, |(at, _)| at.after(self.window)),
        }
    }

    /// How much of the budget is used, in percent.
    pub fn used_percent(&self, now: Timestamp) -> u64 {
        let state = self.state(now);
        state.used.saturating_mul(100).checked_div(state.limit).unwrap_or(100)
    }

    /// The exchange's clock is so many milliseconds ahead of ours.
    pub fn follow_clock(&self, offset_ms: i64) {
        self.locked().clock_offset = offset_ms;
    }

    /// Takes the exchange's own limit. Zero is no limit that a request could keep to, and is ignored.
    pub fn set_limit(&self, limit: u64) {
        if limit > 0 {
            self.locked().limit = limit;
        }
    }

    /// Takes the exchange's count from an answer that no [`Spent`] stands for.
    pub fn observe(&self, now: Timestamp, used: u64) {
        let mut state = self.state(now);
        self.believe(&mut state, now, used);
    }

    /// The exchange asked for silence until a time (429): only a few protective requests go out before, and in the
    /// window after it hedges, account state and market data have half of their share.
    pub fn silence_until(&self, now: Timestamp, until: Timestamp) {
        let mut state = self.state(now);
        if state.silent_until <= now {
            state.protected_left = PROTECTED_IN_SILENCE;
        }
        state.silent_until = state.silent_until.max(until);
        state.halved_until = state.silent_until.after(self.window);
    }

    /// The exchange banned this address until a time (418, 403): nothing goes out before.
    pub fn ban_until(&self, until: Timestamp) {
        let mut state = self.locked();
        state.banned_until = state.banned_until.max(until);
    }
}

impl RequestBudget for WeightBudget {
    fn status(&self, now: Timestamp) -> BudgetStatus {
        let state = self.state(now);
        BudgetStatus {
            used: state.used,
            limit: state.limit,
            window_ends_at: self.window_end(&state, now).max(state.silent_until).max(state.banned_until),
            by_priority: Priority::ALL.into_iter().zip(state.by).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(60_000 * 100 + seconds * 1_000)
    }

    /// Takes a part of the budget that is answered at once, without a count.
    #[track_caller]
    fn spend(budget: &WeightBudget, now: Timestamp, priority: Priority, weight: u64) -> Result<(), Duration> {
        budget.take(now, priority, weight).map(|spent| spent.answered(now, None))
    }

    #[test]
    fn each_priority_stops_at_its_share() {
        let budget = WeightBudget::fixed(100, MINUTE);
        let all = [
            (Priority::Data, 50),
            (Priority::Sync, 10),
            (Priority::Hedge, 10),
            (Priority::Resolve, 20),
            (Priority::Protect, 10),
        ];
        for (priority, weight) in all {
            assert_eq!(spend(&budget, at(10), priority, weight), Ok(()), "{priority:?}");
            assert_eq!(spend(&budget, at(10), priority, 1), Err(Duration::from_secs(50)), "{priority:?}");
        }
        assert_eq!(spend(&budget, at(60), Priority::Data, 50), Ok(()), "the next minute");
    }

    #[test]
    fn the_exchanges_count_replaces_ours_and_what_is_on_its_way_is_added() {
        let budget = WeightBudget::fixed(100, MINUTE);
        let (first, second) = (
            budget.take(at(0), Priority::Hedge, 20).unwrap(),
            budget.take(at(0), Priority::Hedge, 20).unwrap(),
        );
        // The exchange counts 5 for the first one; the second one is not counted yet.
        first.answered(at(1), Some(5));
        assert_eq!(budget.status(at(1)).used, 25);
        second.answered(at(1), Some(10));
        assert_eq!(budget.status(at(1)).used, 10);
        // Others at the same address count too, and an answer that was overtaken changes nothing.
        budget.observe(at(2), 99);
        budget.observe(at(2), 98);
        assert_eq!(spend(&budget, at(2), Priority::Protect, 2), Err(Duration::from_secs(58)));
        assert_eq!(spend(&budget, at(2), Priority::Protect, 1), Ok(()));
    }

    #[test]
    fn a_count_that_begins_again_ends_the_window_and_an_impossible_one_is_ignored() {
        let budget = WeightBudget::fixed(100, MINUTE);
        budget.observe(at(2), 90);
        budget.observe(at(3), 4);
        assert_eq!(budget.status(at(3)).used, 4);
        budget.observe(at(3), u64::MAX);
        budget.observe(at(3), 1_001);
        assert_eq!(budget.status(at(3)).used, 4);
        for nonsense in ["", "-1", "4.5", "99999999999999999999", "NaN"] {
            assert_eq!(budget.read_count(nonsense), None, "{nonsense}");
        }
        assert_eq!(budget.read_count(" 7 "), Some(7));
        // The exchange's minute ends 20 s before ours.
        budget.follow_clock(20_000);
        assert_eq!(budget.status(at(10)).window_ends_at, at(40));
    }

    #[test]
    fn a_rolling_window_forgets_each_cost_by_itself() {
        let budget = WeightBudget::rolling(1_000, MINUTE);
        spend(&budget, at(0), Priority::Data, 300).unwrap();
        spend(&budget, at(20), Priority::Data, 200).unwrap();
        assert_eq!(spend(&budget, at(30), Priority::Data, 100), Err(Duration::from_secs(30)));
        assert_eq!(spend(&budget, at(30), Priority::Data, 400), Err(Duration::from_secs(50)));
        assert_eq!(spend(&budget, at(60), Priority::Data, 300), Ok(()));
        assert_eq!(budget.status(at(61)).used, 500);
    }

    /// `ratelimit: "credits";r=200;t=32` of `q=1000`: 800 are used, whatever we counted.
    #[test]
    fn weight_of_other_programs_counts_in_a_rolling_window() {
        let budget = WeightBudget::rolling(1_000, MINUTE);
        let spent = budget.take(at(0), Priority::Sync, 10).unwrap();
        spent.answered(at(0), Some(800));
        assert_eq!(budget.status(at(0)).used, 800);
        // 790 are of others: 131 or more in each ten seconds of the minute before, of which the oldest go at 10 s.
        assert_eq!(spend(&budget, at(5), Priority::Hedge, 10), Err(Duration::from_secs(5)));
        assert_eq!(spend(&budget, at(5), Priority::Protect, 200), Ok(()));
        assert_eq!(budget.status(at(10)).used, 869);
        assert_eq!(budget.status(at(59)).used, 345);
        assert_eq!(budget.status(at(60)).used, 200);
        // What the exchange forgot is the oldest of it.
        budget.observe(at(60), 150);
        assert_eq!(budget.status(at(60)).used, 150);
        // A history that cost less than was assumed.
        let heavy = WeightBudget::rolling(1_000, MINUTE);
        heavy.take(at(0), Priority::Data, 120).unwrap().answered(at(0), Some(30));
        assert_eq!(heavy.status(at(0)).used, 30);
    }

    /// Requests whose answers come in the next window: each is counted there once and leaves nothing behind, and a count of
    /// the window before says nothing.
    #[test]
    fn answers_that_cross_the_end_of_a_window_leave_nothing_behind() {
        let budget = WeightBudget::fixed(100, MINUTE);
        for minute in 0..50 {
            let spent = budget.take(at(60 * minute + 59), Priority::Hedge, 5).unwrap();
            spent.answered(at(60 * minute + 61), Some(70));
            assert_eq!(budget.status(at(60 * minute + 61)).used, 5, "minute {minute}");
        }
        assert_eq!(budget.status(at(60 * 60)).used, 0);
        let spent = budget.take(at(60 * 60), Priority::Hedge, 5).unwrap();
        spent.answered(at(60 * 60 + 1), Some(70));
        assert_eq!(budget.status(at(60 * 60 + 1)).used, 70);
    }

    #[test]
    fn a_request_without_an_answer_stays_spent() {
        let budget = WeightBudget::fixed(100, MINUTE);
        drop(budget.take(at(0), Priority::Hedge, 30).unwrap());
        assert_eq!(budget.status(at(0)).used, 30);
        assert_eq!(budget.status(at(0)).by_priority[&Priority::Hedge], 30);
        // The next count holds it, if it arrived.
        budget.observe(at(1), 12);
        assert_eq!(budget.status(at(1)).used, 12);
    }

    #[test]
    fn the_ban_is_kept_to() {
        let budget = WeightBudget::fixed(100, MINUTE);
        budget.ban_until(at(120));
        assert_eq!(spend(&budget, at(61), Priority::Protect, 1), Err(Duration::from_secs(59)));
    }

    #[test]
    fn in_a_silence_a_few_requests_that_protect_go_out_and_after_it_the_others_have_half() {
        let budget = WeightBudget::fixed(1_000, MINUTE);
        budget.silence_until(at(0), at(30));
        for priority in [Priority::Resolve, Priority::Hedge, Priority::Sync, Priority::Data] {
            assert_eq!(spend(&budget, at(10), priority, 1), Err(Duration::from_secs(20)), "{priority:?}");
        }
        for _ in 0..20 {
            assert_eq!(spend(&budget, at(10), Priority::Protect, 1), Ok(()));
            // Refused again: that is the same silence.
            budget.silence_until(at(10), at(40));
        }
        assert_eq!(spend(&budget, at(10), Priority::Protect, 1), Err(Duration::from_secs(30)));
        // 35 % of a thousand for hedges until 40 s and a window are over.
        assert_eq!(spend(&budget, at(60), Priority::Hedge, 350), Ok(()));
        assert!(spend(&budget, at(61), Priority::Hedge, 1).is_err());
        assert_eq!(spend(&budget, at(61), Priority::Resolve, 550), Ok(()));
        assert_eq!(spend(&budget, at(120), Priority::Hedge, 700), Ok(()));
    }
}
