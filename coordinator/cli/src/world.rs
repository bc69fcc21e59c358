//! The objects that a command looks at: of a cluster, or of a dump, read once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use somersault_coordinator::cluster::Problem;
use somersault_coordinator::cluster::directory::{self, Objects};
use somersault_coordinator::cluster::kube::policy;
use somersault_coordinator::cluster::manifest::RETAINED_ANNOTATION;
use somersault_coordinator_core::decision::ExpectedTimes;
use somersault_coordinator_core::fencing::ProofKind;
use somersault_coordinator_core::fleet::Fleet;
use somersault_coordinator_core::names::{Key, NodeName, VolumeName};
use somersault_coordinator_core::policy::{Policy, PolicySpec};
use somersault_crd::recovery_policy::POLICY_NAME;
use somersault_crd::{Evacuation, NodeHealth, Recovery, VolumeMigration};

use crate::args::{Global, SourceArgs};
use crate::exit::Failure;
use crate::output;
use crate::source::{Source, unreadable};

mod reports;

pub use reports::proof_kind;

/// How long a fence agent takes to cut the power and read it back, for the report's estimate only: baseboard
/// controllers answer within a second each and cut the power within a few.
const POWER_OFF_EXPECTED: Duration = Duration::from_secs(5);

/// What the objects say.
pub struct World {
    /// Nodes, volumes, claims, VMs; with the agents' last reports.
    pub fleet: Fleet,
    /// What the coordinator says of nodes.
    pub healths: BTreeMap<NodeName, NodeHealth>,
    /// What it says of VMs of dead nodes.
    pub recoveries: BTreeMap<Key, Recovery>,
    /// Migrations.
    pub migrations: BTreeMap<Key, VolumeMigration>,
    /// Evacuations.
    pub evacuations: BTreeMap<String, Evacuation>,
    /// Volumes that the coordinator has put on reclaim policy Retain.
    pub retained: BTreeSet<VolumeName>,
    /// What the coordinator may do.
    pub policy: Policy,
    /// Whether a coordinator leads now; unknown of a dump.
    pub led: Option<bool>,
    /// Manifests that could not be read.
    pub problems: Vec<Problem>,
    /// How long it took to read; nothing for a dump.
    pub read_in: Duration,
}

impl World {
    /// Reads what the arguments name: a dump, else the cluster.
    pub fn read(global: &Global, source: &SourceArgs) -> Result<Self, Failure> {
        match &source.from {
            None => Self::of_cluster(&Source::open(global)?, source.policy.as_deref()),
            Some(path) => {
                let objects = directory::read_objects(path).map_err(|error| unreadable(path, error))?;
                Self::of(&objects, source.policy.as_deref())
            }
        }
    }

    /// What a cluster says now.
    pub fn of_cluster(source: &Source, policy_file: Option<&Path>) -> Result<Self, Failure> {
        let begun = Instant::now();
        let world = Self::of(&source.objects()?, policy_file)?;
        let read_in = begun.elapsed();
        Ok(Self { led: source.led()?, read_in, ..world })
    }

    /// Everything that these objects say.
    pub fn of(objects: &Objects, policy_file: Option<&Path>) -> Result<Self, Failure> {
        let mut snapshot = directory::snapshot(objects);
        let problems = &mut snapshot.problems;
        let healths: BTreeMap<_, _> = typed::<NodeHealth>(objects, "NodeHealth", problems)
            .map(|(key, object)| (NodeName(key.name), object))
            .collect();
        let recoveries = typed(objects, "Recovery", problems).collect();
        let migrations = typed(objects, "VolumeMigration", problems).collect();
        let evacuations =
            typed(objects, "Evacuation", problems).map(|(key, object)| (key.name, object)).collect();
        let retained = objects.iter().filter(|(_, entry)| {
            let noted = &entry.value["metadata"]["annotations"][RETAINED_ANNOTATION];
            entry.id.kind == "PersistentVolume" && noted.is_string()
        });
        let retained = retained.map(|(_, entry)| VolumeName(entry.id.name.clone())).collect();
        let policy = match policy_file {
            Some(file) => policy_of_file(file)?,
            None => policy_of_cluster(objects, problems),
        };
        problems.sort();
        problems.dedup();
        let mut fleet = std::sync::Arc::unwrap_or_clone(snapshot.fleet);
        fleet.reports = healths
            .iter()
            .filter_map(|(node, health)| Some((node.clone(), reports::report(health.status.as_ref()?)?)))
            .collect();
        let problems = snapshot.problems;
        let (led, read_in) = (None, Duration::ZERO);
        Ok(Self {
            fleet,
            healths,
            recoveries,
            migrations,
            evacuations,
            retained,
            policy,
            led,
            problems,
            read_in,
        })
    }

    /// The proofs that each node could offer: as the coordinator says, else what can be told from outside. A
    /// person's word is always possible.
    pub fn proofs(&self) -> BTreeMap<NodeName, Vec<ProofKind>> {
        let known = |node: &NodeName| -> Option<Vec<ProofKind>> {
            let possible = &self.healths.get(node)?.status.as_ref()?.proofs_possible;
            (!possible.is_empty()).then(|| possible.iter().map(|proof| proof_kind(*proof)).collect())
        };
        let guessed = |node: &NodeName| {
            let fenced = self.policy.fencing.nodes.contains(node).then_some(ProofKind::PowerOffConfirmed);
            fenced.into_iter().chain([ProofKind::HumanAttested]).collect()
        };
        self.fleet
            .nodes
            .keys()
            .map(|node| (node.clone(), known(node).unwrap_or_else(|| guessed(node))))
            .collect()
    }

    /// How long the steps of a recovery take here.
    pub fn expected_times(&self) -> ExpectedTimes {
        ExpectedTimes {
            declare: self.policy.detection.declare,
            prove: BTreeMap::from([(ProofKind::PowerOffConfirmed, POWER_OFF_EXPECTED)]),
            ..ExpectedTimes::default()
        }
    }

    /// The one VM of this name: in the namespace where one is given, else in any.
    pub fn find_vm(&self, name: &str, namespace: Option<&str>) -> Result<Key, Failure> {
        let found: Vec<&Key> = self
            .fleet
            .vms
            .keys()
            .filter(|key| key.name == name && namespace.is_none_or(|want| key.namespace == want))
            .collect();
        match found.as_slice() {
            [key] => Ok((*key).clone()),
            [] => {
                let place =
                    namespace.map_or_else(|| "any namespace".to_owned(), |n| format!("namespace {n}"));
                Err(Failure::NotFound(format!("there is no VirtualMachine {name} in {place}")))
            }
            several => {
                let names: Vec<_> = several.iter().map(|key| key.namespace.as_str()).collect();
                Err(Failure::Usage(format!(
                    "VM {name} exists in the namespaces {}; say which by --namespace",
                    names.join(", ")
                )))
            }
        }
    }
}

/// Objects of one of our kinds. One that does not fit its type is a problem, not the end.
fn typed<'a, T: DeserializeOwned>(
    objects: &'a Objects,
    kind: &'static str,
    problems: &'a mut Vec<Problem>,
) -> impl Iterator<Item = (Key, T)> + use<'a, T> {
    objects.iter().filter(move |(_, entry)| entry.id.kind == kind).filter_map(move |(path, entry)| {
        match serde_json::from_value(entry.value.clone()) {
            Ok(object) => Some((entry.id.key(), object)),
            Err(error) => {
                // The snapshot names the field; this is for kinds that the coordinator only writes.
                let object = entry.id.to_string();
                if !problems.iter().any(|problem| problem.object == object) {
                    let file = path.display().to_string();
                    let message = error.to_string();
                    problems.push(Problem { file, document: entry.document, object, message });
                }
                None
            }
        }
    })
}

fn policy_of_file(path: &Path) -> Result<Policy, Failure> {
    let failed = |what: String| Failure::Failed(format!("policy file {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let spec: PolicySpec = serde_saphyr::from_str(&text).map_err(|error| failed(error.to_string()))?;
    Policy::try_from(spec).map_err(|error| failed(error.to_string()))
}

/// The policy of the cluster's own object; where it contradicts itself the coordinator would not take it either.
fn policy_of_cluster(objects: &Objects, problems: &mut Vec<Problem>) -> Policy {
    let mut entries = objects.iter();
    let Some((path, entry)) =
        entries.find(|(_, entry)| entry.id.kind == "RecoveryPolicy" && entry.id.name == POLICY_NAME)
    else {
        return Policy::default();
    };
    read_policy(&entry.value["spec"]).unwrap_or_else(|message| {
        problems.push(Problem {
            file: path.display().to_string(),
            document: entry.document,
            object: entry.id.to_string(),
            message,
        });
        Policy::default()
    })
}

/// The policy that this spec makes, or what is wrong with it, as the coordinator finds it. Which nodes have fence
/// agents by its own configuration is not known here.
pub fn read_policy(spec: &Value) -> Result<Policy, String> {
    policy::read(spec, &BTreeSet::new())
}

/// What a table about nodes begins with, where nobody keeps their objects up.
pub fn heading(led: Option<bool>) -> &'static str {
    match led {
        Some(false) => {
            "No coordinator leads here: nodes, disks and copies are shown as they were last told.\n\n"
        }
        _ => "",
    }
}

/// Tells the problems on standard error and says how the command then ends.
pub fn end(world: &World) -> crate::exit::Exit {
    output::tell_problems(&world.problems)
}
