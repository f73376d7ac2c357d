//! Journal appends with group commit, against the floor of a plain write and fdatasync in the same run.

use std::io::Write as _;
use std::sync::Arc;

use deltaplane_ports::{Journal as _, Record};
use deltaplane_store_sqlite::SqliteStore;
use deltaplane_types::Timestamp;

const APPENDS: u16 = 2_000;

fn record(epoch: u16) -> Vec<Record> {
    vec![Record::RunStarted { epoch, next_sequence: 1, at: Timestamp::from_millis(1_795_482_893_111) }]
}

fn per_second(began: tokio::time::Instant) -> u128 {
    u128::from(APPENDS) * 1_000_000 / began.elapsed().as_micros().max(1)
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 1..=3 {
        for group in [1_usize, 8, 64] {
            let mut file = std::fs::File::create(folder.path().join("floor")).expect("a file");
            let began = tokio::time::Instant::now();
            for _ in 0..usize::from(APPENDS) / group {
                file.write_all(&vec![b'x'; 150 * group]).expect("space");
                file.sync_data().expect("a disk");
            }
            let floor = per_second(began);
            let store = Arc::new(
                SqliteStore::open(&folder.path().join(format!("store-{round}-{group}"))).expect("a store"),
            );
            let began = tokio::time::Instant::now();
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..group {
                let store = store.clone();
                tasks.spawn(async move {
                    for epoch in 0..APPENDS / u16::try_from(group).expect("a small group") {
                        store.append(record(epoch)).await.expect("a disk");
                    }
                });
            }
            tasks.join_all().await;
            let journal = per_second(began);
            println!(
                "round {round}, {group} at once: journal {journal}/s, floor {floor}/s, ratio {}.{:02}",
                journal / floor.max(1),
                journal * 100 / floor.max(1) % 100
            );
        }
    }
}
