//! Samples over time: what is kept how long, and what a question gives.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_ports::{
    DAY_MS, Drift, Earned, EquityMark, GainPeak, HistoryQuery, Income, IncomeKind, PnlQuery,
    RiskHistory as _, RiskSample,
};
use deltaplane_store_sqlite::SqliteHistory;
use deltaplane_testkit::{notional, ratio};
use deltaplane_types::{AccountId, Decimal, Ratio, Symbol, Timestamp};

const START: i64 = 1_800_000_000_000;

fn sample(seconds: i64) -> RiskSample {
    RiskSample {
        at: Timestamp::from_millis(START + seconds * 1_000),
        equity: notional("10000.5"),
        unrealized: notional("-3.25"),
        delta_deviation: ratio("0.01"),
        utilization: None,
        // A quotient of our own has 29 digits.
        leverage: Some(Ratio::new(Decimal::from(14_239) / Decimal::from(12_805))),
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
async fn history_is_thinned_to_minutes_then_hours_then_dropped() {
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
        index: Decimal::from(14_239) / Decimal::from(12_805),
        peak: Decimal::from(14_240) / Decimal::from(12_805),
        max_drawdown: ratio("0.1818181818"),
    };
    let marks: BTreeMap<AccountId, EquityMark> =
        [("main".parse().unwrap(), mark), ("new".parse().unwrap(), EquityMark { last_equity: None, ..mark })]
            .into();
    SqliteHistory::open(folder.path()).unwrap().keep_marks(marks.clone()).await.unwrap();
    assert_eq!(SqliteHistory::open(folder.path()).unwrap().marks().await.unwrap(), marks);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_high_points_of_a_day_survive_a_restart_and_replace_those_before() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |symbol: Option<&str>, second: i64, above: &str| GainPeak {
        symbol: symbol.map(|symbol| symbol.parse().unwrap()),
        at: Timestamp::from_millis(second * 1_000),
        above: notional(above).value(),
    };
    let history = SqliteHistory::open(folder.path()).unwrap();
    assert_eq!(history.peaks().await.unwrap(), []);
    history.keep_peaks(vec![peak(None, 1, "7.25"), peak(None, 60, "3")]).await.unwrap();
    let group = peak(Some("BTC-USD"), 3, "1");
    history.keep_peaks(vec![group.clone(), peak(None, 60, "4"), peak(None, 3, "5.5")]).await.unwrap();
    drop(history);
    let kept = SqliteHistory::open(folder.path()).unwrap().peaks().await.unwrap();
    assert_eq!(kept, [peak(None, 3, "5.5"), peak(None, 60, "4"), group]);
}

/// Funding of -1.5 and +4, a fee of -0.25, and 3 realized on one day; drifts of a minute are added up; a row that comes
/// again changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daily_pnl_is_summed_by_day_symbol_and_account() {
    let folder = tempfile::tempdir().unwrap();
    let disk = SqliteHistory::open(folder.path()).unwrap();
    {
        let history = &disk;
        let (main, btc): (AccountId, Symbol) = ("main".parse().unwrap(), "BTC-USD".parse().unwrap());
        let at = |hours: i64| Timestamp::from_millis(DAY_MS * 20_000 + hours * 3_600_000);
        let row = |id: &str, kind, amount: &str, hours| Income {
            id: id.to_owned(),
            symbol: btc.clone(),
            kind,
            amount: notional(amount),
            asset: "USD".to_owned(),
            at: at(hours),
        };
        let rows = || {
            vec![
                row("f1", IncomeKind::Funding, "-1.5", 0),
                row("f2", IncomeKind::Funding, "4", 23),
                row("c1", IncomeKind::Fee, "-0.25", 5),
                row("r1", IncomeKind::Realized, "3", 5),
                row("f3", IncomeKind::Funding, "1", 24),
                Income { asset: "BNB".to_owned(), ..row("c2", IncomeKind::Fee, "-0.002", 24) },
            ]
        };
        assert_eq!(history.newest_income(&main).await.unwrap(), None);
        history.add_income(&main, rows()).await.unwrap();
        history.add_income(&main, rows()).await.unwrap();
        assert_eq!(history.newest_income(&main).await.unwrap(), Some(at(24)));
        for (basis, residual) in [("0.5", "-10"), ("-0.125", "10.5")] {
            let drift = Drift {
                account: main.clone(),
                symbol: btc.clone(),
                at: at(3),
                basis: notional(basis),
                residual: notional(residual),
            };
            history.add_drift(vec![drift]).await.unwrap();
        }
        let days = history.earned(PnlQuery::default()).await.unwrap();
        let told: Vec<[String; 6]> = days
            .iter()
            .map(|line| {
                let Earned { funding, fees, realized, basis, residual } = line.earned;
                let total = line.earned.total().unwrap();
                [funding, fees, realized, basis, residual, total]
                    .map(|amount| amount.value().normalize().to_string())
            })
            .collect();
        assert_eq!(
            told,
            [
                ["2.5", "-0.25", "3", "0.375", "0.5", "3.125"],
                ["0", "-0.002", "0", "0", "0", "-0.002"],
                ["1", "0", "0", "0", "0", "1"]
            ]
        );
        let of_days: Vec<_> = days.iter().map(|line| (line.day, line.asset.as_str())).collect();
        assert_eq!(of_days, [(at(0), "USD"), (at(24), "BNB"), (at(24), "USD")]);
        let of = async |query: PnlQuery| history.earned(query).await.unwrap().len();
        assert_eq!(of(PnlQuery { since: Some(at(24)), ..PnlQuery::default() }).await, 2);
        assert_eq!(of(PnlQuery { since: Some(at(23)), until: Some(at(24)), ..PnlQuery::default() }).await, 1);
        assert_eq!(of(PnlQuery { symbol: Some("ETH-USD".parse().unwrap()), ..PnlQuery::default() }).await, 0);
    }
}

/// A file of an earlier version, which kept every row in USD, is gone on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_an_earlier_version_kept_are_in_usd() {
    let folder = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(folder.path().join("history.sqlite")).unwrap();
    old.execute_batch(
        "CREATE TABLE income (
             account TEXT NOT NULL, id TEXT NOT NULL, day INTEGER NOT NULL, at INTEGER NOT NULL, symbol TEXT NOT NULL,
             kind TEXT NOT NULL, amount TEXT NOT NULL, PRIMARY KEY (account, id)
         ) STRICT, WITHOUT ROWID;
         INSERT INTO income VALUES ('main', 'f1', 86400000, 86400005, 'BTC-USD', 'funding', '1.25');",
    )
    .unwrap();
    drop(old);
    for _ in 0..2 {
        let days = SqliteHistory::open(folder.path()).unwrap().earned(PnlQuery::default()).await.unwrap();
        let told: Vec<_> = days.iter().map(|line| (line.asset.as_str(), line.earned.funding)).collect();
        assert_eq!(told, [("USD", notional("1.25"))]);
    }
}
