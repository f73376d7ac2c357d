//! Which feed is the active one. Decisions only.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_types::{FeedId, Timestamp};

use crate::FeedHealth;

/// A change of the active feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// What was active.
    pub from: FeedId,
    /// What is now.
    pub to: FeedId,
    /// Whether the preferred feed is the active one again.
    pub back: bool,
}

/// The active feed: the preferred one while it is well.
///
/// It changes at once when the active feed fails, and when it is degraded and the last change is longer ago than the
/// hold-down. It changes back when the preferred feed was healthy for all of the hold-down.
#[derive(Clone, Debug)]
pub struct ActiveFeed {
    /// The feeds in order of preference.
    order: Vec<FeedId>,
    preferred: FeedId,
    active: FeedId,
    switched_at: Option<Timestamp>,
    preferred_well_since: Option<Timestamp>,
    /// When a person chose it although it failed: it stays until it was well, or for the hold-down.
    forced_at: Option<Timestamp>,
}

impl ActiveFeed {
    /// Starts with the first feed; none where there is none.
    pub fn new(order: Vec<FeedId>) -> Option<Self> {
        let first = order.first()?.clone();
        Some(Self {
            order,
            preferred: first.clone(),
            active: first,
            switched_at: None,
            preferred_well_since: None,
            forced_at: None,
        })
    }

    /// The active feed.
    pub const fn active(&self) -> &FeedId {
        &self.active
    }

    /// When it changed last.
    pub const fn switched_at(&self) -> Option<Timestamp> {
        self.switched_at
    }

    /// Whether the active feed is the preferred one.
    pub fn is_preferred(&self) -> bool {
        self.active == self.preferred
    }

    /// Looks at all feeds; gives what changes. A feed that is not among them counts as failing.
    pub fn observe(
        &mut self,
        health: &BTreeMap<FeedId, FeedHealth>,
        now: Timestamp,
        hold_down: Duration,
    ) -> Option<Switch> {
        let of = |feed: &FeedId| health.get(feed).copied().unwrap_or(FeedHealth::Failing);
        if of(&self.preferred) == FeedHealth::Healthy {
            self.preferred_well_since.get_or_insert(now);
        } else {
            self.preferred_well_since = None;
        }
        let held = self.switched_at.is_none_or(|at| now.since(at) >= hold_down);
        let current = of(&self.active);
        self.forced_at =
            self.forced_at.filter(|at| current != FeedHealth::Healthy && now.since(*at) < hold_down);
        if self.forced_at.is_some() {
            return None;
        }
        let must = current == FeedHealth::Failing || (current == FeedHealth::Degraded && held);
        let to = if must {
            // The healthiest, of equals the one that is preferred.
            let best = self.order.iter().min_by_key(|feed| of(feed))?.clone();
            (of(&best) < current).then_some(best)?
        } else if !self.is_preferred()
            && held
            && self.preferred_well_since.is_some_and(|since| now.since(since) >= hold_down)
        {
            self.preferred.clone()
        } else {
            return None;
        };
        Some(self.switch(to, now))
    }

    /// A person chooses a feed: it is the preferred one from now on. Where that is forced it stays for the hold-down
    /// although it fails. None where it is active already.
    pub fn choose(&mut self, feed: FeedId, is_forced: bool, now: Timestamp) -> Option<Switch> {
        self.preferred = feed.clone();
        (self.preferred_well_since, self.forced_at) = (None, is_forced.then_some(now));
        (self.active != feed).then(|| self.switch(feed, now))
    }

    fn switch(&mut self, to: FeedId, now: Timestamp) -> Switch {
        let from = std::mem::replace(&mut self.active, to.clone());
        self.switched_at = Some(now);
        Switch { from, back: to == self.preferred, to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FeedHealth::{Degraded, Failing, Healthy};

    const HOLD: Duration = Duration::from_secs(60);

    fn id(name: &str) -> FeedId {
        name.parse().unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    fn look(feeds: &mut ActiveFeed, all: [FeedHealth; 3], seconds: i64) -> Option<(String, bool)> {
        let names = ["a", "b", "c"].map(id);
        let health = names.into_iter().zip(all).collect();
        feeds.observe(&health, at(seconds), HOLD).map(|switch| (switch.to.to_string(), switch.back))
    }

    fn three() -> ActiveFeed {
        ActiveFeed::new(vec![id("a"), id("b"), id("c")]).unwrap()
    }

    #[test]
    fn a_failing_feed_is_left_at_once_for_the_healthiest_and_taken_back_after_the_hold_down() {
        let mut feeds = three();
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 0), None);
        assert_eq!(look(&mut feeds, [Failing, Degraded, Healthy], 1), Some(("c".to_owned(), false)));
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 10), None);
        assert_eq!(look(&mut feeds, [Degraded, Healthy, Healthy], 50), None);
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 55), None);
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 114), None, "well since 55");
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 115), Some(("a".to_owned(), true)));
        assert_eq!(feeds.switched_at(), Some(at(115)));
    }

    #[test]
    fn a_flapping_feed_does_not_make_the_active_feed_flap() {
        let mut feeds = three();
        let mut switches = 0;
        for second in 0..120 {
            let a = if second % 2 == 0 { Degraded } else { Healthy };
            let b = if second % 2 == 0 { Healthy } else { Degraded };
            switches += i32::from(look(&mut feeds, [a, b, Failing], second).is_some());
        }
        assert_eq!(switches, 2, "at 0 and, once the hold-down is over, at 61");
    }

    #[test]
    fn nothing_better_is_nothing_to_go_to_and_a_person_is_obeyed() {
        let mut feeds = three();
        assert_eq!(look(&mut feeds, [Failing, Failing, Failing], 0), None);
        assert_eq!(look(&mut feeds, [Degraded, Degraded, Failing], 1), None);
        assert_eq!(feeds.choose(id("b"), false, at(2)).map(|switch| switch.from), Some(id("a")));
        assert_eq!(feeds.choose(id("b"), false, at(3)), None);
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 200), None, "it stays");
        assert_eq!(look(&mut feeds, [Healthy, Failing, Healthy], 201), Some(("a".to_owned(), false)));
    }

    #[test]
    fn a_forced_feed_stays_until_the_hold_down_passed() {
        let mut feeds = three();
        assert!(feeds.choose(id("b"), true, at(10)).is_some());
        assert_eq!(look(&mut feeds, [Healthy, Failing, Healthy], 11), None);
        assert_eq!(look(&mut feeds, [Healthy, Failing, Healthy], 69), None);
        assert_eq!(look(&mut feeds, [Healthy, Failing, Healthy], 70), Some(("a".to_owned(), false)));
        assert!(feeds.choose(id("c"), true, at(100)).is_some());
        assert_eq!(look(&mut feeds, [Healthy, Healthy, Healthy], 101), None);
        assert_eq!(
            look(&mut feeds, [Healthy, Healthy, Failing], 102),
            Some(("a".to_owned(), false)),
            "it was well"
        );
        // One that is active already, long after the last change.
        assert!(feeds.choose(id("a"), true, at(300)).is_none());
        assert_eq!(look(&mut feeds, [Failing, Healthy, Healthy], 359), None);
        assert_eq!(look(&mut feeds, [Failing, Healthy, Healthy], 360), Some(("b".to_owned(), false)));
    }
}
