//! The journal on a real file: what was appended is there after a restart, and damage is seen.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_ports::{
    Acknowledgement, Alert, AlertChange, Answer, AnswerClaim, AnswerStore, Correction, Deleverage,
    ExternalActivity, ExternalCause, HedgeTo, IntentRecord, Journal, OperationState, OutcomeRecord,
    PlannedLeg, Policy, PolicyLimits, Record, ScheduledRebalance, ScopedTrading, TradingOrder,
};
use deltaplane_store_sqlite::{JournalReading, OpenError, SqliteStore};
use deltaplane_testkit::{delta, notional, price, quantity, ratio};
use deltaplane_types::{
    AlertKind, AlertSeverity, AlertTopic, Code, Decimal, Evidence, Fill, OrderIntent, OrderState,
    OrderStatus, Preemption, Side, TimeInForce, Timestamp, TradingScope, TradingState,
};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// One record of every kind, with every optional part both there and missing.
fn every_record() -> Vec<Record> {
    let order = OrderIntent {
        account: "binance-main".parse().unwrap(),
        symbol: "BTC-USD".parse().unwrap(),
        side: Side::Sell,
        quantity: quantity("0.250"),
        limit_price: price("61491.3"),
        reduce_only: true,
        time_in_force: TimeInForce::ImmediateOrCancel,
        deadline: at(3_000),
    };
    let id: deltaplane_types::ClientOrderId = "00010001-0000-8000-8000-000000000001".parse().unwrap();
    let fill = Fill {
        account: order.account.clone(),
        symbol: order.symbol.clone(),
        trade_id: "17".parse().unwrap(),
        venue_order_id: "1001".parse().unwrap(),
        client_order_id: Some(id.clone()),
        side: Side::Sell,
        quantity: quantity("0.1"),
        price: price("61500.1"),
        fee: deltaplane_types::Fee {
            amount: "-0.00002".parse().unwrap(),
            asset: Some("BNB".to_owned()),
            rate: Some("612.5".parse().unwrap()),
        },
        cause: deltaplane_types::FillCause::Order,
        venue_time: at(1_200),
    };
    let outcome = |outcome| Record::Outcome { client_order_id: id.clone(), outcome, at: at(5) };
    let mut records = vec![
        Record::RunStarted { epoch: 3, next_sequence: 1, at: at(1) },
        Record::OperationAccepted {
            operation: "hedge-20261123-1".parse().unwrap(),
            kind: "hedge".to_owned(),
            symbol: order.symbol.clone(),
            accounts: vec![order.account.clone()],
            requester: deltaplane_types::Requester::Client { key: "desk".to_owned() },
            key: Some("a key".to_owned()),
            at: at(2),
        },
        Record::Planned {
            operation: "hedge-20261123-1".parse().unwrap(),
            plan: "plan-1".parse().unwrap(),
            text: "sell \"much\"\n".to_owned(),
            target: delta("0"),
            net: delta("0.25"),
            worst: delta("0.25"),
            legs: vec![PlannedLeg {
                account: order.account.clone(),
                side: Side::Sell,
                quantity: quantity("0.25"),
            }],
            positions: BTreeMap::from([(order.account.clone(), (delta("-0.125"), delta("0.5")))]),
            read_at: at(2),
            at: at(3),
        },
        Record::Intent(IntentRecord {
            sequence: 9,
            epoch: 3,
            operation: "hedge-20261123-1".parse().unwrap(),
            client_order_id: id.clone(),
            leg: 1,
            order,
        }),
        Record::Fill { client_order_id: id.clone(), fill },
        outcome(OutcomeRecord::Unknown { cause: "no answer in time".to_owned() }),
        outcome(OutcomeRecord::Ended {
            status: OrderStatus::Expired,
            filled: quantity("0.1"),
            evidence: Evidence::OrderQuery,
        }),
        Record::OperationClosed {
            operation: "hedge-20261123-1".parse().unwrap(),
            state: OperationState::Partial,
            code: Some(Code::Conflict),
            preempted_by: Some(Preemption::Deleverage),
            summary: "stopped after 120 ms".to_owned(),
            positions: BTreeMap::from([("binance-main".parse().unwrap(), delta("-0.375"))]),
            read_at: at(8),
            at: at(9),
        },
    ];
    records.push(Record::Corrected(Correction {
        operation: "hedge-20261123-1".parse().unwrap(),
        client_order_id: id.clone(),
        account: "binance-main".parse().unwrap(),
        symbol: "BTC-USD".parse().unwrap(),
        was: (OrderState::NotAccepted, quantity("0")),
        now: (OrderState::Filled, quantity("0.1")),
        change: delta("-0.1"),
        position: delta("-0.35"),
        as_of: at(10),
        trade: "19".parse().unwrap(),
        traded_at: at(9),
        at: at(10),
    }));
    for cause in ExternalCause::ALL {
        records.push(Record::External(ExternalActivity {
            account: "binance-main".parse().unwrap(),
            symbol: "BTC-USD".parse().unwrap(),
            cause,
            change: delta("-0.5"),
            position: delta("0.25"),
            trades: vec!["18".parse().unwrap()],
            at: at(10),
        }));
    }
    for state in [TradingState::Running, TradingState::ReduceOnly, TradingState::Halted] {
        let scoped = |state| ScopedTrading { state, reason: "a look".to_owned(), at: at(12) };
        let scoped = [
            (TradingScope::Account("binance-main".parse().unwrap()), scoped(TradingState::Halted)),
            (TradingScope::Symbol("BTC-USD".parse().unwrap()), scoped(TradingState::Paused)),
        ];
        let order = TradingOrder {
            state,
            kill: true,
            reason: "a look around".to_owned(),
            kill_reason: "a fire".to_owned(),
            at: at(11),
            scoped: scoped.into_iter().collect(),
        };
        records.push(Record::Trading(order));
    }
    let policy = Policy {
        symbol: "BTC-USD".parse().unwrap(),
        enabled: true,
        target: delta("0.5"),
        tolerance: ratio("0.05"),
        max_deviation: ratio("0.25"),
        accounts: vec!["binance-main".parse().unwrap(), "aster-hedge".parse().unwrap()],
        max_slippage: ratio("0.005"),
        timeout: Duration::from_secs(30),
        hedge_to: HedgeTo::Band,
        after: Duration::from_millis(1_500),
        deleverage: Some(Deleverage { trigger: ratio("0.08"), until: ratio("0.15") }),
        rebalance: Some(ScheduledRebalance {
            every: Duration::from_secs(3_600),
            target: ratio("0.5"),
            tolerance: ratio("0.1"),
            max_amount: Some(notional("25000")),
        }),
        limits: PolicyLimits { max_order_notional: Some(notional("1000")), ..PolicyLimits::default() },
        horizon: Some(Duration::from_secs(86_400)),
        hysteresis: ratio("0.3"),
    };
    let bare = Policy {
        enabled: false,
        deleverage: None,
        rebalance: None,
        limits: PolicyLimits::default(),
        horizon: None,
        hysteresis: ratio("0.2"),
        ..policy.clone()
    };
    for policy in [Some(policy), Some(bare), None] {
        records.push(Record::Policy { symbol: "BTC-USD".parse().unwrap(), policy, at: at(15) });
    }
    let alert = Alert {
        id: "frozen-order-1".to_owned(),
        kind: AlertKind::Execution,
        topic: AlertTopic::FrozenOrder,
        severity: AlertSeverity::Critical,
        account: Some("binance-main".parse().unwrap()),
        symbol: None,
        message: "look".to_owned(),
        raised_at: at(12),
        seen_at: at(13),
        // A quotient of our own has 29 digits.
        data: [("ratio".to_owned(), Decimal::from(14_239) / Decimal::from(12_805))].into(),
        acknowledged: None,
    };
    let seen = Alert {
        acknowledged: Some(Acknowledgement { note: "on it".to_owned(), at: at(14) }),
        ..alert.clone()
    };
    records.push(Record::Alert { alert: seen, change: AlertChange::Acknowledged });
    let other = Alert { account: None, symbol: Some("BTC-USD".parse().unwrap()), ..alert.clone() };
    records.push(Record::Alert { alert, change: AlertChange::Raised });
    records.push(Record::Alert { alert: other, change: AlertChange::Resolved });
    for evidence in [
        Evidence::PlacementAnswer,
        Evidence::StreamEvent,
        Evidence::ExpiryProof,
        Evidence::NotSent,
        Evidence::LateTrade,
        Evidence::Person("ann".to_owned()),
    ] {
        records.push(outcome(OutcomeRecord::Accepted { evidence: evidence.clone() }));
        records.push(outcome(OutcomeRecord::NotAccepted { evidence, reason: "r".to_owned() }));
    }
    records
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let records = every_record();
    let store = SqliteStore::open(folder.path()).unwrap();
    store.append(records[..3].to_vec()).await.unwrap();
    store.append(records[3..].to_vec()).await.unwrap();
    drop(store);
    let store = SqliteStore::open(folder.path()).unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!(
        loaded.iter().map(|stored| stored.position).collect::<Vec<_>>(),
        (1..=records.len() as u64).collect::<Vec<_>>()
    );
    assert_eq!(loaded.into_iter().map(|stored| stored.record).collect::<Vec<_>>(), records);
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _store = SqliteStore::open(folder.path()).unwrap();
    let Err(error) = SqliteStore::open(folder.path()) else { panic!("two writers") };
    assert!(matches!(error, OpenError::InUse { .. }) && error.to_string().contains("another process"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_appends_are_all_kept_and_the_chain_holds() {
    let folder = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(SqliteStore::open(folder.path()).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for epoch in 0..200 {
        let store = store.clone();
        tasks.spawn(async move {
            store.append(vec![Record::RunStarted { epoch, next_sequence: 1, at: at(0) }; 2]).await.unwrap();
        });
    }
    tasks.join_all().await;
    drop(store);
    assert_eq!(SqliteStore::open(folder.path()).unwrap().load().await.unwrap().len(), 400);
}

fn change(folder: &std::path::Path, sql: &str) {
    rusqlite::Connection::open(folder.join("journal.sqlite")).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn damage_and_a_newer_schema_are_named() {
    for (sql, expected) in [
        (
            "UPDATE journal SET payload = replace(payload, '\"0.25\"', '\"0.26\"') WHERE position = 4",
            "damaged at row 4",
        ),
        ("DELETE FROM journal WHERE position = 2", "damaged at row 3"),
        ("UPDATE journal SET hash = x'00' WHERE position = 8", "damaged at row 8"),
        ("PRAGMA user_version = 3", "has schema 3, this version knows 2"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path()).unwrap();
        store.append(every_record()).await.unwrap();
        drop(store);
        change(folder.path(), sql);
        let Err(error) = SqliteStore::open(folder.path()) else { panic!("{sql} was not seen") };
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A bad end is what a crash can leave: it is set aside, kept in a copy, and the journal goes on before it.
#[tokio::test]
async fn f55_damaged_rows_at_the_end_are_set_aside() {
    let records = every_record();
    let last = i64::try_from(records.len()).unwrap();
    for sql in [
        format!("UPDATE journal SET hash = x'00' WHERE position = {last}"),
        format!("UPDATE journal SET payload = '' WHERE position >= {last}"),
        format!("UPDATE journal SET payload = replace(payload, 'r', 's') WHERE position >= {last}"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path()).unwrap();
        store.append(records.clone()).await.unwrap();
        drop(store);
        change(folder.path(), &sql);
        let store = SqliteStore::open(folder.path()).unwrap();
        let set_aside = store.quarantined().unwrap().clone();
        assert_eq!(set_aside.rows, [last], "{sql}");
        // A process that ends before it wrote anything leaves the next one to tell of it.
        drop(store);
        let store = SqliteStore::open(folder.path()).unwrap();
        assert_eq!(store.quarantined(), Some(&set_aside), "{sql}");
        let found = JournalReading::open(folder.path()).unwrap();
        assert_eq!((found.last, found.bad), (last - 1, vec![]), "{sql}");
        store.append(vec![Record::RunStarted { epoch: 4, next_sequence: 1, at: at(1) }]).await.unwrap();
        drop(store);
        let again = SqliteStore::open(folder.path()).unwrap();
        assert_eq!((again.quarantined(), again.load().await.unwrap().len()), (None, records.len()), "{sql}");
        let copied: i64 = rusqlite::Connection::open(set_aside.copy)
            .unwrap()
            .query_row("SELECT count(*) FROM journal", [], |row| row.get(0))
            .unwrap();
        assert_eq!(copied, last);
    }
}

/// In the middle somebody must say so, and then only the damaged rows go.
#[tokio::test]
async fn f56_damage_in_the_middle_needs_a_persons_word() {
    let folder = tempfile::tempdir().unwrap();
    let records = every_record();
    let store = SqliteStore::open(folder.path()).unwrap();
    store.append(records.clone()).await.unwrap();
    drop(store);
    change(folder.path(), "UPDATE journal SET payload = replace(payload, '0.25', '0.52') WHERE position = 4");
    let Err(error) = SqliteStore::open(folder.path()) else { panic!("damage was not seen") };
    assert!(
        error.to_string().contains("damaged at row 4") && error.to_string().contains("--accept-quarantine")
    );
    let reading = JournalReading::open(folder.path()).unwrap();
    assert_eq!(reading.bad, [(4, "its hash does not match".to_owned())]);
    let store = SqliteStore::open_accepting(folder.path(), true).unwrap();
    assert_eq!(store.quarantined().unwrap().rows, [4]);
    let mut kept = records;
    kept.remove(3);
    let loaded: Vec<Record> = store.load().await.unwrap().into_iter().map(|stored| stored.record).collect();
    assert_eq!(loaded, kept);
}

/// A journal of the first schema, as the version before wrote it.
#[tokio::test]
async fn f61_rows_of_the_schema_before_are_read() {
    let folder = tempfile::tempdir().unwrap();
    drop(SqliteStore::open(folder.path()).unwrap());
    let row = r#"{"type":"planned","operation":"hedge-1","plan":"plan-1","text":"sell","at":3}"#;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[0; 32]).update(row.as_bytes());
    let hash = hasher.finalize().to_hex();
    let sql = format!("INSERT INTO journal VALUES (1, '{row}', x'{hash}'); PRAGMA user_version = 1;");
    change(folder.path(), &sql);
    let store = SqliteStore::open(folder.path()).unwrap();
    let Record::Planned { plan, legs, net, .. } = &store.load().await.unwrap()[0].record else { panic!() };
    assert_eq!((plan.as_str(), legs.len(), *net), ("plan-1", 0, delta("0")));
}

/// A request that a crash cut off: its key leads to the operation that the journal has, or is free again.
#[tokio::test]
async fn keys_that_a_crash_cut_off_lead_to_their_operation_or_are_free() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    store.append(every_record()[1..2].to_vec()).await.unwrap();
    assert_eq!(store.claim("a key", "body", at(0)).await.unwrap(), AnswerClaim::New);
    assert_eq!(store.claim("never began", "body", at(0)).await.unwrap(), AnswerClaim::New);
    drop(store);
    let store = SqliteStore::open(folder.path()).unwrap();
    let operation = Some("hedge-20261123-1".parse().unwrap());
    assert_eq!(store.claim("a key", "body", at(0)).await.unwrap(), AnswerClaim::Pending { operation });
    assert_eq!(store.claim("never began", "body", at(0)).await.unwrap(), AnswerClaim::New);
}

#[tokio::test]
async fn a_torn_tail_of_the_log_loses_no_earlier_row() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    store.append(every_record()[..2].to_vec()).await.unwrap();
    // As a crash leaves it: the log is copied while it is open, without its last bytes.
    store.append(every_record()[2..3].to_vec()).await.unwrap();
    let torn = tempfile::tempdir().unwrap();
    let main = std::fs::read(folder.path().join("journal.sqlite")).unwrap();
    let log = std::fs::read(folder.path().join("journal.sqlite-wal")).unwrap();
    for cut in [1, 100, 4_000] {
        std::fs::write(torn.path().join("journal.sqlite"), &main).unwrap();
        std::fs::write(torn.path().join("journal.sqlite-wal"), &log[..log.len() - cut]).unwrap();
        let _ = std::fs::remove_file(torn.path().join("journal.sqlite-shm"));
        let reopened = SqliteStore::open(torn.path()).unwrap();
        let kept = reopened.load().await.unwrap().len();
        assert_eq!(kept, 2, "{cut} bytes cut");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let Err(error) = SqliteStore::open(&file) else { panic!("a file is no folder") };
    assert!(matches!(error, OpenError::Folder { .. }), "{error}");
}

#[tokio::test]
async fn a_key_whose_operation_never_began_is_free_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.claim("k", "a", at(0)).await.unwrap(), AnswerClaim::New);
    store.attach("k", &"hedge-1".parse().unwrap()).await.unwrap();
    drop(store);
    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.claim("k", "a", at(0)).await.unwrap(), AnswerClaim::New);
}

#[tokio::test]
async fn answers_are_kept_by_key_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let day = 24 * 3_600 * 1_000;
    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.claim("k", "a", at(0)).await.unwrap(), AnswerClaim::New);
    assert_eq!(store.claim("k", "b", at(0)).await.unwrap(), AnswerClaim::OtherBody);
    assert_eq!(store.claim("k", "a", at(0)).await.unwrap(), AnswerClaim::Pending { operation: None });
    let operation: deltaplane_types::OperationId = "hedge-1".parse().unwrap();
    store.attach("k", &operation).await.unwrap();
    assert_eq!(
        store.claim("k", "a", at(0)).await.unwrap(),
        AnswerClaim::Pending { operation: Some(operation) }
    );
    let answer = Answer { status: 200, body: b"{}".to_vec() };
    store.complete("k", &answer).await.unwrap();
    assert_eq!(store.claim("other", "x", at(0)).await.unwrap(), AnswerClaim::New);
    store.release("other").await.unwrap();
    drop(store);
    let store = SqliteStore::open(folder.path()).unwrap();
    assert_eq!(store.claim("k", "a", at(day)).await.unwrap(), AnswerClaim::Answered(answer));
    assert_eq!(store.claim("other", "y", at(0)).await.unwrap(), AnswerClaim::New);
    assert_eq!(store.claim("k", "a", at(day + 1)).await.unwrap(), AnswerClaim::New);
}

/// The form of every record on disk is a promise to journals that exist. `DELTAPLANE_WRITE_GOLDEN=1` writes the file.
#[tokio::test]
async fn every_record_is_written_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    store.append(every_record()).await.unwrap();
    drop(store);
    let file = rusqlite::Connection::open(folder.path().join("journal.sqlite")).unwrap();
    let mut rows = file.prepare("SELECT payload FROM journal ORDER BY position").unwrap();
    let rows: Vec<String> = rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/records.jsonl");
    let text = rows.join("\n") + "\n";
    if std::env::var_os("DELTAPLANE_WRITE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&golden).unwrap(), "journals of today could not be read later");
}

/// A journal that version 0.1 wrote before codes and preemptions had fields of their own: they stood in the summary.
#[tokio::test]
async fn a_journal_of_the_version_before_opens() {
    let folder = tempfile::tempdir().unwrap();
    let written = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/journal_0_1.sqlite");
    std::fs::copy(written, folder.path().join("journal.sqlite")).unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let records: Vec<Record> = store.load().await.unwrap().into_iter().map(|stored| stored.record).collect();
    assert_eq!(records.len(), 29);
    let ends: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::OperationClosed { state, code, preempted_by, summary, .. } => {
                Some((*state, *code, *preempted_by, summary.as_str()))
            }
            _ => None,
        })
        .collect();
    let beyond = "net delta can be brought to within 29.393 of the target at best, a ratio of 0.58786, beyond maxDeviation 0.01";
    let preempted = "it ended after 1210 ms: it gave way to the kill switch";
    assert_eq!(
        ends,
        [
            (OperationState::Succeeded, None, None, "all that was planned is traded: net delta is 0"),
            (OperationState::Failed, Some(Code::DeltaBeyondLimit), None, beyond),
            (OperationState::Partial, Some(Code::Conflict), Some(Preemption::Unnamed), preempted),
        ]
    );
    let topics = records.iter().filter_map(|record| match record {
        Record::Alert { alert, .. } => Some(alert.topic),
        _ => None,
    });
    let topics: std::collections::BTreeSet<AlertTopic> = topics.collect();
    assert_eq!(topics, [AlertTopic::KillSwitch, AlertTopic::ExternalActivity].into());
}
