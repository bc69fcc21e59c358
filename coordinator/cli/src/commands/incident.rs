//! What a node's state changes of an answer: nothing can be copied off a node that is dead.

use std::collections::BTreeSet;

use somersault_coordinator_core::decision::Decision;
use somersault_coordinator_core::io::Requests;
use somersault_coordinator_core::migration::Context;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::node_health::{NodeHealthStatus, NodeState};

use crate::world::World;

/// Whether the coordinator calls the node dead now, proven or not.
pub fn is_dead(world: &World, node: &NodeName) -> bool {
    status(world, node).is_some_and(|status| {
        matches!(
            status.state,
            NodeState::AwaitingProof
                | NodeState::Fenced
                | NodeState::Recovering
                | NodeState::FenceContradicted
        )
    })
}

/// Whether it is proven dead now: nothing of it can run or write any more.
pub fn is_proven(world: &World, node: &NodeName) -> bool {
    status(world, node)
        .is_some_and(|status| matches!(status.state, NodeState::Fenced | NodeState::Recovering))
}

/// Whether its agent beats, as the coordinator last told.
pub fn is_healthy(world: &World, node: &NodeName) -> bool {
    status(world, node).is_some_and(|status| status.state == NodeState::Healthy)
}

/// The nodes of which this can be said.
pub fn that_are(world: &World, is: impl Fn(&World, &NodeName) -> bool) -> BTreeSet<NodeName> {
    world.healths.keys().filter(|node| is(world, node)).cloned().collect()
}

/// Nodes as the coordinator last told of them: for its own questions about a migration.
pub struct Told<'a> {
    world: &'a World,
    requests: Requests,
    usable: BTreeSet<NodeName>,
    dead: BTreeSet<NodeName>,
}

impl<'a> Told<'a> {
    pub fn of(world: &'a World) -> Self {
        let (usable, dead) = (that_are(world, is_healthy), that_are(world, is_dead));
        Self { world, requests: Requests::default(), usable, dead }
    }

    pub fn context(&self) -> Context<'_> {
        Context {
            fleet: &self.world.fleet,
            requests: &self.requests,
            policy: &self.world.policy,
            // Of no epoch: nothing is written by it.
            epoch: 0,
            usable: &self.usable,
            dead: &self.dead,
        }
    }
}

/// What a person can do now, where the VM's node, or one that holds its disks, is dead.
pub fn remedy(world: &World, decision: &Decision, node: Option<&NodeName>) -> Option<String> {
    let dead = decision.local_nodes().chain(node).any(|node| is_dead(world, node));
    let proven = |node: &NodeName| status(world, node).is_some_and(|status| status.proof.is_some());
    dead.then(|| decision.remedy_while_dead(decision.nodes.iter().all(proven)))
}

fn status<'a>(world: &'a World, node: &NodeName) -> Option<&'a NodeHealthStatus> {
    world.healths.get(node)?.status.as_ref()
}
