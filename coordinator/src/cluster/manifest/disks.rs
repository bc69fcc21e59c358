//! The volumes of a VM: those of its template, those hotplugged into its instance, and those that KubeVirt keeps
//! for its state.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use somersault_coordinator_core::fleet::{self, ClaimUse, Disk, DiskSource, Fixed, Fleet};
use somersault_coordinator_core::names::Key;

use super::convert::FieldError;
use super::inventory::Inventory;
use super::kubevirt::{
    DataVolume, DataVolumeSpec, InstanceSpec, VirtualMachine, VirtualMachineInstance, VolumeSnapshot, Wukong,
};

/// Label and name prefix of claims with a VM's TPM and EFI state.
const STATE_LABEL: &str = "persistent-state-for";
/// Letters that Kubernetes appends to a generated name.
const GENERATED_SUFFIX_CHARS: usize = 5;

/// Volume sources that are made anew at every start (KubeVirt API, `VolumeSource`).
const REBUILDABLE: [&str; 9] = [
    "cloudInitConfigDrive",
    "cloudInitNoCloud",
    "configMap",
    "containerDisk",
    "downwardAPI",
    "downwardMetrics",
    "secret",
    "serviceAccount",
    "sysprep",
];

/// Every volume of the VM.
pub(super) fn of_vm(
    inventory: &Inventory,
    key: &Key,
    vm: &VirtualMachine,
    instance: Option<&VirtualMachineInstance>,
    wukong: Option<&Wukong>,
    states: &States,
) -> Result<Vec<Disk>, FieldError> {
    let spec = &vm.spec.template.spec;
    let mut found: Vec<(String, DiskSource)> = Vec::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        found.push(template_volume(volume, &format!("spec.template.spec.volumes[{index}]"))?);
    }
    add_hotplugged(instance, &mut found);
    share_folders(spec, &mut found);
    states.add(key, &mut found);
    let boot = boot_volume(spec, wukong, &found);
    let disks = found.into_iter().map(|(name, source)| {
        let boot = boot.as_deref() == Some(name.as_str());
        let image = match &source {
            DiskSource::Claim { name, use_: ClaimUse::Disk } if boot => {
                image_of(inventory, key, vm, wukong, name)
            }
            _ => None,
        };
        Disk { name, source, boot, image }
    });
    Ok(disks.collect())
}

/// Claims whose disks must stay as they are.
pub(super) fn fixed(spec: &InstanceSpec) -> BTreeMap<String, Fixed> {
    let devices = spec.domain.devices.as_ref().and_then(|devices| devices.disks.as_deref());
    let is_shareable = |name: &str| {
        let mut devices = devices.unwrap_or_default().iter();
        devices.any(|device| device.name == name && device.shareable == Some(true))
    };
    let of = |volume: &Map<String, Value>| {
        let (name, DiskSource::Claim { name: claim, .. }) = template_volume(volume, "").ok()? else {
            return None;
        };
        let is_read_only = volume.get("persistentVolumeClaim").is_some_and(|of| of["readOnly"] == true);
        let why = is_shareable(&name).then_some(Fixed::Shareable);
        why.or(is_read_only.then_some(Fixed::ReadOnly)).map(|why| (claim, why))
    };
    spec.volumes.iter().flatten().filter_map(of).collect()
}

/// A volume of a template: its name, and the one other field that says what it is.
fn template_volume(volume: &Map<String, Value>, at: &str) -> Result<(String, DiskSource), FieldError> {
    let name = volume.get("name").and_then(Value::as_str);
    let name = name.ok_or_else(|| FieldError::new(format!("{at}.name"), "must be a string"))?;
    let sources: Vec<_> =
        volume.iter().filter(|(field, value)| *field != "name" && !value.is_null()).collect();
    let (field, value) = match sources.as_slice() {
        [one] => *one,
        [] => return Ok((name.to_owned(), DiskSource::Unknown { field: String::new() })),
        _ => return Err(FieldError::new(at, "has more than one source")),
    };
    Ok((name.to_owned(), source(field, value, &format!("{at}.{field}"))?))
}

fn source(field: &str, value: &Value, at: &str) -> Result<DiskSource, FieldError> {
    let text = |path: &[&str]| {
        let found = path.iter().fold(value, |value, part| &value[part]);
        let missing = || FieldError::new(format!("{at}.{}", path.join(".")), "missing");
        found.as_str().filter(|text| !text.is_empty()).map(str::to_owned).ok_or_else(missing)
    };
    let hotplugged = value["hotpluggable"].as_bool().unwrap_or(false);
    let disk = if hotplugged { ClaimUse::Hotplugged } else { ClaimUse::Disk };
    let claim = |name: String, use_: ClaimUse| DiskSource::Claim { name, use_ };
    Ok(match field {
        "persistentVolumeClaim" => claim(text(&["claimName"])?, disk),
        // A DataVolume's claim has its name.
        "dataVolume" => claim(text(&["name"])?, disk),
        "ephemeral" => claim(text(&["persistentVolumeClaim", "claimName"])?, ClaimUse::EphemeralBacking),
        "memoryDump" => claim(text(&["claimName"])?, ClaimUse::MemoryDump),
        "hostDisk" => DiskSource::HostDisk { path: text(&["path"])? },
        "emptyDisk" => DiskSource::Empty,
        known if REBUILDABLE.contains(&known) => DiskSource::Rebuildable { field: known.to_owned() },
        other => DiskSource::Unknown { field: other.to_owned() },
    })
}

/// Claims that the guest shares as folders hold no disk image.
fn share_folders(spec: &InstanceSpec, found: &mut [(String, DiskSource)]) {
    let devices = spec.domain.devices.as_ref();
    let shared = devices.and_then(|devices| devices.filesystems.as_deref()).unwrap_or_default();
    for (name, source) in found {
        if let DiskSource::Claim { use_: use_ @ ClaimUse::Disk, .. } = source
            && shared.iter().any(|folder| folder.name == *name)
        {
            *use_ = ClaimUse::Folder;
        }
    }
}

/// Names of the claims that an instance runs with: those of its volumes, without what is still being attached.
pub(super) fn of_instance(instance: &VirtualMachineInstance) -> BTreeSet<String> {
    let status = instance.status.as_ref().and_then(|status| status.volume_status.as_deref());
    let attaching = |name: &str| {
        let volumes = status.unwrap_or_default().iter();
        let mut of_it = volumes.filter(|volume| volume.name == name && volume.hotplug_volume.is_some());
        of_it.any(|volume| volume.phase.as_deref() != Some("Ready"))
    };
    let volumes = instance.spec.volumes.iter().flatten();
    let sources = volumes.filter_map(|volume| template_volume(volume, "spec.volumes").ok());
    let claims = sources.filter_map(|(name, source)| match source {
        DiskSource::Claim { name: claim, .. } if !attaching(&name) => Some(claim),
        _ => None,
    });
    claims.collect()
}

/// Volumes that only the running instance has.
fn add_hotplugged(instance: Option<&VirtualMachineInstance>, found: &mut Vec<(String, DiskSource)>) {
    let Some(instance) = instance else { return };
    let mut known: BTreeSet<String> = found.iter().map(|(name, _)| name.clone()).collect();
    for volume in instance.spec.volumes.iter().flatten() {
        // The instance is KubeVirt's own: what cannot be read there is kept as unknown, not refused.
        let Some(name) = volume.get("name").and_then(Value::as_str) else { continue };
        if known.insert(name.to_owned()) {
            let source = template_volume(volume, "spec.volumes").map(|(_, source)| source);
            let source = source.unwrap_or(DiskSource::Unknown { field: String::new() });
            found.push((name.to_owned(), as_hotplugged(source)));
        }
    }
    let status = instance.status.as_ref().and_then(|status| status.volume_status.as_deref());
    for volume in status.unwrap_or_default().iter().filter(|volume| !known.contains(&volume.name)) {
        let claim = volume.persistent_volume_claim_info.as_ref().and_then(|info| info.claim_name.clone());
        let use_ = match volume.memory_dump_volume {
            Some(_) => ClaimUse::MemoryDump,
            None => ClaimUse::Hotplugged,
        };
        match claim {
            Some(name) => found.push((volume.name.clone(), DiskSource::Claim { name, use_ })),
            None if volume.hotplug_volume.is_some() => {
                found.push((volume.name.clone(), DiskSource::Unknown { field: "hotplugVolume".to_owned() }));
            }
            // Nothing that holds data: every other volume with a claim says which.
            None => {}
        }
    }
}

fn as_hotplugged(source: DiskSource) -> DiskSource {
    match source {
        DiskSource::Claim { name, use_: ClaimUse::Disk } => {
            DiskSource::Claim { name, use_: ClaimUse::Hotplugged }
        }
        other => other,
    }
}

/// Claims with VMs' TPM and EFI state, which no template names. Found once for all VMs: most claims are none, and a
/// large cluster has as many claims as VMs.
pub(super) struct States {
    /// By namespace.
    claims: BTreeMap<String, Vec<State>>,
}

struct State {
    claim: String,
    /// Whose it is, where a label says so; else its name does.
    vm: Option<String>,
}

impl States {
    /// Of this fleet's claims.
    pub(super) fn of(fleet: &Fleet) -> Self {
        let mut claims: BTreeMap<String, Vec<State>> = BTreeMap::new();
        for (at, claim) in &fleet.claims {
            let vm = claim.labels.get(STATE_LABEL).cloned();
            if vm.is_some() || at.name.starts_with(STATE_LABEL) {
                claims.entry(at.namespace.clone()).or_default().push(State { claim: at.name.clone(), vm });
            }
        }
        Self { claims }
    }

    fn add(&self, key: &Key, found: &mut Vec<(String, DiskSource)>) {
        let Some(states) = self.claims.get(&key.namespace) else { return };
        let own = states.iter().filter(|state| match &state.vm {
            Some(vm) => *vm == key.name,
            None => has_state_name(&state.claim, &key.name),
        });
        let listed: BTreeSet<String> = found
            .iter()
            .filter_map(|(_, source)| match source {
                DiskSource::Claim { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        for State { claim, .. } in own.filter(|state| !listed.contains(&state.claim)) {
            let source = DiskSource::Claim { name: claim.clone(), use_: ClaimUse::State };
            found.push((claim.clone(), source));
        }
    }
}

/// `persistent-state-for-<vm>`, as older KubeVirt names it, or with a generated ending.
fn has_state_name(claim: &str, vm: &str) -> bool {
    let rest = claim.strip_prefix(STATE_LABEL).and_then(|rest| rest.strip_prefix('-'));
    let Some(rest) = rest.and_then(|rest| rest.strip_prefix(vm)) else { return false };
    let generated = |end: &str| {
        end.len() == GENERATED_SUFFIX_CHARS
            && end.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    rest.is_empty() || rest.strip_prefix('-').is_some_and(generated)
}

/// The volume that the VM boots from: what its Wukong says, else the smallest boot order, else the first disk.
fn boot_volume(
    spec: &InstanceSpec,
    wukong: Option<&Wukong>,
    found: &[(String, DiskSource)],
) -> Option<String> {
    let of_wukong = wukong.and_then(|wukong| {
        let boot = wukong.spec.disks.iter().flatten().find(|disk| disk.boot)?;
        let claim = wukong_claim(wukong, &boot.name);
        let is_it = |source: &DiskSource| matches!(source, DiskSource::Claim { name, .. } if *name == claim);
        found.iter().find(|(_, source)| is_it(source)).map(|(name, _)| name.clone())
    });
    let devices = spec.domain.devices.as_ref().and_then(|d| d.disks.as_deref()).unwrap_or_default();
    let ordered = devices.iter().filter(|disk| disk.boot_order.is_some()).min_by_key(|disk| disk.boot_order);
    of_wukong.or_else(|| ordered.or(devices.first()).map(|disk| disk.name.clone()))
}

/// The claim of a Wukong's disk.
fn wukong_claim(wukong: &Wukong, disk: &str) -> String {
    format!("{}-{disk}", wukong.metadata.name.as_deref().unwrap_or_default())
}

/// Where a system disk's content can be had again: what its Wukong, its template or its `DataVolume` says.
fn image_of(
    inventory: &Inventory,
    key: &Key,
    vm: &VirtualMachine,
    wukong: Option<&Wukong>,
    claim: &str,
) -> Option<String> {
    let of_wukong = wukong.and_then(|wukong| {
        let mut disks = wukong.spec.disks.iter().flatten();
        disks.find(|disk| wukong_claim(wukong, &disk.name) == claim)?.image.clone()
    });
    let templates = vm.spec.data_volume_templates.as_deref().unwrap_or_default();
    let template = templates.iter().find(|t| t.metadata.name.as_deref() == Some(claim));
    let data_volume = inventory.data_volumes.get(&Key::new(key.namespace.clone(), claim));
    let data_volume = data_volume.map(|placed| &placed.object).or(template);
    of_wukong
        .filter(|image| !image.is_empty())
        .or_else(|| data_volume.and_then(|found: &DataVolume| imported_from(&found.spec, &key.namespace)))
}

/// Sources that hold an image, which a second import finds as the first one did (CDI API, `DataVolumeSource`).
const IMAGE_SOURCES: [&str; 4] = ["http", "registry", "s3", "gcs"];
/// Annotation of CDI: the claim of this `DataVolume` is never filled again.
const PRE_POPULATED: &str = "cdi.kubevirt.io/storage.prePopulated";

/// A `VolumeSnapshot`.
pub(super) fn snapshot(object: &VolumeSnapshot) -> fleet::Snapshot {
    let status = object.status.clone().unwrap_or_default();
    let source = object.spec.source.persistent_volume_claim_name.clone();
    fleet::Snapshot {
        claim: source.filter(|claim| !claim.is_empty()),
        ready: status.ready_to_use.unwrap_or(false),
        taken: status.creation_time.map(|time| time.0.to_string()),
    }
}

/// A `DataVolume`.
pub(super) fn data_volume(object: &DataVolume) -> fleet::DataVolume {
    let source = object.spec.source.as_ref().filter(|_| object.spec.source_ref.is_none());
    let image = source.and_then(|source| IMAGE_SOURCES.into_iter().find_map(|field| url(source, field)));
    let annotations = object.metadata.annotations.as_ref();
    fleet::DataVolume {
        phase: object.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
        pre_populated: annotations.is_some_and(|annotations| annotations.contains_key(PRE_POPULATED)),
        image,
    }
}

fn url(source: &BTreeMap<String, Value>, field: &str) -> Option<String> {
    source.get(field)?.get("url")?.as_str().map(str::to_owned)
}

/// The image that a `DataVolume` imports; `None` for blank, uploaded and cloned ones, whose content exists
/// nowhere else for sure.
fn imported_from(spec: &DataVolumeSpec, namespace: &str) -> Option<String> {
    if let Some(reference) = &spec.source_ref {
        let namespace = reference.namespace.as_deref().unwrap_or(namespace);
        return Some(format!("{} {namespace}/{}", reference.kind, reference.name));
    }
    let source = spec.source.as_ref()?;
    IMAGE_SOURCES.into_iter().chain(["imageio", "vddk"]).find_map(|field| url(source, field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shared_and_read_only_claims_are_told_apart_from_those_that_may_move() {
        let spec: InstanceSpec = serde_json::from_value(json!({
            "domain": { "devices": { "disks": [
                { "name": "root", "disk": {} },
                { "name": "quorum", "disk": {}, "shareable": true },
                { "name": "other", "disk": {}, "shareable": false },
            ] } },
            "volumes": [
                { "name": "root", "persistentVolumeClaim": { "claimName": "web-root" } },
                { "name": "quorum", "persistentVolumeClaim": { "claimName": "web-quorum", "readOnly": true } },
                { "name": "other", "dataVolume": { "name": "web-other" } },
                { "name": "iso", "persistentVolumeClaim": { "claimName": "web-iso", "readOnly": true } },
                { "name": "seed", "cloudInitNoCloud": { "userData": "x" } },
            ],
        }))
        .expect("a spec");
        let expected = [("web-iso", Fixed::ReadOnly), ("web-quorum", Fixed::Shareable)];
        assert_eq!(fixed(&spec), expected.map(|(claim, why)| (claim.to_owned(), why)).into());
    }
}
