//! The same as `decision`, in instructions: repeatable on a noisy machine. Needs valgrind and gungraun-runner.
#![allow(missing_docs, reason = "the macros make public items")]

use std::hint::black_box;

use deltaplane_benches::{credential, decide, frames, plan, plan_input, sign};
use deltaplane_plan::PlanInput;
use deltaplane_types::{Decimal, Delta};
use deltaplane_venue_binance::{BookSync, Credential};
use gungraun::{library_benchmark, library_benchmark_group, main};

fn thousand_frames() -> (BookSync, Vec<String>, Vec<Delta>) {
    let (book, frames) = frames(1_000);
    let positions =
        [5, -3, -2].into_iter().map(|tenths| Delta::new(Decimal::from_i128_with_scale(tenths, 1))).collect();
    (book, frames, positions)
}

#[library_benchmark]
#[bench::recorded(setup = thousand_frames)]
fn decisions_on_a_thousand_frames(
    (mut book, frames, positions): (BookSync, Vec<String>, Vec<Delta>),
) -> usize {
    frames.iter().filter(|frame| decide(&mut book, frame, &positions)).count()
}

#[library_benchmark]
#[bench::three(args = (3), setup = plan_input)]
#[bench::ten(args = (10), setup = plan_input)]
#[bench::hundred(args = (100), setup = plan_input)]
fn plan_over_accounts(input: PlanInput) -> usize {
    black_box(plan(&input)).legs.len()
}

#[library_benchmark]
#[bench::order(setup = credential)]
fn sign_one_order(credential: Credential) -> String {
    black_box(sign(&credential))
}

library_benchmark_group!(name = all; benchmarks = decisions_on_a_thousand_frames, plan_over_accounts, sign_one_order);
main!(library_benchmark_groups = all);
