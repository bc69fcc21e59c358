//! One line for people: what would help against a reason.

use crate::decision::{Decision, DiskFinding, Locality, Reason};
use crate::runbook::shell_word;

/// Where nothing needs to be done.
pub(crate) const NONE: &str = "none needed";

impl Decision {
    /// What would help against one of its reasons, in a line.
    pub fn remedy_for(&self, reason: Reason) -> String {
        let vm = shell_word(&self.vm.name);
        let namespace = shell_word(&self.vm.namespace);
        match reason {
            Reason::VmNotFound => "check the name and the namespace".to_owned(),
            Reason::Stopped if self.local_nodes().next().is_some() => to_network(&namespace, &vm),
            Reason::Stopped
            | Reason::RunsElsewhere
            | Reason::NotRunning
            | Reason::StorageSound
            | Reason::AllDisksOnNetwork
            | Reason::NoDataDisks => NONE.to_owned(),
            Reason::SystemDiskRebuildable => {
                format!("to keep what is written to the system disk: {}", to_network(&namespace, &vm))
            }
            Reason::ClaimLost | Reason::VolumeMissing | Reason::VolumeBoundElsewhere => {
                "bring the data back: see the sources that the runbook names".to_owned()
            }
            Reason::DiskImageMissing | Reason::VolumePathMissing if !self.nodes.is_empty() => {
                "do not stop or restart it: its deleted disk.img may still be open, and can be copied; see the runbook"
                    .to_owned()
            }
            Reason::DiskImageMissing | Reason::VolumePathMissing => {
                "do not start it, or it boots a blank disk: bring the data back first; see the sources that the runbook \
                 names"
                    .to_owned()
            }
            Reason::ClaimLocked => "wait for the end of the migration; where it has ended or is gone, bind the claim to the \
                                    volume with its data: see the sources that the runbook names"
                .to_owned(),
            Reason::ClaimMissing => format!(
                "bring back {} with its data: see the sources that the runbook names; one that is just made anew is blank",
                claims(self)
            ),
            Reason::DiskFailed => {
                "do not trust what the disk reads: restore from a copy or a backup".to_owned()
            }
            Reason::DiskNodeGone => {
                "bring the node back under its name, or restore the data elsewhere".to_owned()
            }
            Reason::LocalDisk | Reason::LocalHotplug | Reason::LocalState | Reason::LocalBacking => {
                to_network(&namespace, &vm)
            }
            Reason::HostDisk => {
                "move the hostDisk's data into a claim; until then tie the VM to its node: see the runbook".to_owned()
            }
            Reason::LocalityUnknown => place(self),
            Reason::ClaimNotBound => "see why the claim does not bind: kubectl describe pvc".to_owned(),
            Reason::DataVolumeImporting => "wait for the import to end".to_owned(),
            Reason::ClaimSharedWithVm => "give each VM a claim of its own".to_owned(),
            Reason::ClaimUsedByPod => "end the pod that uses the claim too".to_owned(),
            Reason::LiveMigrationInFlight => "wait for the live migration to end, or delete it".to_owned(),
            Reason::LauncherElsewhere => {
                "see which of its launchers is alive: kubectl get pods -o wide".to_owned()
            }
            // By the instance's uid: the label with a VM's name has the guest's host name in it, which may be another VM's.
            Reason::InstancePaused => format!(
                "unpause it, or stop it, once it is known why it was paused; on a node that is proven dead, and only then: stop it (virtctl stop {vm} -n {namespace}), \
                 kubectl delete pod -n {namespace} -l kubevirt.io/created-by=$(kubectl get vmi {vm} -n {namespace} -o \
                 jsonpath='{{.metadata.uid}}') --force --grace-period=0, and virtctl start {vm} -n {namespace}"
            ),
            Reason::InstanceNeverRan => {
                "see why its first start does not succeed: kubectl describe vmi".to_owned()
            }
            Reason::RunStrategyManual | Reason::RunStrategyOnce => format!(
                "set runStrategy Always or RerunOnFailure, if it should be restarted, and back afterwards; of a VM that nobody owns: kubectl patch vm {vm} \
                 -n {namespace} --type=merge -p '{{\"spec\":{{\"runStrategy\":\"Always\"}}}}'"
            ),
            Reason::RebuildNotAllowed => {
                "allow the rebuild of its system disk, or move it to network storage".to_owned()
            }
            Reason::DataVolumeMissing | Reason::ImageNotImportable => {
                "make its system disk by a DataVolume from an image (http, registry, s3 or gcs), or move it to \
                 network storage"
                    .to_owned()
            }
            Reason::DataVolumePrePopulated => {
                format!("it was moved, so it holds more than its image: {}", to_network(&namespace, &vm))
            }
            Reason::ClassNotPortable => {
                "use a storage class with volumeBindingMode WaitForFirstConsumer and a provisioner".to_owned()
            }
            Reason::OwnerUnknown => {
                "let the VM be owned by nobody, or by a controller that is known".to_owned()
            }
            Reason::ToleratesFencing => {
                "narrow the VM's tolerations to the taints that it means (operator Exists without a key is every taint); of a node that \
                 is dead for good, delete the Node object"
                    .to_owned()
            }
            Reason::NoFittingNode => {
                "make room: a healthy node that its volumes, selectors and requests admit".to_owned()
            }
        }
    }
}

fn to_network(namespace: &str, vm: &str) -> String {
    format!(
        "move its local disks to network storage: kubectl somersault migrate {vm} -n {namespace} --to-class CLASS"
    )
}

/// How to tell where a disk is that nobody can place.
fn place(decision: &Decision) -> String {
    match (untied(decision), unknown_class(decision), declared_local(decision)) {
        (Some(volume), class, _) => {
            let shared = class.map_or_else(String::new, |class| {
                format!(
                    "; where every node sees its folder: say in the policy that storage class {class} is Network \
                     (storageClasses)"
                )
            });
            format!(
                "tie volume {volume} to the one node that holds its folder, by a node affinity: see the runbook{shared}"
            )
        }
        (None, Some(class), _) => {
            format!("say in the policy whether storage class {class} is Local or Network (storageClasses)")
        }
        (None, None, Some(volume)) => format!(
            "say by a node affinity which node volume {volume} is on: that its class is Local does not tell"
        ),
        (None, None, None) => "put its data on a claim whose place can be told".to_owned(),
    }
}

/// The class to declare: of the first disk, by name, that nobody can place though it is bound.
fn unknown_class(decision: &Decision) -> Option<&str> {
    unplaced(decision).filter(|disk| !disk.declared).filter_map(|disk| disk.class.as_deref()).min()
}

/// The first volume, by name, of a class that was declared: what is still missing is the node.
fn declared_local(decision: &Decision) -> Option<&str> {
    unplaced(decision).filter(|disk| disk.declared).filter_map(|disk| disk.volume.as_deref()).min()
}

/// Disks that are bound, and that nobody can place.
fn unplaced(decision: &Decision) -> impl Iterator<Item = &DiskFinding> {
    decision.disks.iter().filter(|disk| disk.locality == Locality::Unknown && disk.volume.is_some())
}

/// The first volume, by name, that a node affinity would place.
fn untied(decision: &Decision) -> Option<&str> {
    decision.disks.iter().filter(|disk| disk.untied).filter_map(|disk| disk.volume.as_deref()).min()
}

fn claims(decision: &Decision) -> String {
    let mut names: Vec<&str> = decision
        .disks
        .iter()
        .filter(|disk| disk.locality == Locality::Unknown && disk.volume.is_none())
        .filter_map(|disk| disk.claim.as_deref())
        .collect();
    names.sort_unstable();
    names.dedup();
    format!("claim {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use crate::decision::testkit::{World, host_path, key};
    use crate::decision::{Reason, decide};
    use crate::fleet::VolumeSource;
    use crate::locality::ClassOverride;

    fn remedy(source: VolumeSource, said: Option<ClassOverride>) -> String {
        let mut world = World::bare();
        world.fleet.vms.insert(key("web"), crate::decision::testkit::running_vm("web", "n1"));
        world.add_disk("web", "x", source, None);
        "own".clone_into(&mut world.volume("pv-web-x").class);
        world.overrides.0.extend(said.map(|said| ("own".to_owned(), said)));
        decide(&world.fleet, &world.overrides, &key("web"), &world.question).remedy
    }

    #[test]
    fn where_a_class_is_is_asked_once() {
        let unknown = || VolumeSource::Csi { driver: "own.example".to_owned(), handle: String::new() };
        assert!(remedy(unknown(), None).contains("whether storage class own is Local or Network"));
        assert!(remedy(host_path(), None).contains("storage class own is Network"));
        for source in [unknown(), host_path()] {
            let told = remedy(source, Some(ClassOverride::Local));
            assert!(told.contains("node affinity") && told.contains("pv-web-x"), "{told}");
            assert!(!told.contains("in the policy"), "it was said already: {told}");
        }
    }

    /// A claim or a folder made anew is blank; and what a running guest has open is gone when it stops.
    #[test]
    fn nobody_is_told_to_begin_with_a_blank_disk() {
        let mut world = World::bare();
        world.fleet.vms.insert(key("web"), crate::decision::testkit::running_vm("web", "n1"));
        world.add_disk("web", "x", host_path(), None);
        let decision = decide(&world.fleet, &world.overrides, &key("web"), &world.question);
        let open = decision.remedy_for(Reason::VolumePathMissing);
        assert!(open.starts_with("do not stop or restart it"), "{open}");
        world.fleet.claims.clear();
        let told = decide(&world.fleet, &world.overrides, &key("web"), &world.question).remedy;
        assert!(told.contains("bring back claim web-x with its data") && told.contains("blank"), "{told}");
    }
}
