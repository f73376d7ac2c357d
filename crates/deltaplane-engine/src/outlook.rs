//! What is to come: funding of every position, and what a price move or the loss of a venue would do.

use std::collections::{BTreeMap, BTreeSet};

use deltaplane_math::{
    MarkedPosition, MathError, add, div, joint_liquidation_distance, maintenance_margin, mul_rounded,
};
use deltaplane_ports::{
    Failure, FundingView, Priority, StressAccount, StressLoss, StressMove, StressReport, StressRequest,
};
use deltaplane_types::{AccountId, Code, Decimal, Delta, Notional, Price, Ratio, Symbol};

use crate::engine::Core;
use crate::report::failure;

/// How long a venue is waited for when it is asked for a contract.
const ASK_FOR: std::time::Duration = std::time::Duration::from_secs(2);

impl Core {
    /// Funding of every account in the primary symbol and in what it holds, as its venue tells it now. What is not
    /// told is left out.
    pub(crate) async fn funding(&self) -> Vec<FundingView> {
        let reader = &self.shared.reader;
        let asked = reader.accounts.iter().map(|(id, monitor)| async move {
            let mut found = Vec::new();
            let Some(snapshot) = monitor.newest() else { return found };
            let feed = reader.feed_of.get(id).and_then(|feed| reader.feeds.get(feed));
            let mut symbols: BTreeSet<Symbol> = snapshot.positions.keys().cloned().collect();
            symbols.insert(reader.config.primary_symbol.clone());
            for symbol in symbols {
                // Who does not answer once is not waited for again and again.
                let asked = monitor.reader.fetch_instrument(&symbol, Priority::Data);
                let Ok(answer) = tokio::time::timeout(ASK_FOR, asked).await else { return found };
                let Ok(instrument) = answer else { continue };
                let view = feed.and_then(|feed| feed.view(&symbol));
                let Some((view, rate)) = view.and_then(|view| Some((view.clone(), view.funding_rate?)))
                else {
                    continue;
                };
                let quote_rate = reader.config.holdings.rate(&instrument.quote);
                let position = snapshot.position(&symbol);
                let hours = instrument.funding_interval_hours.max(1);
                let line = || -> Result<FundingView, MathError> {
                    let mark = view.mark.or_else(|| view.mid()).ok_or(MathError::NoReference)?;
                    let worth = mul_rounded(mark.value(), quote_rate)?;
                    // A long pays a positive rate.
                    let next = mul_rounded(mul_rounded(position.value(), worth)?, -rate.value())?;
                    let per_hour = Ratio::new(div(rate.value(), Decimal::from(hours))?);
                    let times = div(Decimal::from(24), Decimal::from(hours))?;
                    Ok(FundingView {
                        account: id.clone(),
                        exchange: monitor.exchange.clone(),
                        symbol: symbol.clone(),
                        rate,
                        interval_hours: hours,
                        next_at: view.next_funding,
                        rate_per_hour: per_hour,
                        mean_rate: instrument.mean_funding_rate,
                        position,
                        next_payment: Notional::new(next),
                        per_day: Notional::new(mul_rounded(next, times)?),
                    })
                };
                found.extend(line());
            }
            found
        });
        futures_util::future::join_all(asked).await.concat()
    }

    /// What would become of the accounts.
    pub(crate) async fn stress(&self, request: &StressRequest) -> Result<StressReport, Box<Failure>> {
        let reader = &self.shared.reader;
        let symbol = &request.symbol;
        reader.check_symbol(symbol)?;
        let counts = |of: &Symbol| reader.config.holdings.counted_in(of) == *symbol;
        let external = reader.config.holdings.external(symbol, reader.clock.now())?;
        let (mut books, mut deltas) = (BTreeMap::new(), BTreeMap::new());
        for (id, monitor) in &reader.accounts {
            let Some(snapshot) = monitor.newest() else {
                let text = format!("account {id} was not read yet");
                return Err(failure(
                    Code::NotRunning,
                    text,
                    "wait until GET /readyz names it with another source than none",
                ));
            };
            let (snapshot, valued) = self.valued(id, &snapshot).await?;
            let rate = valued.first().map_or(Decimal::ONE, |(_, of)| reader.config.holdings.rate(&of.quote));
            let book = || -> Result<_, MathError> {
                let equity = mul_rounded(snapshot.equity()?.value(), rate)?;
                let mut positions = Vec::new();
                for (position, instrument) in &valued {
                    let rate = reader.config.holdings.rate(&instrument.quote);
                    for part in position.split() {
                        positions
                            .push((part.symbol.clone(), crate::equity::marked(&part, instrument, rate)?));
                    }
                }
                Ok((equity, positions))
            };
            books.insert(id.clone(), book().map_err(beyond)?);
            let delta = reader.config.holdings.delta(&snapshot, symbol).map_err(beyond)?;
            deltas.insert(id.clone(), delta);
        }
        let mut moves = Vec::new();
        for change in &request.moves {
            let mut accounts = Vec::new();
            for (id, (equity, positions)) in &books {
                let line = || -> Result<StressAccount, MathError> {
                    let (mut equity, mut kept) = (*equity, Decimal::ZERO);
                    let mut after = Vec::with_capacity(positions.len());
                    for (of, held) in positions {
                        let moved = if counts(of) { change.value() } else { Decimal::ZERO };
                        let mark = mul_rounded(held.mark.value(), add(Decimal::ONE, moved)?)?;
                        let gained =
                            mul_rounded(held.quantity.value(), mul_rounded(held.mark.value(), moved)?)?;
                        equity = add(equity, gained)?;
                        let mark = Price::try_new(mark)?;
                        let margin = maintenance_margin(&held.brackets, held.quantity, mark)?;
                        kept = add(kept, margin.value())?;
                        let own_equity =
                            held.own_equity.map(|own| own.plus(Notional::new(gained))).transpose()?;
                        after.push(MarkedPosition { mark, own_equity, ..held.clone() });
                    }
                    let distance = joint_liquidation_distance(Notional::new(equity), &after)?;
                    let ratio = (equity > Decimal::ZERO).then(|| div(kept, equity)).transpose()?;
                    Ok(StressAccount {
                        account: id.clone(),
                        equity: Notional::new(equity),
                        margin_ratio: ratio.map(Ratio::new),
                        liquidated: distance == Some(Ratio::ZERO),
                        liquidation_distance: distance,
                    })
                };
                accounts.push(line().map_err(beyond)?);
            }
            moves.push(StressMove { change: *change, accounts });
        }
        let held = |id: &AccountId| -> Delta {
            let positions = books.get(id).map(|(_, positions)| positions.as_slice()).unwrap_or_default();
            let of_coin = positions.iter().filter(|(of, _)| counts(of));
            of_coin.fold(Delta::ZERO, |sum, (_, held)| sum.plus(held.quantity).unwrap_or(sum))
        };
        let sum = |ids: &mut dyn Iterator<Item = &AccountId>| {
            ids.fold(Delta::ZERO, |sum, id| sum.plus(held(id)).unwrap_or(sum))
        };
        // As everywhere else: with what wallets hold of the base asset, and what is held elsewhere.
        let net = deltas.values().try_fold(external, |net, delta| net.plus(*delta)).map_err(beyond)?;
        let mut losses = Vec::new();
        for (id, monitor) in &reader.accounts {
            // Its leg closes by force: what the others hold is left.
            let left = net.minus(held(id)).map_err(beyond)?;
            let on_venue =
                sum(&mut reader.accounts.values().filter(|of| of.venue == monitor.venue).map(|of| &of.id));
            losses.push(StressLoss {
                account: id.clone(),
                net_if_leg_fails: left,
                unreachable_if_venue_fails: on_venue,
            });
        }
        Ok(StressReport { symbol: symbol.clone(), net, moves, losses })
    }
}

fn beyond(error: impl std::fmt::Display) -> Box<Failure> {
    let text = format!("arithmetic overflow: the values of this request are too large ({error})");
    failure(Code::Internal, text, "use smaller numbers")
}
