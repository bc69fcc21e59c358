//! Asks for an evacuation of a node that somebody cordons and marks for it: what a person or a tool does before
//! `kubectl drain`, with nothing else to learn.
//!
//! ```text
//!   cordoned and annotated ─► no evacuation of this node goes on ─► Evacuation drain-NODE, or drain-NODE-2, … asked for
//!            │                                                            │
//!            └── uncordoned, or the annotation is gone ◄── asked again ───┘ (the evacuation that was asked for goes on)
//! ```
//!
//! A mark is answered once: it stays on the node, and its evacuation may have ended long ago. A new leader takes a mark for
//! answered where an evacuation of that name is there.

use std::collections::{BTreeMap, BTreeSet};

use super::{ACTION_RETRY, Disruption, EvacuationSpec, free_name};
use crate::BootTime;
use crate::io::{Action, Effect, Notice, Severity, Subject};
use crate::migration::Context;
use crate::names::{NodeName, Uid};

/// What evacuations are called that are asked for in this way.
const CAUSE: &str = "drain";

/// Marks of nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Drains {
    /// The fleet was looked at since we lead.
    looked: bool,
    /// Answered.
    answered: BTreeSet<NodeName>,
    /// Marks that say nothing, and were told of. One that is corrected counts.
    unknown: BTreeMap<NodeName, String>,
    /// Asked for, under this name, and may be asked for again then.
    asked: BTreeMap<NodeName, (String, BootTime)>,
}

impl Drains {
    pub fn step(&mut self, now: BootTime, ctx: &Context<'_>) -> Vec<Effect> {
        if ctx.fleet.nodes.is_empty() {
            return Vec::new();
        }
        let marks = ctx.fleet.nodes.iter().filter(|(_, node)| node.unschedulable);
        let marks: BTreeMap<&NodeName, &String> =
            marks.filter_map(|(name, node)| Some((name, node.evacuate.as_ref()?))).collect();
        self.answered.retain(|node| marks.contains_key(node));
        self.unknown.retain(|node, mark| marks.get(node).is_some_and(|now| *now == mark));
        self.asked.retain(|node, _| marks.contains_key(node));
        let mut effects = Vec::new();
        for (node, mark) in marks {
            if self.answered.contains(node) || self.unknown.contains_key(node) {
                continue;
            }
            let there = |name: &String| ctx.requests.evacuations.contains_key(name);
            let asked = self.asked.get(node);
            let inherited = !self.looked && there(&format!("{CAUSE}-{node}"));
            if inherited || asked.is_some_and(|(name, _)| there(name)) {
                self.answered.insert(node.clone());
                continue;
            }
            let Some(disruption) = disruption(mark) else {
                self.unknown.insert(node.clone(), mark.clone());
                effects.push(unknown(node, mark));
                continue;
            };
            let busy = ctx.requests.evacuations.values().any(|spec| {
                spec.node == *node
                    && spec.disk.is_none()
                    && !spec.dry_run
                    && !spec.complete
                    && !spec.cancelled
            });
            if busy || asked.is_some_and(|(_, again)| now < *again) {
                continue;
            }
            let Some(name) = free_name(&format!("{CAUSE}-{node}"), ctx) else { continue };
            self.asked.insert(node.clone(), (name.clone(), now + ACTION_RETRY));
            effects.push(Effect::Act(Action::CreateEvacuation { name, spec: spec(node, disruption) }));
        }
        self.looked = true;
        effects
    }

    pub fn next_deadline(&self) -> Option<BootTime> {
        let open = self.asked.iter().filter(|(node, _)| !self.answered.contains(*node));
        open.map(|(_, (_, again))| *again).min()
    }
}

fn disruption(mark: &str) -> Option<Disruption> {
    match mark {
        "PreCopyOnly" => Some(Disruption::PreCopyOnly),
        "Now" => Some(Disruption::Now),
        _ => None,
    }
}

fn spec(node: &NodeName, disruption: Disruption) -> EvacuationSpec {
    EvacuationSpec {
        uid: Uid::from(""),
        node: node.clone(),
        disk: None,
        destination: None,
        disruption,
        window_open: false,
        dry_run: false,
        cancelled: false,
        complete: false,
    }
}

fn unknown(node: &NodeName, mark: &str) -> Effect {
    Effect::Notify(Notice {
        severity: Severity::Warning,
        subject: Subject::Node(node.clone()),
        reason: "EvacuateAnnotationUnknown",
        message: format!(
            "{node} is annotated {}={mark:?}, which says neither PreCopyOnly nor Now: nothing is moved",
            crate::fleet::EVACUATE_ANNOTATION
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::model::World;

    fn marked(mark: &str) -> World {
        let mut world = World::new();
        set(&mut world, true, Some(mark));
        world
    }

    fn set(world: &mut World, cordoned: bool, mark: Option<&str>) {
        let node = world.fleet.nodes.get_mut(&NodeName::from("n2")).expect("there");
        (node.unschedulable, node.evacuate) = (cordoned, mark.map(str::to_owned));
    }

    fn names(world: &World) -> Vec<&str> {
        world.requests.evacuations.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_marked_and_cordoned_node_is_emptied_once() {
        let mut world = marked("Now");
        world.rounds(100);
        assert_eq!(names(&world), ["drain-n2"]);
        assert!(world.evacuation_store["drain-n2"].complete);
        world.take_over();
        world.rounds(30);
        assert_eq!(names(&world), ["drain-n2"], "a new leader takes it for answered");
        set(&mut world, false, Some("Now"));
        world.rounds(2);
        set(&mut world, true, Some("Now"));
        world.rounds(30);
        assert_eq!(names(&world), ["drain-n2", "drain-n2-2"], "cordoned anew, it is asked anew");
    }

    #[test]
    fn a_mark_alone_or_a_cordon_alone_asks_nothing() {
        for (cordoned, mark) in [(false, Some("Now")), (true, None)] {
            let mut world = World::new();
            set(&mut world, cordoned, mark);
            world.rounds(20);
            assert!(world.requests.evacuations.is_empty(), "{cordoned} {mark:?}");
        }
    }

    #[test]
    fn an_evacuation_that_goes_on_is_enough() {
        let mut world = World::new();
        world.requests.evacuations.insert("by-hand".into(), spec(&"n2".into(), Disruption::PreCopyOnly));
        set(&mut world, true, Some("PreCopyOnly"));
        world.rounds(20);
        assert_eq!(names(&world), ["by-hand"]);
    }

    #[test]
    fn a_mark_that_nobody_knows_is_told_once() {
        let mut world = marked("now!");
        world.rounds(20);
        assert!(world.requests.evacuations.is_empty());
        let told = world.effects.iter().filter(|effect| matches!(effect, Effect::Notify(_))).count();
        assert_eq!(told, 1);
        set(&mut world, true, Some("Now"));
        world.rounds(20);
        assert_eq!(names(&world), ["drain-n2"], "corrected while it is cordoned");
    }
}
