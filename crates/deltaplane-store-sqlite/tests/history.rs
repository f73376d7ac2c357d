//! Samples over time: what is kept how long, and what a question gives.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_ports::{EquityMark, HistoryQuery, RiskHistory as _, RiskSample};
use deltaplane_store_sqlite::SqliteHistory;
use deltaplane_testkit::{notional, ratio};
use deltaplane_types::{AccountId, Decimal, Timestamp};

const START: i64 = 1_800_000_000_000;

fn sample(seconds: i64) -> RiskSample {
    RiskSample {
        at: Timestamp::from_millis(START + seconds * 1_000),
        equity: notional("10000.5"),
        unrealized: notional("-3.25"),
        delta_deviation: ratio("0.01"),
        utilization: None,
        leverage: Some(ratio("2")),
        margin_ratio: Some(ratio("0.123456789012345678")),
        max_drawdown: ratio("0.02"),
        liquidation_distance: Some(ratio("0.5")),
    }
}

fn all() -> HistoryQuery {
    HistoryQuery { since: None, until: None, interval: None, limit: 1_000 }
}

fn seconds(samples: &[RiskSample]) -> Vec<i64> {
    samples.iter().map(|sample| (sample.at.as_millis() - START) / 1_000).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_come_back_exactly_the_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let (main, other): (AccountId, AccountId) = ("main".parse().unwrap(), "other".parse().unwrap());
    {
        let history = SqliteHistory::open(folder.path()).unwrap();
        for second in 0..150 {
            history
                .append(vec![(main.clone(), sample(second)), (other.clone(), sample(second))])
                .await
                .unwrap();
        }
    }
    let history = SqliteHistory::open(folder.path()).unwrap();
    let newest = history.read(&main, HistoryQuery { limit: 3, ..all() }).await.unwrap();
    assert_eq!(newest, [sample(149), sample(148), sample(147)]);
    let at = |second: i64| Some(Timestamp::from_millis(START + second * 1_000));
    let window = HistoryQuery { since: at(10), until: at(12), ..all() };
    assert_eq!(seconds(&history.read(&main, window).await.unwrap()), [12, 11, 10]);
    // START is a whole minute: the last of each.
    let minutes = HistoryQuery { interval: Some(Duration::from_secs(60)), ..all() };
    assert_eq!(seconds(&history.read(&main, minutes).await.unwrap()), [149, 119, 59]);
    let future = HistoryQuery { since: at(10_000), ..all() };
    assert!(history.read(&main, future).await.unwrap().is_empty());
    assert!(history.read(&"third".parse().unwrap(), all()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_is_kept_by_the_minute_then_by_the_hour_then_not() {
    let folder = tempfile::tempdir().unwrap();
    let history = SqliteHistory::open(folder.path()).unwrap();
    let main: AccountId = "main".parse().unwrap();
    let day = 24 * 3_600;
    let times = [0, 1, 59, 60, 3_599];
    for second in times {
        history.append(vec![(main.clone(), sample(second))]).await.unwrap();
    }
    for (later, left) in [
        (0, vec![3_599, 60, 59, 1, 0]),
        // Of each minute the last.
        (2 * day, vec![2 * day, 3_599, 60, 59]),
        // Of each hour the last.
        (8 * day, vec![8 * day, 2 * day, 3_599]),
        (31 * day, vec![31 * day, 8 * day, 2 * day]),
    ] {
        if later > 0 {
            history.append(vec![(main.clone(), sample(later))]).await.unwrap();
        }
        assert_eq!(seconds(&history.read(&main, all()).await.unwrap()), left, "{later}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peak_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mark = EquityMark {
        last_equity: Some(notional("9000.125")),
        index: Decimal::new(9, 1),
        peak: Decimal::new(11, 1),
        max_drawdown: ratio("0.1818181818"),
    };
    let marks: BTreeMap<AccountId, EquityMark> =
        [("main".parse().unwrap(), mark), ("new".parse().unwrap(), EquityMark { last_equity: None, ..mark })]
            .into();
    SqliteHistory::open(folder.path()).unwrap().keep_marks(marks.clone()).await.unwrap();
    assert_eq!(SqliteHistory::open(folder.path()).unwrap().marks().await.unwrap(), marks);
}
