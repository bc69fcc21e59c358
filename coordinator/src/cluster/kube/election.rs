//! Who leads, by the algorithm of client-go (`tools/leaderelection`): decided here, done in [`super::lead`].
//!
//! ```text
//!                      given back, or unchanged for the lease's length by our own clock
//!   Follower ──────────────────────────────────────────────────────────────────────────────► writes its name
//!      ▲                                                                                         │ stored
//!      │  not renewed for the renew deadline, or somebody else's name                            ▼
//!      └──────────────────────────────────────────────────────────────────────────────────── Leader: renews
//! ```
//!
//! A Lease that was deleted is put back at once with nobody's name, and then waited for like a silent leader's: whoever
//! led may not have noticed yet, and absence cannot be told from absence, so only what is there can be seen unchanged.
//!
//! No clock of another host is read: what counts is when *we* saw the Lease change. A leader counts from when it *sent*
//! its last renewal and gives up before anybody else may take over, as long as no clock runs faster than another by
//! the ratio of lease to renew deadline.

use std::time::Duration;

use somersault_coordinator_core::BootTime;

/// How long the steps take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// A candidate takes over after no change for this long.
    pub lease: Duration,
    /// The leader gives up after no renewal for this long.
    pub renew: Duration,
}

/// The Lease, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// `resourceVersion`: changes with every renewal.
    pub version: String,
    /// Whose name is in it; empty when it was given back.
    pub holder: String,
}

/// Whose name a Lease has that was put back: no pod's, and not given back either.
pub(super) const NOBODY: &str = "nobody: this Lease was deleted, and whoever led may not have noticed yet";

/// What was found in the Lease's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A Lease.
    Lease(Seen),
    /// None: somebody deleted it, and whoever leads may not know yet.
    Gone,
    /// None, and nothing tells that there has ever been a leader.
    Never,
}

/// What to do with the Lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: somebody leads.
    Wait,
    /// Put the Lease back with the name [`NOBODY`]: everybody waits from then on.
    Mark,
    /// Write our name, if it is still as read: a new epoch.
    Acquire,
    /// Write our name again, if it is still as read.
    Renew,
    /// Somebody else's name is in it: we lead no more.
    Resign,
}

/// One candidate.
#[derive(Clone, Debug)]
pub(super) struct Election {
    identity: String,
    times: Times,
    last: Option<(Seen, BootTime)>,
    /// When the last renewal that was stored had been sent.
    renewed: Option<BootTime>,
}

impl Election {
    /// A candidate that has seen nothing.
    pub fn new(identity: String, times: Times) -> Self {
        Self { identity, times, last: None, renewed: None }
    }

    /// The Lease was looked for; it was asked for at `asked`.
    pub fn look(&mut self, asked: BootTime, now: BootTime, found: Found) -> Step {
        let is_ours = matches!(&found, Found::Lease(seen) if seen.holder == self.identity);
        if self.leads(now) {
            // Whoever deletes the Lease ends the term: nobody can renew what is not there.
            return if is_ours { Step::Renew } else { Step::Resign };
        }
        let seen = match (found, &self.last) {
            (Found::Lease(seen), _) => seen,
            (Found::Never, None) => return Step::Acquire,
            // Never, and yet we have seen a leader that has left no other trace.
            (Found::Never | Found::Gone, _) => return Step::Mark,
        };
        let is_free = is_ours || seen.holder.is_empty();
        // Timed by when the answer came, which is not before the change was made.
        let since = match &self.last {
            Some((last, since)) if *last == seen => *since,
            _ => now,
        };
        self.last = Some((seen, since));
        // Counted up to when we asked: the holder may have renewed while the answer was under way.
        if is_free || asked.saturating_sub(since) > self.times.lease { Step::Acquire } else { Step::Wait }
    }

    /// Our name is stored; the request was sent at `sent`.
    pub fn stored(&mut self, sent: BootTime) {
        self.renewed = Some(sent);
        self.last = None;
    }

    /// Our name may be stored or not, or somebody was faster: neither makes us lead, nor ends a term at once.
    pub fn leads(&self, now: BootTime) -> bool {
        self.deadline().is_some_and(|deadline| now < deadline)
    }

    /// When our term ends if nothing is stored until then.
    pub fn deadline(&self) -> Option<BootTime> {
        self.renewed.map(|renewed| renewed + self.times.renew)
    }

    /// The term is over.
    pub fn step_down(&mut self) {
        self.renewed = None;
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: Times = Times { lease: Duration::from_secs(15), renew: Duration::from_secs(10) };

    fn at(seconds: u64) -> BootTime {
        BootTime::from(Duration::from_secs(seconds))
    }

    fn seen(version: &str, holder: &str) -> Found {
        Found::Lease(Seen { version: version.to_owned(), holder: holder.to_owned() })
    }

    fn candidate() -> Election {
        Election::new("a".to_owned(), TIMES)
    }

    #[test]
    fn a_lease_that_never_was_or_was_given_back_is_taken_at_once() {
        let mut first = candidate();
        assert_eq!(first.look(at(1), at(1), Found::Never), Step::Acquire);
        assert_eq!(first.look(at(3), at(3), Found::Never), Step::Acquire, "it could not be written");
        assert_eq!(candidate().look(at(1), at(1), seen("1", "")), Step::Acquire);
    }

    #[test]
    fn a_deleted_lease_is_waited_for_like_a_silent_leader() {
        // Whoever held it may not have noticed, and may be cut off from the API server.
        let mut election = candidate();
        assert_eq!(election.look(at(1), at(1), seen("1", "b")), Step::Wait);
        assert_eq!(election.look(at(3), at(3), Found::Never), Step::Mark, "we have seen a leader ourselves");
        assert_eq!(election.look(at(4), at(4), seen("2", NOBODY)), Step::Wait);
        assert_eq!(election.look(at(18), at(18), Found::Gone), Step::Mark, "deleted once more");
        assert_eq!(election.look(at(20), at(20), seen("3", NOBODY)), Step::Wait);
        assert_eq!(election.look(at(36), at(36), seen("3", NOBODY)), Step::Acquire);
        assert_eq!(candidate().look(at(1), at(1), Found::Gone), Step::Mark);
    }

    #[test]
    fn a_silent_leader_is_replaced_after_the_lease_by_our_own_clock() {
        let mut election = candidate();
        assert_eq!(election.look(at(1), at(1), seen("1", "b")), Step::Wait);
        assert_eq!(election.look(at(16), at(16), seen("1", "b")), Step::Wait);
        assert_eq!(election.look(at(17), at(17), seen("2", "b")), Step::Wait, "it renewed");
        assert_eq!(election.look(at(32), at(32), seen("2", "b")), Step::Wait);
        assert_eq!(election.look(at(30), at(60), seen("2", "b")), Step::Wait, "asked too early");
        assert_eq!(election.look(at(33), at(33), seen("2", "b")), Step::Acquire);
    }

    #[test]
    fn a_leader_that_cannot_renew_gives_up_before_anybody_takes_over() {
        let mut election = candidate();
        election.stored(at(10));
        assert!(election.leads(at(19)));
        assert!(!election.leads(at(20)));
        assert_eq!(election.look(at(12), at(12), seen("2", "a")), Step::Renew);
        assert_eq!(election.look(at(12), at(12), seen("3", "b")), Step::Resign);
        assert_eq!(election.look(at(12), at(12), Found::Gone), Step::Resign);
    }

    /// A candidate with a clock of its own speed, and what it will do next.
    struct Process {
        election: Election,
        /// Thousandths of the true speed.
        speed: u64,
        /// True time until which it is stopped.
        stopped: u64,
    }

    impl Process {
        fn clock(&self, truth: u64) -> BootTime {
            BootTime::from(Duration::from_micros(truth * self.speed))
        }
    }

    proptest! {
        /// Two candidates whose clocks differ by less than the ratio of lease to renew deadline, that are stopped now
        /// and then and whose answers get lost, while a person deletes the Lease now and then: never do both lead.
        #[test]
        fn never_two_at_once(
            speeds in [900_u64..1_100, 900..1_100],
            turns in proptest::collection::vec((0..9_usize, 1..3_000_u64, any::<bool>(), any::<bool>(), 0..40_u64), 1..300),
        ) {
            let new = |name: &str, speed| Process {
                election: Election::new(name.to_owned(), TIMES), speed, stopped: 0,
            };
            let mut both = [new("a", speeds[0]), new("b", speeds[1])];
            let (mut lease, mut version, mut truth) = (None::<Seen>, 0_u64, 0_u64);
            for (who, wait, arrives, answered, pause) in turns {
                truth += wait;
                if who == 8 {
                    lease = None;
                    continue;
                }
                let process = &mut both[who % 2];
                if truth >= process.stopped {
                    let now = process.clock(truth);
                    let found = match (&lease, version) {
                        (Some(lease), _) => Found::Lease(lease.clone()),
                        (None, 0) => Found::Never,
                        (None, _) => Found::Gone,
                    };
                    let step = process.election.look(now, now, found);
                    match step {
                        Step::Acquire | Step::Renew => {
                            if arrives {
                                version += 1;
                                let holder = process.election.identity.clone();
                                lease = Some(Seen { version: version.to_string(), holder });
                                // The answer may come late: what counts is when the request was sent.
                                process.stopped = truth + pause * 1_000;
                                if answered {
                                    process.election.stored(now);
                                }
                            }
                        }
                        Step::Mark if arrives => {
                            version += 1;
                            lease = Some(Seen { version: version.to_string(), holder: NOBODY.to_owned() });
                        }
                        Step::Resign => process.election.step_down(),
                        Step::Mark | Step::Wait => {}
                    }
                }
                let leading = both.iter().filter(|p| p.election.leads(p.clock(truth))).count();
                prop_assert!(leading <= 1, "both lead at {truth} ms");
            }
        }
    }
}
