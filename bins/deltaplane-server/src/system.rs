//! The real clock, the real names and the process's own figures. Each is made here, once.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_api::Vitals;
use deltaplane_ports::{Clock, IdSource};
use deltaplane_types::{Decimal, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// A step of the wall clock against the time that passed: smaller differences are corrections of its speed.
const STEP_MS: i64 = 1_000;

/// The wall clock, which never goes back. Time in which the machine slept counts.
///
/// A step forward is followed: every reading of before is old then. A step back is not: what was read before it would look as
/// if it came from the future, and stay young. The clock then goes on with the time that passes.
pub(crate) struct WallClock {
    read: fn() -> Times,
    /// The wall clock less the time since the machine started.
    offset: AtomicI64,
    newest: AtomicI64,
    is_ahead: AtomicBool,
}

/// What the system's clocks say, milliseconds.
#[derive(Clone, Copy)]
struct Times {
    /// Since 1970, UTC.
    wall: i64,
    /// Since the machine started, sleep counted.
    since_boot: i64,
}

impl WallClock {
    pub(crate) fn start() -> Self {
        Self::reading(system_times)
    }

    fn reading(read: fn() -> Times) -> Self {
        let Times { wall, since_boot } = read();
        let (offset, newest) = (AtomicI64::new(wall.saturating_sub(since_boot)), AtomicI64::new(wall));
        Self { read, offset, newest, is_ahead: AtomicBool::new(false) }
    }
}

fn system_times() -> Times {
    let millis = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec.saturating_mul(1_000).saturating_add(time.tv_nsec / 1_000_000)
    };
    Times { wall: millis(ClockId::Realtime), since_boot: millis(ClockId::Boottime) }
}

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let Times { wall, since_boot } = (self.read)();
        let expected = since_boot.saturating_add(self.offset.load(Ordering::SeqCst));
        let stepped = wall.saturating_sub(expected);
        let now = if stepped < -STEP_MS {
            if !self.is_ahead.swap(true, Ordering::SeqCst) {
                tracing::warn!(
                    back_ms = -stepped,
                    "the system's clock stepped back and is not followed: every time that is shown is ahead by that until the server is started again"
                );
            }
            expected
        } else {
            self.is_ahead.store(false, Ordering::SeqCst);
            self.offset.store(wall.saturating_sub(since_boot), Ordering::SeqCst);
            if stepped > STEP_MS {
                tracing::warn!(
                    forward_ms = stepped,
                    "the system's clock stepped forward: all readings are old now"
                );
            }
            wall
        };
        Timestamp::from_millis(self.newest.fetch_max(now, Ordering::SeqCst).max(now))
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

#[cfg(test)]
mod tests {
    use super::*;

    static WALL: AtomicI64 = AtomicI64::new(1_000_000);
    static BOOT: AtomicI64 = AtomicI64::new(5_000);

    /// One clock through a day: it runs, the machine sleeps, the wall clock is set forward, slowed down and set back.
    #[test]
    fn the_clock_counts_sleep_follows_steps_forward_and_never_goes_back() {
        let read = || Times { wall: WALL.load(Ordering::SeqCst), since_boot: BOOT.load(Ordering::SeqCst) };
        let clock = WallClock::reading(read);
        let after = |wall: i64, boot: i64| {
            WALL.fetch_add(wall, Ordering::SeqCst);
            BOOT.fetch_add(boot, Ordering::SeqCst);
            clock.now().as_millis()
        };
        assert_eq!(after(0, 0), 1_000_000);
        assert_eq!(after(250, 250), 1_000_250);
        assert_eq!(after(28_800_000, 28_800_000), 29_800_250, "eight hours of sleep");
        assert_eq!(after(3_600_100, 100), 33_400_350, "set forward by an hour");
        assert_eq!(after(-400, 100), 33_400_350, "half a second back: it waits");
        assert_eq!(after(900, 900), 33_400_850, "and goes on");
        assert_eq!(after(-7_199_900, 100), 33_400_950, "two hours back: it goes on with what passes");
        assert_eq!(after(50, 50), 33_401_000);
        assert_eq!(after(7_200_000, 0), 33_401_000, "and forward again: as if nothing was");
    }
}
