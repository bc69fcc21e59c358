//! Asks for an evacuation of a node that was dead and has come back: opt-in, since most nodes that come back are well. One
//! that is not will die again, and each death of it leaves the VMs on its disks to a person.
//!
//! ```text
//!   dead ─► back, in quarantine ─► trusted again ─► Evacuation returned-NODE, or returned-NODE-2, … asked for
//!    ▲            │
//!    └────────────┴── dies again: from the beginning
//! ```
//!
//! What it does is what the policy says of every evacuation without a person's order: by default only told. A leader that
//! takes over between the return and the end of the quarantine knows of no death any more, and asks for nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{ACTION_RETRY, by_policy, free_name};
use crate::BootTime;
use crate::io::{Action, Effect};
use crate::migration::Context;
use crate::names::NodeName;

/// Nodes that were dead.
#[derive(Clone, Debug, Default)]
pub(super) struct Returned {
    dead: BTreeSet<NodeName>,
    /// Back, and asked for under this name, which may be asked for again then.
    back: BTreeMap<NodeName, Option<(String, BootTime)>>,
}

impl Returned {
    pub fn step(&mut self, now: BootTime, ctx: &Context<'_>) -> Vec<Effect> {
        if !ctx.policy.evacuation.after_return {
            *self = Self::default();
            return Vec::new();
        }
        let back = self.dead.difference(ctx.dead).cloned();
        self.back.extend(back.map(|node| (node, None)));
        self.dead.clone_from(ctx.dead);
        let there = |name: &String| ctx.requests.evacuations.contains_key(name);
        self.back.retain(|node, asked| {
            !ctx.dead.contains(node) && !asked.as_ref().is_some_and(|(name, _)| there(name))
        });
        let mut effects = Vec::new();
        for (node, asked) in self.back.iter_mut().filter(|(node, _)| ctx.usable.contains(*node)) {
            if asked.as_ref().is_some_and(|(_, again)| now < *again) {
                continue;
            }
            let Some(name) = free_name(&format!("returned-{node}"), ctx) else { continue };
            *asked = Some((name.clone(), now + ACTION_RETRY));
            effects.push(Effect::Act(Action::CreateEvacuation {
                name,
                spec: by_policy(node.clone(), None, ctx),
            }));
        }
        effects
    }

    pub fn next_deadline(&self) -> Option<BootTime> {
        self.back.values().flatten().map(|(_, again)| *again).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::model::World;
    use crate::policy::{EvacuationPolicySpec, Policy, PolicySpec};

    /// VM `vm` has its disks on n2.
    fn world(after_return: bool, dry_run: bool) -> World {
        let evacuation = EvacuationPolicySpec { dry_run, after_return, ..EvacuationPolicySpec::default() };
        let policy = Policy::try_from(PolicySpec { evacuation, ..PolicySpec::default() });
        let mut world = World::new();
        world.policy = policy.expect("a valid policy");
        world
    }

    fn dies(world: &mut World) {
        world.dead.insert("n2".into());
        world.usable.remove(&NodeName::from("n2"));
        world.rounds(3);
    }

    fn comes_back(world: &mut World) {
        world.dead.clear();
        world.rounds(30);
        assert_eq!(world.requests.evacuations.len(), world.evacuation_store.len(), "asked in the quarantine");
        world.usable.insert("n2".into());
        world.rounds(30);
    }

    fn names(world: &World) -> Vec<&str> {
        world.requests.evacuations.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_node_that_came_back_is_emptied_once_it_is_trusted_each_time() {
        let mut world = world(true, false);
        dies(&mut world);
        comes_back(&mut world);
        assert_eq!(names(&world), ["returned-n2"]);
        assert_eq!(world.evacuation_store["returned-n2"].plan.len(), 1);
        dies(&mut world);
        comes_back(&mut world);
        assert_eq!(names(&world), ["returned-n2", "returned-n2-2"]);
    }

    #[test]
    fn by_default_it_is_only_told_and_without_a_word_nothing_is() {
        let mut told = world(true, EvacuationPolicySpec::default().dry_run);
        dies(&mut told);
        comes_back(&mut told);
        assert!(told.requests.evacuations["returned-n2"].dry_run);
        assert!(told.requests.migrations.is_empty());

        let mut off = world(EvacuationPolicySpec::default().after_return, false);
        dies(&mut off);
        comes_back(&mut off);
        assert!(off.requests.evacuations.is_empty());
    }

    #[test]
    fn a_leader_that_finds_it_dead_sees_it_come_back() {
        let mut world = world(true, true);
        dies(&mut world);
        world.take_over();
        world.rounds(2);
        comes_back(&mut world);
        assert_eq!(names(&world), ["returned-n2"]);
    }
}
