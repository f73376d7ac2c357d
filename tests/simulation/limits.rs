//! What a venue takes of requests, as the venue itself counts it, and the connector's budget that has to keep to it.
//! Weights, credits, order counts and their windows are those of the three exchanges.

use std::collections::VecDeque;
use std::time::Duration;

use deltaplane_net::WeightBudget;
use deltaplane_ports::{Pace, Priority};
use deltaplane_types::Timestamp;

const MINUTE_MS: i64 = 60_000;
/// The time of the short order count.
const SHORT_MS: i64 = 10_000;

/// The exchange whose limits a venue has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Binance,
    Aster,
    Pacifica,
}

/// How often accounts are read, as the connectors do; a part of their credits used, more seldom.
fn pace_of(kind: Kind, used_percent: u64) -> Pace {
    let (idle, after_event) = match kind {
        Kind::Pacifica if used_percent < 33 => (5_000, 150),
        Kind::Pacifica => (20_000, 10_000),
        Kind::Binance | Kind::Aster => (2_000, 150),
    };
    Pace {
        idle: Duration::from_millis(idle),
        after_event: Duration::from_millis(after_event),
        // Episodes last a minute: an audit a minute would be none.
        audit: Duration::from_secs(if kind == Kind::Pacifica { 30 } else { 10 }),
    }
}

/// A request, as far as its cost depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Account,
    OpenOrders,
    AllOpenOrders,
    Order,
    Trades,
    OrderNames,
    Place,
    Cancel,
    Invalidate,
    CountDown,
}

impl Kind {
    /// Weight on Binance and Aster, tenths of a credit on Pacifica.
    const fn cost(self, request: Request) -> u64 {
        if matches!(self, Self::Pacifica) {
            return match request {
                Request::Account => 20,
                Request::Trades | Request::OrderNames | Request::Order => 30,
                Request::Cancel | Request::Invalidate => 5,
                _ => 10,
            };
        }
        match request {
            // The account and its positions are two requests.
            Request::Account | Request::CountDown => 10,
            Request::AllOpenOrders => 40,
            Request::Trades | Request::OrderNames => 5,
            Request::Place => 0,
            Request::OpenOrders | Request::Order | Request::Cancel | Request::Invalidate => 1,
        }
    }

    /// What the exchange takes in a minute.
    const fn limit(self) -> u64 {
        match self {
            Self::Binance | Self::Aster => 2_400,
            Self::Pacifica => 1_000,
        }
    }
}

/// How a count forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// At each full multiple of its length.
    Fixed,
    /// Each cost after its length.
    Rolling,
}

/// What a venue counted.
#[derive(Debug)]
struct Count {
    limit: u64,
    length_ms: i64,
    window: Window,
    /// Time, cost, and whether it was ours.
    costs: VecDeque<(i64, u64)>,
}

impl Count {
    const fn new(limit: u64, length_ms: i64, window: Window) -> Self {
        Self { limit, length_ms, window, costs: VecDeque::new() }
    }

    fn used(&mut self, now: i64) -> u64 {
        let begins = match self.window {
            Window::Fixed => now - now.rem_euclid(self.length_ms),
            Window::Rolling => now - self.length_ms + 1,
        };
        while self.costs.front().is_some_and(|(at, _)| *at < begins) {
            self.costs.pop_front();
        }
        self.costs.iter().map(|(_, cost)| cost).sum()
    }

    /// Gives whether there is room.
    fn take(&mut self, now: i64, cost: u64) -> bool {
        let fits = self.used(now) + cost <= self.limit;
        if fits {
            self.costs.push_back((now, cost));
        }
        fits
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The connector keeps it back for so long.
    Withheld(Duration),
    /// The venue says 429. Where the connector knew all that was used, its budget is wrong.
    TooMany {
        /// It knew.
        knew: bool,
    },
}

/// One venue's limits.
pub(crate) struct Limits {
    kind: Kind,
    requests: Count,
    /// Of ten seconds and of a minute; Pacifica counts credits alone.
    orders: Option<[Count; 2]>,
    ours: WeightBudget,
    our_orders: [WeightBudget; 2],
    /// Until when it was said what others use.
    others_until: i64,
    /// An answer told the connector all that is used.
    is_announced: bool,
    /// All that is used was used by this process: it knows when that is forgotten.
    is_ours: bool,
    silent_until: i64,
}

impl Limits {
    pub(crate) fn new(kind: Kind) -> Self {
        let minute = Duration::from_millis(MINUTE_MS.unsigned_abs());
        let short = Duration::from_millis(SHORT_MS.unsigned_abs());
        let window = if kind == Kind::Pacifica { Window::Rolling } else { Window::Fixed };
        let ours = match window {
            Window::Fixed => WeightBudget::fixed(kind.limit(), minute),
            Window::Rolling => WeightBudget::rolling(kind.limit(), minute),
        };
        let (in_short, in_minute) = (300, 1_200);
        let orders = (kind != Kind::Pacifica).then(|| {
            [Count::new(in_short, SHORT_MS, Window::Fixed), Count::new(in_minute, MINUTE_MS, Window::Fixed)]
        });
        Self {
            kind,
            requests: Count::new(kind.limit(), MINUTE_MS, window),
            orders,
            ours,
            our_orders: [WeightBudget::fixed(in_short, short), WeightBudget::fixed(in_minute, minute)],
            others_until: 0,
            is_announced: false,
            is_ours: true,
            silent_until: 0,
        }
    }

    /// How often the account is read now.
    pub(crate) fn pace(&self, now: i64) -> Pace {
        pace_of(self.kind, self.ours.used_percent(Timestamp::from_millis(now)))
    }

    /// Whether it has to be said what others use from now on.
    pub(crate) const fn wants_others(&self, now: i64) -> bool {
        now >= self.others_until
    }

    /// Other programs at the same address use so many percent of each limit in what is left of the window, at once.
    pub(crate) fn others_use(&mut self, now: i64, percent: u64) {
        self.others_until = now - now.rem_euclid(MINUTE_MS) + MINUTE_MS;
        if percent > 0 {
            (self.is_announced, self.is_ours) = (false, false);
        }
        let share = |limit: u64| limit * percent / 100;
        let cost = share(self.requests.limit);
        self.requests.costs.push_back((now, cost));
        for count in self.orders.iter_mut().flatten() {
            count.costs.push_back((now, share(count.limit)));
        }
    }

    /// Every window ends now, and the other programs are gone.
    pub(crate) fn others_leave(&mut self) {
        *self = Self { others_until: i64::MAX, ..Self::new(self.kind) };
    }

    /// A new process knows nothing of what was used.
    pub(crate) fn process_starts(&mut self) {
        let fresh = Self::new(self.kind);
        (self.ours, self.our_orders) = (fresh.ours, fresh.our_orders);
        (self.is_announced, self.is_ours) = (false, self.requests.costs.is_empty());
    }

    /// A request goes out, or does not; the answer tells what is used.
    pub(crate) fn take(&mut self, now_ms: i64, priority: Priority, request: Request) -> Result<(), Refused> {
        let now = Timestamp::from_millis(now_ms);
        let cost = self.kind.cost(request);
        let is_order = matches!(request, Request::Place) && self.orders.is_some();
        let mut of_orders = Vec::new();
        if is_order {
            for budget in &self.our_orders {
                of_orders.push(budget.take(now, priority, 1).map_err(Refused::Withheld)?);
            }
        }
        let spent = self.ours.take(now, priority, cost).map_err(Refused::Withheld)?;
        let orders_fit = !is_order || self.orders.iter_mut().flatten().all(|count| count.take(now_ms, 1));
        let requests_fit = self.requests.take(now_ms, cost);
        let used = self.requests.used(now_ms);
        spent.answered(now, Some(used));
        for (spent, count) in of_orders.into_iter().zip(self.orders.iter_mut().flatten()) {
            spent.answered(now, Some(count.used(now_ms)));
        }
        // In the silence that a venue asked for a few requests protect without a look at its count.
        let told = std::mem::replace(&mut self.is_announced, true);
        let is_known = told && (self.is_ours || self.kind != Kind::Pacifica);
        let knew = is_known && now_ms >= self.silent_until;
        if requests_fit && orders_fit {
            return Ok(());
        }
        self.silent_until = now_ms - now_ms.rem_euclid(MINUTE_MS) + MINUTE_MS;
        let until = Timestamp::from_millis(self.silent_until);
        if requests_fit {
            self.our_orders[0].silence_until(now, until);
        } else {
            self.ours.silence_until(now, until);
        }
        Err(Refused::TooMany { knew })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Audits may use 600 of 1,000 tenths of a credit: thirty readings of an account at two credits, and no more.
    #[test]
    fn a_venue_counts_by_request_and_a_share_is_kept() {
        let mut limits = Limits::new(Kind::Pacifica);
        for _ in 0..30 {
            assert_eq!(limits.take(0, Priority::Sync, Request::Account), Ok(()));
        }
        let more = limits.take(5, Priority::Sync, Request::Account);
        assert_eq!(more, Err(Refused::Withheld(Duration::from_millis(59_995))));
        assert_eq!(limits.take(5, Priority::Protect, Request::Cancel), Ok(()));
        assert_eq!(limits.requests.used(59_999), 605);
        assert_eq!(limits.requests.used(60_000), 5);
    }

    /// Of 2,400, others use 2,376, and 297 of the 300 orders of the short time. The first request finds that out.
    #[test]
    fn weight_of_other_programs_is_learnt_from_an_answer() {
        let mut limits = Limits::new(Kind::Binance);
        limits.others_use(0, 99);
        let first = limits.take(1, Priority::Data, Request::AllOpenOrders);
        assert_eq!(first, Err(Refused::TooMany { knew: false }));
        let withheld = limits.take(2, Priority::Hedge, Request::Order);
        assert_eq!(withheld, Err(Refused::Withheld(Duration::from_millis(59_998))));
        for _ in 0..3 {
            assert_eq!(limits.take(5, Priority::Protect, Request::Place), Ok(()));
        }
        let fourth = limits.take(5, Priority::Protect, Request::Place);
        assert_eq!(fourth, Err(Refused::Withheld(Duration::from_millis(9_995))));
    }
}
