//! How patient the tests are, and how often they repeat, on machines that are much slower than most: one number for all.

use std::sync::OnceLock;
use std::time::Duration;

/// Holds how many times slower than a real machine this one is; `cargo xtask vm` sets it where it emulates.
const SLOWNESS_VARIABLE: &str = "BERTH_TEST_SLOWNESS";

/// A time that is waited at most.
pub fn patience(time: Duration) -> Duration {
    time * slowness()
}

/// How often something is done whose number is only a matter of chance; at least `least` times.
pub fn repetitions(number: usize, least: usize) -> usize {
    (number / slowness() as usize).max(least.min(number))
}

/// Whether this machine stands still at times for longer than any patience, as an emulated one does.
pub fn is_slow() -> bool {
    slowness() > 1
}

fn slowness() -> u32 {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    *SLOWNESS.get_or_init(|| match std::env::var(SLOWNESS_VARIABLE) {
        Ok(text) => text.parse().ok().filter(|slowness| *slowness > 0).expect("BERTH_TEST_SLOWNESS is a number from 1"),
        Err(_) => 1,
    })
}
