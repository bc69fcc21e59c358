//! Who leads, by the algorithm of client-go (`tools/leaderelection`): decided here, done in [`super::lead`].
//!
//! ```text
//!                      given back, or unchanged for a lease's length by our own clock
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
//!
//! Candidates may count with different times, since a policy changes and coordinators start one after the other: each
//! waits for its own lease and the holder's, whichever is longer. Of a Lease that was put back nobody knows whose it
//! was, so it has the longest that any policy allows.

use std::time::Duration;

use somersault_coordinator_core::BootTime;
use somersault_coordinator_core::policy::LEADER_LEASE_MAX;

/// How long the steps take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// A candidate takes over after no change for this long, or for the holder's own lease, if that is longer.
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
    /// After which time its holder, at the latest, has given up.
    pub lease: Duration,
}

impl Seen {
    /// What a Lease says of its length, which is whole seconds there. One that says nothing, or more than any
    /// coordinator writes, was changed by somebody else: the longest is waited for.
    pub fn lease_of(seconds: Option<i32>) -> Duration {
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
        seconds.map_or(LEADER_LEASE_MAX, |seconds| Duration::from_secs(seconds).min(LEADER_LEASE_MAX))
    }
}

/// What a Lease with this name in it says of its length: never less than what its holder counts with.
pub(super) fn seconds_of(holder: &str, times: &Times) -> i32 {
    let lease = if holder == NOBODY { LEADER_LEASE_MAX } else { times.lease };
    i32::try_from(lease.as_millis().div_ceil(1_000)).unwrap_or(i32::MAX)
}

/// Whose name a Lease has that was put back: no pod's, and not given back either.
pub const NOBODY: &str = "nobody: this Lease was deleted, and whoever led may not have noticed yet";

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
        let wait = self.times.lease.max(seen.lease);
        // Timed by when the answer came, which is not before the change was made.
        let since = match &self.last {
            Some((last, since)) if *last == seen => *since,
            _ => now,
        };
        self.last = Some((seen, since));
        // Counted up to when we asked: the holder may have renewed while the answer was under way.
        if is_free || asked.saturating_sub(since) > wait { Step::Acquire } else { Step::Wait }
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

    fn lease(version: u64, holder: &str, times: &Times) -> Seen {
        let lease = Seen::lease_of(Some(seconds_of(holder, times)));
        Seen { version: version.to_string(), holder: holder.to_owned(), lease }
    }

    fn seen(version: &str, holder: &str) -> Found {
        Found::Lease(Seen { version: version.to_owned(), ..lease(0, holder, &TIMES) })
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
        assert_eq!(
            election.look(at(80), at(80), seen("3", NOBODY)),
            Step::Wait,
            "who led may count longer than we"
        );
        assert_eq!(election.look(at(81), at(81), seen("3", NOBODY)), Step::Acquire);
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

    #[test]
    fn a_holder_that_counts_longer_is_waited_for_as_long_as_it_counts() {
        let slow = Times { lease: Duration::from_millis(29_500), renew: Duration::from_secs(20) };
        let held = |by: &Times| Found::Lease(lease(1, "b", by));
        let mut quick = candidate();
        assert_eq!(quick.look(at(1), at(1), held(&slow)), Step::Wait);
        assert_eq!(
            quick.look(at(31), at(31), held(&slow)),
            Step::Wait,
            "a part of a second counts as a whole one"
        );
        assert_eq!(quick.look(at(32), at(32), held(&slow)), Step::Acquire);
        let mut patient = Election::new("a".to_owned(), slow);
        assert_eq!(patient.look(at(1), at(1), held(&TIMES)), Step::Wait);
        assert_eq!(patient.look(at(30), at(30), held(&TIMES)), Step::Wait, "its own lease is the longer one");
        assert_eq!(patient.look(at(31), at(31), held(&TIMES)), Step::Acquire);
    }

    #[test]
    fn a_lease_of_no_sensible_length_is_waited_for_longest() {
        for seconds in [None, Some(0), Some(-3), Some(i32::MAX)] {
            assert_eq!(Seen::lease_of(seconds), LEADER_LEASE_MAX, "{seconds:?}");
        }
        assert_eq!(Seen::lease_of(Some(15)), TIMES.lease);
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
        /// Candidates whose times differ, and whose clocks differ by less than the ratio of lease to renew deadline,
        /// that are stopped now and then and whose answers get lost, while a person deletes the Lease now and then:
        /// never do two lead.
        #[test]
        fn never_two_at_once(
            speeds in [900_u64..1_100, 900..1_100, 900..1_100],
            leases_ms in [3_000_u64..60_000, 3_000..60_000, 3_000..60_000],
            turns in proptest::collection::vec(
                (0..13_usize, 1..3_000_u64, prop::bool::weighted(0.8), prop::bool::weighted(0.8), 0..80_u64),
                1..300,
            ),
        ) {
            let new = |name: &str, at: usize| {
                let lease = Duration::from_millis(leases_ms[at]);
                let times = Times { lease, renew: lease * 4 / 5 };
                Process { election: Election::new(name.to_owned(), times), speed: speeds[at], stopped: 0 }
            };
            let mut all = [new("a", 0), new("b", 1), new("c", 2)];
            let (mut lease, mut version, mut truth) = (None::<Seen>, 0_u64, 0_u64);
            for (who, wait, arrives, answered, pause) in turns {
                truth += wait;
                if who == 12 {
                    lease = None;
                    continue;
                }
                let process = &mut all[who % 3];
                if truth >= process.stopped {
                    let now = process.clock(truth);
                    let found = match (&lease, version) {
                        (Some(lease), _) => Found::Lease(lease.clone()),
                        (None, 0) => Found::Never,
                        (None, _) => Found::Gone,
                    };
                    let step = process.election.look(now, now, found);
                    let times = process.election.times;
                    match step {
                        Step::Acquire | Step::Renew => {
                            if arrives {
                                version += 1;
                                let holder = process.election.identity.clone();
                                lease = Some(self::lease(version, &holder, &times));
                                // The answer may come late: what counts is when the request was sent.
                                process.stopped = truth + pause * 1_000;
                                if answered {
                                    process.election.stored(now);
                                }
                            }
                        }
                        Step::Mark if arrives => {
                            version += 1;
                            lease = Some(self::lease(version, NOBODY, &times));
                        }
                        Step::Resign => process.election.step_down(),
                        Step::Mark | Step::Wait => {}
                    }
                }
                let leading = all.iter().filter(|p| p.election.leads(p.clock(truth))).count();
                prop_assert!(leading <= 1, "{leading} lead at {truth} ms");
            }
        }
    }
}
