//! `migrate`: asks for the disks of a VM, or for one claim, to be moved.

use kube::core::ObjectMeta;
use serde_json::Value;
use somersault_coordinator::cluster::directory::Objects;
use somersault_coordinator::cluster::manifest::{self, ObjectId, probe_spec};
use somersault_coordinator_core::fleet::{Fleet, Vm};
use somersault_coordinator_core::migration::{self, Refusal};
use somersault_coordinator_core::names::{Key, NodeName};
use somersault_crd::common::Destination;
use somersault_crd::volume_migration::{DisksToMove, Phase, UnreadableData};
use somersault_crd::{VolumeMigration, VolumeMigrationSpec};

use super::incident::Told;
use super::{live, recoveries};
use crate::args::{Global, MigrateArgs, Unreadable};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::requests::{self, Written};
use crate::source::Source;
use crate::wait;
use crate::world::{self, World};

/// Kind of the object that is written.
pub const KIND: &str = "VolumeMigration";

/// Runs the command.
pub fn run(global: &Global, args: &MigrateArgs) -> Result<Exit, Failure> {
    // The command line has made sure that one of the two is there.
    let Some(subject) = args.vm.as_ref().or(args.claim.as_ref()) else {
        return Err(Failure::Usage("say which VM, or which claim".to_owned()));
    };
    if args.live {
        return live::run(global, args, subject);
    }
    let namespace = subject.namespace(global)?;
    let source = Source::open(global)?;
    let subject = Key::new(source.namespace(namespace), subject.name.as_str());
    let destination = destination(args.to_node.as_deref(), args.to_class.as_deref());
    // Looked at again when somebody is faster, so that two people cannot ask for the same VM at once.
    let key = source.create(|objects| ask(objects, args, &subject, &destination))?.key();
    if args.wait.wait {
        return wait::migration(global, &source, &key, args.wait.timeout);
    }
    let status = wait::first_answer(&source, &key)?;
    if matches!(status.phase, Phase::Failed | Phase::RolledBack) {
        output::print(global.output, &status, || wait::migration_text(&key, &status, false))?;
        return Ok(Exit::Failed);
    }
    let written = Written { kind: KIND, namespace: Some(key.namespace.clone()), name: key.name.clone() };
    output::print(global.output, &written, || {
        format!(
            "VolumeMigration {key} is asked for.\nSee how it goes: kubectl somersault status --watch\nEnd it: kubectl \
             somersault cancel migration/{} -n {}",
            key.name, key.namespace
        )
    })?;
    Ok(Exit::Ok)
}

/// Looks, and makes the object.
fn ask(
    objects: &Objects,
    args: &MigrateArgs,
    subject: &Key,
    destination: &Destination,
) -> Result<Value, Failure> {
    let world = World::of(objects, None)?;
    let spec = VolumeMigrationSpec {
        vm: args.vm.as_ref().map(|vm| vm.name.clone()),
        claim: args.claim.as_ref().map(|claim| claim.name.clone()),
        destination: destination.clone(),
        disks: if args.include_network_disks { DisksToMove::All } else { DisksToMove::Local },
        pre_copy_only: args.pre_copy_only,
        unreadable: match args.unreadable {
            Unreadable::Fail => UnreadableData::Fail,
            Unreadable::Zeroes => UnreadableData::Zeroes,
        },
        probe: args.probe.as_ref().map(probe_spec),
        ..VolumeMigrationSpec::default()
    };
    check(&world, subject, &spec).inspect_err(|_| {
        world::end(&world);
    })?;
    let name = requests::free_name(objects, KIND, &subject.namespace, &stem(subject, destination))?;
    let metadata =
        ObjectMeta { name: Some(name), namespace: Some(subject.namespace.clone()), ..ObjectMeta::default() };
    Ok(serde_json::to_value(VolumeMigration { metadata, spec, status: None })?)
}

/// A destination as the object has it.
pub fn destination(node: Option<&str>, class: Option<&str>) -> Destination {
    Destination { node: node.map(str::to_owned), storage_class: class.map(str::to_owned) }
}

/// Refuses a destination that is not there, as far as objects tell.
pub fn check_destination(fleet: &Fleet, destination: &Destination) -> Result<(), Failure> {
    if let Some(node) = &destination.node
        && !fleet.nodes.contains_key(&NodeName(node.clone()))
    {
        return Err(Failure::NotFound(format!("there is no Node {node}")));
    }
    if let Some(class) = &destination.storage_class {
        // A class of static volumes needs no StorageClass object: a storage root or a volume of it is enough.
        let known = fleet.classes.contains_key(class)
            || fleet.volumes.values().any(|volume| volume.class == *class)
            || fleet.reports.values().flat_map(|report| &report.roots).any(|root| root.class == *class);
        if !known {
            let classes: Vec<_> = fleet.classes.keys().map(String::as_str).collect();
            return Err(Failure::NotFound(format!(
                "there is no StorageClass {class} (there are: {})",
                classes.join(", ")
            )));
        }
    }
    Ok(())
}

fn check(world: &World, subject: &Key, spec: &VolumeMigrationSpec) -> Result<(), Failure> {
    let is_vm = spec.vm.is_some();
    if is_vm {
        find_vm(world, subject)?;
    } else {
        check_claim(world, subject)?;
    }
    check_destination(&world.fleet, &spec.destination)?;
    if let Some(key) = under_way(world, subject, is_vm) {
        return Err(Failure::Refused(format!(
            "VolumeMigration {key} already moves it; wait for its end, or: kubectl somersault cancel migration/{} -n {}",
            key.name, key.namespace
        )));
    }
    if let Some(told) = recoveries::broken_storage(world, subject).filter(|_| is_vm) {
        return Err(Failure::Refused(format!(
            "the storage of VM {subject} is broken ({}), and cannot be copied; {}",
            told.reasons.join(", "),
            told.remedy
        )));
    }
    match preflight(world, subject, spec) {
        Some(refusal) if refusal.transient => {
            output::note(&format!(
                "{}: {}. It begins as soon as that is over, and is refused where it is not within a minute",
                refusal.reason, refusal.message
            ));
            Ok(())
        }
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// The VM, where it is there.
pub fn find_vm<'a>(world: &'a World, key: &Key) -> Result<&'a Vm, Failure> {
    world.fleet.vms.get(key).ok_or_else(|| {
        Failure::NotFound(format!("there is no VirtualMachine {} in namespace {}", key.name, key.namespace))
    })
}

/// What the coordinator would say to it, from what it last told of the nodes.
fn preflight(world: &World, subject: &Key, spec: &VolumeMigrationSpec) -> Option<Refusal> {
    // One that cannot be read is for the API server to refuse.
    let spec = manifest::migration(spec).ok()?;
    let told = Told::of(world);
    migration::refusal(&Key::new(subject.namespace.clone(), "asked"), &spec, &told.context())
}

fn check_claim(world: &World, subject: &Key) -> Result<(), Failure> {
    if !world.fleet.claims.contains_key(subject) {
        return Err(Failure::NotFound(format!(
            "there is no PersistentVolumeClaim {} in namespace {}",
            subject.name, subject.namespace
        )));
    }
    match world.fleet.vms_with(subject).next() {
        Some((vm, _)) => Err(Failure::Refused(format!(
            "claim {} is a disk of VM {vm}, whose disks move together: kubectl somersault migrate {} -n {}",
            subject.name, vm.name, vm.namespace
        ))),
        None => Ok(()),
    }
}

/// The migration that moves this VM, or bare claim, now.
pub fn under_way<'a>(world: &'a World, subject: &Key, is_vm: bool) -> Option<&'a Key> {
    let busy = world.migrations.iter().find(|(key, migration)| {
        let named = if is_vm { &migration.spec.vm } else { &migration.spec.claim };
        let phase = migration.status.as_ref().map_or(Phase::Pending, |status| status.phase);
        key.namespace == subject.namespace && named.as_ref() == Some(&subject.name) && !has_ended(phase)
    });
    Some(busy?.0)
}

/// The migration that has this claim among its disks now.
pub fn of_claim<'a>(world: &'a World, claim: &Key) -> Option<&'a Key> {
    let busy = world.migrations.iter().find(|(key, migration)| {
        let Some(status) = &migration.status else { return false };
        let mut disks = status.disks.iter();
        key.namespace == claim.namespace
            && !has_ended(status.phase)
            && disks.any(|disk| disk.claim.name == claim.name)
    });
    Some(busy?.0)
}

/// Nothing more happens in this phase.
pub fn has_ended(phase: Phase) -> bool {
    matches!(phase, Phase::Succeeded | Phase::Failed | Phase::RolledBack | Phase::Cancelled)
}

/// Identity of a migration.
pub fn id(key: &Key) -> ObjectId {
    ObjectId::namespaced(KIND, key)
}

fn stem(subject: &Key, destination: &Destination) -> String {
    let whereto = destination.node.as_deref().or(destination.storage_class.as_deref()).unwrap_or("elsewhere");
    format!("{}-to-{whereto}", subject.name)
}
