//! The journal on a real file: what was appended is there after a restart, and damage is seen.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use deltaplane_ports::{Answer, AnswerClaim, AnswerStore, IntentRecord, Journal, OutcomeRecord, Record};
use deltaplane_store_sqlite::{OpenError, SqliteStore};
use deltaplane_testkit::{notional, price, quantity};
use deltaplane_types::{Evidence, Fill, OrderIntent, OrderStatus, Side, TimeInForce, Timestamp};

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
        fee: notional("-0.02"),
        cause: deltaplane_types::FillCause::Order,
        venue_time: at(1_200),
    };
    let outcome = |outcome| Record::Outcome { client_order_id: id.clone(), outcome, at: at(5) };
    let mut records = vec![
        Record::RunStarted { epoch: 3, at: at(1) },
        Record::OperationAccepted {
            operation: "hedge-20261123-1".parse().unwrap(),
            kind: "hedge".to_owned(),
            symbol: order.symbol.clone(),
            accounts: vec![order.account.clone()],
            key: Some("a key".to_owned()),
            at: at(2),
        },
        Record::Planned {
            operation: "hedge-20261123-1".parse().unwrap(),
            plan: "plan-1".parse().unwrap(),
            text: "sell \"much\"\n".to_owned(),
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
            state: "partial".to_owned(),
            summary: "1002".to_owned(),
            at: at(9),
        },
    ];
    for evidence in [
        Evidence::PlacementAnswer,
        Evidence::StreamEvent,
        Evidence::ExpiryProof,
        Evidence::NotSent,
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
        tasks.spawn(
            async move { store.append(vec![Record::RunStarted { epoch, at: at(0) }; 2]).await.unwrap() },
        );
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
        ("PRAGMA user_version = 2", "has schema 2, this version knows 1"),
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
