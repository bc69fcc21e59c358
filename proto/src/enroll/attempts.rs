//! Trying again for as long as it takes: ever more slowly, and without saying the same twice.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::sleep;

use super::with_causes;

/// Failed attempts in a row. Where one succeeds, begin anew.
pub struct Attempts {
    what: &'static str,
    pauses: ExponentialBackoff,
    longest: Duration,
    last_error: String,
}

impl Attempts {
    /// None yet. `what` is said of each new reason; pauses grow from the least to the most, with jitter.
    pub fn new(what: &'static str, (least, most): (Duration, Duration)) -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(least)
            .with_max_delay(most)
            .with_jitter()
            .without_max_times();
        Self { what, pauses: pauses.build(), longest: most, last_error: String::new() }
    }

    /// Says why, once for each new reason, and waits.
    pub async fn failed(&mut self, error: &(dyn std::error::Error + Sync)) {
        self.tell(with_causes(error));
        sleep(self.pauses.next().unwrap_or(self.longest)).await;
    }

    /// Whether it was said.
    fn tell(&mut self, words: String) -> bool {
        let is_new = words != self.last_error;
        if is_new {
            tracing::warn!(error = words, "{}; trying again", self.what);
            self.last_error = words;
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

    #[test]
    fn each_new_reason_is_said_once() {
        let mut attempts = Attempts::new("no certificate", PAUSES);
        let said = ["away", "away", "refused", "away"].map(|why| attempts.tell(why.to_owned()));
        assert_eq!(said, [true, false, true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_never_end() {
        let mut attempts = Attempts::new("no certificate", PAUSES);
        let error = std::io::Error::other("away");
        let mut pauses = Vec::new();
        for _ in 0..30 {
            let begun = Instant::now();
            attempts.failed(&error).await;
            pauses.push(begun.elapsed());
        }
        // Jitter adds at most as much again.
        assert!(pauses[0] <= PAUSES.0 * 2 && pauses[29] >= PAUSES.1, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= PAUSES.1 * 2 + Duration::from_millis(1)), "{pauses:?}");
    }
}
