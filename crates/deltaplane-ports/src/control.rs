//! What a facade may ask of the engine. The engine implements it; the API and policies call it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deltaplane_types::{
    AccountId, AccountSnapshot, ClientOrderId, Code, Decimal, Delta, FeedId, Notional, OperationId,
    OrderState, Plan, Preemption, Price, Quantity, Ratio, Requester, Side, Symbol, Timestamp, TradeId,
    TradingScope, TradingState, VenueId,
};

use crate::budget::{BudgetView, Priority};
use crate::earnings::{EarnedDay, PnlQuery};
use crate::journal::{Alert, Correction, ExternalActivity, TradingOrder};
use crate::preflight::Finding;
use crate::venue::OpenOrder;

/// Where a delta control shall stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HedgeTo {
    /// At the target.
    #[default]
    Target,
    /// At the edge of the tolerance band.
    Band,
}

/// What to do where a plan cannot bring the deviation inside its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnShortfall {
    /// Send nothing.
    #[default]
    Refuse,
    /// Execute what can be had.
    BestEffort,
}

/// A client's name for its request and a digest of what it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key.
    pub key: String,
    /// Digest of path and body.
    pub body_hash: String,
}

/// What every acting request carries beside its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestMeta {
    /// The client's idempotency key.
    pub idempotency: Option<IdempotencyKey>,
    /// How long to wait for another operation on the same symbol and account; none refuses at once.
    pub wait: Option<Duration>,
    /// Positions that have no symbol do not block opening: the request accepts them.
    pub accept_unmapped: bool,
    /// The requester.
    pub requester: Requester,
    /// The plan of a dry run that shall be carried out as it is: its `planId`.
    pub plan: Option<String>,
}

/// `POST /api/v1/delta/control`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaControl {
    /// Where net delta shall go, base units.
    pub target: Delta,
    /// The accounts that are looked at and may trade; distinct.
    pub accounts: Vec<AccountId>,
    /// The final ratio must not be above this.
    pub max_deviation: Ratio,
    /// The symbol.
    pub symbol: Symbol,
    /// Ratio inside which nothing is done.
    pub tolerance: Ratio,
    /// Plan only.
    pub dry_run: bool,
    /// How far a fill may be from the mid at arrival.
    pub max_slippage: Ratio,
    /// How long the operation may take.
    pub timeout: Duration,
    /// Where to stop.
    pub hedge_to: HedgeTo,
    /// What to do when the plan falls short.
    pub on_shortfall: OnShortfall,
    /// The caller knows that accounts which hold the symbol are not named.
    pub subset: bool,
    /// What came beside the body.
    pub meta: RequestMeta,
}

impl DeltaControl {
    /// A request with the documented defaults: tolerance 0.05, slippage 0.005, 30 s, to the target.
    pub fn new(symbol: Symbol, accounts: Vec<AccountId>, target: Delta, max_deviation: Ratio) -> Self {
        Self {
            target,
            accounts,
            max_deviation,
            symbol,
            tolerance: Ratio::new(Decimal::from_i128_with_scale(5, 2)),
            dry_run: false,
            max_slippage: Ratio::new(Decimal::from_i128_with_scale(5, 3)),
            timeout: Duration::from_secs(30),
            hedge_to: HedgeTo::default(),
            on_shortfall: OnShortfall::default(),
            subset: false,
            meta: RequestMeta::default(),
        }
    }
}

/// Which of the named accounts a hedge may use. The exchange that carries the exposure is the one with the largest net
/// position of the exposed sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HedgeStrategy {
    /// Any of them, at least cost.
    #[default]
    DeltaNeutral,
    /// Only those on other exchanges, so that the position on that one stays.
    CrossPlatform,
    /// Only those on that exchange.
    SamePlatform,
}

/// `POST /api/v1/hedge/execute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HedgeExecution {
    /// The symbol.
    pub symbol: Symbol,
    /// The accounts that may trade; distinct.
    pub accounts: Vec<AccountId>,
    /// How much, base units, above zero.
    pub amount: Quantity,
    /// Which way; none means the way that lowers the symbol's net delta over all accounts.
    pub side: Option<Side>,
    /// Which of the accounts it may use.
    pub strategy: HedgeStrategy,
    /// How far a fill may be from the mid at arrival.
    pub max_slippage: Ratio,
    /// How long the operation may take.
    pub timeout: Duration,
    /// How it is spread over time.
    pub pacing: Pacing,
    /// Plan only.
    pub dry_run: bool,
    /// What came beside the body.
    pub meta: RequestMeta,
}

impl HedgeExecution {
    /// A request with the documented defaults: any account at least cost, slippage 0.005, 30 s, at once, the side that lowers
    /// the symbol's net delta.
    pub fn new(symbol: Symbol, accounts: Vec<AccountId>, amount: Quantity) -> Self {
        Self {
            symbol,
            accounts,
            amount,
            side: None,
            strategy: HedgeStrategy::default(),
            max_slippage: Ratio::new(Decimal::from_i128_with_scale(5, 3)),
            timeout: Duration::from_secs(30),
            pacing: Pacing::default(),
            dry_run: false,
            meta: RequestMeta::default(),
        }
    }
}

/// How a hedge is spread over time. What takes stays within the slippage against the mid at the start, whatever the
/// market did meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacing {
    /// In how many parts it is traded, at least one.
    pub clips: u32,
    /// How long after the end of one part the next one begins.
    pub interval: Duration,
    /// How long each part rests as a post-only order before what is left of it takes; none: it takes at once.
    pub rest_for: Option<Duration>,
}

impl Default for Pacing {
    fn default() -> Self {
        Self { clips: 1, interval: Duration::ZERO, rest_for: None }
    }
}

impl Pacing {
    /// Whether it takes time by intent.
    pub fn is_slow(&self) -> bool {
        self.clips > 1 || self.rest_for.is_some()
    }

    /// How long it waits and rests at most.
    pub fn longest(&self) -> Duration {
        let rests = self.rest_for.unwrap_or_default().saturating_mul(self.clips);
        self.interval.saturating_mul(self.clips.saturating_sub(1)).saturating_add(rests)
    }
}

/// `POST /api/v1/delta/flatten`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flatten {
    /// The symbol.
    pub symbol: Symbol,
    /// The accounts whose positions are closed; distinct.
    pub accounts: Vec<AccountId>,
    /// How far a fill may be from the mid at arrival.
    pub max_slippage: Ratio,
    /// How long the operation may take.
    pub timeout: Duration,
    /// Plan only.
    pub dry_run: bool,
    /// What came beside the body.
    pub meta: RequestMeta,
}

impl Flatten {
    /// A request with the documented defaults: slippage 0.005, 30 s.
    pub fn new(symbol: Symbol, accounts: Vec<AccountId>) -> Self {
        Self {
            symbol,
            accounts,
            max_slippage: Ratio::new(Decimal::from_i128_with_scale(5, 3)),
            timeout: Duration::from_secs(30),
            dry_run: false,
            meta: RequestMeta::default(),
        }
    }
}

/// `POST /api/v1/utilization/rebalance`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UtilizationRebalance {
    /// The utilization that every account should have, 0 to 1.
    pub target: Ratio,
    /// The accounts; distinct.
    pub accounts: Vec<AccountId>,
    /// The symbol.
    pub symbol: Symbol,
    /// Part of the target inside which an account counts as being there.
    pub tolerance: Ratio,
    /// The most that may be traded, as a value in quote; none without a cap.
    pub max_amount: Option<Notional>,
    /// Whether the gross position may grow.
    pub allow_gross_increase: bool,
    /// How far a fill may be from the mid at arrival.
    pub max_slippage: Ratio,
    /// How long the operation may take.
    pub timeout: Duration,
    /// Plan only.
    pub dry_run: bool,
    /// What came beside the body.
    pub meta: RequestMeta,
}

impl UtilizationRebalance {
    /// A request with the documented defaults: tolerance 0.1, slippage 0.005, 30 s, no cap on what is traded, no more gross.
    pub fn new(symbol: Symbol, accounts: Vec<AccountId>, target: Ratio) -> Self {
        Self {
            target,
            accounts,
            symbol,
            tolerance: Ratio::new(Decimal::from_i128_with_scale(1, 1)),
            max_amount: None,
            allow_gross_increase: false,
            max_slippage: Ratio::new(Decimal::from_i128_with_scale(5, 3)),
            timeout: Duration::from_secs(30),
            dry_run: false,
            meta: RequestMeta::default(),
        }
    }
}

/// What kind of request an operation serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// `delta/control`.
    DeltaControl,
    /// `hedge/execute`.
    Hedge,
    /// `delta/flatten`.
    Flatten,
    /// `utilization/rebalance`.
    Rebalance,
    /// Orders of an earlier run whose outcome had to be settled.
    Recovery,
    /// A venue closed one side of a book: the other side is shrunk.
    LossResponse,
    /// A policy brings net delta to its target.
    Policy,
    /// An account is near its liquidation: both sides shrink.
    Deleverage,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::DeltaControl,
        Self::Hedge,
        Self::Flatten,
        Self::Rebalance,
        Self::Recovery,
        Self::LossResponse,
        Self::Policy,
        Self::Deleverage,
    ];

    /// Whether operations of the kind aim at a net delta, whatever moved it.
    pub const fn aims_at_a_net_delta(self) -> bool {
        matches!(self, Self::DeltaControl | Self::Flatten | Self::LossResponse | Self::Policy)
    }

    /// Whether operations of the kind trade both ways, so that one leg without the other opens something.
    pub const fn is_two_sided(self) -> bool {
        matches!(self, Self::Flatten | Self::Rebalance | Self::Deleverage)
    }

    /// Whether operations of the kind make the book safer: they find a place also where too many others are at work.
    pub const fn is_protective(self) -> bool {
        matches!(self, Self::Flatten | Self::LossResponse | Self::Policy | Self::Deleverage)
    }

    /// How urgent the requests are that operations of the kind make.
    pub const fn priority(self) -> Priority {
        match self {
            Self::Flatten | Self::LossResponse | Self::Deleverage => Priority::Protect,
            Self::Recovery => Priority::Resolve,
            Self::DeltaControl | Self::Hedge | Self::Rebalance | Self::Policy => Priority::Hedge,
        }
    }

    /// How operation ids of the kind begin.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::DeltaControl => "delta-ctrl",
            Self::Hedge => "hedge",
            Self::Flatten => "flatten",
            Self::Rebalance => "rebalance",
            Self::Recovery => "recovery",
            Self::LossResponse => "loss-response",
            Self::Policy => "policy",
            Self::Deleverage => "deleverage",
        }
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationState {
    /// At work.
    Running,
    /// Did what was asked.
    Succeeded,
    /// Ended outside what was asked, with something executed.
    Partial,
    /// Ended without doing anything, or with a refusal.
    Failed,
    /// Cut off by the end of the process and settled afterwards.
    Interrupted,
    /// The outcome of an order could not be settled; its accounts are frozen until a person decides.
    Frozen,
}

impl OperationState {
    const ALL: [Self; 6] =
        [Self::Running, Self::Succeeded, Self::Partial, Self::Failed, Self::Interrupted, Self::Frozen];

    /// Its public name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Frozen => "frozen",
        }
    }

    /// The state with this public name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why an operation did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The public code.
    pub code: Code,
    /// One sentence with the values.
    pub error: String,
    /// What to do.
    pub solution: String,
    /// Account ids, obstacles or other particulars, by name.
    pub details: BTreeMap<String, Vec<String>>,
    /// How long to wait before trying again.
    pub retry_after: Option<Duration>,
    /// The operation that holds what was asked for.
    pub holder: Option<OperationId>,
}

impl Failure {
    /// A failure with its remedy and without particulars.
    pub fn new(code: Code, error: impl Into<String>, solution: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
            solution: solution.into(),
            details: BTreeMap::new(),
            retry_after: None,
            holder: None,
        }
    }
}

/// One order of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderReport {
    /// Our name.
    pub client_order_id: ClientOrderId,
    /// The venue's name, once known.
    pub venue_order_id: Option<String>,
    /// The account.
    pub account: AccountId,
    /// The symbol.
    pub symbol: Symbol,
    /// Which way.
    pub side: Side,
    /// What was asked.
    pub quantity: Quantity,
    /// The limit price.
    pub limit_price: Price,
    /// Where it stands.
    pub state: OrderState,
    /// What traded.
    pub filled: Quantity,
    /// The trades that tell so.
    pub trades: Vec<TradeId>,
    /// What of `filled` no trade tells: the venue's sum, or a person's word.
    pub untold: Quantity,
    /// Average price of what traded.
    pub average_price: Option<Price>,
    /// Fees of what traded, quote; none where the price of an asset that paid one is not known.
    pub fees: Option<Notional>,
    /// What proves its end.
    pub evidence: Option<String>,
    /// The venue's words where it refused, or why nothing is known.
    pub note: Option<String>,
    /// The venue's time of the newest trade, else ours of the sending.
    pub at: Timestamp,
}

/// A net delta as it was known last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// Net delta of the operation's accounts.
    pub value: Delta,
    /// When the oldest of their states was true.
    pub at: Timestamp,
}

/// One step of an operation's story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEntry {
    /// When.
    pub at: Timestamp,
    /// What and why.
    pub text: String,
}

/// All that is known of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationReport {
    /// Its name.
    pub id: OperationId,
    /// What it serves.
    pub kind: OperationKind,
    /// Where it stands.
    pub state: OperationState,
    /// The symbol.
    pub symbol: Symbol,
    /// The accounts named.
    pub accounts: Vec<AccountId>,
    /// Who asked for it.
    pub requester: Requester,
    /// Whether nothing was to be sent.
    pub dry_run: bool,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took so far.
    pub execution_time: Duration,
    /// Where net delta should go; none where that was to follow from positions that were not read.
    pub target: Option<Delta>,
    /// Net delta at the start; none where it was not read.
    pub initial_delta: Option<Delta>,
    /// Net delta at the end, or the planned one of a dry run; none where it is not known.
    pub final_delta: Option<Delta>,
    /// `|final − target|`; none where one of them is not known.
    pub deviation: Option<Delta>,
    /// What net delta was when it was known last, where it is not known now.
    pub last_known: Option<LastKnown>,
    /// The deviation over the reference exposure.
    pub deviation_ratio: Option<Ratio>,
    /// The yardstick, taken at the start.
    pub reference_exposure: Option<Delta>,
    /// Whether orders were needed.
    pub adjustment_needed: bool,
    /// Why it did what it did.
    pub reason: Option<String>,
    /// The first plan.
    pub plan: Option<Plan>,
    /// Under which name a request may have the plan of this dry run carried out; none where there is nothing to carry out.
    pub plan_id: Option<String>,
    /// The plan of an earlier dry run that was asked for and cannot be carried out any more.
    pub remembered_plan: Option<Plan>,
    /// Every order.
    pub orders: Vec<OrderReport>,
    /// What orders traded after the operation ended.
    pub corrections: Vec<Correction>,
    /// Adverse fraction against the mids at arrival, zero where nothing traded; none where these are not known.
    pub slippage: Option<Ratio>,
    /// The same as an amount, quote.
    pub slippage_cost: Option<Notional>,
    /// Traded notional, quote.
    pub total_cost: Notional,
    /// Fees, quote; none where one of them is not known.
    pub total_fees: Option<Notional>,
    /// Fees by the asset that paid them, in units of it.
    pub fees_by_asset: BTreeMap<String, Decimal>,
    /// Fees and slippage, quote; none where one of them is not known.
    pub execution_cost: Option<Notional>,
    /// Largest `|D − T|` that was possible at any time; none where net delta was not read.
    pub max_transient_delta: Option<Delta>,
    /// Accounts that hold the symbol and are not named, and the like.
    pub warnings: Vec<String>,
    /// How old the oldest of the accounts' states was that its first plan was made from; zero where the stream of every
    /// account is proven, none where nothing was planned.
    pub state_age: Option<Duration>,
    /// Net delta over all accounts, where accounts that hold the symbol are not named.
    pub net_delta_all: Option<Delta>,
    /// The bound that its newest plan gave, base units.
    pub worst_case: Option<Delta>,
    /// All that the net delta of its accounts can be now: lowest and highest, apart while orders are unresolved.
    pub interval: Option<(Delta, Delta)>,
    /// The exchange that carries the exposure of a hedge whose strategy asks for it, and its net delta, base units.
    pub exposed: Option<(VenueId, Delta)>,
    /// What a utilization rebalance found and planned.
    pub rebalance: Option<RebalanceView>,
    /// Why it did not do what was asked.
    pub failure: Option<Failure>,
    /// What stopped it for something more urgent.
    pub preempted_by: Option<Preemption>,
    /// Its story.
    pub timeline: Vec<TimelineEntry>,
}

/// What a utilization rebalance found at its start, and what it planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceView {
    /// The utilization that every account should have.
    pub target: Ratio,
    /// Part of the target inside which an account counts as being there.
    pub tolerance: Ratio,
    /// Whether any account was outside.
    pub needed: bool,
    /// Mean utilization of the accounts that have equity.
    pub average: Ratio,
    /// Each account.
    pub accounts: Vec<RebalanceLine>,
    /// Transfers that would fix what trading cannot. Money is never moved here.
    pub transfers: Vec<Transfer>,
    /// Why nothing is to be traded, where that is so.
    pub reason: Option<String>,
}

/// One account of a utilization rebalance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceLine {
    /// The account.
    pub account: AccountId,
    /// Utilization before; none where the equity is not above zero.
    pub utilization: Option<Ratio>,
    /// `(u − target) ÷ target`, or `u` where the target is zero.
    pub deviation: Option<Ratio>,
    /// Whether that is within the tolerance.
    pub within: bool,
    /// How much its position shall grow, base units; below zero it shrinks.
    pub change: Decimal,
    /// The same as a value in quote.
    pub amount: Notional,
    /// The same as a trade: bought above zero.
    pub trade: Delta,
    /// Utilization after it.
    pub utilization_after: Option<Ratio>,
    /// Adverse move to liquidation before; none where there is none.
    pub liquidation_distance_before: Option<Ratio>,
    /// The same after it.
    pub liquidation_distance_after: Option<Ratio>,
}

/// A suggestion to a person: move money from one account to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// From which account.
    pub from: AccountId,
    /// To which.
    pub to: AccountId,
    /// How much, quote.
    pub amount: Notional,
    /// Days until the carry of the positions that it lets stand pays for the transfer; none where they earn nothing, or
    /// funding is not known.
    pub break_even_days: Option<Decimal>,
}

/// An operation that began.
#[derive(Debug)]
pub struct Started {
    /// Its name; none for a dry run, which leaves no trace.
    pub id: OperationId,
    /// Gives the report when it ends or its time runs out. An error means that the engine stopped.
    pub report: tokio::sync::oneshot::Receiver<OperationReport>,
}

/// How an account stands, valued at its own venue's mark prices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRisk {
    /// The account.
    pub account: AccountId,
    /// When the venue was asked for what this is made from.
    pub as_of: Timestamp,
    /// Wallet and unrealized profit, USD.
    pub equity: Notional,
    /// Unrealized profit, USD.
    pub unrealized: Notional,
    /// Initial margin over equity; none where the equity is not above zero, as the other ratios.
    pub utilization: Option<Ratio>,
    /// Gross notional over equity.
    pub leverage: Option<Ratio>,
    /// Maintenance margin over equity; liquidation is at 1.
    pub margin_ratio: Option<Ratio>,
    /// The largest loss from a peak since this server started, deposits and withdrawals taken out.
    pub max_drawdown: Ratio,
    /// Its own `|net delta| ÷ gross` in the symbol where that is largest; zero where it holds nothing.
    pub delta_deviation: Ratio,
    /// The joint move of all prices at which it is liquidated; none where there is none.
    pub liquidation_distance: Option<Ratio>,
    /// Its positions; in hedge mode each side of a symbol that is held both ways.
    pub positions: Vec<PositionRisk>,
}

impl AccountRisk {
    /// The net of what it holds in a symbol, base units; none where it holds nothing of it.
    ///
    /// # Errors
    ///
    /// If the sum cannot be held exactly.
    pub fn net(&self, symbol: &Symbol) -> Result<Option<Delta>, deltaplane_types::ArithmeticError> {
        let mut held = self.positions.iter().filter(|position| position.symbol == *symbol).peekable();
        if held.peek().is_none() {
            return Ok(None);
        }
        held.try_fold(Delta::ZERO, |sum, position| sum.plus(position.quantity)).map(Some)
    }
}

/// How one position stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionRisk {
    /// The symbol.
    pub symbol: Symbol,
    /// Signed base units.
    pub quantity: Delta,
    /// The venue's mark price, where it told one.
    pub mark: Option<Price>,
    /// Value at the mark, USD.
    pub notional: Notional,
    /// Unrealized profit, USD.
    pub unrealized: Notional,
    /// Adverse move of this symbol alone at which the account is liquidated; none where there is none.
    pub liquidation_distance: Option<Ratio>,
    /// The price at that move.
    pub liquidation_price: Option<Price>,
}

/// Funding of one account in one symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FundingView {
    /// The account.
    pub account: AccountId,
    /// The kind of exchange.
    pub exchange: String,
    /// The symbol.
    pub symbol: Symbol,
    /// The running rate of one interval; a long pays a positive one.
    pub rate: Ratio,
    /// Hours between two settlements.
    pub interval_hours: u32,
    /// The next settlement, if known.
    pub next_at: Option<Timestamp>,
    /// The running rate over one hour, so that venues can be compared.
    pub rate_per_hour: Ratio,
    /// Mean rate of an interval over the last 24 hours, where it is known.
    pub mean_rate: Option<Ratio>,
    /// The position, base units.
    pub position: Delta,
    /// What the next settlement brings at the running rate, USD; below zero it costs.
    pub next_payment: Notional,
    /// The same over a day.
    pub per_day: Notional,
}

/// `POST /api/v1/risk/stress`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StressRequest {
    /// Whose price moves.
    pub symbol: Symbol,
    /// Moves, as fractions of the price.
    pub moves: Vec<Ratio>,
}

/// An account after a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StressAccount {
    /// The account.
    pub account: AccountId,
    /// Its equity then, USD.
    pub equity: Notional,
    /// Maintenance margin over equity; none where the equity is not above zero.
    pub margin_ratio: Option<Ratio>,
    /// Whether its venue would liquidate it.
    pub liquidated: bool,
    /// The joint move of all prices from there at which it would be; none where there is no such move.
    pub liquidation_distance: Option<Ratio>,
}

/// All accounts after a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StressMove {
    /// The move.
    pub change: Ratio,
    /// Each account.
    pub accounts: Vec<StressAccount>,
}

/// What the loss of an account or its venue would leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StressLoss {
    /// The account.
    pub account: AccountId,
    /// Net delta when its position is closed by force and the others stay.
    pub net_if_leg_fails: Delta,
    /// Net delta of all accounts on its venue: what cannot be traded while that is down.
    pub unreachable_if_venue_fails: Delta,
}

/// What a price move, a leg's failure or an outage would do. Nothing is sent for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StressReport {
    /// The symbol.
    pub symbol: Symbol,
    /// Net delta now.
    pub net: Delta,
    /// Each move.
    pub moves: Vec<StressMove>,
    /// Each account's loss.
    pub losses: Vec<StressLoss>,
}

/// When both sides shrink by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleverage {
    /// Liquidation distance of an account below which they do.
    pub trigger: Ratio,
    /// Liquidation distance that is restored.
    pub until: Ratio,
}

impl Default for Deleverage {
    /// Below 0.08, until 0.15.
    fn default() -> Self {
        let ratio = |percent| Ratio::new(Decimal::from_i128_with_scale(percent, 2));
        Self { trigger: ratio(8), until: ratio(15) }
    }
}

/// A utilization rebalance that comes again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledRebalance {
    /// How often.
    pub every: Duration,
    /// Utilization that every account should have.
    pub target: Ratio,
    /// Part of the target inside which an account counts as being there.
    pub tolerance: Ratio,
    /// Traded notional at most, quote.
    pub max_amount: Option<Notional>,
}

/// What is done in a symbol without being asked: `PUT /api/v1/policies/{symbol}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The symbol.
    pub symbol: Symbol,
    /// Whether it is carried out.
    pub enabled: bool,
    /// Where net delta of its accounts should be.
    pub target: Delta,
    /// Deviation ratio from which it acts.
    pub tolerance: Ratio,
    /// Deviation ratio at which an operation of it counts as failed.
    pub max_deviation: Ratio,
    /// The accounts that hedge each other.
    pub accounts: Vec<AccountId>,
    /// Bound on every order's price against its venue's mid at arrival.
    pub max_slippage: Ratio,
    /// How long one operation may take.
    pub timeout: Duration,
    /// How far it goes.
    pub hedge_to: HedgeTo,
    /// The part of the tolerance that it goes further inside the band, 0 to 1, where it goes to the band only: so the
    /// next small move is no reason to trade again.
    pub hysteresis: Ratio,
    /// How long the deviation must last before it acts.
    pub after: Duration,
    /// Tighter caps for its operations than the configured ones.
    pub limits: PolicyLimits,
    /// Horizon over which it weighs funding; none takes the configured one.
    pub horizon: Option<Duration>,
    /// When both sides shrink.
    pub deleverage: Option<Deleverage>,
    /// Whether utilization is rebalanced, and how often.
    pub rebalance: Option<ScheduledRebalance>,
}

impl Policy {
    /// A policy with the documented defaults: it is on, its target is zero, it acts from a deviation of 0.05 that lasted a
    /// second, goes to the target, and shrinks both sides near a liquidation.
    pub fn new(symbol: Symbol, accounts: Vec<AccountId>) -> Self {
        let ratio = |number, scale| Ratio::new(Decimal::from_i128_with_scale(number, scale));
        Self {
            symbol,
            enabled: true,
            target: Delta::ZERO,
            tolerance: ratio(5, 2),
            max_deviation: ratio(25, 2),
            accounts,
            max_slippage: ratio(5, 3),
            timeout: Duration::from_secs(30),
            hedge_to: HedgeTo::default(),
            hysteresis: ratio(2, 1),
            after: Duration::from_secs(1),
            limits: PolicyLimits::default(),
            horizon: None,
            deleverage: Some(Deleverage::default()),
            rebalance: None,
        }
    }
}

/// Tighter caps for the operations of a policy; none leaves the configured one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Largest notional of one order, quote.
    pub max_order_notional: Option<Notional>,
    /// Largest notional of one account's position, quote.
    pub max_position_notional: Option<Notional>,
    /// Largest notional that one operation may add to positions, quote.
    pub max_operation_notional: Option<Notional>,
    /// Largest net delta, as its value in quote.
    pub max_net_delta: Option<Notional>,
    /// How far from its target an operation both ways may bring net delta while orders are out, as its value in quote.
    pub max_in_flight_delta: Option<Notional>,
}

/// What a policy does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyStatus {
    /// Switched off.
    Off,
    /// All is within its tolerance.
    Within,
    /// It will act soon.
    Waiting,
    /// An operation of it is at work.
    Acting,
    /// It would act and may not, or does not know enough.
    Holding,
}

/// A policy and how it fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyView {
    /// The policy.
    pub policy: Policy,
    /// What it does.
    pub status: PolicyStatus,
    /// Why.
    pub reason: String,
    /// The deviation ratio of its accounts, where it is known.
    pub deviation_ratio: Option<Ratio>,
    /// The newest operation that it began in this run.
    pub last_operation: Option<OperationId>,
}

/// An alert that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastAlert {
    /// As it was last.
    pub alert: Alert,
    /// When its condition was over.
    pub resolved_at: Timestamp,
}

/// How an account stood at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RiskSample {
    /// When.
    pub at: Timestamp,
    /// Wallet and unrealized profit, USD.
    pub equity: Notional,
    /// Unrealized profit, USD.
    pub unrealized: Notional,
    /// The largest deviation ratio among its hedge groups.
    pub delta_deviation: Ratio,
    /// Initial margin over equity; none where the equity is not above zero.
    pub utilization: Option<Ratio>,
    /// Gross notional over equity.
    pub leverage: Option<Ratio>,
    /// Maintenance margin over equity.
    pub margin_ratio: Option<Ratio>,
    /// The largest loss from a peak until then.
    pub max_drawdown: Ratio,
    /// Joint adverse move at which it is liquidated.
    pub liquidation_distance: Option<Ratio>,
}

/// Which part of an account's history is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Nothing before this.
    pub since: Option<Timestamp>,
    /// Nothing after this.
    pub until: Option<Timestamp>,
    /// At most one sample in each such span, its last; none gives all that are kept.
    pub interval: Option<Duration>,
    /// At most this many, the newest.
    pub limit: usize,
}

/// Whether a price feed may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedCondition {
    /// Fresh and sane.
    Healthy,
    /// Late, or off the others.
    Degraded,
    /// Disconnected, stale, crossed.
    Failing,
}

/// One price feed, judged by the primary symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedView {
    /// The feed.
    pub feed: FeedId,
    /// Whether it may be used.
    pub condition: FeedCondition,
    /// Median of receive time − venue time over the last minute; none where nothing came.
    pub latency: Option<Duration>,
    /// When the newest event reached us.
    pub last_update: Option<Timestamp>,
    /// How often it was disconnected, gapped or unreadable.
    pub error_count: u64,
    /// Its mid.
    pub mid: Option<Price>,
    /// How far its mid is from the median of the others, as a fraction.
    pub off: Option<Ratio>,
}

/// All price feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedsView {
    /// Each.
    pub feeds: Vec<FeedView>,
    /// The one whose book and mark displays use; none where there is no feed.
    pub active: Option<FeedId>,
    /// When that changed last.
    pub last_failover: Option<Timestamp>,
}

/// `POST /api/v1/market/failover`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// The feed that shall be the active one.
    pub target: FeedId,
    /// Why.
    pub reason: String,
    /// Whether it may be one that fails.
    pub force: bool,
}

/// What a person says became of an unresolved order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It never existed at the venue.
    NotPlaced,
    /// It ended there with this much traded in all.
    Ended {
        /// Base units.
        filled: Quantity,
    },
}

/// `POST /api/v1/operations/{id}/resolve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveOrder {
    /// The operation.
    pub operation: OperationId,
    /// The unresolved order.
    pub client_order_id: ClientOrderId,
    /// What became of it.
    pub settlement: Settlement,
    /// Who says so and how it is known.
    pub reason: String,
}

/// `POST /api/v1/system/kill-switch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KillSwitch {
    /// Whether it shall be engaged.
    pub engaged: bool,
    /// Why.
    pub reason: String,
    /// Whether our own resting orders are canceled, by their ids; foreign and protective ones stay.
    pub cancel_open_orders: bool,
}

/// What came of engaging or clearing the kill switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KillReport {
    /// What holds now.
    pub trading: TradingOrder,
    /// Whether it is on disk: what is not is lost with the process.
    pub durable: bool,
    /// Orders of ours for which a cancel was sent, with what came of it.
    pub canceled: Vec<(ClientOrderId, String)>,
    /// Accounts where orders of ours may still rest, with why: they are asked again until it is done.
    pub unreachable: Vec<(AccountId, String)>,
}

/// `PUT /api/v1/trading-state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TradingChange {
    /// What it is about.
    pub scope: TradingScope,
    /// What may be traded from now on.
    pub state: TradingState,
    /// Why.
    pub reason: String,
}

/// `POST /api/v1/account/sync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRequest {
    /// The accounts; distinct.
    pub accounts: Vec<AccountId>,
    /// Whether positions are read again.
    pub include_positions: bool,
    /// Whether balances are read again.
    pub include_balances: bool,
    /// How long to wait for each.
    pub timeout: Duration,
}

/// What an account looks like from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountView {
    /// The account.
    pub account: AccountId,
    /// Where it trades.
    pub venue: VenueId,
    /// The kind of exchange, as the API names it.
    pub exchange: String,
    /// Its newest state; none where the venue never answered.
    pub snapshot: Option<AccountSnapshot>,
    /// Whether the state comes from its proven stream; else it was read by REST.
    pub is_streamed: bool,
    /// Its open orders in all symbols, external ones too; none if they are not known.
    pub open_orders: Option<Vec<OpenOrder>>,
    /// Why orders may not be sent for it, where that is so.
    pub blocked: Option<String>,
}

/// Where an account's state comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountSource {
    /// From its proven stream.
    Stream,
    /// From readings by REST: its stream is not proven.
    Rest,
    /// It cannot be read.
    None,
}

/// Whether an account can be traded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountReadiness {
    /// The account.
    pub account: AccountId,
    /// Where its state comes from.
    pub source: AccountSource,
    /// Whether orders may be sent for it and its state is known.
    pub can_trade: bool,
    /// Whether an enabled policy names it.
    pub is_needed: bool,
    /// What is wrong with it; none where nothing is.
    pub reason: Option<String>,
}

/// What a sync brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncReport {
    /// Every account asked for, in order, with an error where it failed.
    pub accounts: Vec<(AccountView, Option<(Code, String)>)>,
    /// How long it took.
    pub took: Duration,
}

/// One symbol over all accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolView {
    /// The symbol.
    pub symbol: Symbol,
    /// Net delta.
    pub net: Delta,
    /// What is long.
    pub long: Delta,
    /// The magnitude of what is short.
    pub short: Delta,
    /// The reference price, where there is one.
    pub reference_price: Option<Price>,
    /// `|net| ÷ max(long, short, floor)`, where there is a price.
    pub deviation_ratio: Option<Ratio>,
    /// All that the net delta can be, lowest and highest: apart while orders are unresolved or an account cannot be read.
    /// None where an account was never read.
    pub interval: Option<(Delta, Delta)>,
    /// Delta by account: the position, and what of the base asset is in the wallet.
    pub accounts: BTreeMap<AccountId, Delta>,
    /// What is held elsewhere, as configured; none where that is older than it may be.
    pub external: Option<Delta>,
}

/// What of one quote currency is in the wallets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteExposure {
    /// The currency, as the venues name it.
    pub currency: String,
    /// How much of it.
    pub amount: Decimal,
    /// What a unit is worth, USD.
    pub rate: Ratio,
    /// What all is worth, USD; none beyond what can be held.
    pub value: Option<Notional>,
}

/// What was found before an account may trade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightReport {
    /// The account.
    pub account: AccountId,
    /// Whether it may trade.
    pub tradable: bool,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

/// All symbols and accounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortfolioView {
    /// When.
    pub as_of: Timestamp,
    /// By symbol.
    pub symbols: Vec<SymbolView>,
    /// By account.
    pub accounts: Vec<AccountView>,
    /// By quote currency.
    pub quotes: Vec<QuoteExposure>,
}

/// Whether a service works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// It works.
    Running,
    /// It was stopped.
    Stopped,
    /// It fails.
    Error,
}

/// One long-running part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Whether it works.
    pub state: ServiceState,
    /// When it last did something.
    pub last_heartbeat: Timestamp,
    /// How often it failed.
    pub error_count: u64,
}

/// One feed's newest mid of the primary symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketSummary {
    /// The feed.
    pub feed: FeedId,
    /// Its mid.
    pub mid: Option<Price>,
}

/// Whether the services run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SystemPhase {
    /// They do.
    #[default]
    Running,
    /// They are being started.
    Starting,
    /// They were stopped.
    Stopped,
    /// They could not be started.
    Failed,
}

/// What a person asks of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemCommand {
    /// Stop, and start again from the configuration as it is now.
    Restart,
    /// Stop. The facade goes on answering.
    Stop,
}

/// The engine as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemView {
    /// Whether the services run.
    pub phase: SystemPhase,
    /// Whether operations are taken.
    pub ready: bool,
    /// Why not, where that is so.
    pub not_ready_because: Option<String>,
    /// Its parts.
    pub services: Vec<ServiceView>,
    /// Accounts whose state is known and fresh.
    pub active_accounts: usize,
    /// Operations since the journal began.
    pub total_operations: u64,
    /// Of these the ones that began within the last minute.
    pub operations_last_minute: usize,
    /// What may be traded, and why.
    pub trading: TradingOrder,
    /// How long it runs.
    pub uptime: Duration,
    /// The symbol that flat position fields speak about.
    pub primary_symbol: Symbol,
    /// Mids by feed.
    pub market: Vec<MarketSummary>,
    /// The request budgets of its addresses.
    pub budgets: Vec<BudgetView>,
    /// How every account stands.
    pub accounts: Vec<AccountReadiness>,
}

/// What a facade may ask of the engine.
#[async_trait]
pub trait ControlPlane: Send + Sync {
    /// Brings net delta to its target. `Err` means that no operation began.
    async fn control_delta(&self, request: DeltaControl) -> Result<Started, Box<Failure>>;

    /// Trades an amount. `Err` means that no operation began.
    async fn execute_hedge(&self, request: HedgeExecution) -> Result<Started, Box<Failure>>;

    /// Starts to close every position of the named accounts, both sides in lock step.
    async fn flatten(&self, request: Flatten) -> Result<Started, Box<Failure>>;

    /// Starts to bring accounts' utilization near a target; the net delta stays.
    async fn rebalance_utilization(&self, request: UtilizationRebalance) -> Result<Started, Box<Failure>>;

    /// Asks the venues for the accounts' state.
    async fn sync_accounts(&self, request: SyncRequest) -> Result<SyncReport, Box<Failure>>;

    /// The configured accounts with their newest state.
    async fn accounts(&self) -> Vec<AccountView>;

    /// Looks at everything that decides whether an account may trade; a blocking finding keeps it out until the
    /// next look finds none. None where there is no such account.
    async fn preflight(&self, account: &AccountId) -> Result<Option<PreflightReport>, Box<Failure>>;

    /// Exposure by symbol and state by account.
    async fn portfolio(&self) -> PortfolioView;

    /// The newest operations first, at most `limit`.
    async fn operations(&self, limit: usize) -> Vec<OperationReport>;

    /// One operation.
    async fn operation(&self, id: &OperationId) -> Option<OperationReport>;

    /// The operation that a request with this idempotency key began, where there is one.
    async fn operation_of_key(&self, key: &str) -> Option<OperationReport>;

    /// Takes a manual decision on an unresolved order. `Err` means that nothing changed.
    async fn resolve_order(&self, request: ResolveOrder) -> Result<OperationReport, Box<Failure>>;

    /// Engages or clears the kill switch: while it is engaged only orders that reduce a position go out.
    async fn kill_switch(&self, request: KillSwitch) -> Result<KillReport, Box<Failure>>;

    /// Says what may be traded, beside the kill switch. `Err` means that nothing changed.
    async fn set_trading(&self, change: TradingChange) -> Result<TradingOrder, Box<Failure>>;

    /// How an account stands, from its newest known state and prices that are a second old at most. It is the same
    /// allocation as long as there is nothing new: what was written of it may be sent again.
    async fn account_risk(&self, account: &AccountId) -> Result<Arc<AccountRisk>, Box<Failure>>;

    /// The alerts that stand, oldest first; the same allocation as long as there is nothing new.
    async fn alerts(&self) -> Arc<[Alert]>;

    /// The alerts that are over, the newest first, at most `limit`.
    async fn past_alerts(&self, limit: usize) -> Vec<PastAlert>;

    /// Notes that a person saw an alert. None where no such alert stands. A second time changes nothing.
    async fn acknowledge_alert(&self, id: &str, note: String) -> Result<Option<Alert>, Box<Failure>>;

    /// How an account stood, the newest sample first.
    async fn risk_history(
        &self,
        account: &AccountId,
        query: HistoryQuery,
    ) -> Result<Vec<RiskSample>, Box<Failure>>;

    /// Funding of every account.
    async fn funding(&self) -> Result<Vec<FundingView>, Box<Failure>>;

    /// What price moves, a leg's failure or an outage would do.
    async fn stress(&self, request: StressRequest) -> Result<StressReport, Box<Failure>>;

    /// All policies and how they fare.
    async fn policies(&self) -> Vec<PolicyView>;

    /// What was earned, by day, symbol and account.
    async fn pnl(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, Box<Failure>>;

    /// Sets the policy of its symbol. `Err` means that nothing changed.
    async fn put_policy(&self, policy: Policy) -> Result<PolicyView, Box<Failure>>;

    /// Removes a policy; gives whether there was one. An operation that it began goes on to its end.
    async fn delete_policy(&self, symbol: &Symbol) -> Result<bool, Box<Failure>>;

    /// The price feeds, and which of them is the active one.
    async fn feeds(&self) -> FeedsView;

    /// Makes another feed the active one. `Err` means that nothing changed.
    async fn fail_over(&self, request: Failover) -> Result<FeedView, Box<Failure>>;

    /// What moved positions without an order of ours, newest first, at most `limit`.
    async fn external_activity(&self, limit: usize) -> Vec<ExternalActivity>;

    /// The engine as a whole.
    async fn system(&self) -> SystemView;

    /// Stops the services, or stops them and starts them again. An engine of its own cannot be started again: that is
    /// for the same requester.
    async fn command(&self, command: SystemCommand) -> Result<SystemPhase, Box<Failure>>;
}
