//! The public error codes.

/// What happened, as the control API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// 1000: a request that cannot be understood.
    InvalidRequest,
    /// 1001: an account id that is malformed or not configured.
    InvalidAccount,
    /// 1002: the deviation is or would end beyond the limit.
    DeltaBeyondLimit,
    /// 1003: a venue refused or failed a leg.
    HedgeFailed,
    /// 1004: blocked by a risk alert or the kill switch.
    RiskBlocked,
    /// 1005: no usable price.
    MarketDataUnavailable,
    /// 1006: another operation holds the symbol and account.
    Conflict,
    /// 1007: the system is stopped or starting.
    NotRunning,
    /// 1008: no such thing.
    NotFound,
    /// 1009: the plan that was asked for cannot be carried out any more.
    PlanChanged,
    /// 2001: the operation's time ran out.
    Timeout,
    /// 2002: the account's proxy failed.
    ProxyFailed,
    /// 3001: not permitted.
    NotPermitted,
    /// 3002: too many requests.
    TooManyRequests,
    /// 9000: a defect of ours.
    Internal,
}

impl Code {
    /// Every code, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::InvalidRequest,
        Self::InvalidAccount,
        Self::DeltaBeyondLimit,
        Self::HedgeFailed,
        Self::RiskBlocked,
        Self::MarketDataUnavailable,
        Self::Conflict,
        Self::NotRunning,
        Self::NotFound,
        Self::PlanChanged,
        Self::Timeout,
        Self::ProxyFailed,
        Self::NotPermitted,
        Self::TooManyRequests,
        Self::Internal,
    ];

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::InvalidRequest => 1000,
            Self::InvalidAccount => 1001,
            Self::DeltaBeyondLimit => 1002,
            Self::HedgeFailed => 1003,
            Self::RiskBlocked => 1004,
            Self::MarketDataUnavailable => 1005,
            Self::Conflict => 1006,
            Self::NotRunning => 1007,
            Self::NotFound => 1008,
            Self::PlanChanged => 1009,
            Self::Timeout => 2001,
            Self::ProxyFailed => 2002,
            Self::NotPermitted => 3001,
            Self::TooManyRequests => 3002,
            Self::Internal => 9000,
        }
    }

    /// The code with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }
}
