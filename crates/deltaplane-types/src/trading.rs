//! Trading restrictions and alerts.

use std::fmt;
use std::str::FromStr;

use crate::{AccountId, Symbol};

/// What may be traded at all. The stricter one is the larger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TradingState {
    /// Everything inside the limits.
    #[default]
    Running,
    /// Nothing new begins but what only reduces; what runs goes on to its end.
    Paused,
    /// Only what reduces risk.
    ReduceOnly,
    /// Nothing new; what is out is settled.
    Halted,
}

/// What a trading state is about. The strictest of those that concern an order holds for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TradingScope {
    /// Everything.
    Global,
    /// One account.
    Account(AccountId),
    /// One symbol on every account.
    Symbol(Symbol),
}

impl fmt::Display for TradingScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("everything"),
            Self::Account(account) => write!(f, "account {account}"),
            Self::Symbol(symbol) => write!(f, "symbol {symbol}"),
        }
    }
}

/// A name that is not one of the known ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not one of {1}")]
pub struct UnknownName(pub(crate) String, pub(crate) &'static str);

impl fmt::Display for TradingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::ReduceOnly => "REDUCE_ONLY",
            Self::Halted => "HALTED",
        })
    }
}

impl FromStr for TradingState {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        [Self::Running, Self::Paused, Self::ReduceOnly, Self::Halted]
            .into_iter()
            .find(|state| state.to_string() == text)
            .ok_or_else(|| UnknownName(text.to_owned(), "RUNNING, PAUSED, REDUCE_ONLY, HALTED"))
    }
}

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertKind {
    /// A position that our orders do not explain, an unresolved order, a loss on one side only.
    Execution,
    /// The journal, the clock, a key, the kill switch.
    System,
    /// Net delta is off its target.
    Delta,
    /// Margin: utilization, margin ratio, distance to liquidation.
    Utilization,
    /// The active price feed changed.
    Failover,
    /// A proxy fails.
    Proxy,
}

impl AlertKind {
    const ALL: [Self; 6] =
        [Self::Execution, Self::System, Self::Delta, Self::Utilization, Self::Failover, Self::Proxy];
}

impl fmt::Display for AlertKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Execution => "execution-alert",
            Self::System => "system-alert",
            Self::Delta => "delta-alert",
            Self::Utilization => "utilization-alert",
            Self::Failover => "failover-alert",
            Self::Proxy => "proxy-alert",
        })
    }
}

impl FromStr for AlertKind {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| {
            let names =
                "execution-alert, system-alert, delta-alert, utilization-alert, failover-alert, proxy-alert";
            UnknownName(text.to_owned(), names)
        })
    }
}

/// How much an alert matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlertSeverity {
    /// For information.
    Info,
    /// Look at it soon.
    Warn,
    /// Act now.
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
        let states =
            [TradingState::Running, TradingState::Paused, TradingState::ReduceOnly, TradingState::Halted];
        for state in states {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        for kind in AlertKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "PAUSE".parse::<TradingState>().unwrap_err();
        assert_eq!(error.to_string(), "\"PAUSE\" is not one of RUNNING, PAUSED, REDUCE_ONLY, HALTED");
        assert!(
            TradingState::Halted > TradingState::ReduceOnly
                && TradingState::Paused < TradingState::ReduceOnly
                && AlertSeverity::Critical > AlertSeverity::Warn
        );
    }
}
