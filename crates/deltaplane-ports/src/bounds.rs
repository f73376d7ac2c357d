//! What requests and policies may ask: the same for callers of the API and for programs that embed the engine.

use std::ops::RangeInclusive;
use std::time::Duration;

use rust_decimal::Decimal;

/// Accounts of one request.
pub const MOST_ACCOUNTS: usize = 100;
/// Parts of a hedge.
pub const MOST_CLIPS: u32 = 20;
/// Price moves of a stress test.
pub const MOST_MOVES: usize = 20;
/// How long an operation may take.
pub const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
/// The pause between parts of a hedge.
pub const CLIP_INTERVAL: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(600);
/// How long a part of a hedge rests.
pub const REST: RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(600);
/// How long a deviation lasts before a policy acts.
pub const AFTER: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
/// How often a policy rebalances, and the horizon over which it weighs funding.
pub const PERIOD: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(30 * 24 * 3_600);

/// How far at most a fill may be from the mid at arrival, a fraction of it: 0.1.
pub fn most_slippage() -> Decimal {
    Decimal::from_i128_with_scale(1, 1)
}
