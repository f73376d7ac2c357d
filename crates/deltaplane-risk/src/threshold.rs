//! When a number is an alert, and when it is none any more.

use deltaplane_math::{MathError, add, mul_rounded, sub};
use deltaplane_types::{AlertSeverity, Decimal, Ratio};

/// Two steps of a number, with hysteresis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// From here on WARN.
    pub warn: Ratio,
    /// From here on CRITICAL.
    pub critical: Ratio,
    /// Whether small is bad, as with a distance to liquidation.
    pub falling: bool,
}

impl Threshold {
    /// A number that must not get large.
    pub const fn rising(warn: Ratio, critical: Ratio) -> Self {
        Self { warn, critical, falling: false }
    }

    /// A number that must not get small.
    pub const fn falling(warn: Ratio, critical: Ratio) -> Self {
        Self { warn, critical, falling: true }
    }

    /// The severity of a value, where the last one was `before`. A step that was passed counts until the value is
    /// better than the step by more than `hysteresis` of it.
    ///
    /// # Errors
    ///
    /// [`MathError`] beyond what can be held.
    pub fn severity(
        &self,
        value: Ratio,
        before: Option<AlertSeverity>,
        hysteresis: Ratio,
    ) -> Result<Option<AlertSeverity>, MathError> {
        for (step, severity) in [(self.critical, AlertSeverity::Critical), (self.warn, AlertSeverity::Warn)] {
            let was = before.is_some_and(|before| before >= severity);
            let room = if was { mul_rounded(step.value(), hysteresis.value())? } else { Decimal::ZERO };
            let passed = if self.falling {
                let edge = add(step.value(), room)?;
                value.value() <= edge
            } else {
                let edge = sub(step.value(), room)?;
                value.value() >= edge
            };
            if passed {
                return Ok(Some(severity));
            }
        }
        Ok(None)
    }
}

/// From where on the state of a book is an alert. The defaults are those of the control API and its documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlertThresholds {
    /// Deviation of net delta over the reference exposure.
    pub delta: Threshold,
    /// Initial margin over equity.
    pub utilization: Threshold,
    /// Maintenance margin over equity: liquidation is at 1.
    pub margin_ratio: Threshold,
    /// Adverse joint move to liquidation.
    pub liquidation_distance: Threshold,
    /// Days until funding has brought an account's margin ratio to its CRITICAL.
    pub runway_days: Threshold,
    /// Part of the value of all positions in a symbol that a day's funding must cost: from here on WARN, until it
    /// earns again.
    pub carry_per_day: Ratio,
    /// Place in a venue's queue for auto-deleveraging, 1 to 5: from here on WARN.
    pub adl_rank: u8,
    /// Part of a threshold by which a value must be better before its alert ends.
    pub hysteresis: Ratio,
}

impl Default for AlertThresholds {
    fn default() -> Self {
        let percent = |number: i128| Ratio::new(Decimal::from_i128_with_scale(number, 2));
        Self {
            delta: Threshold::rising(percent(10), percent(25)),
            utilization: Threshold::rising(percent(80), percent(95)),
            margin_ratio: Threshold::rising(percent(50), percent(80)),
            liquidation_distance: Threshold::falling(percent(15), percent(8)),
            runway_days: Threshold::falling(percent(300), percent(100)),
            carry_per_day: Ratio::new(Decimal::from_i128_with_scale(1, 4)),
            adl_rank: 4,
            hysteresis: percent(20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AlertSeverity::{Critical, Warn};

    fn walk(threshold: Threshold, values: &[i128]) -> Vec<Option<AlertSeverity>> {
        let hysteresis = Ratio::new(Decimal::from_i128_with_scale(2, 1));
        let mut before = None;
        values
            .iter()
            .map(|value| {
                let value = Ratio::new(Decimal::from_i128_with_scale(*value, 3));
                before = threshold.severity(value, before, hysteresis).unwrap();
                before
            })
            .collect()
    }

    #[test]
    fn a_value_near_a_threshold_does_not_make_its_alert_flap() {
        let seen = walk(AlertThresholds::default().utilization, &[799, 800, 799, 641, 640, 639, 640, 800]);
        let (none, warn) = (None, Some(Warn));
        assert_eq!(seen, [none, warn, warn, warn, warn, none, none, warn]);
    }

    #[test]
    fn severity_rises_and_falls_by_the_same_rule() {
        let seen = walk(AlertThresholds::default().utilization, &[950, 761, 760, 759, 900, 950]);
        assert_eq!(seen, [Critical, Critical, Critical, Warn, Warn, Critical].map(Some));
    }

    #[test]
    fn for_a_distance_small_is_bad() {
        let seen = walk(AlertThresholds::default().liquidation_distance, &[151, 150, 180, 181, 80, 96, 97]);
        assert_eq!(seen, [None, Some(Warn), Some(Warn), None, Some(Critical), Some(Critical), Some(Warn)]);
    }
}
