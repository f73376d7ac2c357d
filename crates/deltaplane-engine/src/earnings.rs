//! What positions earn: the venues' statements are read from time to time, and moves of prices are watched.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use deltaplane_math::{MathError, mul_rounded, sub};
use deltaplane_ports::{
    AccountRisk, Drift, EarnedDay, Failure, PnlQuery, PositionRisk, Priority, ReadError, USD,
};
use deltaplane_types::{
    AccountId, AlertKind, AlertSeverity, AlertTopic, ArithmeticError, Code, Decimal, Delta, Instrument,
    Notional, Ratio, Symbol, Timestamp,
};

use crate::accounts::AccountMonitor;
use crate::alerts::Condition;
use crate::engine::Core;
use crate::report::failure;

/// How long a contract is waited for: others wait less, and find it kept when it came.
const CONTRACT_FOR: Duration = Duration::from_secs(10);
/// How often it is looked at what books earn.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long an account's venue is waited for.
const ASK_FOR: Duration = Duration::from_secs(5);
/// How far back the first reading of a statement goes.
const FIRST: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long after the start the first one is read.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Rows may be told late: so far back is always read again.
const LATE: Duration = Duration::from_secs(10 * 60);
/// Two marks of a position further apart than this leave a gap.
const WATCHED: Duration = Duration::from_secs(60);

/// How often the places are asked for.
const ADL_RANK_EVERY: Duration = Duration::from_secs(60);

/// A position when it was last looked at.
struct Marked {
    at: Timestamp,
    quantity: Delta,
    mark: Decimal,
    reference: Decimal,
}

/// Watches what positions earn by moves of prices.
#[derive(Default)]
pub(crate) struct DriftTrack {
    marked: BTreeMap<(AccountId, Symbol), Marked>,
    pending: BTreeMap<(AccountId, Symbol, Timestamp), Drift>,
}

impl DriftTrack {
    /// Takes a look at every account's positions; `reference` gives the price of a symbol that all share.
    pub(crate) fn look(
        &mut self,
        risks: &BTreeMap<AccountId, Arc<AccountRisk>>,
        reference: impl Fn(&Symbol) -> Option<Decimal>,
        now: Timestamp,
    ) -> Result<(), MathError> {
        let mut marked = BTreeMap::new();
        for (account, risk) in risks {
            for (index, position) in risk.positions.iter().enumerate() {
                let held = position.quantity.abs().value();
                let Some(reference) = reference(&position.symbol) else { continue };
                // Both sides of hedge mode move by their net, once.
                let is_counted = |earlier: &PositionRisk| earlier.symbol == position.symbol;
                let quantity = risk.net(&position.symbol)?.unwrap_or_default();
                if held.is_zero() || risk.positions.iter().take(index).any(is_counted) {
                    continue;
                }
                // The mark in USD, whatever the venue counts in.
                let mark = deltaplane_math::div(position.notional.value(), held)?;
                let key = (account.clone(), position.symbol.clone());
                if let Some(before) = self.marked.get(&key)
                    && now.since(before.at) <= WATCHED
                {
                    let moved = sub(reference, before.reference)?;
                    let residual = mul_rounded(before.quantity.value(), moved)?;
                    let apart = sub(sub(mark, before.mark)?, moved)?;
                    let basis = mul_rounded(before.quantity.value(), apart)?;
                    self.add(&key, now, (Notional::new(basis), Notional::new(residual)))?;
                }
                marked.insert(key, Marked { at: now, quantity, mark, reference });
            }
        }
        // What could not be looked at this time is gone on with if it comes back soon.
        let mut before = std::mem::replace(&mut self.marked, marked);
        before.retain(|(account, _), known| !risks.contains_key(account) && now.since(known.at) <= WATCHED);
        self.marked.extend(before);
        Ok(())
    }

    fn add(
        &mut self,
        (account, symbol): &(AccountId, Symbol),
        at: Timestamp,
        (basis, residual): (Notional, Notional),
    ) -> Result<(), MathError> {
        let day = deltaplane_ports::day_of(at);
        let none = || Drift {
            account: account.clone(),
            symbol: symbol.clone(),
            at: day,
            basis: Notional::ZERO,
            residual: Notional::ZERO,
        };
        let sum = self.pending.entry((account.clone(), symbol.clone(), day)).or_insert_with(none);
        sum.basis = sum.basis.plus(basis)?;
        sum.residual = sum.residual.plus(residual)?;
        Ok(())
    }

    /// What was watched since the last time this was asked.
    pub(crate) fn take(&mut self) -> Vec<Drift> {
        std::mem::take(&mut self.pending).into_values().collect()
    }
}

/// Reads an account's statement from time to time until dropped.
pub(crate) async fn keep_statements(core: Arc<Core>, monitor: Arc<AccountMonitor>) {
    let every = core.shared.reader.config.statement_every;
    // A start asks the venues for enough, and several in a row must not spend what a hedge needs.
    tokio::time::sleep(every.min(FIRST_AFTER)).await;
    loop {
        match core.read_statement(&monitor).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(account = %monitor.id, error, "the account's statement cannot be read");
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// The name of the loop among the services.
pub(crate) const NAME: &str = "carry";

/// Looks at what books earn until dropped. It asks venues, so it keeps nothing else waiting.
pub(crate) async fn keep_looking(core: Arc<Core>) {
    let mut ranked_at = None;
    loop {
        core.shared.services.beat(NAME, &*core.shared.reader.clock);
        tokio::time::sleep(LOOK_EVERY).await;
        let now = core.shared.reader.clock.now();
        if ranked_at.is_none_or(|at| now.since(at) >= ADL_RANK_EVERY) {
            ranked_at = Some(now);
            core.look_at_adl_ranks().await;
            core.shared.services.beat(NAME, &*core.shared.reader.clock);
        }
        let risks = core.find_risks().await;
        core.look_at_carry(&risks).await;
    }
}

impl Core {
    async fn read_statement(&self, monitor: &AccountMonitor) -> Result<(), String> {
        let shared = &self.shared;
        let now = shared.reader.clock.now();
        let newest = shared.history.newest_income(&monitor.id).await.map_err(|error| error.to_string())?;
        let since = newest.map_or_else(|| now.before(FIRST), |newest| newest.before(LATE));
        let rows =
            monitor.reader.fetch_income(since, Priority::Data).await.map_err(|error| error.to_string())?;
        shared.history.add_income(&monitor.id, rows).await.map_err(|error| error.to_string())
    }

    /// What was earned, day by day.
    pub(crate) async fn pnl(&self, query: PnlQuery) -> Result<Vec<EarnedDay>, Box<Failure>> {
        let lines = self.shared.history.earned(query).await.map_err(|error| {
            failure(Code::Internal, error.to_string(), "look at the disk; the history may be deleted")
        })?;
        let rates = &self.shared.reader.config.holdings.rates;
        in_usd(lines, rates).map_err(|error| {
            failure(Code::Internal, error.to_string(), "ask for fewer days, or look at [rates]")
        })
    }

    /// Raises and ends the alerts on what books earn, how long margin lasts, and contracts that end.
    pub(crate) async fn look_at_carry(&self, risks: &BTreeMap<AccountId, Arc<AccountRisk>>) {
        let shared = &self.shared;
        let now = shared.reader.clock.now();
        let limits = shared.reader.config.alerts;
        let lines = self.funding().await;
        let mut records = self.look_at_contracts(now).await;
        let told = |account: &AccountId, symbol: &Symbol| {
            lines.iter().any(|line| line.account == *account && line.symbol == *symbol)
        };
        // An account that cannot be valued, or a venue that does not tell its rate, says nothing of the sum: alerts of
        // that symbol stay as they are.
        let is_known = |symbol: &Symbol| {
            shared.reader.accounts.iter().all(|(id, monitor)| {
                monitor.newest().is_some_and(|newest| {
                    newest.position(symbol).is_zero() || (risks.contains_key(id) && told(id, symbol))
                })
            })
        };
        let mut by_symbol = BTreeMap::<Symbol, Decimal>::new();
        let mut by_account = BTreeMap::<AccountId, Decimal>::new();
        for line in lines.iter().filter(|line| !line.position.is_zero()) {
            let (of_symbol, of_account) = (
                by_symbol.entry(line.symbol.clone()).or_default(),
                by_account.entry(line.account.clone()).or_default(),
            );
            *of_symbol = of_symbol.checked_add(line.per_day.value()).unwrap_or(*of_symbol);
            *of_account = of_account.checked_add(line.per_day.value()).unwrap_or(*of_account);
        }
        // Of a book whose sides cancel the sign alone says nothing: from a part of its value on it does, and then until
        // it earns again.
        let positions = risks.values().flat_map(|risk| &risk.positions);
        let gross = positions.fold(BTreeMap::<&Symbol, Decimal>::new(), |mut gross, position| {
            let sum = gross.entry(&position.symbol).or_default();
            *sum = sum.checked_add(position.notional.value()).unwrap_or(*sum);
            gross
        });
        let pays = |(symbol, per_day): &(&Symbol, &Decimal)| {
            let stands = shared.alerts.severity_of(AlertTopic::Carry, None, Some(symbol)).is_some();
            let part = if stands { Decimal::ZERO } else { limits.carry_per_day.value() };
            let least = gross.get(symbol).and_then(|gross| gross.checked_mul(part)).unwrap_or_default();
            **per_day < -least && is_known(symbol)
        };
        let paying: BTreeMap<&Symbol, &Decimal> = by_symbol.iter().filter(pays).collect();
        records.extend(shared.alerts.resolve(AlertTopic::Carry, now, |alert| {
            alert.symbol.as_ref().is_some_and(|symbol| is_known(symbol) && !paying.contains_key(symbol))
        }));
        for (symbol, per_day) in paying {
            let condition = Condition {
                kind: AlertKind::System,
                topic: AlertTopic::Carry,
                severity: AlertSeverity::Warn,
                account: None,
                symbol: Some(symbol.clone()),
                message: format!(
                    "{symbol} pays {{fundingCost}} USD a day in net funding. Reduce both legs or reverse them. See GET /api/v1/funding."
                ),
            };
            let data =
                [("fundingPerDay".to_owned(), *per_day), ("fundingCost".to_owned(), per_day.abs())].into();
            records.extend(shared.alerts.raise_with(condition, data, now));
        }
        let valued = risks.iter();
        for (account, risk) in
            valued.filter(|(account, risk)| risk.positions.iter().all(|one| told(account, &one.symbol)))
        {
            let per_day = by_account.get(account).copied().unwrap_or_default();
            let found = runway(risk, per_day, limits.margin_ratio.critical).ok().flatten();
            let before = shared.alerts.severity_of(AlertTopic::Runway, Some(account), None);
            let severity = |days| limits.runway_days.severity(Ratio::new(days), before, limits.hysteresis);
            let severity = found.and_then(|(days, _)| severity(days).ok().flatten());
            let (Some((days, top_up)), Some(severity)) = (found, severity) else {
                records.extend(
                    shared
                        .alerts
                        .resolve(AlertTopic::Runway, now, |alert| alert.account.as_ref() == Some(account)),
                );
                continue;
            };
            let condition = Condition {
                kind: AlertKind::Utilization,
                topic: AlertTopic::Runway,
                severity,
                account: Some(account.clone()),
                symbol: None,
                message: format!(
                    "{account}: its margin lasts {{runwayDays}} days at the funding of today. Add {{topUp}} USD or reduce both legs."
                ),
            };
            let data = [("runwayDays".to_owned(), days), ("topUp".to_owned(), top_up)].into();
            records.extend(shared.alerts.raise_with(condition, data, now));
        }
        if !records.is_empty() {
            // A failure stops all sending by itself; the alerts stand in memory in any case.
            let _ = shared.execution.recorder.append(records).await;
        }
    }

    /// Tells of positions that the venue closes first when it must take from the winning side.
    pub(crate) async fn look_at_adl_ranks(&self) {
        let shared = &self.shared;
        let asked = shared.reader.accounts.iter().map(|(id, monitor)| async move {
            // Of what does not answer nothing new is said.
            let ranks = tokio::time::timeout(ASK_FOR, monitor.reader.fetch_adl_ranks(Priority::Data))
                .await
                .ok()?
                .ok()?;
            Some((id.clone(), ranks))
        });
        let told: BTreeMap<AccountId, BTreeMap<Symbol, u8>> =
            futures_util::future::join_all(asked).await.into_iter().flatten().collect();
        let now = shared.reader.clock.now();
        let rank = |account: &AccountId, symbol: &Symbol| told.get(account)?.get(symbol).copied();
        let told_from = shared.reader.config.alerts.adl_rank;
        let mut records = shared.alerts.resolve(AlertTopic::AdlRank, now, |alert| {
            let (Some(account), Some(symbol)) = (&alert.account, &alert.symbol) else { return false };
            told.contains_key(account) && rank(account, symbol).is_none_or(|rank| rank < told_from)
        });
        for (account, ranks) in &told {
            for (symbol, rank) in ranks.iter().filter(|(_, rank)| **rank >= told_from) {
                let condition = Condition {
                    kind: AlertKind::Execution,
                    topic: AlertTopic::AdlRank,
                    severity: AlertSeverity::Warn,
                    account: Some(account.clone()),
                    symbol: Some(symbol.clone()),
                    message: format!(
                        "{account}: its {symbol} position has place {{adlRank}} of 5 for auto-deleveraging, and its counterpart would be unhedged. Lower its leverage or reduce both legs."
                    ),
                };
                let data = [("adlRank".to_owned(), Decimal::from(*rank))].into();
                records.extend(shared.alerts.raise_with(condition, data, now));
            }
        }
        // A failure stops all sending by itself; the alerts stand in memory in any case.
        let _ = shared.execution.recorder.append(records).await;
    }

    /// Positions in contracts that their venue does not trade any more, or said that it will end: they are halted,
    /// delisted, or being settled.
    async fn look_at_contracts(&self, now: Timestamp) -> Vec<deltaplane_ports::Record> {
        let shared = &self.shared;
        let (mut ending, mut unknown) = (Vec::new(), Vec::new());
        for (id, monitor) in &shared.reader.accounts {
            let Some(snapshot) = monitor.newest() else { continue };
            for position in snapshot.positions.values().filter(|position| !position.delta.is_zero()) {
                // Kept for a minute by the connector; of what does not answer nothing new is said.
                let held = (id.clone(), position.symbol.clone());
                shared.services.beat(NAME, &*shared.reader.clock);
                let asked = monitor.reader.fetch_instrument(&position.symbol, Priority::Data);
                let told = tokio::time::timeout(CONTRACT_FOR, asked).await;
                if let Ok(Ok(contract)) = &told {
                    let mut tables = shared.reader.tables.lock().unwrap_or_else(PoisonError::into_inner);
                    tables.insert(held.clone(), contract.clone());
                }
                match told {
                    Ok(Ok(Instrument { listed: true, ends_at: None, .. })) => {}
                    Ok(Ok(Instrument { listed: true, ends_at, .. })) => ending.push((held, ends_at)),
                    Ok(Ok(_) | Err(ReadError::UnknownSymbol(_))) => ending.push((held, None)),
                    Ok(Err(_)) | Err(_) => unknown.push(held),
                }
            }
        }
        let mut records = shared.alerts.resolve(AlertTopic::Delisting, now, |alert| {
            let stands = |(account, symbol): &(AccountId, Symbol)| {
                alert.account.as_ref() == Some(account) && alert.symbol.as_ref() == Some(symbol)
            };
            !ending.iter().map(|(held, _)| held).chain(&unknown).any(stands)
        });
        for ((account, symbol), ends_at) in ending {
            let message = match ends_at {
                Some(at) => format!(
                    "{account}: its venue ends the {symbol} contract at {}. Close both legs before with POST /api/v1/delta/flatten.",
                    in_words(at)
                ),
                None => format!(
                    "{account}: its venue does not trade {symbol} now (halted, delisted or settling). Watch the other leg: it may soon be unhedged."
                ),
            };
            let condition = Condition {
                kind: AlertKind::Execution,
                topic: AlertTopic::Delisting,
                severity: AlertSeverity::Warn,
                message,
                account: Some(account),
                symbol: Some(symbol),
            };
            records.extend(shared.alerts.raise(condition, now));
        }
        records
    }
}

/// Lines of one day, symbol and account become one in USD. Fees may be paid in a coin: it counts if `[rates]` says
/// what it is worth, else it stays a line of its own.
fn in_usd(
    lines: Vec<EarnedDay>,
    rates: &BTreeMap<String, Decimal>,
) -> Result<Vec<EarnedDay>, ArithmeticError> {
    let mut told = BTreeMap::<(Timestamp, Symbol, AccountId, bool, String), EarnedDay>::new();
    for mut line in lines {
        let rate = rates.get(&line.asset).copied();
        if let Some(rate) = rate.or_else(|| line.asset.contains(USD).then_some(Decimal::ONE)) {
            line.earned = line.earned.times(rate)?;
            USD.clone_into(&mut line.asset);
        }
        let EarnedDay { day, symbol, account, asset, .. } = &line;
        let key = (*day, symbol.clone(), account.clone(), !line.counts(), asset.clone());
        match told.get_mut(&key) {
            Some(sum) => sum.earned = sum.earned.plus(&line.earned)?,
            None => drop(told.insert(key, line)),
        }
    }
    Ok(told.into_values().collect())
}

/// A time as people write it, UTC.
fn in_words(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.as_millis()).map_or_else(|_| at.to_string(), |time| time.to_string())
}

/// In how many days funding brings an account's margin ratio to `critical`, and how much money makes that a week; none
/// where funding costs it nothing.
fn runway(
    risk: &AccountRisk,
    per_day: Decimal,
    critical: Ratio,
) -> Result<Option<(Decimal, Decimal)>, MathError> {
    let Some(ratio) = risk.margin_ratio.filter(|_| per_day < Decimal::ZERO) else { return Ok(None) };
    let maintenance = mul_rounded(ratio.value(), risk.equity.value())?;
    let least = deltaplane_math::div(maintenance, critical.value())?;
    let room = sub(risk.equity.value(), least)?.max(Decimal::ZERO);
    let days = deltaplane_math::div(room, per_day.abs())?.round_dp(2).normalize();
    let week = mul_rounded(per_day.abs(), Decimal::from(7))?;
    Ok(Some((days, sub(week, room)?.max(Decimal::ZERO).ceil())))
}

#[cfg(test)]
mod tests {
    use deltaplane_ports::{Earned, PositionRisk};
    use deltaplane_testkit::{delta, notional, price, ratio};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1_000)
    }

    /// An account with one position of BTC at a mark.
    fn risk(quantity: &str, mark: &str) -> AccountRisk {
        let (quantity, mark) = (delta(quantity), price(mark));
        AccountRisk {
            account: "main".parse().unwrap(),
            as_of: at(0),
            equity: notional("1000"),
            unrealized: notional("0"),
            utilization: None,
            leverage: None,
            margin_ratio: Some(ratio("0.4")),
            max_drawdown: ratio("0"),
            delta_deviation: ratio("0"),
            liquidation_distance: None,
            positions: vec![PositionRisk {
                symbol: "BTC-USD".parse().unwrap(),
                quantity,
                mark: Some(mark),
                notional: quantity.abs().notional_at(mark).unwrap(),
                unrealized: notional("0"),
                liquidation_distance: None,
                liquidation_price: None,
            }],
        }
    }

    /// The venue's price goes from 100 to 104 and the one that all share from 100 to 103: a long of 2 earns 6 by the move
    /// and 2 by its venue being 1 above.
    #[test]
    fn a_move_is_distinguished_from_a_venue_that_is_dearer() {
        let mut track = DriftTrack::default();
        let mut look = |quantity: &str, mark: &str, reference: &str, seconds| {
            let risks = [("main".parse().unwrap(), Arc::new(risk(quantity, mark)))].into();
            track.look(&risks, |_| Some(price(reference).value()), at(seconds)).unwrap();
            track.take().first().map(|drift| (drift.residual.to_string(), drift.basis.to_string()))
        };
        let told = |residual: &str, basis: &str| Some((residual.to_owned(), basis.to_owned()));
        assert_eq!(look("2", "100", "100", 0), None);
        assert_eq!(look("2", "104", "103", 1), told("6", "2"));
        // What was held meanwhile counts, not what is held now.
        assert_eq!(look("-1", "103", "103", 2), told("0", "-2"));
        assert_eq!(look("-1", "104", "104", 3), told("-1", "0"));
        // A gap of more than a minute.
        assert_eq!(look("-1", "110", "110", 64), None);
        assert_eq!(look("-1", "111", "111", 65), told("-1", "0"));
    }

    /// BNB has a rate of 600, USDT counts as it is, and ABC has no rate.
    #[test]
    fn fees_in_coins_count_with_a_rate_and_are_listed_without_one() {
        let line = |asset: &str, fees: &str| EarnedDay {
            day: at(0),
            symbol: "BTC-USD".parse().unwrap(),
            account: "main".parse().unwrap(),
            asset: asset.to_owned(),
            earned: Earned { fees: notional(fees), ..Earned::default() },
        };
        let lines = ["ABC", "BNB", "USD", "USDT"].into_iter().zip(["-7", "-0.002", "0.5", "-3"]);
        let lines = lines.map(|(asset, fees)| line(asset, fees)).collect();
        let rates = [("BNB".to_owned(), Decimal::from(600))].into();
        assert_eq!(in_usd(lines, &rates).unwrap(), [line(USD, "-3.7"), line("ABC", "-7")]);
    }

    /// 400 of maintenance are 0.8 of 500, so 500 of the 1,000 may go: at 100 a day they last 5 days, and a week needs 200
    /// more.
    #[test]
    fn a_runway_ends_where_the_margin_ratio_is_critical() {
        let of = |per_day: i64| runway(&risk("2", "100"), Decimal::from(per_day), ratio("0.8")).unwrap();
        assert_eq!(of(-100), Some((Decimal::from(5), Decimal::from(200))));
        assert_eq!(of(-10), Some((Decimal::from(50), Decimal::ZERO)));
        assert_eq!((of(0), of(100)), (None, None));
    }
}
