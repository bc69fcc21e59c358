//! Names that KubeVirt, CDI and Wukong give to things, and the few that are the stand-in's own.

/// On VMs and VMIs, until the VM's controller has seen the VMI's end (api/core/v1/types.go).
pub const VM_FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// On VMIs, as long as a launcher pod is there.
pub const VMI_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Says what a pod is to KubeVirt: [`LAUNCHER`] or [`HOTPLUG`].
pub const PART_LABEL: &str = "kubevirt.io";
/// On launchers.
pub const LAUNCHER: &str = "virt-launcher";
/// On pods that mount a hotplugged claim for a launcher.
pub const HOTPLUG: &str = "hotplug-disk";
/// Uid of who made a pod or a `DataVolume`.
pub const CREATED_BY_LABEL: &str = "kubevirt.io/created-by";
/// The node of a VMI and of its pod.
pub const NODE_LABEL: &str = "kubevirt.io/nodeName";
/// On nodes that launchers may run on; virt-handler's heartbeat keeps it.
pub const SCHEDULABLE_LABEL: &str = "kubevirt.io/schedulable";
/// Uid of the migration that a target launcher is for.
pub const MIGRATION_LABEL: &str = "kubevirt.io/migrationJobUID";
/// Name of a launcher's VMI.
pub const DOMAIN_ANNOTATION: &str = "kubevirt.io/domain";
/// The generation of the VM that its VMI was made from.
pub const GENERATION_ANNOTATION: &str = "kubevirt.io/vm-generation";

/// On a claim: it holds what the `DataVolume` of this name would import.
pub const POPULATED_FOR: &str = "cdi.kubevirt.io/storage.populatedFor";
/// On a `DataVolume`: CDI's answer to the above, and the promise to import nothing any more.
pub const PRE_POPULATED: &str = "cdi.kubevirt.io/storage.prePopulated";
/// On a `DataVolume`: a claim of its name that it did not make may be taken.
pub const ALLOW_ADOPTION: &str = "cdi.kubevirt.io/allowClaimAdoption";
/// On a claim: uid of the `DataVolume` that made it.
pub const CREATED_FOR: &str = "cdi.kubevirt.io/createdForDataVolume";
/// On a claim: what to import.
pub const IMPORT_ENDPOINT: &str = "cdi.kubevirt.io/storage.import.endpoint";
/// On a claim: kind of what to import.
pub const IMPORT_SOURCE: &str = "cdi.kubevirt.io/storage.import.source";
/// On a claim: phase of its importer.
pub const IMPORT_PHASE: &str = "cdi.kubevirt.io/storage.pod.phase";

/// On Wukongs.
pub const WUKONG_FINALIZER: &str = "wukong.novasphere.dev/finalizer";

/// The stand-in's own: `true` on a VMI shows it as paused. (KubeVirt has a subresource for that.)
pub const PAUSE: &str = "kubevirt-standin/pause";
/// The stand-in's own: `true` on a `VirtualMachineInstanceMigration` keeps it Running for as long as it is there;
/// then the migration fails and the VM stays where it is.
pub const HOLD: &str = "kubevirt-standin/hold";
/// Image of launchers and importers: the toolbox that each node of the test cluster has.
pub const IMAGE: &str = "docker.io/somersault/toolbox:1";
