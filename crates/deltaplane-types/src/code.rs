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

    /// What it says, in one sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::InvalidRequest => {
                "The request cannot be understood: a field is missing, unknown or out of range."
            }
            Self::InvalidAccount => "An account id is malformed or not configured.",
            Self::DeltaBeyondLimit => {
                "The deviation is, or would end, beyond its limit: order-book depth, lot sizes or price caps left it short."
            }
            Self::HedgeFailed => "A venue rejected an order; its code and words are in `error`.",
            Self::RiskBlocked => "A limit, a trading state or an alert of deltaplane rejected the request.",
            Self::MarketDataUnavailable => "There is no usable price.",
            Self::Conflict => "Another operation holds the symbol and account, or preempted this one.",
            Self::NotRunning => "The services are stopped or starting.",
            Self::NotFound => "There is no such operation, order, plan, policy or path.",
            Self::PlanChanged => "The plan of `planId` cannot be carried out any more, or was used.",
            Self::Timeout => "The time of the operation ran out; an order may be unresolved.",
            Self::ProxyFailed => "The proxy of an account failed.",
            Self::NotPermitted => {
                "The key is not permitted to do this, or preflight keeps the account out of trading."
            }
            Self::TooManyRequests => {
                "The request budget of a venue is used up, or too many operations are at work."
            }
            Self::Internal => "A defect of deltaplane; `errorId` is in the log too.",
        }
    }

    /// What the caller does next, in one sentence.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::InvalidRequest => "Correct the fields that `errors` points to.",
            Self::InvalidAccount => "See `GET /api/v1/accounts`.",
            Self::DeltaBeyondLimit => {
                "Request it again, name more accounts, or raise `maxSlippage` or `maxDeviation`."
            }
            Self::HedgeFailed => "Do what `solution` says for that code of the venue.",
            Self::RiskBlocked => "Read the alert or limit that is named, and lift it if you mean it.",
            Self::MarketDataUnavailable => {
                "See `GET /api/v1/market/feeds` and repeat the request in a few seconds."
            }
            Self::Conflict => "Look up the operation that is named, or send `Prefer: wait=SECONDS`.",
            Self::NotRunning => "Wait until `GET /readyz` answers 200, or `POST /api/v1/system/restart`.",
            Self::NotFound => "See the list that `solution` names.",
            Self::PlanChanged => "Compare both plans of the answer, and make a new dry run.",
            Self::Timeout => "Do not repeat it: look up `GET /api/v1/operations/{id}`.",
            Self::ProxyFailed => "Check the proxy, or name accounts elsewhere.",
            Self::NotPermitted => "See `GET /api/v1/accounts/{id}/preflight`.",
            Self::TooManyRequests => "Repeat the request after `Retry-After`.",
            Self::Internal => "Report it with the `errorId`.",
        }
    }
}
