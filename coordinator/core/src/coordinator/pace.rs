//! How often every node is looked at, however much is heard.

use super::Coordinator;
use crate::BootTime;

/// Between two looks at every node for the sake of signs of life and reports alone, for each node that there is. A look
/// takes a few microseconds for each of them: of a thousand nodes that costs a tenth of a core at most, and three are
/// looked at as soon as anything is heard.
const LOOK_GAP_PER_NODE: BootTime = BootTime::from_micros(25);
/// The same for each VM, while some node is dead.
const LOOK_GAP_PER_VM: BootTime = BootTime::from_micros(5);

impl Coordinator {
    /// Signs of life and reports come by the hundred a second, and none is a reason to declare anything. Each followed
    /// by a look at every node would make us too late for the next ones, and then late for ever: they share a look,
    /// which is due soon.
    pub(super) fn has_just_looked(&mut self) -> bool {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (nodes, vms) = (count(self.facts.fleet.nodes.len()), count(self.facts.fleet.vms.len()));
        // VMs are looked at only where some may have to move.
        let vms = if self.cases.is_empty() { 0 } else { vms };
        let next = self.looked_at + LOOK_GAP_PER_NODE * nodes + LOOK_GAP_PER_VM * vms;
        let too_soon = self.now < next;
        if too_soon {
            self.wake = Some(self.wake.filter(|wake| *wake > self.now).map_or(next, |wake| wake.min(next)));
        }
        too_soon
    }
}

#[cfg(test)]
mod tests {
    //! Shows that the number of looks at a large fleet does not grow with what is heard, and that none comes too late.

    use super::*;
    use crate::fleet::{Fleet, Node};
    use crate::io::Input;
    use crate::liveness::Phase;
    use crate::names::{BootId, NodeName};
    use crate::policy::Policy;

    const NODES: u32 = 1_000;

    fn name(node: u32) -> NodeName {
        NodeName(format!("n{node:04}"))
    }

    fn beat(node: u32) -> Input {
        Input::Beat { node: name(node), boot_id: BootId::from("b"), sequence: 1 }
    }

    #[test]
    fn a_thousand_beating_nodes_do_not_keep_us_from_declaring_a_silent_one_in_time() {
        let mut coordinator = Coordinator::new(Policy::default());
        let nodes = (0..NODES).map(|node| (name(node), Node { ready: true, ..Node::default() }));
        let fleet = Fleet { nodes: nodes.collect(), ..Fleet::default() };
        let ms = BootTime::from_millis;
        coordinator.step(ms(0), Input::Fleet(Box::new(fleet)));
        coordinator.step(ms(0), Input::Leading { epoch: 1, records: Vec::new(), recoveries: Vec::new() });
        (0..NODES).for_each(|node| drop(coordinator.step(ms(1), beat(node))));
        let (mut looks, mut declared) = (0, None);
        // Node 0 beats no more; each of the others beats once a second, and its kubelet tells as often.
        for now in 2..7_000_u32 {
            let (at, node) = (ms(now.into()), now % NODES);
            if node != 0 {
                coordinator.step(at, beat(node));
                looks += u32::from(coordinator.has_looked);
                coordinator.step(at, Input::KubeletRenewed { node: name(node) });
                looks += u32::from(coordinator.has_looked);
            }
            if coordinator.next_deadline().is_some_and(|wake| wake <= at) {
                coordinator.step(at, Input::Tick);
                looks += u32::from(coordinator.has_looked);
            }
            let phase = coordinator.liveness.pulse(&name(0)).map(|pulse| pulse.phase);
            if declared.is_none() && phase == Some(Phase::Declared) {
                declared = Some(now);
            }
        }
        assert!(declared.is_some_and(|at| (5_000..5_100).contains(&at)), "{declared:?}");
        assert!(looks < 7 * 41, "{looks}");
    }
}
