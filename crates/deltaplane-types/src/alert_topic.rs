//! The conditions that alerts tell of.

use std::fmt;
use std::str::FromStr;

use crate::UnknownName;

/// Declares the topics: variant, public name, the name of before, and what the condition is.
macro_rules! topics {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal $(was $old:literal)?,)+) => {
        /// Which condition an alert tells of. Its name is public: in answers, in the journal and in the documentation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum AlertTopic {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl AlertTopic {
            /// Every topic.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its public name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Its name in earlier versions, which journals hold.
            pub const fn old_name(self) -> Option<&'static str> {
                match self {
                    $(Self::$variant => topics!(@old $($old)?),)+
                }
            }

            /// The condition in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
    (@old) => { None };
    (@old $old:literal) => { Some($old) };
}

topics! {
    /// Net delta of a symbol is off its target.
    Delta "delta",
    /// Margin utilization of an account is high.
    Utilization "utilization",
    /// Maintenance margin of an account is near its equity.
    MarginRatio "margin-ratio",
    /// A price move of this size would liquidate an account.
    LiquidationDistance "liquidation-distance",
    /// The equity of an account is zero or negative.
    Equity "equity",
    /// At today's funding the margin of an account lasts for few days.
    Runway "runway",
    /// The positions of a symbol pay funding on balance.
    Carry "carry",
    /// A position is among the first that its venue would close in an auto-deleveraging.
    AdlRank "adl-rank",
    /// A position is in a contract that is halted, delisted or about to end.
    Delisting "delisting",
    /// An account cannot be read.
    AccountStale "account-stale" was "account-silent",
    /// An account is read, and its positions cannot be valued.
    ValuationUnavailable "valuation-unavailable" was "account-unvalued",
    /// The journal has orders on an account that is not configured any more.
    AccountGone "account-gone",
    /// The private stream of an account and its reads differ.
    StateMismatch "state-mismatch",
    /// A position changed and no order of ours did it.
    ExternalActivity "external-activity" was "outside-activity",
    /// An account holds a position in a contract that has no symbol.
    UnmappedPosition "unmapped-position",
    /// A row of an exchange's answer could not be read and was left out.
    UnreadableRow "unreadable-row",
    /// Prices of one symbol differ so much between exchanges that they are not one coin.
    SymbolMismatch "symbol-mismatch",
    /// The outcome of an order is unknown for long.
    OrderUnresolved "order-unresolved" was "order-in-doubt",
    /// The final state of an order cannot be shown: a person must resolve it.
    FrozenOrder "frozen-order",
    /// An order traded after its operation had ended.
    OrderReopened "order-reopened",
    /// An operation traded one side and the other side could not follow.
    LegUnhedged "leg-unhedged" was "one-legged",
    /// A flatten left positions open.
    FlattenIncomplete "flatten-incomplete" was "not-flat",
    /// A hedge is incomplete because the price moved beyond its cap.
    PriceBeyondCap "price-beyond-cap" was "market-left-cap",
    /// A forced close could not be followed on the other side.
    LossResponse "loss-response",
    /// The operations of a policy do not reach what they are for.
    Policy "policy",
    /// The kill switch is engaged.
    KillSwitch "kill-switch",
    /// The kill switch could not cancel orders that may rest.
    KillSwitchCancel "kill-switch-cancel",
    /// A venue rejected many orders of an account in a row.
    BreakerRefusals "breaker-refusals",
    /// Positions of an account changed without explanation several times in an hour.
    BreakerMismatches "breaker-mismatches",
    /// Slippage of an hour passed its limit.
    BreakerSlippage "breaker-slippage",
    /// The loss of 24 hours passed its limit.
    BreakerLoss "breaker-loss",
    /// The active price feed changed or failed.
    Failover "failover",
    /// A price feed does not follow a symbol.
    NotFollowed "not-followed",
    /// A proxy fails.
    Proxy "proxy",
    /// The journal failed, or lost rows that an exchange shows.
    Journal "journal",
    /// A service of the engine stands still or fails again and again.
    Service "service",
}

impl fmt::Display for AlertTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AlertTopic {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let known = Self::ALL.iter().find(|topic| topic.as_str() == text || topic.old_name() == Some(text));
        known.copied().ok_or_else(|| UnknownName(text.to_owned(), "the alert topics"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_and_of_earlier_versions_are_read() {
        for topic in AlertTopic::ALL {
            assert_eq!(topic.as_str().parse(), Ok(*topic));
        }
        assert_eq!("one-legged".parse(), Ok(AlertTopic::LegUnhedged));
        assert_eq!("market-left-cap".parse(), Ok(AlertTopic::PriceBeyondCap));
        let error = "no-such-topic".parse::<AlertTopic>().unwrap_err().to_string();
        assert_eq!(error, "\"no-such-topic\" is not one of the alert topics");
    }
}
