//! What an account's equity did since the start, and how it stands now.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deltaplane_math::{MarkedPosition, joint_liquidation_distance, shared_equity};
use deltaplane_math::{MathError, div, mul_rounded};
use deltaplane_ports::{
    AccountEvent, AccountRisk, BalanceCause, EquityMark, Failure, PositionRisk, Priority,
};
use deltaplane_risk::{Drawdown, DrawdownState, EquityPoint};
use deltaplane_types::{
    AccountId, AccountSnapshot, Code, Decimal, Delta, HeldSide, Instrument, MarginBracket, MarginPrice,
    Notional, Position, Price, Ratio, Symbol, Timestamp,
};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::accounts::AccountMonitor;
use crate::engine::Core;
use crate::report::failure;

/// A read counts if no money moved for this long after it: nothing else distinguishes the two.
const QUIET: Duration = Duration::from_secs(1);

/// How often the equity of an account is observed that is not read because its stream is proven.
const OBSERVED_EVERY: Duration = Duration::from_secs(2);
/// How long valuing it may take.
const VALUED_WITHIN: Duration = Duration::from_millis(500);

/// How long a reading takes at most, as a rule: marks that came within it may be older than what it tells.
const READING: Duration = Duration::from_secs(1);

/// How far a mark moves before a reading is carried on to it: by less than this it waits for the next one.
const MOVED: Decimal = Decimal::from_parts(1, 0, 0, false, 3);

/// How long an account's margin table is waited for when its risk is valued.
const TABLE_WITHIN: Duration = Duration::from_secs(2);

/// Equity of one account over time.
#[derive(Default)]
pub(crate) struct EquityTrack(Mutex<State>);

#[derive(Default)]
struct State {
    drawdown: Drawdown,
    /// What was paid in and out since the last point.
    flow: Decimal,
    /// An amount is unknown: the next point only starts again.
    unknown_flow: bool,
    /// How often that was so.
    gaps: u64,
    flowed_at: Timestamp,
    last: Option<Notional>,
    /// What was gained since the start of this run, deposits taken out.
    gained: Decimal,
}

impl EquityTrack {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Money moved that no trade and no funding moved.
    fn on_flow(&self, amount: Option<Notional>, now: Timestamp) {
        self.with(|state| {
            state.flowed_at = now;
            match amount.and_then(|amount| state.flow.checked_add(amount.value())) {
                Some(flow) => state.flow = flow,
                None => (state.unknown_flow, state.gaps) = (true, state.gaps.saturating_add(1)),
            }
        });
    }

    /// Takes a reading that was asked for at `as_of`, unless money moved since: that may be in it or not.
    fn observe(&self, equity: Notional, as_of: Timestamp) {
        self.with(|state| {
            if state.flowed_at >= as_of && state.flowed_at != Timestamp::default() {
                return;
            }
            let flow = match (state.unknown_flow, state.last) {
                (true, Some(last)) => equity.minus(last).unwrap_or_default(),
                _ => Notional::new(state.flow),
            };
            if let Some(last) = state.last {
                let gain = equity.minus(last).and_then(|change| change.minus(flow));
                let sum = gain.ok().and_then(|gain| state.gained.checked_add(gain.value()));
                state.gained = sum.unwrap_or(state.gained);
            }
            (state.flow, state.unknown_flow, state.last) = (Decimal::ZERO, false, Some(equity));
            // A number that cannot be held changes nothing.
            let _ = state.drawdown.observe(EquityPoint { equity, flow });
        });
    }

    /// Whether money moved from outside within this time.
    fn flowed_within(&self, within: Duration, now: Timestamp) -> bool {
        self.with(|state| state.flowed_at != Timestamp::default() && now.since(state.flowed_at) < within)
    }

    fn max_drawdown(&self) -> Ratio {
        self.with(|state| state.drawdown.maximum())
    }

    /// What was gained since the start of this run, deposits and withdrawals taken out; the account's currency.
    pub(crate) fn gained(&self) -> Decimal {
        self.with(|state| state.gained)
    }

    /// How often money of unknown amount moved: what the account gained then is not counted, so that what the
    /// others gained at that time has no counterpart. With whether that is so now.
    pub(crate) fn gaps(&self) -> (u64, bool) {
        self.with(|state| (state.gaps, state.unknown_flow))
    }

    /// What a later run goes on from.
    pub(crate) fn mark(&self) -> EquityMark {
        let DrawdownState { last_equity, index, peak, maximum } = self.with(|state| state.drawdown.state());
        EquityMark { last_equity, index, peak, max_drawdown: maximum }
    }

    /// Goes on from what an earlier run kept. What was paid in or out since then is not known, so what equity did
    /// meanwhile counts as neither gain nor loss.
    pub(crate) fn resume(&self, mark: &EquityMark) {
        let EquityMark { last_equity, index, peak, max_drawdown: maximum } = *mark;
        self.with(|state| {
            state.drawdown = Drawdown::resume(&DrawdownState { last_equity, index, peak, maximum });
            (state.last, state.unknown_flow) = (last_equity, true);
        });
    }
}

/// Follows an account's equity until dropped.
pub(crate) async fn keep_track(core: Arc<Core>, monitor: Arc<AccountMonitor>) {
    let mut readings = monitor.readings();
    let mut events = monitor.reader.subscribe();
    let mut tick = tokio::time::interval(OBSERVED_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            event = events.recv() => if !note(&monitor, &event) { return },
            // While the stream is proven nothing is read: the state goes on with the marks.
            () = async { if !readings.changed().await { std::future::pending().await } } => {}
            _ = tick.tick(), if monitor.is_live() => {}
        }
        readings.mark_unchanged();
        // Money that moved a moment ago may be in the state or not.
        let now = monitor.now();
        let Some((snapshot, as_of)) = monitor.newest().zip(monitor.confirmed_at()) else { continue };
        if monitor.equity.flowed_within(QUIET, now) {
            continue;
        }
        let valued = match tokio::time::timeout(VALUED_WITHIN, core.valued(&monitor.id, &snapshot)).await {
            Ok(Ok((valued, _))) => valued,
            // Without a mark or a table the venue's own figures count, when they are read.
            _ if snapshot.as_of == snapshot.valued_at => (*snapshot).clone(),
            _ => continue,
        };
        // What comes in this moment decides whether the state counts.
        let quiet = tokio::time::sleep(QUIET);
        tokio::pin!(quiet);
        loop {
            tokio::select! {
                biased;
                event = events.recv() => if !note(&monitor, &event) { return },
                () = &mut quiet => break,
            }
        }
        if let Ok(equity) = valued.equity() {
            monitor.equity.observe(equity, as_of);
        }
    }
}

/// Takes an event; gives whether the stream goes on.
fn note(monitor: &AccountMonitor, event: &Result<AccountEvent, RecvError>) -> bool {
    let now = monitor.now();
    match event {
        Ok(AccountEvent::BalanceChanged { amount, cause: BalanceCause::Transfer }) => {
            monitor.equity.on_flow(*amount, now);
        }
        // What was missed may have been a deposit.
        Ok(AccountEvent::Disconnected) | Err(broadcast::error::RecvError::Lagged(_)) => {
            monitor.equity.on_flow(None, now);
        }
        Ok(_) => {}
        Err(broadcast::error::RecvError::Closed) => return false,
    }
    true
}

/// What a move of its mark adds to a position and to its account.
struct Carried {
    mark: Price,
    /// By how much it is above the one before.
    moved: Decimal,
    profit: Notional,
    initial: Notional,
    maintenance: Notional,
}

/// Carries a position on to a newer mark; none where that is near the one that it was read with. Without a leverage its
/// initial margin stays.
fn carried(
    position: &Position,
    (leverage, brackets): (Option<Decimal>, &[MarginBracket]),
    mark: Price,
) -> Result<Option<Carried>, MathError> {
    let Some(before) = position.mark_price else { return Ok(None) };
    let moved = deltaplane_math::sub(mark.value(), before.value())?;
    if moved.abs() < mul_rounded(before.value(), MOVED)? {
        return Ok(None);
    }
    let maintenance = |at| {
        position.parts().into_iter().try_fold(Notional::ZERO, |sum, part| {
            Ok::<_, MathError>(sum.plus(deltaplane_math::maintenance_margin(brackets, part, at)?)?)
        })
    };
    let grown = mul_rounded(position.gross()?.value(), moved)?;
    Ok(Some(Carried {
        mark,
        profit: Notional::new(mul_rounded(position.delta.value(), moved)?),
        initial: match leverage {
            Some(leverage) => Notional::new(div(grown, leverage.max(Decimal::ONE))?),
            None => Notional::ZERO,
        },
        maintenance: maintenance(mark)?.minus(maintenance(before)?)?,
        moved,
    }))
}

impl Carried {
    /// The position as it is by now; its account's sums move with it.
    fn apply(&self, position: &Position, account: &mut AccountSnapshot) -> Result<Position, MathError> {
        let side = |side: &HeldSide| -> Result<HeldSide, MathError> {
            let profit = Notional::new(mul_rounded(side.delta.value(), self.moved)?);
            Ok(HeldSide { unrealized: side.unrealized.plus(profit)?, ..side.clone() })
        };
        let moved = Position {
            sides: position.sides.iter().map(side).collect::<Result<_, _>>()?,
            mark_price: Some(self.mark),
            unrealized: position.unrealized.plus(self.profit)?,
            initial_margin: position.initial_margin.plus(self.initial)?,
            maintenance_margin: position.maintenance_margin.plus(self.maintenance)?,
            ..position.clone()
        };
        let unrealized = account.unrealized.plus(self.profit)?;
        let initial = account.initial_margin.plus(self.initial)?;
        account.maintenance_margin = account.maintenance_margin.plus(self.maintenance)?;
        (account.unrealized, account.initial_margin) = (unrealized, initial);
        Ok(moved)
    }
}

fn worth(amount: Notional, rate: Decimal) -> Result<Notional, MathError> {
    mul_rounded(amount.value(), rate).map(Notional::new)
}

impl Core {
    /// An account's newest state, carried on to the marks that its stream told since, and every position of it with its
    /// mark and its instrument. A position that cannot be valued must not look like none.
    pub(crate) async fn valued(
        &self,
        id: &AccountId,
        snapshot: &AccountSnapshot,
    ) -> Result<(AccountSnapshot, Vec<(Position, Instrument)>), Box<Failure>> {
        let reader = &self.shared.reader;
        let mut snapshot = snapshot.clone();
        let held: Vec<Position> =
            snapshot.positions.values().filter(|position| position.is_held()).cloned().collect();
        let mut valued = Vec::with_capacity(held.len());
        let feed = reader.feed_of.get(id).and_then(|feed| reader.feeds.get(feed));
        for mut position in held {
            // Some venues tell the mark with prices only.
            let view = feed.and_then(|feed| feed.view(&position.symbol));
            let streamed = view.as_ref().and_then(|view| view.mark);
            position.mark_price = position.mark_price.or(streamed);
            let newer = view.filter(|view| {
                // A reading takes a moment: what it tells is newer than when it was asked for.
                view.mark_at.is_some_and(|at| at.since(snapshot.valued_at) >= READING)
            });
            let newer = newer.and_then(|view| view.mark);
            let instrument = self.contract(id, &position.symbol).await;
            let (Some(instrument), true) = (instrument, position.mark_price.is_some()) else {
                let text = format!("the position of {id} in {} cannot be valued now", position.symbol);
                let remedy = "wait until the venue sends its mark price and margin table again";
                return Err(failure(Code::MarketDataUnavailable, text, remedy));
            };
            if let Some(mark) = newer {
                let margin_leverage =
                    (instrument.initial_margin_from == MarginPrice::Mark).then_some(instrument.leverage);
                // A number that cannot be held changes nothing: the reading stands.
                if let Ok(Some(carried)) = carried(&position, (margin_leverage, &instrument.brackets), mark) {
                    position = carried.apply(&position, &mut snapshot).unwrap_or(position);
                }
            }
            valued.push((position, instrument));
        }
        Ok((snapshot, valued))
    }

    /// A contract with its margin table, as the venue told it last: tables change seldom, an old one shows more than none,
    /// and the watch of contracts asks again for what is held. None where the venue does not tell it now and never did.
    pub(crate) async fn contract(&self, id: &AccountId, symbol: &Symbol) -> Option<Instrument> {
        let reader = &self.shared.reader;
        let key = (id.clone(), symbol.clone());
        let tables = || reader.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let last = tables().get(&key).cloned();
        if last.is_some() {
            return last;
        }
        // Who looks at all accounts must not wait for one venue.
        let asked = reader.accounts.get(id)?.reader.fetch_instrument(symbol, Priority::Sync);
        let told = tokio::time::timeout(TABLE_WITHIN, asked).await.ok()?.ok()?;
        tables().insert(key, told.clone());
        Some(told)
    }

    /// The joint distance to liquidation of an account if its position in a symbol were another one, traded at the
    /// mark. The outer none: not known. The inner: there is no such move. Isolated positions in other symbols, which it
    /// can neither help nor harm, are left out.
    pub(crate) async fn distance_with(
        &self,
        id: &AccountId,
        symbol: &Symbol,
        position: Delta,
    ) -> Option<Option<Ratio>> {
        let snapshot = self.shared.reader.accounts.get(id)?.newest()?;
        let (snapshot, valued) = self.valued(id, &snapshot).await.ok()?;
        let holdings = &self.shared.reader.config.holdings;
        let own_rate = valued.first().map_or(Decimal::ONE, |(_, of)| holdings.rate(&of.quote));
        let equity = worth(snapshot.equity().ok()?, own_rate).ok()?;
        let mut known = Vec::with_capacity(valued.len());
        for (held, instrument) in &valued {
            let changed = if held.symbol == *symbol { with_delta(held, position)? } else { held.split() };
            for held in changed.iter().filter(|held| !held.delta.is_zero()) {
                known.push(marked(held, instrument, holdings.rate(&instrument.quote)).ok()?);
            }
        }
        let is_isolated =
            |(held, _): &&(Position, Instrument)| held.symbol == *symbol && held.isolated_margin.is_some();
        if let Some((held, instrument)) = valued.iter().find(is_isolated) {
            let held = Position { delta: position, ..held.clone() };
            let own = marked(&held, instrument, holdings.rate(&instrument.quote)).ok()?;
            return joint_liquidation_distance(own.own_equity?, &[own]).ok();
        }
        let shared = shared_equity(equity, &known).ok()?;
        known.retain(|position| position.own_equity.is_none());
        joint_liquidation_distance(shared, &known).ok()
    }

    /// How an account stands, from its newest known state.
    pub(crate) async fn account_risk(&self, id: &AccountId) -> Result<AccountRisk, Box<Failure>> {
        let Some(monitor) = self.shared.reader.accounts.get(id) else {
            let text = format!("no account {id} is configured");
            return Err(failure(Code::InvalidAccount, text, "see GET /api/v1/accounts"));
        };
        let Some(snapshot) = monitor.newest() else {
            let text = format!("account {id} was not read yet");
            return Err(failure(
                Code::NotRunning,
                text,
                "wait until GET /readyz names it with another source than none",
            ));
        };
        let (snapshot, instruments) = self.valued(id, &snapshot).await?;
        let holdings = &self.shared.reader.config.holdings;
        let rate = |instrument: &Instrument| holdings.rate(&instrument.quote);
        // An account has one quote currency here; where it holds nothing its money counts as it is.
        let own_rate = instruments.first().map_or(Decimal::ONE, |(_, instrument)| rate(instrument));
        let assess = || -> Result<AccountRisk, MathError> {
            let equity = worth(snapshot.equity()?, own_rate)?;
            let split = instruments.iter().flat_map(|(position, instrument)| {
                position.split().into_iter().map(move |part| (part, instrument))
            });
            let parts: Vec<(Position, &Instrument)> = split.collect();
            let mut known = Vec::with_capacity(parts.len());
            for (position, instrument) in &parts {
                known.push(marked(position, instrument, rate(instrument))?);
            }
            let distances = {
                let mut book = self.shared.distances.lock().unwrap_or_else(PoisonError::into_inner);
                book.of(id, equity, known.clone())?.clone()
            };
            let mut gross = Notional::ZERO;
            let mut positions = Vec::new();
            for (((position, instrument), marked), distance) in parts.iter().zip(&known).zip(distances.alone)
            {
                let pair = instruments.iter().find(|(whole, _)| {
                    whole.symbol == position.symbol && !whole.sides.is_empty() && marked.own_equity.is_none()
                });
                let (distance, net) = match pair {
                    // Both sides move together: neither has a distance of its own.
                    Some((whole, _)) => {
                        let of_symbol: Vec<bool> =
                            parts.iter().map(|(part, _)| part.symbol == whole.symbol).collect();
                        (distance_of_pair(equity, &known, &of_symbol)?, whole.delta)
                    }
                    None => (distance, position.delta),
                };
                let one = alone(position, (marked, net), distance, rate(instrument))?;
                gross = gross.plus(one.notional)?;
                positions.push(one);
            }
            let over_equity = |amount: Notional| -> Result<Option<Ratio>, MathError> {
                if !equity.is_positive() {
                    return Ok(None);
                }
                div(amount.value(), equity.value()).map(|ratio| Some(Ratio::new(ratio)))
            };
            let mut deviation = Decimal::ZERO;
            for (position, _) in &instruments {
                let net = holdings.delta(&snapshot, &holdings.counted_in(&position.symbol))?;
                let rest = net.minus(position.delta)?.abs().value();
                let both = deltaplane_math::add(position.delta.abs().value(), rest)?;
                deviation = deviation.max(div(net.abs().value(), both)?);
            }
            Ok(AccountRisk {
                account: id.clone(),
                as_of: monitor.confirmed_at().unwrap_or(snapshot.as_of),
                equity,
                unrealized: worth(snapshot.unrealized, own_rate)?,
                utilization: over_equity(worth(snapshot.initial_margin, own_rate)?)?,
                leverage: over_equity(gross)?,
                margin_ratio: over_equity(worth(snapshot.maintenance_margin, own_rate)?)?,
                max_drawdown: monitor.equity.max_drawdown(),
                delta_deviation: Ratio::new(deviation),
                liquidation_distance: distances.joint,
                positions,
            })
        };
        assess().map_err(|error| {
            let text = format!("arithmetic overflow: the values of account {id} are too large ({error})");
            failure(Code::Internal, text, "look at the account at its venue")
        })
    }
}

/// The parts of a position if its net were another one: a trade takes off the opposite side first.
fn with_delta(held: &Position, delta: Delta) -> Option<Vec<Position>> {
    let Some(sides) = held.sides() else { return Some(vec![Position { delta, ..held.clone() }]) };
    let after = sides.after(delta.minus(held.delta).ok()?).ok()?;
    let parts = held.split().into_iter().map(|part| {
        let quantity = if part.delta.is_negative() { after.short } else { after.long };
        Position { delta: quantity.signed(part.delta.side()), ..part }
    });
    Some(parts.collect())
}

/// A position at its mark, in USD.
pub(crate) fn marked(
    position: &Position,
    instrument: &Instrument,
    rate: Decimal,
) -> Result<MarkedPosition, MathError> {
    let bracket = |bracket: &MarginBracket| -> Result<MarginBracket, MathError> {
        Ok(MarginBracket {
            floor: worth(bracket.floor, rate)?,
            // A last step without end stays so.
            cap: worth(bracket.cap, rate).unwrap_or(bracket.cap),
            deduction: worth(bracket.deduction, rate)?,
            ..*bracket
        })
    };
    let mark = position.mark_price.ok_or(MathError::NoReference)?;
    Ok(MarkedPosition {
        quantity: position.delta,
        mark: Price::try_new(mul_rounded(mark.value(), rate)?)?,
        brackets: instrument.brackets.iter().map(bracket).collect::<Result<_, _>>()?,
        own_equity: position
            .isolated_margin
            .map(|margin| worth(margin.plus(position.unrealized)?, rate))
            .transpose()?,
    })
}

/// The move of one symbol's price at which the account is liquidated, while all others stay: of the positions that are
/// `of_symbol`, which share the account's equity with the rest.
fn distance_of_pair(
    equity: Notional,
    positions: &[MarkedPosition],
    of_symbol: &[bool],
) -> Result<Option<Ratio>, MathError> {
    let mut free = shared_equity(equity, positions)?;
    let mut pair = Vec::new();
    for (position, is_own) in positions.iter().zip(of_symbol).filter(|(one, _)| one.own_equity.is_none()) {
        if *is_own {
            pair.push(position.clone());
        } else {
            let kept =
                deltaplane_math::maintenance_margin(&position.brackets, position.quantity, position.mark)?;
            free = free.minus(kept)?;
        }
    }
    joint_liquidation_distance(free, &pair)
}

/// One position with its distance while the prices of all others stay, towards which a `net` position is liquidated.
fn alone(
    position: &Position,
    (own, net): (&MarkedPosition, Delta),
    distance: Option<Ratio>,
    rate: Decimal,
) -> Result<PositionRisk, MathError> {
    let mut price = None;
    if let (Some(distance), Some(mark)) = (distance, position.mark_price) {
        let factor = if net > Delta::ZERO {
            deltaplane_math::sub(Decimal::ONE, distance.value())?
        } else {
            deltaplane_math::add(Decimal::ONE, distance.value())?
        };
        price = Price::try_new(mul_rounded(mark.value(), factor)?.round_dp(8).normalize()).ok();
    }
    Ok(PositionRisk {
        symbol: position.symbol.clone(),
        quantity: position.delta,
        mark: position.mark_price,
        notional: own.quantity.abs().notional_at(own.mark)?,
        unrealized: worth(position.unrealized, rate)?,
        liquidation_distance: distance,
        liquidation_price: price,
    })
}

#[cfg(test)]
mod tests {
    use deltaplane_testkit::{notional, ratio};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    #[test]
    fn deposits_hide_no_loss_and_withdrawals_are_none() {
        let track = EquityTrack::default();
        track.observe(notional("1000"), at(1));
        track.on_flow(Some(notional("-500")), at(2));
        track.observe(notional("500"), at(3));
        assert_eq!(track.max_drawdown(), ratio("0"));
        track.observe(notional("450"), at(4));
        assert_eq!(track.max_drawdown(), ratio("0.1"));
        track.on_flow(Some(notional("1000")), at(5));
        track.observe(notional("1450"), at(6));
        assert_eq!(track.max_drawdown(), ratio("0.1"));
        // 290 of 1,450 are lost: a fifth of the 0.9 that were left.
        track.observe(notional("1160"), at(7));
        assert_eq!(track.max_drawdown(), ratio("0.28"));
    }

    /// Long 2 at 100: a tenth off costs 20, and margin follows the notional of 180 at five times leverage and 1 %.
    #[test]
    fn a_reading_is_carried_on_to_a_mark_that_moved() {
        let mut account = deltaplane_testkit::account_snapshot("main");
        (account.unrealized, account.initial_margin, account.maintenance_margin) =
            (notional("4"), notional("50"), notional("7"));
        let position = Position {
            symbol: "BTC-USD".parse().unwrap(),
            delta: deltaplane_testkit::delta("2"),
            entry_price: None,
            mark_price: Some(deltaplane_testkit::price("100")),
            unrealized: notional("4"),
            initial_margin: notional("40"),
            maintenance_margin: notional("2"),
            leverage: None,
            liquidation_price: None,
            isolated_margin: None,
            updated_at: at(0),
            order: None,
            sides: Vec::new(),
        };
        let bracket = MarginBracket {
            floor: notional("0"),
            cap: notional("1000"),
            maintenance_rate: ratio("0.01"),
            deduction: notional("0"),
            max_leverage: Decimal::from(20),
        };
        let to = |mark: &str| {
            carried(&position, (Some(Decimal::from(5)), &[bracket]), deltaplane_testkit::price(mark)).unwrap()
        };
        assert!(to("100.09").is_none(), "less than a thousandth");
        let moved = to("90").unwrap().apply(&position, &mut account).unwrap();
        assert_eq!(
            (moved.unrealized, moved.mark_price),
            (notional("-16"), Some(deltaplane_testkit::price("90")))
        );
        assert_eq!((moved.initial_margin, moved.maintenance_margin), (notional("36"), notional("1.8")));
        assert_eq!(
            (account.unrealized, account.initial_margin, account.maintenance_margin),
            (notional("-16"), notional("46"), notional("6.8"))
        );
    }

    #[test]
    fn money_of_an_unknown_amount_is_a_gap_until_the_next_reading() {
        let track = EquityTrack::default();
        track.observe(notional("1000"), at(1));
        assert_eq!(track.gaps(), (0, false));
        track.on_flow(None, at(2));
        assert_eq!(track.gaps(), (1, true));
        track.observe(notional("900"), at(3));
        assert_eq!((track.gaps(), track.gained()), ((1, false), Decimal::ZERO));
    }

    #[test]
    fn a_peak_outlives_a_restart_and_what_happened_meanwhile_is_no_loss() {
        let before = EquityTrack::default();
        before.observe(notional("1000"), at(1));
        before.observe(notional("900"), at(2));
        let track = EquityTrack::default();
        track.resume(&before.mark());
        assert_eq!(track.max_drawdown(), ratio("0.1"));
        // Withdrawn, perhaps, in a gap.
        track.observe(notional("450"), at(3));
        assert_eq!(track.max_drawdown(), ratio("0.1"));
        // A ninth of 450 is lost: 0.8 of the peak is left.
        track.observe(notional("400"), at(4));
        assert_eq!(track.max_drawdown().value().round_dp(20), ratio("0.2").value());
    }

    #[test]
    fn a_reading_from_before_a_flow_does_not_count() {
        let track = EquityTrack::default();
        track.observe(notional("1000"), at(1));
        track.on_flow(Some(notional("-500")), at(3));
        track.observe(notional("500"), at(2));
        track.observe(notional("500"), at(4));
        assert_eq!(track.max_drawdown(), ratio("0"));
    }

    #[test]
    fn after_an_amount_that_was_not_told_the_count_goes_on_from_there() {
        let track = EquityTrack::default();
        track.observe(notional("1000"), at(1));
        track.on_flow(None, at(2));
        track.observe(notional("300"), at(3));
        track.observe(notional("270"), at(4));
        assert_eq!(track.max_drawdown(), ratio("0.1"));
    }

    /// Long 30 and short 25 beside a position in another symbol that maintains 300: see the worked example of hedge mode,
    /// (9,405 − 300) ÷ 306,405.
    #[test]
    fn both_sides_of_hedge_mode_have_one_distance() {
        let steps = [
            ("0", "300000", "0.004", "0"),
            ("300000", "800000", "0.005", "300"),
            ("800000", "3000000", "0.0065", "1500"),
        ];
        let steps = steps.map(|(floor, cap, rate, deduction)| MarginBracket {
            floor: notional(floor),
            cap: notional(cap),
            maintenance_rate: ratio(rate),
            deduction: notional(deduction),
            max_leverage: Decimal::from(75),
        });
        let marked = |quantity: &str, mark: &str| MarkedPosition {
            quantity: deltaplane_testkit::delta(quantity),
            mark: deltaplane_testkit::price(mark),
            brackets: steps.to_vec(),
            own_equity: None,
        };
        let positions = [marked("30", "66000"), marked("50", "1500"), marked("-25", "66000")];
        let distance =
            distance_of_pair(notional("30000"), &positions, &[true, false, true]).unwrap().unwrap();
        assert_eq!(distance.value().round_dp(9), (Decimal::from(9_105) / Decimal::from(306_405)).round_dp(9));
    }
}
