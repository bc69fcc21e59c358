//! What people are to be alerted of, where nobody but us would do it: fleet, view and requests -> the alerts that fire.
//!
//! ```text
//!   nodes ──┐
//!   vms ────┼─► findings: what is wrong now ── seen for as long as its name says ──► firing ── the first ALERTS_MAX ─► sent
//!   moves ──┘       (a function of the state)  │                                        │
//!                                              └ not seen any more: resolved            └ the rest is counted in one
//! ```
//!
//! Nothing here is remembered of what happened: whoever leads next finds the same alerts in the same state. The one memory is
//! since when each finding is seen, for those that must last before anybody is woken; a follower keeps it too.
//!
//! First comes what a person must do something about: each alert says what, with the command.

mod moves;
mod nodes;
#[cfg(test)]
mod tests;
pub mod told;
mod vms;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::BootTime;
use crate::fleet::Fleet;
use crate::io::{Requests, Severity};
use crate::locality::ClassOverrides;
use crate::names::{Key, NodeName};
use crate::view::View;

/// Alerts that fire at once. More cannot be read by anybody, and as many, each as long as it may be, are less than a
/// megabyte in one message.
pub const ALERTS_MAX: usize = 512;
/// Letters of a description: a chat shows no more of it at once, and the object that it is about says the rest.
pub const DESCRIPTION_CHARS_MAX: usize = 1_000;

/// What alerts are made of.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What the core shows.
    pub view: &'a View,
    /// The cluster as last read.
    pub fleet: &'a Fleet,
    /// What people ask for.
    pub requests: &'a Requests,
    /// What the policy says of storage classes.
    pub overrides: &'a ClassOverrides,
    /// Whether VMs of whose disks no snapshot is known are told of. Not unless somebody asks: the classes for which this
    /// project is made (local-path, hostPath) have no snapshots at all, and whatever backs those disks up leaves no object by
    /// which we could know. Every VM would alert for ever.
    pub backups: bool,
}

/// What is wrong. The most urgent comes first: where too much fires, the last is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlertName {
    /// A node that was taken for dead beats: its VMs may run twice.
    FenceContradicted,
    /// A node is declared dead, and nothing proves it: its VMs wait.
    AwaitingProof,
    /// Too many nodes fell silent at once: nothing is done for any of them.
    StormHold,
    /// A VM's storage is broken.
    StorageFailure,
    /// A VM of a dead node needs a person.
    ManualRecoveryNeeded,
    /// A VM should run and does not.
    VmNotRunning,
    /// A disk gives what it reads no more.
    DiskFailed,
    /// A disk can still be read.
    DiskFailing,
    /// A fence agent that would not switch its machine off, or nobody knows.
    FenceUntested,
    /// A node's agent is silent, and the node is not.
    AgentSilent,
    /// Others reach a node's agent, and we do not.
    NodePartitioned,
    /// A migration ended without having moved anything.
    MigrationFailed,
    /// A migration is done, and its guest did not answer as it was asked to.
    GuestNotConfirmed,
    /// Something cannot leave a node that is to be emptied.
    EvacuationFailed,
    /// An evacuation finds room for nothing that is left.
    EvacuationStuck,
    /// An evacuation waits for somebody's word.
    EvacuationWaits,
    /// A migration waits for somebody's word.
    MigrationWaits,
    /// A disk is worth a look.
    DiskWarning,
    /// More than [`ALERTS_MAX`] fire.
    MoreAlerts,
    /// No snapshot is known of a VM's local disks.
    NoBackupKnown,
}

impl AlertName {
    /// Label `alertname`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FenceContradicted => "FenceContradicted",
            Self::AwaitingProof => "AwaitingProof",
            Self::StormHold => "StormHold",
            Self::StorageFailure => "StorageFailure",
            Self::ManualRecoveryNeeded => "ManualRecoveryNeeded",
            Self::VmNotRunning => "VmNotRunning",
            Self::DiskFailed => "DiskFailed",
            Self::DiskFailing => "DiskFailing",
            Self::FenceUntested => "FenceUntested",
            Self::AgentSilent => "AgentSilent",
            Self::NodePartitioned => "NodePartitioned",
            Self::MigrationFailed => "MigrationFailed",
            Self::GuestNotConfirmed => "GuestNotConfirmed",
            Self::EvacuationFailed => "EvacuationFailed",
            Self::EvacuationStuck => "EvacuationStuck",
            Self::EvacuationWaits => "EvacuationWaits",
            Self::MigrationWaits => "MigrationWaits",
            Self::DiskWarning => "DiskWarning",
            Self::MoreAlerts => "MoreAlerts",
            Self::NoBackupKnown => "NoBackupKnown",
        }
    }

    /// Label `severity`: critical is what costs somebody a VM or its data, now or with the next fault.
    pub fn severity(self) -> Severity {
        match self {
            Self::FenceContradicted
            | Self::AwaitingProof
            | Self::StormHold
            | Self::StorageFailure
            | Self::ManualRecoveryNeeded
            | Self::VmNotRunning
            | Self::DiskFailed
            | Self::DiskFailing => Severity::Critical,
            Self::FenceUntested
            | Self::AgentSilent
            | Self::NodePartitioned
            | Self::MigrationFailed
            | Self::GuestNotConfirmed
            | Self::EvacuationFailed
            | Self::EvacuationStuck
            | Self::EvacuationWaits
            | Self::MigrationWaits
            | Self::DiskWarning
            | Self::MoreAlerts => Severity::Warning,
            Self::NoBackupKnown => Severity::Info,
        }
    }

    /// How long it must be seen before it fires.
    fn hold(self) -> Duration {
        match self {
            // A VM starts within a minute or two, an image is pulled meanwhile; and an agent that is rolled out anew is back.
            Self::VmNotRunning | Self::AgentSilent | Self::NodePartitioned => Duration::from_mins(5),
            // A new entry is asked within a round (ten minutes), and a management controller may restart.
            Self::FenceUntested => Duration::from_mins(15),
            // Agents let a disk improve only after half an hour: this is for a report that is taken back at once. And whoever has
            // asked for a move may be about to say the word.
            Self::DiskFailed
            | Self::DiskFailing
            | Self::DiskWarning
            | Self::EvacuationWaits
            | Self::MigrationWaits => Duration::from_mins(1),
            Self::EvacuationStuck => Duration::from_mins(30),
            // Whoever makes a VM also makes what backs it up, soon.
            Self::NoBackupKnown => Duration::from_hours(24),
            // Each of these has been waited for already, or is the end of something.
            Self::FenceContradicted
            | Self::AwaitingProof
            | Self::StormHold
            | Self::StorageFailure
            | Self::ManualRecoveryNeeded
            | Self::MigrationFailed
            | Self::GuestNotConfirmed
            | Self::EvacuationFailed
            | Self::MoreAlerts => Duration::ZERO,
        }
    }
}

/// What an alert is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlertSubject {
    /// The cluster.
    Cluster,
    /// A node.
    Node(NodeName),
    /// A physical disk of a node.
    Disk {
        /// The node.
        node: NodeName,
        /// The disk, by the kernel's name.
        disk: String,
    },
    /// A VM.
    Vm(Key),
    /// A `VolumeMigration`.
    Migration(Key),
    /// An `Evacuation`.
    Evacuation(String),
}

/// Which alert: nothing else of it tells whether it is the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AlertId {
    /// What is wrong.
    pub name: AlertName,
    /// With what.
    pub subject: AlertSubject,
}

impl AlertId {
    /// Labels: `alertname`, `severity`, and those of the subject.
    pub fn labels(&self) -> BTreeMap<&'static str, String> {
        let mut labels = BTreeMap::from([
            ("alertname", self.name.as_str().to_owned()),
            ("severity", self.name.severity().as_str().to_owned()),
        ]);
        match &self.subject {
            AlertSubject::Cluster => {}
            AlertSubject::Node(node) => labels.extend([("node", node.to_string())]),
            AlertSubject::Disk { node, disk } => {
                labels.extend([("node", node.to_string()), ("disk", disk.clone())]);
            }
            AlertSubject::Vm(key) => {
                labels.extend([("namespace", key.namespace.clone()), ("vm", key.name.clone())]);
            }
            AlertSubject::Migration(key) => {
                labels.extend([("namespace", key.namespace.clone()), ("migration", key.name.clone())]);
            }
            AlertSubject::Evacuation(name) => labels.extend([("evacuation", name.clone())]),
        }
        labels
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let what = match self.name {
            AlertName::FenceContradicted => "was taken for dead and lives: its VMs may run twice",
            AlertName::AwaitingProof => "is silent, and nothing proves that it is off: its VMs wait",
            AlertName::StormHold => "so many nodes fell silent at once that nothing is done for any of them",
            AlertName::StorageFailure => "its storage is broken",
            AlertName::ManualRecoveryNeeded => "its node is dead, and a person must bring it back",
            AlertName::VmNotRunning => "should run and does not",
            AlertName::DiskFailed => "has failed: do not trust what it reads",
            AlertName::DiskFailing => "is failing: move what is on it while it can be read",
            AlertName::DiskWarning => "is worth a look",
            AlertName::FenceUntested => "power fencing cannot be counted upon",
            AlertName::AgentSilent => "its agent is silent: nothing of it is known or moved",
            AlertName::NodePartitioned => "its agent reaches others and not the coordinator",
            AlertName::MigrationFailed => "did not move anything",
            AlertName::GuestNotConfirmed => {
                "has moved its VM, and the guest did not answer as it was asked to"
            }
            AlertName::EvacuationFailed => "something cannot leave",
            AlertName::EvacuationStuck => "nothing that is left finds room",
            AlertName::EvacuationWaits | AlertName::MigrationWaits => {
                "has copied ahead, and waits for a word to stop the VM"
            }
            AlertName::MoreAlerts => "more alerts fire than are sent",
            AlertName::NoBackupKnown => "no snapshot of its local disks is known",
        };
        match &self.subject {
            AlertSubject::Cluster => format!("Cluster: {what}"),
            AlertSubject::Node(node) => format!("Node {node}: {what}"),
            AlertSubject::Disk { node, disk } => format!("Disk {disk} of node {node}: {what}"),
            AlertSubject::Vm(key) => format!("VM {key}: {what}"),
            AlertSubject::Migration(key) => format!("Migration {key}: {what}"),
            AlertSubject::Evacuation(name) => format!("Evacuation {name}: {what}"),
        }
    }
}

/// An alert that fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Which.
    pub id: AlertId,
    /// Since when it is so, as far as this process knows.
    pub since: BootTime,
    /// What was found, and what a person must do; at most [`DESCRIPTION_CHARS_MAX`] letters.
    pub description: String,
}

/// What fires.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firing {
    /// The most urgent first; at most [`ALERTS_MAX`] and one that counts the rest.
    pub alerts: Vec<Alert>,
    /// Those that fire too, and are left out: they have not ended.
    pub left_out: BTreeSet<AlertId>,
    /// How many fire, of each name, those that are left out among them.
    pub counts: BTreeMap<AlertName, usize>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    /// Since when, where somebody else knows.
    since: Option<BootTime>,
    /// How long it must be seen before it fires.
    hold: Duration,
    description: String,
}

/// What is wrong now, of each kind at most one thing with each subject.
#[derive(Debug, Default)]
struct Findings(BTreeMap<AlertId, Finding>);

impl Findings {
    fn of(known: &Known<'_>) -> Self {
        let mut found = Self::default();
        nodes::look(known, &mut found);
        vms::look(known, &mut found);
        moves::look(known, &mut found);
        found
    }

    fn add(&mut self, name: AlertName, subject: AlertSubject, description: String) -> &mut Finding {
        let finding = Finding { since: None, hold: name.hold(), description };
        self.0.entry(AlertId { name, subject }).or_insert(finding)
    }
}

/// Since when each finding is seen.
#[derive(Clone, Debug, Default)]
pub struct Alerts {
    /// One for each thing that is wrong, of which there are no more than objects.
    seen: BTreeMap<AlertId, BootTime>,
}

impl Alerts {
    /// What fires now. Called every few seconds, whoever leads.
    pub fn look(&mut self, now: BootTime, known: &Known<'_>) -> Firing {
        let Findings(found) = Findings::of(known);
        self.seen.retain(|id, _| found.contains_key(id));
        let mut firing = Firing::default();
        for (id, finding) in found {
            let seen = *self.seen.entry(id.clone()).or_insert(now);
            let since = finding.since.map_or(seen, |since| since.min(seen));
            if now < since + finding.hold {
                continue;
            }
            *firing.counts.entry(id.name).or_default() += 1;
            if firing.alerts.len() < ALERTS_MAX {
                firing.alerts.push(Alert { id, since, description: short(finding.description) });
            } else {
                firing.left_out.insert(id);
            }
        }
        if !firing.left_out.is_empty() {
            firing.alerts.push(more(now, firing.left_out.len(), &firing.counts));
            firing.counts.insert(AlertName::MoreAlerts, 1);
        }
        firing
    }
}

fn more(now: BootTime, left_out: usize, counts: &BTreeMap<AlertName, usize>) -> Alert {
    let counts: Vec<String> =
        counts.iter().map(|(name, count)| format!("{count} {}", name.as_str())).collect();
    let description = format!(
        "{left_out} more alerts fire than the {ALERTS_MAX} that are sent. All that fire: {}. Look: kubectl somersault status",
        counts.join(", ")
    );
    let id = AlertId { name: AlertName::MoreAlerts, subject: AlertSubject::Cluster };
    Alert { id, since: now, description: short(description) }
}

/// What is longer than it may be loses its end.
fn short(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(DESCRIPTION_CHARS_MAX) {
        let kept = text.char_indices().nth(DESCRIPTION_CHARS_MAX - 1).map_or(end, |(at, _)| at);
        text.truncate(kept);
        text.push('…');
    }
    text
}
