//! What may be traded, and what somebody should look at.

use std::fmt;
use std::str::FromStr;

/// What may be traded at all. The stricter one is the larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TradingState {
    /// Everything inside the limits.
    #[default]
    Running,
    /// Only what reduces risk.
    ReduceOnly,
    /// Nothing new; what is out is settled.
    Halted,
}

/// A name that is not one of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of {1}")]
pub struct UnknownName(String, &'static str);

impl fmt::Display for TradingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "RUNNING",
            Self::ReduceOnly => "REDUCE_ONLY",
            Self::Halted => "HALTED",
        })
    }
}

impl FromStr for TradingState {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::Running, Self::ReduceOnly, Self::Halted]
            .into_iter()
            .find(|state| state.to_string() == text)
            .ok_or_else(|| UnknownName(text.to_owned(), "RUNNING, REDUCE_ONLY, HALTED"))
    }
}

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertKind {
    /// A position that our orders do not explain, an order in doubt, a loss on one side only.
    Execution,
    /// The journal, the clock, a key, the kill switch.
    System,
}

impl fmt::Display for AlertKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Execution => "execution-alert",
            Self::System => "system-alert",
        })
    }
}

impl FromStr for AlertKind {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::Execution, Self::System]
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| UnknownName(text.to_owned(), "execution-alert, system-alert"))
    }
}

/// How much an alert matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertSeverity {
    /// For information.
    Info,
    /// Somebody should look.
    Warn,
    /// Somebody must act.
    Critical,
}

impl fmt::Display for AlertSeverity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Critical => "CRITICAL",
        })
    }
}

impl FromStr for AlertSeverity {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::Info, Self::Warn, Self::Critical]
            .into_iter()
            .find(|severity| severity.to_string() == text)
            .ok_or_else(|| UnknownName(text.to_owned(), "INFO, WARN, CRITICAL"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for state in [TradingState::Running, TradingState::ReduceOnly, TradingState::Halted] {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        let error = "PAUSE".parse::<TradingState>().unwrap_err();
        assert_eq!(error.to_string(), "\"PAUSE\" is not one of RUNNING, REDUCE_ONLY, HALTED");
        assert!(
            TradingState::Halted > TradingState::ReduceOnly && AlertSeverity::Critical > AlertSeverity::Warn
        );
    }
}
