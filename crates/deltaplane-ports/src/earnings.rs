//! What positions earned and cost, day by day.

use deltaplane_types::{AccountId, Decimal, Notional, Symbol, Timestamp};

/// What a row of a venue's account statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IncomeKind {
    /// Funding between longs and shorts; positive was received.
    Funding,
    /// A fee of a trade; negative was paid.
    Fee,
    /// Profit or loss that a trade realized, before its fee.
    Realized,
}

/// A row of a venue's account statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Income {
    /// The row's name: the same row always has the same one within an account.
    pub id: String,
    /// The symbol.
    pub symbol: Symbol,
    /// What it is.
    pub kind: IncomeKind,
    /// What the account gained, in `asset`.
    pub amount: Notional,
    /// What it is counted in: `USDT`.
    pub asset: String,
    /// The venue's time.
    pub at: Timestamp,
}

/// What an account's position in a symbol earned by moves of prices in a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The account.
    pub account: AccountId,
    /// The symbol.
    pub symbol: Symbol,
    /// When.
    pub at: Timestamp,
    /// By its venue's price moving against the reference price, USD.
    pub basis: Notional,
    /// By the reference price moving, USD: what cancels over the accounts of a neutral book.
    pub residual: Notional,
}

/// What amounts are in where they count: `USD`.
pub const USD: &str = "USD";

/// What was earned; negative was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    /// Funding, by the venues' statements.
    pub funding: Notional,
    /// Fees, by the venues' statements.
    pub fees: Notional,
    /// Profit that trades realized, by the venues' statements: it is made of the two below and not added to them.
    pub realized: Notional,
    /// Venues' prices against the reference price, while the server watched.
    pub basis: Notional,
    /// Moves of the reference price, while the server watched.
    pub residual: Notional,
}

impl Earned {
    /// Funding, fees, basis and residual delta together.
    ///
    /// # Errors
    ///
    /// If the sum cannot be held exactly.
    pub fn total(&self) -> Result<Notional, deltaplane_types::ArithmeticError> {
        self.funding.plus(self.fees)?.plus(self.basis)?.plus(self.residual)
    }

    /// In another currency of which one of this is worth `rate`, rounded to what can be held.
    ///
    /// # Errors
    ///
    /// If a product is too large.
    pub fn times(&self, rate: Decimal) -> Result<Self, deltaplane_types::ArithmeticError> {
        let worth = |amount: Notional| {
            let product = amount.value().checked_mul(rate);
            product.map(Notional::new).ok_or(deltaplane_types::ArithmeticError::Overflow)
        };
        Ok(Self {
            funding: worth(self.funding)?,
            fees: worth(self.fees)?,
            realized: worth(self.realized)?,
            basis: worth(self.basis)?,
            residual: worth(self.residual)?,
        })
    }

    /// Both together.
    ///
    /// # Errors
    ///
    /// If a sum cannot be held exactly.
    pub fn plus(&self, other: &Self) -> Result<Self, deltaplane_types::ArithmeticError> {
        Ok(Self {
            funding: self.funding.plus(other.funding)?,
            fees: self.fees.plus(other.fees)?,
            realized: self.realized.plus(other.realized)?,
            basis: self.basis.plus(other.basis)?,
            residual: self.residual.plus(other.residual)?,
        })
    }
}

/// What an account earned in a symbol on a day, in one currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarnedDay {
    /// The start of the day, UTC.
    pub day: Timestamp,
    /// The symbol.
    pub symbol: Symbol,
    /// The account.
    pub account: AccountId,
    /// What it is counted in: [`USD`], or the asset of the statement if its rate is not known.
    pub asset: String,
    /// What it earned.
    pub earned: Earned,
}

impl EarnedDay {
    /// Whether it adds up with others.
    pub fn counts(&self) -> bool {
        self.asset == USD
    }
}

/// `GET /api/v1/pnl`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PnlQuery {
    /// Only this symbol.
    pub symbol: Option<Symbol>,
    /// Only days that end after this.
    pub since: Option<Timestamp>,
    /// Only days that begin before this.
    pub until: Option<Timestamp>,
}

/// Milliseconds of a day.
pub const DAY_MS: i64 = 24 * 3_600 * 1_000;

/// The start of a time's day, UTC.
pub fn day_of(at: Timestamp) -> Timestamp {
    Timestamp::from_millis(at.as_millis().div_euclid(DAY_MS) * DAY_MS)
}
