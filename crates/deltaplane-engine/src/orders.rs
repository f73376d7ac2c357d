//! What is known of one order: a fold over answers, events and trades that forgets nothing and counts nothing
//! twice.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaplane_math::MathError;
use deltaplane_ports::{IntentRecord, Invalidation, OrderReport, OutcomeRecord, Settlement};
use deltaplane_risk::PricedFill;
use deltaplane_types::{
    Decimal, Delta, Evidence, ExecutionReport, Fee, Fill, Notional, OrderState, OrderStatus, Price, Quantity,
    Refusal, RefusalReason, SubmitOutcome, TimeInForce, Timestamp, TradeId, UnknownCause, VenueOrderId,
};

/// When an unresolved order is asked for, counted from the unresolved order; then every five seconds.
const ASK_AFTER_MS: [u64; 6] = [0, 200, 500, 1_000, 2_000, 5_000];
/// When an order without news is looked up.
const QUIET: Duration = Duration::from_millis(500);
/// The same while it rests: its stream tells of its trades.
const QUIET_AT_REST: Duration = Duration::from_secs(3);
/// How long after a cancel the next one goes out, where the order did not end.
const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// When the trades of an ended order are read, if no event shows them.
const TRADES_LATE: Duration = Duration::from_millis(300);
/// How long a proven stream has to tell of an order and its trades before the venue is asked. A stream that breaks
/// meanwhile has it asked at once.
const STREAM_TELLS_WITHIN: Duration = Duration::from_secs(1);

/// How often the trades of an ended order are asked for, ever more seldom: some ten minutes.
const TRADES_ASKED: usize = 24;

/// Looks over so many lags decide without a stream that is proven since before the order was sent, where it is proven for
/// so many now.
const LONG_LOOKS: u32 = 6;
const LONG_PROOF: u32 = 3;

/// What a look for an order tells beside that it is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// When it began.
    pub(crate) began: Timestamp,
    /// Since when the account's stream is proven without a gap, at the end of the look.
    pub(crate) proven_since: Option<Timestamp>,
    /// The same answers have an event of the account from after the order's window.
    pub(crate) has_newer_events: bool,
}

/// How far the outcome of an order is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Durable and perhaps sent; no answer yet.
    InFlight,
    /// The venue has it.
    Accepted,
    /// It may or may not exist.
    Unknown,
    /// The venue has ended it.
    Ended(OrderStatus),
    /// No position can come of it.
    NotAccepted,
    /// The evidence contradicts itself: a person must decide.
    Frozen,
}

/// One order.
#[derive(Clone, Debug)]
pub(crate) struct TrackedOrder {
    pub(crate) intent: IntentRecord,
    pub(crate) arrival_mid: Option<Price>,
    pub(crate) resolution: Resolution,
    pub(crate) evidence: Option<Evidence>,
    pub(crate) refusal: Option<Refusal>,
    pub(crate) unresolved: Option<UnknownCause>,
    pub(crate) venue_order_id: Option<VenueOrderId>,
    /// All that traded, by the venue's sums.
    reported: Quantity,
    /// All that traded, trade by trade.
    fills: BTreeMap<TradeId, Fill>,
    pub(crate) sent_at: Timestamp,
    /// How long the account's stream has to tell of it, where that was proven when it went out.
    told_within: Option<Duration>,
    unresolved_since: Option<Timestamp>,
    asked: usize,
    pub(crate) next_check: Option<Timestamp>,
    pub(crate) check_in_flight: bool,
    pub(crate) proofs_failed: u32,
    /// When the first of the newest looks began that all found nothing, and how many there were.
    looked: Option<(Timestamp, u32)>,
    /// When an order that may rest is canceled, again and again until its end is known.
    pub(crate) cancel_at: Option<Timestamp>,
    /// How often it was tried to cancel it.
    cancels: u32,
    /// When that was tried first.
    canceled_at: Option<Timestamp>,
    /// When the venue first said that there is nothing to cancel: from then on nothing comes of it.
    gone_at: Option<Timestamp>,
    invalidated: InvalidationState,
    /// A person decided: nothing more is looked for.
    decided: bool,
    /// The venue does not show all of its trades.
    unpriced: bool,
}

/// A venue may queue what it took in and show it late: for this long after an invalidation "not found" proves nothing.
const INVALIDATION_SLACK: Duration = Duration::from_secs(5);

/// Whether an order's place at the venue was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidationState {
    NotTried,
    UsedUp(Timestamp),
    /// It could not be, or the venue had taken the order in.
    Failed,
}

impl TrackedOrder {
    pub(crate) fn new(intent: IntentRecord, arrival_mid: Option<Price>, now: Timestamp) -> Self {
        Self {
            intent,
            arrival_mid,
            resolution: Resolution::InFlight,
            evidence: None,
            refusal: None,
            unresolved: None,
            venue_order_id: None,
            reported: Quantity::ZERO,
            fills: BTreeMap::new(),
            sent_at: now,
            told_within: None,
            unresolved_since: None,
            asked: 0,
            next_check: None,
            check_in_flight: false,
            proofs_failed: 0,
            looked: None,
            cancel_at: None,
            cancels: 0,
            canceled_at: None,
            gone_at: None,
            invalidated: InvalidationState::NotTried,
            decided: false,
            unpriced: false,
        }
    }

    /// Its account's stream is proven: the venue is asked for it only where that does not tell.
    pub(crate) const fn told_by_stream(mut self) -> Self {
        self.told_within = Some(STREAM_TELLS_WITHIN);
        self
    }

    /// How long nothing is asked, where that is `otherwise` without a stream.
    fn patience(&self, otherwise: Duration) -> Duration {
        self.told_within.unwrap_or(otherwise)
    }

    /// What traded for certain.
    pub(crate) fn filled(&self) -> Quantity {
        self.priced().max(self.reported)
    }

    /// The names of its trades, with what they moved.
    pub(crate) fn trades(&self) -> Vec<(TradeId, Delta)> {
        self.fills.iter().map(|(id, fill)| (id.clone(), fill.quantity.signed(fill.side))).collect()
    }

    /// What traded with known prices.
    fn priced(&self) -> Quantity {
        // A quantity beyond what can be held is not one: it then counts as not known.
        let add = |sum: Decimal, fill: &Fill| sum.checked_add(fill.quantity.value());
        let sum = self.fills.values().try_fold(Decimal::ZERO, add);
        Quantity::try_new(sum.unwrap_or_default()).unwrap_or_default()
    }

    /// What may still trade, at worst.
    pub(crate) fn unresolved(&self) -> Quantity {
        match self.resolution {
            Resolution::Ended(_) | Resolution::NotAccepted => Quantity::ZERO,
            Resolution::InFlight | Resolution::Accepted | Resolution::Unknown | Resolution::Frozen => {
                self.intent.order.quantity.saturating_minus(self.filled())
            }
        }
    }

    /// Whether its end is known, and every trade of it with its price.
    pub(crate) fn is_settled(&self) -> bool {
        match self.resolution {
            Resolution::Ended(_) => self.decided || self.unpriced || self.priced() >= self.reported,
            Resolution::NotAccepted => true,
            Resolution::InFlight | Resolution::Accepted | Resolution::Unknown | Resolution::Frozen => false,
        }
    }

    /// Whether it was sent to rest.
    pub(crate) fn was_to_rest(&self) -> bool {
        self.intent.order.time_in_force != TimeInForce::ImmediateOrCancel
    }

    /// Whether it rests as it was meant to.
    pub(crate) fn is_resting(&self) -> bool {
        self.was_to_rest() && self.resolution == Resolution::Accepted && self.cancels == 0
    }

    pub(crate) fn must_be_canceled(&self, now: Timestamp) -> bool {
        self.may_rest() && self.cancel_at.is_some_and(|at| at <= now)
    }

    fn may_rest(&self) -> bool {
        matches!(self.resolution, Resolution::Accepted | Resolution::Unknown | Resolution::Frozen)
    }

    /// Whether it may rest out of sight: it leaves no trace but itself, and only a venue that has nothing to cancel, or
    /// whose place for it was taken, says that it does not.
    pub(crate) fn may_be_hidden(&self) -> bool {
        self.was_to_rest() && self.gone_at.is_none() && !self.is_invalidated()
    }

    /// Since when it is open and should not be.
    pub(crate) fn open_since(&self) -> Timestamp {
        self.canceled_at.map_or(self.sent_at, |at| at.max(self.sent_at))
    }

    /// Its cancel goes out now.
    pub(crate) fn on_canceling(&mut self, now: Timestamp) {
        self.check_in_flight = true;
        self.cancels = self.cancels.saturating_add(1);
        self.canceled_at.get_or_insert(now);
        self.cancel_at = None;
    }

    /// Its cancel was answered, or not: it is asked for, and where it is still there canceled again, ever later.
    pub(crate) fn on_canceled(&mut self, is_gone: bool, now: Timestamp) {
        self.check_in_flight = false;
        if is_gone {
            self.gone_at.get_or_insert(now);
        }
        self.cancel_at = Some(now.after(CANCEL_AGAIN.saturating_mul(self.cancels.min(30))));
        if self.resolution == Resolution::Unknown {
            self.next_check.get_or_insert(now);
        } else if self.resolution != Resolution::Frozen {
            self.next_check = Some(now);
        }
    }

    /// When something is to be done about it.
    pub(crate) fn wakes_at(&self) -> Option<Timestamp> {
        let cancel = self.cancel_at.filter(|_| self.may_rest());
        self.next_check.into_iter().chain(cancel).min()
    }

    /// Whether its place at the venue was taken.
    pub(crate) fn is_invalidated(&self) -> bool {
        matches!(self.invalidated, InvalidationState::UsedUp(_))
    }

    pub(crate) fn is_filled_whole(&self) -> bool {
        self.filled() >= self.intent.order.quantity
    }

    /// What it changed, signed.
    pub(crate) fn traded(&self) -> Delta {
        self.filled().signed(self.intent.order.side)
    }

    /// Whether what it traded can be compared with a price at arrival.
    pub(crate) fn has_arrival_mid(&self) -> bool {
        self.arrival_mid.is_some() || self.fills.is_empty()
    }

    /// Its trades in USD; `rate` is what a unit of its account's quote currency is worth. A number that has no
    /// value there is left as it is.
    pub(crate) fn priced_fills(&self, rate: Decimal) -> impl Iterator<Item = PricedFill> + '_ {
        let price = move |price: Price| {
            let worth = price.value().checked_mul(rate).unwrap_or(price.value());
            Price::try_new(worth).unwrap_or(price)
        };
        self.fills.values().map(move |fill| PricedFill {
            side: fill.side,
            price: price(fill.price),
            quantity: fill.quantity,
            fee: fill.fee.in_usd(rate).map(Notional::new),
            arrival_mid: price(self.arrival_mid.unwrap_or(fill.price)),
        })
    }

    /// Takes the answer to its placement; gives the record of what changed.
    pub(crate) fn on_submitted(&mut self, outcome: SubmitOutcome, now: Timestamp) -> Option<OutcomeRecord> {
        match outcome {
            SubmitOutcome::Acknowledged(ack) => {
                let report = ExecutionReport {
                    client_order_id: self.intent.client_order_id.clone(),
                    venue_order_id: ack.venue_order_id,
                    status: ack.status,
                    filled: ack.filled,
                    average_price: None,
                    venue_time: now,
                };
                self.on_report(&report, Evidence::PlacementAnswer, now)
            }
            SubmitOutcome::NotAccepted(refusal) => {
                if !matches!(self.resolution, Resolution::InFlight) {
                    // The venue showed the order and refused it: one of the two is not true.
                    return self.freeze(format!("rejected ({refusal}) after it was seen at the venue"));
                }
                let local = matches!(
                    refusal.reason,
                    RefusalReason::NotSent
                        | RefusalReason::ProxyFailed
                        | RefusalReason::KeptBack
                        | RefusalReason::Withheld(_)
                );
                let evidence = if local { Evidence::NotSent } else { Evidence::PlacementAnswer };
                let reason = refusal.to_string();
                self.refusal = Some(refusal);
                Some(self.not_accepted(evidence, reason))
            }
            SubmitOutcome::Unknown(cause) => {
                if !matches!(self.resolution, Resolution::InFlight) {
                    return None;
                }
                let text = cause.to_string();
                self.resolution = Resolution::Unknown;
                self.unresolved = Some(cause);
                self.unresolved_since = Some(now);
                self.next_check = Some(now);
                // In unresolved order nothing rests.
                self.cancel_at = self.cancel_at.map(|_| now);
                Some(OutcomeRecord::Unknown { cause: text })
            }
        }
    }

    /// Takes a state that the venue tells; repeats and old news change nothing.
    pub(crate) fn on_report(
        &mut self,
        report: &ExecutionReport,
        evidence: Evidence,
        now: Timestamp,
    ) -> Option<OutcomeRecord> {
        self.venue_order_id = Some(report.venue_order_id.clone());
        self.on_something_found();
        self.reported = self.reported.max(report.filled);
        if self.resolution == Resolution::NotAccepted {
            return self.freeze("seen at the venue after it counted as not accepted".to_owned());
        }
        if self.reported > self.intent.order.quantity {
            return self
                .freeze(format!("{} traded of an order of {}", self.reported, self.intent.order.quantity));
        }
        if matches!(self.resolution, Resolution::Ended(_) | Resolution::Frozen) {
            // Old news, or more trades than the end told of: those are read.
            let late = matches!(self.resolution, Resolution::Ended(_))
                && !self.is_settled()
                && !self.check_in_flight;
            self.next_check = self.next_check.or(late.then(|| now.after(self.patience(TRADES_LATE))));
            return None;
        }
        if report.status.is_terminal() {
            self.resolution = Resolution::Ended(report.status);
            self.evidence = Some(evidence.clone());
            self.next_check = (!self.is_settled()).then(|| now.after(self.patience(TRADES_LATE)));
            return Some(OutcomeRecord::Ended { status: report.status, filled: report.filled, evidence });
        }
        // It came after the venue had nothing to cancel.
        self.gone_at = None;
        let rests = self.was_to_rest() && self.cancels == 0;
        let quiet = if rests { QUIET_AT_REST } else { self.patience(QUIET) };
        self.next_check = Some(now.after(quiet));
        if self.resolution == Resolution::Accepted {
            return None;
        }
        self.resolution = Resolution::Accepted;
        Some(OutcomeRecord::Accepted { evidence })
    }

    /// Takes a trade; gives whether it is new, and the record of what it changed beside the sums.
    pub(crate) fn on_fill(&mut self, fill: Fill) -> (bool, Option<OutcomeRecord>) {
        if self.fills.contains_key(&fill.trade_id) {
            return (false, None);
        }
        self.venue_order_id = Some(fill.venue_order_id.clone());
        self.fills.insert(fill.trade_id.clone(), fill);
        let changed = if self.resolution == Resolution::NotAccepted {
            self.freeze("traded after it counted as not accepted".to_owned())
        } else if self.priced() > self.intent.order.quantity {
            self.freeze(format!("{} traded of an order of {}", self.priced(), self.intent.order.quantity))
        } else {
            None
        };
        if self.is_settled() {
            self.next_check = None;
        }
        (true, changed)
    }

    /// Whether its place at the venue should be taken: it was asked for once and not found.
    pub(crate) fn wants_invalidation(&self) -> bool {
        self.resolution == Resolution::Unknown
            && self.invalidated == InvalidationState::NotTried
            && self.asked > 0
    }

    /// Whether the venue told of it: then it does not end by absence.
    pub(crate) fn was_acknowledged(&self) -> bool {
        self.resolution == Resolution::Accepted || self.venue_order_id.is_some()
    }

    /// Takes a look that found nothing of it; gives whether that is enough to say that it never came to be.
    ///
    /// One look decides after its place at the venue was taken. Else two are needed, a lag apart, with a stream that is
    /// proven since before it was sent, or an event of the account from after its window in the same answers; or looks
    /// over six lags, with a stream that is proven for three.
    pub(crate) fn on_nothing_found(&mut self, look: &Look, lag: Duration) -> bool {
        let (first, count) = self.looked.map_or((look.began, 1), |(first, n)| (first, n.saturating_add(1)));
        self.looked = Some((first, count));
        if self.is_invalidated() {
            return true;
        }
        let over = look.began.since(first);
        let is_proven_for = |time| look.proven_since.is_some_and(|since| since <= look.began.before(time));
        let was_streamed = look.proven_since.is_some_and(|since| since <= self.sent_at);
        (count >= 2 && over >= lag && (was_streamed || look.has_newer_events))
            || (count >= 4
                && over >= lag.saturating_mul(LONG_LOOKS)
                && is_proven_for(lag.saturating_mul(LONG_PROOF)))
    }

    /// Whether it was looked for so long and so often that only a person can tell what became of it: the venue told of it
    /// once and does not show it.
    pub(crate) fn is_missing(&mut self, now: Timestamp, lag: Duration) -> bool {
        let (first, count) = self.looked.map_or((now, 1), |(first, n)| (first, n.saturating_add(1)));
        self.looked = Some((first, count));
        count >= 4 && now.since(first) >= lag.saturating_mul(LONG_LOOKS)
    }

    /// Whether a whole look found nothing of it.
    pub(crate) const fn is_sought(&self) -> bool {
        self.looked.is_some()
    }

    /// How long after a look that did not decide the next one begins: looks that go on for long cost much of a budget.
    pub(crate) fn pause_between_looks(&self, lag: Duration) -> Duration {
        let is_long = self.looked.is_some_and(|(_, count)| count >= 2);
        if is_long { lag.saturating_mul(2) } else { lag }
    }

    /// What was seen says that looks before it proved nothing.
    pub(crate) fn on_something_found(&mut self) {
        self.looked = None;
    }

    /// When it is looked for again where looks did not decide.
    pub(crate) fn look_again_at(&mut self, at: Timestamp) {
        self.next_check = Some(at);
    }

    /// Takes what came of that.
    pub(crate) fn on_invalidated(&mut self, outcome: &Invalidation, now: Timestamp) {
        self.invalidated = match outcome {
            Invalidation::UsedUp => InvalidationState::UsedUp(now),
            Invalidation::Arrived | Invalidation::Unavailable | Invalidation::Unknown(_) => {
                InvalidationState::Failed
            }
        };
        self.next_check = Some(now);
    }

    /// Its trades were read; asks again ever later where some are still missing.
    pub(crate) fn on_trades_read(&mut self, now: Timestamp) {
        self.asked = self.asked.saturating_add(1);
        if self.asked >= TRADES_ASKED && !self.is_settled() {
            // What it changed is known exactly; what was paid is unknown. That is not waited for without limit.
            self.unpriced = true;
            self.unresolved =
                Some(UnknownCause::VenueUncertain("the venue does not show all of its trades".to_owned()));
        }
        let wait = Duration::from_millis(500).saturating_mul(1 << self.asked.min(6));
        self.next_check = (!self.is_settled()).then(|| now.after(wait));
    }

    /// The venue does not show it; soon after a submission this proves nothing.
    pub(crate) fn on_not_found(&mut self, now: Timestamp) {
        let since = self.unresolved_since.unwrap_or(now);
        self.unresolved_since = Some(since);
        self.asked = self.asked.saturating_add(1);
        let wait = ASK_AFTER_MS.get(self.asked).copied().map(Duration::from_millis);
        let next = wait.map_or_else(|| now.after(Duration::from_secs(5)), |wait| since.after(wait));
        self.next_check = Some(next.max(now.after(Duration::from_millis(50))));
    }

    /// Takes what the journal says of it.
    pub(crate) fn restore(&mut self, outcome: &OutcomeRecord) {
        match outcome {
            OutcomeRecord::Accepted { evidence } => {
                self.resolution = Resolution::Accepted;
                self.evidence = Some(evidence.clone());
            }
            OutcomeRecord::Ended { status, filled, evidence } => {
                self.resolution = Resolution::Ended(*status);
                self.reported = self.reported.max(*filled);
                self.decided = matches!(evidence, Evidence::Person(_));
                self.evidence = Some(evidence.clone());
            }
            OutcomeRecord::NotAccepted { evidence, .. } => {
                self.resolution = Resolution::NotAccepted;
                self.evidence = Some(evidence.clone());
            }
            OutcomeRecord::Unknown { cause } => {
                self.resolution = Resolution::Unknown;
                self.unresolved = Some(UnknownCause::VenueUncertain(cause.clone()));
            }
        }
    }

    /// When its absence may be proven: soon after its place was taken, else when its window has passed.
    pub(crate) fn provable_at(&self, slack: Duration) -> Timestamp {
        // What rested may have traded until the moment at which it was gone.
        let expired =
            self.gone_at.map_or(self.intent.order.deadline, |at| at.max(self.intent.order.deadline));
        let expired = expired.after(slack);
        match self.invalidated {
            InvalidationState::UsedUp(at) => at.after(slack.max(INVALIDATION_SLACK)).min(expired),
            InvalidationState::NotTried | InvalidationState::Failed => expired,
        }
    }

    pub(crate) fn not_accepted(&mut self, evidence: Evidence, reason: String) -> OutcomeRecord {
        self.resolution = Resolution::NotAccepted;
        self.evidence = Some(evidence.clone());
        self.next_check = None;
        OutcomeRecord::NotAccepted { evidence, reason }
    }

    /// Takes a person's word.
    pub(crate) fn on_decided(&mut self, settlement: Settlement, by: String) -> OutcomeRecord {
        self.next_check = None;
        match settlement {
            Settlement::NotPlaced => self.not_accepted(Evidence::Person(by), "resolved manually".to_owned()),
            Settlement::Ended { filled } => {
                let status = if filled >= self.intent.order.quantity {
                    OrderStatus::Filled
                } else {
                    OrderStatus::Expired
                };
                // Trades that are known count in any case; those that are not are taken at the person's word.
                let filled = filled.max(self.priced());
                (self.resolution, self.reported, self.decided) = (Resolution::Ended(status), filled, true);
                self.evidence = Some(Evidence::Person(by.clone()));
                OutcomeRecord::Ended { status, filled, evidence: Evidence::Person(by) }
            }
        }
    }

    pub(crate) fn freeze(&mut self, cause: String) -> Option<OutcomeRecord> {
        if self.resolution == Resolution::Frozen {
            return None;
        }
        self.resolution = Resolution::Frozen;
        self.next_check = None;
        // An order in an unknown state does not go on resting.
        self.cancel_at = self.was_to_rest().then_some(Timestamp::default());
        self.unresolved = Some(UnknownCause::VenueUncertain(cause.clone()));
        Some(OutcomeRecord::Unknown { cause })
    }

    /// Adds its fees to the sums of the assets that paid them; `quote` is the currency of its account.
    pub(crate) fn add_fees(&self, quote: &str, sums: &mut BTreeMap<String, Decimal>) {
        for Fee { amount, asset, .. } in self.fills.values().map(|fill| &fill.fee) {
            let sum = sums.entry(asset.clone().unwrap_or_else(|| quote.to_owned())).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// What is known of it; a unit of its account's quote currency is worth `rate`.
    pub(crate) fn report(&self, rate: Decimal) -> Result<OrderReport, MathError> {
        let mut fees = Some(Notional::ZERO);
        let mut traded = Notional::ZERO;
        for fill in self.fills.values() {
            let fee = fill.fee.in_quote(rate).map(Notional::new);
            fees = fees.zip(fee).map(|(sum, fee)| sum.plus(fee)).transpose()?;
            traded = traded.plus(fill.quantity.notional_at(fill.price)?)?;
        }
        let priced = self.priced();
        let average = if priced.is_zero() {
            None
        } else {
            Price::try_new(deltaplane_math::div(traded.value(), priced.value())?).ok()
        };
        let order = &self.intent.order;
        let state = match self.resolution {
            Resolution::InFlight => OrderState::Sent,
            Resolution::Accepted => OrderState::Accepted,
            Resolution::Unknown => OrderState::Unknown,
            Resolution::Ended(OrderStatus::Filled) => OrderState::Filled,
            Resolution::Ended(OrderStatus::Canceled) => OrderState::Canceled,
            Resolution::Ended(_) => OrderState::Expired,
            Resolution::NotAccepted => OrderState::NotAccepted,
            Resolution::Frozen => OrderState::Frozen,
        };
        let unresolved = matches!(self.resolution, Resolution::Unknown | Resolution::Frozen) || self.unpriced;
        let note = self.refusal.as_ref().map(ToString::to_string);
        Ok(OrderReport {
            client_order_id: self.intent.client_order_id.clone(),
            venue_order_id: self.venue_order_id.as_ref().map(ToString::to_string),
            account: order.account.clone(),
            symbol: order.symbol.clone(),
            side: order.side,
            quantity: order.quantity,
            limit_price: order.limit_price,
            state,
            filled: self.filled(),
            trades: self.fills.keys().cloned().collect(),
            untold: self.filled().saturating_minus(priced),
            average_price: average,
            fees,
            evidence: self.evidence.as_ref().map(|evidence| evidence.kind().to_owned()),
            note: note.or_else(|| self.unresolved.as_ref().filter(|_| unresolved).map(ToString::to_string)),
            at: self.fills.values().map(|fill| fill.venue_time).max().unwrap_or(self.sent_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{price, quantity};
    use deltaplane_types::{OrderIntent, Side};

    use super::*;

    fn intent(time_in_force: TimeInForce, deadline: i64) -> IntentRecord {
        let order = OrderIntent {
            account: "main".parse().unwrap(),
            symbol: "BTC-USD".parse().unwrap(),
            side: Side::Buy,
            quantity: quantity("1"),
            limit_price: price("50000"),
            reduce_only: false,
            time_in_force,
            deadline: Timestamp::from_millis(deadline),
        };
        IntentRecord {
            sequence: 1,
            epoch: 1,
            operation: "hedge-1".parse().unwrap(),
            client_order_id: "order-1".parse().unwrap(),
            leg: 0,
            order,
        }
    }

    const LAG: Duration = Duration::from_secs(10);

    /// Looks of an order that was sent at 0, at these seconds, with a stream that is proven since then.
    fn looks(order: &mut TrackedOrder, seconds: &[i64], proven_since: Option<i64>) -> Vec<bool> {
        let look = |second: &i64| {
            let (began, since) = (Timestamp::from_millis(second * 1_000), proven_since);
            let proven_since = since.map(|second| Timestamp::from_millis(second * 1_000));
            order.on_nothing_found(&Look { began, proven_since, has_newer_events: false }, LAG)
        };
        seconds.iter().map(look).collect()
    }

    fn sent() -> TrackedOrder {
        TrackedOrder::new(intent(TimeInForce::ImmediateOrCancel, 3_000), None, Timestamp::default())
    }

    #[test]
    fn two_looks_a_lag_apart_prove_absence_where_the_stream_was_proven_all_the_time() {
        assert_eq!(looks(&mut sent(), &[5, 9, 14, 15], Some(0)), [false, false, false, true]);
        let mut order = sent();
        assert_eq!(looks(&mut order, &[5], Some(0)), [false]);
        order.on_something_found();
        assert_eq!(
            looks(&mut order, &[15, 25], Some(0)),
            [false, true],
            "a sighting resets the count of looks"
        );
    }

    #[test]
    fn without_a_stream_from_before_the_sending_looks_go_on_for_six_lags() {
        let seconds = [5, 15, 35, 55, 64, 65];
        assert_eq!(looks(&mut sent(), &seconds, Some(1)), [false, false, false, false, false, true]);
        assert_eq!(looks(&mut sent(), &seconds, Some(36)), [false; 6], "it is proven for 29 s only");
        assert_eq!(looks(&mut sent(), &[5, 35, 65], Some(1)), [false; 3], "three looks");
        assert_eq!(looks(&mut sent(), &[5, 15, 35, 55, 65, 600], None), [false; 6], "no stream");
        let mut order = sent();
        let look = |second: i64| Look {
            began: Timestamp::from_millis(second * 1_000),
            proven_since: None,
            has_newer_events: true,
        };
        assert!(!order.on_nothing_found(&look(5), LAG));
        assert!(order.on_nothing_found(&look(15), LAG), "the same answers have what came after it");
    }

    #[test]
    fn one_look_decides_after_its_place_was_taken() {
        let mut order = sent();
        order.on_invalidated(&Invalidation::UsedUp, Timestamp::from_millis(1_000));
        assert_eq!(looks(&mut order, &[7], None), [true]);
    }

    /// The venue took it in: that it is not shown any more proves nothing, and after a minute a person must look.
    #[test]
    fn an_order_that_was_acknowledged_does_not_end_by_absence() {
        let mut order = sent();
        assert!(!order.was_acknowledged());
        let report = ExecutionReport {
            client_order_id: "order-1".parse().unwrap(),
            venue_order_id: "7".parse().unwrap(),
            status: OrderStatus::Open,
            filled: Quantity::ZERO,
            average_price: None,
            venue_time: Timestamp::default(),
        };
        order.on_report(&report, Evidence::PlacementAnswer, Timestamp::default());
        assert!(order.was_acknowledged());
        let missing: Vec<bool> = [5, 15, 35, 64, 65]
            .map(|second| order.is_missing(Timestamp::from_millis(second * 1_000), LAG))
            .into();
        assert_eq!(missing, [false, false, false, false, true]);
    }

    /// What rests leaves no trace: its absence is proven from the moment on at which the venue had nothing to cancel.
    #[test]
    fn an_order_that_rests_is_absent_only_where_there_was_nothing_to_cancel() {
        let at = Timestamp::from_millis;
        let slack = Duration::from_secs(1);
        let mut order = TrackedOrder::new(intent(TimeInForce::PostOnly, 3_000), None, at(0));
        order.cancel_at = Some(at(60_000));
        let report = |status| ExecutionReport {
            client_order_id: "order-1".parse().unwrap(),
            venue_order_id: "7".parse().unwrap(),
            status,
            filled: Quantity::ZERO,
            average_price: None,
            venue_time: at(0),
        };
        order.on_report(&report(OrderStatus::Open), Evidence::PlacementAnswer, at(100));
        assert!(order.is_resting() && order.may_be_hidden() && !order.must_be_canceled(at(59_999)));
        assert!(order.must_be_canceled(at(60_000)));
        order.on_canceling(at(60_000));
        assert!(!order.is_resting() && order.open_since() == at(60_000));
        order.on_canceled(true, at(60_200));
        assert!(!order.may_be_hidden());
        assert_eq!(order.provable_at(slack), at(61_200), "the venue may show late what traded until then");
        assert_eq!(order.wakes_at(), Some(at(60_200)), "it is asked for before it is canceled again");
        assert!(order.must_be_canceled(at(61_200)));
        // Seen again, it is not gone.
        order.on_report(&report(OrderStatus::Open), Evidence::OrderQuery, at(60_300));
        assert!(order.may_be_hidden());
        order.on_report(&report(OrderStatus::Canceled), Evidence::OrderQuery, at(60_400));
        assert!(order.is_settled() && order.wakes_at().is_none() && !order.must_be_canceled(at(99_999)));
    }

    /// Of an order that ended with a trade without event, and of one that is open: a second where the stream is
    /// proven, less where it is not.
    #[test]
    fn a_proven_stream_has_a_second_to_tell_before_the_venue_is_asked() {
        let at = Timestamp::from_millis;
        for (status, is_streamed, asked_at) in [
            (OrderStatus::Filled, true, 1_100),
            (OrderStatus::Filled, false, 400),
            (OrderStatus::Open, true, 1_100),
            (OrderStatus::Open, false, 600),
        ] {
            let order = TrackedOrder::new(intent(TimeInForce::ImmediateOrCancel, 3_000), None, at(0));
            let mut order = if is_streamed { order.told_by_stream() } else { order };
            let filled = if status == OrderStatus::Filled { quantity("1") } else { Quantity::ZERO };
            let report = ExecutionReport {
                client_order_id: "order-1".parse().unwrap(),
                venue_order_id: "7".parse().unwrap(),
                status,
                filled,
                average_price: None,
                venue_time: at(0),
            };
            order.on_report(&report, Evidence::PlacementAnswer, at(100));
            assert_eq!(order.wakes_at(), Some(at(asked_at)), "{status:?} {is_streamed}");
        }
    }

    #[test]
    fn an_invalidation_shortens_the_wait_for_a_proof_by_what_the_venue_may_show_late() {
        let at = Timestamp::from_millis;
        let provable = |deadline, used_up: Option<i64>, slack| {
            let intent = intent(TimeInForce::ImmediateOrCancel, deadline);
            let mut order = TrackedOrder::new(intent, None, at(0));
            if let Some(used_up) = used_up {
                order.on_invalidated(&Invalidation::UsedUp, at(used_up));
            }
            order.provable_at(Duration::from_secs(slack)).as_millis()
        };
        assert_eq!(provable(60_000, None, 1), 61_000, "its window and the slack");
        assert_eq!(provable(60_000, Some(1_000), 1), 6_000, "five seconds at least");
        assert_eq!(provable(60_000, Some(1_000), 10), 11_000);
        assert_eq!(provable(3_000, Some(1_000), 1), 4_000, "never later than without an invalidation");
    }
}
