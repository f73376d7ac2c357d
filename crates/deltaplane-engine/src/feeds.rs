//! The price feeds as people see them, and which of them is the active one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_market::{ActiveFeed, FeedHealth, Switch, health, off_the_others, outliers};
use deltaplane_ports::{Failover, Failure, FeedCondition, FeedView, FeedsView};
use deltaplane_types::{
    AlertKind, AlertSeverity, AlertTopic, Code, Decimal, FeedId, MarketView, Price, Ratio, Timestamp,
};

use crate::alerts::Condition;
use crate::engine::Core;
use crate::report::failure;

/// Latencies are looked at over this time.
const LATENCY_OVER: Duration = Duration::from_secs(60);
/// Latencies of one feed that are kept.
const LATENCIES: usize = 1_000;

/// Which feed is active, and how late each of them is.
pub(crate) struct FeedBoard {
    active: Mutex<Option<ActiveFeed>>,
    latencies: Mutex<BTreeMap<FeedId, VecDeque<(Timestamp, i64)>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One feed as it was judged.
struct Judged {
    health: FeedHealth,
    view: Option<Arc<MarketView>>,
    off: Option<Ratio>,
}

impl FeedBoard {
    /// The feeds in order of preference.
    pub(crate) fn new(order: Vec<FeedId>) -> Self {
        Self { active: Mutex::new(ActiveFeed::new(order)), latencies: Mutex::default() }
    }

    /// Takes how late the newest event of a feed was, once for each: when it was sent and when it arrived, both by the
    /// venue's clock, and when it was received by ours.
    fn note_latency(&self, feed: &FeedId, (sent, arrived): (Timestamp, Timestamp), received_at: Timestamp) {
        let late = arrived.as_millis().saturating_sub(sent.as_millis());
        let mut all = lock(&self.latencies);
        let known = all.entry(feed.clone()).or_default();
        if known.back().is_some_and(|(at, _)| *at >= received_at) {
            return;
        }
        known.push_back((received_at, late));
        if known.len() > LATENCIES {
            known.pop_front();
        }
    }

    /// The median over the last minute; a venue's clock that is ahead shows as no latency.
    fn latency(&self, feed: &FeedId, now: Timestamp) -> Option<Duration> {
        let all = lock(&self.latencies);
        let recent = all.get(feed)?.iter().filter(|(at, _)| now.since(*at) <= LATENCY_OVER);
        let mut late: Vec<i64> = recent.map(|(_, late)| *late).collect();
        late.sort_unstable();
        let median = late.get(late.len() / 2)?;
        Some(Duration::from_millis(u64::try_from(*median).unwrap_or(0)))
    }
}

impl Core {
    /// Judges every feed by the primary symbol: its age, its book, and how far it is from the others.
    fn judge_feeds(&self) -> BTreeMap<FeedId, Judged> {
        let reader = &self.shared.reader;
        let now = reader.clock.now();
        let limits = reader.config.feeds;
        let mut judged = BTreeMap::new();
        for (id, feed) in &reader.feeds {
            let view = feed.view(&reader.config.primary_symbol);
            let heard = feed.status().last_update.is_some_and(|at| now.since(at) < limits.failing_after);
            let health = match &view {
                // A gap in the order book, or a new connection.
                None if heard => FeedHealth::Degraded,
                view => health(view.as_deref(), now, limits),
            };
            judged.insert(id.clone(), Judged { health, view, off: None });
        }
        let mids = judged.iter().filter(|(_, feed)| feed.health != FeedHealth::Failing);
        let mids: BTreeMap<FeedId, Decimal> = mids
            .filter_map(|(id, feed)| Some((id.clone(), reader.mid_in_usd(feed.view.as_deref()?)?)))
            .collect();
        let off = off_the_others(&mids).unwrap_or_default();
        let outliers = outliers(&mids, limits.off_by).unwrap_or_default();
        for (id, feed) in &mut judged {
            feed.off = off.get(id).copied();
            // Of two that differ either may be right: people see both as degraded.
            let is_one_of_two = mids.len() == 2 && feed.off.is_some_and(|off| off >= limits.off_by);
            if outliers.contains(id) || is_one_of_two {
                feed.health = feed.health.max(FeedHealth::Degraded);
            }
        }
        judged
    }

    /// Looks whether the active feed must change.
    pub(crate) async fn look_at_feeds(&self) {
        let reader = &self.shared.reader;
        let now = reader.clock.now();
        let judged = self.judge_feeds();
        for (id, feed) in &judged {
            if let Some(view) = &feed.view {
                // Where no account knows the venue's clock, ours stands for it.
                let of_feed = reader.feed_of.iter().filter(|(_, feed)| *feed == id);
                let mut monitors = of_feed.filter_map(|(account, _)| reader.accounts.get(account));
                let arrived = monitors.find_map(|monitor| monitor.reader.venue_clock(view.received_at));
                let arrived = arrived.unwrap_or(view.received_at);
                self.shared.feeds.note_latency(id, (view.venue_time, arrived), view.received_at);
            }
        }
        if now.since(self.started_at()) < reader.config.feeds.failing_after {
            // Not every connection is up yet.
            return;
        }
        let health = judged.iter().map(|(id, feed)| (id.clone(), feed.health)).collect();
        let switch = lock(&self.shared.feeds.active)
            .as_mut()
            .and_then(|active| active.observe(&health, now, reader.config.feeds.hold_down));
        if let Some(switch) = switch {
            let was = judged.get(&switch.from).map_or(FeedHealth::Failing, |feed| feed.health);
            let why = if switch.back {
                "the preferred feed is healthy again".to_owned()
            } else {
                format!("{} is {}", switch.from, name(was))
            };
            let severity = if switch.back { AlertSeverity::Info } else { AlertSeverity::Warn };
            self.tell_of_failover(&switch, severity, &why).await;
        }
        let settled = lock(&self.shared.feeds.active).as_ref().is_some_and(|active| {
            active.is_preferred()
                && active.switched_at().is_none_or(|at| now.since(at) >= reader.config.feeds.hold_down)
        });
        if settled {
            let records = self.shared.alerts.resolve(AlertTopic::Failover, now, |_| true);
            if !records.is_empty() {
                // A failure stops all sending by itself.
                let _ = self.shared.execution.recorder.append(records).await;
            }
        }
    }

    async fn tell_of_failover(&self, switch: &Switch, severity: AlertSeverity, why: &str) {
        self.shared
            .raise(Condition {
                kind: AlertKind::Failover,
                topic: AlertTopic::Failover,
                severity,
                account: None,
                symbol: None,
                message: format!("price feed {} is active instead of {}: {why}. Nothing to do while another feed is healthy.", switch.to, switch.from),
            })
            .await;
    }

    /// All feeds, and which is the active one.
    pub(crate) fn feeds_view(&self) -> FeedsView {
        let now = self.shared.reader.clock.now();
        let judged = self.judge_feeds();
        let feeds = judged.iter().map(|(id, feed)| self.feed_view(id, feed, now)).collect();
        let active = lock(&self.shared.feeds.active);
        FeedsView {
            feeds,
            active: active.as_ref().map(|active| active.active().clone()),
            last_failover: active.as_ref().and_then(ActiveFeed::switched_at),
        }
    }

    fn feed_view(&self, id: &FeedId, judged: &Judged, now: Timestamp) -> FeedView {
        let status = self.shared.reader.feeds.get(id).map(|feed| feed.status());
        FeedView {
            feed: id.clone(),
            condition: match judged.health {
                FeedHealth::Healthy => FeedCondition::Healthy,
                FeedHealth::Degraded => FeedCondition::Degraded,
                FeedHealth::Failing => FeedCondition::Failing,
            },
            latency: self.shared.feeds.latency(id, now),
            last_update: status.and_then(|status| status.last_update),
            error_count: status.map_or(0, |status| status.error_count),
            mid: judged.view.as_deref().and_then(MarketView::mid).filter(|mid| *mid > Price::default()),
            off: judged.off,
        }
    }

    /// A person makes another feed the active one.
    pub(crate) async fn fail_over(&self, request: Failover) -> Result<FeedView, Box<Failure>> {
        let now = self.shared.reader.clock.now();
        let judged = self.judge_feeds();
        let Some(target) = judged.get(&request.target) else {
            let known: Vec<&str> = judged.keys().map(FeedId::as_str).collect();
            let text = format!("no feed {}", request.target);
            return Err(failure(Code::NotFound, text, format!("choose one of {}", known.join(", "))));
        };
        if target.health == FeedHealth::Failing && !request.force {
            let text = format!("the feed {} is failing", request.target);
            let remedy = "choose a feed that is not, or send force: true";
            return Err(failure(Code::MarketDataUnavailable, text, remedy));
        }
        let switch = lock(&self.shared.feeds.active)
            .as_mut()
            .and_then(|active| active.choose(request.target.clone(), request.force, now));
        if let Some(switch) = switch {
            let why = format!("asked for: {}", request.reason);
            self.tell_of_failover(&switch, AlertSeverity::Info, &why).await;
        }
        Ok(self.feed_view(&request.target, target, now))
    }
}

const fn name(health: FeedHealth) -> &'static str {
    match health {
        FeedHealth::Healthy => "healthy",
        FeedHealth::Degraded => "degraded",
        FeedHealth::Failing => "failing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events that came 40, 50 and 90 ms late by the venue's clock, of which ours is two seconds ahead.
    #[test]
    fn latency_is_the_median_by_the_venues_clock() {
        let at = Timestamp::from_millis;
        let feed: FeedId = "main".parse().unwrap();
        let board = FeedBoard::new(vec![feed.clone()]);
        for (second, late) in [(1_000, 50), (2_000, 90), (3_000, 40)] {
            for _once in 0..2 {
                board.note_latency(&feed, (at(second), at(second + late)), at(second + late + 2_000));
            }
        }
        let of = |now| board.latency(&feed, at(now));
        assert_eq!(of(6_000), Some(Duration::from_millis(50)));
        // A minute later only the last one is young enough.
        assert_eq!(of(64_500), Some(Duration::from_millis(40)));
        assert_eq!(of(70_000), None);
    }
}
