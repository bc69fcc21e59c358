//! Claims with their volumes, and volumes that no claim has: where they are, how full, how well.

use std::collections::BTreeSet;

use serde::Serialize;
use somersault_coordinator_core::decision::Locality;
use somersault_coordinator_core::fleet::{
    ClaimUse, Disk, DiskSource, Grade, NodeReport, StorageRoot, Usage, Volume,
};
use somersault_coordinator_core::locality::locate;
use somersault_coordinator_core::names::{Key, NodeName, VolumeName};

use crate::commands::verdict;
use crate::output::Mood;
use crate::world::World;

/// A claim with its volume, or a volume without a claim.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRow {
    pub namespace: Option<String>,
    pub claim: Option<String>,
    pub volume: Option<String>,
    /// Phase of the claim, else of the volume.
    pub phase: String,
    pub class: String,
    /// `Local`, `Network` or `Unknown`.
    pub locality: &'static str,
    /// The node, for `Local`.
    pub node: Option<String>,
    /// How the locality is known.
    pub because: String,
    /// Blocks really taken, as the agent last reported.
    pub used_bytes: Option<u64>,
    /// What the claim asks, else the volume's capacity.
    pub requested_bytes: u64,
    /// Grade of the physical disk below, as its agent last reported.
    pub health: String,
}

impl VolumeRow {
    /// Namespace and name of the claim; the phase where there is none, or where it is not bound.
    pub fn claim_words(&self) -> String {
        match (&self.namespace, &self.claim) {
            (Some(namespace), Some(claim)) if self.phase == "Bound" => format!("{namespace}/{claim}"),
            (Some(namespace), Some(claim)) => format!("{namespace}/{claim} ({})", self.phase),
            _ => format!("({})", self.phase),
        }
    }

    /// The locality with its node.
    pub fn place(&self) -> String {
        match &self.node {
            Some(node) => format!("{} {node}", self.locality),
            None => self.locality.to_owned(),
        }
    }

    pub fn health_mood(&self) -> Mood {
        match self.health.as_str() {
            "Ok" => Mood::Good,
            "Warning" => Mood::Doubtful,
            "Failing" | "Failed" | "read-only" => Mood::Bad,
            _ => Mood::Plain,
        }
    }
}

/// Every claim, and every volume that no claim has; of one namespace where one is given.
pub fn rows(world: &World, namespace: Option<&str>) -> Vec<VolumeRow> {
    let shared = Shared::of(world);
    let claims =
        world.fleet.claims.iter().filter(|(key, _)| namespace.is_none_or(|want| key.namespace == want));
    let mut rows: Vec<VolumeRow> = claims
        .map(|(key, claim)| {
            let (place, because) = place_of(world, key);
            let volume = claim.volume.as_ref().and_then(|name| Some((name, world.fleet.volumes.get(name)?)));
            let seen =
                volume.map(|(name, volume)| look(world, &shared, &place, name, volume)).unwrap_or_default();
            let (locality, node) = verdict::locality(&place);
            VolumeRow {
                namespace: Some(key.namespace.clone()),
                claim: Some(key.name.clone()),
                volume: claim.volume.as_ref().map(ToString::to_string),
                phase: phase(&claim.phase),
                class: claim.class.clone(),
                locality,
                node,
                because,
                used_bytes: seen.usage.map(|usage| usage.allocated_bytes),
                requested_bytes: claim.requested_bytes,
                health: seen.health,
            }
        })
        .collect();
    let claimed: BTreeSet<&VolumeName> =
        world.fleet.claims.values().filter_map(|claim| claim.volume.as_ref()).collect();
    let free = world.fleet.volumes.iter().filter(|(name, volume)| {
        let home = volume.claim.as_ref().map(|claim| claim.key.namespace.as_str());
        !claimed.contains(name) && namespace.is_none_or(|want| home == Some(want))
    });
    rows.extend(free.map(|(name, volume)| unclaimed(world, &shared, name, volume)));
    rows
}

/// A volume that no claim has: kept after a move, released, or waiting.
fn unclaimed(world: &World, shared: &Shared<'_>, name: &VolumeName, volume: &Volume) -> VolumeRow {
    let home = single_node(world, volume);
    let place = home.map_or(Locality::Unknown, |node| Locality::Local { node });
    let seen = look(world, shared, &place, name, volume);
    let (locality, node) = verdict::locality(&place);
    VolumeRow {
        namespace: None,
        claim: None,
        volume: Some(name.to_string()),
        phase: phase(&volume.phase),
        class: volume.class.clone(),
        locality,
        node,
        because: "no claim has it; its node affinity".to_owned(),
        used_bytes: seen.usage.map(|usage| usage.allocated_bytes),
        requested_bytes: volume.capacity_bytes,
        health: seen.health,
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

fn place_of(world: &World, key: &Key) -> (Locality, String) {
    let source = DiskSource::Claim { name: key.name.clone(), use_: ClaimUse::Disk };
    let disk = Disk { name: key.name.clone(), source, boot: false, image: None };
    locate(&world.fleet, &world.policy.class_overrides, &key.namespace, &disk)
}

/// What agents saw of a volume.
#[derive(Default)]
struct Seen {
    usage: Option<Usage>,
    health: String,
}

fn look(world: &World, shared: &Shared<'_>, place: &Locality, name: &VolumeName, volume: &Volume) -> Seen {
    let here = match place {
        Locality::Local { node } => world.fleet.reports.get(node),
        _ => None,
    };
    let found = match (here, volume.source.path()) {
        (Some(report), Some(path)) => Some((report, path.to_owned())),
        (None, Some(path)) => shared.find(|_, seen| seen == path),
        // A network volume has no path of its own; below a shared root its folder has the volume's name.
        (_, None) => shared
            .find(|root, seen| root.class == volume.class && seen.rsplit('/').next() == Some(name.as_str())),
    };
    let Some((report, path)) = found else { return Seen::default() };
    let root = report.root_of(&path);
    let grade = root.and_then(|root| root.disk.as_ref()).and_then(|disk| report.disks.get(disk));
    let health = match (root, grade.map(|disk| disk.grade)) {
        (Some(root), _) if root.read_only => "read-only".to_owned(),
        (_, None | Some(Grade::Unknown)) => String::new(),
        (_, Some(grade)) => format!("{grade:?}"),
    };
    Seen { usage: report.usage.get(&path).copied(), health }
}

/// Folders below shared roots, which every agent there sees; few, and looked through for each network volume.
struct Shared<'a>(Vec<(&'a NodeReport, &'a StorageRoot, &'a str)>);

impl<'a> Shared<'a> {
    fn of(world: &'a World) -> Self {
        let of_report = |report: &'a NodeReport| {
            let below = move |path: &'a String| Some((report, report.root_of(path)?, path.as_str()));
            report.usage.keys().filter_map(below).filter(|(_, root, _)| root.shared)
        };
        Self(world.fleet.reports.values().flat_map(of_report).collect())
    }

    /// The first agent that sees such a folder.
    fn find(&self, fits: impl Fn(&StorageRoot, &str) -> bool) -> Option<(&'a NodeReport, String)> {
        let found = self.0.iter().find(|(_, root, path)| fits(root, path))?;
        Some((found.0, found.2.to_owned()))
    }
}
