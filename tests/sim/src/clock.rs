//! Clocks that differ in reading and in speed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// A host's boot-time clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: Duration,
    rate: f64,
}

impl Clock {
    /// A clock of any reading, whose speed is off by up to `drift`.
    pub fn new(rng: &mut StdRng, drift: f64) -> Self {
        Self {
            offset: Duration::from_millis(rng.random_range(0..1_000_000)),
            rate: 1.0 + rng.random_range(-drift..=drift),
        }
    }

    /// What it reads at a moment of the world.
    pub fn read(&self, at: Duration) -> Duration {
        self.offset + at.mul_f64(self.rate)
    }

    /// The moment of the world at which it reads this.
    pub fn when(&self, reading: Duration) -> Duration {
        reading.saturating_sub(self.offset).div_f64(self.rate)
    }

    /// How long this many of its seconds last in the world.
    pub fn last(&self, span: Duration) -> Duration {
        span.div_f64(self.rate)
    }
}
