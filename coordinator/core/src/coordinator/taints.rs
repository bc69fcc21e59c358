//! Taints of nodes: ours, which keeps VMs away, and the one by which people let us call a node out of service. Each is
//! asked for again and again until the cluster shows it.
//!
//! ```text
//!   no incident ── declared ──► ours is set ── Quarantine ends, healthy ──► ours is removed
//!                                    ▲ │
//!                 a VM to start      │ │ a VM there is kept at its disks by nothing but the scheduler, and none is
//!                 elsewhere          │ ▼ left to start elsewhere
//!                                 left to Kubernetes
//! ```

use std::collections::BTreeMap;

use super::Coordinator;
use crate::fencing::{Case, FenceProof};
use crate::fleet::{FENCING_TAINT, KUBERNETES_UNREACHABLE_TAINT, Node, OUT_OF_SERVICE_TAINT};
use crate::io::{Action, Effect};
use crate::liveness::Phase;
use crate::names::NodeName;
use crate::scene::Scene;

impl Coordinator {
    /// Sets and removes our taint, again and again until the cluster shows it.
    pub(super) fn taint(&mut self, fx: &mut Vec<Effect>) {
        for (name, node) in &self.facts.fleet.nodes {
            let case = self.cases.get(name);
            let given_up = case.is_some_and(|case| self.is_left_to_kubernetes(name, node, case));
            let wanted = case.is_some_and(Case::wants_taint) && !given_up;
            let healthy = || self.liveness.pulse(name).is_some_and(|pulse| pulse.phase == Phase::Healthy);
            let tainted = node.has_taint(FENCING_TAINT);
            let over = || case.is_none() && healthy();
            let due = if wanted { !tainted } else { tainted && (given_up || over()) };
            if !due {
                self.tainting.remove(name);
                continue;
            }
            let asked = self.tainting.get(name);
            if asked.is_some_and(|(what, at)| {
                *what == wanted && self.now < *at + self.facts.policy.recovery.retry
            }) {
                continue;
            }
            self.tainting.insert(name.clone(), (wanted, self.now));
            let node = name.clone();
            fx.push(Effect::Act(if wanted { Action::Taint { node } } else { Action::Untaint { node } }));
        }
    }

    /// Whether our taint would do more harm than good: a VM whose volume names no node starts on any that is open when
    /// this one returns, with a blank disk. Kept away from this one it would miss its disks for certain, and by our doing.
    /// As long as VMs of the node are to be started elsewhere, the taint is what makes that safe, and stays; after that,
    /// until Kubernetes keeps them away itself.
    fn is_left_to_kubernetes(&self, name: &NodeName, node: &Node, case: &Case) -> bool {
        if !self.recovery.has_unpinned(name) {
            return false;
        }
        let settled = self.recovery.settled(&Scene { now: self.now, facts: &self.facts }, name);
        let kept_away = !settled.acted || case.has_returned() || node.has_taint(KUBERNETES_UNREACHABLE_TAINT);
        settled.idle && settled.open == 0 && kept_away
    }

    /// Sets and removes the out-of-service taint, where people want it, again and again until the cluster shows it.
    pub(super) fn call_out_of_service(&mut self, fx: &mut Vec<Effect>) {
        let scene = Scene { now: self.now, facts: &self.facts };
        let wanted: BTreeMap<&NodeName, &FenceProof> = if self.facts.policy.recovery.out_of_service {
            self.recovery.out_of_service(&scene, &self.trouble).collect()
        } else {
            BTreeMap::new()
        };
        for (name, node) in &self.facts.fleet.nodes {
            let action = match wanted.get(name) {
                // Somebody else's does the same.
                Some(&proof) if !node.has_taint(OUT_OF_SERVICE_TAINT) => {
                    Action::OutOfService { proof: proof.clone() }
                }
                None if node.is_out_of_service_by_us() => Action::InService { node: name.clone() },
                _ => {
                    self.calling.remove(name);
                    continue;
                }
            };
            let asked = self.calling.get(name);
            if asked.is_some_and(|(what, at)| {
                *what == action && self.now < *at + self.facts.policy.recovery.retry
            }) {
                continue;
            }
            self.calling.insert(name.clone(), (action.clone(), self.now));
            fx.push(Effect::Act(action));
        }
    }
}
