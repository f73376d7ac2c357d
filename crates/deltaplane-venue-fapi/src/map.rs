//! Wire to domain: pure, total, invents nothing.

use deltaplane_net::Rows;
use deltaplane_ports::{
    Contract, ContractError, ContractKind, Income, IncomeKind, ListedContract, OpenOrder, OrderName,
    SymbolMap,
};
use deltaplane_types::{
    AccountId, ArithmeticError, ClientOrderId, Decimal, Delta, ExecutionReport, Fee, Fill, FillCause,
    Instrument, MarginBracket, MarginPrice, Notional, OrderStatus, Price, Quantity, RangeError, Ratio, Side,
    Symbol, Timestamp, parse_exact,
};

use crate::wire::{
    CommissionRate, Filter, FundingRate, IncomeRow, LeverageBracket, Number, OrderAnswer, OrderEvent,
    OrderState, SymbolInfo, UserTrade, WireSide,
};

/// A message that says something impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapError {
    #[error("{field} {text:?} is not a decimal")]
    NotDecimal { field: &'static str, text: String },
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Arithmetic(#[from] ArithmeticError),
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error("the id {0:?} is not legal")]
    Id(String),
    #[error("the instrument lacks its {0}")]
    Missing(String),
    #[error("a rule of the instrument cannot be read ({reason}): {row}")]
    OddRule { row: String, reason: String },
    #[error("the instrument's {field} is {value}, not above 0")]
    NotAboveZero { field: &'static str, value: Decimal },
}

impl From<OrderState> for OrderStatus {
    fn from(state: OrderState) -> Self {
        match state {
            OrderState::New | OrderState::NewInsurance | OrderState::NewAdl => Self::Open,
            OrderState::PartiallyFilled => Self::PartiallyFilled,
            OrderState::Filled => Self::Filled,
            OrderState::Canceled => Self::Canceled,
            OrderState::Rejected => Self::Rejected,
            OrderState::Expired | OrderState::ExpiredInMatch => Self::Expired,
        }
    }
}

impl From<WireSide> for Side {
    fn from(side: WireSide) -> Self {
        match side {
            WireSide::Buy => Self::Buy,
            WireSide::Sell => Self::Sell,
        }
    }
}

/// A price where zero stands for none.
pub(crate) fn price_or_none(number: Number, contract: &Contract) -> Option<Price> {
    contract.base_price(number.0).ok()
}

/// The mark price that a position's notional stands for.
pub(crate) fn mark_price(notional: Number, quantity: Number, contract: &Contract) -> Option<Price> {
    contract.base_price(notional.0.checked_div(quantity.0)?).ok()
}

/// The wallet of a position's own, where it does not share the account's. Not every exchange says which it is; a
/// wallet that is not empty does.
pub(crate) fn isolated_margin(row: &crate::wire::AccountPosition) -> Option<Notional> {
    let wallet = row.isolated_wallet.map_or(Decimal::ZERO, |wallet| wallet.0);
    let is_isolated = row.isolated.unwrap_or(!wallet.is_zero());
    is_isolated.then(|| Notional::new(wallet))
}

/// Why a trade under this client id happened. The venue writes a number behind its own names.
pub(crate) fn cause(client_id: &str) -> FillCause {
    if client_id.starts_with("autoclose-") {
        FillCause::Liquidation
    } else if client_id.starts_with("adl_") {
        FillCause::Deleveraging
    } else if client_id.starts_with("settlement_") || client_id.starts_with("delivery_autoclose") {
        FillCause::Settlement
    } else {
        FillCause::Order
    }
}

/// The name of an order, where it has one that can be read.
pub(crate) fn order_name(order: &crate::wire::OrderName) -> Option<OrderName> {
    Some(OrderName {
        venue_order_id: venue_id(order.order_id).ok()?,
        client_order_id: client_order_id(&order.client_order_id).ok(),
        cause: cause(&order.client_order_id),
    })
}

pub(crate) fn client_order_id(text: &str) -> Result<ClientOrderId, MapError> {
    text.parse().map_err(|_| MapError::Id(text.chars().take(40).collect()))
}

fn venue_id<T: std::str::FromStr>(number: u64) -> Result<T, MapError> {
    number.to_string().parse().map_err(|_| MapError::Id(number.to_string()))
}

pub(crate) fn report(answer: &OrderAnswer, contract: &Contract) -> Result<ExecutionReport, MapError> {
    Ok(ExecutionReport {
        client_order_id: client_order_id(&answer.client_order_id)?,
        venue_order_id: venue_id(answer.order_id)?,
        status: answer.status.into(),
        filled: contract.base_quantity(answer.executed_qty.0)?,
        average_price: answer.avg_price.and_then(|price| price_or_none(price, contract)),
        venue_time: Timestamp::from_millis(answer.update_time),
    })
}

pub(crate) fn event_report(event: &OrderEvent, contract: &Contract) -> Result<ExecutionReport, MapError> {
    Ok(ExecutionReport {
        client_order_id: client_order_id(&event.c)?,
        venue_order_id: venue_id(event.i)?,
        status: event.status.into(),
        filled: contract.base_quantity(event.filled.0)?,
        average_price: price_or_none(event.average_price, contract),
        venue_time: Timestamp::from_millis(event.time),
    })
}

/// What an order event leaves open.
pub(crate) fn event_open(
    event: &OrderEvent,
    (symbol, contract): (Symbol, &Contract),
) -> Result<OpenOrder, MapError> {
    let status = OrderStatus::from(event.status);
    let left = match event.quantity {
        Some(quantity) if !status.is_terminal() => {
            contract.base_quantity(quantity.0)?.saturating_minus(contract.base_quantity(event.filled.0)?)
        }
        _ => Quantity::ZERO,
    };
    let (venue_order_id, side) = (venue_id(event.i)?, event.side.into());
    Ok(OpenOrder { symbol, venue_order_id, side, left, reduce_only: event.reduce_only })
}

/// The trade in an order event; none where it tells of none.
pub(crate) fn event_fill(
    event: &OrderEvent,
    account: &AccountId,
    (symbol, contract): (&Symbol, &Contract),
) -> Result<Option<Fill>, MapError> {
    if event.t == 0 || event.last_quantity.0.is_zero() {
        return Ok(None);
    }
    Ok(Some(Fill {
        account: account.clone(),
        symbol: symbol.clone(),
        trade_id: venue_id(event.t)?,
        venue_order_id: venue_id(event.i)?,
        client_order_id: client_order_id(&event.c).ok(),
        side: event.side.into(),
        quantity: contract.base_quantity(event.last_quantity.0)?,
        price: contract.base_price(event.last_price.0)?,
        fee: Fee {
            amount: event.commission.map_or(Decimal::ZERO, |fee| fee.0),
            asset: event.commission_asset.clone(),
            rate: None,
        },
        cause: cause(&event.c),
        venue_time: Timestamp::from_millis(event.time),
    }))
}

/// A trade of the account's history. Its fee is what was paid, whichever sign the venue writes.
pub(crate) fn trade_fill(
    trade: &UserTrade,
    account: &AccountId,
    (symbol, contract): (&Symbol, &Contract),
) -> Result<Fill, MapError> {
    Ok(Fill {
        account: account.clone(),
        symbol: symbol.clone(),
        trade_id: venue_id(trade.id)?,
        venue_order_id: venue_id(trade.order_id)?,
        client_order_id: None,
        side: trade.side.into(),
        quantity: contract.base_quantity(trade.qty.0)?,
        price: contract.base_price(trade.price.0)?,
        fee: Fee { amount: trade.commission.0.abs(), asset: trade.commission_asset.clone(), rate: None },
        cause: FillCause::Order,
        venue_time: Timestamp::from_millis(trade.time),
    })
}

fn decimal(field: &'static str, text: &str) -> Result<Decimal, MapError> {
    parse_exact(text).map_err(|_| MapError::NotDecimal { field, text: text.chars().take(40).collect() })
}

/// What an instrument is made from.
pub(crate) struct InstrumentParts<'a> {
    pub(crate) symbol: &'a Symbol,
    pub(crate) contract: &'a Contract,
    pub(crate) info: &'a SymbolInfo,
    pub(crate) rates: &'a CommissionRate,
    pub(crate) brackets: &'a LeverageBracket,
    pub(crate) leverage: Decimal,
    /// Whether positions of the symbol have margin of their own.
    pub(crate) isolated: bool,
    pub(crate) funding_interval_hours: u32,
    /// The mean of the settlements of the last 24 hours, where it is known.
    pub(crate) mean_funding_rate: Option<Ratio>,
}

/// The mean of funding rates; none where there are none.
pub(crate) fn mean_rate(rates: &[FundingRate]) -> Option<Ratio> {
    let sum = rates.iter().try_fold(Decimal::ZERO, |sum, rate| sum.checked_add(rate.funding_rate.0))?;
    sum.checked_div(Decimal::from(rates.len())).map(Ratio::new)
}

fn above_zero(field: &'static str, value: Decimal) -> Result<Decimal, MapError> {
    if value > Decimal::ZERO { Ok(value) } else { Err(MapError::NotAboveZero { field, value }) }
}

/// What a contract's type says. Perpetuals on stocks and metals are perpetuals; one that is being delivered still is one.
fn kind(contract_type: Option<&str>) -> ContractKind {
    match contract_type {
        Some("PERPETUAL" | "PERPETUAL_DELIVERING") => ContractKind::Perpetual,
        Some(text) if text.ends_with("_PERPETUAL") => ContractKind::Perpetual,
        Some(text) if text.starts_with("CURRENT_") || text.starts_with("NEXT_") => ContractKind::Dated,
        Some(text) => ContractKind::Unknown(text.chars().take(40).collect()),
        None => ContractKind::Unknown("null".to_owned()),
    }
}

/// Has the symbols learn what the exchange lists.
pub(crate) fn learn(symbols: &SymbolMap, infos: &Rows<SymbolInfo>) {
    let listed = |info: &SymbolInfo| ListedContract {
        name: info.symbol.clone(),
        base: info.base_asset.clone(),
        quote: info.margin_asset.clone(),
        kind: kind(info.contract_type.as_deref()),
    };
    symbols.learn(&infos.read.iter().map(listed).collect::<Vec<_>>(), &infos.unreadable_names("symbol"));
}

/// The delivery date of contracts that go on, in 2100.
const NEVER: i64 = 4_133_404_800_000;

pub(crate) fn instrument(parts: &InstrumentParts<'_>) -> Result<Instrument, MapError> {
    let InstrumentParts {
        symbol,
        contract,
        info,
        rates,
        brackets,
        leverage,
        isolated,
        funding_interval_hours,
        mean_funding_rate,
    } = parts;
    let (mut tick, mut lot, mut notional, mut band) = (None, None, None, (None, None));
    let filters = info.filters.as_ref();
    if let Some(odd) = filters.and_then(|filters| filters.unreadable.first()) {
        return Err(MapError::OddRule { row: odd.text.clone(), reason: odd.reason.clone() });
    }
    let missing = |name: &str| MapError::Missing(name.to_owned());
    for filter in filters.iter().flat_map(|filters| &filters.read) {
        match filter {
            Filter::PriceFilter { tick_size } => {
                let tick_size = above_zero("tickSize", decimal("tickSize", tick_size)?)?;
                tick = Some(contract.base_price(tick_size)?);
            }
            Filter::LotSize { min_qty, max_qty, step_size } => {
                let quantity =
                    |field, text: &str| Ok::<_, MapError>(contract.base_quantity(decimal(field, text)?)?);
                above_zero("stepSize", decimal("stepSize", step_size)?)?;
                lot = Some((
                    quantity("stepSize", step_size)?,
                    quantity("minQty", min_qty)?,
                    quantity("maxQty", max_qty)?,
                ));
            }
            Filter::MinNotional { notional: text } => {
                notional = Some(Notional::new(decimal("notional", text)?));
            }
            Filter::PercentPrice { multiplier_up, multiplier_down } => {
                band = (
                    Some(Ratio::new(decimal("multiplierUp", multiplier_up)?)),
                    Some(Ratio::new(decimal("multiplierDown", multiplier_down)?)),
                );
            }
            Filter::Other => {}
        }
    }
    let (lot_size, min_quantity, max_quantity) = lot.ok_or_else(|| missing("LOT_SIZE"))?;
    if brackets.brackets.is_empty() {
        return Err(MapError::Missing("margin table: its list of brackets is empty".to_owned()));
    }
    above_zero("leverage", *leverage)?;
    let listed = info.status.as_deref() == Some("TRADING");
    let is_perpetual = kind(info.contract_type.as_deref()) == ContractKind::Perpetual;
    Ok(Instrument {
        symbol: (*symbol).clone(),
        venue_symbol: info.symbol.clone(),
        multiplier: contract.multiplier,
        quote: contract.quote.clone(),
        lot_size,
        min_quantity,
        max_quantity,
        tick_size: tick.ok_or_else(|| missing("PRICE_FILTER"))?,
        min_notional: notional.unwrap_or(Notional::ZERO),
        // MIN_NOTIONAL: "unless you choose reduce only".
        reduce_only_exempt: true,
        price_band_up: band.0,
        price_band_down: band.1,
        taker_rate: Ratio::new(rates.taker_commission_rate.0),
        maker_rate: Ratio::new(rates.maker_commission_rate.0),
        leverage: *leverage,
        brackets: brackets
            .brackets
            .iter()
            .map(|step| MarginBracket {
                floor: Notional::new(step.notional_floor.0),
                cap: Notional::new(step.notional_cap.0),
                maintenance_rate: Ratio::new(step.maint_margin_ratio.0),
                deduction: Notional::new(step.cum.0),
                max_leverage: step.initial_leverage.0,
            })
            .collect(),
        funding_interval_hours: *funding_interval_hours,
        mean_funding_rate: *mean_funding_rate,
        // Plans count on margin that is shared over the account.
        tradable: listed && is_perpetual && !isolated,
        listed,
        initial_margin_from: MarginPrice::Mark,
        ends_at: info.delivery_date.filter(|at| *at > 0 && *at < NEVER).map(Timestamp::from_millis),
    })
}

pub(crate) fn delta(number: Number, contract: &Contract) -> Result<Delta, MapError> {
    Ok(Delta::new(contract.base_units(number.0)?))
}

/// An open order of the account.
pub(crate) fn open_order(
    row: &crate::wire::RestingOrder,
    (symbol, contract): (Symbol, &Contract),
) -> Result<OpenOrder, MapError> {
    let left =
        contract.base_quantity(row.orig_qty.0)?.saturating_minus(contract.base_quantity(row.executed_qty.0)?);
    let venue_order_id = venue_id(row.order_id)?;
    Ok(OpenOrder { symbol, venue_order_id, side: row.side.into(), left, reduce_only: row.reduce_only })
}

/// A row of the statement that tells of funding, a fee or a trade; others are none of ours.
pub(crate) fn income(row: IncomeRow, symbols: &SymbolMap) -> Option<Income> {
    let kind = match row.income_type.as_str() {
        "FUNDING_FEE" => IncomeKind::Funding,
        "COMMISSION" => IncomeKind::Fee,
        "REALIZED_PNL" => IncomeKind::Realized,
        _ => return None,
    };
    let (symbol, _) = symbols.canonical(&row.symbol).ok()?;
    let trade = row.trade_id.map(|id| id.0).unwrap_or_default();
    Some(Income {
        id: format!("{}-{}-{trade}", row.income_type, row.tran_id.0),
        symbol,
        kind,
        amount: Notional::new(row.income.0),
        asset: row.asset,
        at: Timestamp::from_millis(row.time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The venue's page on order updates: `autoclose-`, `adl_autoclose`, `settlement_autoclose-`.
    #[test]
    fn forced_closes_are_known_by_the_prefix_of_their_names() {
        for (name, expected) in [
            ("autoclose-1768962991505050083", FillCause::Liquidation),
            ("adl_autoclose", FillCause::Deleveraging),
            ("adl_autoclose-1768962991505050083", FillCause::Deleveraging),
            ("settlement_autoclose-1768962991505050083", FillCause::Settlement),
            ("dn-7f3a", FillCause::Order),
            ("my-autoclose-1", FillCause::Order),
        ] {
            assert_eq!(cause(name), expected, "{name}");
        }
    }

    #[test]
    fn kinds_of_contracts_follow_from_their_types() {
        for text in ["PERPETUAL", "TRADIFI_PERPETUAL", "PERPETUAL_DELIVERING", "NEW_PERPETUAL"] {
            assert_eq!(kind(Some(text)), ContractKind::Perpetual, "{text}");
        }
        for text in ["CURRENT_QUARTER", "NEXT_QUARTER", "CURRENT_MONTH", "CURRENT_QUARTER DELIVERING"] {
            assert_eq!(kind(Some(text)), ContractKind::Dated, "{text}");
        }
        assert_eq!(kind(Some("")), ContractKind::Unknown(String::new()));
        assert_eq!(kind(None), ContractKind::Unknown("null".to_owned()));
    }
}
