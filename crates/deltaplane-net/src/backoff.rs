//! Waiting between attempts to reconnect. Never used for orders.

use std::time::Duration;

/// Doubles from a first wait up to a last one.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits `first`, then twice that, up to `last`.
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, next: first }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = self.next.saturating_mul(2).min(self.last);
        wait
    }

    /// Begins again: the last attempt worked.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}
