//! Policies, price feeds, what is over, and how accounts stood.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use deltaplane_ports::{
    Earned, EarnedDay, FeedCondition, FeedView, FeedsView, FundingView, HedgeTo, PastAlert, Policy,
    PolicyLimits, PolicyStatus, PolicyView, RiskSample, StressLoss, StressMove, StressReport, USD,
};
use deltaplane_types::{AccountId, FeedId, Notional, OperationId, Price, Ratio, Symbol, Timestamp};

use super::json::{JsonObject, Number};
use super::safety;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `RiskAlert` that is over.
pub(crate) fn past_alert(past: &PastAlert) -> JsonObject {
    let mut json = safety::alert(&past.alert);
    json.put("resolvedAt", &past.resolved_at.as_millis());
    json
}

/// `RiskMetrics` at a time.
pub(crate) fn sample(account: &AccountId, sample: &RiskSample) -> JsonObject {
    let ratio = |ratio: Option<Ratio>| ratio.map(|ratio| Number(ratio.value()));
    let mut json = JsonObject::default();
    json.put("accountId", account.as_str());
    json.number("deltaDeviation", sample.delta_deviation.value());
    json.put("utilizationRate", &ratio(sample.utilization));
    json.put("leverageRatio", &ratio(sample.leverage));
    json.number("unrealizedPnl", sample.unrealized.value());
    json.number("maxDrawdown", sample.max_drawdown.value());
    json.put("timestamp", &sample.at.as_millis());
    json.number("equity", sample.equity.value());
    json.put("marginRatio", &ratio(sample.margin_ratio));
    json.put("liquidationDistance", &ratio(sample.liquidation_distance));
    json
}

/// `MarketDataFeedStatus`.
pub(crate) fn feed(view: &FeedView) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("feedId", view.feed.as_str());
    let status = match view.condition {
        FeedCondition::Healthy => "healthy",
        FeedCondition::Degraded => "degraded",
        FeedCondition::Failing => "failing",
    };
    json.put("status", status);
    json.put("latency", &view.latency.map(millis));
    json.put("lastUpdate", &view.last_update.map_or(0, Timestamp::as_millis));
    json.put("errorCount", &view.error_count);
    json.put("mid", &view.mid.map(|mid: Price| Number(mid.value())));
    json.put("offMedian", &view.off.map(|off: Ratio| Number(off.value().round_dp(8))));
    json
}

/// The price feeds and the active one.
pub(crate) fn feeds(view: &FeedsView) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("feeds", &view.feeds.iter().map(feed).collect::<Vec<_>>());
    json.put("activeFeed", &view.active.as_ref().map(FeedId::as_str));
    // 0 where it never changed.
    json.put("lastFailover", &view.last_failover.map_or(0, Timestamp::as_millis));
    json
}

/// A policy and how it fares.
pub(crate) fn policy(view: &PolicyView) -> JsonObject {
    let PolicyView { policy, status, reason, deviation_ratio, last_operation } = view;
    let Policy { symbol, enabled, target, tolerance, max_deviation, accounts, .. } = policy;
    let mut json = JsonObject::default();
    json.put("symbol", symbol.as_str());
    json.put("enabled", enabled);
    json.number("targetDelta", target.value());
    json.number("tolerancePercent", tolerance.value());
    json.number("maxDeviation", max_deviation.value());
    json.put("accounts", &accounts.iter().map(AccountId::as_str).collect::<Vec<_>>());
    json.number("maxSlippage", policy.max_slippage.value());
    json.put("timeout", &millis(policy.timeout));
    json.put("hedgeTo", if policy.hedge_to == HedgeTo::Band { "band" } else { "target" });
    json.number("hysteresis", policy.hysteresis.value());
    json.put("after", &millis(policy.after));
    let deleverage = policy.deleverage.map(|at| {
        let mut json = JsonObject::default();
        json.number("trigger", at.trigger.value());
        json.number("until", at.until.value());
        json
    });
    json.put("deleverage", &deleverage);
    let rebalance = policy.rebalance.map(|rebalance| {
        let mut json = JsonObject::default();
        json.put("every", &millis(rebalance.every));
        json.number("targetUtilization", rebalance.target.value());
        json.number("tolerancePercent", rebalance.tolerance.value());
        json.number_if("maxRebalanceAmount", rebalance.max_amount.map(Notional::value));
        json
    });
    json.put("rebalance", &rebalance);
    let PolicyLimits {
        max_order_notional,
        max_position_notional,
        max_operation_notional,
        max_net_delta,
        max_in_flight_delta,
    } = policy.limits;
    let mut limits = JsonObject::default();
    limits.number_if("maxOrderNotional", max_order_notional.map(Notional::value));
    limits.number_if("maxPositionNotional", max_position_notional.map(Notional::value));
    limits.number_if("maxOperationNotional", max_operation_notional.map(Notional::value));
    limits.number_if("maxNetDelta", max_net_delta.map(Notional::value));
    limits.number_if("maxInFlightDelta", max_in_flight_delta.map(Notional::value));
    json.put("limits", &limits);
    json.put("horizon", &policy.horizon.map(millis));
    let status = match status {
        PolicyStatus::Off => "off",
        PolicyStatus::Within => "within",
        PolicyStatus::Waiting => "waiting",
        PolicyStatus::Acting => "acting",
        PolicyStatus::Holding => "holding",
    };
    json.put("status", status);
    json.put("reason", reason);
    json.put("deviationRatio", &deviation_ratio.map(|ratio| Number(ratio.value())));
    json.put("lastOperationId", &last_operation.as_ref().map(OperationId::as_str));
    json
}

/// Funding of every account, what each symbol's venues differ by, and the sum of a day.
pub(crate) fn funding(lines: &[FundingView]) -> JsonObject {
    let of_each = |line: &FundingView| {
        let mut json = JsonObject::default();
        json.put("accountId", line.account.as_str());
        json.put("exchange", &line.exchange);
        json.put("symbol", line.symbol.as_str());
        json.number("rate", line.rate.value());
        json.put("intervalHours", &line.interval_hours);
        json.put("nextFundingTime", &line.next_at.map(Timestamp::as_millis));
        json.number("ratePerHour", line.rate_per_hour.value());
        json.put("meanRate", &line.mean_rate.map(|rate| Number(rate.value())));
        json.number("position", line.position.value());
        json.number("nextPayment", line.next_payment.value());
        json.number("carryPerDay", line.per_day.value());
        json
    };
    let symbols: BTreeSet<&Symbol> = lines.iter().map(|line| &line.symbol).collect();
    let spreads: Vec<JsonObject> = symbols
        .into_iter()
        .filter_map(|symbol| {
            let mut rates: Vec<&FundingView> = lines.iter().filter(|line| line.symbol == *symbol).collect();
            rates.sort_by_key(|line| line.rate_per_hour);
            let (low, high) = (rates.first()?, rates.last()?);
            let mut json = JsonObject::default();
            json.put("symbol", symbol.as_str());
            // Long where the rate is low and short where it is high earns the difference.
            json.put("long", low.account.as_str());
            json.put("short", high.account.as_str());
            let spread = high.rate_per_hour.value().checked_sub(low.rate_per_hour.value());
            json.put("spreadPerHour", &spread.map(Number));
            Some(json)
        })
        .collect();
    let sum = lines.iter().try_fold(Notional::ZERO, |sum, line| sum.plus(line.per_day)).ok();
    let mut json = JsonObject::default();
    json.put("funding", &lines.iter().map(of_each).collect::<Vec<_>>());
    json.put("spreads", &spreads);
    json.put("carryPerDay", &sum.map(|sum| Number(sum.value())));
    json
}

/// What would become of the accounts.
pub(crate) fn stress(report: &StressReport) -> JsonObject {
    let of_move = |one: &StressMove| {
        let accounts: Vec<JsonObject> = one
            .accounts
            .iter()
            .map(|account| {
                let mut json = JsonObject::default();
                json.put("accountId", account.account.as_str());
                json.number("equity", account.equity.value());
                json.put("marginRatio", &account.margin_ratio.map(|ratio| Number(ratio.value())));
                json.put("liquidated", &account.liquidated);
                let distance = account.liquidation_distance.map(|distance| Number(distance.value()));
                json.put("liquidationDistance", &distance);
                json
            })
            .collect();
        let mut json = JsonObject::default();
        json.number("move", one.change.value());
        json.put("accounts", &accounts);
        json
    };
    let of_loss = |loss: &StressLoss| {
        let mut json = JsonObject::default();
        json.put("accountId", loss.account.as_str());
        json.number("netDeltaIfLegFails", loss.net_if_leg_fails.value());
        json.number("untradableIfVenueFails", loss.unreachable_if_venue_fails.value());
        json
    };
    let mut json = JsonObject::default();
    json.put("symbol", report.symbol.as_str());
    json.number("netDelta", report.net.value());
    json.put("moves", &report.moves.iter().map(of_move).collect::<Vec<_>>());
    json.put("losses", &report.losses.iter().map(of_loss).collect::<Vec<_>>());
    json
}

fn earned(json: &mut JsonObject, earned: &Earned) {
    json.number("funding", earned.funding.value());
    json.number("fees", earned.fees.value());
    json.number("basis", earned.basis.value());
    json.number("residualDelta", earned.residual.value());
    json.number_if("total", earned.total().ok().map(Notional::value));
    json.number("realized", earned.realized.value());
}

fn date(day: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(day.as_millis())
        .map(|at| at.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default()
}

/// Whether an account is one of a symbol's policy.
fn is_in_policy(policies: &[PolicyView], symbol: &Symbol, account: &AccountId) -> bool {
    let policy = policies.iter().find(|view| view.policy.symbol == *symbol);
    policy.is_some_and(|view| view.policy.accounts.contains(account))
}

/// What a hedge group earned in a day.
struct GroupDay<'a> {
    day: Timestamp,
    symbol: &'a Symbol,
    is_in_policy: bool,
    accounts: Vec<&'a str>,
    /// None where it cannot be added up: each line stands for itself then.
    sum: Option<Earned>,
}

/// The sums of each hedge group and day: the accounts of a symbol's policy, and beside them those that are in none,
/// which is all where there is no policy.
fn pnl_groups<'a>(lines: &'a [EarnedDay], policies: &[PolicyView]) -> Vec<GroupDay<'a>> {
    let mut groups = BTreeMap::<(Reverse<Timestamp>, &Symbol, bool), Vec<&EarnedDay>>::new();
    for line in lines.iter().filter(|line| line.counts()) {
        let is_outside = !is_in_policy(policies, &line.symbol, &line.account);
        groups.entry((Reverse(line.day), &line.symbol, is_outside)).or_default().push(line);
    }
    let group = |((Reverse(day), symbol, is_outside), lines): ((_, _, bool), Vec<&'a EarnedDay>)| GroupDay {
        day,
        symbol,
        is_in_policy: !is_outside,
        accounts: lines.iter().map(|line| line.account.as_str()).collect(),
        sum: lines.iter().try_fold(Earned::default(), |sum, line| sum.plus(&line.earned)).ok(),
    };
    groups.into_iter().map(group).collect()
}

fn pnl_group(group: &GroupDay<'_>) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("date", &date(group.day));
    json.put("symbol", group.symbol.as_str());
    json.put("accounts", &group.accounts);
    json.put("inPolicy", &group.is_in_policy);
    if let Some(sum) = &group.sum {
        earned(&mut json, sum);
    }
    json
}

fn pnl_line(line: &EarnedDay) -> JsonObject {
    let mut json = JsonObject::default();
    json.put("date", &date(line.day));
    json.put("symbol", line.symbol.as_str());
    json.put("accountId", line.account.as_str());
    if line.counts() {
        earned(&mut json, &line.earned);
    } else {
        json.put("asset", &line.asset);
        json.number("funding", line.earned.funding.value());
        json.number("fees", line.earned.fees.value());
        json.number("realized", line.earned.realized.value());
    }
    json
}

/// Daily PnL: every line, the sums of hedge groups, the sum of all, and amounts without a known rate.
pub(crate) fn pnl(lines: &[EarnedDay], policies: &[PolicyView]) -> JsonObject {
    let (counted, uncounted): (Vec<&EarnedDay>, Vec<&EarnedDay>) =
        lines.iter().partition(|line| line.counts());
    let told = |lines: &[&EarnedDay]| lines.iter().map(|line| pnl_line(line)).collect::<Vec<_>>();
    // What cannot be added up is not: each line stands for itself.
    let sum = counted.iter().try_fold(Earned::default(), |sum, line| sum.plus(&line.earned));
    let total = sum.ok().map(|sum| {
        let mut json = JsonObject::default();
        earned(&mut json, &sum);
        json
    });
    let mut json = JsonObject::default();
    json.put("days", &told(&counted));
    let groups = pnl_groups(lines, policies);
    json.put("groups", &groups.iter().map(pnl_group).collect::<Vec<_>>());
    json.put("total", &total);
    json.put("uncounted", &told(&uncounted));
    json
}

/// The columns of what was earned.
const EARNED: &str = "funding,fees,basis,residualDelta,total,realized";

fn earned_csv(earned: &Earned) -> String {
    let Earned { funding, fees, realized, basis, residual } = earned;
    let total = earned.total().map(|total| total.to_string()).unwrap_or_default();
    format!("{funding},{fees},{basis},{residual},{total},{realized}")
}

/// The same without a sum.
fn uncounted_csv(Earned { funding, fees, realized, .. }: &Earned) -> String {
    format!("{funding},{fees},,,,{realized}")
}

/// The lines as text, each in its asset; nothing in them needs quotes.
pub(crate) fn pnl_csv(lines: &[EarnedDay]) -> String {
    let mut text = format!("date,symbol,accountId,{EARNED},asset\r\n");
    for EarnedDay { day, symbol, account, asset, earned } in lines {
        // A venue gave the name.
        let asset = asset.replace(|letter: char| !letter.is_ascii_alphanumeric(), "");
        // What counts in no sum has none.
        let amounts = if asset.as_str() == USD { earned_csv(earned) } else { uncounted_csv(earned) };
        let _ = write!(text, "{},{symbol},{account},{amounts},{asset}\r\n", date(*day));
    }
    text
}

/// The hedge groups as text, their accounts with blanks between.
pub(crate) fn pnl_groups_csv(lines: &[EarnedDay], policies: &[PolicyView]) -> String {
    let mut text = format!("date,symbol,inPolicy,accounts,{EARNED}\r\n");
    for group in pnl_groups(lines, policies) {
        let (accounts, sum) = (group.accounts.join(" "), group.sum.as_ref().map(earned_csv));
        let sum = sum.unwrap_or_else(|| ",,,,,".to_owned());
        let _ =
            write!(text, "{},{},{},{accounts},{sum}\r\n", date(group.day), group.symbol, group.is_in_policy);
    }
    text
}

#[cfg(test)]
mod tests {
    use deltaplane_ports::Policy;
    use deltaplane_types::Decimal;

    use super::*;

    fn line(day: i64, symbol: &str, account: &str, funding: i64) -> EarnedDay {
        EarnedDay {
            day: Timestamp::from_millis(day * 86_400_000),
            symbol: symbol.parse().unwrap(),
            account: account.parse().unwrap(),
            asset: USD.to_owned(),
            earned: Earned { funding: Notional::new(Decimal::from(funding)), ..Earned::default() },
        }
    }

    /// The policy of BTC-USD names a and b; c holds some too, and ETH-USD has no policy.
    #[test]
    fn daily_pnl_is_summed_by_hedge_group_and_day() {
        let policy =
            Policy::new("BTC-USD".parse().unwrap(), ["a", "b"].map(|id| id.parse().unwrap()).to_vec());
        let view = PolicyView {
            policy,
            status: PolicyStatus::Within,
            reason: String::new(),
            deviation_ratio: None,
            last_operation: None,
        };
        let lines = [
            line(0, "BTC-USD", "a", 5),
            line(1, "BTC-USD", "a", 7),
            line(1, "BTC-USD", "b", -3),
            line(1, "BTC-USD", "c", 100),
            line(1, "ETH-USD", "a", 1),
            line(1, "ETH-USD", "c", 1),
            EarnedDay { asset: "BNB".to_owned(), ..line(1, "ETH-USD", "c", 500) },
        ];
        let groups: Vec<(String, String, usize, bool, i64)> = pnl_groups(&lines, std::slice::from_ref(&view))
            .iter()
            .map(|group| {
                let json = serde_json::to_value(pnl_group(group)).unwrap();
                let text = |name: &str| json[name].as_str().unwrap().to_owned();
                let accounts = json["accounts"].as_array().unwrap().len();
                let funding = json["funding"].to_string().parse().unwrap();
                (text("date"), text("symbol"), accounts, json["inPolicy"].as_bool().unwrap(), funding)
            })
            .collect();
        let expected = [
            ("1970-01-02", "BTC-USD", 2, true, 4),
            ("1970-01-02", "BTC-USD", 1, false, 100),
            ("1970-01-02", "ETH-USD", 2, false, 2),
            ("1970-01-01", "BTC-USD", 1, true, 5),
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(date, symbol, count, is_in, sum)| (date.to_owned(), symbol.to_owned(), count, is_in, sum))
            .collect();
        assert_eq!(groups, expected);
        let csv = pnl_groups_csv(&lines, &[view]);
        assert_eq!(csv.lines().nth(1), Some("1970-01-02,BTC-USD,true,a b,4,0,0,0,4,0"));
        assert_eq!(pnl_csv(&lines).lines().last(), Some("1970-01-02,ETH-USD,c,500,0,,,,0,BNB"));
        let json = serde_json::to_value(pnl(&lines, &[])).unwrap();
        assert_eq!(json["total"]["funding"].to_string(), "111");
        let expected = r#"[{"date":"1970-01-02","symbol":"ETH-USD","accountId":"c","asset":"BNB","funding":500,"fees":0,"realized":0}]"#;
        assert_eq!(json["uncounted"], serde_json::from_str::<serde_json::Value>(expected).unwrap());
    }
}
