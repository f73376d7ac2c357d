//! The engine in a simulated world: virtual time, a seeded network, disk and process, and an oracle that knows the
//! truth. See README.md beside this folder for the invariants.
//!
//! A failing seed prints the command that runs it again with its whole timeline.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod decisions;
mod episode;
mod limits;
mod oracle;
mod venue;
mod world;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use episode::{Mode, Outcome, run};

/// Seeds of episodes in a plain test run.
const EPISODES: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn mode_of(seed: u64) -> Mode {
    match seed % 10 {
        0 => Mode::Calm,
        1..=5 => Mode::Safety,
        _ => Mode::Liveness,
    }
}

fn timeline(seed: u64, outcome: &Outcome) -> String {
    let violations: Vec<String> =
        outcome.violations.iter().map(|text| format!("  VIOLATION {text}")).collect();
    format!(
        "seed {seed} ({:?}):\n{}\nrun it again: SIM_SEED={seed} cargo test -p deltaplane-tests --test simulation -- one_seed --nocapture\n",
        mode_of(seed),
        violations.join("\n")
    )
}

/// Every episode of a range of seeds. Each runs twice and must give the same log, byte for byte.
#[test]
fn nothing_wrong_happens_and_everything_settles() {
    let (first, count) = (number("SIM_FIRST").unwrap_or(0), number("SIM_EPISODES").unwrap_or(EPISODES));
    let next = AtomicU64::new(first);
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    let results: Vec<Vec<(u64, Outcome, String)>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::SeqCst);
                        if seed >= first + count {
                            return mine;
                        }
                        let mut outcome = run(seed, mode_of(seed));
                        let again = run(seed, mode_of(seed));
                        let differs = outcome.log.iter().zip(&again.log).find(|(a, b)| a != b);
                        if outcome.log != again.log {
                            outcome.violations.push(format!("I15, P8: two runs differ: {differs:?}"));
                        }
                        let digest = decisions::digest(&outcome.log);
                        outcome.log = Vec::new();
                        mine.push((seed, outcome, digest));
                    }
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("no episode panics")).collect()
    });
    let mut total = Outcome::default();
    let mut by_mode: BTreeMap<String, (u64, rust_decimal::Decimal)> = BTreeMap::new();
    let mut failed = String::new();
    let mut violations = 0;
    let mut digests = BTreeMap::new();
    for (seed, outcome, digest) in results.into_iter().flatten() {
        digests.insert(seed, digest);
        if !outcome.violations.is_empty() {
            violations += outcome.violations.len();
            if failed.len() < 20_000 {
                failed.push_str(&timeline(seed, &outcome));
            }
        }
        total.steps += outcome.steps;
        total.lives += outcome.lives;
        total.sends += outcome.sends;
        total.operations += outcome.operations;
        let sum = by_mode.entry(format!("{:?}", mode_of(seed))).or_default();
        sum.0 += outcome.operations;
        sum.1 += outcome.dollar_seconds;
        for (name, count) in outcome.states {
            *total.states.entry(name).or_default() += count;
        }
        for (name, count) in outcome.seldom {
            *total.seldom.entry(name).or_default() += count;
        }
        for (name, count) in outcome.faults {
            *total.faults.entry(name).or_default() += count;
        }
    }
    println!(
        "{count} episodes, {} lives, {} steps, {} orders; operations ended {:?}; faults {:?}; violations {violations}",
        total.lives, total.steps, total.sends, total.states, total.faults
    );
    println!("what seldom happens: {:?}", total.seldom);
    for (mode, (operations, dollar_seconds)) in by_mode {
        let each = dollar_seconds / rust_decimal::Decimal::from(operations.max(1));
        println!(
            "{mode}: {operations} delta controls, {} USD x s away from the target each",
            each.round_dp(0)
        );
    }
    assert!(failed.is_empty(), "{failed}");
    decisions::compare(&digests);
}

/// One seed with its timeline.
#[test]
fn one_seed() {
    let Some(seed) = number("SIM_SEED") else { return };
    let outcome = run(seed, mode_of(seed));
    println!("{}", outcome.log.join("\n"));
    assert!(outcome.violations.is_empty(), "{}", timeline(seed, &outcome));
}
