//! How busy each node is, as its agent last told: the busiest first.

use std::collections::BTreeMap;

use serde::Serialize;
use somersault_coordinator_core::names::NodeName;

use crate::commands::storage::told::LastWord;
use crate::units;
use crate::world::World;

/// A node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    pub name: String,
    /// As the coordinator sees it.
    pub state: String,
    /// Share of the CPUs in use, 0 to 1; absent, as all of these, where no agent has told.
    pub cpu_ratio: Option<f64>,
    pub memory_total_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    /// Load average of one minute.
    pub load1: Option<f64>,
    /// Share of time in which some task waited for IO, 0 to 1; absent too where the kernel does not tell.
    pub io_pressure_ratio: Option<f64>,
    #[serde(flatten)]
    pub told: LastWord,
}

/// Nodes with an agent that ever reported; or the one that is asked for.
pub fn rows(world: &World, told: &BTreeMap<NodeName, LastWord>, asked: Option<&NodeName>) -> Vec<NodeRow> {
    let wanted = told.iter().filter(|(node, _)| asked.is_none_or(|asked| asked == *node));
    let mut rows: Vec<NodeRow> = wanted
        .filter_map(|(node, told)| {
            let status = world.healths.get(node)?.status.as_ref()?;
            let host = status.host.as_ref();
            // A machine without memory is one of which nothing was told.
            let memory = host.filter(|host| host.memory_total_bytes > 0);
            Some(NodeRow {
                name: node.to_string(),
                state: format!("{:?}", status.state),
                cpu_ratio: host.map(|host| host.cpu_ratio),
                memory_total_bytes: memory.map(|host| host.memory_total_bytes),
                memory_available_bytes: memory.map(|host| host.memory_available_bytes),
                load1: host.map(|host| host.load1),
                io_pressure_ratio: host.and_then(|host| host.io_pressure_ratio),
                told: told.clone(),
            })
        })
        .collect();
    let cpu = |row: &NodeRow| row.cpu_ratio.unwrap_or(-1.0);
    rows.sort_by(|a, b| cpu(b).total_cmp(&cpu(a)));
    rows
}

impl NodeRow {
    /// Memory that is not to be had any more, of all.
    pub fn memory_words(&self) -> String {
        let Some((total, available)) = self.memory_total_bytes.zip(self.memory_available_bytes) else {
            return "unknown".to_owned();
        };
        let used = total.saturating_sub(available);
        let percent = units::percent(used, total).unwrap_or_default();
        format!("{percent} % of {}", units::bytes(total))
    }
}

/// A share in percent; whoever writes more than all means all.
pub fn ratio_words(ratio: Option<f64>) -> String {
    match ratio {
        Some(ratio) => format!("{:.0} %", ratio.clamp(0.0, 1.0) * 100.0),
        None => "unknown".to_owned(),
    }
}
