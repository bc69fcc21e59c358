//! What a node's state changes of an answer: nothing can be copied off a node that is dead.

use std::collections::BTreeSet;

use somersault_coordinator::cluster::manifest;
use somersault_coordinator_core::decision::Decision;
use somersault_coordinator_core::io::Requests;
use somersault_coordinator_core::migration::{Context, MigrationRequest};
use somersault_coordinator_core::names::{Key, NodeName, Uid};
use somersault_crd::VolumeMigration;
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
        // One that contradicts itself is told of where the objects are read.
        let asked = |(key, object): (&Key, &VolumeMigration)| {
            let spec = manifest::migration(&object.spec).ok()?;
            let uid = Uid::from(object.metadata.uid.as_deref().unwrap_or_default());
            Some((key.clone(), MigrationRequest { uid, spec }))
        };
        let migrations = world.migrations.iter().filter_map(asked).collect();
        Self { world, requests: Requests { migrations, ..Requests::default() }, usable, dead }
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

#[cfg(test)]
mod tests {
    use somersault_coordinator::cluster::directory;

    use super::*;

    /// What was asked of a guest in vain keeps its old volumes, as the coordinator sees it.
    #[test]
    fn the_coordinators_questions_see_what_a_migration_asks() {
        let folder = tempfile::tempdir().expect("a folder");
        let asked = |name: &str, probe: &str| {
            format!(
                "apiVersion: somersault.novasphere.dev/v1alpha1\nkind: VolumeMigration\nmetadata: {{namespace: shop, name: \
                 {name}}}\nspec: {{vm: web, destination: {{node: n3}}, probe: {probe}}}\n---\n"
            )
        };
        let text = asked("good", "{tcp: {port: 5432}}") + &asked("bad", "{tcp: {port: 0}}");
        std::fs::write(folder.path().join("asked.yaml"), text).expect("written");
        let objects = directory::read_objects(folder.path()).expect("read");
        let Ok(world) = World::of(&objects, None) else { panic!("a world") };
        let told = Told::of(&world);
        let probes = told.context().requests.migrations.iter();
        let probes: Vec<_> = probes
            .map(|(key, request)| (key.name.as_str(), request.spec.probe.as_ref().map(ToString::to_string)))
            .collect();
        assert_eq!(probes, [("good", Some("tcp:5432".to_owned()))]);
    }
}
