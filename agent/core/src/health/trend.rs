//! How a counter moved within a window of time.

use std::collections::VecDeque;
use std::time::Duration;

/// Changes remembered for one counter. Each is a rise of at least one, so the growth that is lost when an old
/// one is dropped lies far above every threshold.
const CHANGES_MAX: usize = 64;

/// The recent past of one counter.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trend {
    /// The first value, then each change; oldest first.
    changes: VecDeque<(Duration, u64)>,
}

impl Trend {
    /// Notes the counter's value; forgets what lies before the window, except the value it starts with.
    pub(super) fn note(&mut self, now: Duration, value: u64, window: Duration) {
        if self.changes.back().is_none_or(|(_, last)| *last != value) {
            self.changes.push_back((now, value));
        }
        let start = now.saturating_sub(window);
        while self.changes.len() > CHANGES_MAX || self.changes.get(1).is_some_and(|(at, _)| *at <= start) {
            self.changes.pop_front();
        }
    }

    /// How often it rose within the window.
    pub(super) fn rises(&self) -> usize {
        self.changes
            .iter()
            .zip(self.changes.iter().skip(1))
            .filter(|(before, after)| after.1 > before.1)
            .count()
    }

    /// How far it stands above the value at the start of the window; 0 where it fell.
    pub(super) fn growth(&self) -> u64 {
        match (self.changes.front(), self.changes.back()) {
            (Some((_, first)), Some((_, last))) => last.saturating_sub(*first),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const DAY: Duration = Duration::from_hours(24);

    fn trend(samples: &[(u32, u64)]) -> Trend {
        let mut trend = Trend::default();
        for (hour, value) in samples {
            trend.note(HOUR * *hour, *value, DAY);
        }
        trend
    }

    #[test]
    fn a_constant_counter_neither_rises_nor_grows() {
        let trend = trend(&[(0, 7), (1, 7), (2, 7)]);
        assert_eq!((trend.rises(), trend.growth()), (0, 0));
    }

    #[test]
    fn only_the_window_counts() {
        let recent = trend(&[(0, 0), (1, 5), (2, 9)]);
        assert_eq!((recent.rises(), recent.growth()), (2, 9));
        let later = trend(&[(0, 0), (1, 5), (2, 9), (25, 9), (27, 10)]);
        assert_eq!((later.rises(), later.growth()), (1, 1));
    }

    #[test]
    fn a_fall_is_no_rise_and_memory_is_bounded() {
        assert_eq!(trend(&[(0, 9), (1, 2)]).growth(), 0);
        let mut long = Trend::default();
        for second in 0..10_000_u32 {
            long.note(Duration::from_secs(u64::from(second)), u64::from(second), DAY);
        }
        assert_eq!(long.changes.len(), CHANGES_MAX);
        assert!(long.growth() >= 10);
    }
}
