//! The same as `decision`, in instructions: repeatable on a noisy machine. Needs valgrind and gungraun-runner.
#![allow(missing_docs, reason = "the macros make public items")]

use std::hint::black_box;

use deltaplane_benches::{
    Credentials, credentials, decide, frames, messages, plan, plan_input, sign_account, sign_agent, sign_hmac,
};
use deltaplane_plan::PlanInput;
use deltaplane_types::{Decimal, Delta};
use deltaplane_venue_fapi::{BookSync, fold_frame, wire as fapi};
use deltaplane_venue_pacifica::TopOfBook;
use deltaplane_venue_pacifica::wire::{self as pacifica, Frame};
use gungraun::{library_benchmark, library_benchmark_group, main};
use serde::de::DeserializeOwned;

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

type Sign = fn(&Credentials) -> String;

/// Keys that have signed before, so that only the signature of the one order is counted.
fn warmed(sign: Sign) -> (Sign, Credentials) {
    let credentials = credentials();
    sign(&credentials);
    (sign, credentials)
}

#[library_benchmark]
#[bench::hmac(args = (sign_hmac), setup = warmed)]
#[bench::secp256k1_eip712(args = (sign_agent), setup = warmed)]
#[bench::ed25519(args = (sign_account), setup = warmed)]
fn sign_one_order((sign, credentials): (Sign, Credentials)) -> (String, Credentials) {
    (black_box(sign(black_box(&credentials))), credentials)
}

#[library_benchmark]
#[bench::fapi(messages::fapi_book())]
fn fold_a_book_change(frame: String) -> bool {
    black_box(fold_frame(&mut BookSync::default(), &frame)).is_ok()
}

#[library_benchmark]
#[bench::pacifica(messages::pacifica_book())]
fn take_a_whole_book(frame: String) -> bool {
    let frame: Frame<'_> = serde_json::from_str(&frame).expect("a frame");
    let data = frame.data.expect("data").get();
    black_box(TopOfBook::default().on_book(serde_json::from_str(data).expect("a book")))
}

fn decode<T: DeserializeOwned>(text: &str) -> bool {
    black_box(serde_json::from_str::<T>(text)).is_ok()
}

#[library_benchmark]
#[bench::fapi_position(decode::<fapi::PositionRisk>, messages::FAPI_POSITION)]
#[bench::fapi_order(decode::<fapi::OrderAnswer>, messages::FAPI_ORDER)]
#[bench::pacifica_position(decode::<pacifica::PositionRow>, messages::PACIFICA_POSITION)]
#[bench::pacifica_order(decode::<pacifica::OrderUpdate>, messages::PACIFICA_ORDER)]
fn decode_one(decode: fn(&str) -> bool, text: &str) -> bool {
    black_box(decode(text))
}

library_benchmark_group!(
    name = all;
    benchmarks = decisions_on_a_thousand_frames,
        plan_over_accounts,
        sign_one_order,
        fold_a_book_change,
        take_a_whole_book,
        decode_one
);
main!(library_benchmark_groups = all);
