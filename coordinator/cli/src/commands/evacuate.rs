//! `evacuate`: asks for every local volume of a node, or of one of its disks, to be moved.

use kube::core::ObjectMeta;
use serde_json::Value;
use somersault_coordinator::cluster::directory::Objects;
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator::windows;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::common::Destination;
use somersault_crd::evacuation::{Disruption, Window};
use somersault_crd::{Evacuation, EvacuationSpec};

use super::incident;
use super::migrate::{check_destination, destination};
use crate::args::{EvacuateArgs, Global, TimesOfDay};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::requests::{self, Written};
use crate::source::Source;
use crate::wait;
use crate::world::{self, World};

/// Kind of the object that is written.
pub const KIND: &str = "Evacuation";

/// Runs the command.
pub fn run(global: &Global, args: &EvacuateArgs) -> Result<Exit, Failure> {
    let source = Source::open(global)?;
    let destination = destination(args.to_node.as_deref(), args.to_class.as_deref());
    let name = source.create(|objects| ask(objects, args, &destination))?.name;
    if args.wait.wait || args.dry_run {
        let exit = wait::evacuation(global, &source, &name, args.wait.timeout)?;
        if args.dry_run {
            forget(&source, &name);
        }
        return Ok(exit);
    }
    let written = Written { kind: KIND, namespace: None, name: name.clone() };
    output::print(global.output, &written, || {
        let then = if args.now {
            String::new()
        } else if let Some(TimesOfDay { opens, closes }) = &args.window {
            let zone = args.time_zone.as_deref().unwrap_or("UTC");
            format!(
                "\nIt stops VMs between {opens} and {closes} ({zone}). Not to wait for that: kubectl somersault proceed \
                 evacuation/{name}"
            )
        } else {
            format!("\nLet it stop the VMs and finish: kubectl somersault proceed evacuation/{name}")
        };
        format!(
            "Evacuation {name} is asked for.\nSee how it goes: kubectl somersault status --watch{then}\nEnd it: kubectl \
             somersault cancel evacuation/{name}"
        )
    })?;
    Ok(Exit::Ok)
}

/// A dry run was a question, and is answered: its object is of no use to anybody, and the next would need another name.
/// Who may ask may not always delete; the answer counts all the same.
fn forget(source: &Source, name: &str) {
    if let Err(failure) = source.delete(&id(name)) {
        output::note(&format!("Evacuation {name}, which has only asked, is still there: {failure}"));
    }
}

/// Looks, and makes the object.
fn ask(objects: &Objects, args: &EvacuateArgs, destination: &Destination) -> Result<Value, Failure> {
    let world = World::of(objects, None)?;
    check(&world, args, destination).inspect_err(|_| {
        world::end(&world);
    })?;
    let disk = args.disk.as_ref().map_or_else(String::new, |disk| format!("-{disk}"));
    let dry_run = if args.dry_run { "-dry-run" } else { "" };
    let stem = object_name(&format!("{}{disk}{dry_run}", args.node));
    let name = requests::free_name(objects, KIND, "", &stem)?;
    let has_destination = *destination != Destination::default();
    let spec = EvacuationSpec {
        node: args.node.clone(),
        disk: args.disk.clone(),
        destination: has_destination.then(|| destination.clone()),
        disruption: match (args.now, &args.window) {
            (true, _) => Disruption::Now,
            (false, Some(_)) => Disruption::Window,
            (false, None) => Disruption::PreCopyOnly,
        },
        window: window(args),
        dry_run: args.dry_run,
        cancelled: false,
    };
    let metadata = ObjectMeta { name: Some(name), ..ObjectMeta::default() };
    Ok(serde_json::to_value(Evacuation { metadata, spec, status: None })?)
}

fn window(args: &EvacuateArgs) -> Option<Window> {
    let times = args.window.as_ref()?;
    Some(Window {
        opens: times.opens.clone(),
        closes: times.closes.clone(),
        days: args.days.clone(),
        time_zone: args.time_zone.clone(),
    })
}

fn check(world: &World, args: &EvacuateArgs, destination: &Destination) -> Result<(), Failure> {
    let node = NodeName(args.node.clone());
    if !world.fleet.nodes.contains_key(&node) {
        return Err(Failure::NotFound(format!("there is no Node {node}")));
    }
    if incident::is_dead(world, &node) {
        return Err(Failure::Refused(format!(
            "node {node} is dead, so nothing can be copied from it: bring it back first; what becomes of its VMs: kubectl \
             somersault recoveries"
        )));
    }
    if destination.node.as_deref() == Some(node.as_str()) {
        return Err(Failure::Usage(format!("--to-node {node} is the node that is to be emptied")));
    }
    if let Some(window) = window(args) {
        windows::Window::try_from(&window).map_err(|error| Failure::Usage(format!("--window: {error}")))?;
    }
    check_destination(&world.fleet, destination)?;
    if let (Some(disk), Some(report)) = (&args.disk, world.fleet.reports.get(&node))
        && !report.disks.contains_key(disk)
        && !report.roots.iter().any(|root| root.disk.as_ref() == Some(disk))
    {
        let disks: Vec<_> = report.disks.keys().map(String::as_str).collect();
        return Err(Failure::NotFound(format!(
            "node {node} has no disk {disk} (its agent reports: {})",
            disks.join(", ")
        )));
    }
    let busy = world.evacuations.iter().find(|(_, evacuation)| {
        let complete = evacuation.status.as_ref().is_some_and(|status| status.complete);
        let spec = &evacuation.spec;
        let overlaps = spec.disk.is_none() || args.disk.is_none() || spec.disk == args.disk;
        !complete && !spec.dry_run && !args.dry_run && spec.node == args.node && overlaps
    });
    match busy {
        Some((name, _)) => Err(Failure::Refused(format!(
            "Evacuation {name} already empties it; wait for its end, or: kubectl somersault cancel evacuation/{name}"
        ))),
        None => Ok(()),
    }
}

/// Identity of an evacuation.
pub fn id(name: &str) -> ObjectId {
    ObjectId::cluster(KIND, name)
}

/// Names of disks may hold what names of objects may not.
fn object_name(text: &str) -> String {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    text.to_ascii_lowercase().chars().map(|c| if legal(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::object_name;

    #[test]
    fn names_of_disks_become_names_of_objects() {
        assert_eq!(object_name("n1-nvme0n1"), "n1-nvme0n1");
        assert_eq!(object_name("n1-mapper/VG_0"), "n1-mapper-vg-0");
    }
}
