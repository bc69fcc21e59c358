//! How fast a copy is, and how fast it may be. Time is an argument: the time since any fixed moment.

use std::collections::VecDeque;
use std::time::Duration;

/// Over which time the rate is the average: long enough to be calm, short enough to show a stall.
const WINDOW: Duration = Duration::from_secs(5);

/// The rate of the last seconds.
#[derive(Clone, Debug, Default)]
pub struct RateMeter {
    samples: VecDeque<(Duration, u64)>,
}

impl RateMeter {
    /// Notes that `done_bytes` were done in all, and returns the bytes per second of the last seconds. Called a few
    /// times a second, which bounds the samples kept.
    pub fn sample(&mut self, now: Duration, done_bytes: u64) -> u64 {
        self.samples.push_back((now, done_bytes));
        while self.samples.len() > 2 && self.samples[1].0 + WINDOW <= now {
            self.samples.pop_front();
        }
        let Some((since, bytes)) = self.samples.front() else { return 0 };
        let elapsed_ms = u64::try_from(now.saturating_sub(*since).as_millis()).unwrap_or(u64::MAX);
        done_bytes.saturating_sub(*bytes).saturating_mul(1000).checked_div(elapsed_ms).unwrap_or(0)
    }
}

/// A limit on bytes per second, with a burst of a quarter of a second.
#[derive(Clone, Debug)]
pub struct RateLimit {
    bytes_per_s: u64,
    /// Up to when the bytes taken so far were due.
    due: Duration,
}

impl RateLimit {
    /// 0 means no limit.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, due: Duration::ZERO }
    }

    /// Another limit from now on.
    pub fn set(&mut self, bytes_per_s: u64) {
        self.bytes_per_s = bytes_per_s;
    }

    /// Takes bytes and returns how long to wait before they are used.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        const BURST: Duration = Duration::from_millis(250);
        if self.bytes_per_s == 0 {
            return Duration::ZERO;
        }
        let cost = bytes.saturating_mul(1_000_000) / self.bytes_per_s;
        self.due = self.due.max(now.saturating_sub(BURST)) + Duration::from_micros(cost);
        self.due.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_rate_follows_the_last_seconds() {
        let mut meter = RateMeter::default();
        assert_eq!(meter.sample(Duration::ZERO, 0), 0);
        assert_eq!(meter.sample(Duration::from_millis(500), 500), 1000);
        for second in 1..20 {
            meter.sample(Duration::from_secs(second), 1000 + second);
        }
        assert_eq!(meter.sample(Duration::from_secs(20), 1020), 1);
        assert!(meter.samples.len() < 10);
    }

    #[test]
    fn no_limit_never_waits() {
        assert_eq!(RateLimit::new(0).take(Duration::ZERO, u64::MAX), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_limit_holds_over_any_time(rate in 1_u64..10_000_000_000, chunks in 1_u64..200) {
            const START: Duration = Duration::from_secs(1);
            let mut limit = RateLimit::new(rate);
            let mut now = START;
            for _ in 0..chunks {
                now += limit.take(now, 1 << 20);
            }
            let bytes = (chunks << 20).saturating_sub(rate / 4 + 1);
            let allowed = u128::from(rate) * now.saturating_sub(START).as_micros() / 1_000_000;
            // Each step rounds down by less than a microsecond.
            prop_assert!(u128::from(bytes) <= allowed + u128::from(rate) * u128::from(chunks) / 1_000_000 + 1);
        }
    }
}
