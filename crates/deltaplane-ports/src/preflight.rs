//! What is looked at before an account may trade.

use std::fmt;

use deltaplane_types::RefusalReason;

use crate::venue::ReadError;

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The venue's clock against ours.
    Clock,
    /// What the key may do.
    Permissions,
    /// Whether longs and shorts of a symbol are held apart.
    PositionMode,
    /// Cross or isolated margin, and the leverage.
    Margin,
    /// Whether the signing key is bound to the account, and until when.
    Agent,
    /// Whether the venue lets an account in that never made a deposit.
    Deposit,
    /// Money that stands behind positions.
    Collateral,
    /// Whether another account of the configuration is the same account at the venue.
    Login,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clock => "clock",
            Self::Permissions => "permissions",
            Self::PositionMode => "positionMode",
            Self::Margin => "margin",
            Self::Agent => "agent",
            Self::Deposit => "deposit",
            Self::Collateral => "collateral",
            Self::Login => "login",
        })
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// It works, and needs attention.
    Warning,
    /// It could not be looked at: the account may not trade unless an earlier look found it well.
    Unknown,
    /// The account may not trade.
    Blocking,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fine => "fine",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Blocking => "blocking",
        })
    }
}

/// What was found, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, with the numbers.
    pub text: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    /// A finding that asks for nothing.
    pub fn fine(check: Check, text: impl Into<String>) -> Self {
        Self { check, severity: Severity::Fine, text: text.into(), remedy: String::new() }
    }

    /// A finding that needs attention.
    pub fn warning(check: Check, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, text: text.into(), remedy: remedy.into() }
    }

    /// What the venue did not tell: unknown if that passes on its own, else it keeps the account out.
    pub fn untold(check: Check, error: &ReadError) -> Self {
        let (severity, remedy) = match error {
            ReadError::Unreachable(_) => (
                Severity::Unknown,
                "check the network and the exchange's rest_url; the check repeats shortly",
            ),
            ReadError::Proxy(_) => {
                (Severity::Unknown, "check the account's proxy; the check repeats shortly")
            }
            ReadError::Refused(refusal) if refusal.reason == RefusalReason::NotPermitted => (
                Severity::Blocking,
                "check the key, its rights and its address limits by what the venue said",
            ),
            ReadError::UnknownSymbol(_) => (Severity::Warning, "do not trade the symbol on this account"),
            ReadError::Refused(_) | ReadError::Unreadable(_) | ReadError::Withheld(_) => {
                (Severity::Unknown, "see what the venue said; the check repeats shortly")
            }
        };
        let text = format!("the check failed: {error}");
        Self { check, severity, text, remedy: remedy.to_owned() }
    }

    /// A finding that keeps the account out of trading.
    pub fn blocking(check: Check, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, severity: Severity::Blocking, text: text.into(), remedy: remedy.into() }
    }
}
