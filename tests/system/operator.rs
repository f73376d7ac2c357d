//! The operator's command line over a journal on disk.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::path::Path;
use std::process::{Command, Output};

use deltaplane_ports::{Journal as _, Record};
use deltaplane_store_sqlite::SqliteStore;
use deltaplane_types::Timestamp;

fn verify(folder: &Path) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deltaplane"));
    let output = command.args(["journal", "verify", "--data-dir"]).arg(folder).output().unwrap();
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output, String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn verify_accepts_a_whole_journal_and_names_a_missing_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path()).unwrap();
    let at = Timestamp::from_millis(1_764_000_000_000);
    store.append(vec![Record::RunStarted { epoch: 1, next_sequence: 1, at }]).await.unwrap();
    drop(store);
    let (output, text) = verify(folder.path());
    assert!(
        output.status.success() && text.contains("1 rows") && text.contains("the chain is whole"),
        "{text}"
    );

    let nowhere = folder.path().join("nowhere");
    let (output, text) = verify(&nowhere);
    assert!(!output.status.success() && text.contains("nowhere"), "{text}");
}
