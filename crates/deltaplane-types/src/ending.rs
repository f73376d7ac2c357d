//! How orders and operations end.

use std::fmt;
use std::str::FromStr;

use crate::UnknownName;

/// Where one of our orders stands, in reports and in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OrderState {
    /// In the journal, not sent yet.
    Reserved,
    /// Sent, not answered yet.
    Sent,
    /// The venue has it.
    Accepted,
    /// Its outcome is unknown.
    Unknown,
    /// Traded whole.
    Filled,
    /// Ended by a cancel.
    Canceled,
    /// Ended by its own terms or by the venue.
    Expired,
    /// Never taken by the venue.
    NotAccepted,
    /// Its outcome cannot be shown: a person must resolve it.
    Frozen,
}

impl OrderState {
    const ALL: [Self; 9] = [
        Self::Reserved,
        Self::Sent,
        Self::Accepted,
        Self::Unknown,
        Self::Filled,
        Self::Canceled,
        Self::Expired,
        Self::NotAccepted,
        Self::Frozen,
    ];

    /// Whether its outcome is unknown.
    pub const fn is_unresolved(self) -> bool {
        matches!(self, Self::Unknown | Self::Frozen)
    }

    /// Its public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Sent => "sent",
            Self::Accepted => "accepted",
            Self::Unknown => "unknown",
            Self::Filled => "filled",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::NotAccepted => "notAccepted",
            Self::Frozen => "frozen",
        }
    }
}

impl fmt::Display for OrderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OrderState {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let names = "reserved, sent, accepted, unknown, filled, canceled, expired, notAccepted, frozen";
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| UnknownName(text.to_owned(), names))
    }
}

/// Why a slower operation was stopped at its next slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Preemption {
    /// A policy must shrink both sides.
    Deleverage,
    /// A policy must hedge a critical net delta.
    CriticalHedge,
    /// A flatten of the same accounts.
    Flatten,
    /// The other side of a forced close must shrink.
    ForcedClose,
    /// The kill switch was engaged.
    KillSwitch,
    /// A circuit breaker restricted trading.
    CircuitBreaker,
    /// A trading state forbids what it does.
    TradingState,
    /// The services stop.
    Stop,
    /// An earlier version, whose journal does not say more.
    Unnamed,
}

impl Preemption {
    const ALL: [Self; 9] = [
        Self::Deleverage,
        Self::CriticalHedge,
        Self::Flatten,
        Self::ForcedClose,
        Self::KillSwitch,
        Self::CircuitBreaker,
        Self::TradingState,
        Self::Stop,
        Self::Unnamed,
    ];

    /// Its public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deleverage => "deleverage",
            Self::CriticalHedge => "critical-hedge",
            Self::Flatten => "flatten",
            Self::ForcedClose => "forced-close",
            Self::KillSwitch => "kill-switch",
            Self::CircuitBreaker => "circuit-breaker",
            Self::TradingState => "trading-state",
            Self::Stop => "stop",
            Self::Unnamed => "unnamed",
        }
    }

    /// What preempted the operation, as a sentence goes on after "preempted by".
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Deleverage => "a deleverage of its policy",
            Self::CriticalHedge => "a hedge of a critical net delta",
            Self::Flatten => "a flatten",
            Self::ForcedClose => "the response to a forced close",
            Self::KillSwitch => "the kill switch",
            Self::CircuitBreaker => "a circuit breaker",
            Self::TradingState => "a change of the trading state",
            Self::Stop => "a stop of the services",
            Self::Unnamed => "a more urgent operation",
        }
    }
}

impl fmt::Display for Preemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preemption {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let names = "deleverage, critical-hedge, flatten, forced-close, kill-switch, circuit-breaker, trading-state, stop, unnamed";
        let known = Self::ALL.into_iter().find(|preemption| preemption.as_str() == text);
        known.ok_or_else(|| UnknownName(text.to_owned(), names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for state in OrderState::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        for preemption in Preemption::ALL {
            assert_eq!(preemption.to_string().parse(), Ok(preemption));
        }
        assert!("doubtful".parse::<OrderState>().is_err());
        assert!("haste".parse::<Preemption>().is_err());
    }
}
