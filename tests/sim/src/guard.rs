//! The guard of a node that is enrolled for watchdog fencing, as it is meant to become: it pets the watchdog while it
//! holds a grant, and while a majority of its enrolled peers can be reached and none of them holds one.

use std::time::Duration;

/// A guard and its watchdog, on the node's clock.
#[derive(Clone, Debug)]
pub struct Guard {
    lease: Duration,
    watchdog: Duration,
    expiry: Option<Duration>,
    petted: Duration,
    /// It checked, and pets at this moment: it may stall in between.
    pets_at: Option<Duration>,
}

/// What the enrolled peers say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peers {
    /// Enrolled nodes, this one included.
    pub enrolled: usize,
    /// Peers that answer.
    pub reached: usize,
    /// Peers that answer, and hold a grant.
    pub granted: usize,
}

impl Guard {
    /// A guard with these time-outs; its watchdog is armed with the first grant.
    pub fn new(lease: Duration, watchdog: Duration) -> Self {
        Self { lease, watchdog, expiry: None, petted: Duration::ZERO, pets_at: None }
    }

    /// The machine stopped.
    pub fn disarm(&mut self) {
        self.expiry = None;
        self.pets_at = None;
    }

    /// A grant arrived for a beat that was sent at `sent`.
    pub fn granted(&mut self, sent: Duration, now: Duration) {
        if self.expiry.is_none() {
            self.petted = now;
        }
        self.expiry = self.expiry.max(Some(sent + self.lease));
    }

    /// Whether it holds a grant.
    pub fn holds(&self, now: Duration) -> bool {
        self.expiry.is_some_and(|expiry| now < expiry)
    }

    /// Looks at clock and peers. `stall` is how long it stands still before it pets. True when the watchdog fires.
    pub fn tick(&mut self, now: Duration, peers: Peers, stall: Duration) -> bool {
        if self.expiry.is_none() {
            return false;
        }
        if let Some(at) = self.pets_at.filter(|at| now >= *at) {
            self.pets_at = None;
            // A pet that comes too late finds the machine reset.
            if at < self.petted + self.watchdog {
                self.petted = at;
            }
        }
        let waits = 2 * peers.reached > peers.enrolled && peers.granted == 0;
        if self.pets_at.is_none() && (self.holds(now) || waits) {
            self.pets_at = Some(now + stall);
        }
        now >= self.petted + self.watchdog
    }
}
