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
pub struct Traffic(Mutex<VecDeque<(Timestamp, Duration)>>);

const MINUTE: Duration = Duration::from_secs(60);
const MOST: usize = 100_000;

impl Traffic {
    pub(crate) fn record(&self, at: Timestamp, took: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while seen.len() >= MOST || seen.front().is_some_and(|(then, _)| at.since(*then) > MINUTE) {
            seen.pop_front();
        }
        seen.push_back((at, took));
    }

    /// Mean response time in milliseconds and requests per second over the last minute.
    pub(crate) fn summary(&self, now: Timestamp) -> (Decimal, Decimal) {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = seen.iter().filter(|(then, _)| now.since(*then) <= MINUTE);
        let (mut count, mut micros) = (0_u64, 0_u64);
        for (_, took) in recent {
            count = count.saturating_add(1);
            micros = micros.saturating_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        if count == 0 {
            return (Decimal::ZERO, Decimal::ZERO);
        }
        let mean = Decimal::from(micros / count) / Decimal::ONE_THOUSAND;
        (mean, (Decimal::from(count) / Decimal::from(60)).round_dp(3))
    }
}
