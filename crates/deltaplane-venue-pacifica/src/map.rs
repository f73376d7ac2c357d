//! Wire to domain: pure, total, invents nothing.

use std::collections::BTreeMap;

use deltaplane_net::Rows;
use deltaplane_ports::{
    Contract, ContractError, ContractKind, Income, IncomeKind, ListedContract, OrderName, SymbolMap,
};
use deltaplane_types::{
    AccountId, ArithmeticError, ClientOrderId, Decimal, Delta, ExecutionReport, Fee, Fill, FillCause,
    Instrument, MarginBracket, MarginPrice, Notional, OrderStatus, Price, Quantity, Ratio, Side, Symbol,
    Timestamp,
};

use crate::wire::{
    Account, BookSide, Market, Number, OpenOrder, OrderState, OrderUpdate, PastFunding, PastOrder, PastTrade,
    TradeCause, TradeSide, TradeUpdate,
};

/// A message that says something impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapError {
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error(transparent)]
    Arithmetic(#[from] ArithmeticError),
    #[error("the id {0:?} is not legal")]
    Id(String),
    #[error("an order of ours is in a state that is not known here")]
    State,
}

/// The name of an order, if its client gave one. Its trades say why it exists.
pub(crate) fn order_name(order: &PastOrder) -> Option<OrderName> {
    Some(OrderName {
        venue_order_id: id(order.order_id).ok()?,
        client_order_id: Some(order.client_order_id.as_ref()?.parse().ok()?),
        cause: FillCause::Order,
    })
}

fn status(state: OrderState) -> Result<OrderStatus, MapError> {
    Ok(match state {
        OrderState::Open => OrderStatus::Open,
        OrderState::PartiallyFilled => OrderStatus::PartiallyFilled,
        OrderState::Filled => OrderStatus::Filled,
        OrderState::Cancelled => OrderStatus::Canceled,
        OrderState::Rejected => OrderStatus::Rejected,
        OrderState::Unknown => return Err(MapError::State),
    })
}

impl From<TradeSide> for Side {
    fn from(side: TradeSide) -> Self {
        match side {
            TradeSide::OpenLong | TradeSide::CloseShort => Self::Buy,
            TradeSide::OpenShort | TradeSide::CloseLong => Self::Sell,
        }
    }
}

impl From<&TradeCause> for FillCause {
    fn from(cause: &TradeCause) -> Self {
        match cause {
            TradeCause::Normal | TradeCause::Other => Self::Order,
            TradeCause::MarketLiquidation | TradeCause::BackstopLiquidation => Self::Liquidation,
            // It settles a bankrupt position with those of others.
            TradeCause::Settlement | TradeCause::AdlLiquidation => Self::Deleveraging,
        }
    }
}

pub(crate) const fn side(side: Side) -> &'static str {
    match side {
        Side::Buy => "bid",
        Side::Sell => "ask",
    }
}

fn id<T: std::str::FromStr>(number: u64) -> Result<T, MapError> {
    number.to_string().parse().map_err(|_| MapError::Id(number.to_string()))
}

fn client_id(text: Option<&String>) -> Option<ClientOrderId> {
    text?.parse().ok()
}

/// Signed base units of a position.
pub(crate) fn delta(side: BookSide, amount: Decimal, contract: &Contract) -> Result<Delta, MapError> {
    let base = contract.base_units(amount)?;
    Ok(Delta::new(if side == BookSide::Ask { -base } else { base }))
}

/// What an order update tells; none of an order that is not ours by name.
pub(crate) fn update_report(
    update: &OrderUpdate,
    contract: &Contract,
) -> Result<Option<ExecutionReport>, MapError> {
    let Some(client_order_id) = client_id(update.client_order_id.as_ref()) else { return Ok(None) };
    Ok(Some(ExecutionReport {
        client_order_id,
        venue_order_id: id(update.i)?,
        status: status(update.os)?,
        filled: contract.base_quantity(update.f.0)?,
        average_price: update.p.and_then(|price| contract.base_price(price.0).ok()),
        venue_time: Timestamp::from_millis(update.ut),
    }))
}

pub(crate) fn update_fill(
    update: &TradeUpdate,
    account: &AccountId,
    (symbol, contract): (&Symbol, &Contract),
) -> Result<Fill, MapError> {
    Ok(Fill {
        account: account.clone(),
        symbol: symbol.clone(),
        trade_id: id(update.h)?,
        venue_order_id: id(update.i)?,
        client_order_id: client_id(update.client_order_id.as_ref()),
        side: update.ts.into(),
        quantity: contract.base_quantity(update.a.0)?,
        price: contract.base_price(update.p.0)?,
        fee: Fee::in_quote_currency(update.f.0),
        cause: (&update.tc).into(),
        venue_time: Timestamp::from_millis(update.t),
    })
}

pub(crate) fn past_fill(
    trade: &PastTrade,
    account: &AccountId,
    (symbol, contract): (&Symbol, &Contract),
) -> Result<Fill, MapError> {
    Ok(Fill {
        account: account.clone(),
        symbol: symbol.clone(),
        trade_id: id(trade.history_id)?,
        venue_order_id: id(trade.order_id)?,
        client_order_id: client_id(trade.client_order_id.as_ref()),
        side: trade.side.into(),
        quantity: contract.base_quantity(trade.amount.0)?,
        price: contract.base_price(trade.price.0)?,
        fee: Fee::in_quote_currency(trade.fee.0),
        cause: trade.cause.as_ref().map_or(FillCause::Order, Into::into),
        venue_time: Timestamp::from_millis(trade.created_at),
    })
}

pub(crate) fn open_report(
    order: &OpenOrder,
    contract: &Contract,
) -> Result<Option<ExecutionReport>, MapError> {
    let Some(client_order_id) = client_id(order.client_order_id.as_ref()) else { return Ok(None) };
    let partly = !order.filled_amount.0.is_zero();
    Ok(Some(ExecutionReport {
        client_order_id,
        venue_order_id: id(order.order_id)?,
        status: if partly { OrderStatus::PartiallyFilled } else { OrderStatus::Open },
        filled: contract.base_quantity(order.filled_amount.0)?,
        average_price: None,
        venue_time: Timestamp::from_millis(order.updated_at),
    }))
}

pub(crate) fn past_report(
    order: &PastOrder,
    contract: &Contract,
) -> Result<Option<ExecutionReport>, MapError> {
    let Some(client_order_id) = client_id(order.client_order_id.as_ref()) else { return Ok(None) };
    Ok(Some(ExecutionReport {
        client_order_id,
        venue_order_id: id(order.order_id)?,
        status: status(order.order_status)?,
        filled: contract.base_quantity(order.filled_amount.0)?,
        average_price: order.average_filled_price.and_then(|price| contract.base_price(price.0).ok()),
        venue_time: Timestamp::from_millis(order.updated_at),
    }))
}

/// An open order of the account.
pub(crate) fn open_order(
    row: &OpenOrder,
    (symbol, contract): (Symbol, &Contract),
) -> Result<deltaplane_ports::OpenOrder, MapError> {
    let quantity = |number: Number| contract.base_quantity(number.0);
    let canceled = row.cancelled_amount.map_or(Ok(Quantity::ZERO), quantity)?;
    let left = quantity(row.initial_amount)?
        .saturating_minus(quantity(row.filled_amount)?)
        .saturating_minus(canceled);
    let side = if row.side == BookSide::Bid { Side::Buy } else { Side::Sell };
    let reduce_only = row.reduce_only;
    Ok(deltaplane_ports::OpenOrder { symbol, venue_order_id: id(row.order_id)?, side, left, reduce_only })
}

/// What is left of an order that the stream told of.
pub(crate) fn left_open(
    update: &OrderUpdate,
    (symbol, contract): (Symbol, &Contract),
) -> Result<deltaplane_ports::OpenOrder, MapError> {
    let quantity = |number: Number| contract.base_quantity(number.0);
    let left = quantity(update.a)?.saturating_minus(quantity(update.f)?);
    // What is not known to be over may still trade.
    let is_over = status(update.os).is_ok_and(OrderStatus::is_terminal);
    Ok(deltaplane_ports::OpenOrder {
        symbol,
        venue_order_id: id(update.i)?,
        side: if update.d == BookSide::Bid { Side::Buy } else { Side::Sell },
        left: if is_over { Quantity::ZERO } else { left },
        reduce_only: update.r,
    })
}

/// Wallet balances by asset.
pub(crate) fn balances(account: &Account) -> BTreeMap<String, Decimal> {
    let mut all: BTreeMap<String, Decimal> =
        account.spot_balances.iter().map(|spot| (spot.symbol.clone(), spot.amount.0)).collect();
    all.insert("USDC".to_owned(), account.balance.0);
    all
}

/// What an instrument is made from.
pub(crate) struct InstrumentParts<'a> {
    pub(crate) symbol: &'a Symbol,
    pub(crate) contract: &'a Contract,
    pub(crate) market: &'a Market,
    /// None where it was not read yet: the fees of the lowest tier.
    pub(crate) account: Option<&'a Account>,
    /// None where it was never set: the market's highest.
    pub(crate) leverage: Option<u32>,
    /// Whether positions of the market have margin of their own.
    pub(crate) isolated: bool,
    pub(crate) mark: Option<Price>,
    pub(crate) settled: &'a [PastFunding],
}

/// Fee rates of the lowest tier, for answers that do not tell them.
const TAKER: (i64, u32) = (4, 4);
const MAKER: (i64, u32) = (15, 5);

pub(crate) fn instrument(parts: &InstrumentParts<'_>) -> Result<Instrument, MapError> {
    let InstrumentParts { symbol, contract, market, account, leverage, isolated, mark, settled } = parts;
    let lot = contract.base_quantity(market.lot_size.0)?;
    // The largest order is stated in money.
    let largest = mark.and_then(|mark| market.max_order_size.0.checked_div(mark.value())).map(|most| {
        let lots = most.checked_div(lot.value()).map_or(Decimal::ZERO, |lots| lots.floor());
        lots.saturating_mul(lot.value())
    });
    let max_quantity = largest.unwrap_or(market.max_order_size.0);
    let rate = |told: Option<crate::wire::Number>, (mantissa, scale): (i64, u32)| {
        Ratio::new(told.map_or_else(|| Decimal::from_i128_with_scale(mantissa.into(), scale), |rate| rate.0))
    };
    let max_leverage = Decimal::from(market.max_leverage.max(1));
    // Half of the initial margin at the highest leverage, whatever leverage is chosen.
    let maintenance = Decimal::ONE.checked_div(max_leverage * Decimal::TWO).unwrap_or(Decimal::ONE);
    let mean = settled.iter().try_fold(Decimal::ZERO, |sum, row| sum.checked_add(row.funding_rate.0));
    Ok(Instrument {
        symbol: (*symbol).clone(),
        venue_symbol: market.symbol.clone(),
        multiplier: contract.multiplier,
        quote: contract.quote.clone(),
        lot_size: lot,
        min_quantity: lot,
        max_quantity: deltaplane_types::Quantity::try_new(max_quantity).map_err(ContractError::from)?,
        tick_size: contract.base_price(market.tick_size.0)?,
        min_notional: Notional::new(market.min_order_size.0),
        // Dust was seen to be closed below the minimum; no page says so.
        reduce_only_exempt: false,
        price_band_up: None,
        price_band_down: None,
        taker_rate: rate(account.and_then(|account| account.taker_fee), TAKER),
        maker_rate: rate(account.and_then(|account| account.maker_fee), MAKER),
        leverage: Decimal::from(leverage.unwrap_or(market.max_leverage).max(1)),
        brackets: vec![MarginBracket {
            floor: Notional::ZERO,
            cap: Notional::new(Decimal::from(1_000_000_000_000_i64)),
            maintenance_rate: Ratio::new(maintenance),
            deduction: Notional::ZERO,
            max_leverage,
        }],
        funding_interval_hours: 1,
        mean_funding_rate: mean.and_then(|sum| sum.checked_div(Decimal::from(settled.len()))).map(Ratio::new),
        // Plans count on margin that is shared over the account.
        tradable: market.is_perpetual() && !market.isolated_only && !isolated,
        // What the venue lists it trades: what it does not is unknown to it.
        listed: true,
        ends_at: None,
        initial_margin_from: MarginPrice::Entry,
    })
}

/// The symbol and contract of a market that is a perpetual future of ours.
pub(crate) fn of_market(symbols: &SymbolMap, name: &str) -> Option<(Symbol, Contract)> {
    symbols.canonical(name).ok()
}

/// Has the symbols learn what the venue lists. Spot markets are no contracts.
pub(crate) fn learn(symbols: &SymbolMap, markets: &Rows<Market>) {
    let contracts = markets.read.iter().filter(|market| !market.is_spot());
    let listed = |market: &Market| ListedContract {
        name: market.symbol.clone(),
        base: None,
        quote: None,
        kind: match market.instrument_type.as_deref() {
            None | Some("perpetual") => ContractKind::Perpetual,
            Some(text) => ContractKind::Unknown(text.chars().take(40).collect()),
        },
    };
    symbols.learn(&contracts.map(listed).collect::<Vec<_>>(), &markets.unreadable_names("symbol"));
}

/// A row of the account's statement; the venue counts in USDC.
pub(crate) fn income(id: String, symbol: Symbol, kind: IncomeKind, amount: Decimal, at: i64) -> Income {
    let (amount, at) = (Notional::new(amount), Timestamp::from_millis(at));
    Income { id, symbol, kind, amount, asset: "USDC".to_owned(), at }
}

#[cfg(test)]
mod tests {
    use deltaplane_ports::NameRule;

    use super::*;

    fn past(name: &str, state: &str) -> PastOrder {
        let text = format!(
            r#"{{"order_id":1,"client_order_id":{name},"symbol":"ETH","order_status":"{state}","filled_amount":"0","created_at":1,"updated_at":2}}"#
        );
        serde_json::from_str(&text).expect("a row")
    }

    /// An external stop order is `triggered`: it decides nothing. One of ours in such a state is an error.
    #[test]
    fn a_state_that_is_not_known_counts_where_the_order_is_ours() {
        let contract = SymbolMap::contract_of_name(NameRule::BaseOnly, "ETH").expect("a contract");
        assert_eq!(past_report(&past("null", "triggered"), &contract), Ok(None));
        let ours = past(r#""6ba7b810-9dad-11d1-80b4-00c04fd430c8""#, "triggered");
        assert_eq!(past_report(&ours, &contract), Err(MapError::State));
        assert!(order_name(&ours).is_some());
    }
}
