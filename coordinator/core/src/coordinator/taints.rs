//! Taints of nodes: ours, which keeps VMs away, and the one by which people let us call a node out of service. Each is
//! asked for again and again until the cluster shows it.

use std::collections::BTreeMap;

use super::Coordinator;
use crate::fencing::{Case, FenceProof};
use crate::fleet::{FENCING_TAINT, OUT_OF_SERVICE_TAINT};
use crate::io::{Action, Effect};
use crate::liveness::Phase;
use crate::names::NodeName;
use crate::scene::Scene;

impl Coordinator {
    /// Sets and removes our taint, again and again until the cluster shows it.
    pub(super) fn taint(&mut self, fx: &mut Vec<Effect>) {
        for (name, node) in &self.facts.fleet.nodes {
            let case = self.cases.get(name);
            let wanted = case.is_some_and(Case::wants_taint);
            let healthy = || self.liveness.pulse(name).is_some_and(|pulse| pulse.phase == Phase::Healthy);
            let tainted = node.has_taint(FENCING_TAINT);
            let due = if wanted { !tainted } else { tainted && case.is_none() && healthy() };
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
