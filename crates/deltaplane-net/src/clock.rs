//! The difference between our clock and a venue's.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use deltaplane_types::Timestamp;

/// How well a venue's clock must be known to time its prices by it.
const TIMING_MS: i64 = 250;

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

    /// Takes the venue's time, which has steps of `resolution`, cut off: it lies in the middle of a step.
    pub fn observe_coarse(
        &self,
        sent: Timestamp,
        venue: Timestamp,
        received: Timestamp,
        resolution: Duration,
    ) {
        let half_step = i64::try_from(resolution.as_millis()).unwrap_or(i64::MAX) / 2;
        let half = received.as_millis().saturating_sub(sent.as_millis()).max(0) / 2;
        let uncertainty = half.saturating_add(half_step).saturating_add(1);
        let ours = sent.as_millis().saturating_add(half);
        let offset = venue.as_millis().saturating_add(half_step).saturating_sub(ours);
        let (known, unresolved) =
            (self.offset_ms.load(Ordering::Relaxed), self.uncertainty_ms.load(Ordering::Relaxed));
        // A coarse clock seen again and again says nothing new while both readings can be true.
        let agrees = unresolved <= uncertainty
            && offset.saturating_sub(known).abs() <= uncertainty.saturating_add(unresolved);
        if !agrees {
            self.offset_ms.store(offset, Ordering::Relaxed);
            self.uncertainty_ms.store(uncertainty, Ordering::Relaxed);
        }
    }

    /// Forgets what was known: nothing may be signed until the next observation.
    pub fn invalidate(&self) {
        self.uncertainty_ms.store(i64::MAX, Ordering::Relaxed);
    }

    /// The venue's time, if it is known well enough to time prices by it.
    pub fn timing(&self, ours: Timestamp) -> Option<Timestamp> {
        self.venue_time(ours, TIMING_MS)
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

    #[test]
    fn a_clock_of_whole_seconds_is_known_to_half_of_one() {
        let at = Timestamp::from_millis;
        let clock = ClockOffset::default();
        // Asked at 1000, answered at 1100 with "second 3": it was between 3000 and 3999, on average 3500.
        clock.observe_coarse(at(1_000), at(3_000), at(1_100), Duration::from_secs(1));
        assert_eq!(clock.venue_time(at(2_000), 500), None);
        assert_eq!(clock.venue_time(at(2_000), 551), Some(at(4_450)));
        // The next second agrees and changes nothing.
        clock.observe_coarse(at(1_400), at(4_000), at(1_500), Duration::from_secs(1));
        assert_eq!(clock.venue_time(at(2_000), 551), Some(at(4_450)));
        // A jump of ten seconds does not.
        clock.observe_coarse(at(1_600), at(14_000), at(1_700), Duration::from_secs(1));
        assert_eq!(clock.venue_time(at(2_000), 551), Some(at(14_850)));
    }
}
