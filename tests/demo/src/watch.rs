//! Looking at the cluster until something holds, or a deadline has passed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use somersault_coordinator::cluster::directory::store::{Objects, Store};
use somersault_coordinator::cluster::manifest::ObjectId;
use somersault_crd::node_health::NodeHealthStatus;
use somersault_crd::recovery::RecoveryStatus;
use somersault_crd::volume_migration::VolumeMigrationStatus;

const PERIOD: Duration = Duration::from_millis(20);
/// Lines of each log that a failure shows.
const TAIL_LINES: usize = 12;
/// Namespace of every VM here.
const NAMESPACE: &str = "default";

/// Waits until `look` finds something; `what` is said when it does not in time.
pub fn until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let found = look().with_context(|| format!("while waiting until {what}"))?;
        if let Some(found) = found {
            return Ok(found);
        }
        if started.elapsed() > deadline {
            bail!("waited {} s in vain until {what}", deadline.as_secs());
        }
        std::thread::sleep(PERIOD);
    }
}

/// The objects, read for one look.
pub struct Look(Objects);

impl Look {
    /// Reads the folder.
    pub fn at(store: &Store) -> Result<Self> {
        Ok(Self(store.objects().context("reading the cluster")?))
    }

    /// A cluster-scoped object.
    pub fn cluster(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.get(&ObjectId::cluster(kind, name))
    }

    /// A namespaced object.
    pub fn object(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.get(&ObjectId { kind: kind.into(), namespace: NAMESPACE.into(), name: name.into() })
    }

    /// Every object of a kind.
    pub fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.of_kind(kind)
    }

    /// What is known of a node.
    pub fn health(&self, node: &str) -> Result<Option<NodeHealthStatus>> {
        self.cluster("NodeHealth", node).map(status).transpose()
    }

    /// What becomes of a VM.
    pub fn recovery(&self, vm: &str) -> Result<Option<RecoveryStatus>> {
        self.object("Recovery", vm).map(status).transpose()
    }

    /// How far a migration is.
    pub fn migration(&self, name: &str) -> Result<Option<VolumeMigrationStatus>> {
        self.object("VolumeMigration", name).map(status).transpose()
    }

    /// The node on which a VM runs now, and its instance's uid.
    pub fn running(&self, vm: &str) -> Option<(&str, &str)> {
        let vmi = self.object("VirtualMachineInstance", vm)?;
        let running = vmi["status"]["phase"] == "Running" && vmi["metadata"]["deletionTimestamp"].is_null();
        running.then(|| Some((vmi["status"]["nodeName"].as_str()?, vmi["metadata"]["uid"].as_str()?)))?
    }

    /// The volume that a claim is bound to.
    pub fn volume_of(&self, claim: &str) -> Option<&Value> {
        let claim = self.object("PersistentVolumeClaim", claim)?;
        let bound = claim["status"]["phase"] == "Bound";
        self.cluster("PersistentVolume", claim["spec"]["volumeName"].as_str().filter(|_| bound)?)
    }

    /// Keys of a node's taints.
    pub fn taints(&self, node: &str) -> Vec<&str> {
        let taints = self.cluster("Node", node).and_then(|node| node["spec"]["taints"].as_array());
        taints.into_iter().flatten().filter_map(|taint| taint["key"].as_str()).collect()
    }
}

fn status<T: DeserializeOwned + Default>(object: &Value) -> Result<T> {
    match &object["status"] {
        Value::Null => Ok(T::default()),
        status => T::deserialize(status)
            .with_context(|| format!("the status of {} {}", object["kind"], object["metadata"]["name"])),
    }
}

/// The last lines of every log.
pub fn log_tails(logs: &Path) -> String {
    let mut files: Vec<_> = std::fs::read_dir(logs).into_iter().flatten().flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let mut text = String::new();
    for file in files {
        let Ok(log) = std::fs::read_to_string(file.path()) else { continue };
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        if !tail.is_empty() {
            text.extend(["--- ", &file.file_name().to_string_lossy(), "\n", &tail.join("\n"), "\n"]);
        }
    }
    text
}
