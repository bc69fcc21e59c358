//! Where a VM may be running, and what in that forbids starting it elsewhere.

use crate::decision::{Finding, NodeNameSet, Question, Reason};
use crate::fleet::{Instance, RunStrategy, Vm};

/// Where a VM may be running.
pub(super) struct Whereabouts {
    /// Nodes of its instance, of a live migration's target, and of every launcher that has not ended.
    pub(super) nodes: NodeNameSet,
    /// A live migration is in flight and its target is not told: there is a node that we cannot name.
    unnamed_target: bool,
}

impl Whereabouts {
    pub(super) fn of(vm: &Vm) -> Self {
        let mut nodes = NodeNameSet::new();
        let mut unnamed_target = false;
        if let Some(instance) = vm.instance.as_ref().filter(|instance| !has_ended(&instance.phase)) {
            nodes.extend(instance.node.clone());
            match &instance.migrating {
                Some(Some(target)) => nodes.extend([target.clone()]),
                Some(None) => unnamed_target = true,
                None => {}
            }
        }
        // A pod that is being deleted on a dead node keeps its phase: it counts as alive, as for KubeVirt.
        nodes.extend(vm.pods.iter().filter(|pod| !has_ended(&pod.phase)).filter_map(|pod| pod.node.clone()));
        Self { nodes, unnamed_target }
    }

    /// What in its present state forbids starting it elsewhere.
    pub(super) fn blockers(&self, vm: &Vm, question: &Question) -> Vec<Finding> {
        let mut findings = Vec::new();
        if self.nodes.is_disjoint(&question.dead) {
            return findings;
        }
        findings.extend(self.alive_elsewhere(vm, question));
        findings.extend(vm.instance.as_ref().and_then(state_blocker));
        match vm.run {
            RunStrategy::Manual => findings.push((
                Reason::RunStrategyManual,
                "its run strategy is Manual: KubeVirt starts it by a person's word only".to_owned(),
            )),
            RunStrategy::Once => findings.push((
                Reason::RunStrategyOnce,
                "its run strategy is Once: KubeVirt does not start it a second time".to_owned(),
            )),
            RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Halted => {}
        }
        findings
    }

    fn alive_elsewhere(&self, vm: &Vm, question: &Question) -> Option<Finding> {
        let living = self.nodes.difference(&question.dead).next();
        let migrating = vm.instance.as_ref().is_some_and(|instance| instance.migrating.is_some());
        match (migrating, living) {
            (true, _) if self.unnamed_target => Some((
                Reason::LiveMigrationInFlight,
                "a live migration is in flight to a node that is not named: it may run there".to_owned(),
            )),
            (true, Some(node)) => Some((
                Reason::LiveMigrationInFlight,
                format!("a live migration is in flight, and node {node} is not dead: it may run there"),
            )),
            (false, Some(node)) => Some((
                Reason::LauncherElsewhere,
                format!("it has an instance or launcher on node {node}, which is not dead"),
            )),
            (_, None) => None,
        }
    }
}

fn state_blocker(instance: &Instance) -> Option<Finding> {
    if let Some(why) = &instance.paused {
        let why = if why.is_empty() { "for no stated reason" } else { why };
        return Some((
            Reason::InstancePaused,
            format!("it was paused ({why}): a fresh start would undo that"),
        ));
    }
    // KubeVirt counts the loss of a launcher before the first Running as a failed start and backs off.
    (!instance.has_run && !has_ended(&instance.phase)).then(|| {
        (
            Reason::InstanceNeverRan,
            "its instance has never run: deleting its launcher would count as a failed start".to_owned(),
        )
    })
}

fn has_ended(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}
