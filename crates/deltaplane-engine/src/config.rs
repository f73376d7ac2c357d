//! What the engine's behavior depends on. Plain data.

use std::collections::BTreeSet;
use std::time::Duration;

use deltaplane_market::FeedLimits;
use deltaplane_plan::CostSettings;
use deltaplane_risk::{AlertThresholds, Limits, Overrides};
use deltaplane_types::{Decimal, Notional, Symbol};

use crate::breakers::BreakerSettings;
use crate::holdings::Holdings;
use crate::ids::IdKey;

/// How the engine behaves.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct EngineConfig {
    /// The symbol that flat position fields speak about, and that is looked after from the start.
    pub primary_symbol: Symbol,
    /// What counts into delta beside positions.
    pub holdings: Holdings,
    /// Caps of the gate.
    pub limits: Limits,
    /// Tighter ones of single accounts and symbols.
    pub overrides: Overrides,
    /// When circuit breakers trip.
    pub breakers: BreakerSettings,
    /// Weights and constraints of the planner.
    pub costs: CostSettings,
    /// When a feed is late or stale.
    pub feeds: FeedLimits,
    /// From where on the state of a book is an alert.
    pub alerts: AlertThresholds,
    /// How long a deviation of net delta must last before it is an alert.
    pub delta_alert_after: Duration,
    /// A price older than this is not traded on.
    pub max_price_age: Duration,
    /// An account state older than this is read again before an operation.
    pub max_account_age: Duration,
    /// Least yardstick of a deviation, quote.
    pub reference_floor: Notional,
    /// Dust up to this value is a success, quote.
    pub dust_limit: Notional,
    /// How often the accounts' statements are read.
    pub statement_every: Duration,
    /// What moving money between two accounts costs, USD: fees, and what it earns nothing meanwhile.
    pub transfer_cost: Notional,
    /// Horizon over which funding is expected.
    pub funding_horizon: Duration,
    /// How long nothing goes out after an order came into unresolved order.
    pub unresolved_hold: Duration,
    /// Whether then, while the unresolved order lasts, other accounts make the worst case smaller.
    pub shrink_while_unresolved: bool,
    /// Whether the other side is shrunk at once when a venue closes one side of a book: a liquidation, a
    /// deleveraging.
    pub shrink_after_forced_close: bool,
    /// Whether orders of ours may rest on a venue that cannot cancel them by itself when we fall silent.
    pub allow_resting_without_dead_man_switch: bool,
    /// Why only what reduces risk may be traded from the start: the journal was damaged, say.
    pub restricted_because: Option<String>,
    /// Whether orders at a venue that the journal does not know are accepted as lost from it.
    pub accept_lost_tail: bool,
    /// Operations at work at one time, those that wait for others with `Prefer: wait` among them. What policies do, answers
    /// to losses and flattens have eight places more.
    pub max_operations: usize,
    /// Signs client order ids.
    pub id_key: IdKey,
    /// Tells this installation's orders from another's on the same account.
    pub instance: u16,
    /// Whether orders may be sent at all.
    pub may_send: bool,
    /// Contracts without a symbol, by their venues' names, beside which trading goes on.
    pub accept_unmapped: BTreeSet<String>,
}

impl EngineConfig {
    /// The documented defaults.
    pub fn new(primary_symbol: Symbol, id_key: IdKey) -> Self {
        let usd = |amount: i64| Notional::new(Decimal::from(amount));
        Self {
            primary_symbol,
            holdings: Holdings::default(),
            limits: Limits::default(),
            overrides: Overrides::default(),
            breakers: BreakerSettings::default(),
            costs: CostSettings::default(),
            feeds: FeedLimits::default(),
            alerts: AlertThresholds::default(),
            delta_alert_after: Duration::from_secs(10),
            max_price_age: Duration::from_secs(3),
            max_account_age: Duration::from_secs(2),
            reference_floor: usd(100),
            dust_limit: usd(200),
            statement_every: Duration::from_secs(300),
            transfer_cost: usd(5),
            funding_horizon: Duration::from_secs(8 * 3_600),
            unresolved_hold: Duration::from_secs(2),
            shrink_while_unresolved: true,
            shrink_after_forced_close: false,
            allow_resting_without_dead_man_switch: false,
            restricted_because: None,
            accept_lost_tail: false,
            max_operations: 64,
            id_key,
            instance: 1,
            may_send: true,
            accept_unmapped: BTreeSet::new(),
        }
    }
}
