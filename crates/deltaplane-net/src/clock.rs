//! The difference between our clock and a venue's.

use std::sync::atomic::{AtomicI64, Ordering};

use deltaplane_types::Timestamp;

/// Offset to add to our time to get the venue's, with how far it may be off.
#[derive(Debug)]
pub struct ClockOffset {
    offset_ms: AtomicI64,
    uncertainty_ms: AtomicI64,
}

impl Default for ClockOffset {
    fn default() -> Self {
        Self { offset_ms: AtomicI64::new(0), uncertainty_ms: AtomicI64::new(i64::MAX) }
    }
}

impl ClockOffset {
    /// Takes the venue's time that came as the answer to a question asked at `sent` and answered at `received`.
    pub fn observe(&self, sent: Timestamp, venue: Timestamp, received: Timestamp) {
        let half = received.as_millis().saturating_sub(sent.as_millis()).max(0) / 2;
        let ours = sent.as_millis().saturating_add(half);
        self.offset_ms.store(venue.as_millis().saturating_sub(ours), Ordering::Relaxed);
        self.uncertainty_ms.store(half.saturating_add(1), Ordering::Relaxed);
    }

    /// Forgets what was known: nothing may be signed until the next observation.
    pub fn invalidate(&self) {
        self.uncertainty_ms.store(i64::MAX, Ordering::Relaxed);
    }

    /// The venue's time, if it is known to within `most_ms`.
    pub fn venue_time(&self, ours: Timestamp, most_ms: i64) -> Option<Timestamp> {
        if self.uncertainty_ms.load(Ordering::Relaxed) > most_ms {
            return None;
        }
        Some(Timestamp::from_millis(ours.as_millis().saturating_add(self.offset_ms.load(Ordering::Relaxed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_taken_at_the_middle_of_the_round_trip() {
        let at = Timestamp::from_millis;
        let clock = ClockOffset::default();
        assert_eq!(clock.venue_time(at(0), 1_000), None);
        clock.observe(at(1_000), at(3_500), at(1_200));
        assert_eq!(clock.venue_time(at(2_000), 750), Some(at(4_400)));
        assert_eq!(clock.venue_time(at(2_000), 100), None);
        clock.invalidate();
        assert_eq!(clock.venue_time(at(2_000), 750), None);
    }
}
