//! Folders that no volume names, also those of which only a silent agent told. Below shared roots none is called so: their
//! provisioners name folders as they like.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use somersault_coordinator_core::adopt::{self, Nodes};
use somersault_coordinator_core::names::NodeName;

use crate::commands::storage::told::LastWord;
use crate::world::World;

/// A folder.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FolderRow {
    pub node: String,
    pub path: String,
    pub class: String,
    pub allocated_bytes: u64,
    pub apparent_bytes: u64,
    /// The claim that its name tells of.
    pub claim: Option<String>,
    #[serde(flatten)]
    pub told: LastWord,
}

/// Every such folder, the largest first: of claims of one namespace, on one node, where one is given.
pub fn rows(
    world: &World,
    told: &BTreeMap<NodeName, LastWord>,
    namespace: Option<&str>,
    asked: Option<&NodeName>,
) -> Vec<FolderRow> {
    let usable = world.fleet.reports.keys().filter(|node| asked.is_none_or(|asked| asked == *node));
    let nodes = Nodes { usable: &usable.cloned().collect(), proven_dead: &BTreeSet::new() };
    let orphans = adopt::orphans(&world.fleet, &nodes).into_iter().filter(|orphan| {
        namespace.is_none_or(|want| orphan.of.as_ref().is_some_and(|claim| claim.namespace == want))
    });
    let mut rows: Vec<FolderRow> = orphans
        .map(|orphan| FolderRow {
            told: told.get(&orphan.node).cloned().unwrap_or_default(),
            node: orphan.node.to_string(),
            path: orphan.path,
            class: orphan.class,
            allocated_bytes: orphan.usage.allocated_bytes,
            apparent_bytes: orphan.usage.apparent_bytes,
            claim: orphan.of.map(|claim| claim.to_string()),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.allocated_bytes));
    rows
}
