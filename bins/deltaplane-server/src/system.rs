//! The real clock, the real names and the process's own figures. Each is made here, once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_api::Vitals;
use deltaplane_ports::{Clock, IdSource};
use deltaplane_types::{Decimal, Timestamp};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// The wall clock at the start, and the time that passed since: a step of the system's clock moves nothing.
pub(crate) struct WallClock {
    started: tokio::time::Instant,
    origin: Timestamp,
}

impl WallClock {
    #[expect(clippy::disallowed_methods, reason = "the real clock is made here, once")]
    pub(crate) fn start() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let origin = Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
        Self { started: tokio::time::Instant::now(), origin }
    }
}

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        self.origin.after(self.started.elapsed())
    }
}

/// Time-ordered random names.
pub(crate) struct RandomIds;

impl IdSource for RandomIds {
    fn unique(&self) -> String {
        uuid::Uuid::now_v7().simple().to_string()
    }
}

/// 32 random bytes.
pub(crate) fn random_secret() -> [u8; 32] {
    let mut secret = [0; 32];
    let (first, second) = secret.split_at_mut(16);
    first.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    second.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    secret
}

#[derive(Clone, Copy, Default)]
struct Figures {
    memory_mb: Decimal,
    cpu: Decimal,
}

/// The process's memory and CPU, measured once a second.
#[derive(Clone, Default)]
pub(crate) struct ProcessVitals(Arc<Mutex<Figures>>);

impl ProcessVitals {
    /// Measures until dropped.
    pub(crate) async fn measure(self) {
        let pid = Pid::from_u32(std::process::id());
        let Ok(mut system) = System::new() else { return };
        loop {
            let kinds = ProcessRefreshKind::nothing().with_memory().with_cpu();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, kinds);
            if let Some(process) = system.process(pid) {
                let memory_mb = Decimal::from(process.memory() / 1_024) / Decimal::from(1_024);
                let percent = Decimal::try_from(process.cpu_usage()).unwrap_or_default();
                let figures = Figures {
                    memory_mb: memory_mb.round_dp(1),
                    cpu: (percent / Decimal::ONE_HUNDRED).round_dp(3),
                };
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = figures;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn figures(&self) -> Figures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vitals for ProcessVitals {
    fn memory_mb(&self) -> Decimal {
        self.figures().memory_mb
    }

    fn cpu(&self) -> Decimal {
        self.figures().cpu
    }
}
