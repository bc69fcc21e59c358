//! What objects tell of storage, joined once for every command that shows it: where volumes are, how old an agent's last word
//! is, how good a disk.

use somersault_coordinator_core::names::NodeName;
use somersault_crd::node_health::DiskGrade;

use crate::exit::Failure;
use crate::output::Mood;
use crate::world::World;

pub mod place;
pub mod told;

/// How good a disk is.
pub fn grade_mood(grade: DiskGrade) -> Mood {
    match grade {
        DiskGrade::Unknown => Mood::Plain,
        DiskGrade::Ok => Mood::Good,
        DiskGrade::Warning => Mood::Doubtful,
        DiskGrade::Failing | DiskGrade::Failed => Mood::Bad,
    }
}

/// The node that somebody asks for, where it is one: a Node object, or one of which the coordinator told.
pub fn asked_node(world: &World, name: Option<&str>) -> Result<Option<NodeName>, Failure> {
    let Some(name) = name else { return Ok(None) };
    let node = NodeName(name.to_owned());
    if world.fleet.nodes.contains_key(&node) || world.healths.contains_key(&node) {
        return Ok(Some(node));
    }
    Err(Failure::NotFound(format!("there is no Node {name}")))
}
