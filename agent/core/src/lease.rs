//! The agent's view of grants: whose word counts, and until when the last grant reaches.
//!
//! The epoch only rises. An order or a grant of an older epoch comes from a coordinator that leads no more, and
//! is refused. The expiry is kept for the guard that will arm a watchdog; nothing in this build acts on it, since
//! silence of the coordinator changes nothing on a node.

use std::collections::VecDeque;
use std::time::Duration;

/// Beats whose send time is remembered, for the grant that answers them. At five beats a second these are the
/// last twelve seconds; a later answer would extend a lease that a fresher one extends further.
const SENT_MAX: usize = 64;

/// What a grant says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The leader's epoch.
    pub epoch: u64,
    /// How often to beat.
    pub beat_interval: Duration,
    /// How long the lease lasts from the send time of the answered beat.
    pub lease: Duration,
}

/// The epoch of an order or grant lies below one that was already seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("epoch {got} is older than {seen}: its sender leads no more")]
pub struct StaleEpoch {
    /// The epoch that came.
    pub got: u64,
    /// The highest one seen.
    pub seen: u64,
}

/// What all grants together came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lease {
    epoch: u64,
    expiry: Option<Duration>,
    beat_interval: Option<Duration>,
}

impl Lease {
    /// Accepts this epoch and refuses older ones from now on.
    pub fn admit(&mut self, epoch: u64) -> Result<(), StaleEpoch> {
        if epoch < self.epoch {
            return Err(StaleEpoch { got: epoch, seen: self.epoch });
        }
        self.epoch = epoch;
        Ok(())
    }

    /// Takes a grant that answers a beat sent at `sent_at`.
    pub fn extend(&mut self, sent_at: Duration, grant: &Grant) -> Result<(), StaleEpoch> {
        self.admit(grant.epoch)?;
        self.beat_interval = Some(grant.beat_interval);
        self.expiry = self.expiry.max(Some(sent_at.saturating_add(grant.lease)));
        Ok(())
    }

    /// The highest epoch seen.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How often to beat, by the last grant.
    pub fn beat_interval(&self) -> Option<Duration> {
        self.beat_interval
    }

    /// Until when the node holds its lease; `None` before the first grant.
    pub fn expiry(&self) -> Option<Duration> {
        self.expiry
    }
}

/// When the last beats of one stream were sent.
#[derive(Clone, Debug, Default)]
pub struct SentBeats {
    sent: VecDeque<(u64, Duration)>,
}

impl SentBeats {
    /// Notes that a beat leaves now.
    pub fn note(&mut self, sequence: u64, now: Duration) {
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((sequence, now));
    }

    /// When this beat was sent, and forgets the ones before. `None` for a beat that was never sent, was answered
    /// already, or is too old.
    pub fn answered(&mut self, sequence: u64) -> Option<Duration> {
        let at = self.sent.iter().position(|(sent, _)| *sent == sequence)?;
        self.sent.drain(..=at).next_back().map(|(_, when)| when)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant(epoch: u64, beat_ms: u64) -> Grant {
        Grant { epoch, beat_interval: Duration::from_millis(beat_ms), lease: Duration::from_secs(30) }
    }

    #[test]
    fn an_older_epoch_is_refused_and_changes_nothing() {
        let mut lease = Lease::default();
        lease.extend(Duration::from_secs(5), &grant(3, 200)).expect("first grant");
        let before = lease.clone();
        assert_eq!(lease.extend(Duration::from_secs(9), &grant(2, 900)), Err(StaleEpoch { got: 2, seen: 3 }));
        assert_eq!(lease, before);
        assert_eq!(lease.admit(3), Ok(()));
    }

    #[test]
    fn a_lease_runs_from_the_send_time_and_never_backwards() {
        let mut lease = Lease::default();
        lease.extend(Duration::from_secs(10), &grant(1, 200)).expect("grant");
        assert_eq!(lease.expiry(), Some(Duration::from_secs(40)));
        lease.extend(Duration::from_secs(8), &grant(1, 200)).expect("a late answer");
        assert_eq!(lease.expiry(), Some(Duration::from_secs(40)));
    }

    #[test]
    fn the_last_grant_sets_the_pace() {
        let mut lease = Lease::default();
        assert_eq!(lease.beat_interval(), None);
        for beat_ms in [1000, 200] {
            lease.extend(Duration::ZERO, &grant(1, beat_ms)).expect("grant");
            assert_eq!(lease.beat_interval(), Some(Duration::from_millis(beat_ms)));
        }
    }

    #[test]
    fn each_beat_is_answered_once() {
        let mut sent = SentBeats::default();
        for sequence in 1..=100 {
            sent.note(sequence, Duration::from_secs(sequence));
        }
        assert_eq!(sent.answered(1), None, "too old");
        assert_eq!(sent.answered(90), Some(Duration::from_secs(90)));
        assert_eq!(sent.answered(90), None);
        assert_eq!(sent.answered(89), None, "overtaken");
        assert_eq!(sent.answered(101), None, "never sent");
    }

    proptest! {
        #[test]
        fn the_epoch_never_falls(epochs in proptest::collection::vec(0..50_u64, 1..60)) {
            let mut lease = Lease::default();
            let mut highest = 0;
            for epoch in epochs {
                let admitted = lease.admit(epoch).is_ok();
                prop_assert_eq!(admitted, epoch >= highest);
                highest = highest.max(epoch);
                prop_assert_eq!(lease.epoch(), highest);
            }
        }
    }
}
