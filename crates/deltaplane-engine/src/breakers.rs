//! Circuit breakers: what happens again and again, or costs too much, stops what adds exposure until a person looked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_ports::{GainPeak, ScopedTrading, TradingOrder};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, Decimal, Notional, Preemption, Ratio, RefusalReason,
    SubmitOutcome, Symbol, Timestamp, TradingScope, TradingState,
};
use tokio::sync::Notify;

use crate::alerts::Condition;
use crate::engine::Core;
use crate::services::or_a_beat;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// The gains of a day are remembered by the minute.
const MINUTE: Duration = Duration::from_secs(60);
/// After accounts could not be read, gains count again this much later: each account's equity was read by then.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// When a breaker trips; none switches it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Orders in a row that an account's venue refused.
    pub refusals: Option<u32>,
    /// Moves of an account's positions within an hour that no order and no trade explains.
    pub mismatches: Option<u32>,
    /// What slippage cost within an hour over all accounts, against the mids at arrival, USD.
    pub slippage: Option<Notional>,
    /// Part of the equity of all accounts together, or of a policy's, that was lost from its highest point within 24
    /// hours. Deposits and withdrawals are no gains and losses, nor is what happens while an account cannot be read or
    /// no check runs.
    pub loss: Option<Ratio>,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            refusals: Some(10),
            mismatches: Some(3),
            slippage: Some(Notional::new(Decimal::from(5_000))),
            loss: Some(Ratio::new(Decimal::from_i128_with_scale(1, 1))),
        }
    }
}

/// A breaker that trips.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trip {
    topic: AlertTopic,
    /// What it stops: an account, a symbol, or where neither is named everything.
    account: Option<AccountId>,
    symbol: Option<Symbol>,
    text: String,
}

/// Accounts whose gains are counted together: those of a symbol's policy, or where none is named all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) symbol: Option<Symbol>,
    pub(crate) accounts: Vec<AccountId>,
}

/// What a book gained within the last day.
#[derive(Default)]
struct Gains {
    accounts: Vec<AccountId>,
    /// The high points of what was gained so far, each below the one before it.
    peaks: VecDeque<(Timestamp, Decimal)>,
    /// What was gained when it was looked at last.
    gained: Decimal,
    /// What is gained until then is not told of every account, and counts as neither gain nor loss.
    gap_until: Option<Timestamp>,
}

impl Gains {
    /// Takes what its accounts gained so far, deposits taken out; gives how much of the highest point is lost.
    fn take(&mut self, gained: Decimal, now: Timestamp) -> Option<Decimal> {
        if let Some(until) = self.gap_until {
            if now < until {
                return None;
            }
            self.gap_until = None;
            // The high points are as far above this as they were above what was gained before.
            let moved = gained.checked_sub(self.gained);
            for (_, peak) in &mut self.peaks {
                *peak = moved.and_then(|moved| peak.checked_add(moved)).unwrap_or(gained);
            }
        }
        self.gained = gained;
        while self.peaks.front().is_some_and(|(at, _)| now.since(*at) >= DAY) {
            self.peaks.pop_front();
        }
        while self.peaks.back().is_some_and(|(_, peak)| *peak <= gained) {
            self.peaks.pop_back();
        }
        if self.peaks.back().is_none_or(|(at, _)| now.since(*at) >= MINUTE) {
            self.peaks.push_back((now, gained));
        }
        let highest = self.peaks.front().map_or(gained, |(_, peak)| *peak);
        highest.checked_sub(gained)
    }
}

/// What the breakers count.
#[derive(Default)]
pub(crate) struct Breakers {
    state: Mutex<Counts>,
    tripped: Notify,
}

#[derive(Default)]
struct Counts {
    refusals: BTreeMap<AccountId, u32>,
    mismatches: BTreeMap<AccountId, VecDeque<Timestamp>>,
    slippage: VecDeque<(Timestamp, Decimal)>,
    /// By the symbol of the book.
    gains: BTreeMap<Option<Symbol>, Gains>,
    trips: Vec<Trip>,
}

fn forget_older(times: &mut VecDeque<Timestamp>, now: Timestamp) {
    while times.front().is_some_and(|at| now.since(*at) >= HOUR) {
        times.pop_front();
    }
}

impl Counts {
    fn on_submitted(&mut self, account: &AccountId, outcome: &SubmitOutcome, most: Option<u32>) {
        let refusal = match outcome {
            SubmitOutcome::NotAccepted(refusal) => refusal,
            SubmitOutcome::Acknowledged(_) => {
                self.refusals.remove(account);
                return;
            }
            SubmitOutcome::Unknown(_) => return,
        };
        // What never reached the venue, or says nothing of the order, is met elsewhere.
        if matches!(
            refusal.reason,
            RefusalReason::KeptBack
                | RefusalReason::Withheld(_)
                | RefusalReason::NotSent
                | RefusalReason::ProxyFailed
                | RefusalReason::RateLimited
                | RefusalReason::Overloaded
        ) {
            return;
        }
        let count = self.refusals.entry(account.clone()).or_default();
        *count = count.saturating_add(1);
        if most.is_some_and(|most| *count >= most) {
            *count = 0;
            self.trips.push(Trip {
                topic: AlertTopic::BreakerRefusals,
                account: Some(account.clone()),
                symbol: None,
                text: format!("{account}: its venue rejected {} orders in a row", most.unwrap_or_default()),
            });
        }
    }

    fn on_mismatch(&mut self, account: &AccountId, now: Timestamp, most: Option<u32>) {
        let times = self.mismatches.entry(account.clone()).or_default();
        forget_older(times, now);
        times.push_back(now);
        if most.is_some_and(|most| times.len() >= most as usize) {
            times.clear();
            let most = most.unwrap_or_default();
            self.trips.push(Trip {
                topic: AlertTopic::BreakerMismatches,
                account: Some(account.clone()),
                symbol: None,
                text: format!(
                    "{account}: its positions changed {most} times within an hour without explanation"
                ),
            });
        }
    }

    fn on_slippage(&mut self, cost: Notional, now: Timestamp, most: Option<Notional>) {
        while self.slippage.front().is_some_and(|(at, _)| now.since(*at) >= HOUR) {
            self.slippage.pop_front();
        }
        self.slippage.push_back((now, cost.value()));
        let sum = self.slippage.iter().try_fold(Decimal::ZERO, |sum, (_, cost)| sum.checked_add(*cost));
        if let (Some(most), Some(sum)) = (most, sum)
            && sum > most.value()
        {
            self.slippage.clear();
            let text = format!("slippage above {most} USD within an hour");
            self.trips.push(Trip { topic: AlertTopic::BreakerSlippage, account: None, symbol: None, text });
        }
    }

    /// Takes what a book's accounts gained so far, deposits taken out, and the equity that is left of it.
    fn on_gains(
        &mut self,
        book: &Book,
        (gained, equity): (Decimal, Notional),
        now: Timestamp,
        most: Option<Ratio>,
    ) {
        let gains = self.gains.entry(book.symbol.clone()).or_default();
        if gains.accounts != book.accounts {
            // What others gained before says nothing of these.
            gains.accounts.clone_from(&book.accounts);
            gains.gap_until = gains.gap_until.max(Some(now));
        }
        let Some(lost) = gains.take(gained, now) else { return };
        let Some(before) = equity.value().checked_add(lost).filter(|before| *before > Decimal::ZERO) else {
            return;
        };
        let ratio = lost.checked_div(before).unwrap_or_default();
        if let Some(most) = most.filter(|most| ratio > most.value()) {
            gains.peaks.clear();
            let whose = match &book.symbol {
                None => "all accounts".to_owned(),
                Some(symbol) => format!("the accounts that keep {symbol} neutral"),
            };
            let text = format!(
                "loss of {lost} USD within 24 hours, {} of the equity of {whose} (limit {most})",
                ratio.round_dp(4).normalize()
            );
            let symbol = book.symbol.clone();
            self.trips.push(Trip { topic: AlertTopic::BreakerLoss, account: None, symbol, text });
        }
    }
}

impl Breakers {
    fn note(&self, f: impl FnOnce(&mut Counts)) {
        let mut counts = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut counts);
        if !counts.trips.is_empty() {
            self.tripped.notify_one();
        }
    }

    pub(crate) fn on_submitted(
        &self,
        account: &AccountId,
        outcome: &SubmitOutcome,
        settings: &BreakerSettings,
    ) {
        self.note(|counts| counts.on_submitted(account, outcome, settings.refusals));
    }

    pub(crate) fn on_mismatch(&self, account: &AccountId, now: Timestamp, settings: &BreakerSettings) {
        self.note(|counts| counts.on_mismatch(account, now, settings.mismatches));
    }

    pub(crate) fn on_slippage(&self, cost: Notional, now: Timestamp, settings: &BreakerSettings) {
        self.note(|counts| counts.on_slippage(cost, now, settings.slippage));
    }

    /// Not every account of a book could be read: what is gained until all of them are again counts as neither gain nor
    /// loss.
    pub(crate) fn on_gap(&self, symbol: Option<&Symbol>, now: Timestamp) {
        self.note(|counts| {
            let gains = counts.gains.entry(symbol.cloned()).or_default();
            gains.gap_until = Some(now.after(SETTLED_AFTER));
        });
    }

    /// Forgets the books that are none any more: their policies are gone.
    pub(crate) fn keep_books(&self, books: &[Book]) {
        self.note(|counts| {
            counts.gains.retain(|symbol, _| books.iter().any(|book| book.symbol == *symbol));
        });
    }

    /// How far above what is gained now the high points of the last day are.
    pub(crate) fn peaks(&self) -> Vec<GainPeak> {
        let counts = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let of_book = |(symbol, gains): (&Option<Symbol>, &Gains)| {
            let above = |(at, peak): &(Timestamp, Decimal)| {
                let above = peak.checked_sub(gains.gained)?;
                Some(GainPeak { symbol: symbol.clone(), at: *at, above })
            };
            gains.peaks.iter().filter_map(above).collect::<Vec<_>>()
        };
        counts.gains.iter().flat_map(of_book).collect()
    }

    /// Goes on from what an earlier run kept. What was gained since then counts as neither gain nor loss.
    pub(crate) fn resume(&self, peaks: Vec<GainPeak>) {
        self.note(|counts| {
            for GainPeak { symbol, at, above } in peaks {
                let gains = counts.gains.entry(symbol).or_default();
                gains.gap_until = Some(Timestamp::default());
                gains.peaks.push_back((at, above));
            }
        });
    }

    pub(crate) fn on_gains(
        &self,
        book: &Book,
        of_book: (Decimal, Notional),
        now: Timestamp,
        settings: &BreakerSettings,
    ) {
        self.note(|counts| counts.on_gains(book, of_book, now, settings.loss));
    }
}

/// The alerts of the breakers: they end when a person lets trading go on.
pub(crate) const TOPICS: [AlertTopic; 4] = [
    AlertTopic::BreakerRefusals,
    AlertTopic::BreakerMismatches,
    AlertTopic::BreakerSlippage,
    AlertTopic::BreakerLoss,
];

/// The name of the loop among the services.
pub(crate) const NAME: &str = "breakers";

/// Carries out what trips until dropped.
pub(crate) async fn keep_tripping(core: Arc<Core>) {
    loop {
        core.shared.services.beat(NAME, &*core.shared.reader.clock);
        or_a_beat(core.shared.breakers.tripped.notified()).await;
        let trips = {
            let mut counts = core.shared.breakers.state.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut counts.trips)
        };
        for trip in trips {
            core.trip(trip).await;
        }
    }
}

impl Core {
    async fn trip(&self, Trip { topic, account, symbol, text }: Trip) {
        let shared = &self.shared;
        let now = shared.reader.clock.now();
        let scope = match (&account, &symbol) {
            (Some(account), _) => TradingScope::Account(account.clone()),
            (None, Some(symbol)) => TradingScope::Symbol(symbol.clone()),
            (None, None) => TradingScope::Global,
        };
        let change = |order: &mut TradingOrder| match &scope {
            TradingScope::Global => {
                if order.state < TradingState::ReduceOnly {
                    order.reason.clone_from(&text);
                }
                (order.state, order.at) = (order.state.max(TradingState::ReduceOnly), now);
            }
            scope => {
                let held = order.scoped.get(scope).map_or(TradingState::Running, |held| held.state);
                if held < TradingState::ReduceOnly {
                    let state = TradingState::ReduceOnly;
                    order
                        .scoped
                        .insert(scope.clone(), ScopedTrading { state, reason: text.clone(), at: now });
                }
            }
        };
        let (id, of) = match &scope {
            TradingScope::Account(account) => (account.as_str(), "account"),
            TradingScope::Symbol(symbol) => (symbol.as_str(), "symbol"),
            TradingScope::Global => ("its positions", "global"),
        };
        let condition = Condition {
            kind: AlertKind::System,
            topic,
            severity: AlertSeverity::Critical,
            account: account.clone(),
            symbol: symbol.clone(),
            message: format!(
                "{text}. REDUCE_ONLY now. Check {id}, then PUT /api/v1/trading-state with scope {of} and state RUNNING."
            ),
        };
        let records = shared.alerts.raise(condition, now).into_iter().collect();
        // It holds at once; a failure stops all sending by itself.
        let _ = shared.reader.trading.change(&shared.execution.recorder, change, records).await;
        self.preempt(Preemption::CircuitBreaker, |at_work| {
            account.as_ref().is_none_or(|account| at_work.accounts.contains(account))
                && symbol.as_ref().is_none_or(|symbol| at_work.symbol == *symbol)
        });
    }
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{notional, ratio};
    use deltaplane_types::Refusal;

    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_millis(minutes * 60_000)
    }

    fn book(symbol: Option<&str>) -> Book {
        let accounts = ["long", "short"].map(|id| id.parse().unwrap()).to_vec();
        Book { symbol: symbol.map(|symbol| symbol.parse().unwrap()), accounts }
    }

    fn topics(counts: &mut Counts) -> Vec<AlertTopic> {
        std::mem::take(&mut counts.trips).into_iter().map(|trip| trip.topic).collect()
    }

    #[test]
    fn only_refusals_of_the_venue_in_a_row_count() {
        let refused = |reason| {
            SubmitOutcome::NotAccepted(Refusal { reason, code: None, text: "no".to_owned(), remedy: None })
        };
        let main: AccountId = "main".parse().unwrap();
        let mut counts = Counts::default();
        let mut send = |outcome| counts.on_submitted(&main, &outcome, Some(3));
        send(refused(RefusalReason::Rejected));
        send(refused(RefusalReason::Rejected));
        send(refused(RefusalReason::RateLimited));
        send(refused(RefusalReason::NotSent));
        send(SubmitOutcome::Acknowledged(deltaplane_types::OrderAck {
            venue_order_id: "1".parse().unwrap(),
            status: deltaplane_types::OrderStatus::Expired,
            filled: deltaplane_types::Quantity::ZERO,
        }));
        send(refused(RefusalReason::Rejected));
        send(refused(RefusalReason::NotPermitted));
        assert_eq!(counts.trips, []);
        counts.on_submitted(&main, &refused(RefusalReason::Rejected), Some(3));
        assert_eq!(topics(&mut counts), [AlertTopic::BreakerRefusals]);
        counts.on_submitted(&main, &refused(RefusalReason::Rejected), None);
        assert_eq!(counts.trips, []);
    }

    #[test]
    fn mismatches_and_slippage_count_for_an_hour() {
        let main: AccountId = "main".parse().unwrap();
        let mut counts = Counts::default();
        for minute in [0, 30, 60] {
            counts.on_mismatch(&main, at(minute), Some(3));
        }
        assert_eq!(counts.trips, [], "the first is an hour old");
        counts.on_mismatch(&main, at(61), Some(3));
        assert_eq!(topics(&mut counts), [AlertTopic::BreakerMismatches]);
        let most = Some(notional("100"));
        counts.on_slippage(notional("60"), at(0), most);
        counts.on_slippage(notional("60"), at(60), most);
        counts.on_slippage(notional("-10"), at(61), most);
        counts.on_slippage(notional("50"), at(62), most);
        assert_eq!(counts.trips, [], "60 - 10 + 50 is not above 100");
        counts.on_slippage(notional("0.01"), at(63), most);
        assert_eq!(topics(&mut counts), [AlertTopic::BreakerSlippage]);
    }

    #[test]
    fn a_loss_counts_from_the_highest_point_of_a_day() {
        let mut counts = Counts::default();
        let most = Some(ratio("0.1"));
        let gains = |counts: &mut Counts, gained: &str, equity: &str, minute| {
            counts.on_gains(&book(None), (notional(gained).value(), notional(equity)), at(minute), most);
            topics(counts)
        };
        assert!(gains(&mut counts, "0", "1000", 0).is_empty());
        assert!(gains(&mut counts, "100", "1100", 10).is_empty());
        // 110 of 1,100 are a tenth: not more.
        assert!(gains(&mut counts, "-10", "990", 20).is_empty());
        assert_eq!(gains(&mut counts, "-11", "989", 30), [AlertTopic::BreakerLoss]);
        let mut slow = Counts::default();
        assert!(gains(&mut slow, "100", "1100", 0).is_empty());
        assert!(gains(&mut slow, "0", "1000", 1_000).is_empty());
        // A day later the 100 are forgotten: 100 of 1,000 are a tenth.
        assert!(gains(&mut slow, "-100", "900", 24 * 60).is_empty());
        assert_eq!(gains(&mut slow, "-101", "899", 24 * 60 + 1), [AlertTopic::BreakerLoss]);
    }

    /// 60 of 1,000 are lost, a gap in which 500 seem to be lost says nothing, a restart forgets nothing: another 41 trip.
    #[test]
    fn a_gap_and_a_restart_are_neither_gain_nor_loss_and_forget_none() {
        let settings = BreakerSettings { loss: Some(ratio("0.1")), ..BreakerSettings::default() };
        let gains = |breakers: &Breakers, gained: &str, equity: &str, at| {
            breakers.on_gains(&book(None), (notional(gained).value(), notional(equity)), at, &settings);
            topics(&mut breakers.state.lock().unwrap())
        };
        let breakers = Breakers::default();
        assert!(gains(&breakers, "0", "1000", at(0)).is_empty());
        assert!(gains(&breakers, "-60", "940", at(1)).is_empty());
        breakers.on_gap(None, at(2));
        assert!(gains(&breakers, "-500", "500", at(2).after(SETTLED_AFTER / 2)).is_empty());
        assert!(gains(&breakers, "-560", "940", at(3)).is_empty());
        let kept = breakers.peaks();
        let peak =
            |minute, above: &str| GainPeak { symbol: None, at: at(minute), above: notional(above).value() };
        assert_eq!(kept, [peak(0, "60"), peak(3, "0")]);
        let again = Breakers::default();
        again.resume(kept);
        // The new run counts from zero again.
        assert!(gains(&again, "0", "940", at(60)).is_empty());
        assert!(gains(&again, "-40", "900", at(61)).is_empty(), "100 of 1,000 are a tenth");
        assert_eq!(gains(&again, "-41", "899", at(62)), [AlertTopic::BreakerLoss]);
        assert_eq!(again.peaks(), []);
    }

    /// One group of three loses an eighth of its equity, and all together a twenty-fourth of theirs. Other accounts in its
    /// place begin with what they gained.
    #[test]
    fn the_loss_of_a_group_stops_its_symbol_and_not_the_others() {
        let mut counts = Counts::default();
        let most = Some(ratio("0.1"));
        let (all, group) = (book(None), book(Some("BTC-USD")));
        for (gained, minute) in [("0", 0), ("-100", 1)] {
            let gained = notional(gained).value();
            let left = |before: &str| Notional::new(notional(before).value() + gained);
            counts.on_gains(&all, (gained, left("2400")), at(minute), most);
            counts.on_gains(&group, (gained, left("800")), at(minute), most);
        }
        let trips = std::mem::take(&mut counts.trips);
        assert_eq!((trips.len(), trips[0].symbol.clone()), (1, group.symbol.clone()));
        assert!(trips[0].text.starts_with(
            "loss of 100 USD within 24 hours, 0.125 of the equity of the accounts that keep BTC-USD neutral"
        ));
        let others = Book { accounts: vec!["spare".parse().unwrap()], ..group };
        counts.on_gains(&others, (notional("-500").value(), notional("800")), at(2), most);
        assert_eq!(counts.trips, [], "they lost that before they were of this book");
    }
}
