//! Requests per second of the facade over a real socket, against a bare hyper echo in the same run.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use deltaplane_api::{ApiState, Prepared, ServerLimits, Traffic, Vitals, router, serve};
use deltaplane_ports::{Alert, AlertChange, Clock, ControlPlane as _, Record};
use deltaplane_store_sqlite::SqliteStore;
use deltaplane_testkit::MemoryJournal;
use deltaplane_tests::{Place, WallClock, World};
use deltaplane_types::{AlertKind, AlertSeverity, AlertTopic, Decimal, Timestamp};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

const REQUESTS: u64 = 4_000;
const AT_ONCE: u64 = 8;
/// How many alerts stand.
const ALERTS: u32 = 1_000;

struct NoVitals;

impl Vitals for NoVitals {
    fn memory_mb(&self) -> Decimal {
        Decimal::ZERO
    }

    fn cpu(&self) -> Decimal {
        Decimal::ZERO
    }
}

/// Answers every request with these bytes, by hyper alone.
async fn answer_with(body: Bytes) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(answer_all(listener, body));
    url
}

async fn answer_all(listener: TcpListener, body: Bytes) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { return };
        let _ = socket.set_nodelay(true);
        let body = body.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                let body = body.clone();
                async { Ok::<_, Infallible>(Response::new(Full::new(body))) }
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

/// What an earlier run left standing: that many alerts that nothing ends.
fn alerts(count: u32) -> Vec<Record> {
    let raised = |index: u32| Record::Alert {
        alert: Alert {
            id: format!("note-{index}"),
            kind: AlertKind::System,
            topic: AlertTopic::Journal,
            severity: if index.is_multiple_of(10) { AlertSeverity::Critical } else { AlertSeverity::Warn },
            account: None,
            symbol: Some(format!("S{index}-USD").parse().expect("a symbol")),
            message: "something that a person has to look at: see GET /api/v1/operations".to_owned(),
            raised_at: Timestamp::from_millis(1_795_482_893_111),
            seen_at: Timestamp::from_millis(1_795_482_893_111),
            data: [("rate".to_owned(), Decimal::new(i64::from(index), 4))].into(),
            acknowledged: None,
        },
        change: AlertChange::Raised,
    };
    (0..count).map(raised).collect()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let places = vec![Place::new("main", "0.5"), Place::new("hedge", "-0.25"), Place::new("backup", "0")];
    let world = World::start(places, Arc::new(MemoryJournal::with(alerts(ALERTS)))).await;
    let World { engine, exchanges, .. } = world;
    let standing = engine.alerts().await.iter().filter(|alert| alert.topic == AlertTopic::Journal).count();
    assert_eq!(standing, usize::try_from(ALERTS).expect("a thousand"));
    let folder = tempfile::tempdir().expect("a folder");
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    let state = Arc::new(ApiState {
        plane: Arc::new(engine),
        answers: Arc::new(SqliteStore::open(folder.path()).expect("a store")),
        clock,
        api_key: None,
        public_hosts: Vec::new(),
        live: false,
        vitals: Arc::new(NoVitals),
        traffic: Traffic::default(),
        prepared: Prepared::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let api = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(serve(listener, router(state), ServerLimits::default(), std::future::pending()));
    let bare = answer_with(Bytes::from_static(b"{}")).await;
    let all = reqwest::get(format!("{api}/api/v1/risk/alerts")).await.expect("an answer");
    let same = answer_with(all.bytes().await.expect("a body")).await;
    let dry = r#"{"targetDelta": 0, "accounts": ["main", "hedge", "backup"], "maxDeviation": 0.1, "symbol": "BTC-USD", "dryRun": true}"#;
    for round in 1..=3 {
        let floor = rate(&bare, None).await;
        let status = rate(&format!("{api}/api/v1/system/status"), None).await;
        let risk = rate(&format!("{api}/api/v1/risk/metrics/main"), None).await;
        let alerts = rate(&format!("{api}/api/v1/risk/alerts"), None).await;
        // A filter has the list written again.
        let chosen = rate(&format!("{api}/api/v1/risk/alerts?severity=CRITICAL"), None).await;
        let same = rate(&same, None).await;
        let planned = rate(&format!("{api}/api/v1/delta/control"), Some(dry)).await;
        let part = |rate: u128| rate * 100 / floor.max(1);
        println!(
            "round {round}: bare hyper {floor}/s, status {status}/s ({} %), risk metrics {risk}/s ({} %), {ALERTS} alerts {alerts}/s ({} % of their bytes by bare hyper, {same}/s), the critical tenth of them {chosen}/s ({} %), dry run {planned}/s ({} %)",
            part(status),
            part(risk),
            alerts * 100 / same.max(1),
            part(chosen),
            part(planned)
        );
    }
    drop(exchanges);
}
