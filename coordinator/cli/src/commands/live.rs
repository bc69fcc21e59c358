//! `migrate --live`: asks `KubeVirt` to move a VM while it runs.
//!
//! ```text
//!   the VM runs, no disk of it is on its node, KubeVirt calls it migratable ─► VirtualMachineInstanceMigration ─► its end
//!      └── else: refused, with what can be done
//! ```

use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_coordinator_core::Action;
use somersault_coordinator_core::decision::Locality;
use somersault_coordinator_core::fleet::{LiveMigrationState, Vm};
use somersault_coordinator_core::locality;
use somersault_coordinator_core::names::{Key, NodeName};

use super::migrate::{check_destination, destination, find_vm};
use crate::args::{Global, MigrateArgs, Named};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::requests::{self, Written};
use crate::source::Source;
use crate::wait;
use crate::world::{self, World};

/// Kind of the object that is written.
const KIND: &str = "VirtualMachineInstanceMigration";

/// Runs the command.
pub fn run(global: &Global, args: &MigrateArgs, vm: &Named) -> Result<Exit, Failure> {
    let namespace = vm.namespace(global)?;
    let source = Source::open(global)?;
    let vm = Key::new(source.namespace(namespace), vm.name.as_str());
    let node = args.to_node.as_deref().map(NodeName::from);
    let objects = source.objects()?;
    let world = World::of(&objects, None)?;
    check(&world, &vm, node.as_ref()).inspect_err(|_| {
        world::end(&world);
    })?;
    let name = requests::free_name(&objects, KIND, &vm.namespace, &format!("{}-live", vm.name))?;
    let key = Key::new(vm.namespace.clone(), name);
    source.live_migrate(&Action::LiveMigrate { key: key.clone(), vm: vm.name.clone(), node })?;
    if args.wait.wait {
        return wait::live_migration(global, &source, &id(&key), args.wait.timeout);
    }
    let written = Written { kind: KIND, namespace: Some(key.namespace.clone()), name: key.name.clone() };
    output::print(global.output, &written, || {
        format!(
            "KubeVirt is asked to move VM {vm} while it runs.\nSee how it goes: kubectl get vmim {name} -n {ns} --watch\nEnd \
             it: kubectl delete vmim {name} -n {ns}",
            name = key.name,
            ns = key.namespace
        )
    })?;
    Ok(Exit::Ok)
}

fn id(key: &Key) -> ObjectId {
    ObjectId::namespaced(KIND, key)
}

/// Refuses what `KubeVirt` would refuse or could not do, with what to do instead.
fn check(world: &World, key: &Key, node: Option<&NodeName>) -> Result<(), Failure> {
    let vm = find_vm(world, key)?;
    check_destination(&world.fleet, &destination(node.map(NodeName::as_str), None))?;
    let refuse = |why: String| Err(Failure::Refused(why));
    let Some(instance) = vm.instance.as_ref().filter(|instance| instance.phase == "Running") else {
        return refuse(format!("VM {key} does not run: only one that runs can be moved live"));
    };
    if let Some((disk, at)) = local_disk(world, key, vm) {
        let whereto = node.map_or_else(|| "NODE".to_owned(), ToString::to_string);
        return refuse(format!(
            "disk {disk} of VM {key} is on node {at} and would stay behind; this moves both: kubectl somersault migrate {} -n {} \
             --to-node {whereto}",
            key.name, key.namespace
        ));
    }
    if node.is_some() && node == instance.node.as_ref() {
        return refuse(format!("VM {key} runs there already"));
    }
    let open = world.fleet.live_migrations.iter().find(|(at, migration)| {
        at.namespace == key.namespace
            && migration.vm == key.name
            && migration.state == LiveMigrationState::UnderWay
    });
    if let Some((open, _)) = open {
        return refuse(format!(
            "VirtualMachineInstanceMigration {open} already moves it: wait for its end, or kubectl delete vmim {} -n {}",
            open.name, open.namespace
        ));
    }
    match &instance.not_migratable {
        Some(why) => refuse(format!(
            "KubeVirt cannot move VM {key} while it runs ({why}): stop it and start it where it should run"
        )),
        None => Ok(()),
    }
}

/// The first disk that is on one node, with that.
fn local_disk<'a>(world: &World, key: &Key, vm: &'a Vm) -> Option<(&'a str, NodeName)> {
    vm.disks.iter().find_map(|disk| {
        let at = locality::locate(&world.fleet, &world.policy.class_overrides, &key.namespace, disk).0;
        match at {
            Locality::Local { node } => Some((disk.name.as_str(), node)),
            _ => None,
        }
    })
}
