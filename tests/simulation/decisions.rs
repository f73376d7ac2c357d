//! The orders that the engine sends, as a digest of every hundred seeds in `decisions.txt`: a change of names or texts must
//! leave them equal. A change that is meant to trade otherwise writes the file again with `SIM_ACCEPT=1`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Seeds that one line of the file stands for.
const PER_LINE: u64 = 100;
/// Seeds that the file covers.
const COVERED: u64 = 2_000;

/// Digest of the orders of one episode: time, id, account, side, quantity, price and reduce-only.
pub(crate) fn digest(log: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for line in log.iter().filter(|line| line.get(8..).is_some_and(|text| text.starts_with("send "))) {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize().to_hex().to_string()
}

/// Compares the digests of a run that covers all seeds of the file. Mutants change what is sent: for them the oracle alone
/// decides, with `SIM_ANY_DECISION=1`.
pub(crate) fn compare(digests: &BTreeMap<u64, String>) {
    if std::env::var_os("SIM_ANY_DECISION").is_some() || !(0..COVERED).all(|seed| digests.contains_key(&seed))
    {
        return;
    }
    let mut text = String::new();
    for first in (0..COVERED).step_by(usize::try_from(PER_LINE).expect("a small number")) {
        let mut hasher = blake3::Hasher::new();
        for (_, digest) in digests.range(first..first + PER_LINE) {
            hasher.update(digest.as_bytes());
        }
        let digest = &hasher.finalize().to_hex()[..16];
        let _ = writeln!(text, "{first:>4} to {:>4}: {digest}", first + PER_LINE - 1);
    }
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/simulation/decisions.txt"));
    if std::env::var_os("SIM_ACCEPT").is_some() {
        std::fs::write(&path, &text).expect("the file can be written");
    }
    let known = std::fs::read_to_string(&path).expect("decisions.txt is part of the repository");
    assert_eq!(
        known, text,
        "other orders than before are sent; if that is meant, run this test with SIM_ACCEPT=1 and say why in the commit"
    );
}
