//! Local volumes as rows: those on one node, those that may be on any by a path of it, and those below a storage root that
//! nodes share.

use std::collections::BTreeMap;

use serde::Serialize;
use somersault_coordinator_core::decision::Locality;
use somersault_coordinator_core::names::NodeName;

use crate::commands::storage::place::{self, Place};
use crate::commands::storage::told::LastWord;
use crate::output::Mood;
use crate::units;
use crate::world::World;

/// A volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    pub namespace: Option<String>,
    pub claim: Option<String>,
    pub volume: Option<String>,
    /// Phase of the claim, else of the volume.
    pub phase: String,
    pub class: String,
    /// The node; absent where nodes share it, or nobody can tell.
    pub node: Option<String>,
    /// It is below a storage root that nodes share.
    pub shared: bool,
    /// VMs that have it among their disks.
    pub vms: Vec<String>,
    /// The storage root that it is below.
    pub root: Option<String>,
    /// Its folder.
    pub path: Option<String>,
    pub requested_bytes: u64,
    /// Blocks really taken; absent where no agent has measured it.
    pub allocated_bytes: Option<u64>,
    /// Sum of the file sizes.
    pub apparent_bytes: Option<u64>,
    /// It takes more than it asks.
    pub over_request: bool,
    /// Whose agent told of it.
    #[serde(skip)]
    pub teller: Option<String>,
    #[serde(flatten)]
    pub told: LastWord,
}

/// Every local volume: of one namespace, on one node, where one is given.
pub fn rows(
    world: &World,
    told: &BTreeMap<NodeName, LastWord>,
    namespace: Option<&str>,
    asked: Option<&NodeName>,
) -> Vec<Row> {
    let places = place::all(world, namespace);
    let wanted = places.iter().filter(|place| is_local(world, place));
    let wanted = wanted.filter(|place| asked.is_none_or(|node| is_on(world, place, node)));
    wanted.map(|place| Row::of(world, told, place)).collect()
}

/// What nobody can place is shown where it has a path: it is on some node.
fn is_local(world: &World, place: &Place<'_>) -> bool {
    let has_path = || {
        let volume = place.volume.and_then(|name| world.fleet.volumes.get(name));
        volume.is_some_and(|volume| volume.source.path().is_some())
    };
    place.seen.is_some()
        || match place.locality {
            Locality::Local { .. } => true,
            Locality::Unknown => has_path(),
            Locality::Network | Locality::Rebuildable | Locality::Lost => false,
        }
}

/// What nodes share is on each node with that root.
fn is_on(world: &World, place: &Place<'_>, node: &NodeName) -> bool {
    if let Locality::Local { node: home } = &place.locality {
        return home == node;
    }
    let root = place.seen.as_ref().and_then(|seen| seen.root);
    let (Some(root), Some(report)) = (root, world.fleet.reports.get(node)) else { return false };
    root.shared
        && report.roots.iter().any(|own| own.shared && own.path == root.path && own.class == root.class)
}

impl Row {
    fn of(world: &World, told: &BTreeMap<NodeName, LastWord>, place: &Place<'_>) -> Self {
        let seen = place.seen.as_ref();
        let usage = seen.and_then(|seen| seen.usage);
        let root = seen.and_then(|seen| seen.root);
        let home = match &place.locality {
            Locality::Local { node } => Some(node),
            _ => None,
        };
        // Of a node whose agent sees no such folder, its silence is known all the same.
        let teller = seen.map(|seen| seen.node).or(home);
        Self {
            namespace: place.claim.map(|claim| claim.namespace.clone()),
            claim: place.claim.map(|claim| claim.name.clone()),
            volume: place.volume.map(ToString::to_string),
            phase: place.phase.clone(),
            class: place.class.to_owned(),
            node: home.map(ToString::to_string),
            shared: root.is_some_and(|root| root.shared),
            vms: place.vms(world),
            root: root.map(|root| root.path.clone()),
            path: seen.map(|seen| seen.path.to_owned()),
            requested_bytes: place.requested_bytes,
            allocated_bytes: usage.map(|usage| usage.allocated_bytes),
            apparent_bytes: usage.map(|usage| usage.apparent_bytes),
            over_request: usage.is_some_and(|usage| usage.allocated_bytes > place.requested_bytes),
            teller: teller.map(ToString::to_string),
            told: teller.and_then(|node| told.get(node)).cloned().unwrap_or_default(),
        }
    }

    /// Namespace and name of the claim; the phase where there is none.
    pub fn claim_words(&self) -> String {
        match (&self.namespace, &self.claim) {
            (Some(namespace), Some(claim)) => format!("{namespace}/{claim}"),
            _ => format!("({})", self.phase),
        }
    }

    /// The node, or why there is none.
    pub fn node_words(&self) -> String {
        match &self.node {
            Some(node) => node.clone(),
            None if self.shared => "shared".to_owned(),
            None => "unknown".to_owned(),
        }
    }

    /// What it takes of what it asks.
    pub fn share_words(&self) -> (String, Mood) {
        let share = self.allocated_bytes.and_then(|bytes| units::share(bytes, self.requested_bytes));
        match share {
            None => ("unknown".to_owned(), Mood::Plain),
            Some(percent) if self.over_request => (format!("{percent} %, over"), Mood::Doubtful),
            Some(percent) => (format!("{percent} %"), Mood::Plain),
        }
    }
}
