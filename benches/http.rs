//! Requests per second of the facade over a real socket, against a bare hyper echo in the same run.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use deltaplane_api::{ApiState, Prepared, ServerLimits, Traffic, Vitals, router, serve};
use deltaplane_ports::Clock;
use deltaplane_store_sqlite::SqliteStore;
use deltaplane_testkit::MemoryJournal;
use deltaplane_tests::{Place, WallClock, World};
use deltaplane_types::Decimal;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const REQUESTS: u64 = 4_000;
const AT_ONCE: u64 = 8;

struct NoVitals;

impl Vitals for NoVitals {
    fn memory_mb(&self) -> Decimal {
        Decimal::ZERO
    }

    fn cpu(&self) -> Decimal {
        Decimal::ZERO
    }
}

async fn echo(listener: TcpListener) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let _ = socket.set_nodelay(true);
        tokio::spawn(async move {
            let answer = service_fn(|_: Request<hyper::body::Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"{}"))))
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
    }
}

async fn rate(url: &str, body: Option<&'static str>) -> u128 {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let began = tokio::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (client, url) = (client.clone(), url.to_owned());
        tasks.spawn(async move {
            for _ in 0..REQUESTS / AT_ONCE {
                let request = match body {
                    Some(body) => client.post(&url).header("content-type", "application/json").body(body),
                    None => client.get(&url),
                };
                let answer = request.send().await.expect("an answer");
                assert!(answer.status().is_success(), "{}", answer.status());
                answer.bytes().await.expect("a body");
            }
        });
    }
    tasks.join_all().await;
    u128::from(REQUESTS) * 1_000_000 / began.elapsed().as_micros().max(1)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let places = vec![Place::new("main", "0.5"), Place::new("hedge", "-0.25"), Place::new("backup", "0")];
    let world = World::start(places, Arc::new(MemoryJournal::default())).await;
    let World { engine, exchanges, .. } = world;
    let folder = tempfile::tempdir().expect("a folder");
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let state = Arc::new(ApiState {
        plane: Arc::new(engine),
        answers: Arc::new(SqliteStore::open(folder.path()).expect("a store")),
        clock,
        api_key: None,
        live: false,
        vitals: Arc::new(NoVitals),
        traffic: Traffic::default(),
        prepared: Prepared::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let api = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(serve(listener, router(state), ServerLimits::default(), std::future::pending()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let bare = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(echo(listener));
    let dry = r#"{"targetDelta": 0, "accounts": ["main", "hedge", "backup"], "maxDeviation": 0.1, "symbol": "BTC-USD", "dryRun": true}"#;
    for round in 1..=3 {
        let floor = rate(&bare, None).await;
        let status = rate(&format!("{api}/api/v1/system/status"), None).await;
        let risk = rate(&format!("{api}/api/v1/risk/metrics/main"), None).await;
        let alerts = rate(&format!("{api}/api/v1/risk/alerts"), None).await;
        // A filter has the list written anew.
        let chosen = rate(&format!("{api}/api/v1/risk/alerts?severity=CRITICAL"), None).await;
        let planned = rate(&format!("{api}/api/v1/delta/control"), Some(dry)).await;
        let part = |rate: u128| rate * 100 / floor.max(1);
        println!(
            "round {round}: bare hyper {floor}/s, status {status}/s ({} %), risk metrics {risk}/s ({} %), alerts {alerts}/s ({} %), alerts chosen {chosen}/s ({} %), dry run {planned}/s ({} %)",
            part(status),
            part(risk),
            part(alerts),
            part(chosen),
            part(planned)
        );
    }
    drop(exchanges);
}
