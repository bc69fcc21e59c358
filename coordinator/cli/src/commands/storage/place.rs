//! Where each claim's volume is, and each volume's that no claim has: on which node or on none, and what agents saw of its
//! folder there.

use std::collections::BTreeSet;

use somersault_coordinator_core::decision::Locality;
use somersault_coordinator_core::fleet::{
    ClaimUse, Disk, DiskSource, Grade, NodeReport, StorageRoot, Usage, Volume,
};
use somersault_coordinator_core::locality::locate;
use somersault_coordinator_core::names::{Key, NodeName, VolumeName};

use crate::commands::incident;
use crate::world::World;

/// A claim with its volume, or a volume without a claim.
pub struct Place<'a> {
    /// The claim.
    pub claim: Option<&'a Key>,
    /// The volume, as the claim names it; its object may be gone.
    pub volume: Option<&'a VolumeName>,
    /// Phase of the claim, else of the volume.
    pub phase: String,
    /// Storage class of the claim, else of the volume.
    pub class: &'a str,
    /// Where it is.
    pub locality: Locality,
    /// How that is known.
    pub because: String,
    /// What the claim asks, else the volume's capacity.
    pub requested_bytes: u64,
    /// What an agent saw of it, where one looks there.
    pub seen: Option<Seen<'a>>,
}

/// What an agent saw of a volume.
pub struct Seen<'a> {
    /// Whose agent; of a shared root one that beats, where one sees it.
    pub node: &'a NodeName,
    /// Absolute path there.
    pub path: &'a str,
    /// The storage root that it is below.
    pub root: Option<&'a StorageRoot>,
    /// Its size; absent where it is in no listing.
    pub usage: Option<Usage>,
    /// Grade of the physical disk below.
    pub grade: Option<Grade>,
}

impl Place<'_> {
    /// The VMs that have it among their disks.
    pub fn vms(&self, world: &World) -> Vec<String> {
        let vms = self.claim.into_iter().flat_map(|claim| world.fleet.vms_with(claim));
        vms.map(|(vm, _)| vm.to_string()).collect()
    }
}

/// Every claim, and every volume that no claim has; of one namespace where one is given.
pub fn all<'a>(world: &'a World, namespace: Option<&str>) -> Vec<Place<'a>> {
    let shared = Shared::of(world);
    let claims =
        world.fleet.claims.iter().filter(|(key, _)| namespace.is_none_or(|want| key.namespace == want));
    let mut places: Vec<Place<'a>> = claims
        .map(|(key, claim)| {
            let (locality, because) = locality_of(world, key);
            let volume = claim.volume.as_ref().and_then(|name| world.fleet.volumes.get_key_value(name));
            Place {
                claim: Some(key),
                volume: claim.volume.as_ref(),
                phase: phase(&claim.phase),
                class: &claim.class,
                requested_bytes: claim.requested_bytes,
                seen: volume.and_then(|(name, volume)| look(world, &shared, &locality, name, volume)),
                locality,
                because,
            }
        })
        .collect();
    let claimed: BTreeSet<&VolumeName> =
        world.fleet.claims.values().filter_map(|claim| claim.volume.as_ref()).collect();
    let free = world.fleet.volumes.iter().filter(|(name, volume)| {
        let home = volume.claim.as_ref().map(|claim| claim.key.namespace.as_str());
        !claimed.contains(name) && namespace.is_none_or(|want| home == Some(want))
    });
    places.extend(free.map(|(name, volume)| unclaimed(world, &shared, name, volume)));
    places
}

/// A volume that no claim has: kept after a move, released, or waiting.
fn unclaimed<'a>(
    world: &'a World,
    shared: &Shared<'a>,
    name: &'a VolumeName,
    volume: &'a Volume,
) -> Place<'a> {
    let home = single_node(world, volume);
    let locality = home.map_or(Locality::Unknown, |node| Locality::Local { node });
    Place {
        claim: None,
        volume: Some(name),
        phase: phase(&volume.phase),
        class: &volume.class,
        because: "no claim has it; its node affinity".to_owned(),
        requested_bytes: volume.capacity_bytes,
        seen: look(world, shared, &locality, name, volume),
        locality,
    }
}

fn phase(phase: &str) -> String {
    if phase.is_empty() { "Pending".to_owned() } else { phase.to_owned() }
}

/// The one node that the volume's affinity admits, where it is one.
fn single_node(world: &World, volume: &Volume) -> Option<NodeName> {
    let affinity = volume.node_affinity.as_ref()?;
    let mut fitting = world.fleet.nodes.iter().filter(|(name, node)| affinity.matches(name, node));
    match (fitting.next(), fitting.next()) {
        (Some((name, _)), None) => Some(name.clone()),
        _ => None,
    }
}

fn locality_of(world: &World, key: &Key) -> (Locality, String) {
    let source = DiskSource::Claim { name: key.name.clone(), use_: ClaimUse::Disk };
    let disk = Disk { name: key.name.clone(), source, boot: false, image: None };
    locate(&world.fleet, &world.policy.class_overrides, &key.namespace, &disk)
}

fn look<'a>(
    world: &'a World,
    shared: &Shared<'a>,
    locality: &Locality,
    name: &VolumeName,
    volume: &'a Volume,
) -> Option<Seen<'a>> {
    let here = match locality {
        Locality::Local { node } => world.fleet.reports.get_key_value(node),
        _ => None,
    };
    let (node, report, path) = match (here, volume.source.path()) {
        (Some((node, report)), Some(path)) => (node, report, path),
        (None, Some(path)) => shared.find(|_, seen| seen == path)?,
        // A network volume has no path of its own; below a shared root its folder has the volume's name.
        (_, None) => shared.find(|root, seen| {
            root.class == volume.class && seen.rsplit('/').next() == Some(name.as_str())
        })?,
    };
    let root = report.root_of(path);
    let disk = root.and_then(|root| root.disk.as_ref()).and_then(|disk| report.disks.get(disk));
    Some(Seen {
        node,
        path,
        root,
        usage: report.usage.get(path).copied(),
        grade: disk.map(|disk| disk.grade),
    })
}

/// Folders below shared roots, which every agent there sees; few, and looked through for each network volume.
struct Shared<'a>(Vec<(&'a NodeName, &'a NodeReport, &'a StorageRoot, &'a str)>);

impl<'a> Shared<'a> {
    fn of(world: &'a World) -> Self {
        let of_report = |(node, report): (&'a NodeName, &'a NodeReport)| {
            let below = move |path: &'a String| Some((node, report, report.root_of(path)?, path.as_str()));
            report.usage.keys().filter_map(below).filter(|(_, _, root, _)| root.shared)
        };
        let mut reports: Vec<_> = world.fleet.reports.iter().collect();
        // What a living agent sees is newer.
        reports.sort_by_key(|(node, _)| !incident::is_healthy(world, node));
        Self(reports.into_iter().flat_map(of_report).collect())
    }

    /// The first agent that sees such a folder.
    fn find(
        &self,
        fits: impl Fn(&StorageRoot, &str) -> bool,
    ) -> Option<(&'a NodeName, &'a NodeReport, &'a str)> {
        let (node, report, _, path) = self.0.iter().find(|(.., root, path)| fits(root, path))?;
        Some((node, report, path))
    }
}
