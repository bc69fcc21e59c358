//! What helps a VM while its node is dead.
//!
//! What a decision advises is for the time before and after: nothing can be copied off a node that is dead.

use std::collections::BTreeSet;

use crate::decision::{Decision, DecisionKind, Reason};
use crate::names::NodeName;
use crate::runbook::shell_word;

impl Decision {
    /// What a person can do while its node is dead; `proven`: every node that it needs a proof of is.
    pub fn remedy_while_dead(&self, proven: bool) -> String {
        match self.kind {
            DecisionKind::Recreate | DecisionKind::Rebuild if !proven => {
                let attest = self
                    .nodes
                    .iter()
                    .map(|node| format!("kubectl somersault attest {}", shell_word(node.as_str())));
                format!(
                    "where no proof comes by itself: power {} off, then {}",
                    words(&self.nodes),
                    attest.collect::<Vec<_>>().join(" && ")
                )
            }
            DecisionKind::Rebuild => "none needed: the coordinator brings it back".to_owned(),
            DecisionKind::ManualRecovery if self.reasons.first().is_some_and(|first| lies_there(*first)) => {
                format!(
                    "bring {} back, or bring the VM back by hand: kubectl somersault runbook {}",
                    words(&homes(self)),
                    shell_word(&self.vm.to_string())
                )
            }
            DecisionKind::NothingToDo
                if self.reasons.first() == Some(&Reason::Stopped) && self.local_nodes().next().is_some() =>
            {
                format!("none while it is stopped; to start it, bring {} back first", words(&homes(self)))
            }
            DecisionKind::Recreate | DecisionKind::ManualRecovery | DecisionKind::NothingToDo => {
                self.remedy.clone()
            }
        }
    }
}

/// What is missing lies on the dead node, and what would have helped is to have it elsewhere.
fn lies_there(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::LocalDisk
            | Reason::LocalHotplug
            | Reason::LocalState
            | Reason::LocalBacking
            | Reason::HostDisk
            | Reason::RebuildNotAllowed
            | Reason::DataVolumeMissing
            | Reason::ImageNotImportable
            | Reason::DataVolumePrePopulated
            | Reason::ClassNotPortable
    )
}

/// The nodes that hold its disks, else those that it may run on.
fn homes(decision: &Decision) -> Vec<NodeName> {
    let homes: BTreeSet<&NodeName> = decision.local_nodes().collect();
    if homes.is_empty() { decision.nodes.clone() } else { homes.into_iter().cloned().collect() }
}

fn words(nodes: &[NodeName]) -> String {
    match nodes {
        [] => "its node".to_owned(),
        [node] => format!("node {node}"),
        nodes => format!("nodes {}", nodes.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use crate::coordinator::testkit::{Bench, fast};
    use crate::decision::decide;
    use crate::decision::testkit::{World, host_path, key, on_host};
    use crate::fleet::RunStrategy;
    use crate::io::Effect;

    fn remedy(bench: &Bench, vm: &str) -> String {
        bench.view().recoveries[&key(vm)].remedy()
    }

    /// What people were told when each VM was decided upon.
    fn told(bench: &Bench) -> Vec<&str> {
        let texts = bench.effects.iter().filter_map(|(_, effect)| match effect {
            Effect::Notify(notice) if notice.reason == "RecoveryDecided" => Some(notice.message.as_str()),
            _ => None,
        });
        texts.collect()
    }

    #[test]
    fn nobody_is_told_to_copy_from_a_dead_node() {
        let mut bench = Bench::new(fast(&[]));
        bench.silence(&["n1"]);
        bench.run_ms(5_000);
        let by_hand = "bring node n1 back, or bring the VM back by hand: kubectl somersault runbook ";
        assert_eq!(remedy(&bench, "local"), format!("{by_hand}{}", key("local")));
        let told = told(&bench);
        assert!(told.len() == 2 && told.iter().all(|text| !text.contains("migrate")), "{told:?}");
        assert_eq!(
            remedy(&bench, "net"),
            "where no proof comes by itself: power node n1 off, then kubectl somersault attest n1"
        );
        bench.attest("n1", 1, "eve");
        bench.run_ms(100);
        assert_eq!(remedy(&bench, "local"), format!("{by_hand}{}", key("local")));
        assert_eq!(remedy(&bench, "net"), "none needed");
    }

    #[test]
    fn once_the_node_is_back_its_disks_can_be_moved() {
        let mut bench = Bench::new(fast(&[]));
        bench.silence(&["n1"]);
        bench.run_ms(5_000);
        bench.beat("n1", 2);
        bench.run_ms(30_000);
        assert!(
            remedy(&bench, "local").contains("kubectl somersault migrate"),
            "{}",
            remedy(&bench, "local")
        );
    }

    #[test]
    fn a_stopped_vm_has_nothing_to_copy_from_a_dead_node_either() {
        let mut world = World::new();
        world.add_disk("web", "x", host_path(), on_host(&["n1"]));
        world.vm("web").run = RunStrategy::Halted;
        let decision = decide(&world.fleet, &world.overrides, &key("web"), &world.question);
        assert!(decision.remedy.contains("migrate"), "before and after: {}", decision.remedy);
        let told = decision.remedy_while_dead(false);
        assert_eq!(told, "none while it is stopped; to start it, bring node n1 back first");
    }
}
