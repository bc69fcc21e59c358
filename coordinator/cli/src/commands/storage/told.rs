//! How old the last word of a node's agent is, and whether the agent has been silent since.
//!
//! ```text
//!   it beats ───► when its status was last applied, as the API server notes; a folder and most dumps do not tell
//!   it does not ► its last beat, where an incident names it, else when it was found silent
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use somersault_coordinator_core::names::NodeName;
use somersault_crd::NodeHealth;
use somersault_crd::node_health::{NodeHealthStatus, NodeState};

use crate::output::{Mood, clean};
use crate::units;
use crate::world::World;

/// How a display is written, by its owner alone, as the API server notes it.
const APPLIED: &str = "Apply";
/// What of the object it is.
const STATUS: &str = "status";
/// The entry of a node's timeline for the last beat that arrived.
const LAST_BEAT: &str = "LastBeat";

/// An agent's last word.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastWord {
    /// When; absent where nobody knows.
    pub told_at: Option<String>,
    /// Nothing was heard since.
    pub silent: bool,
    #[serde(skip)]
    age: Option<String>,
}

impl LastWord {
    /// What the object tells of its agent's last report; `None` where there is none.
    fn of(health: &NodeHealth, now: Timestamp) -> Option<Self> {
        let status = health.status.as_ref().filter(|status| status.agent.is_some())?;
        let silent = is_silent(status.state);
        let at = if silent { last_beat(status) } else { applied(health) };
        Some(Self { told_at: at.map(|at| at.to_string()), silent, age: at.map(|at| units::age(at, now)) })
    }

    /// Its age, and whether more may be expected.
    pub fn words(&self) -> String {
        let age = self.age.as_deref().unwrap_or("unknown");
        if self.silent { format!("{age}, silent") } else { age.to_owned() }
    }

    /// How far it can be trusted.
    pub fn mood(&self) -> Mood {
        if self.silent { Mood::Doubtful } else { Mood::Plain }
    }
}

/// The last words of all agents that ever reported, at this time.
pub fn all(world: &World, now: Timestamp) -> BTreeMap<NodeName, LastWord> {
    let told = |(node, health): (&NodeName, &NodeHealth)| Some((node.clone(), LastWord::of(health, now)?));
    world.healths.iter().filter_map(told).collect()
}

/// Nodes of which no agent has reported: nothing is known of what is on them.
pub fn unheard(world: &World, told: &BTreeMap<NodeName, LastWord>, asked: Option<&NodeName>) -> Vec<String> {
    let mut names: Vec<&NodeName> = world.fleet.nodes.keys().chain(world.healths.keys()).collect();
    names.retain(|name| !told.contains_key(*name) && asked.is_none_or(|asked| asked == *name));
    names.sort();
    names.dedup();
    names.into_iter().map(ToString::to_string).collect()
}

/// That nothing is known of these nodes, in a paragraph of its own; nothing where there is none.
pub fn unheard_words(nodes: &[String]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    format!("\nUnknown: no agent has reported from {}.\n", clean(&nodes.join(", ")))
}

/// Beats of a fenced boot are a contradiction, and no silence.
fn is_silent(state: NodeState) -> bool {
    !matches!(state, NodeState::Healthy | NodeState::Quarantine | NodeState::FenceContradicted)
}

fn last_beat(status: &NodeHealthStatus) -> Option<Timestamp> {
    // Before a node is declared, the timeline is that of an earlier incident.
    let declared =
        matches!(status.state, NodeState::AwaitingProof | NodeState::Fenced | NodeState::Recovering);
    let beat = status.timeline.iter().find(|entry| declared && entry.milestone == LAST_BEAT);
    beat.map(|entry| entry.at.0).or(status.since.as_ref().map(|since| since.0))
}

fn applied(health: &NodeHealth) -> Option<Timestamp> {
    let entries = health.metadata.managed_fields.iter().flatten().filter(|entry| {
        entry.operation.as_deref() == Some(APPLIED) && entry.subresource.as_deref() == Some(STATUS)
    });
    entries.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(state: &str, timeline: &Value) -> LastWord {
        let managed = |operation: &str, subresource: &str, time: &str| json!({"manager": "m", "operation": operation, "subresource": subresource, "time": time});
        let health = serde_json::from_value(json!({
            "apiVersion": somersault_crd::API_VERSION, "kind": "NodeHealth",
            "metadata": {"name": "n1", "managedFields": [
                managed("Apply", "status", "2026-01-01T00:58:00Z"),
                managed("Update", "status", "2026-01-01T00:59:00Z"),
                managed("Apply", "", "2026-01-01T00:59:30Z"),
            ]},
            "spec": {},
            "status": {
                "state": state, "since": "2026-01-01T00:30:00Z", "timeline": timeline,
                "agent": {"address": "a:1", "version": "1"},
            },
        }));
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        LastWord::of(&health.expect("a NodeHealth"), now).expect("a report")
    }

    #[test]
    fn a_living_agents_word_is_as_old_as_its_status() {
        assert_eq!(told("Healthy", &json!([])).words(), "2m");
        assert_eq!(told("Quarantine", &json!([])).told_at.as_deref(), Some("2026-01-01T00:58:00Z"));
    }

    #[test]
    fn a_silent_agents_word_is_as_old_as_its_silence() {
        let timeline = json!([{"milestone": "LastBeat", "at": "2026-01-01T00:20:00Z"}]);
        assert_eq!(told("Fenced", &timeline).words(), "40m, silent");
        assert_eq!(told("AgentSilent", &timeline).words(), "30m, silent", "of an earlier incident");
        assert_eq!(told("AwaitingProof", &json!([])).words(), "30m, silent");
    }

    #[test]
    fn without_a_report_there_is_no_word() {
        let health = NodeHealth { status: Some(NodeHealthStatus::default()), ..NodeHealth::default() };
        assert!(LastWord::of(&health, Timestamp::UNIX_EPOCH).is_none());
        let silent = LastWord { silent: true, ..LastWord::default() };
        assert_eq!((silent.words().as_str(), silent.mood()), ("unknown, silent", Mood::Doubtful));
    }
}
