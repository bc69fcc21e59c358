//! Lease arithmetic, for nodes that are enrolled for watchdog fencing. Only the simulation enrols any.
//!
//! A node's guard pets its watchdog only while `now < send time of the granted beat + L`. It may stall between
//! the check and the pet, but not for longer than the watchdog allows, so the last pet is before `expiry + T_wd`
//! and the reset before `expiry + 2 T_wd` (SBD doubles for the same reason). Seen from here:
//!
//! ```text
//!   now >= T_last + (L + 2*T_wd) * (1 + rho) / (1 - rho) + T_io + eps
//! ```
//!
//! where `T_last` is when the last granted beat was received or, after a leader change, when we took over.
//!
//! An expired guard that reaches a majority of its enrolled peers, all expired too, waits: an outage of the
//! control plane must reset nobody. Therefore an expired lease proves nothing while a majority lacks grants, and
//! the wait begins anew when that is over. A grant counts as held only when the agent said that it arrived: a
//! cut of the way down must look like the outage that it is.
//!
//! A guard arms its watchdog with the first grant that reaches it. A boot that never said that one arrived, such as
//! one of which only Node.status tells, has no watchdog that fires: for it no lease ever proves anything.

use std::collections::BTreeMap;

use crate::BootTime;
use crate::names::{BootId, NodeName};
use crate::policy::{Lease, Policy};

/// When a node whose last granted beat arrived at `last_granted` has certainly been reset, and its writes have
/// certainly arrived.
pub fn reset_by(lease: &Lease, last_granted: BootTime) -> BootTime {
    let drift = (1.0 + lease.drift) / (1.0 - lease.drift);
    last_granted + (lease.lease + 2 * lease.watchdog).mul_f64(drift) + lease.io + lease.margin
}

/// Who holds a grant, as far as we can know.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseWatch {
    /// When the last granted beat of each enrolled node arrived.
    granted: BTreeMap<NodeName, BootTime>,
    /// When each enrolled node last said that a grant of ours had arrived.
    held: BTreeMap<NodeName, BootTime>,
    /// The boot in which each enrolled node last said so: its watchdog is armed, whoever leads.
    armed: BTreeMap<NodeName, BootId>,
    /// The wait for every node begins here at the earliest.
    not_before: BootTime,
    /// Until then a majority of the enrolled nodes surely holds grants, if nobody says more.
    majority_until: BootTime,
    leads: bool,
}

impl LeaseWatch {
    /// We lead now: older grants are not ours to know.
    pub fn begin_leading(&mut self, now: BootTime) {
        let armed = std::mem::take(&mut self.armed);
        *self = Self { armed, not_before: now, leads: true, ..Self::default() };
    }

    /// We answered this node's beat.
    pub fn granted(&mut self, node: &NodeName, now: BootTime) {
        self.granted.insert(node.clone(), now);
    }

    /// The node said that our grant arrived.
    pub fn held(&mut self, node: &NodeName, boot: &BootId, now: BootTime, policy: &Policy) {
        self.tick(now);
        if policy.watchdog_fencing.contains(node) {
            self.held.insert(node.clone(), now);
            self.armed.insert(node.clone(), boot.clone());
            self.majority_until = majority_until(&self.held, policy);
        }
    }

    /// Lets time pass: while a majority of the enrolled nodes lacks grants, no wait begins.
    pub fn tick(&mut self, now: BootTime) {
        if now >= self.majority_until {
            self.not_before = now;
        }
    }

    /// Whether the lease of this boot of the node has certainly run out, and its watchdog has fired.
    pub fn expired(&self, node: &NodeName, boot: Option<&BootId>, now: BootTime, policy: &Policy) -> bool {
        self.leads
            && boot.is_some_and(|boot| self.armed.get(node) == Some(boot))
            && policy.watchdog_fencing.contains(node)
            && now < self.majority_until
            && now >= self.expires(node, policy)
    }

    /// When `expired` turns true, if nothing else changes.
    pub fn expires(&self, node: &NodeName, policy: &Policy) -> BootTime {
        let last = self.granted.get(node).copied().unwrap_or_default().max(self.not_before);
        reset_by(&policy.lease, last)
    }
}

/// Until when more than half of the enrolled nodes surely hold a grant: a word counts for half a lease, which
/// leaves the other half for the way that it took.
fn majority_until(held: &BTreeMap<NodeName, BootTime>, policy: &Policy) -> BootTime {
    let mut latest: Vec<BootTime> = held.values().copied().collect();
    latest.sort_unstable_by(|a, b| b.cmp(a));
    let decisive = latest.get(policy.watchdog_fencing.len() / 2);
    decisive.map_or(BootTime::ZERO, |at| *at + policy.lease.lease / 2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_wait_57_seconds() {
        let wait = reset_by(&Policy::default().lease, Duration::ZERO);
        assert!(wait > Duration::from_millis(56_500) && wait < Duration::from_millis(56_600), "{wait:?}");
    }

    fn boot(number: u32) -> BootId {
        BootId(format!("boot{number}"))
    }

    fn enrolled() -> Policy {
        Policy::default().with_watchdog_fencing(["a", "b", "c"].map(NodeName::from).into())
    }

    #[test]
    fn without_a_majority_that_holds_grants_nothing_expires_and_the_wait_begins_anew() {
        let (policy, mut watch) = (enrolled(), LeaseWatch::default());
        let s = Duration::from_secs;
        watch.begin_leading(s(0));
        watch.granted(&"a".into(), s(1));
        watch.held(&"a".into(), &boot(1), s(1), &policy);
        for second in 0..200 {
            watch.held(&"b".into(), &boot(1), s(second), &policy);
            watch.tick(s(second));
            let expired = watch.expired(&"a".into(), Some(&boot(1)), s(second), &policy);
            assert!(!expired, "one of three is no majority");
        }
        for second in 200..300 {
            watch.held(&"b".into(), &boot(1), s(second), &policy);
            watch.held(&"c".into(), &boot(1), s(second), &policy);
            watch.tick(s(second));
            let expired =
                |boot: Option<BootId>| watch.expired(&"a".into(), boot.as_ref(), s(second), &policy);
            assert_eq!(expired(Some(boot(1))), second >= 200 + 57, "{second}");
            assert!(!expired(Some(boot(2))) && !expired(None), "no grant ever armed that boot's watchdog");
        }
    }

    #[test]
    fn a_node_that_is_not_enrolled_never_expires() {
        let mut watch = LeaseWatch::default();
        watch.begin_leading(Duration::ZERO);
        assert!(!watch.expired(&"a".into(), Some(&boot(1)), Duration::from_secs(9_999), &Policy::default()));
    }

    proptest! {
        /// Against the guard's own rules, with every clock off by up to rho: whatever is pet last, the reset is
        /// over before we act.
        #[test]
        fn the_wait_is_long_enough(
            guard_rate in 0.99..1.01f64, our_rate in 0.99..1.01f64, way_ms in 0..5_000u32, stall in 0.0..1.0f64,
        ) {
            let lease = Policy::default().lease.clone();
            // True time: the beat is sent at 0 and received after `way`; the guard pets last just before expiry
            // plus its longest stall, and the watchdog fires its time-out after that, all on the node's clock.
            let way = f64::from(way_ms) / 1000.0;
            let reset = (lease.lease.as_secs_f64() + lease.watchdog.as_secs_f64() * (1.0 + stall)) / guard_rate;
            let received = Duration::from_secs_f64(way * our_rate);
            let act = reset_by(&lease, received).as_secs_f64() / our_rate;
            prop_assert!(act > reset + lease.io.as_secs_f64() / our_rate);
        }
    }
}
