//! Which replicas of the coordinator this agent talks to, as the name that leads to them resolves to other
//! addresses.
//!
//! ```text
//!   (unknown) --listed--> in use --not listed any more--> kept --30 s, or a listed one needs its place--> dropped
//!                           ^---------listed again---------'
//! ```
//!
//! An address that is listed no more is kept for a while: a replica whose Pod object is being deleted may still
//! be the leader, and a list that was wrong for a moment must not silence a node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Replicas that are talked to. Three tolerate the loss of one; more only cost beats.
pub const REPLICAS_MAX: usize = 3;
/// How long an address is kept that is listed no more: twice the lease of a leader that lost the API server
/// (15 s), after which it leads no longer for certain.
pub const KEPT_FOR: Duration = Duration::from_secs(30);

/// The replicas in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    /// When each was listed last.
    listed_at: BTreeMap<SocketAddr, Duration>,
}

impl Replicas {
    /// Takes a list of addresses, none of which is missing, and says whom to talk to from now on.
    pub fn listed(&mut self, now: Duration, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let (mut next, mut kept): (BTreeMap<_, _>, Vec<_>) = (BTreeMap::new(), Vec::new());
        for (&address, &listed_at) in &self.listed_at {
            if addresses.contains(&address) {
                next.insert(address, now);
            } else if now.saturating_sub(listed_at) < KEPT_FOR {
                kept.push((listed_at, address));
            }
        }
        // By address, so that every agent makes the same choice among too many.
        let mut fresh: Vec<_> = addresses.iter().filter(|address| !next.contains_key(address)).collect();
        fresh.sort_unstable();
        fresh.dedup();
        for address in fresh.into_iter().take(REPLICAS_MAX.saturating_sub(next.len())) {
            next.insert(*address, now);
        }
        kept.sort_unstable_by(|one, other| other.cmp(one));
        for (listed_at, address) in kept.into_iter().take(REPLICAS_MAX.saturating_sub(next.len())) {
            next.insert(address, listed_at);
        }
        self.listed_at = next;
        self.listed_at.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7443))
    }

    fn addresses(numbers: &[u8]) -> Vec<SocketAddr> {
        numbers.iter().copied().map(address).collect()
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_replaced_replica_is_kept_for_a_while() {
        let mut replicas = Replicas::default();
        assert_eq!(replicas.listed(at(0), &addresses(&[1, 2])), addresses(&[1, 2]));
        assert_eq!(replicas.listed(at(5), &addresses(&[2, 3])), addresses(&[1, 2, 3]));
        assert_eq!(replicas.listed(at(29), &addresses(&[2, 3])), addresses(&[1, 2, 3]));
        assert_eq!(replicas.listed(at(30), &addresses(&[2, 3])), addresses(&[2, 3]));
    }

    #[test]
    fn one_that_is_listed_again_counts_from_then() {
        let mut replicas = Replicas::default();
        replicas.listed(at(0), &addresses(&[1]));
        replicas.listed(at(20), &addresses(&[1]));
        assert_eq!(replicas.listed(at(49), &[]), addresses(&[1]));
        assert_eq!(replicas.listed(at(50), &[]), []);
    }

    #[test]
    fn listed_ones_take_the_places_of_those_that_are_listed_no_more() {
        let mut replicas = Replicas::default();
        replicas.listed(at(0), &addresses(&[1]));
        replicas.listed(at(1), &addresses(&[2, 3]));
        // Both are new to the list; the one that was listed last goes on, the other goes.
        assert_eq!(replicas.listed(at(2), &addresses(&[4, 5])), addresses(&[3, 4, 5]));
    }

    #[test]
    fn among_too_many_those_in_use_stay() {
        let mut replicas = Replicas::default();
        replicas.listed(at(0), &addresses(&[8, 9]));
        assert_eq!(replicas.listed(at(1), &addresses(&[5, 4, 8, 9, 4])), addresses(&[4, 8, 9]));
    }

    proptest! {
        /// Whatever is listed: never too many, every place that a listed one could have is taken by one, and
        /// nobody is talked to who was not listed lately.
        #[test]
        fn listed_ones_come_first(lists in proptest::collection::vec((0..40u64, proptest::collection::vec(0..6u8, 0..6)), 1..20)) {
            let (mut replicas, mut now) = (Replicas::default(), at(0));
            let mut last = BTreeMap::new();
            for (pause, numbers) in lists {
                now += at(pause);
                let mut list = addresses(&numbers);
                for address in &list {
                    last.insert(*address, now);
                }
                let used = replicas.listed(now, &list);
                list.sort_unstable();
                list.dedup();
                prop_assert!(used.len() <= REPLICAS_MAX);
                let listed = used.iter().filter(|address| list.contains(address)).count();
                prop_assert_eq!(listed, list.len().min(REPLICAS_MAX));
                prop_assert!(used.iter().all(|address| now < last[address] + KEPT_FOR));
            }
        }
    }
}
