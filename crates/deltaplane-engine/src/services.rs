//! Keeps the engine's own loops running: one that panics, ends or stands still is started again.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{Clock, ServiceState, ServiceView};
use deltaplane_types::{AlertKind, AlertSeverity, AlertTopic, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alerts::Condition;
use crate::engine::Core;

/// How often a loop may fail in a row before a person is needed.
const LIMIT: u32 = 5;
/// A loop that ran so long has recovered.
const RECOVERED: Duration = Duration::from_secs(600);
/// The first pause before a loop is started again; it doubles each time.
const PAUSE: Duration = Duration::from_millis(200);
/// A loop that should beat every second or so and did not for this long stands still.
const STILL: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How the loops fare.
#[derive(Default)]
pub(crate) struct Services(Mutex<BTreeMap<&'static str, Service>>);

#[derive(Clone, Debug)]
struct Service {
    beat: Instant,
    beat_at: Timestamp,
    errors: u64,
    failed: bool,
}

impl Services {
    fn with<T>(&self, name: &'static str, f: impl FnOnce(&mut Service) -> T) -> T {
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let none =
            || Service { beat: Instant::now(), beat_at: Timestamp::default(), errors: 0, failed: false };
        f(services.entry(name).or_insert_with(none))
    }

    /// A loop went round once.
    pub(crate) fn beat(&self, name: &'static str, clock: &dyn Clock) {
        let at = clock.now();
        self.with(name, |service| (service.beat, service.beat_at) = (Instant::now(), at));
    }

    /// When something beat last.
    pub(crate) fn beat_at(&self, name: &'static str) -> Timestamp {
        self.with(name, |service| service.beat_at)
    }

    /// All of them.
    pub(crate) fn views(&self) -> Vec<ServiceView> {
        let services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let view = |(name, service): (&&'static str, &Service)| {
            let still = service.beat.elapsed() > STILL;
            ServiceView {
                name: (*name).to_owned(),
                state: if service.failed || still { ServiceState::Error } else { ServiceState::Running },
                last_heartbeat: service.beat_at,
                error_count: service.errors,
            }
        };
        services.iter().map(view).collect()
    }

    async fn stands_still(&self, name: &'static str) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.with(name, |service| service.beat.elapsed() > STILL) {
                return;
            }
        }
    }
}

/// Runs a loop that beats, and starts it again whenever it fails. Returns when it failed too often.
pub(crate) async fn keep_running<F>(services: &Services, name: &'static str, make: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut failures = 0;
    loop {
        let began = Instant::now();
        services.with(name, |service| service.beat = began);
        let mut task = JoinSet::new();
        task.spawn(make());
        let why = tokio::select! {
            ended = task.join_next() => match ended {
                Some(Err(error)) if error.is_panic() => "it panicked",
                _ => "it ended",
            },
            () = services.stands_still(name) => "it stands still",
        };
        task.abort_all();
        failures = if began.elapsed() >= RECOVERED { 1 } else { failures + 1 };
        services.with(name, |service| service.errors = service.errors.saturating_add(1));
        tracing::error!(service = name, why, failures, "a service failed");
        if failures > LIMIT {
            services.with(name, |service| service.failed = true);
            return;
        }
        tokio::time::sleep(PAUSE * 2_u32.pow(failures - 1)).await;
    }
}

/// Runs a loop that belongs to one account, and starts it again when it panics. It does not beat: it may have nothing
/// to do for long.
pub(crate) async fn revived<F>(name: &'static str, make: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = PAUSE;
    loop {
        let began = Instant::now();
        let mut task = JoinSet::new();
        task.spawn(make());
        let Some(Err(error)) = task.join_next().await else { return };
        if !error.is_panic() {
            return;
        }
        if began.elapsed() >= RECOVERED {
            pause = PAUSE;
        }
        tracing::error!(task = name, "a task of an account panicked and is started again");
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(STILL);
    }
}

/// Waits for an event, but no longer than a loop may go without a beat.
pub(crate) async fn or_a_beat(told: impl Future<Output = ()>) {
    let _ = tokio::time::timeout(STILL / 3, told).await;
}

/// Runs one of the engine's loops until dropped; if it fails too often, an alert is raised.
pub(crate) async fn supervised<F>(core: Arc<Core>, name: &'static str, make: fn(Arc<Core>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    keep_running(&core.shared.services, name, || make(core.clone())).await;
    core.shared
        .raise(Condition {
            kind: AlertKind::System,
            topic: AlertTopic::Service,
            severity: AlertSeverity::Critical,
            account: None,
            symbol: None,
            message: format!(
                "service {name} failed {LIMIT} times and is down. Read logs/error.log, then POST /api/v1/system/restart."
            ),
        })
        .await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(7)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_is_started_again_later_each_time() {
        let (services, count) = (Arc::new(Services::default()), Arc::new(AtomicU32::new(0)));
        let (kept, counted) = (services.clone(), count.clone());
        let running = tokio::spawn(async move {
            keep_running(&kept, "hedger", || {
                let (services, number) = (kept.clone(), counted.fetch_add(1, Ordering::SeqCst));
                async move {
                    assert!(number >= 2, "the first two fail");
                    loop {
                        services.beat("hedger", &Stopped);
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            })
            .await;
        });
        // 200 ms and 400 ms of pause.
        tokio::time::sleep(Duration::from_millis(590)).await;
        assert_eq!(count.load(Ordering::SeqCst), 2);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(count.load(Ordering::SeqCst), 3);
        let view = services.views().remove(0);
        assert_eq!((view.state, view.error_count), (ServiceState::Running, 2));
        assert_eq!(view.last_heartbeat, Timestamp::from_millis(7));
        running.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_of_an_account_is_started_again_until_it_ends_by_itself() {
        let count = Arc::new(AtomicU32::new(0));
        revived("test", || {
            let number = count.fetch_add(1, Ordering::SeqCst);
            async move { assert!(number >= 3, "the first three fail") }
        })
        .await;
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stands_still_is_started_again_and_given_up_after_the_sixth_time() {
        let (services, count) = (Services::default(), Arc::new(AtomicU32::new(0)));
        let began = Instant::now();
        keep_running(&services, "hedger", || {
            count.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>()
        })
        .await;
        assert_eq!(count.load(Ordering::SeqCst), 6);
        // A minute and at most five seconds until it is seen, each time.
        assert!(began.elapsed() >= 6 * STILL && began.elapsed() < 6 * (STILL + Duration::from_secs(10)));
        let view = services.views().remove(0);
        assert_eq!((view.state, view.error_count), (ServiceState::Error, 6));
    }
}
