//! Storage roots as rows: how much room there is, and how far the requests of their volumes go beyond it. One that nodes
//! share is one row.

use std::collections::BTreeMap;

use serde::Serialize;
use somersault_coordinator_core::fleet::StorageRoot;
use somersault_coordinator_core::names::NodeName;

use crate::commands::storage::place::Place;
use crate::commands::storage::told::LastWord;
use crate::output::Mood;
use crate::units;
use crate::world::World;

/// Less room than this, in percent of the size, is worth a look, and less than that is urgent: as the alerts on filesystems
/// that fill up have it.
const LOW_PERCENT: u64 = 15;
const URGENT_PERCENT: u64 = 3;

/// A storage root.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootRow {
    /// Nodes that see it; one, where it is not shared.
    pub nodes: Vec<String>,
    pub path: String,
    pub class: String,
    pub shared: bool,
    pub read_only: bool,
    /// The physical disk below, where it is known.
    pub disk: Option<String>,
    /// Absent where no agent has looked into it yet.
    pub size_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    /// Volumes below it, of all namespaces.
    pub volumes: usize,
    /// What they ask together.
    pub requested_bytes: u64,
    /// That of the size: above 1 they cannot all have what they ask.
    pub over_commit_ratio: Option<f64>,
    #[serde(flatten)]
    pub told: LastWord,
}

/// Whose row a root is: of a shared one nobody's.
type Identity<'a> = (Option<&'a NodeName>, &'a str, &'a str);

fn identity<'a>(node: &'a NodeName, root: &'a StorageRoot) -> Identity<'a> {
    ((!root.shared).then_some(node), &root.path, &root.class)
}

/// Every root, or those of one node; with all volumes below them.
pub fn rows(
    world: &World,
    told: &BTreeMap<NodeName, LastWord>,
    places: &[Place<'_>],
    asked: Option<&NodeName>,
) -> Vec<RootRow> {
    let mut load: BTreeMap<Identity<'_>, (usize, u64)> = BTreeMap::new();
    for place in places {
        let Some((seen, root)) = place.seen.as_ref().and_then(|seen| Some((seen, seen.root?))) else {
            continue;
        };
        let (volumes, requested) = load.entry(identity(seen.node, root)).or_default();
        *volumes += 1;
        *requested = requested.saturating_add(place.requested_bytes);
    }
    let mut views: BTreeMap<Identity<'_>, Vec<(&NodeName, &StorageRoot)>> = BTreeMap::new();
    for (node, report) in &world.fleet.reports {
        for root in &report.roots {
            views.entry(identity(node, root)).or_default().push((node, root));
        }
    }
    views.retain(|_, seen| asked.is_none_or(|asked| seen.iter().any(|(node, _)| *node == asked)));
    let rows = views.into_iter().filter_map(|(identity, seen)| {
        let load = load.get(&identity).copied().unwrap_or_default();
        RootRow::of(told, &seen, load)
    });
    rows.collect()
}

impl RootRow {
    /// As the first node that beats sees it, else as the first has seen it.
    fn of(
        told: &BTreeMap<NodeName, LastWord>,
        seen: &[(&NodeName, &StorageRoot)],
        (volumes, requested_bytes): (usize, u64),
    ) -> Option<Self> {
        let beats = |(node, root): &&(&NodeName, &StorageRoot)| {
            root.is_seen() && told.get(*node).is_some_and(|told| !told.silent)
        };
        let (teller, root) = seen.iter().find(beats).or_else(|| seen.first())?;
        let size_bytes = root.is_seen().then_some(root.size_bytes);
        Some(Self {
            nodes: seen.iter().map(|(node, _)| node.to_string()).collect(),
            path: root.path.clone(),
            class: root.class.clone(),
            shared: root.shared,
            read_only: root.read_only,
            disk: root.disk.clone(),
            size_bytes,
            available_bytes: size_bytes.map(|_| root.available_bytes),
            volumes,
            requested_bytes,
            over_commit_ratio: size_bytes.and_then(|size| ratio(requested_bytes, size)),
            told: told.get(*teller).cloned().unwrap_or_default(),
        })
    }

    /// Its node, or of how many it is.
    pub fn node_words(&self) -> String {
        if self.shared { format!("{} share it", self.nodes.len()) } else { self.nodes.concat() }
    }

    /// The room left.
    pub fn room_words(&self) -> (String, Mood) {
        let Some((available, size)) = self.available_bytes.zip(self.size_bytes) else {
            return ("unknown".to_owned(), Mood::Plain);
        };
        if self.read_only {
            return ("read-only".to_owned(), Mood::Bad);
        }
        let mood = match units::share(available, size) {
            Some(..URGENT_PERCENT) => Mood::Bad,
            Some(URGENT_PERCENT..LOW_PERCENT) => Mood::Doubtful,
            _ => Mood::Plain,
        };
        (units::bytes(available), mood)
    }

    /// How far the requests go beyond the size.
    pub fn over_commit_words(&self) -> (String, Mood) {
        match self.over_commit_ratio {
            None => ("unknown".to_owned(), Mood::Plain),
            Some(ratio) if ratio > 1.0 => (format!("{ratio:.2}"), Mood::Doubtful),
            Some(ratio) => (format!("{ratio:.2}"), Mood::Plain),
        }
    }
}

/// In hundredths: nobody reads more.
fn ratio(part: u64, whole: u64) -> Option<f64> {
    let hundredths = units::share(part, whole)?;
    Some(f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0)
}
