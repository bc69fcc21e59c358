//! Order statistics of a few dozen measurements.

use std::time::Duration;

/// Measurements, sorted.
pub struct Sample(Vec<Duration>);

impl Sample {
    /// Of at least one measurement.
    pub fn new(mut measured: Vec<Duration>) -> Option<Self> {
        measured.sort();
        (!measured.is_empty()).then_some(Self(measured))
    }

    /// The smallest measurement that is not exceeded by `percent` of all (nearest rank).
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank.min(self.0.len()) - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sample = Sample::new((1..=100).rev().map(Duration::from_millis).collect()).expect("measured");
        let percentiles = [0, 50, 99, 100].map(|percent| sample.percentile(percent).as_millis());
        assert_eq!(percentiles, [1, 50, 99, 100]);
    }

    #[test]
    fn one_measurement_is_every_percentile() {
        let sample = Sample::new(vec![Duration::from_millis(7)]).expect("measured");
        assert_eq!([1, 50, 100].map(|percent| sample.percentile(percent).as_millis()), [7; 3]);
    }
}
