//! Feed health and the consensus price. Decisions only: the time is an argument.

mod failover;

pub use failover::{ActiveFeed, Switch};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deltaplane_math::{MathError, add, div, mul_rounded};
use deltaplane_types::{Decimal, MarketView, Price, Ratio, Timestamp};

/// Whether a feed may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FeedHealth {
    /// Fresh and sane.
    Healthy,
    /// Late: shown, and not used to trade.
    Degraded,
    /// Disconnected, crossed, empty or stale.
    Failing,
}

/// When a feed counts as late or stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedLimits {
    /// Age from which a feed is degraded.
    pub degraded_after: Duration,
    /// Age from which a feed is failing.
    pub failing_after: Duration,
    /// Distance to the median of the other feeds from which a feed is degraded, as a fraction.
    pub off_by: Ratio,
    /// How long after a failover the feeds must be well before the preferred one is the active one again.
    pub hold_down: Duration,
}

impl Default for FeedLimits {
    fn default() -> Self {
        Self {
            degraded_after: Duration::from_secs(2),
            failing_after: Duration::from_secs(10),
            off_by: Ratio::new(Decimal::from_i128_with_scale(5, 3)),
            hold_down: Duration::from_secs(60),
        }
    }
}

/// Judges a feed by its newest view; none means that it never showed one or is disconnected.
pub fn health(view: Option<&MarketView>, now: Timestamp, limits: FeedLimits) -> FeedHealth {
    let Some(view) = view.filter(|view| view.mid().is_some()) else { return FeedHealth::Failing };
    let age = now.since(view.received_at);
    if age >= limits.failing_after {
        FeedHealth::Failing
    } else if age >= limits.degraded_after {
        FeedHealth::Degraded
    } else {
        FeedHealth::Healthy
    }
}

/// How far each mid is from the median of the others, as a fraction of that: what is wrong is not always old.
///
/// With two feeds both are as far from each other, and nothing tells which is right. One alone is off nothing.
///
/// # Errors
///
/// [`MathError`] if two mids cannot be averaged.
pub fn off_the_others<K: Clone + Ord>(mids: &BTreeMap<K, Decimal>) -> Result<BTreeMap<K, Ratio>, MathError> {
    let mut off = BTreeMap::new();
    for (name, mid) in mids {
        let mut others: Vec<Decimal> =
            mids.iter().filter(|(other, _)| *other != name).map(|(_, mid)| *mid).collect();
        others.sort();
        if let Some(median) = median(&others)?.filter(|median| *median > Decimal::ZERO) {
            off.insert(name.clone(), Ratio::new(div((*mid - median).abs(), median)?));
        }
    }
    Ok(off)
}

/// The names whose mid is off where others agree: what is wrong is not always old.
///
/// Mids agree that are nearer to one of them than `off_by`. Those that are not among the most that agree are off. It takes
/// three to tell: of two that differ, or of two camps of the same size, either may be right.
///
/// # Errors
///
/// [`MathError`] if a distance cannot be held.
pub fn outliers<K: Clone + Ord>(
    mids: &BTreeMap<K, Decimal>,
    off_by: Ratio,
) -> Result<BTreeSet<K>, MathError> {
    let mut camps = BTreeSet::new();
    for mid in mids.values() {
        let room = mul_rounded(*mid, off_by.value())?;
        let agree = mids.iter().filter(|(_, other)| (**other - *mid).abs() < room);
        camps.insert(agree.map(|(name, _)| name.clone()).collect::<BTreeSet<K>>());
    }
    let most = camps.iter().map(BTreeSet::len).max().unwrap_or(0);
    let mut largest = camps.iter().filter(|camp| camp.len() == most);
    match (largest.next(), largest.next()) {
        (Some(camp), None) if mids.len() > 2 => {
            Ok(mids.keys().filter(|name| !camp.contains(*name)).cloned().collect())
        }
        _ => Ok(BTreeSet::new()),
    }
}

/// What the healthy feeds agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consensus {
    /// The median of their mids.
    pub price: Price,
    /// Independent sources: healthy books, and index prices where fewer than two books are healthy.
    pub sources: usize,
}

/// The median of the mids of the healthy feeds, and how many sources stand behind it. Each view comes with what
/// a unit of its quote currency is worth in the common one.
///
/// A venue's index price counts as a second source when it lies within 5 % of the median.
///
/// # Errors
///
/// [`MathError`] if two mids cannot be averaged. No healthy feed is `Ok(None)`.
pub fn consensus<'a>(
    healthy: impl IntoIterator<Item = (&'a MarketView, Decimal)>,
) -> Result<Option<Consensus>, MathError> {
    let mut mids = Vec::new();
    let mut indices = Vec::new();
    for (view, rate) in healthy {
        if let Some(mid) = view.mid() {
            mids.push(mul_rounded(mid.value(), rate)?);
            if let Some(index) = view.index {
                indices.push(mul_rounded(index.value(), rate)?);
            }
        }
    }
    mids.sort();
    let Some(price) = median(&mids)? else { return Ok(None) };
    let room = div(price, Decimal::from(20))?;
    let mut sources = mids.len();
    if sources < 2 {
        sources =
            sources.saturating_add(indices.iter().filter(|index| (**index - price).abs() <= room).count());
    }
    Ok(Some(Consensus { price: Price::try_new(price)?, sources }))
}

fn median(sorted: &[Decimal]) -> Result<Option<Decimal>, MathError> {
    let Some(upper) = sorted.get(sorted.len() / 2) else { return Ok(None) };
    if sorted.len() % 2 == 1 {
        return Ok(Some(*upper));
    }
    let lower = sorted.get(sorted.len() / 2 - 1).unwrap_or(upper);
    div(add(*lower, *upper)?, Decimal::TWO).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltaplane_types::{Level, Quantity, parse_exact};

    fn view(bid: &str, ask: &str, at: i64) -> MarketView {
        let level = |price: &str| Level {
            price: Price::try_new(parse_exact(price).unwrap()).unwrap(),
            quantity: Quantity::try_new(Decimal::ONE).unwrap(),
        };
        MarketView {
            feed: "a".parse().unwrap(),
            quote: "USDT".into(),
            bids: [level(bid)].into(),
            asks: [level(ask)].into(),
            mark: None,
            mark_at: None,
            index: None,
            funding_rate: None,
            next_funding: None,
            venue_time: Timestamp::from_millis(at),
            received_at: Timestamp::from_millis(at),
        }
    }

    #[test]
    fn the_consensus_is_the_median() {
        let views = [view("99", "101", 0), view("102", "104", 0), view("490", "510", 0)];
        let at_par = |views: &'_ [MarketView]| {
            consensus(views.iter().map(|view| (view, Decimal::ONE))).unwrap().unwrap()
        };
        let found = at_par(&views);
        assert_eq!((found.price.to_string().as_str(), found.sources), ("103", 3));
        let found = at_par(&views[..2]);
        assert_eq!((found.price.to_string().as_str(), found.sources), ("101.5", 2));
        assert_eq!(consensus([]).unwrap(), None);
        // 100 at a rate of 1.02 and 103 at par.
        let two = [(&views[0], parse_exact("1.02").unwrap()), (&views[1], Decimal::ONE)];
        assert_eq!(consensus(two).unwrap().unwrap().price.to_string(), "102.5");
    }

    #[test]
    fn an_index_price_is_a_second_source_only_where_it_agrees() {
        let mut lone = view("99", "101", 0);
        assert_eq!(consensus([(&lone, Decimal::ONE)]).unwrap().unwrap().sources, 1);
        lone.index = Some(Price::try_new(parse_exact("104").unwrap()).unwrap());
        assert_eq!(consensus([(&lone, Decimal::ONE)]).unwrap().unwrap().sources, 2);
        lone.index = Some(Price::try_new(parse_exact("106").unwrap()).unwrap());
        assert_eq!(consensus([(&lone, Decimal::ONE)]).unwrap().unwrap().sources, 1);
    }

    #[test]
    fn a_feed_is_off_by_its_distance_to_the_median_of_the_others() {
        let mids = |all: &[(&'static str, &str)]| -> BTreeMap<&'static str, Decimal> {
            all.iter().map(|(name, mid)| (*name, parse_exact(mid).unwrap())).collect()
        };
        let off = off_the_others(&mids(&[("a", "100"), ("b", "102"), ("c", "90")])).unwrap();
        let shown: Vec<(&str, String)> =
            off.iter().map(|(name, off)| (*name, off.value().normalize().to_string())).collect();
        // Medians of the others: 96, 95, 101.
        assert_eq!(shown[0], ("a", "0.0416666666666666666666666667".to_owned()));
        assert_eq!(off["b"], Ratio::new(parse_exact("7").unwrap() / parse_exact("95").unwrap()));
        assert_eq!(off["c"], Ratio::new(parse_exact("11").unwrap() / parse_exact("101").unwrap()));
        assert!(off_the_others(&mids(&[("a", "100")])).unwrap().is_empty());
    }

    #[test]
    fn of_three_or_more_the_one_that_is_off_is_named() {
        let off = |all: &[(&'static str, &str)]| {
            let mids = all.iter().map(|(name, mid)| (*name, parse_exact(mid).unwrap())).collect();
            let names = outliers(&mids, Ratio::new(Decimal::new(5, 3))).unwrap();
            names.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(off(&[("a", "100"), ("b", "100.2"), ("c", "90")]), ["c"]);
        assert_eq!(off(&[("a", "100"), ("b", "100.49"), ("c", "99.51")]), [""; 0]);
        assert_eq!(off(&[("a", "100"), ("b", "100.51"), ("c", "99.51")]), ["b"], "half a percent is off");
        assert_eq!(off(&[("a", "100"), ("b", "90")]), [""; 0], "either may be right");
        let camps = [("a", "100"), ("b", "100"), ("c", "101.2"), ("d", "101.2")];
        assert_eq!(off(&camps), [""; 0], "either camp may be right");
        assert_eq!(off(&[("a", "100"), ("b", "100.1"), ("c", "100.2"), ("d", "90")]), ["d"]);
        assert_eq!(off(&[("a", "100"), ("b", "100"), ("c", "98.5"), ("d", "101.5")]), ["c", "d"]);
        assert_eq!(off(&[("a", "100"), ("b", "101"), ("c", "98")]), [""; 0], "no two agree");
        assert_eq!(off(&[]), [""; 0]);
    }

    #[test]
    fn age_and_a_crossed_book_decide_health() {
        let at = |ms| Timestamp::from_millis(ms);
        let fresh = view("99", "101", 0);
        let limits = FeedLimits::default();
        assert_eq!(health(Some(&fresh), at(1_999), limits), FeedHealth::Healthy);
        assert_eq!(health(Some(&fresh), at(2_000), limits), FeedHealth::Degraded);
        assert_eq!(health(Some(&fresh), at(10_000), limits), FeedHealth::Failing);
        assert_eq!(health(Some(&view("101", "101", 0)), at(0), limits), FeedHealth::Failing);
        assert_eq!(health(None, at(0), limits), FeedHealth::Failing);
    }
}
