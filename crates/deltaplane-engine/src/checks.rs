//! Ranges and rules of requests. The Rust API rejects the same values as the HTTP API, in the same words.

use std::ops::RangeInclusive;
use std::time::Duration;

use deltaplane_ports::{
    DeltaControl, Failure, Flatten, HedgeExecution, Pacing, Policy, StressRequest, SyncRequest,
    UtilizationRebalance, bounds,
};
use deltaplane_types::{AccountId, Code, Decimal, Notional, Ratio};

use crate::report::failure;

/// What is wrong with a request.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, text: String) {
        self.0.push(text);
    }

    fn fraction(&mut self, name: &str, value: Ratio) {
        let value = value.value();
        if value < Decimal::ZERO || value > Decimal::ONE {
            self.add(format!("{name} {value} is out of range: must be at least 0 and at most 1"));
        }
    }

    fn slippage(&mut self, value: Ratio) {
        let most = bounds::most_slippage();
        let value = value.value();
        if value <= Decimal::ZERO || value > most {
            self.add(format!("maxSlippage {value} is out of range: must be above 0 and at most {most}"));
        }
    }

    fn above_zero(&mut self, name: &str, value: Decimal) {
        if value <= Decimal::ZERO {
            self.add(format!("{name} {value} is out of range: must be above 0"));
        }
    }

    fn amount(&mut self, name: &str, value: Option<Notional>) {
        if let Some(value) = value {
            self.above_zero(name, value.value());
        }
    }

    fn time(&mut self, name: &str, value: Duration, range: RangeInclusive<Duration>) {
        if !range.contains(&value) {
            self.add(format!(
                "{name} {} is out of range: must be at least {} and at most {} ms",
                value.as_millis(),
                range.start().as_millis(),
                range.end().as_millis()
            ));
        }
    }

    fn timeout(&mut self, value: Duration) {
        self.time("timeout", value, bounds::TIMEOUT);
    }

    fn accounts(&mut self, name: &str, accounts: &[AccountId]) {
        if accounts.is_empty() || accounts.len() > bounds::MOST_ACCOUNTS {
            let count = accounts.len();
            let most = bounds::MOST_ACCOUNTS;
            self.add(format!("{name} has {count} elements; send 1 to {most} account ids"));
        }
        let twice = accounts.iter().enumerate().find(|(index, id)| accounts[..*index].contains(id));
        if let Some((_, id)) = twice {
            self.add(format!("{name}: {id} is named twice; name it once"));
        }
    }

    fn pacing(&mut self, pacing: &Pacing, timeout: Duration) {
        if pacing.clips == 0 || pacing.clips > bounds::MOST_CLIPS {
            let (clips, most) = (pacing.clips, bounds::MOST_CLIPS);
            self.add(format!("clips {clips} is out of range: must be at least 1 and at most {most}"));
        }
        self.time("clipInterval", pacing.interval, bounds::CLIP_INTERVAL);
        if !pacing.interval.is_zero() && pacing.clips < 2 {
            self.add("clipInterval means nothing in one part; send clips of at least 2".to_owned());
        }
        if let Some(rest) = pacing.rest_for {
            self.time("restTime", rest, bounds::REST);
        }
        if pacing.longest() >= timeout {
            self.add(format!(
                "timeout {} ms are not longer than all pauses and rests together, {} ms; raise timeout, or lower clips, clipInterval or restTime",
                timeout.as_millis(),
                pacing.longest().as_millis()
            ));
        }
    }

    fn finish(self) -> Result<(), Box<Failure>> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(failure(
            Code::InvalidRequest,
            self.0.join("; "),
            "correct what is named and send the request again",
        ))
    }
}

pub(crate) fn control(request: &DeltaControl) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    problems.accounts("accounts", &request.accounts);
    problems.fraction("tolerancePercent", request.tolerance);
    problems.fraction("maxDeviation", request.max_deviation);
    problems.slippage(request.max_slippage);
    problems.timeout(request.timeout);
    problems.finish()
}

pub(crate) fn hedge(request: &HedgeExecution) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    problems.accounts("targetAccounts", &request.accounts);
    problems.above_zero("hedgeAmount", request.amount.value());
    problems.slippage(request.max_slippage);
    problems.timeout(request.timeout);
    problems.pacing(&request.pacing, request.timeout);
    problems.finish()
}

pub(crate) fn flatten(request: &Flatten) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    problems.accounts("accounts", &request.accounts);
    problems.slippage(request.max_slippage);
    problems.timeout(request.timeout);
    problems.finish()
}

pub(crate) fn rebalance(request: &UtilizationRebalance) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    problems.accounts("accounts", &request.accounts);
    problems.fraction("targetUtilization", request.target);
    problems.fraction("tolerancePercent", request.tolerance);
    problems.amount("maxRebalanceAmount", request.max_amount);
    problems.slippage(request.max_slippage);
    problems.timeout(request.timeout);
    problems.finish()
}

pub(crate) fn sync(request: &SyncRequest) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    problems.accounts("accounts", &request.accounts);
    problems.timeout(request.timeout);
    problems.finish()
}

pub(crate) fn stress(request: &StressRequest) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    if request.moves.len() > bounds::MOST_MOVES {
        let (count, most) = (request.moves.len(), bounds::MOST_MOVES);
        problems.add(format!("moves has {count} elements; send at most {most}"));
    }
    let is_possible = |change: &Ratio| change.value() > -Decimal::ONE && change.value() <= Decimal::TEN;
    for change in request.moves.iter().filter(|change| !is_possible(change)) {
        problems.add(format!("moves {change} is out of range: must be above -1 and at most 10"));
    }
    problems.finish()
}

pub(crate) fn policy(policy: &Policy) -> Result<(), Box<Failure>> {
    let mut problems = Problems::default();
    problems.accounts("accounts", &policy.accounts);
    if policy.accounts.len() == 1 {
        problems.add("accounts names one account; a hedge needs at least two".to_owned());
    }
    problems.fraction("tolerancePercent", policy.tolerance);
    problems.fraction("maxDeviation", policy.max_deviation);
    if policy.tolerance > policy.max_deviation {
        problems.add(format!(
            "tolerancePercent {} is above maxDeviation {}; lower it or raise maxDeviation",
            policy.tolerance, policy.max_deviation
        ));
    }
    problems.slippage(policy.max_slippage);
    problems.timeout(policy.timeout);
    problems.fraction("hysteresis", policy.hysteresis);
    problems.time("after", policy.after, bounds::AFTER);
    if let Some(horizon) = policy.horizon {
        problems.time("horizon", horizon, bounds::PERIOD);
    }
    let limits = &policy.limits;
    for (name, value) in [
        ("limits/maxOrderNotional", limits.max_order_notional),
        ("limits/maxPositionNotional", limits.max_position_notional),
        ("limits/maxOperationNotional", limits.max_operation_notional),
        ("limits/maxNetDelta", limits.max_net_delta),
        ("limits/maxInFlightDelta", limits.max_in_flight_delta),
    ] {
        problems.amount(name, value);
    }
    if let Some(deleverage) = &policy.deleverage {
        problems.fraction("deleverage/trigger", deleverage.trigger);
        problems.fraction("deleverage/until", deleverage.until);
        if deleverage.trigger >= deleverage.until {
            problems.add(format!(
                "deleverage/until {} is not above trigger {}; send a larger one",
                deleverage.until, deleverage.trigger
            ));
        }
    }
    if let Some(rebalance) = &policy.rebalance {
        problems.time("rebalance/every", rebalance.every, bounds::PERIOD);
        problems.fraction("rebalance/targetUtilization", rebalance.target);
        problems.fraction("rebalance/tolerancePercent", rebalance.tolerance);
        problems.amount("rebalance/maxRebalanceAmount", rebalance.max_amount);
    }
    problems.finish()
}

#[cfg(test)]
mod tests {
    use deltaplane_ports::{HedgeStrategy, RequestMeta};
    use deltaplane_testkit::{delta, quantity, ratio};
    use deltaplane_types::Symbol;

    use super::*;

    fn btc() -> Symbol {
        "BTC-USD".parse().unwrap()
    }

    fn accounts(names: &[&str]) -> Vec<AccountId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[track_caller]
    fn refused(result: Result<(), Box<Failure>>, text: &str) {
        let failure = result.unwrap_err();
        assert_eq!((failure.code, failure.error.as_str()), (Code::InvalidRequest, text));
    }

    #[test]
    fn a_control_request_is_held_to_its_ranges() {
        let good = DeltaControl::new(btc(), accounts(&["a", "b"]), delta("0"), ratio("0.1"));
        assert!(control(&good).is_ok());
        let with = |change: fn(&mut DeltaControl)| {
            let mut request = good.clone();
            change(&mut request);
            control(&request)
        };
        refused(
            with(|request| request.tolerance = ratio("-1")),
            "tolerancePercent -1 is out of range: must be at least 0 and at most 1",
        );
        refused(
            with(|request| request.timeout = Duration::ZERO),
            "timeout 0 is out of range: must be at least 100 and at most 600000 ms",
        );
        refused(
            with(|request| request.max_slippage = ratio("0")),
            "maxSlippage 0 is out of range: must be above 0 and at most 0.1",
        );
        refused(
            with(|request| request.accounts.clear()),
            "accounts has 0 elements; send 1 to 100 account ids",
        );
        refused(
            with(|request| request.accounts = accounts(&["a", "b", "a"])),
            "accounts: a is named twice; name it once",
        );
    }

    #[test]
    fn a_hedge_is_held_to_its_ranges() {
        let good = HedgeExecution {
            symbol: btc(),
            accounts: accounts(&["a"]),
            amount: quantity("1"),
            side: None,
            strategy: HedgeStrategy::DeltaNeutral,
            max_slippage: ratio("0.005"),
            timeout: Duration::from_secs(30),
            pacing: Pacing::default(),
            dry_run: false,
            meta: RequestMeta::default(),
        };
        assert!(hedge(&good).is_ok());
        let none = Pacing { clips: 0, ..Pacing::default() };
        refused(
            hedge(&HedgeExecution { pacing: none, ..good.clone() }),
            "clips 0 is out of range: must be at least 1 and at most 20",
        );
        let long = Pacing { clips: 4, interval: Duration::from_secs(10), rest_for: None };
        refused(
            hedge(&HedgeExecution { pacing: long, ..good.clone() }),
            "timeout 30000 ms are not longer than all pauses and rests together, 30000 ms; raise timeout, or lower clips, clipInterval or restTime",
        );
        refused(
            hedge(&HedgeExecution { amount: quantity("0"), ..good }),
            "hedgeAmount 0 is out of range: must be above 0",
        );
    }

    #[test]
    fn a_policy_is_held_to_its_ranges() {
        let good = Policy::new(btc(), accounts(&["a", "b"]));
        assert!(policy(&good).is_ok());
        refused(
            policy(&Policy { accounts: accounts(&["a"]), ..good.clone() }),
            "accounts names one account; a hedge needs at least two",
        );
        refused(
            policy(&Policy { tolerance: ratio("0.3"), ..good.clone() }),
            "tolerancePercent 0.3 is above maxDeviation 0.25; lower it or raise maxDeviation",
        );
        refused(
            policy(&Policy { tolerance: ratio("-1"), after: Duration::from_secs(7_200), ..good.clone() }),
            "tolerancePercent -1 is out of range: must be at least 0 and at most 1; after 7200000 is out of range: must be at least 0 and at most 3600000 ms",
        );
        let deleverage = deltaplane_ports::Deleverage { trigger: ratio("0.2"), until: ratio("0.2") };
        refused(
            policy(&Policy { deleverage: Some(deleverage), ..good }),
            "deleverage/until 0.2 is not above trigger 0.2; send a larger one",
        );
    }
}
