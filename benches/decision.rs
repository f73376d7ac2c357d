//! Time of a decision and of a plan.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use deltaplane_benches::{RiskCase, decide, frames, gate_case, plan, plan_input};
use deltaplane_types::{Decimal, Delta, Plan};

fn decision(criterion: &mut Criterion) {
    let (mut book, frames) = frames(20_000);
    let positions: Vec<Delta> =
        [5, -3, -2].into_iter().map(|tenths| Delta::new(Decimal::from_i128_with_scale(tenths, 1))).collect();
    let mut next = frames.iter().cycle();
    criterion.bench_function("frame bytes to hedge decision", |bencher| {
        bencher.iter_batched(
            || next.next().expect("a cycle has no end"),
            |frame| black_box(decide(&mut book, frame, &positions)),
            BatchSize::SmallInput,
        );
    });
    percentiles(&positions);
}

/// A mean hides the tail, so each frame is timed once, in order.
fn percentiles(positions: &[Delta]) {
    let (mut book, frames) = frames(90_000);
    let mut times: Vec<Duration> = frames
        .iter()
        .map(|frame| {
            let began = tokio::time::Instant::now();
            black_box(decide(&mut book, frame, positions));
            began.elapsed()
        })
        .collect();
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "frame bytes to hedge decision, {} frames in order: median {:?}, 90 % {:?}, 99 % {:?}",
        times.len(),
        at(50),
        at(90),
        at(99)
    );
}

fn plans(criterion: &mut Criterion) {
    for accounts in [3, 10, 100] {
        let input = plan_input(accounts);
        criterion.bench_function(&format!("plan over {accounts} accounts"), |bencher| {
            bencher.iter(|| black_box(plan(&input)));
        });
    }
}

/// The last check before orders: the plan is there already, and what passes is the same plan.
fn pre_trade(criterion: &mut Criterion) {
    let (gate, facts, plan) = gate_case();
    criterion.bench_function("pre-trade check of a plan over 3 accounts", |bencher| {
        bencher.iter_batched(
            || plan.clone(),
            |plan| black_box(gate.approve(plan, &facts)).is_ok(),
            BatchSize::SmallInput,
        );
    });
    criterion.bench_function("floor of the pre-trade check: its products alone", |bencher| {
        bencher.iter_batched(|| plan.clone(), |plan| products(&plan), BatchSize::SmallInput);
    });
    assert!(gate.approve(plan, &facts).is_ok(), "what is measured is a check that passes");
}

/// What every leg, cap and order is worth: no check can do without.
fn products(plan: &Plan) {
    for leg in &plan.legs {
        black_box(leg.quantity.notional_at(plan.reference_price).ok());
        black_box(leg.price_cap.value().checked_mul(plan.reference_price.value()));
    }
    for order in plan.slices.iter().flat_map(|slice| &slice.orders) {
        black_box(order.quantity.notional_at(plan.reference_price).ok());
    }
}

/// Risk of accounts that hold 100 symbols each, after one of them changed: all computed again (as after a move of a price
/// that all of them are marked with), only what changed, and only the one that the event names.
fn risk_after_an_event(_: &mut Criterion) {
    for count in [10_usize, 1_000, 10_000] {
        let mut case = RiskCase::new(count, 100);
        let timed = |work: &mut dyn FnMut()| {
            let began = tokio::time::Instant::now();
            work();
            began.elapsed()
        };
        let mut events: Vec<Duration> = (0..9)
            .map(|_| {
                case.change(count / 2);
                timed(&mut || case.look_at(count / 2))
            })
            .collect();
        events.sort();
        case.change(0);
        let look = timed(&mut || (0..count).for_each(|index| case.look_at(index)));
        let full = timed(&mut || (0..count).for_each(|index| case.fresh(index)));
        println!(
            "risk after one event, {count} accounts x 100 symbols: that account {:?}, a check of all {look:?}, all again {full:?}",
            events[4]
        );
        let mut trades: Vec<Duration> = (0..9)
            .map(|_| {
                case.trade(count / 2);
                timed(&mut || case.hold(count / 2))
            })
            .collect();
        trades.sort();
        let sums = timed(&mut || case.add_up());
        println!(
            "net deltas after one event, {count} accounts x 100 symbols: that account {:?}, all added up {sums:?}",
            trades[4]
        );
    }
}

criterion_group!(benches, decision, plans, pre_trade, risk_after_an_event);
criterion_main!(benches);
