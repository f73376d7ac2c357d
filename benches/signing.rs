//! Time to sign and serialize one order in each scheme, beside ccxt's `sign()` in the same run.
//!
//! `DELTAPLANE_PYTHON` names a Python that has ccxt; without it only our side is timed.
#![allow(missing_docs, reason = "a program, not an interface")]

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use deltaplane_benches::{Credentials, credentials, sign_account, sign_agent, sign_hmac};
use tokio::time::Instant;

const ROUNDS: usize = 5;
const ORDERS: u32 = 2_000;

/// Microseconds of one order, the middle of the rounds.
fn time_of(sign: fn(&Credentials) -> String, credentials: &Credentials) -> f64 {
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..ORDERS {
                black_box(sign(black_box(credentials)));
            }
            began.elapsed()
        })
        .collect();
    rounds.sort();
    rounds[ROUNDS / 2].as_secs_f64() * 1e6 / f64::from(ORDERS)
}

/// The same of ccxt, whose program prints one number.
fn time_of_ccxt(python: &str, venue: &str) -> f64 {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/sign_with_ccxt.py");
    let output = Command::new(python).args([program, venue]).output().expect("python runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    printed.trim().parse().unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn main() {
    type Scheme = (&'static str, &'static str, fn(&Credentials) -> String);
    let schemes: [Scheme; 3] = [
        ("HMAC-SHA256", "binance", sign_hmac),
        ("secp256k1 over EIP-712", "aster", sign_agent),
        ("Ed25519 over sorted JSON", "pacifica", sign_account),
    ];
    let credentials = credentials();
    let python = std::env::var("DELTAPLANE_PYTHON").ok();
    for (scheme, venue, sign) in schemes {
        let ours = time_of(sign, &credentials);
        match &python {
            None => println!("{scheme}: {ours:.2} us an order"),
            Some(python) => {
                let theirs = time_of_ccxt(python, venue);
                let ratio = theirs / ours;
                println!("{scheme}: {ours:.2} us an order; ccxt {theirs:.1} us, {ratio:.0} times as long");
            }
        }
    }
}
