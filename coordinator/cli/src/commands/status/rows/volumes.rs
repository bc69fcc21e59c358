//! Claims with their volumes, and volumes that no claim has, as rows: where they are, how full, how well.

use serde::Serialize;
use somersault_coordinator_core::fleet::Grade;

use crate::commands::storage::place::{self, Place, Seen};
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

/// Every claim, and every volume that no claim has; of one namespace where one is given.
pub fn rows(world: &World, namespace: Option<&str>) -> Vec<VolumeRow> {
    place::all(world, namespace).iter().map(VolumeRow::of).collect()
}

impl VolumeRow {
    fn of(place: &Place<'_>) -> Self {
        let (locality, node) = verdict::locality(&place.locality);
        Self {
            namespace: place.claim.map(|claim| claim.namespace.clone()),
            claim: place.claim.map(|claim| claim.name.clone()),
            volume: place.volume.map(ToString::to_string),
            phase: place.phase.clone(),
            class: place.class.to_owned(),
            locality,
            node,
            because: place.because.clone(),
            used_bytes: place.seen.as_ref().and_then(|seen| seen.usage).map(|usage| usage.allocated_bytes),
            requested_bytes: place.requested_bytes,
            health: place.seen.as_ref().map(health).unwrap_or_default(),
        }
    }

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

fn health(seen: &Seen<'_>) -> String {
    match (seen.root, seen.grade) {
        (Some(root), _) if root.read_only => "read-only".to_owned(),
        (_, None | Some(Grade::Unknown)) => String::new(),
        (_, Some(grade)) => format!("{grade:?}"),
    }
}
