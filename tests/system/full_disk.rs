//! The server on a disk that fills up and has room again, in a file system of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use deltaplane_tests::{until, until_within};

use crate::paper::Server;

const CONTROL: &str = r#"{"targetDelta": 0.0, "accounts": ["pacifica-main", "aster-hedge", "binance-backup"], "maxDeviation": 0.1, "symbol": "BTC-USD"}"#;

/// Whether this machine lets us mount.
fn may_mount() -> bool {
    let status = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A server whose data folder is a file system of 16 MiB, and where that is seen from here.
async fn server(folder: &Path) -> (Server, PathBuf) {
    std::fs::create_dir(folder.join("data")).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs -o size=16m tmpfs data && exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_deltaplane-server")]);
    command.env_remove("DELTAPLANE_API_KEY_FILE").env("DELTAPLANE_LOG", "warn");
    let server = Server::begin(command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null())).await;
    let data = format!("/proc/{}/root{}", server.process.id(), folder.join("data").display());
    (server, PathBuf::from(data))
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_orders_and_trading_goes_on_when_it_has_room_again() {
    if !may_mount() {
        eprintln!("skipped: this machine does not allow mounting a file system");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (server, data) = server(folder.path()).await;
    let (status, done) = server.post("/api/v1/delta/control", &[], CONTROL).await;
    assert_eq!((status, done["finalDelta"].to_string().as_str()), (200, "0"), "{done}");
    let ballast = data.join("ballast");
    fill(&ballast);
    // Something is to be done, and cannot be written down first.
    let away = CONTROL.replace("\"targetDelta\": 0.0", "\"targetDelta\": 0.1");
    let (status, refused) = server.post("/api/v1/delta/control", &[], away.clone()).await;
    assert!(status >= 500, "{refused}");
    let net = async || server.get("/api/v1/portfolio").await.1["symbols"][0]["netDelta"].to_string();
    assert_eq!(net().await, "0", "nothing was sent");
    let (_, alerts) = server.get("/api/v1/risk/alerts").await;
    let is_full = |alert: &serde_json::Value| {
        alert["severity"] == "CRITICAL"
            && alert["message"].as_str().unwrap().contains("the disk of the journal is full")
    };
    assert!(alerts.as_array().unwrap().iter().any(is_full), "{alerts}");
    let (status, readiness) = server.get("/readyz").await;
    assert_eq!(status, 503, "{readiness}");
    assert_eq!(server.get("/healthz").await.0, 200);
    // It looks every two seconds, and stays so as long as there is no room.
    let looked = tokio::time::Instant::now();
    until("it looked twice", async || {
        assert_eq!(server.get("/readyz").await.0, 503);
        looked.elapsed() > Duration::from_secs(5)
    })
    .await;
    std::fs::remove_file(&ballast).unwrap();
    until_within(Duration::from_secs(60), "it trades again", async || server.get("/readyz").await.0 == 200)
        .await;
    let (status, done) = server.post("/api/v1/delta/control", &[], away).await;
    assert_eq!((status, done["finalDelta"].to_string().as_str()), (200, "0.1"), "{done}");
    until("the portfolio shows it", async || net().await == "0.1").await;
    let (_, alerts) = server.get("/api/v1/risk/alerts").await;
    assert!(!alerts.as_array().unwrap().iter().any(is_full), "{alerts}");
    // The journal is whole: another process goes on with it.
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for name in ["journal.sqlite", "journal.sqlite-wal", "instance.key"] {
        if data.join(name).exists() {
            std::fs::copy(data.join(name), copy.join(name)).unwrap();
        }
    }
    let store = deltaplane_store_sqlite::SqliteStore::open(&copy).unwrap();
    assert_eq!(store.quarantined(), None);
}
