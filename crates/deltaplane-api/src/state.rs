//! What every handler shares.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{AnswerStore, Clock, ControlPlane};
use deltaplane_types::{Decimal, Timestamp};

use crate::guard::auth::ApiKey;
use crate::prepared::Prepared;

/// Measures the process.
pub trait Vitals: Send + Sync {
    /// Resident memory in MB.
    fn memory_mb(&self) -> Decimal;
    /// CPU as a fraction of one core.
    fn cpu(&self) -> Decimal;
}

/// What every handler shares.
pub struct ApiState {
    /// What is asked.
    pub plane: Arc<dyn ControlPlane>,
    /// Where answers to repeated requests are kept.
    pub answers: Arc<dyn AnswerStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The key that every request needs; none only in paper mode on loopback.
    pub api_key: Option<ApiKey>,
    /// Names under which the server is reached beside those of this machine, with no port.
    pub public_hosts: Vec<String>,
    /// Whether real orders are sent: a hedge with a side then needs an idempotency key.
    pub live: bool,
    /// Measures the process.
    pub vitals: Arc<dyn Vitals>,
    /// The last minute's requests.
    pub traffic: Traffic,
    /// Answers that are asked for all the time.
    pub prepared: Prepared,
}

/// The last minute's requests.
#[derive(Default)]
pub struct Traffic(Mutex<Window>);

/// Requests with the microseconds that each took, and their sum.
#[derive(Default)]
struct Window {
    seen: VecDeque<(Timestamp, u64)>,
    micros: u64,
}

const MINUTE: Duration = Duration::from_secs(60);
const MOST: usize = 100_000;

impl Window {
    fn forget(&mut self, now: Timestamp) {
        while let Some((then, micros)) = self.seen.front().copied()
            && (self.seen.len() >= MOST || now.since(then) > MINUTE)
        {
            self.seen.pop_front();
            self.micros = self.micros.saturating_sub(micros);
        }
    }
}

impl Traffic {
    pub(crate) fn record(&self, at: Timestamp, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.forget(at);
        window.seen.push_back((at, micros));
        window.micros = window.micros.saturating_add(micros);
    }

    /// Mean response time in milliseconds over the last minute.
    pub(crate) fn mean_ms(&self, now: Timestamp) -> Decimal {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.forget(now);
        let count = u64::try_from(window.seen.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return Decimal::ZERO;
        }
        Decimal::from(window.micros / count) / Decimal::ONE_THOUSAND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_counts_and_nothing_before() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1_000);
        let text = |traffic: &Traffic, now| traffic.mean_ms(at(now)).normalize().to_string();
        let traffic = Traffic::default();
        assert_eq!(text(&traffic, 0), "0");
        for (second, millis) in [(0, 10), (30, 20), (59, 30)] {
            traffic.record(at(second), Duration::from_millis(millis));
        }
        // 60 ms over three requests.
        assert_eq!(text(&traffic, 60), "20");
        assert_eq!(text(&traffic, 61), "25");
        assert_eq!(text(&traffic, 120), "0");
    }
}
