//! When one authority takes the place of another, so that nobody's certificate fails meanwhile.
//!
//! ```text
//!   Stable ──four fifths of its life over, or asked to──► Announced ──everybody has the bundle with both──► Retiring
//!     ▲                                                  signs: the old                             signs: the new
//!     │                                                  bundle: old, new                         bundle: new, old
//!     └──────────────every certificate of the old one has ended────────────────────────────────────────────┘
//!
//!   any, the signing authority has ended ──► its successor where there is one, else a new authority at once
//! ```
//!
//! "Everybody has the bundle": it comes with each certificate, so whoever holds a good one has had it after the
//! longest life of a certificate. The same time bounds the certificates that the old authority signed last.

use jiff::Timestamp;

use super::CaPolicy;

/// An authority is rotated when this share of its life is over: two years before a life of ten ends.
const ROTATE_AT: f64 = 0.8;

/// What the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// From when the signing authority is good.
    pub signing_from: Timestamp,
    /// Until when.
    pub signing_until: Timestamp,
    /// How far a rotation has come.
    pub phase: Phase,
    /// A person asks for a rotation.
    pub asked: bool,
}

/// How far a rotation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is one authority.
    Stable,
    /// A second one is in the bundle.
    Announced {
        /// Since when.
        since: Timestamp,
    },
    /// The second one signs, the first is still in the bundle.
    Retiring {
        /// Since when.
        since: Timestamp,
    },
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Make a second authority, and put it into the bundle.
    Announce,
    /// Sign with the second one from now on.
    Switch,
    /// Take the first one out of the bundle.
    Retire,
    /// Make a new authority that signs at once: nobody has a good certificate any more anyway.
    Replace,
}

/// Decides.
pub fn step(now: Timestamp, timeline: &Timeline, policy: &CaPolicy) -> Step {
    let ended = now >= timeline.signing_until;
    match timeline.phase {
        Phase::Announced { since } if ended || now >= since + policy.spread() => Step::Switch,
        Phase::Stable | Phase::Retiring { .. } if ended => Step::Replace,
        Phase::Retiring { since } if now >= since + policy.spread() => Step::Retire,
        Phase::Stable if timeline.asked || now >= rotation_due(timeline) => Step::Announce,
        Phase::Announced { .. } | Phase::Retiring { .. } | Phase::Stable => Step::Rest,
    }
}

fn rotation_due(timeline: &Timeline) -> Timestamp {
    let life = timeline.signing_from.duration_until(timeline.signing_until);
    timeline.signing_from + life.mul_f64(ROTATE_AT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    fn day(day: u32) -> Timestamp {
        Timestamp::UNIX_EPOCH + DAY * day
    }

    fn policy() -> CaPolicy {
        CaPolicy { authority_lifetime: DAY * 100, leaf_lifetime: DAY }
    }

    /// Good from day 0 to day 100.
    fn at(phase: Phase) -> Timeline {
        Timeline { signing_from: day(0), signing_until: day(100), phase, asked: false }
    }

    #[test]
    fn a_young_authority_is_left_alone() {
        assert_eq!(step(day(79), &at(Phase::Stable), &policy()), Step::Rest);
    }

    #[test]
    fn an_old_one_gets_a_successor() {
        assert_eq!(step(day(80), &at(Phase::Stable), &policy()), Step::Announce);
    }

    #[test]
    fn a_person_may_ask_for_one() {
        let asked = |phase| Timeline { asked: true, ..at(phase) };
        assert_eq!(step(day(1), &asked(Phase::Stable), &policy()), Step::Announce);
        // What runs already is not begun again.
        assert_eq!(step(day(1), &asked(Phase::Announced { since: day(1) }), &policy()), Step::Rest);
        assert_eq!(step(day(1), &asked(Phase::Retiring { since: day(1) }), &policy()), Step::Rest);
    }

    #[test]
    fn the_successor_signs_when_every_holder_of_a_certificate_has_had_the_bundle() {
        let announced = at(Phase::Announced { since: day(80) });
        let longest_life_of_a_certificate = day(81);
        assert_eq!(step(longest_life_of_a_certificate, &announced, &policy()), Step::Rest);
        assert_eq!(step(day(80) + policy().spread(), &announced, &policy()), Step::Switch);
    }

    #[test]
    fn the_predecessor_goes_when_the_last_certificate_that_it_signed_has_ended() {
        let retiring = Timeline {
            signing_from: day(80),
            signing_until: day(180),
            ..at(Phase::Retiring { since: day(81) })
        };
        assert_eq!(step(day(82), &retiring, &policy()), Step::Rest);
        assert_eq!(step(day(81) + policy().spread(), &retiring, &policy()), Step::Retire);
    }

    #[test]
    fn nobody_signs_with_what_has_ended() {
        assert_eq!(step(day(100), &at(Phase::Stable), &policy()), Step::Replace);
        assert_eq!(step(day(100), &at(Phase::Retiring { since: day(100) }), &policy()), Step::Replace);
        assert_eq!(step(day(100), &at(Phase::Announced { since: day(100) }), &policy()), Step::Switch);
    }

    #[test]
    fn a_rotation_takes_less_time_than_is_left() {
        // From the day it is due, by the default lives: the old authority outlives its last certificate.
        let policy = CaPolicy::default();
        let left = policy.authority_lifetime.mul_f64(1.0 - ROTATE_AT);
        assert!(policy.spread() * 2 < left);
    }
}
