//! What many connections have to say at once, told seldom.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lets one message through in a while and counts the others: sixty price streams that end together are one event to
/// the reader of the log.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    /// When the newest message passed, and how many were held back since then.
    state: Mutex<(Option<Instant>, u64)>,
}

impl Seldom {
    /// Lets one through in this time.
    pub const fn new(every: Duration) -> Self {
        Self { every, state: Mutex::new((None, 0)) }
    }

    /// Whether a message passes now: how many were held back before it, else none.
    pub fn passes(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0.is_some_and(|at| at.elapsed() < self.every) {
            state.1 = state.1.saturating_add(1);
            return None;
        }
        state.0 = Some(Instant::now());
        Some(std::mem::take(&mut state.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_passes_in_a_while_and_says_how_many_did_not() {
        let seldom = Seldom::new(Duration::from_secs(10));
        assert_eq!([seldom.passes(), seldom.passes(), seldom.passes()], [Some(0), None, None]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!([seldom.passes(), seldom.passes()], [Some(2), None]);
    }
}
