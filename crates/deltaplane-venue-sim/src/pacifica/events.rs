//! What the account channels tell of a change.

use deltaplane_types::Decimal;
use serde_json::{Value, json};

use super::render;
use crate::core::{Event, Exchange, ExecutionType, ExpiryReason, OrderKind, Status};
use crate::sim::{Sim, lock};
use std::sync::atomic::Ordering;

fn frame(channel: &str, data: Value, li: Option<u64>) -> String {
    let mut frame = json!({"channel": channel, "data": data});
    if let Some(li) = li {
        frame["li"] = li.into();
    }
    frame.to_string()
}

/// The frames that one change tells: account, channel, JSON.
pub(crate) fn render(
    sim: &Sim,
    exchange: &Exchange,
    event: &Event,
    now: i64,
) -> Vec<(String, &'static str, String)> {
    let bindings = lock(&sim.bindings);
    let mut told = Vec::new();
    match event {
        Event::Order { order, execution } => {
            let li = sim.last_id.fetch_add(1, Ordering::Relaxed) + 1;
            let address = bindings.address(&order.account);
            let trade = match execution {
                ExecutionType::Trade(trade) | ExecutionType::Calculated(trade) => Some(trade),
                _ => None,
            };
            // An order that trades or ends at once is not told as resting first.
            let name = match (execution, order.expiry) {
                (ExecutionType::New, _) if order.status == Status::Waiting => "stop_created",
                (ExecutionType::Triggered, _) => "stop_triggered",
                (ExecutionType::New, _) => "make",
                (ExecutionType::Trade(_) | ExecutionType::Calculated(_), _)
                    if order.kind == OrderKind::Market =>
                {
                    "fulfill_market"
                }
                (ExecutionType::Trade(_) | ExecutionType::Calculated(_), _) => "fulfill_limit",
                (ExecutionType::Canceled, _) => "cancel",
                (ExecutionType::Amendment, _) => "adjust",
                (ExecutionType::Expired, ExpiryReason::PostOnly) => "post_only_rejected",
                (ExecutionType::Expired, ExpiryReason::SelfTrade) => "self_trade_prevented",
                (ExecutionType::Expired, ExpiryReason::MarketRest | ExpiryReason::Liquidated) => {
                    "force_cancel"
                }
                (ExecutionType::Expired, _) => "expired",
            };
            let last = trade.map_or(Decimal::ZERO, |trade| trade.price);
            let row = render::order_update(order, last, name, address, li);
            let account = order.account.clone();
            told.push((
                account.clone(),
                "account_order_updates",
                frame("account_order_updates", json!([row]), None),
            ));
            if let Some(trade) = trade.filter(|_| !sim.switches.silent_trades) {
                let entry = entry_of(exchange, &order.account, &order.symbol);
                let row = render::trade_update(trade, order, entry, address, li);
                told.push((account, "account_trades", frame("account_trades", json!([row]), None)));
            }
        }
        Event::Account { account, reason, balance_change, .. } => {
            if *reason == "ADMIN_DEPOSIT" {
                let kind = if balance_change.is_sign_negative() { "withdraw" } else { "deposit" };
                let data = json!({
                    "u": bindings.address(account), "e": kind, "a": "USDC",
                    "am": balance_change.abs().to_string(), "t": now,
                });
                told.push((account.clone(), "account_transfers", frame("account_transfers", data, None)));
            }
            let li = sim.last_id.load(Ordering::Relaxed);
            if let Some(holder) = exchange.accounts.get(account) {
                let rows = render::positions(exchange, holder, li, true);
                told.push((
                    account.clone(),
                    "account_positions",
                    frame("account_positions", rows.into(), Some(li)),
                ));
                let info = render::account_info(exchange, holder, now);
                told.push((account.clone(), "account_info", frame("account_info", info, None)));
            }
        }
        Event::Leverage { account, symbol, leverage } => {
            let data =
                json!({"u": bindings.address(account), "s": symbol, "l": leverage.to_string(), "t": now});
            told.push((account.clone(), "account_leverage", frame("account_leverage", data, None)));
        }
        Event::Funding { .. } => {}
    }
    told
}

/// The average entry of a position.
pub(super) fn entry_of(exchange: &Exchange, account: &str, symbol: &str) -> Decimal {
    let side = crate::core::PositionSide::Both;
    exchange.accounts.get(account).map_or(Decimal::ZERO, |holder| holder.position(symbol, side).entry)
}
